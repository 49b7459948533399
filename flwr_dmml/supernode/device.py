"""A device of a fleet: Flower's SuperNode, and what makes its messages cheap."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from logging import WARNING
from pathlib import Path

from ..base.facts import FOLDER
from ..base.files import write_whole, writing
from ..base.log import log
from ..base.programs import ProgramError, program
from ..base.waits import quicken
from . import shim
from .answering import answer_in_order

CLIENTAPP, SUPEREXEC, SUPERNODE = "flwr-clientapp", "flower-superexec", "flower-supernode"
READY_S, AGAIN_S = 120.0, 60.0
"""Seconds that a device waits for its zygote, and after which one that was killed starts again."""
WRAPPER = """\
#!/bin/sh
# Made by flwr-dmml fleet device.
exec {command} "$@"
"""


def ready_device(
    folder: Path, arguments: Sequence[str], *, zygote: bool = True
) -> Callable[[], object]:
    """Return what runs a SuperNode in this process, when all that it starts is in place.

    The zygote is waited for: a message that came before would load torch a second time.

    Flower starts two programs by name: ``flwr-clientapp`` for every message and once
    ``flower-superexec``. ``folder/bin``, first on ``PATH``, has others in their places: one that
    has a zygote fork, and one with shorter waits.

    Parameters
    ----------
    folder : Path
        For the zygote's socket, ``bin`` and the device's facts; is made, with mode 0700.
    arguments : sequence of str
        Of ``flower-supernode``.
    zygote : bool (default: True)
        Whether there is a zygote: with its process, torch stays loaded between messages.

    Raises
    ------
    ProgramError
        Flower's programs are not there.
    WriteError
        The folder cannot be written.
    """
    run, folder = program(SUPERNODE), folder.absolute()
    with writing(folder):
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        for old in (f"bin/{CLIENTAPP}", f"bin/{SUPEREXEC}", shim.NAME):
            (folder / old).unlink(missing_ok=True)
    if zygote and not sys.platform.startswith("linux"):
        log(WARNING, "No zygote: it needs Linux; every message loads torch anew")
    elif zygote:
        put_shim(folder)
        ended, deadline = threading.Event(), time.monotonic() + READY_S
        threading.Thread(target=_keep_zygote, args=(folder, ended), daemon=True).start()
        while not ((folder / shim.NAME).exists() or ended.wait(0.1)):
            if time.monotonic() > deadline:
                log(WARNING, "The zygote is not ready after %g s: the device starts", READY_S)
                break
    if quicken("SuperNode"):
        _put(folder / "bin" / SUPEREXEC, _module("superexec"))
    answer_in_order()
    os.environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    os.environ[FOLDER] = str(folder)
    sys.argv = [SUPERNODE, *arguments]
    return run


def put_shim(folder: Path, name: str = CLIENTAPP) -> None:
    """Write the program that has the zygote of a folder do what a program of this name does.

    Raises
    ------
    ProgramError
        There is no program of this name on ``PATH``.
    """
    real = shutil.which(name)
    if real is None:
        raise ProgramError(f"{name} is not on PATH")
    command = [sys.executable, "-IS", str(Path(shim.__file__).resolve()), str(folder), real]
    _put(folder / "bin" / name, command)


def _module(name: str) -> list[str]:
    return [sys.executable, "-P", "-m", f"flwr_dmml.supernode.{name}"]


def _put(file: Path, command: Sequence[str]) -> None:
    write_whole(file, WRAPPER.format(command=shlex.join(command)), 0o700)


def _keep_zygote(folder: Path, ended: threading.Event) -> None:
    """Start the zygote, and start it again when it was killed; without it all goes on, slower."""
    command = [*_module("zygote"), str(folder)]
    alone = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # it starts threads when it is loaded
    while True:
        status = subprocess.Popen(command, env=alone).wait()
        ended.set()
        text = "The zygote has ended (%s): every message loads torch anew"
        if status >= 0:
            log(WARNING, text, f"exit status {status}")
            return
        log(WARNING, text + ", for %g s", signal.Signals(-status).name, AGAIN_S)
        time.sleep(AGAIN_S)
