"""Privacy: is it right, what does it cost, and what do neighbours still learn?

    python benchmarks/privacy.py [--parts clipping --parts leak] [--seeds 0 --seeds 1]

``clipping`` compares clipped gradients with a loop over samples, and with opacus where that is
installed, and the time with plain SGD's. ``account`` compares the epsilon that a run tells with
closed cases, and a resumed run with one that was not. ``cancel`` adds up the noise of
``privacy.zip-noise``, and masked parts of a sum. ``curve`` is accuracy by epsilon, with few samples
a device and with many; ``pacing`` by round, with a budget spread over the rounds and not. ``leak``
attacks what neighbours received of a run that has overfitted, without and with each mechanism.
Needs MNIST and CIFAR-10's test images ($FLWR_DMML_DATA); takes about half an hour on one core.
Prints a line for each bar, and exits with 1 where one is missed. ``--quick`` is a smoke run,
not judged.
"""

import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf, log, sqrt
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from drawing import Line, Panel, Points, chart
from harness import CONSOLE, data_folder
from rich.table import Table

from flwr_dmml.api.auditing import Audit, audit
from flwr_dmml.clients import make_client_app
from flwr_dmml.data import load_partition
from flwr_dmml.engine import FlowerApp, run_app
from flwr_dmml.learning.batch import batch_of
from flwr_dmml.learning.learner import Learner
from flwr_dmml.learning.per_sample import NoisyGradients
from flwr_dmml.learning.spending import EPSILON
from flwr_dmml.payload.plan import Plan
from flwr_dmml.privacy.accountant import epsilon_of
from flwr_dmml.privacy.cancelling import cancelling
from flwr_dmml.privacy.masks import BITS, masked, new_key, summed
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.strategies import RunStoppedError, make_server_app
from flwr_dmml.tracking import RoundRecord

Settings = Mapping[str, Any]
SAME = 1e-6
"""Most that two ways to a clipped gradient may differ, of its largest number."""
SLOWER = 4.0
"""Most times that a step with noise may take as long as one of plain SGD."""
SHOWS = 0.6
"""Least AUC of the attack without a mechanism: below, it is too weak to say anything."""


WITH_NOISE = {"learning-rate": 0.5, "momentum": 0.0}
"""Of runs with noise on gradients: momentum adds up noise."""


class Part(StrEnum):
    """Parts of the benchmark."""

    clipping = "clipping"
    account = "account"
    cancel = "cancel"
    curve = "curve"
    pacing = "pacing"
    leak = "leak"


@dataclass(frozen=True)
class Bar:
    """A bar, what was found, and whether it is met."""

    what: str
    found: float
    met: bool


def common(**more: Any) -> dict[str, Any]:
    """Return settings of all runs: devices on mains power, on a ring, in one process."""
    given = {"method": "dpsgd", "topology": "ring", "energy.battery-share": 0.0, "device": "cpu"}
    return given | {"torch-threads": 1, "keep-models": False} | more


def device_of(settings: Settings, partition: int = 0) -> Learner:
    """Return a device of a run."""
    config = parse_settings(settings, find_parts())
    part = load_partition(config.settings.partition_options(), partition)
    return config.learner(config.settings.method, part)


def run_of(
    settings: Settings,
    folder: Path,
    name: str,
    stopping: Callable[[], bool] = lambda: False,
) -> list[RoundRecord]:
    """Run in this process and return its rounds; the run folder is ``folder/name``."""
    records: list[RoundRecord] = []

    class History:
        def run_started(self, method: str, num_rounds: int, node_modalities: Sequence[str]) -> None:
            records.clear()

        def round_ended(self, record: RoundRecord) -> None:
            records.append(record)

    given = {**settings, "run-dir": str(folder)}
    given |= {} if settings.get("resume") else {"run-name": name}
    app = FlowerApp({}, make_server_app(), make_client_app())
    run_app(app, settings["num-nodes"], given, trackers=[History()], stopping=stopping)
    return records


# ---- clipping -----------------------------------------------------------------------------------


def clipping(quick: bool) -> tuple[Table, list[Bar]]:
    """Compare gradients with a loop's and with opacus', and times with plain SGD's."""
    settings = common(
        dataset="mnist", **{"data-path": data_folder(), "num-nodes": 3, "samples-per-node": 400},
        **{"batch-size": 32, "partition": "iid", "modality-pattern": "auto"},
    )  # fmt: skip
    noisy = device_of({**settings, "privacy.dp": "sample", "privacy.sigma": 1.0})
    assert noisy.spending.how is not None
    trained = noisy.flat.indices_of(noisy.trained_parameters())
    every = NoisyGradients(noisy, trained, noisy.spending.how, {})
    batch = batch_of(noisy.train_data.subset(torch.arange(32)))
    found = every.clipped_sum(batch, noisy.partition.modalities)
    looped = _by_loop(noisy, trained)
    apart = _apart(found, looped)
    theirs = _by_opacus(noisy, trained)
    rounds, steps = (2, 5) if quick else (9, 20)
    plain = device_of({**settings, "exact": True})  # one device by itself, as with noise
    times: dict[str, list[float]] = {"plain SGD": [], "with noise": []}
    for t in range(rounds + 1):  # side by side; the first warms up
        for name, learner in (("plain SGD", plain), ("with noise", noisy)):
            begun = time.perf_counter()
            learner.run_round(Plan(t + 1, steps), {})
            if t:
                times[name].append(1e3 * (time.perf_counter() - begun) / steps)
    cost = median(b / a for a, b in zip(*times.values(), strict=True))
    numbers = sum(p.numel() for p in noisy.trained_parameters())
    table = Table("", "ms a step", "x plain", title=f"MNIST, {numbers:,} weights, batch 32")
    for name, values in times.items():
        ratio = median(v / a for v, a in zip(values, times["plain SGD"], strict=True))
        table.add_row(name, f"{median(values):.2f}", f"{ratio:.2f}")
    bars = [
        Bar(
            f"clipped sum - loop over samples, at most {SAME:g} of its largest",
            apart,
            apart <= SAME,
        ),
        Bar(f"a step with noise / one of plain SGD, at most {SLOWER:g}", cost, cost <= SLOWER),
    ]
    if theirs is None:
        CONSOLE.print("opacus is not installed: not compared with it")
    else:
        other = _apart(found, theirs)
        bars.append(Bar(f"clipped sum - opacus', at most {SAME:g}", other, other <= SAME))
    return table, bars


def _apart(found: Mapping[int, torch.Tensor], others: Mapping[int, torch.Tensor]) -> float:
    largest = max(float(g.abs().max()) for g in others.values())
    return max(float((found[i] - g).abs().max()) for i, g in others.items()) / largest


def _by_loop(learner: Learner, trained: Sequence[int]) -> dict[int, torch.Tensor]:
    """Return the clipped sum of 32 samples, one after the other and block by block."""
    assert learner.spending.how is not None
    flat, sums = learner.flat, dict[int, torch.Tensor]()
    parameters = [flat.parameters[i] for i in trained]
    for k in range(32):
        loss = learner.local_loss(batch_of(learner.train_data.subset(torch.tensor([k]))))
        own = dict(zip(trained, torch.autograd.grad(loss, parameters), strict=True))
        blocks = sorted({flat.block_of(i) for i in own})
        for block in blocks:
            mine = [i for i in own if flat.block_of(i) == block]
            norm = sqrt(sum(float(own[i].double().square().sum()) for i in mine))
            factor = min(1.0, learner.spending.how.clip / sqrt(len(blocks)) / norm)
            for i in mine:
                sums[i] = sums.get(i, torch.zeros_like(own[i])) + own[i] * factor
    return sums


def _by_opacus(learner: Learner, trained: Sequence[int]) -> dict[int, torch.Tensor] | None:
    """Return the same from the gradients of opacus' hooks; None where it is not installed."""
    try:
        from opacus.grad_sample import GradSampleModule
    except ImportError:
        return None
    assert learner.spending.how is not None
    hooked = GradSampleModule(learner.model, loss_reduction="sum")
    samples = learner.train_data.subset(torch.arange(32))
    logits = hooked(dict(samples.inputs))
    torch.nn.functional.cross_entropy(logits, samples.labels, reduction="sum").backward()
    flat = learner.flat
    each = {i: flat.parameters[i].grad_sample for i in trained}  # type: ignore[attr-defined]
    blocks = sorted({flat.block_of(i) for i in each})
    sums: dict[int, torch.Tensor] = {}
    for block in blocks:
        mine = [i for i in each if flat.block_of(i) == block]
        squares = torch.stack([each[i].flatten(1).square().sum(dim=1) for i in mine])
        most = learner.spending.how.clip / sqrt(len(blocks))
        factor = (most / squares.sum(dim=0).sqrt()).clamp(max=1.0)
        sums |= {i: torch.einsum("b,b...->...", factor, each[i]).detach() for i in mine}
    hooked.to_standard_module()
    return sums


# ---- the account --------------------------------------------------------------------------------


def account(quick: bool) -> tuple[Table, list[Bar]]:
    """Compare the epsilon of runs with closed cases, and a resumed run with one that was not."""
    settings = common(
        dataset="digits",
        **{"num-nodes": 4, "samples-per-node": 40, "validation-fraction": 0.1, "partition": "iid"},
        **{"local-iterations": 5, "num-server-rounds": 6, "checkpoint-every": 1},
        **{"privacy.dp": "sample", "privacy.sigma": 4.0, "privacy.delta": 1e-3},
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        whole = _epsilons(run_of({**settings, "batch-size": 36}, folder, "whole"))
        part = _epsilons(run_of({**settings, "batch-size": 16}, folder, "part"))
        asked = [0]

        def after_three() -> bool:
            asked[0] += 1
            return asked[0] == 3

        try:
            run_of({**settings, "batch-size": 16}, folder, "again", after_three)
        except RunStoppedError:
            resumed = _epsilons(
                run_of({**settings, "batch-size": 16, "resume": str(folder / "again")}, folder, "")
            )
    a, steps = np.arange(1.01, 300, 0.001), 30
    dense = steps * a / (2 * 4.0**2) + np.log((a - 1) / a) - (log(1e-3) + np.log(a)) / (a - 1)
    whole_orders = dense[np.isclose(a % 1, 0) | np.isclose(a % 1, 1)]
    least, closed = float(dense.min()), float(whole_orders.min())
    booked = epsilon_of([(4.0, 16 / 36, steps)], 1e-3)
    table = Table("", "epsilon", title="Epsilon at delta 0.001 after 30 steps, sigma 4")
    rows = {
        "told by a run, every sample in every batch": whole,
        "closed case, least over whole alpha": closed,
        "closed case, least over all alpha": least,
        "told by a run, q = 16/36": part,
        "the accountant's for 30 steps of q = 16/36": booked,
        "the same run, stopped after 3 of 6 rounds and resumed": resumed,
    }
    for name, value in rows.items():
        table.add_row(name, f"{value:.6f}")
    return table, [
        Bar(
            f"run, from {least:.4f} to {closed:.4f}: between the closed cases",
            whole,
            least - 1e-9 <= whole <= closed + 1e-9,
        ),
        Bar("run - accountant, at most 1e-9", abs(part - booked), abs(part - booked) <= 1e-9),
        Bar("resumed - uninterrupted, exactly 0", abs(resumed - part), resumed == part),
    ]


def _epsilons(records: Sequence[RoundRecord]) -> float:
    """Return the epsilon that all devices tell at the end, one and the same."""
    (found,) = {node.own[EPSILON] for node in records[-1].nodes}
    return float(found)


# ---- noise that cancels -------------------------------------------------------------------------


def cancel(quick: bool) -> tuple[Table, list[Bar]]:
    """Add up noise over receivers, with their weights, and masked parts of a sum."""
    table = Table(
        "weights", "std of one copy's noise", "largest sum", title="privacy.zip-noise = 1"
    )
    worst = 0.0
    for weights in ((1 / 3, 1 / 3, 1 / 3), (0.5, 0.25, 0.25), (0.7, 0.2, 0.1), (0.2,) * 5):
        noise = cancelling(weights, 100_000, 1.0)
        left = float((torch.tensor(weights)[:, None] * noise).sum(dim=0).abs().max())
        worst = max(worst, left)
        told = " ".join(f"{float(z.std()):.3f}" for z in noise)
        table.add_row(" ".join(f"{w:.2f}" for w in weights), told, f"{left:.1e}")
    apart = 0
    for count in (2, 3, 8):
        keys = [new_key() for _ in range(count)]
        vectors = [torch.randn(100_000) for _ in range(count)]
        whole = np.zeros(100_000, np.int64)
        parts: list[torch.Tensor] = []
        for p, x in enumerate(vectors):
            partners = {k: keys[k][1] for k in range(count) if k != p}
            parts.append(masked(x, 1 / count, p, partners, keys[p][0], "0 1 block"))
            whole += (x.double() / count * 2.0**BITS).round().long().numpy()
        found = np.round(summed(parts).double().numpy() * 2.0**BITS).astype(np.int64)
        apart += int((found != whole.astype(np.float32).astype(np.int64)).sum())
    return table, [
        Bar("weighted sum of the noise, at most 1e-5", worst, worst <= 1e-5),
        Bar("numbers of 300,000 in which masks do not cancel exactly, 0", apart, not apart),
    ]


# ---- accuracy by epsilon ------------------------------------------------------------------------


def curve(seeds: Sequence[int], quick: bool) -> tuple[Table, list[Bar]]:
    """Return the accuracy by epsilon and samples a device; nothing is judged but that it falls."""
    table = Table("samples", "epsilon", "sigma", "mean accuracy", "worst device", "epsilon told")
    table.title = "MNIST, 12 devices on a ring, Dirichlet 0.5, 15 rounds of 20 steps"
    means: dict[tuple[int, float], float] = {}
    for samples in (400, 2000):
        for epsilon in (inf, 24.0, 8.0, 4.0):
            each = [_learned(samples, epsilon, seed, quick) for seed in seeds]
            last = [records[-1] for records in each]
            means[samples, epsilon] = fmean(r.accuracy or 0.0 for r in last)
            shown = " ".join(f"{r.accuracy:.3f}" for r in last)
            told = [n.own[EPSILON] for r in last for n in r.nodes if EPSILON in n.own]
            sigma = "-" if epsilon == inf else f"{_sigma(samples, epsilon, seeds[0], quick):.2f}"
            table.add_row(
                str(samples),
                f"{epsilon:g}",
                sigma,
                f"{means[samples, epsilon]:.3f} ({shown})",
                f"{fmean(r.min_accuracy or 0.0 for r in last):.3f}",
                f"{min(told):.2f} to {max(told):.2f}" if told else "-",
            )
            CONSOLE.print(f"{samples} samples, epsilon {epsilon:g}: {shown}", highlight=False)
    gain = means[2000, 8.0] - means[400, 8.0]
    return table, [Bar("accuracy at epsilon 8, 2,000 samples - 400, above 0", gain, gain > 0)]


def _curve_settings(samples: int, epsilon: float, seed: int, quick: bool) -> dict[str, Any]:
    noisy = {"privacy.dp": "sample", "privacy.epsilon": epsilon, **WITH_NOISE}
    return common(
        dataset="mnist",
        **{"data-path": data_folder(), "num-nodes": 12, "samples-per-node": samples, "seed": seed},
        **{
            "modality-pattern": "auto",
            "partition": "dirichlet",
            "alpha": 0.5,
            "batch-size": 32,
            "local-iterations": 20,
        },
        **{"num-server-rounds": 2 if quick else 15, "evaluate-every": 15, "checkpoint-every": 0},
        **(noisy if epsilon < inf else {"learning-rate": 0.1}),
    )


def _sigma(samples: int, epsilon: float, seed: int, quick: bool) -> float:
    learner = device_of(_curve_settings(samples, epsilon, seed, quick))
    assert learner.spending.how is not None
    return learner.spending.how.sigma


def _learned(samples: int, epsilon: float, seed: int, quick: bool) -> list[RoundRecord]:
    with tempfile.TemporaryDirectory() as place:
        return run_of(_curve_settings(samples, epsilon, seed, quick), Path(place), "run")


# ---- a budget spread over the rounds ------------------------------------------------------------


def pacing(
    seeds: Sequence[int], quick: bool, figure: Path | None = None
) -> tuple[Table, list[Bar]]:
    """Spend a budget for half of the planned steps at once, or spread over the rounds."""
    table = Table(
        "budget", title="MNIST, 400 samples a device, sigma 1, a budget of half the steps"
    )
    rounds = 2 if quick else 15
    shown = [1, 2] if quick else [5, 10, 15]
    for t in shown:
        table.add_column(f"accuracy, round {t}", justify="right")
        table.add_column("most epsilon", justify="right")
    bars: list[Bar] = []
    curves: dict[str, dict[str, Points]] = {title: {} for title in _PACED}
    for key, line in _BUDGETS.items():
        runs: list[list[RoundRecord]] = []
        for seed in seeds:
            settings = _curve_settings(400, 1.0, seed, quick) | {"privacy.sigma": 1.0}
            samples = 360
            budget = epsilon_of([(1.0, 32 / samples, 10 * rounds)], 1 / (10 * samples)) * 1.0001
            settings |= {"privacy.epsilon": budget, "privacy.pacing": key == "spread"}
            with tempfile.TemporaryDirectory() as place:
                runs.append(run_of({**settings, "evaluate-every": 1}, Path(place), "run"))
            most = _PACED["epsilon"](runs[-1][-1])
            bars.append(Bar(f"epsilon, {line.label}, at most {budget:.4f}", most, most <= budget))
        for title, of in _PACED.items():
            each = zip(*runs, strict=True)
            curves[title][key] = [(same[0].round, fmean(map(of, same))) for same in each]
        means = [f"{told[key][t - 1][1]:.3f}" for t in shown for told in curves.values()]
        table.add_row(line.label, *means)
        CONSOLE.print(line.label, *means, highlight=False)
    if figure is not None:
        panels = [
            Panel("accuracy", curves["accuracy"], 0.0, 0.4, (0.1, 0.2, 0.3)),
            Panel("epsilon", curves["epsilon"], 0.0, 8.0, (2.0, 4.0, 6.0)),
        ]
        label = "Accuracy and epsilon by round, with the budget spread over the rounds and not"
        foot = "over rounds; mean over devices, highest epsilon of all"
        figure.write_text(chart(_BUDGETS, panels, label, foot), encoding="utf-8")
    return table, bars


_BUDGETS = {
    "spread": Line("spread (privacy.pacing)", "1", 2.5),
    "until": Line("until spent", "muted", 2, "5 4"),
}
"""How a budget is spent; the first lies on top in the figure."""
_PACED: Mapping[str, Callable[[RoundRecord], float]] = {
    "accuracy": lambda record: record.accuracy or 0.0,
    "epsilon": lambda record: max(node.own[EPSILON] for node in record.nodes),
}
"""What is told of each round."""


# ---- leaks --------------------------------------------------------------------------------------

MECHANISMS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "secure sums of 2": {"privacy.secure-sums": True},
    "zip-noise 0.1": {"privacy.zip-noise": 0.1},
    "zip-noise 0.2": {"privacy.zip-noise": 0.2},
    "sample-level DP, epsilon 50": {"privacy.dp": "sample", "privacy.epsilon": 50.0, **WITH_NOISE},
    "sample-level DP, epsilon 8": {"privacy.dp": "sample", "privacy.epsilon": 8.0, **WITH_NOISE},
    "device-level DP, epsilon 50": {"privacy.dp": "device", "privacy.epsilon": 50.0},
}


def leak(seeds: Sequence[int], quick: bool) -> tuple[Table, list[Bar]]:
    """Attack what neighbours received of runs that have overfitted."""
    table = Table(
        "mechanism", "accuracy", title="CIFAR-10 images, 8 devices on a ring, 200 samples each"
    )
    for head in ("AUC, loss", "found at 1 %", "AUC, calibrated", "found at 1 %", "worst AUC"):
        table.add_column(head, justify="right")
    bars: list[Bar] = []
    for name, changed in MECHANISMS.items():
        each = [_attacked(changed, seed, quick) for seed in seeds]
        cells: list[str] = []
        for kind in ("threshold", "calibrated"):
            for what in ("auc", "true_positives"):
                shares = [found.mean(kind, what) for _, found in each]  # type: ignore[arg-type]
                low, high = min(s.low for s in shares), max(s.high for s in shares)
                cells.append(f"{fmean(s.value for s in shares):.3f} [{low:.3f}, {high:.3f}]")
        worst = max(
            f.of(k)[f.worst(k)].auc.value for _, f in each for k in ("threshold", "calibrated")
        )  # type: ignore[arg-type]
        accuracy = fmean(share for share, _ in each)
        table.add_row(name, f"{accuracy:.3f}", *cells, f"{worst:.3f}")
        CONSOLE.print(f"{name}: {accuracy:.3f}, {' '.join(cells)}", highlight=False)
        if not changed:
            auc = fmean(f.mean("threshold", "auc").value for _, f in each)
            bars.append(Bar(f"AUC without a mechanism, above {SHOWS:g}", auc, auc > SHOWS))
    return table, bars


def _attacked(changed: Settings, seed: int, quick: bool) -> tuple[float, Audit]:
    rounds = 2 if quick else 40
    settings = common(
        dataset="cifar10",
        **{"data-path": data_folder(), "num-nodes": 8, "samples-per-node": 200, "seed": seed},
        **{
            "modality-pattern": "auto",
            "partition": "dirichlet",
            "alpha": 1.0,
            "batch-size": 32,
            "local-iterations": 20,
        },
        **{"num-server-rounds": rounds, "evaluate-every": rounds, "checkpoint-every": rounds},
    )
    with tempfile.TemporaryDirectory() as place:
        records = run_of({**settings, **changed}, Path(place), "run")
        return records[-1].accuracy or 0.0, audit(Path(place) / "run")


def main(
    parts: Annotated[list[Part] | None, typer.Option(help="Which; all by default.")] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="Of curve and leak.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write figures there.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw pacing there, as SVG.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run, not judged.")] = False,
) -> None:
    """Check privacy, its cost, and what neighbours still learn."""
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    chosen, drawn = seeds or [0], [*parts] if parts else [*Part]
    make: dict[Part, Callable[[], tuple[Table, list[Bar]]]] = {
        Part.clipping: lambda: clipping(quick),
        Part.account: lambda: account(quick),
        Part.cancel: lambda: cancel(quick),
        Part.curve: lambda: curve(chosen, quick),
        Part.pacing: lambda: pacing(chosen, quick, figure),
        Part.leak: lambda: leak(chosen, quick),
    }
    bars: list[Bar] = []
    tables: dict[str, list[list[str]]] = {}
    for part in drawn:
        table, found = make[part]()
        CONSOLE.print(table)
        cells = [[str(cell) for cell in column.cells] for column in table.columns]
        heads = [str(column.header) for column in table.columns]
        tables[part] = [heads, *map(list, zip(*cells, strict=True))]
        bars += found
    for bar in bars:
        verdict = "not judged, a smoke run" if quick else "met" if bar.met else "MISSED"
        CONSOLE.print(f"{bar.what}: {bar.found:.4g} ({verdict})", highlight=False)
    if json_file is not None:
        told = {"seeds": chosen, "tables": tables, "bars": [vars(bar) for bar in bars]}
        json_file.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    if not quick and not all(bar.met for bar in bars):
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()
