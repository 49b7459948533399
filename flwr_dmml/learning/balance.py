"""Training speed of each modality, from the change of its parameters, and balance of a node.

Measured on the local phase of a round only (what mixing moves does not count), on the encoder of
one modality. A speed is per iteration, so that ``speed * iterations`` predicts the progress of a
round. Where no paper is named, a formula is this project's.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, log, nan
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..base.seeding import torch_generator
from ..energy.costs import split

_TINY = 1e-12


@dataclass(frozen=True)
class LocalPhase:
    """Change of one encoder in one round's local iterations.

    What a metric does not use is empty, or nan (:attr:`SpeedMetric.uses`).

    Attributes
    ----------
    start : Tensor
        Its parameters at the start of the run, flat ``[length]``.
    before, after : Tensor
        Its parameters before and after the local iterations, flat ``[length]``.
    iterations : int
        Its updates, >= 1.
    gradient_ratio : float
        ``sum_i ||g_i||^2 / ||w_i||^2`` over the updates (gradient and parameters of each).
    path_length : float
        ``sum_i ||w_{i+1} - w_i||_2`` over the updates.
    """

    start: Tensor
    before: Tensor
    after: Tensor
    iterations: int
    gradient_ratio: float
    path_length: float

    @property
    def displacement(self) -> float:
        """``||after - before||_2``."""
        return float(torch.linalg.vector_norm(self.after.double() - self.before.double()))


class SpeedMetric(ABC):
    """A training speed that is carried from round to round as a few numbers.

    The state is a flat float64 tensor, zeros before the first round.
    """

    size: int = 2
    """Numbers in the state."""
    uses: frozenset[Literal["vectors", "gradients", "path"]] = frozenset({"vectors"})
    """Values that it reads of a phase: ``start``, ``before`` and ``after``, ``gradient_ratio``, or
    ``path_length``. Nothing else is measured in a run."""

    def initial(self) -> Tensor:
        """Return the state before the first round."""
        return torch.zeros(self.size, dtype=torch.float64)

    @abstractmethod
    def update(self, state: Tensor, phase: LocalPhase) -> Tensor:
        """Return the state after one more local phase."""

    @abstractmethod
    def speed(self, state: Tensor) -> float:
        """Return the speed per iteration, >= 0, or nan before the first round."""


@dataclass(frozen=True)
class _Averaged(SpeedMetric):
    """An exponential moving average of a per-round value: state (average, rounds seen)."""

    memory: float = 0.9

    @abstractmethod
    def value(self, phase: LocalPhase) -> float:
        """Return the round's own value."""

    def update(self, state: Tensor, phase: LocalPhase) -> Tensor:
        """Average the round's value in."""
        value, (average, rounds) = self.value(phase), state.tolist()
        average = value if rounds == 0 else self.memory * average + (1 - self.memory) * value
        return torch.tensor([average, rounds + 1], dtype=torch.float64)

    def speed(self, state: Tensor) -> float:
        """Return the average."""
        average, rounds = state.tolist()
        return average if rounds else nan


class RelativeSpeed(_Averaged):
    """``||after - before|| / ||before||`` per iteration, averaged over rounds.

    The plain reading of "parameter variation" in DMML-KD's abstract. It flips: a modality that has
    converged varies little, so it is called slow and handed more iterations.
    """

    def value(self, phase: LocalPhase) -> float:
        """Return the round's relative variation per iteration."""
        norm = float(torch.linalg.vector_norm(phase.before.double()))
        return phase.displacement / (phase.iterations * (norm + _TINY))


class PathSpeed(_Averaged):
    """Displacement over path length: how straight the way was, in [0, 1].

    1 for updates that all point the same way, near 0 for ones that cancel. In a first trial it
    carried no signal.
    """

    uses = frozenset({"vectors", "path"})

    def value(self, phase: LocalPhase) -> float:
        """Return the round's displacement over its path length."""
        return phase.displacement / (phase.path_length + _TINY)


class _Cumulative(SpeedMetric):
    """A value over the whole run divided by all iterations: state (value, iterations)."""

    def speed(self, state: Tensor) -> float:
        """Return the value over the iterations."""
        value, iterations = state.tolist()
        return value / iterations if iterations else nan


class DistanceSpeed(_Cumulative):
    """``||after - start|| / ||start||`` per iteration of the run: how far from where it began."""

    def update(self, state: Tensor, phase: LocalPhase) -> Tensor:
        """Replace the distance, add the iterations."""
        start = phase.start.double()
        distance = float(torch.linalg.vector_norm(phase.after.double() - start))
        norm = float(torch.linalg.vector_norm(start))
        total = float(state[1]) + phase.iterations
        return torch.tensor([distance / (norm + _TINY), total], dtype=torch.float64)


class CosineSpeed(_Cumulative):
    """``1 - cos(after, start)`` per iteration of the run.

    References
    ----------
    Ouyang et al., "Harmony", MobiSys 2023: the modality bias.
    """

    def update(self, state: Tensor, phase: LocalPhase) -> Tensor:
        """Replace the distance, add the iterations."""
        cosine = torch.cosine_similarity(phase.after.double(), phase.start.double(), dim=0)
        total = float(state[1]) + phase.iterations
        return torch.tensor([max(1 - float(cosine), 0.0), total], dtype=torch.float64)


class ConditionalSpeed(_Cumulative):
    """``sum ||g||^2 / ||w||^2`` over the run, per iteration.

    The one that never flipped in the calibration, and the default.

    References
    ----------
    Wu et al., "Characterizing and Overcoming the Greedy Nature of Learning in Multi-modal Deep
    Neural Networks", ICML 2022: the conditional learning speed.
    """

    uses = frozenset({"gradients"})

    def update(self, state: Tensor, phase: LocalPhase) -> Tensor:
        """Add the round's ratio and iterations."""
        added = torch.tensor([phase.gradient_ratio, phase.iterations], dtype=torch.float64)
        return state + added


SPEED_METRICS: dict[str, SpeedMetric] = {
    "relative": RelativeSpeed(),
    "cumulative": DistanceSpeed(),
    "cosine": CosineSpeed(),
    "conditional": ConditionalSpeed(),
    "path": PathSpeed(),
}
"""The variants by the name they have in a run config."""


def balance_metric(speed: Mapping[str, float], iterations: Mapping[str, float]) -> float:
    """Return ``max_m V^m tau^m / min_m V^m tau^m`` of one node.

    Parameters
    ----------
    speed : mapping of str to float
        Training speed of each modality; those that are unset (nan) are left out.
    iterations : mapping of str to float
        Updates of each modality's encoder in a round.

    Returns
    -------
    float
        >= 1; 1 is balanced. 1 too with fewer than two modalities, inf where one stands still.
    """
    progress = [speed[m] * iterations[m] for m in speed if isfinite(speed[m])]
    if len(progress) < 2 or max(progress) == 0:
        return 1.0
    return max(progress) / min(progress) if min(progress) > 0 else float("inf")


def effective_speeds(
    speed: Mapping[str, float], *, exponent: float = 1.0, max_ratio: float = 3.0
) -> dict[str, float]:
    """Return speeds for an allocation: relative to the slowest, tempered and capped.

    ``min((V^m / min V)^exponent, max_ratio)``. 1 everywhere (uniform) while a speed is unset (nan)
    or 0: nothing can be told from it.

    Parameters
    ----------
    speed : mapping of str to float
        Training speed of each modality of a device, >= 0.
    exponent : float
        >= 0; 0 makes all equal.
    max_ratio : float
        >= 1; no modality gets fewer iterations than this part of what the slowest gets.
    """
    if not all(isfinite(v) and v > 0 for v in speed.values()):
        return dict.fromkeys(speed, 1.0)
    slowest = min(speed.values(), default=1.0)
    logs = {m: exponent * log(v / slowest) for m, v in speed.items()}  # a power might overflow
    capped = {m for m, value in logs.items() if value >= log(max_ratio)}
    return {m: max_ratio if m in capped else (v / slowest) ** exponent for m, v in speed.items()}


def schedule(iterations: Mapping[str, int], stagger: float, seed: int) -> list[tuple[str, ...]]:
    """Return a node's iterations of a round: which modalities each one trains.

    How many are joint and how many solo says :func:`~flwr_dmml.energy.costs.split`; the order is
    shuffled. Solo iterations free a modality from the competition of the others, at
    the same encoder updates (this project).

    With one seed, devices have their iterations in one order, whatever their number: the first
    joint one of each has the same place, and so on. So they can take most of them together.

    Parameters
    ----------
    iterations : mapping of str to int
        Encoder updates of each modality, >= 0.
    stagger : float
        In [0, 1]; 0 keeps all common iterations joint.
    seed : int
        Of the order.

    Returns
    -------
    list of tuple of str
        One entry an iteration; each modality appears ``iterations[m]`` times in all.
    """
    joint, solo = _split(tuple(iterations.values()), stagger)
    counts = Counter({tuple(iterations): joint})
    counts.update({(m,): count for m, count in zip(iterations, solo, strict=True)})
    steps = [
        (place, modalities)
        for modalities, count in counts.items()
        for place in _places(seed, modalities, count)
    ]
    return [modalities for _, modalities in sorted(steps)]


@lru_cache(maxsize=256)  # devices of a round ask for the same
def _places(seed: int, modalities: tuple[str, ...], count: int) -> list[float]:
    """Return where in a round iterations of these modalities come, in [0, 1); a prefix of more."""
    generator = torch_generator(seed, *modalities)
    places: list[float] = torch.rand(count, generator=generator, dtype=torch.double).tolist()
    return places


@lru_cache(maxsize=1024)
def _split(counts: tuple[int, ...], stagger: float) -> tuple[int, list[int]]:
    """Return what :func:`~flwr_dmml.energy.costs.split` does, of one device."""
    tau = np.array([counts], np.int64)  # [1, modality]
    joint, solo = split(tau, np.ones_like(tau, np.bool_), stagger)
    return int(joint[0]), solo[0].tolist()
