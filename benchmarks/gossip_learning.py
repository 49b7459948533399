"""Gossip rules on handwritten digits, the more different the devices' data, the harder.

After the table of RelaySGD (Vogels et al., NeurIPS 2021: CIFAR-10, VGG-11, 16 workers), at reduced
scale: 16 devices with 300 images of MNIST each, Dirichlet 1, 0.1 and 0.01, 60 rounds of 5 local
steps. There and here gossip runs on a ring, relaying on a line, push-sum on the one-peer
exponential graph; D-PSGD is here on that graph as well. *Lost* loses 10 % of all messages at
Dirichlet 0.01. Each arm has the best of three learning rates on another seed than those shown.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from harness import Runs, Settings, data_folder, run_all
from rich.table import Table

from flwr_dmml.clients import Learner
from flwr_dmml.learning.settings import choices_of

TUNED_ON = 100
RATES = 0.03, 0.1, 0.3
COMMON: dict[str, Any] = {
    **choices_of(Learner),
    "method": "dpsgd",
    "dataset": "mnist",
    "samples-per-node": 300,
    "modality-pattern": "image",
    "num-nodes": 16,
    "topology": "ring",
    "partition": "dirichlet",
    "num-server-rounds": 60,
    "local-iterations": 5,
    "batch-size": 32,
    "momentum": 0.9,
    "evaluate-every": 60,
    "allocation.rule": "uniform",
}
QUICK = {"num-server-rounds": 3, "evaluate-every": 3}
SCENARIOS: dict[str, dict[str, Any]] = {
    "1": {"alpha": 1.0},
    "0.1": {"alpha": 0.1},
    "0.01": {"alpha": 0.01},
    "0.01, lost": {"alpha": 0.01, "loss-rate": 0.1},
}
ONE_PEER: dict[str, Any] = {"topology": "one-peer-exponential", "topology-directed": True}
ARMS: dict[str, dict[str, Any]] = {
    "dpsgd": {"gossip": "dpsgd"},
    "dpsgd, one-peer": {"gossip": "dpsgd", **ONE_PEER},
    "dsgdm": {"gossip": "dsgdm"},
    "qg-dsgdm": {"gossip": "qg-dsgdm"},
    "qg-dsgdm-n": {"gossip": "qg-dsgdm-n"},
    "d2": {"gossip": "d2"},
    "k-gt": {"gossip": "k-gt"},
    "mt": {"gossip": "mt"},
    "relaysgd": {"gossip": "relaysgd", "topology": "line"},
    "sgp": {"gossip": "sgp", **ONE_PEER},
}
HARDEST, AHEAD = "0.01", 8.0
"""Where relaying and push-sum have to be ahead of D-PSGD, and by how many points."""


def compare(seeds: Sequence[int], workers: int, *, quick: bool) -> tuple[Table, list[str]]:
    """Return the accuracies of all rules, tuned, and a line for each bar that is missed."""
    settings = {
        (scenario, arm): COMMON | {"data-path": data_folder()} | where | own
        for scenario, where in SCENARIOS.items()
        for arm, own in ARMS.items()
    }
    if quick:
        settings = {key: of | QUICK for key, of in settings.items()}
    rates = RATES[:1] if quick else RATES
    best = tuned(settings, rates, workers)
    chosen = {key: of | {"learning-rate": best[key]} for key, of in settings.items()}
    runs = run_all(chosen, seeds[:1] if quick else seeds, workers)
    table = Table("rule", *(f"alpha {scenario}" for scenario in SCENARIOS))
    table.title = "mean accuracy (seeds; learning rate)"
    for arm in ARMS:
        table.add_row(arm, *(_cell(runs, (s, arm), best[s, arm]) for s in SCENARIOS))
    return table, [] if quick else judge(runs)


def tuned(
    settings: dict[tuple[str, str], Settings], rates: Sequence[float], workers: int
) -> dict[tuple[str, str], float]:
    """Return the best learning rate of each arm in each scenario, on a seed that is not shown."""
    tries = {
        (scenario, f"{arm}, rate {rate:g}"): {**of, "learning-rate": rate}
        for (scenario, arm), of in settings.items()
        for rate in rates
    }
    found = run_all(tries, [TUNED_ON], workers) if len(rates) > 1 else {}

    def accuracy(scenario: str, arm: str, rate: float) -> float:
        reached = found[scenario, f"{arm}, rate {rate:g}"][TUNED_ON]["accuracy"]
        return float(reached)

    return {
        key: max(rates, key=lambda rate: accuracy(*key, rate)) if found else rates[0]
        for key in settings
    }


def judge(runs: Runs) -> list[str]:
    """Return a line for each bar that is missed."""
    mean = {arm: _mean(runs, (HARDEST, arm)) for arm in ARMS}
    wrong = [
        f"{arm} is {100 * (mean[arm] - mean['dpsgd']):+.1f} points from D-PSGD at Dirichlet "
        f"{HARDEST}; the bar is {AHEAD:+g}"
        for arm in ("relaysgd", "sgp")
        if 100 * (mean[arm] - mean["dpsgd"]) < AHEAD
    ]
    for arm in ("qg-dsgdm", "qg-dsgdm-n"):
        if not mean["dpsgd"] <= mean[arm] <= max(mean["relaysgd"], mean["sgp"]):
            wrong.append(f"{arm} is not between D-PSGD and the better of relaying and push-sum")
    return wrong


def _mean(runs: Runs, key: tuple[str, str]) -> float:
    return fmean(result["accuracy"] for result in runs[key].values())


def _cell(runs: Runs, key: tuple[str, str], rate: float) -> str:
    by_seed = " ".join(f"{of['accuracy']:.3f}"[1:] for _, of in sorted(runs[key].items()))
    return f"{_mean(runs, key):.3f} ({by_seed}; {rate:g})"
