"""How long a data set takes to load, the first time and from the cache, beside its raw bytes.

Each is measured in a process of its own that has imported what it needs, in turn, several times:
reading all its files as bytes, loading with an empty cache, loading from the cache.

    python benchmarks/loading.py --dataset av-digits --data FOLDER
    python benchmarks/loading.py --small-files 60000 --repeats 1     # JPEGs of 32x32, made for it
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

RAW, FIRST, CACHED = "raw bytes", "first time", "from the cache"
TIMED = """
import sys, time
from pathlib import Path
import PIL.Image, soundfile, torch, torchaudio, torchvision.datasets
from flwr_dmml.data import LoadOptions, find_dataset, load_source
torch.set_num_threads(int(sys.argv[4]))
what, name, options = sys.argv[1], sys.argv[2], LoadOptions(path=sys.argv[3])
dataset = find_dataset(name)
start, busy = time.perf_counter(), time.process_time()
if what == "raw bytes":
    paths = [path for path in map(Path, dataset.files(options)) if path.is_file()]
    size = sum(len(path.read_bytes()) for path in paths)
else:
    source = load_source(name, options)
    every = [x for part in (source.train, source.test) for x in part.inputs.values()]
    size = sum(x.sum().isfinite().item() * x.nbytes for x in every)  # touches what is mapped
print(time.perf_counter() - start, time.process_time() - busy, size)
"""


def timed(what: str, dataset: str, data: Path, cache: Path, threads: int) -> tuple[float, ...]:
    """Return seconds by the clock and of the CPU, and MB, of one process."""
    environment = os.environ | {"FLWR_DMML_CACHE": str(cache)}
    command = [sys.executable, "-c", TIMED, what, dataset, str(data), str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    clock, cpu, size = map(float, done.stdout.split()[-3:])
    return clock, cpu, size / 1e6


def make_small_files(folder: Path, count: int) -> None:
    """Make a folder of JPEGs of 32x32 pixels, with a manifest."""
    draw = np.random.default_rng(0)
    rows = ["label,split,image"]
    for k in range(count):
        place = Path(f"{k % 100:02d}", f"{k:06d}.jpg")
        (folder / place).parent.mkdir(exist_ok=True)
        blurred = Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).resize((32, 32))
        blurred.save(folder / place, quality=85)
        rows.append(f"{k % 10},{'train' if k % 7 else 'test'},{place}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")


def main(
    dataset: Annotated[str, typer.Option(help="A data set that lists its files.")] = "av-digits",
    data: Annotated[Path, typer.Option(envvar="FLWR_DMML_DATA", help="Its folder.")] = Path("."),
    small_files: Annotated[
        int, typer.Option(min=0, help="Instead, so many small images, made for it.")
    ] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Median of so many.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads, as torch-threads.")] = 1,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write all times there.")] = None,
) -> None:
    """Time the loading of a data set; ratios are of medians, side by side in this run."""
    seconds: dict[str, list[float]] = {RAW: [], FIRST: [], CACHED: []}
    busy: dict[str, list[float]] = {RAW: [], FIRST: [], CACHED: []}
    sizes: dict[str, float] = {}
    err = Console(stderr=True)
    with tempfile.TemporaryDirectory() as made:
        if small_files:
            dataset, data = "folder", Path(made)
            make_small_files(data, small_files)
        for repeat in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                for what in seconds:
                    took, cpu, sizes[what] = timed(what, dataset, data, Path(folder), threads)
                    seconds[what].append(took)
                    busy[what].append(cpu)
                    err.print(f"{repeat + 1}/{repeats} {what}: {took:.2f} s, {cpu:.2f} of the CPU")
    table = Table(dataset, "s, median (least to most)", "x raw bytes", "s of the CPU", "MB")
    base = statistics.median(seconds[RAW])
    for what, times in seconds.items():
        median = statistics.median(times)
        spread = f"{median:.2f} ({min(times):.2f} to {max(times):.2f})"
        cpu = statistics.median(busy[what])
        table.add_row(what, spread, f"{median / base:.1f}", f"{cpu:.2f}", f"{sizes[what]:.0f}")
    Console().print(table)
    share = statistics.median(busy[CACHED]) / statistics.median(busy[FIRST])
    Console().print(f"From the cache: {share:.3f} of the CPU time of the first time.")
    if to_json is not None:
        found = {"seconds": seconds, "CPU seconds": busy, "MB": sizes}
        to_json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
