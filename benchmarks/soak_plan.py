"""What ``benchmarks/soak.py`` breaks, and when: a function of the seed alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

REST_S = 45.0
"""Seconds in which a device that was disturbed is left in peace, where others can be chosen."""


class Kind(StrEnum):
    DEVICE = "kill -9, device"
    COORDINATOR = "kill -9, coordinator"
    SUPERLINK = "kill -9, SuperLink"
    PARTITION = "partition"
    DISK = "full disk"
    CLOCK = "clock jump"
    REBOOT = "reboot"
    LIAR = "liar"
    UPDATE = "update"


LASTS_S: dict[Kind, tuple[float, float]] = {
    Kind.DEVICE: (0.0, 5.0),
    Kind.COORDINATOR: (0.0, 0.0),
    Kind.SUPERLINK: (0.0, 5.0),
    Kind.PARTITION: (10.0, 30.0),
    Kind.DISK: (10.0, 25.0),
    Kind.CLOCK: (10.0, 25.0),
    Kind.REBOOT: (3.0, 10.0),
    Kind.LIAR: (10.0, 25.0),
    Kind.UPDATE: (2.0, 5.0),
}
"""Least and most seconds until what was broken is mended, or what was killed is started again."""
OF_ALL = Kind.COORDINATOR, Kind.SUPERLINK
HOW: dict[Kind, tuple[str, ...]] = {
    Kind.CLOCK: ("3600", "-3600", "-60"),
    Kind.LIAR: ("accuracy NaN", "payload no array", "payload too long", "no payload", "list"),
}
"""Seconds by which a clock jumps; lies (``tests/helpers_liars.py``)."""


@dataclass(frozen=True)
class Event:
    """Something that breaks.

    Attributes
    ----------
    at_s, lasts_s : float
        Seconds from the start until it happens, and from then on until it is mended.
    kind : Kind
        What.
    device : int or None
        Whose; None if it is nobody's.
    how : str
        One of ``HOW``, or nothing.
    """

    at_s: float
    lasts_s: float
    kind: Kind
    device: int | None = None
    how: str = ""


def plan(
    seed: int,
    devices: int,
    minutes: float,
    gap_s: float = 60.0,
    kinds: Sequence[Kind] = tuple(Kind),
) -> list[Event]:
    """Return what happens to some devices in some minutes, in order, every ``gap_s`` on average.

    Every kind comes once before one comes again, in an order that is drawn each time.
    """
    draw = random.Random(f"{seed} {devices} {minutes:g}")
    peace = dict.fromkeys(range(devices), 0.0)
    events: list[Event] = []
    deck: list[Kind] = []
    at_s = draw.uniform(0.25, 0.75) * gap_s
    while at_s < 60 * minutes:
        if not deck:
            deck = draw.sample(list(kinds), len(kinds))
        kind = deck.pop()
        lasts_s = draw.uniform(*LASTS_S[kind])
        device = None
        if kind not in OF_ALL:
            free = [k for k, until in peace.items() if until <= at_s]
            device = draw.choice(free or [min(peace, key=lambda k: peace[k])])
            peace[device] = at_s + lasts_s + REST_S
        events.append(Event(at_s, lasts_s, kind, device, draw.choice(HOW.get(kind, ("",)))))
        at_s += draw.uniform(0.5, 1.5) * gap_s
    return events
