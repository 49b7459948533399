"""Device profiles: clock, energy of a clock cycle, transmit power, and battery."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor, isfinite

import numpy as np
from numpy.typing import ArrayLike

from ..base.seeding import numpy_generator
from .ledger import Floats, iteration_energy_j, iteration_time_s


class ProfileError(ValueError):
    """A device or fleet that cannot be; the message says what is wrong and what is allowed."""


@dataclass(frozen=True)
class DeviceProfile:
    """Profile of one kind of device in the energy model.

    Parameters
    ----------
    name : str
        Kebab-case.
    frequency_hz : float
        Clock of the processor, > 0.
    kappa : float
        Effective switched capacitance [J s^2 / cycle^3], > 0: a cycle costs ``kappa f^2`` joules,
        so the whole processor draws ``kappa f^3`` watts above idle. See :func:`kappa_from_power`.
    tx_power_w : float
        Power at the antenna while sending, > 0 (``p`` of the radio model).
    battery_j : float
        Energy of the full battery, > 0.
    source : str
        Where the figures come from; one that nobody measured is called an assumption.
    flops_per_cycle : float
        Floating-point operations of the whole processor in one clock cycle, > 0. The default of 4
        (two multiply-adds) is an assumption; Linpack reaches 6.5 on a Raspberry
        Pi 4 (11.8 GFLOP/s in float64 at 1.8 GHz, geerlingguy/sbc-reviews issue 4), small layers
        less.
    idle_power_w : float
        What the device draws with nothing to do, >= 0. Information: no formula here bills it.

    Raises
    ------
    ProfileError
        If a figure is outside its range.
    """

    name: str
    frequency_hz: float
    kappa: float
    tx_power_w: float
    battery_j: float
    source: str
    flops_per_cycle: float = 4.0
    idle_power_w: float = 0.0

    def __post_init__(self) -> None:
        for field in ("frequency_hz", "kappa", "tx_power_w", "battery_j", "flops_per_cycle"):
            value = getattr(self, field)
            if not (isfinite(value) and value > 0):
                raise ProfileError(f"{self.name}: {field} must be above 0, not {value}")
        if not (isfinite(self.idle_power_w) and self.idle_power_w >= 0):
            raise ProfileError(f"{self.name}: idle_power_w must be 0 or more")

    @property
    def dynamic_power_w(self) -> float:
        """Watts above idle with every core busy: ``kappa f^3``."""
        return self.kappa * self.frequency_hz**3


def kappa_from_power(dynamic_power_w: float, frequency_hz: float) -> float:
    """Return ``kappa = P / f^3`` [J s^2 / cycle^3] of a processor that draws P watts above idle.

    A cycle costs ``kappa f^2`` joules and f cycles pass in a second, hence ``P = kappa f^3``. For
    example 3.4 W at 1.8 GHz: ``3.4 / 5.832e27 = 5.83e-28``. Source: the model above, rearranged.
    """
    return dynamic_power_w / frequency_hz**3


_SBC = "geerlingguy/sbc-reviews, web/data/results.yml"
_BANK_J = 10.0 * 3.7 * 3600  # assumption: a 10 Ah, 3.7 V power bank feeds a board, 133.2 kJ
_TX_W = 0.1  # assumption: 20 dBm, the limit of 2.4 GHz Wi-Fi in Europe

# Dynamic power is the load of every core minus idle. Measured: both Pis and the phone. Of the
# Jetsons the clocks are published, the dynamic power is an assumption: about a third of the
# module's budget, which feeds the GPU and the memory as well (the model knows the CPU alone).
PROFILES: dict[str, DeviceProfile] = {
    profile.name: profile
    for profile in (
        DeviceProfile(
            "raspberry-pi-3",
            frequency_hz=1.2e9,
            kappa=kappa_from_power(3.7 - 1.4, 1.2e9),  # 2.3 W -> 1.33e-27
            tx_power_w=_TX_W,
            battery_j=_BANK_J,
            flops_per_cycle=2.0,  # assumption: Cortex-A53, half as wide as the others' cores
            idle_power_w=1.4,
            source="4 Cortex-A53 at 1.2 GHz. Idle 1.4 W, every core busy 3.7 W: the lower figures "
            "that pidora.ca gives for a Raspberry Pi 3, not how they were measured. Battery, "
            "FLOPs a cycle: assumption.",
        ),
        DeviceProfile(
            "raspberry-pi-4",
            frequency_hz=1.8e9,
            kappa=kappa_from_power(5.0 - 1.6, 1.8e9),  # 3.4 W -> 5.83e-28
            tx_power_w=_TX_W,
            battery_j=_BANK_J,
            idle_power_w=1.6,
            source=f"Idle 1.6 W, stress-ng 5.0 W at the wall, 1.8 GHz: {_SBC} and issue 4. "
            "Battery, radio, FLOPs a cycle: assumption.",
        ),
        DeviceProfile(
            "raspberry-pi-5",
            frequency_hz=2.4e9,
            kappa=kappa_from_power(9.7 - 2.8, 2.4e9),  # 6.9 W -> 4.99e-28
            tx_power_w=_TX_W,
            battery_j=_BANK_J,
            idle_power_w=2.8,
            source=f"Idle 2.8 W, stress-ng 9.7 W at the wall, 2.4 GHz: {_SBC} (issue 21). "
            "Battery, radio, FLOPs a cycle: assumption.",
        ),
        DeviceProfile(
            "jetson-nano",
            frequency_hz=1.479e9,
            kappa=kappa_from_power(3.5, 1.479e9),  # 3.5 W -> 1.08e-27
            tx_power_w=_TX_W,
            battery_j=_BANK_J,
            idle_power_w=2.0,
            source="4 cores at 1.479 GHz in the 10 W mode: NVIDIA L4T 32.1 development guide, "
            "power management for Jetson Nano. Dynamic 3.5 W, idle 2 W, battery, radio, FLOPs a "
            "cycle: assumption.",
        ),
        DeviceProfile(
            "jetson-orin-nano",
            frequency_hz=1.51e9,
            kappa=kappa_from_power(5.0, 1.51e9),  # 5.0 W -> 1.45e-27
            tx_power_w=_TX_W,
            battery_j=_BANK_J,
            flops_per_cycle=6.0,  # assumption: 6 cores where the other devices have 4 (big) ones
            idle_power_w=4.0,
            source="6 cores at 1.51 GHz in the 15 W mode: ai-hpc.github.io, Jetson Orin Nano 8GB "
            "power guide. Dynamic 5 W, idle 4 W, battery, radio, FLOPs a cycle: assumption.",
        ),
        DeviceProfile(
            "phone",
            frequency_hz=2.362e9,
            kappa=kappa_from_power(5.312, 2.362e9),  # 5.312 W -> 4.03e-28
            tx_power_w=_TX_W,
            battery_j=4.0 * 3.82 * 3600,  # 4 Ah at 3.82 V, 55.0 kJ
            idle_power_w=0.5,
            source="Kirin 960, 4 Cortex-A73 at 2.362 GHz: 5.312 W above idle, AnandTech, HiSilicon "
            "Kirin 960: performance and power (2017). Idle 0.5 W, battery of 4 Ah at 3.82 V, "
            "radio, FLOPs a cycle: assumption.",
        ),
    )
}
"""Devices by name. Orders of magnitude for planning, not a substitute for a power meter."""


def draw_fleet(
    num_nodes: int,
    profiles: str | Sequence[str] | Mapping[str, float],
    seed: int,
    *,
    frequency_jitter: float = 0.0,
    catalogue: Mapping[str, DeviceProfile] = PROFILES,
) -> list[DeviceProfile]:
    """Return the device of each node: shares are met exactly, who gets which is random.

    Parameters
    ----------
    num_nodes : int
        Number of devices, >= 1.
    profiles : str, sequence of str or mapping of str to float
        Names in equal shares (a name given twice counts twice), or a share of each name: any
        numbers >= 0 with a sum above 0. Nodes left over go to the largest remainders, earlier
        names first.
    seed : int
        The run's seed.
    frequency_jitter : float
        In [0, 1): every clock is drawn from ``[1 - jitter, 1]`` of its profile's, as if throttled.
        ``kappa`` is the chip's and stays, so the power falls with the cube of the clock.
    catalogue : mapping of str to DeviceProfile
        Where the names are looked up; a user's own devices go here.

    Returns
    -------
    list of DeviceProfile, one a node
        The same for the same arguments in every process.

    Raises
    ------
    ProfileError
        Without nodes or profiles, with an unknown name, an impossible share or jitter.
    """
    shares = _shares(profiles)
    for name in shares:
        if name not in catalogue:
            raise ProfileError(f"unknown device {name!r}; allowed: {', '.join(sorted(catalogue))}")
    if num_nodes < 1:
        raise ProfileError(f"a fleet needs at least 1 node, not {num_nodes}")
    if not 0 <= frequency_jitter < 1:
        raise ProfileError(f"frequency_jitter must be in [0, 1), not {frequency_jitter}")

    total = sum(shares.values())
    quotas = {name: num_nodes * (share / total) for name, share in shares.items()}
    counts = {name: floor(quota) for name, quota in quotas.items()}
    by_remainder = sorted(quotas, key=lambda name: counts[name] - quotas[name])  # stable on ties
    for name in by_remainder[: num_nodes - sum(counts.values())]:
        counts[name] += 1

    names = [name for name, count in counts.items() for _ in range(count)]
    order = numpy_generator(seed, "fleet", "devices").permutation(num_nodes)
    clocks = 1 - frequency_jitter * numpy_generator(seed, "fleet", "clocks").random(num_nodes)
    fleet = [catalogue[names[i]] for i in order]
    return [
        replace(profile, frequency_hz=profile.frequency_hz * float(clock))
        for profile, clock in zip(fleet, clocks, strict=True)
    ]


def _shares(profiles: str | Sequence[str] | Mapping[str, float]) -> dict[str, float]:
    """Return the share of each name, checked."""
    if isinstance(profiles, Mapping):
        shares = dict(profiles)
    else:
        names = [profiles] if isinstance(profiles, str) else list(profiles)
        shares = {name: float(names.count(name)) for name in names}
    if any(not (isfinite(share) and share >= 0) for share in shares.values()):
        raise ProfileError(f"shares must be finite and 0 or more, not {shares}")
    if sum(shares.values()) <= 0:
        raise ProfileError("a fleet needs at least one device with a share above 0")
    return shares


@dataclass(frozen=True, eq=False)
class IterationCosts:
    """Cost of one iteration of each node and modality: ``energy_j`` and ``time_s``."""

    energy_j: Floats  # [node, modality]
    time_s: Floats  # [node, modality]


def iteration_costs(
    profiles: Sequence[DeviceProfile], flops_per_sample: ArrayLike, batch_size: int
) -> IterationCosts:
    """Return what one iteration of each modality costs each node.

    ``c = flops / flops_per_cycle`` of the node's profile, then :func:`.iteration_energy_j` and
    :func:`.iteration_time_s`.

    Parameters
    ----------
    profiles : sequence of DeviceProfile, length node
        The fleet.
    flops_per_sample : ArrayLike, shape ``[modality]`` or ``[node, modality]``
        Training FLOPs of each modality, >= 0, 0 where a node
        lacks the modality.
    batch_size : int
        Samples of an iteration.
    """

    def column(field: str) -> Floats:
        return np.array(
            [[getattr(profile, field)] for profile in profiles], np.float64
        )  # [node, 1]

    cycles = np.asarray(flops_per_sample, np.float64) / column(
        "flops_per_cycle"
    )  # [node, modality]
    f = column("frequency_hz")
    return IterationCosts(
        energy_j=iteration_energy_j(cycles, batch_size, f, column("kappa")),
        time_s=iteration_time_s(cycles, batch_size, f),
    )
