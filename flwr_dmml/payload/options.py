"""Options of the exchange of payloads: transport, compression and encryption."""

from typing import Literal

from pydantic import Field, model_validator

from ..base.options import Group
from .coding import Precision


class ExchangeOptions(Group):
    """Exchange of payloads between a device and its neighbours."""

    transport: Literal["relay", "direct"] = Field(
        "relay", description="relay: with Flower's messages; direct: from device to device (Zenoh)"
    )
    rounds_per_message: int = Field(
        1, ge=1, description="direct: rounds that devices run before they report to the coordinator"
    )
    timeout_s: float = Field(
        30.0,
        gt=0,
        description="direct: maximum seconds to wait for the neighbours' letters",
    )
    router: str = Field(
        "", description="direct: Zenoh router, host:port, for devices that cannot be reached"
    )
    multicast: bool = Field(False, description="direct: find each other by multicast on the LAN")
    sealed: bool = Field(
        False, description="payloads are encrypted from device to device, unread by the SuperLink"
    )
    precision: Literal["auto"] | Precision = Field(
        "auto", description="type of the numbers that are sent; auto: the method's"
    )
    top_k: float = Field(1.0, gt=0, le=1, description="share of a block's entries that is sent")

    @property
    def number_type(self) -> Precision:
        """``precision``; float32 where no method has chosen."""
        return "float32" if self.precision == "auto" else self.precision

    @model_validator(mode="after")
    def _several_rounds(self) -> "ExchangeOptions":
        if self.rounds_per_message > 1 and self.transport == "relay":
            raise ValueError(
                f"rounds-per-message = {self.rounds_per_message}: the relay hands payloads on in "
                "every round; allowed: 1, or transport = 'direct'"
            )
        return self
