"""How long a data set takes to load, the first time and from the cache, beside its raw bytes.

Each is measured in a process of its own that has imported what it needs, in turn, several times:
reading all its files as bytes, loading with an empty cache, loading from the cache.

    python benchmarks/loading.py --dataset av-digits --data FOLDER
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

RAW, FIRST, CACHED = "raw bytes", "first time", "from the cache"
TIMED = """
import sys, time
import soundfile, torch, torchaudio, torchvision.datasets
from flwr_dmml.data import LoadOptions, find_dataset, load_source
torch.set_num_threads(int(sys.argv[4]))
what, name, options = sys.argv[1], sys.argv[2], LoadOptions(path=sys.argv[3])
dataset = find_dataset(name)
start = time.perf_counter()
if what == "raw bytes":
    size = sum(len(path.read_bytes()) for path in dataset.files(options))
else:
    source = load_source(name, options)
    every = [x for part in (source.train, source.test) for x in part.inputs.values()]
    size = sum(x.sum().isfinite().item() * x.nbytes for x in every)  # touches what is mapped
print(time.perf_counter() - start, size)
"""


def timed(what: str, dataset: str, data: Path, cache: Path, threads: int) -> tuple[float, float]:
    """Return seconds and MB of one process."""
    environment = os.environ | {"FLWR_DMML_CACHE": str(cache)}
    command = [sys.executable, "-c", TIMED, what, dataset, str(data), str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, size = done.stdout.split()[-2:]
    return float(seconds), float(size) / 1e6


def main(
    dataset: Annotated[str, typer.Option(help="A data set that lists its files.")] = "av-digits",
    data: Annotated[Path, typer.Option(envvar="FLWR_DMML_DATA", help="Its folder.")] = Path("."),
    repeats: Annotated[int, typer.Option(min=1, help="Median of so many.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads, as torch-threads.")] = 1,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write all times there.")] = None,
) -> None:
    """Time the loading of a data set; ratios are of medians, side by side in this run."""
    seconds: dict[str, list[float]] = {RAW: [], FIRST: [], CACHED: []}
    sizes: dict[str, float] = {}
    err = Console(stderr=True)
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for what in seconds:
                took, sizes[what] = timed(what, dataset, data, Path(folder), threads)
                seconds[what].append(took)
                err.print(f"{repeat + 1}/{repeats} {what}: {took:.2f} s")
    table = Table(dataset, "s, median (least to most)", "MB", "x raw bytes")
    base = statistics.median(seconds[RAW])
    for what, times in seconds.items():
        median = statistics.median(times)
        spread = f"{median:.2f} ({min(times):.2f} to {max(times):.2f})"
        table.add_row(what, spread, f"{sizes[what]:.0f}", f"{median / base:.1f}")
    Console().print(table)
    if to_json is not None:
        to_json.write_text(json.dumps({"seconds": seconds, "MB": sizes}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
