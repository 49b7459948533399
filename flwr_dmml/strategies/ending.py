"""Notes of how a run ends, written whatever ends it."""

from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARNING

from flwr.common.logger import log

from ..base.errors import UserError
from ..base.text import one_line
from ..tracking import RunFolder
from ..tracking.ending import Ended, Ending, MethodEnd, failures_of, write_ending
from ..tracking.run_folder import END
from .keeper import ResumeError, RunStoppedError
from .peer import PeerStrategy
from .reasons import MOST
from .roster import QuorumError


class Ends:
    """How far the methods of a run have come."""

    def __init__(self) -> None:
        self._done: dict[str, MethodEnd] = {}
        self._running: tuple[str, PeerStrategy] | None = None

    def begin(self, method: str, strategy: PeerStrategy) -> None:
        """Take note of the method that runs now."""
        self._running = method, strategy

    def done(self, method: str, end: MethodEnd) -> None:
        """Take note of a method that has run to its end."""
        self._done[method], self._running = end, None

    def so_far(self) -> dict[str, MethodEnd]:
        """Return how far each has come."""
        if self._running is None or not self._running[1].roster.members:
            return dict(self._done)
        method, strategy = self._running
        return self._done | {method: end_of(strategy)}


def end_of(strategy: PeerStrategy) -> MethodEnd:
    """Return how far a strategy has come."""
    return MethodEnd(
        rounds=strategy.rounds_done,
        of=strategy.num_rounds,
        begun=sorted(strategy.roster.members),
        finished=strategy.present,
        failures=failures_of(strategy.records),
    )


@contextmanager
def end_noted(folder: RunFolder) -> Iterator[Ends]:
    """Write into the run folder how the block ends (``end.json``); nothing is there meanwhile.

    A resume that is refused changes nothing: what was there is put back.
    """
    file, before = folder.path / END, b""
    if folder.made and file.exists():
        before = file.read_bytes()
        file.unlink()
    ends = Ends()
    try:
        yield ends
    except ResumeError:
        if before:
            file.write_bytes(before)
        raise
    except BaseException as error:
        try:
            _write(folder, ends, _kind(error), _reason(error))
        except OSError as lost:
            log(WARNING, "%s cannot be written: %s", folder.path / END, lost)
        raise
    _write(folder, ends, "finished")


def _write(folder: RunFolder, ends: Ends, ended: Ended, reason: str = "") -> None:
    if folder.made:
        write_ending(folder.path, Ending(ended=ended, reason=reason, methods=ends.so_far()))


def _kind(error: BaseException) -> Ended:
    if isinstance(error, RunStoppedError | QuorumError):
        return "stopped"
    return "failed" if isinstance(error, Exception) else "interrupted"


def _reason(error: BaseException) -> str:
    known = isinstance(error, RunStoppedError | UserError)
    return one_line(str(error) if known else f"{type(error).__name__}: {error}", MOST)
