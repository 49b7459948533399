"""Options of the energy model: devices and batteries, the allocation, and the radio."""

from math import inf
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ..base.machine import expanded
from ..base.options import Group
from .devices import PROFILES, DeviceProfile, draw_fleet
from .radio import ChannelModel, Wireless


class EnergyOptions(Group):
    """Device profiles, batteries, harvesting and energy meters."""

    devices: str = Field(
        "raspberry-pi-4", description="kinds of devices, in equal shares: 'phone,jetson-nano'"
    )
    clock_jitter: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="each device's clock is slower than its profile's by up to this",
    )
    battery_share: float = Field(
        0.0,
        ge=0,
        description="battery: the energy for sending, and this share of full training's; 0: mains",
    )
    battery_j: float = Field(0.0, ge=0, le=1e6, description="battery in joules instead")
    harvesting_w: float = Field(0.0, ge=0, description="power that refills the battery")
    pacing: bool = Field(
        True,
        description="spread what is left evenly over the rounds to come; off: spend it at once",
    )
    meter: Literal["model", "auto"] = Field(
        "model", description="joules of computing: the model's; auto: a device's own meter's"
    )

    @field_validator("devices")
    @classmethod
    def _known(cls, devices: str) -> str:
        names = [name.strip() for name in devices.split(",")]
        if unknown := [name for name in names if name not in PROFILES]:
            raise ValueError(f"no device '{unknown[0]}'; allowed: {', '.join(PROFILES)}")
        return devices

    @model_validator(mode="after")
    def _one_battery(self) -> "EnergyOptions":
        if self.battery_share and self.battery_j:
            raise ValueError("battery-share and battery-j exclude each other: set one to 0")
        return self

    @property
    def on_mains(self) -> bool:
        """Whether nothing limits what is spent."""
        return not (self.battery_share or self.battery_j)

    def fleet(self, num_nodes: int, seed: int) -> list[DeviceProfile]:
        """Return the device of each node, see :func:`~flwr_dmml.energy.devices.draw_fleet`."""
        names = [name.strip() for name in self.devices.split(",")]
        return draw_fleet(num_nodes, names, seed, frequency_jitter=self.clock_jitter)


class AllocationOptions(Group):
    """The allocation: from a device's energy in a round to iterations of its modalities."""

    rule: Literal[
        "auto", "uniform", "max-min", "proportional", "least-squares", "random", "sync-only"
    ] = Field("auto", description="how a budget becomes iterations; auto: the method's own")
    min_iterations: int = Field(
        2,
        ge=1,
        description="fewest iterations of a modality in a round, but never above local-iterations",
    )
    max_iterations: int = Field(
        0, ge=0, description="most iterations of a modality in a round; 0 is 2 x local-iterations"
    )
    max_ratio: float = Field(
        3.0, ge=1, description="a modality's speed counts as at most this many times the slowest"
    )
    exponent: float = Field(
        1.0,
        ge=0,
        le=4,
        description="iterations are proportional to 1 / speed to this power; 0: uniform",
    )
    warm_up: int = Field(
        2, ge=0, description="uniform rounds at the start, until speeds are meaningful"
    )
    latency_s: float = Field(
        0.0, ge=0, description="maximum seconds of computing and sending in a round; 0: no limit"
    )
    train_every: int = Field(2, ge=1, description="sync-only: rounds from one training to the next")

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "AllocationOptions":
        if 0 < self.max_iterations < self.min_iterations:
            raise ValueError(
                f"max-iterations = {self.max_iterations} is below min-iterations = "
                f"{self.min_iterations}"
            )
        return self

    @property
    def latency_limit_s(self) -> float:
        """``latency_s``, infinite for no limit."""
        return self.latency_s or inf


class WirelessOptions(Group):
    """The radio between devices; off, sending is free and takes no time."""

    enabled: bool = Field(False, description="bill sending over radio, and let links fade")
    positions: str = Field(
        "uniform",
        description="uniform or grid in the square of topology-side-m, or a file of lines 'x y'",
    )
    path_loss: Literal["d2d", "cellular"] = Field("d2d", description="path loss model, 3GPP style")
    shadowing_db: float = Field(8.0, ge=0, le=40, description="its standard deviation, dB")
    fading: Literal["none", "rayleigh", "rician"] = Field(
        "rayleigh", description="block fading, new in every round"
    )
    rician_k: float = Field(3.0, ge=0, description="direct over scattered power (rician)")
    power_w: float = Field(0.0, ge=0, description="transmit power; 0 takes the device profile's")
    bandwidth_hz: float = Field(1e6, gt=0, description="band of each device")
    shared_band_hz: float = Field(
        0.0, ge=0, description="one band for all instead, allocated with the iterations; 0: none"
    )
    min_rate_bps: float = Field(0.0, ge=0, description="slower links are down in that round")

    @property
    def shared(self) -> bool:
        """Whether all devices send in one band."""
        return self.enabled and self.shared_band_hz > 0

    def make(self, side_m: float, fleet: list[DeviceProfile]) -> Wireless:
        """Return the radios of a fleet; of a shared band each has an equal part.

        Raises
        ------
        WirelessError
            If an option cannot be.
        """
        powers = tuple(self.power_w or device.tx_power_w for device in fleet)
        named = self.positions in ("uniform", "grid")
        return Wireless(
            positions=self.positions if named else expanded(self.positions),
            side_m=side_m,
            channel=ChannelModel(
                path_loss=self.path_loss,
                shadowing_db=self.shadowing_db,
                fading=self.fading,
                rician_k=self.rician_k,
            ),
            power_w=powers,
            bandwidth_hz=self.shared_band_hz / len(fleet) or self.bandwidth_hz,
            min_rate_bps=self.min_rate_bps,
        )
