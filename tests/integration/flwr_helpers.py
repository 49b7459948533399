"""`flwr run` on a SuperLink of its own, for tests and benchmarks."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from helpers import CUSTOM, QUICKSTART, install_metadata

Run = Callable[..., tuple[str, str]]


@contextlib.contextmanager
def superlink(home: Path) -> Iterator[Run]:
    """Yield what runs an app by `flwr run` on a SuperLink of its own; it returns status and log.

    `flwr run --stream` exits with 0 even when the ServerApp crashed, so the status is asked for.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    installed = install_metadata(CUSTOM, home / "installed")
    found = [str(installed), str(CUSTOM), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, found)),
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    flwr = str(Path(sys.executable).with_name("flwr"))

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [flwr, *arguments], env=environment, cwd=home, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(
        num_nodes: int,
        app: Path = QUICKSTART,
        when: Callable[[], bool] | None = None,
        number: signal.Signals = signal.SIGKILL,
        lose_a_worker: Callable[[], bool] | None = None,
        **settings: object,
    ) -> tuple[str, str]:
        config = " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
        federation = f"num-supernodes={num_nodes} client-resources-num-cpus=1"
        submitted = call(
            "run", str(app), "--format", "json", "-c", config,
            "--federation-config", federation,
        )  # fmt: skip
        assert "run-id" in json.loads(submitted), submitted
        run_id = str(json.loads(submitted)["run-id"])
        deadline = time.monotonic() + 300
        if when is not None:  # asking Flower takes a second, in which rounds go by
            while not when() and time.monotonic() < deadline:
                time.sleep(0.01)
            for process in processes_of(str(home), command="flwr-simulation"):
                os.kill(process, number)
            if number == signal.SIGKILL:
                return "killed", ""
        if lose_a_worker is not None:
            while not lose_a_worker():
                assert time.monotonic() < deadline, call("log", run_id, "--show")
                time.sleep(0.01)
            os.kill(_actors_of(processes_of(str(home), command="flwr-simulation"))[0], 9)
        while time.monotonic() < deadline:
            if processes_of(str(home), command="flwr-simulation"):  # asking costs a process
                time.sleep(0.05)
                continue
            status = json.loads(call("ls", "--run-id", run_id, "--format", "json"))
            state = str(status["runs"][0]["status"])
            if state.startswith("finished"):
                return state, call("log", run_id, "--show")
            time.sleep(0.2)
        raise AssertionError(f"run {run_id} did not end: {state}")

    try:
        yield run
    finally:
        for process in processes_of(str(home), str(port)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def processes_of(*marks: str, command: str = "") -> list[int]:
    """Return the processes whose command line or environment carries one of ``marks``.

    With ``command``, only those with that in their command line.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes()
            text = line + (folder / "environ").read_bytes()
            named = any(mark.encode() in text for mark in marks) and command.encode() in line
            if named and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def _actors_of(drivers: list[int]) -> list[int]:
    """Return the processes in which Flower's simulation runs devices, of its own processes."""
    return [p for driver in drivers for p in family_of(driver, "ray::ClientAppActor")]


def family_of(process: int, command: str) -> list[int]:
    """Return what a process, and those that it started, have started, by how its command begins."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            text = (folder / "stat").read_text().rpartition(")")[2]
            parents[int(folder.name)] = int(text.split()[1])
    found = []
    for own in parents:
        ancestor = parents[own]
        while ancestor in parents and ancestor != process:
            ancestor = parents[ancestor]
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{own}/cmdline").read_bytes()
            if ancestor == process and line.startswith(command.encode()):
                found.append(own)
    return found
