"""The speed benchmark's start: how long the command takes to the first round of the quickstart."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart"
LIBRARIES = "import torch, flwr, ray"
TIMES = 3


def first_round_s(workers: int) -> float:
    """Return the seconds until ``flwr-dmml simulate`` has written the record of round 1."""
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
        runs, told = Path(folder) / "runs", Path(folder) / "log"
        changed = ["num-server-rounds=1", "compare-with=", f"run-dir={runs}"]
        command = [str(Path(sys.executable).with_name("flwr-dmml")), "simulate", str(QUICKSTART)]
        command += [word for one in changed for word in ("--set", one)]
        with told.open("wb") as log:
            begun = time.perf_counter()
            child = subprocess.Popen(
                [*command, "--workers", str(workers)], stdout=log, stderr=subprocess.STDOUT
            )
            while not (ended := child.poll() is not None) and not _written(runs):
                time.sleep(0.01)
            seconds = time.perf_counter() - begun
            child.wait()
        if child.returncode or (ended and not _written(runs)):
            raise SystemExit(f"{' '.join(command)}: {told.read_text()[-3000:]}")
        return seconds


def _written(runs: Path) -> bool:
    return any(file.stat().st_size for file in runs.glob("*/dmml-kd/metrics.jsonl"))


def import_s() -> float:
    """Return the seconds of a Python that imports the libraries, and does nothing."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", LIBRARIES], check=True)
    return time.perf_counter() - begun


def starts() -> dict[str, float]:
    """Return the median seconds of each kind of start, taken in turn."""
    found: dict[str, list[float]] = {LIBRARIES: [], "in process": [], "2 workers": []}
    for _ in range(TIMES):
        found[LIBRARIES].append(import_s())
        found["in process"].append(first_round_s(0))
        found["2 workers"].append(first_round_s(2))
    return {name: median(seconds) for name, seconds in found.items()}
