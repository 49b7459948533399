"""A fleet on this machine alone, for tests and benchmarks: real processes, TLS, node keys."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .config import FleetError, read_fleet
from .folder import prepare
from .quoting import toml_value
from .scripts import CONFIG
from .superlink import register_devices

START_S = 60.0
"""Seconds that the SuperLink is given to listen."""
AGAIN = 'while :; do sh "$0"; sleep 5; done'
"""Starts a script again whenever it ends, as a unit does."""


class LocalFleet:
    """A SuperLink and SuperNodes as ``fleet init`` prepares them, started by their own scripts.

    A context manager: it starts them all, and at the end kills what they have started.

    Parameters
    ----------
    folder : Path
        Where all is written: the fleet's folder, what the processes print (``NAME.log``), runs.
    parts : sequence of Path
        The data of each device; device k is ``device-k`` and holds partition k.
    variables : mapping of str to mapping, optional
        More environment variables, by the name of a device, or of ``superlink``.
    zygote : bool (default: True)
        Whether the devices have a zygote (:mod:`~flwr_dmml.supernode.zygote`).
    again : bool (default: False)
        Whether a device is started again whenever it ends, as by its unit.
    """

    def __init__(
        self,
        folder: Path,
        parts: Sequence[Path],
        variables: Mapping[str, Mapping[str, str]] | None = None,
        *,
        zygote: bool = True,
        again: bool = False,
    ) -> None:
        self.folder = folder / "fleet"
        self.logs, self.runs = folder, folder / "runs"
        self.devices = [f"device-{k}" for k in range(len(parts))]
        self.port = free_port()
        self._variables, self._zygote, self._again = variables or {}, zygote, again
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "fleet.toml"
        self.file.write_text(self._described(parts), encoding="utf-8")
        prepare(read_fleet(self.file), self.folder)

    def _described(self, parts: Sequence[Path]) -> str:
        lines = [
            'name = "local"',
            f"device-dir = {toml_value(str(self.folder.resolve() / 'devices' / '{name}'))}",
            f"venv = {toml_value(sys.prefix)}",
            f'[superlink]\nhost = "127.0.0.1"\nport = {self.port}',
        ]
        for name, part in zip(self.devices, parts, strict=True):
            lines += [
                f'[[device]]\nname = "{name}"\naddress = "127.0.0.1"',
                f"direct-port = {free_port()}\nruntime-port = {free_port()}",
                f"data-path = {toml_value(str(part.resolve()))}",
                f"zygote = {toml_value(self._zygote)}",
            ]
        return "\n".join(lines) + "\n"

    def __enter__(self) -> Self:
        try:
            self.start_superlink()
            if failed := [
                r for r in register_devices(read_fleet(self.file), self.folder) if r.failed
            ]:
                raise FleetError(f"{failed[0].device}: {failed[0].said}")
            for name in self.devices:
                self.start(name, again=self._again)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start_superlink(self) -> None:
        """Start the SuperLink, and wait until it listens.

        Raises
        ------
        FleetError
            It does not.
        """
        self._start("superlink", self.folder / "superlink" / "start.sh")
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            time.sleep(0.1)
        raise FleetError(f"the SuperLink does not listen:\n{self.said('superlink')}")

    def start(self, name: str, *, again: bool = False) -> None:
        """Start a device's SuperNode, ``again`` whenever it ends.

        For up to a minute after it was killed Flower takes it for online, and sends it away.
        """
        self._start(name, self.folder / "devices" / name / "start.sh", again=again)

    def _start(self, name: str, script: Path, *, again: bool = False) -> None:
        # A session of its own, so that all that it starts can be killed with it.
        with (self.logs / f"{name}.log").open("ab") as file:
            self._running[name] = subprocess.Popen(
                ["sh", *(["-c", AGAIN] if again else []), str(script)],
                env={**self.environment, **self._variables.get(name, {})},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which ``flwr run APP local`` reaches the fleet."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {
            "FLWR_HOME": str((self.folder / CONFIG).parent),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PATH": path,
        }

    def pid(self, name: str) -> int:
        """Return the process id of ``superlink`` or of a device, which leads its process group."""
        return self._running[name].pid

    def wait(self, name: str, timeout_s: float) -> int:
        """Wait until a device's SuperNode has ended by itself; return its exit status.

        Raises
        ------
        subprocess.TimeoutExpired
            It has not.
        """
        return self._running[name].wait(timeout_s)

    def kill(self, name: str) -> None:
        """Kill ``superlink`` or a device with all that it has started (SIGKILL)."""
        process = self._running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        """Kill all that is still running."""
        for name in list(self._running):
            self.kill(name)

    def said(self, name: str, characters: int = 4000) -> str:
        """Return the last of what ``superlink`` or a device has printed."""
        file = self.logs / f"{name}.log"
        return file.read_text(errors="replace")[-characters:] if file.exists() else ""

    def submit(self, app: Path, settings: Mapping[str, Any]) -> subprocess.Popen[str]:
        """Run an app on the fleet, its log streamed; return at once. Its runs are in ``runs``."""
        values = {"run-dir": str(self.runs), "num-nodes": len(self.devices), **settings}
        given = " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
        command = ["flwr", "run", str(app), "local", "--stream", "-c", given]
        return subprocess.Popen(
            command,
            env=self.environment,
            cwd=self.logs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def free_port() -> int:
    """Return a port of the loopback that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
