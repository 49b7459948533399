"""Commands on the devices of a fleet, by the system's ssh."""

import shlex
import subprocess
from pathlib import PurePath
from typing import IO, Protocol

from ..base.text import one_line
from .config import Device

SSH_OPTIONS = {"ConnectTimeout": 20, "ServerAliveInterval": 15, "ServerAliveCountMax": 4}
"""Of OpenSSH, so that a device that loses its power is noticed after a minute, not after hours."""


class Remote(Protocol):
    """What runs a command of the shell on a device."""

    def __call__(
        self,
        device: Device,
        command: str,
        *,
        given: IO[bytes] | None = None,
        into: IO[bytes] | None = None,
    ) -> str:
        """Run it; return what went wrong, in one line, or nothing.

        Parameters
        ----------
        device : Device
            Where.
        command : str
            Of the device's shell.
        given : file, optional
            Its standard input; by default none.
        into : file, optional
            Where its standard output goes; by default nowhere.
        """
        ...


def by_ssh(user: str, program: str = "ssh") -> Remote:
    """Return what runs commands by ssh.

    Parameters
    ----------
    user : str
        Who logs in.
    program : str (default: "ssh")
        The program, with its options. OpenSSH gets :data:`SSH_OPTIONS` behind them: the first value
        of an option counts.
    """

    def run(
        device: Device,
        command: str,
        *,
        given: IO[bytes] | None = None,
        into: IO[bytes] | None = None,
    ) -> str:
        words = shlex.split(program)
        if PurePath(words[0]).name == "ssh":
            words += [w for key, value in SSH_OPTIONS.items() for w in ("-o", f"{key}={value}")]
        words += [f"{user}@{device.address}", command]
        try:
            done = subprocess.run(
                words,
                stdin=given or subprocess.DEVNULL,
                stdout=into or subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
        except OSError as error:
            return f"{words[0]} cannot be run: {error.strerror}"
        if done.returncode == 0:
            return ""
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return one_line(said[-1]) if said else f"{words[0]} ended with status {done.returncode}"

    return run
