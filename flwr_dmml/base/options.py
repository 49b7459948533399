"""Groups of settings that every run has: energy, iterations, radio, data and what they lack."""

import os
from collections.abc import Container, Iterable
from math import inf
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..energy.devices import PROFILES, DeviceProfile, draw_fleet
from ..energy.radio import ChannelModel, Wireless
from ..payload.coding import Precision

if TYPE_CHECKING:
    from ..settings import Settings


def kebab(name: str) -> str:
    """Return a field's name as it stands in a run config."""
    return name.replace("_", "-")


class Options(BaseModel):
    """Base of everything read from a run config: kebab-case keys, strict types, frozen."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=kebab,
        populate_by_name=True,
    )

    def problems(self, settings: "Settings") -> list[str]:
        """Return what these options of a method need of the run's settings and do not find there.

        A line each, ``key = value: what is allowed``; asked of the methods that are to run, before
        anything starts.
        """
        return []


class EnergyOptions(Options):
    """What devices run on."""

    devices: str = Field(
        "raspberry-pi-4", description="kinds of devices, in equal shares: 'phone,jetson-nano'"
    )
    clock_jitter: float = Field(
        0.0, ge=0, lt=1, description="every clock is slower than its profile's by up to this share"
    )
    battery_share: float = Field(
        0.0,
        ge=0,
        description="battery: what sending takes, and this share of computing all; 0 is mains",
    )
    battery_j: float = Field(0.0, ge=0, le=1e6, description="battery in joules instead")
    harvesting_w: float = Field(0.0, ge=0, description="power that refills the battery")
    pacing: bool = Field(
        True, description="spread what is left evenly over the rounds to come; off spends it first"
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


class AllocationOptions(Options):
    """How a device's energy of a round becomes iterations of its modalities."""

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
        3.0, ge=1, description="a modality counts as at most so many times the slowest's speed"
    )
    exponent: float = Field(
        1.0, ge=0, le=4, description="iterations go with speed to minus this power; 0 is uniform"
    )
    warm_up: int = Field(
        2, ge=0, description="rounds that are uniform, until speeds mean something"
    )
    latency_s: float = Field(
        0.0, ge=0, description="most seconds of computing and sending in a round; 0 is no limit"
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


class WirelessOptions(Options):
    """The radio between devices; off, sending is free and takes no time."""

    enabled: bool = Field(False, description="bill sending over radio, and let links fade")
    positions: str = Field(
        "uniform", description="uniform or grid in the square of topology-side-m, or a file 'x y'"
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
        0.0, ge=0, description="one band for all instead, allocated with the iterations; 0 is none"
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
            positions=self.positions if named else os.path.expanduser(self.positions),
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


class PublicOptions(Options):
    """The public set of methods that label one: the same unlabelled samples on every device."""

    dataset: str = Field(
        "", description="data set without its labels; empty: the run's own, what no device got"
    )
    samples: int = Field(0, ge=0, description="public samples; 0 takes all there are")
    outside: str = Field(
        "", description="mix in this data set, whose samples are out of distribution"
    )
    outside_share: float = Field(0.5, gt=0, lt=1, description="their share, where outside is set")
    convert_images: bool = Field(False, description="bring other images to the run's size, colour")


class MissingOptions(Options):
    """Samples that lack one of their device's modalities; a device with one never lacks it."""

    train_share: float = Field(
        0.0, ge=0, lt=1, description="share of a device's training samples that lack a modality"
    )
    test_share: float = Field(
        0.0, ge=0, le=1, description="share of the test samples that lack one, in metrics apart"
    )
    modalities: str = Field(
        "", description="which may be missing, one in a sample: 'audio,image'; empty: any"
    )

    def among(self, available: Iterable[str]) -> tuple[str, ...]:
        """Return those of the ``available`` modalities that may be missing, in their order."""
        return tuple(m for m in available if m in self._named or not self._named)

    def unknown(self, available: Container[str]) -> list[str]:
        """Return what ``modalities`` names besides the ``available`` ones."""
        return [m for m in self._named if m not in available]

    @property
    def _named(self) -> list[str]:
        return [name.strip() for name in self.modalities.split(",")] if self.modalities else []


class AudioOptions(Options):
    """How files of sound become log-mel spectrograms, in data sets that say so."""

    rate_hz: int = Field(16_000, ge=1000, le=192_000, description="sound is resampled to this, Hz")
    seconds: float = Field(
        1.0, gt=0, le=600, description="length: longer is cropped, shorter padded, s"
    )
    mels: int = Field(32, ge=4, le=256, description="mel bands")
    window_ms: float = Field(32.0, gt=0, le=1000, description="window of a spectrum, ms")
    hop_ms: float = Field(16.0, gt=0, le=1000, description="from one spectrum to the next, ms")


class ImageOptions(Options):
    """How image files become tensors, in data sets that say so."""

    side: int = Field(32, ge=4, le=1024, description="images are resized to this square, pixels")
    colour: bool = Field(True, description="three channels; off, one of grey")


class SeriesOptions(Options):
    """How recordings become windows, in data sets that say so."""

    window_s: float = Field(
        0.0, ge=0, le=600, description="length of a window, s; 0 is what suits the data set"
    )
    overlap: float = Field(0.5, ge=0, lt=1, description="share that a window has of the last one")
    rate_hz: float = Field(50.0, gt=0, le=100_000, description="common sampling rate, Hz")
    steps: int = Field(
        0, ge=0, description="steps of a sequence: longer is cut, shorter masked; 0: the longest's"
    )


class ExchangeOptions(Options):
    """How payloads get from a device to its neighbours."""

    transport: Literal["relay", "peer"] = Field(
        "relay", description="relay: with Flower's messages; peer: from device to device (Zenoh)"
    )
    rounds_per_message: int = Field(
        1, ge=1, description="peer: rounds that devices run before they report to the coordinator"
    )
    timeout_s: float = Field(
        30.0, gt=0, description="peer: most seconds that a device waits for its neighbours' letters"
    )
    router: str = Field(
        "", description="peer: Zenoh router, host:port, for devices that cannot be reached"
    )
    multicast: bool = Field(False, description="peer: find each other by multicast on the LAN")
    encrypt: bool = Field(False, description="from device to device, unread by the SuperLink (TLS)")
    precision: Precision = Field("float32", description="type of the numbers that are sent")
    top_k: float = Field(1.0, gt=0, le=1, description="share of a block's entries that is sent")

    @model_validator(mode="after")
    def _several_rounds(self) -> "ExchangeOptions":
        if self.rounds_per_message > 1 and self.transport == "relay":
            raise ValueError(
                f"rounds-per-message = {self.rounds_per_message}: the relay hands payloads on in "
                "every round; allowed: 1, or transport = 'peer'"
            )
        return self


GROUPS: dict[str, type[Options]] = {
    "energy": EnergyOptions,
    "allocation": AllocationOptions,
    "wireless": WirelessOptions,
    "public": PublicOptions,
    "missing": MissingOptions,
    "audio": AudioOptions,
    "image": ImageOptions,
    "series": SeriesOptions,
    "exchange": ExchangeOptions,
}
"""The groups by their prefix in a run config: ``energy.battery-share`` and so on."""
