"""Training speed of each modality of a learner, and the speeds that its neighbours report."""

from collections.abc import Iterable, Mapping, Sequence, Set
from math import isnan

import torch
from torch import Tensor, nn

from ..payload.blocks import STATISTICS
from ..payload.flat import Flat, part
from ..payload.plan import Inbox
from ..payload.received import received
from .balance import SPEED_METRICS, LocalPhase, SpeedMetric

SPEED = "speed."
"""Prefix of the speeds in a learner's state and metrics."""
NEAR = "near."
"""Prefix of the mean speeds of a device and its neighbours, in its metrics."""
SPEEDS = STATISTICS + "speeds"
"""Name of the speeds in a payload, ``[modality]`` in the order of the data set."""


class Odometer:
    """Distances that the encoders of devices move in the local steps of a round, all rows at once.

    Parameters
    ----------
    matrix : Tensor
        The devices' parameters, ``[rows, length]``.
    places : mapping of str to list of slice
        Where the encoder of each modality lies.
    uses : set of str
        What is to be measured, see :class:`~flwr_dmml.learning.balance.SpeedMetric`.
    """

    def __init__(self, matrix: Tensor, places: Mapping[str, list[slice]], uses: Set[str]) -> None:
        self._matrix, self._places, self._uses = matrix, places, uses
        self._updates = dict.fromkeys(places, 0)
        self._ratio = {m: matrix.new_zeros(len(matrix)) for m in places}
        self._path = {m: matrix.new_zeros(len(matrix)) for m in places}
        self._before = {m: self._vectors(m).clone() for m in places}
        self._last = dict(self._before)

    def _vectors(self, m: str) -> Tensor:
        if self._uses.isdisjoint({"vectors", "path"}):
            return self._matrix[:, :0]
        return part(self._matrix, self._places[m])

    @torch.no_grad()
    def before_step(self, gradient: Tensor, modalities: Iterable[str]) -> None:
        """Add the gradients ``[rows, length]`` of one iteration, before they are used."""
        if "gradients" not in self._uses:
            return
        for m in modalities:
            if m in self._places:
                g, w = (part(x, self._places[m]) for x in (gradient, self._matrix))
                self._ratio[m] += g.square().sum(dim=1) / (w.square().sum(dim=1) + 1e-12)

    @torch.no_grad()
    def after_step(self, modalities: Iterable[str]) -> None:
        """Add the way that one iteration's step went."""
        for m in modalities:
            if m not in self._places:
                continue
            self._updates[m] += 1
            if "path" in self._uses:
                now = self._vectors(m).clone()
                self._path[m] += torch.linalg.vector_norm(now - self._last[m], dim=1)
                self._last[m] = now

    def phases(self, row: int, start: Mapping[str, Tensor]) -> dict[str, LocalPhase]:
        """Return what the encoders of one device went through, given how they were at the start."""
        return {
            m: LocalPhase(
                start=start[m],
                before=self._before[m][row].cpu(),
                after=self._vectors(m)[row].cpu(),
                iterations=updates,
                gradient_ratio=float(self._ratio[m][row]),
                path_length=float(self._path[m][row]),
            )
            for m, updates in self._updates.items()
            if updates
        }


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
    """

    def __init__(self, flat: Flat, encoders: Mapping[str, nn.Module], metric: str) -> None:
        self._metric: SpeedMetric = SPEED_METRICS[metric]
        self.places = {m: flat.places_of(list(e.parameters())) for m, e in encoders.items()}
        self.start = {
            m: part(flat.rows, places)[0].detach().to("cpu", copy=True)
            for m, places in self.places.items()
            if "vectors" in self._metric.uses
        }
        self.start = {m: self.start.get(m, torch.empty(0)) for m in self.places}
        self._states = {m: self._metric.initial() for m in self.places}

    def odometer(self, matrix: Tensor) -> Odometer:
        """Return what measures a round of devices with this one's layout, from here on."""
        return Odometer(matrix, self.places, self._metric.uses)

    def take(self, phases: Mapping[str, LocalPhase]) -> dict[str, float]:
        """Bring the speeds up to date with what encoders went through.

        Returns them as metrics, ``speed.<modality>``.
        """
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
        reports, wrong = received(inbox, SPEEDS, len(modalities), optional=True)
        table = torch.stack([self.report(modalities), *reports.values()])  # [device, modality]
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
