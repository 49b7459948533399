"""A process that has loaded torch, Flower and this package, and forks for every message.

``python -m flwr_dmml.supernode.zygote FOLDER`` listens on a socket in the folder; what asks is
:mod:`~flwr_dmml.supernode.shim`, in the place of ``flwr-clientapp``. A child lives for one message,
as the real program does: a crash, a hang, a second run or a new app meet no state of another. Only
the user that runs the zygote can reach it.
"""

import atexit
import ctypes
import gc
import json
import os
import signal
import socket
import stat
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from logging import INFO, WARNING
from pathlib import Path
from types import FrameType
from typing import Any

from ..base.errors import UserError
from ..base.log import log
from ..base.programs import program
from ..base.waits import quicken
from .shim import ANSWER_S, GO, HANDED_ON, LENGTH, NAME, READY, in_folder

MOST_BYTES = 1 << 20
"""Of a request."""
BACKLOG = 16
PRELOADED = "flwr_dmml.clients.app"
"""What every app loads, and torch with it; what only some need, such as torchvision, they load."""
PR_SET_PDEATHSIG = 1
CREDENTIALS = struct.Struct("3i")  # process, user, group


class ZygoteError(UserError):
    """A zygote that cannot work; the message says why."""


def main() -> None:
    """Load everything, and serve until the process that has started this one ends."""
    (folder,) = sys.argv[1:]
    _die_with_parent()
    run = load()
    try:
        serve(Path(folder), run)
    except ZygoteError as error:
        log(WARNING, "%s", error)
        sys.exit(1)


def load() -> Callable[[], object]:
    """Import what every message needs, and return what runs one.

    No torch operator is called, no data are loaded and CUDA is not touched: a child inherits none
    of that in working order.
    """
    import_module(PRELOADED)
    run = program("flwr-clientapp")
    quicken("ClientApp")
    return run


def serve(folder: Path, run: Callable[[], object]) -> None:
    """Fork a child that calls ``run`` for every request, one after another, for ever.

    Parameters
    ----------
    folder : Path
        Of the socket: this user's, and nobody else's to enter.
    run : callable
        Called with the request's arguments, environment, working folder and standard files.

    Raises
    ------
    ZygoteError
        The folder is not this user's alone, or this process has more than one thread.
    """
    about = folder.stat()
    if about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) & 0o077:
        raise ZygoteError(f"{folder} must belong to this user, with mode 0700")
    _require_one_thread()
    (folder / NAME).unlink(missing_ok=True)
    handle, path = in_folder(str(folder))
    signal.signal(signal.SIGCHLD, _reap)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        os.close(handle)
        listener.listen(BACKLOG)
        gc.collect()
        gc.freeze()
        log(INFO, "The zygote is ready: messages start within milliseconds")
        while True:
            connection, _ = listener.accept()
            with connection:
                _fork_for(connection, listener, run)


def _reap(number: int, frame: FrameType | None) -> None:
    """Wait for the children that have ended, and name the signal that has killed one."""
    with suppress(ChildProcessError):  # none is left
        while True:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            if os.WIFSIGNALED(status):
                name = signal.Signals(os.WTERMSIG(status)).name
                log(WARNING, "A process that worked on a message was killed by %s", name)


def _fork_for(
    connection: socket.socket, listener: socket.socket, run: Callable[[], object]
) -> None:
    """Read a request, and fork; a request that cannot be served ends the connection."""
    files: list[int] = []
    try:
        check_peer(connection)
        connection.settimeout(ANSWER_S)
        request, files = receive(connection)
        _require_one_thread()
        sys.stdout.flush()
        sys.stderr.flush()
        if os.fork() == 0:
            listener.close()
            _be_child(connection, request, files, run)
    except (OSError, ValueError, ZygoteError) as error:
        log(WARNING, "The zygote refuses a request: %s", error)
    finally:
        for file in files:
            os.close(file)


def check_peer(connection: socket.socket, user: int | None = None) -> None:
    """Refuse a connection from another user than this one.

    Raises
    ------
    ZygoteError
        It is.
    """
    sent = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    _, uid, _ = CREDENTIALS.unpack(sent)
    if uid != (os.getuid() if user is None else user):
        raise ZygoteError(f"user {uid} may not start anything here")


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return a request, and the standard files that came with it.

    Raises
    ------
    OSError, ValueError
        It is cut short, too long, or not what the shim sends.
    """
    data, files, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
    try:
        if len(data) != LENGTH.size or len(files) != 3:
            raise ValueError("it has no length, or not three files")
        (length,) = LENGTH.unpack(data)
        if length > MOST_BYTES:
            raise ValueError(f"it has {length} bytes; allowed: {MOST_BYTES}")
        parts = b""
        while len(parts) < length:
            part = connection.recv(length - len(parts))
            if not part:
                raise ValueError("it is cut short")
            parts += part
        request = json.loads(parts)
        if not isinstance(request, dict):
            raise ValueError("it is no mapping")
        return request, files
    except BaseException:
        for file in files:
            os.close(file)
        raise


def _be_child(
    connection: socket.socket,
    request: Mapping[str, Any],
    files: Sequence[int],
    run: Callable[[], object],
) -> None:
    """Run a request in this process, which ends with it."""
    status = 1
    try:
        connection.sendall(READY)
        if connection.recv(1) == GO:
            connection.settimeout(None)
            _become(request, files)
            done = threading.Event()
            threading.Thread(target=_obey, args=(connection, done), daemon=True).start()
            status = _status_of(run)
            done.set()
            connection.sendall(bytes([status]))
    except OSError:  # the shim has given up
        pass
    finally:
        os._exit(status)


def _become(request: Mapping[str, Any], files: Sequence[int]) -> None:
    """Take the place of the process that asks: its signals, environment, folder and files."""
    _die_with_parent()
    for one in (*HANDED_ON, signal.SIGCHLD):
        signal.signal(one, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in any Python program
    atexit._clear()  # what the zygote is to do at its end
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = list(request["arguments"])
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # or all children would draw the same


def _status_of(run: Callable[[], object]) -> int:
    """Return the exit status of a program, when all that it has printed is out."""
    try:
        run()
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status & 0xFF


def _obey(connection: socket.socket, done: threading.Event) -> None:
    """Raise the signals that the shim hands on; end at once if it is gone before all is done."""
    while True:
        try:
            told = connection.recv(1)
        except OSError:
            told = b""
        if done.is_set():
            return
        os.kill(os.getpid(), told[0] if told else signal.SIGKILL)


def _require_one_thread() -> None:
    """Refuse to fork beside other threads: what they hold stays locked in a child.

    Raises
    ------
    ZygoteError
        There are others.
    """
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise ZygoteError(f"the zygote has {threads} threads, and forks only with one")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    main()
