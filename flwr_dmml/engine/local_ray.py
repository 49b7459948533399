"""A Ray of one's own on this machine: started at once, or ahead, while something else goes on.

Ray takes seconds to start, most of them waiting. Nothing here imports Ray before it is to start.
"""

import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .errors import EngineError

PRELOADED = ("flwr_dmml.engine.shard", "flwr_dmml.clients")
"""Modules that processes which are about to become workers import, while the driver goes on."""


@dataclass(frozen=True)
class _Ahead:
    """A Ray that is being started in a thread, with so many CPUs."""

    cpus: int
    started: Future[None]


_ahead: _Ahead | None = None
"""The one of :func:`ahead` that nobody has taken yet."""


@contextmanager
def ahead(workers: int) -> Iterator[None]:
    """Start Ray in a thread while the block goes on; :func:`take` in it takes it.

    Leaving the block stops a Ray that nobody has taken.

    Parameters
    ----------
    workers : int
        CPUs, one a worker; 0 starts nothing.
    """
    global _ahead
    if not workers:
        yield
        return
    with ThreadPoolExecutor(1, thread_name_prefix="ray") as pool:
        _ahead = _Ahead(workers, pool.submit(start, workers))
        try:
            yield
        finally:
            left, _ahead = _ahead, None
            if left is not None and left.started.exception() is None:
                stop()


def take(workers: int) -> bool:
    """Wait for the Ray that was started ahead; return whether there is one for so many workers."""
    global _ahead
    taken, _ahead = _ahead, None
    if taken is None or taken.started.exception() is not None:
        return False
    if taken.cpus < workers:
        stop()
        return False
    return True


def settle() -> None:
    """Set what Ray reads from the environment, where the user has not."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # not 15: beside other work it would starve
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def start(workers: int) -> None:
    """Start Ray on loopback, without a dashboard, with a CPU for each of ``workers``.

    Its processes take no notice of SIGTERM: sent to all processes of a run, it asks the run to stop
    after the round, for which they are needed.

    Raises
    ------
    EngineError
        The path of the temporary folder is too long for Ray's sockets.
    """
    settle()
    os.environ.setdefault("RAY_preload_python_modules", ",".join(PRELOADED))
    import ray

    try:
        with _for_one_run(), _sigterm_blocked():
            ray.init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                logging_level=logging.ERROR,  # in a thread it warns of the signal that we handle
            )
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        raise EngineError(
            f"TMPDIR = '{tempfile.gettempdir()}': the path is too long for Ray's sockets; set "
            "RAY_TMPDIR to a short one, such as /tmp, or use no workers (--workers 0)"
        ) from error
    logging.getLogger("ray").setLevel(logging.WARNING)


def stop() -> None:
    """Stop the Ray of :func:`start`: at once, since its processes take no notice of SIGTERM."""
    import ray
    from ray._private import worker

    node, started = worker._global_node, list[int]()
    if node is not None:
        node.kill_all_processes = partial(_kill, node.kill_all_processes)
        own = [info.process.pid for infos in node.all_processes.values() for info in infos]
        started = _descendants(own)
    ray.shutdown()
    for pid in started:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _kill(all_processes: Callable[..., None], **how: bool) -> None:
    all_processes(**how | {"allow_graceful": False})


def _descendants(pids: list[int]) -> list[int]:
    """Return the processes that these have started, and those have, and so on."""
    found: list[int] = []
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                children = [int(child) for child in task.read_text(encoding="ascii").split()]
                found += children + _descendants(children)
    return found


@contextmanager
def _sigterm_blocked() -> Iterator[None]:
    """Have this thread, and whatever it starts, take no notice of SIGTERM while the block runs."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _for_one_run() -> Iterator[None]:
    """Let Ray start no more than a run on this machine needs, on 127.0.0.1, while the block runs.

    It has no arguments for that: 127.0.0.1 given as address is replaced by the machine's, and even
    without a dashboard its process is started and waited for, and an autoscaler, which take two
    seconds of a core, and one more at the end. The release of Ray is the one that Flower pins.
    """
    from ray._private import node, ray_constants

    changes = [
        (ray_constants, "ENABLE_RAY_CLUSTER", False),
        (node.Node, "start_api_server", _start_nothing),
        (node.Node, "start_monitor", _start_nothing),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _start_nothing(node: object, **options: object) -> None:
    """Stand in for a method of Ray that starts a process."""
