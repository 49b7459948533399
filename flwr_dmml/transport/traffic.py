"""What a device has exchanged with its neighbours."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Traffic:
    """What has come from neighbours and gone to them, by partition id.

    Attributes
    ----------
    received, sent : Counter of int
        Bytes. What goes by the relay goes to the coordinator, to no neighbour.
    heard : dict of int to int
        The last round in which a neighbour's payload came.
    waited_s : float
        Seconds that the device has waited for letters, and for neighbours to fetch its own.
    """

    received: Counter[int] = field(default_factory=Counter)
    sent: Counter[int] = field(default_factory=Counter)
    heard: dict[int, int] = field(default_factory=dict)
    waited_s: float = 0.0
