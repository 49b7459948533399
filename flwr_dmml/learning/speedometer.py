"""Measures how fast each modality of a learner trains, and hears how fast its neighbours do."""

from collections.abc import Iterable, Mapping, Sequence
from math import isnan

import torch
from torch import Tensor, nn

from ..payload.blocks import STATISTICS, flatten, vector_problem
from ..payload.plan import Inbox
from .balance import SPEED_METRICS, LocalPhase, SpeedMetric

SPEED = "speed."
"""Prefix of the speeds in a learner's state and metrics."""
NEAR = "near."
"""Prefix of the mean speeds of a device and its neighbours, in its metrics."""
SPEEDS = STATISTICS + "speeds"
"""Where the speeds travel in a payload, ``[modality]`` in the order of the data set."""


class Speedometer:
    """The training speed of every encoder, carried from round to round.

    Parameters
    ----------
    encoders : mapping of str to nn.Module
        By modality, as they are at the start of the run.
    metric : str
        A name of :data:`~flwr_dmml.learning.balance.SPEED_METRICS`.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], metric: str) -> None:
        self._encoders = dict(encoders)
        self._metric: SpeedMetric = SPEED_METRICS[metric]
        self.start = self._vectors()
        self._states = {m: self._metric.initial() for m in self._encoders}

    def begin(self) -> None:
        """Take note of the parameters before the local iterations of a round."""
        self._before = self._vectors()
        self._last = dict(self._before)
        self._updates = dict.fromkeys(self._encoders, 0)
        self._ratio = dict.fromkeys(self._encoders, 0.0)
        self._path = dict.fromkeys(self._encoders, 0.0)

    def _vectors(self) -> dict[str, Tensor]:
        """Return the parameters of all encoders, flat; empty where the metric does not use them."""
        used, nothing = "vectors" in self._metric.uses, torch.empty(0)
        return {m: flatten(encoder) if used else nothing for m, encoder in self._encoders.items()}

    @torch.no_grad()
    def before_step(self, modalities: Iterable[str]) -> None:
        """Add the gradients of one iteration, before the optimiser uses them."""
        if "gradients" not in self._metric.uses:
            return
        for m in modalities:
            parameters = [p for p in self._encoders[m].parameters() if p.grad is not None]
            gradient = sum(float((p.grad**2).sum()) for p in parameters if p.grad is not None)
            weight = sum(float((p**2).sum()) for p in parameters)
            self._ratio[m] += gradient / (weight + 1e-12)

    def after_step(self, modalities: Iterable[str]) -> None:
        """Add the way that one iteration's step went."""
        for m in modalities:
            self._updates[m] += 1
            if "path" in self._metric.uses:
                now = flatten(self._encoders[m])
                self._path[m] += float(torch.linalg.vector_norm(now - self._last[m]))
                self._last[m] = now

    def end(self) -> dict[str, float]:
        """Bring the speeds up to date and return them as metrics (``speed.<modality>``)."""
        after = self._vectors()
        return self.take(
            {
                m: LocalPhase(
                    start=self.start[m],
                    before=self._before[m],
                    after=after[m],
                    iterations=updates,
                    gradient_ratio=self._ratio[m],
                    path_length=self._path[m],
                )
                for m, updates in self._updates.items()
                if updates
            }
        )

    def take(self, phases: Mapping[str, LocalPhase]) -> dict[str, float]:
        """Bring the speeds up to date with what encoders went through; see :meth:`end`."""
        for m, phase in phases.items():
            self._states[m] = self._metric.update(self._states[m], phase)
        return {SPEED + m: speed for m, speed in self.speeds().items()}

    def speeds(self) -> dict[str, float]:
        """Return the speed of every encoder that has trained."""
        speeds = {m: self._metric.speed(state) for m, state in self._states.items()}
        return {m: speed for m, speed in speeds.items() if not isnan(speed)}

    def report(self, modalities: Sequence[str]) -> Tensor:
        """Return the speeds ``[modality]`` float32 for the neighbours; 0 where there is none."""
        speeds = self.speeds()
        return torch.tensor([speeds.get(m, 0.0) for m in modalities], dtype=torch.float32)

    def near(self, modalities: Sequence[str], inbox: Inbox) -> tuple[dict[str, float], list[str]]:
        """Return each modality's mean speed, of this device and of its neighbours, as metrics.

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
        reports, wrong = list[Tensor](), list[str]()
        for neighbour, payload in inbox.items():
            report = payload.get(SPEEDS, torch.zeros(len(modalities)))
            if problem := vector_problem(report, len(modalities)):
                wrong.append(f"{neighbour}: {SPEEDS} {problem}")
            else:
                reports.append(report)
        table = torch.stack([self.report(modalities), *reports])  # [device, modality]
        known = {m: column[column > 0] for m, column in zip(modalities, table.T, strict=True)}
        near = {NEAR + m: float(speeds.mean()) for m, speeds in known.items() if len(speeds)}
        return near, wrong

    def state(self) -> dict[str, Tensor]:
        """Return what must survive until the next round."""
        return {SPEED + m: state for m, state in self._states.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        for m in self._states:
            self._states[m] = state.get(SPEED + m, self._metric.initial())
