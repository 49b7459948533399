"""What a round costs by the number of devices, of links and of parameters: measured, and fitted.

    python benchmarks/scale.py [--most 10000] [--rounds 6] [--json FILE]

Runs the small D-PSGD of ``speed.py`` in one process for several sizes, each in a process of its
own, and fits two models by least squares of relative errors, with N devices, E links and P
parameters a device::

    seconds of a round = a N + b N P + c E P
    bytes of memory    = d + e N + f N P

Prints the coefficients, the largest relative error of either, and what they say of more devices
than were run.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from harness import CONSOLE, data_folder
from numpy.typing import NDArray
from rich.table import Table
from speed import run_arm

ARM = "learner, in process"
PARAMETERS = {"digits": 4_810, "mnist": 50_890}
SIZES = [
    *(("digits", nodes, 8) for nodes in (64, 256, 1_024, 4_096, 10_000)),
    *(("digits", 1_024, degree) for degree in (4, 16)),
    *(("mnist", nodes, 8) for nodes in (64, 256, 1_024)),
    *(("mnist", 256, degree) for degree in (4, 16)),
]
"""Data set, devices, links a device."""
BEYOND = [100_000, 1_000_000]


def fit(rows: NDArray[np.float64], measured: NDArray[np.float64]) -> tuple[Any, float]:
    """Return coefficients >= 0 that fit relative to what was measured, and the largest error."""
    from scipy.optimize import nnls

    scaled = rows / measured[:, None]
    found, _ = nnls(scaled, np.ones(len(rows)))
    return found, float(np.abs(scaled @ found - 1).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=10_000, help="leave larger sizes out")
    parser.add_argument("--rounds", type=int, default=6, help="at least 3; two are apart")
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args()
    table = Table("parameters", "devices", "links", "ms a round", "us a device", "GB")
    results: list[dict[str, Any]] = []
    for dataset, nodes, degree in SIZES:
        if nodes > options.most:
            continue
        os.environ["SPEED_DEGREE"] = str(degree)
        data = data_folder() if dataset == "mnist" else ""
        where: dict[str, Any] = {"data": data, "device": "cpu", "peers": None, "dataset": dataset}
        found = run_arm(ARM, nodes, options.rounds, **where)
        size = {"P": PARAMETERS[dataset], "N": nodes, "E": nodes * degree // 2}
        results.append(size | {"s": found["round_s"], "bytes": 1e9 * found["peak_gb"]})
        cells = f"{1e3 * found['round_s']:.1f}", f"{1e6 * found['round_s'] / nodes:.0f}"
        table.add_row(*map(str, size.values()), *cells, f"{found['peak_gb']:.2f}")
        CONSOLE.print(*size.values(), *cells, f"{found['peak_gb']:.2f}", highlight=False)
    CONSOLE.print(table)
    p, n, e, s, b = (
        np.array([r[k] for r in results], float) for k in ("P", "N", "E", "s", "bytes")
    )
    time, time_error = fit(np.stack([n, n * p, e * p], axis=1), s)
    memory, memory_error = fit(np.stack([np.ones(len(n)), n, n * p], axis=1), b)
    CONSOLE.print(
        f"a round: {1e6 * time[0]:.1f} us a device, {1e9 * time[1]:.2f} ns a device and parameter, "
        f"{1e9 * time[2]:.2f} ns a link and parameter; largest error {100 * time_error:.0f} %"
    )
    CONSOLE.print(
        f"memory: {memory[0] / 1e6:.0f} MB, {memory[1] / 1e3:.1f} kB a device, {memory[2]:.1f} "
        f"bytes a device and parameter; largest error {100 * memory_error:.0f} %"
    )
    for nodes in BEYOND:
        for parameters in PARAMETERS.values():
            seconds = time @ [nodes, nodes * parameters, 4 * nodes * parameters]
            gigabytes = memory @ [1, nodes, nodes * parameters] / 1e9
            CONSOLE.print(
                f"{nodes:,} devices of {parameters:,} parameters, 8 links each: "
                f"{seconds:.1f} s a round, {gigabytes:.0f} GB"
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
