"""Requests to stop a run after the round in progress: Ctrl-C, and SIGTERM of whoever supervises it.

Docker, Kubernetes, Slurm and systemd send SIGTERM, and SIGKILL some time later.
"""

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN_S = 1.0
"""What comes again within so many seconds is the same request: some send a signal to a process, and
to its group once more."""


def status_of(number: int) -> int:
    """Return the exit status of a process that a signal has stopped, as shells count."""
    return 128 + number


class StopRequest:
    """Whether a run has been asked to stop, and by which signal.

    Parameters
    ----------
    told : callable
        Called with the signal when it is asked.
    """

    def __init__(self, told: Callable[[int], None]) -> None:
        self._told, self._since = told, 0.0
        self.number = 0
        """The first signal; 0 before."""

    def __call__(self) -> bool:
        """Return whether the run is to stop."""
        return self.number != 0

    def ask(self, number: int) -> bool:
        """Take up a signal; return whether it was asked for long before."""
        if self.number:
            return time.monotonic() - self._since > AGAIN_S
        self.number, self._since = number, time.monotonic()
        self._told(number)
        return False


class Terminated(SystemExit):
    """SIGTERM ends the process: see :func:`sigterm_exits`."""


def in_main_thread() -> bool:
    """Return whether this is the main thread: only there can signals be handled."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def handled(handlers: Mapping[int, Any]) -> Iterator[dict[int, Any]]:
    """Handle signals while the block runs; yield what handled them before.

    In another thread than the main one nothing is handled: Python allows it nowhere else.
    """
    if not in_main_thread():
        yield {}
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in handlers}
    for number, handler in handlers.items():
        signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, kept in before.items():
            signal.signal(number, kept)


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Have SIGTERM raise :class:`Terminated` while the block runs, as Ctrl-C interrupts it."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise Terminated(status_of(number))

    with handled({signal.SIGTERM: leave}):
        yield


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers of Ctrl-C and SIGTERM back after the block: Ray takes them for itself."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with handled({number: handler or signal.SIG_DFL for number, handler in kept.items()}):
        yield


@contextmanager
def stop_requests(told: Callable[[int], None], *numbers: signal.Signals) -> Iterator[StopRequest]:
    """Take signals as requests while the block runs, in the main thread.

    A signal that comes again does what it did before. In another thread nothing is taken.

    Parameters
    ----------
    told : callable
        Called with the first signal.
    *numbers : signal.Signals
        Those that count.
    """
    request = StopRequest(told)

    def take(number: int, frame: FrameType | None) -> None:
        if request.ask(number):
            signal.signal(number, before[number])
            signal.raise_signal(number)

    with handled(dict.fromkeys(numbers, take)) as before:
        yield request


@contextmanager
def stop_requests_from_a_thread(
    told: Callable[[int], None], number: signal.Signals
) -> Iterator[StopRequest]:
    """Take a signal as a request while the block runs, in a thread that is not the main one.

    Python lets only the main thread handle signals, but any thread may have it dump a traceback on
    one (:func:`faulthandler.register`): here it is dumped into a pipe that a thread reads. A signal
    that comes again does what it did before.
    """
    request = StopRequest(told)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    ended = threading.Event()

    def watch() -> None:
        if os.read(reader, 1):  # nothing where the block has ended
            request.ask(number)
            ended.wait(AGAIN_S)
            faulthandler.unregister(number)

    thread = threading.Thread(target=watch, daemon=True)
    faulthandler.register(number, file=writer, all_threads=False)
    thread.start()
    try:
        yield request
    finally:
        faulthandler.unregister(number)
        ended.set()
        os.close(writer)
        thread.join()
        os.close(reader)
