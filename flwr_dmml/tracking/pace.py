"""How far a method has come, how long it will take, and what has taken how long."""

import time
from collections.abc import Callable


class Pace:
    """Rounds done of all, and the time that is left at the pace so far.

    Parameters
    ----------
    total : int
        Rounds in all, at least 1.
    now : callable
        Seconds since some moment.
    """

    def __init__(self, total: int, now: Callable[[], float] = time.monotonic) -> None:
        self.done, self.total = 0, total
        self._now, self._begun = now, now()

    def advance(self) -> None:
        """Count a round that has ended."""
        self.done += 1

    @property
    def left_s(self) -> float | None:
        """Seconds that are left; None before the first round has ended."""
        if not self.done:
            return None
        return (self._now() - self._begun) / self.done * max(self.total - self.done, 0)

    def __str__(self) -> str:
        """Return ``round 3 of 30, about 1:05 left``: the round in progress, or the last one."""
        number = min(self.done + 1, self.total)
        text = f"round {number} of {self.total}"
        left_s = self.left_s if self.done < self.total else None
        return text if left_s is None else f"{text}, about {clock(left_s)} left"


class Laps:
    """Seconds of what is done one after the other.

    Parameters
    ----------
    now : callable
        Seconds since some moment.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._last = now, now()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Count the seconds since the last lap as these."""
        now = self._now()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def clock(seconds: float) -> str:
    """Return ``1:05`` or ``2:01:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
