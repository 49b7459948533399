"""Price list of the allocation: joules and seconds that iterations cost each device of a fleet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .devices import DeviceProfile, IterationCosts, iteration_costs
from .ledger import Floats


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one device.

    Attributes
    ----------
    joint : float
        Of an iteration that trains all its modalities together.
    solo : dict of str to float
        Of an iteration that trains one modality alone, by modality.
    per_round : float
        Of what a method does besides iterations in a round in which it trains (a generator, say).
    in_phase : dict of str to float
        Of what it does on top of that, by phase of its plan (labelling a public set, say).
    """

    joint: float
    solo: dict[str, float]
    per_round: float = 0.0
    in_phase: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FleetCosts:
    """The price list of a fleet; build it with :meth:`of`.

    Attributes
    ----------
    modalities : tuple of str
        What the modality axis stands for.
    owned : NDArray[np.bool_], shape ``[node, modality]``
        Who has what.
    solo, joint, per_round : IterationCosts, shapes ``[node, modality]``, ``[node, 1]`` (both)
        Cost of each part of :class:`Work`; 0 where nothing is owned.
    in_phase : dict of str to IterationCosts, shapes ``[node, 1]``
        What a phase adds to ``per_round``.
    """

    modalities: tuple[str, ...]
    owned: NDArray[np.bool_]
    solo: IterationCosts
    joint: IterationCosts
    per_round: IterationCosts
    in_phase: dict[str, IterationCosts]

    @classmethod
    def of(cls, fleet: Sequence[DeviceProfile], work: Mapping[int, Work]) -> Self:
        """Return the prices of the devices ``fleet``; those without ``work`` own nothing."""
        modalities = tuple(sorted({m for w in work.values() for m in w.solo}))
        owned = np.zeros((len(fleet), len(modalities)), np.bool_)
        solo, joint, per_round = np.zeros(owned.shape), *np.zeros((2, len(fleet), 1))
        phases: dict[str, Floats] = {}
        for node, w in work.items():
            for m, flops in w.solo.items():
                owned[node, modalities.index(m)] = True
                solo[node, modalities.index(m)] = flops
            joint[node], per_round[node] = w.joint, w.per_round
            for phase, flops in w.in_phase.items():
                phases.setdefault(phase, np.zeros((len(fleet), 1)))[node] = flops

        def price(flops: Floats) -> IterationCosts:
            return iteration_costs(fleet, flops, batch_size=1)

        in_phase = {phase: price(flops) for phase, flops in phases.items()}
        return cls(modalities, owned, price(solo), price(joint), price(per_round), in_phase)

    def scaled(self, factor: Floats) -> Self:
        """Return the prices with each device's joules times ``factor`` ``[node]``."""

        def scale(prices: IterationCosts) -> IterationCosts:
            return IterationCosts(prices.energy_j * factor[:, None], prices.time_s)

        return replace(
            self,
            solo=scale(self.solo),
            joint=scale(self.joint),
            per_round=scale(self.per_round),
            in_phase={phase: scale(prices) for phase, prices in self.in_phase.items()},
        )

    def own_work(self, phase: str = "") -> IterationCosts:
        """Return what a method's own work costs in a round of this phase, ``[node, 1]``.

        Raises
        ------
        ValueError
            No device has counted what it does in this phase.
        """
        if not phase:
            return self.per_round
        if phase not in self.in_phase:
            raise ValueError(f"no device has counted what it does in the phase {phase!r}")
        base, more = self.per_round, self.in_phase[phase]
        return IterationCosts(base.energy_j + more.energy_j, base.time_s + more.time_s)

    def modalities_of(self, node: int) -> list[str]:
        """Return what a device owns, in the order of the modality axis."""
        pairs = zip(self.modalities, self.owned[node], strict=True)
        return [modality for modality, has in pairs if has]

    @property
    def planning(self) -> IterationCosts:
        """Cost of an iteration of each modality in an allocation, ``[node, modality]``.

        That of its solo iteration: a bill never exceeds it. Joint iterations are cheaper than as
        many solo ones, as their heads run once; for a method where they are not, prices are raised.
        """
        sums = np.maximum(self.solo.time_s.sum(axis=1, keepdims=True), 1e-300)
        factor = np.maximum(1.0, self.joint.time_s / sums)  # [node, 1]
        return IterationCosts(self.solo.energy_j * factor, self.solo.time_s * factor)

    def bill(
        self, tau: NDArray[np.int64], stagger: float, phase: str = ""
    ) -> tuple[Floats, Floats]:
        """Return joules and seconds ``[node]`` of a round's updates ``tau`` ``[node, modality]``.

        The bill covers the joint and the solo iterations that :func:`.balance.schedule` makes of
        them, heads and losses included, and the method's own work in a round of this phase; a
        device that trains nothing pays nothing.
        """
        joint, solo = split(tau, self.owned, stagger)
        trains, own = tau.any(axis=1), self.own_work(phase)

        def total(prices: str) -> Floats:
            iterations = joint * getattr(self.joint, prices)[:, 0]
            iterations = iterations + (solo * getattr(self.solo, prices)).sum(axis=1)
            return np.asarray(iterations + trains * getattr(own, prices)[:, 0])

        return total("energy_j"), total("time_s")


def split(
    tau: NDArray[np.int64], owned: NDArray[np.bool_], stagger: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the joint ``[node]`` and solo ``[node, modality]`` iterations of devices.

    The common iterations of a device with several modalities are joint, but for a share of them,
    which is split into solo iterations; what a modality has beyond the others is solo, too.

    Parameters
    ----------
    tau : NDArray[np.int64]
        Encoder updates, ``[node, modality]``, >= 0.
    owned : NDArray[np.bool_]
        Who has which modality, ``[node, modality]``.
    stagger : float
        The share that is split, in [0, 1].
    """
    several = owned.sum(axis=1) > 1  # [node]
    common = np.where(owned, tau, np.iinfo(np.int64).max).min(
        axis=1, initial=np.iinfo(np.int64).max
    )
    common = np.where(owned.any(axis=1), common, 0)
    joint = common - np.where(several, np.rint(stagger * common).astype(np.int64), 0)
    return joint, np.where(owned, tau - joint[:, None], 0)
