"""Training speed of each modality of a learner, and the speeds that its neighbours report."""

from collections.abc import Iterable, Mapping, Sequence, Set
from math import isnan
from statistics import median
from struct import pack, unpack

import torch
from torch import Tensor, nn

from ..payload.blocks import STATISTICS
from ..payload.flat import Flat, joined, part
from ..payload.plan import Inbox
from ..payload.received import received
from .balance import SPEED_METRICS, LocalPhase, SpeedMetric
from .optimisers import Iteration, square_norms, total

SPEED = "speed."
"""Prefix of the speeds in a learner's state and metrics."""
NEAR = "near."
"""Prefix of the mean speeds of a device and its neighbours, in its metrics."""
SPEEDS = STATISTICS + "speeds"
"""Name of the speeds in a payload, ``[modality]`` in the order of the data set."""


class Odometer:
    """Distances that the encoders of devices move in the local steps of a round.

    Parameters
    ----------
    matrix : Tensor
        The devices' parameters, ``[device, length]``.
    flat : Flat
        Says where parameters lie in a row.
    encoders : mapping of str to sequence of int
        The parameters of each modality's encoder, by their positions in ``flat``.
    uses : set of str
        What is to be measured, see :class:`~flwr_dmml.learning.balance.SpeedMetric`.
    """

    def __init__(
        self, matrix: Tensor, flat: Flat, encoders: Mapping[str, Sequence[int]], uses: Set[str]
    ) -> None:
        self._matrix, self._encoders, self._uses = matrix, encoders, uses
        places = {m: joined([flat.places[i] for i in own]) for m, own in encoders.items()}
        self._all = places
        self._places = places if uses & {"vectors", "path"} else {m: [] for m in places}
        zeros = matrix.new_zeros(len(matrix))
        self._updates = {m: zeros.clone() for m in encoders}
        self._ratio = {m: zeros.clone() for m in encoders}
        self._path = {m: zeros.clone() for m in encoders}
        self._before = {m: part(matrix, where).clone() for m, where in self._places.items()}
        self._last = {m: before.clone() for m, before in self._before.items()}

    @torch.no_grad()
    def before_step(self, iteration: Iteration, modalities: Iterable[str]) -> None:
        """Add the gradients of one iteration, before they are used."""
        if "gradients" not in self._uses:
            return
        for m in modalities:
            own = self._encoders.get(m, ())
            g = [square_norms(run.values) for run in iteration.runs if run.parameters[0] in own]
            if g:
                w = [square_norms(iteration.x[:, place]) for place in self._all[m]]
                iteration.add(self._ratio[m], total(g) / (total(w) + 1e-12))

    @torch.no_grad()
    def after_step(self, iteration: Iteration, modalities: Iterable[str]) -> None:
        """Add the way that one iteration's step went."""
        for m in modalities:
            if m not in self._encoders:
                continue
            iteration.add(self._updates[m], iteration.x.new_ones(len(iteration.x)))
            if "path" in self._uses:
                now = part(iteration.x, self._places[m])
                way = torch.linalg.vector_norm(now - iteration.of(self._last[m]), dim=1)
                iteration.add(self._path[m], way)
                if iteration.rows is None:
                    self._last[m].copy_(now)
                else:
                    self._last[m][iteration.rows] = now

    def phases(self, starts: Sequence[Mapping[str, Tensor]]) -> list[dict[str, LocalPhase]]:
        """Return what the encoders of each device went through, given how they were at first."""
        found: list[dict[str, LocalPhase]] = [{} for _ in starts]
        for m, places in self._places.items():
            after, before = part(self._matrix, places).cpu(), self._before[m].cpu()
            numbers = zip(
                self._updates[m].tolist(),
                self._ratio[m].tolist(),
                self._path[m].tolist(),
                strict=True,
            )
            for k, (updates, ratio, path) in enumerate(numbers):
                if updates:
                    found[k][m] = LocalPhase(
                        start=starts[k][m],
                        before=before[k],
                        after=after[k],
                        iterations=int(updates),
                        gradient_ratio=ratio,
                        path_length=path,
                    )
        return found


class Speedometer:
    """The training speed of every encoder, carried from round to round.

    Parameters
    ----------
    flat : Flat
        The device's parameters as they are at the start of the run.
    encoders : mapping of str to nn.Module
        By modality; their parameters are in ``flat``.
    metric : str
        A name of :data:`~flwr_dmml.learning.balance.SPEED_METRICS`.
    robust : bool (default: False)
        Whether what neighbours report may be a lie: then the median counts, not the mean.
    """

    def __init__(
        self, flat: Flat, encoders: Mapping[str, nn.Module], metric: str, *, robust: bool = False
    ) -> None:
        self._robust = robust
        self._metric: SpeedMetric = SPEED_METRICS[metric]
        self._flat = flat
        self._encoders = {m: flat.indices_of(list(e.parameters())) for m, e in encoders.items()}
        self.start = {m: torch.empty(0) for m in encoders}
        """How each encoder was at the start of the run, flat, where the metric asks for it."""
        for own in self._encoders.values():
            flat.cut(own)
        if "vectors" in self._metric.uses:
            places = {m: joined([flat.places[i] for i in own]) for m, own in self._encoders.items()}
            self.start = {
                m: part(flat.rows, where)[0].detach().to("cpu", copy=True)
                for m, where in places.items()
            }
        self._states = {m: self._metric.initial() for m in encoders}
        self._speeds: dict[str, float] | None = None  # of these states

    def odometer(self, matrix: Tensor) -> Odometer:
        """Return what measures a round of devices with this one's layout, from here on."""
        return Odometer(matrix, self._flat, self._encoders, self._metric.uses)

    def take(self, phases: Mapping[str, LocalPhase]) -> dict[str, float]:
        """Bring the speeds up to date with what encoders went through.

        Returns them as metrics, ``speed.<modality>``.
        """
        for m, phase in phases.items():
            self._states[m] = self._metric.update(self._states[m], phase)
        self._speeds = None
        return {SPEED + m: speed for m, speed in self.speeds().items()}

    def speeds(self) -> dict[str, float]:
        """Return the speed of every encoder that has trained."""
        if self._speeds is None:
            speeds = {m: self._metric.speed(state) for m, state in self._states.items()}
            self._speeds = {m: speed for m, speed in speeds.items() if not isnan(speed)}
        return self._speeds

    def report(self, modalities: Sequence[str]) -> list[float]:
        """Return speeds ``[modality]`` for the neighbours, rounded to float32; 0 where unknown."""
        speeds = self.speeds()
        return [unpack("f", pack("f", speeds.get(m, 0.0)))[0] for m in modalities]

    def near(self, modalities: Sequence[str], inbox: Inbox) -> tuple[dict[str, float], list[str]]:
        """Return each modality's mean speed, of this device and of its neighbours, as metrics.

        The median of a robust one.

        So a device with one sensor learns whether it is the fast one (``near.<modality>``). Also
        returns what was wrong with neighbours' reports, which are then left out.

        Parameters
        ----------
        modalities : sequence of str
            All that any device may have: what the entries of a report stand for.
        inbox : Inbox
            Payloads that may hold what the neighbours' :meth:`report` gave, under :data:`SPEEDS`;
            entries of 0 or less are unset.
        """
        reports, wrong = received(inbox, SPEEDS, len(modalities), optional=True)
        return self.near_of(modalities, [report.tolist() for report in reports.values()]), wrong

    def near_of(
        self, modalities: Sequence[str], reports: Iterable[Sequence[float]]
    ) -> dict[str, float]:
        """Return the mean speeds, or medians, given the neighbours' reports as numbers."""
        table = zip(self.report(modalities), *reports, strict=True)
        near: dict[str, float] = {}
        for m, column in zip(modalities, table, strict=True):
            known = [speed for speed in column if speed > 0]
            if known:
                near[NEAR + m] = median(known) if self._robust else sum(known) / len(known)
        return near

    def state(self) -> dict[str, Tensor]:
        """Return what must survive until the next round."""
        return {SPEED + m: state for m, state in self._states.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        for m in self._states:
            self._states[m] = state.get(SPEED + m, self._metric.initial())
        self._speeds = None
