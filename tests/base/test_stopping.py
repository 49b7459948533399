"""Signals that ask a run to stop: in the main thread, in another one, and twice."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from flwr_dmml.base import stopping
from flwr_dmml.base.stopping import (
    StopRequest,
    Terminated,
    handled,
    handlers_kept,
    sigterm_exits,
    status_of,
    stop_requests,
)


def test_exit_statuses_are_those_of_shells():
    assert (status_of(signal.SIGINT), status_of(signal.SIGTERM)) == (130, 143)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_once_and_what_was_there_before_comes_back(number: signal.Signals):
    """Sent to the process and to its group at once it is one request."""
    told: list[int] = []
    before = signal.getsignal(number)
    with stop_requests(told.append, signal.SIGINT, signal.SIGTERM) as request:
        assert not request()
        for _ in range(3):
            signal.raise_signal(number)
        assert request() and request.number == number and told == [number]
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_asked_again_later_it_ends_at_once(second: signal.Signals, monkeypatch: pytest.MonkeyPatch):
    """A shell lets what it starts in the background ignore SIGINT: here it does not."""
    monkeypatch.setattr(stopping, "AGAIN_S", 0.0)
    with (
        handled({signal.SIGINT: signal.default_int_handler}),
        sigterm_exits(),
        pytest.raises((KeyboardInterrupt, Terminated)) as ended,
        stop_requests(lambda number: None, signal.SIGINT, signal.SIGTERM) as request,
    ):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.001)
        signal.raise_signal(second)
    assert request.number == signal.SIGTERM
    if second == signal.SIGTERM:
        assert isinstance(ended.value, Terminated) and ended.value.code == 143
    else:
        assert isinstance(ended.value, KeyboardInterrupt)


def test_handlers_that_somebody_takes_are_put_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with handlers_kept():
        for number in before:
            signal.signal(number, signal.SIG_IGN)
    assert {number: signal.getsignal(number) for number in before} == before


def test_in_another_thread_nothing_is_taken():
    before = signal.getsignal(signal.SIGTERM)
    found: list[object] = []

    def look() -> None:
        with stop_requests(lambda number: None, signal.SIGTERM) as request:
            found.extend((signal.getsignal(signal.SIGTERM), request()))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before, False]


def test_a_request_counts_from_the_first(monkeypatch: pytest.MonkeyPatch):
    told: list[int] = []
    request = StopRequest(told.append)
    assert not request.ask(15) and not request.ask(15)
    monkeypatch.setattr(stopping, "AGAIN_S", 0.0)
    time.sleep(0.001)
    assert request.ask(2) and request.number == 15 and told == [15]


THREAD = """
import os, signal, sys, threading
from flwr_dmml.base import stopping

stopping.AGAIN_S = 0.1
signal.signal(signal.SIGTERM, lambda number, frame: os._exit(7))  # as Ray does in the main thread

def told(number):
    print("asked by", int(number), flush=True)

def work():
    with stopping.stop_requests_from_a_thread(told, signal.SIGTERM) as request:
        print("ready", flush=True)
        sys.stdin.readline()
        print(request(), flush=True)
    print("left", flush=True)
    sys.stdin.readline()

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.parametrize("kind", ["once", "again", "never"])
def test_a_thread_takes_a_signal_that_the_main_thread_handles(kind: str):
    """The main thread waits, as in Flower's simulation, whose handler would end it with 7.

    It does when the signal comes again, and when the thread no longer listens.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", THREAD]
    with subprocess.Popen(command, text=True, bufsize=1, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if kind != "never":
            os.kill(process.pid, signal.SIGTERM)
            assert process.stdout.readline() == "asked by 15\n"
        if kind != "again":
            process.stdin.write("\n")
            assert process.stdout.readline() == f"{kind == 'once'}\n"
            assert process.stdout.readline() == "left\n"
        while process.poll() is None:  # at first it may still be the same request
            os.kill(process.pid, signal.SIGTERM)
            time.sleep(0.02)
        assert process.returncode == 7
