"""Gossip rules on handwritten digits, the more different the devices' data, the harder.

After the table of RelaySGD (Vogels et al., NeurIPS 2021: CIFAR-10, VGG-11, 16 workers), at reduced
scale: 16 devices with 300 images of MNIST each, Dirichlet 1, 0.1 and 0.01, a network of one hidden
layer on 14 x 14 pixels, 400 rounds of one step on 32 images. There and here gossip runs on a ring,
relaying on a line, push-sum on the one-peer exponential graph; D-PSGD is here on that graph as
well. D-PSGD has no momentum here, as that begins anew after each mixing; relaying and push-sum are
run with momentum and without. *Lost* loses 10 % of all messages at Dirichlet 0.01. Each arm has the
best of three learning rates on another seed than those shown. As for the optimum, the package's
rule classes are stepped on rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

import torch
from harness import CONSOLE, data_folder
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from flwr_dmml.data.partitioners import dirichlet
from flwr_dmml.data.sets.mnist_files import read_mnist
from flwr_dmml.gossip.registry import find_gossip
from flwr_dmml.gossip.rule import GossipRule
from flwr_dmml.gossip.trial import Trial
from flwr_dmml.graph.topology import Topology, make_topology
from flwr_dmml.graph.weights import as_matrix, mixing_rows

NODES, CLASSES, PIXELS, HIDDEN, SAMPLES = 16, 10, 196, 32, 300
ROUNDS, BATCH, MOMENTUM = 400, 32, 0.9
TUNED_ON = 100
RATES = 0.01, 0.03, 0.1
SCENARIOS = {"0.01": (0.01, 0.0), "0.01, lost": (0.01, 0.1), "0.1": (0.1, 0.0), "1": (1.0, 0.0)}
"""Dirichlet's concentration, and the share of messages that are lost."""
RING, LINE = make_topology("ring"), make_topology("line")
ONE_PEER = make_topology("one-peer-exponential", directed=True)
ARMS: Mapping[str, tuple[str, Topology]] = {
    "dpsgd": ("dpsgd", RING),
    "dpsgd, one-peer": ("dpsgd", ONE_PEER),
    "dsgdm": ("dsgdm", RING),
    "qg-dsgdm": ("qg-dsgdm", RING),
    "qg-dsgdm-n": ("qg-dsgdm-n", RING),
    "d2": ("d2", RING),
    "leaky-d2": ("leaky-d2", RING),
    "k-gt": ("k-gt", RING),
    "mt": ("mt", RING),
    "relaysgd": ("relaysgd", LINE),
    "relaysgd, no momentum": ("relaysgd", LINE),
    "sgp": ("sgp", ONE_PEER),
    "sgp, no momentum": ("sgp", ONE_PEER),
}
WITHOUT_MOMENTUM = "no momentum"
LIKE_D_PSGD = "relaysgd, no momentum", "sgp, no momentum"
HARDEST, AHEAD = "0.01", 8.0
"""Where relaying and push-sum have to be ahead of D-PSGD, and by how many points."""
SILENT = -1e-30
"""A weight that links two devices of which one does not hear the other in this round."""
Runs = Mapping[tuple[str, str], Mapping[int, float]]
"""(scenario, arm) -> seed -> accuracy."""


@cache
def digits(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images ``[n, 196]`` from -1 to 1 and labels: to train, and every fifth to test."""
    found = list[Tensor]()
    for train in (True, False):
        images, labels = read_mnist(folder, train=train)
        step = 1 if train else 5
        small = F.avg_pool2d(images[::step, None].float() / 127.5 - 1, 2)
        found += [small.flatten(1), labels[::step]]
    return found[0], found[1], found[2], found[3]


@dataclass(frozen=True)
class Data:
    """What the devices have: images ``[node, n, 196]`` and labels one-hot ``[node, n, 10]``."""

    images: Tensor
    answers: Tensor

    @classmethod
    def of(cls, alpha: float, seed: int) -> "Data":
        """Deal out MNIST's images."""
        images, labels, *_ = digits(Path(data_folder()) / "mnist")
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        how = {"num_nodes": NODES, "size": SAMPLES, "alpha": alpha, "seed": seed}
        parts = dirichlet(labels[order].numpy(), order.numpy(), **how)  # type: ignore[arg-type]
        own = torch.stack([torch.from_numpy(part) for part in parts])
        return cls(images[own], F.one_hot(labels[own], CLASSES).float())

    def batch(self, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a batch of every device."""
        drawn = torch.randint(SAMPLES, (NODES, BATCH), generator=random)
        nodes = torch.arange(NODES)[:, None]
        return self.images[nodes, drawn], self.answers[nodes, drawn]


def layers(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return weights and biases of rows ``[node, parameters]``."""
    first, second = PIXELS * HIDDEN, HIDDEN * CLASSES
    w, b, v, c = x.split([first, HIDDEN, second, CLASSES], dim=1)
    return w.view(-1, PIXELS, HIDDEN), b[:, None], v.view(-1, HIDDEN, CLASSES), c[:, None]


def start(seed: int) -> Tensor:
    """Return the same network for all, ``[node, parameters]``."""
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(PIXELS * HIDDEN, generator=random) * (2 / PIXELS) ** 0.5
    v = torch.randn(HIDDEN * CLASSES, generator=random) * HIDDEN**-0.5
    return torch.cat([w, torch.zeros(HIDDEN), v, torch.zeros(CLASSES)]).repeat(NODES, 1)


def gradients(x: Tensor, images: Tensor, answers: Tensor) -> Tensor:
    """Return the gradients of the cross-entropy on a batch each, ``[node, parameters]``."""
    w, b, v, c = layers(x)
    inner = (images @ w + b).relu()
    wrong = ((inner @ v + c).softmax(dim=2) - answers) / images.shape[1]
    back = (wrong @ v.mT) * (inner > 0)
    parts = images.mT @ back, back.sum(dim=1), inner.mT @ wrong, wrong.sum(dim=1)
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def accuracy(x: Tensor) -> float:
    """Return the mean test accuracy of the devices."""
    *_, images, labels = digits(Path(data_folder()) / "mnist")
    w, b, v, c = layers(x)
    right = [
        (((images @ w[k] + b[k]).relu() @ v[k] + c[k]).argmax(dim=1) == labels).float().mean()
        for k in range(len(x))
    ]
    return float(torch.stack(right).mean())


def thinned(weights: Tensor, rule: GossipRule, rate: float, random: torch.Generator) -> Tensor:
    """Return a round's matrix ``[node, node]`` with what remains of lost messages, as in a run.

    Their weight goes to the receiver's own copy, of push-sum to the sender's; where a rule keeps a
    sum, what goes the other way is not used either.
    """
    lost = (torch.rand(NODES, NODES, generator=random) < rate) & (weights > 0)
    if rule.loss == "pair":
        lost = lost | lost.T
    lost.fill_diagonal_(False)
    gone = torch.where(lost, weights, 0.0)
    left = weights - gone + torch.diag(gone.sum(dim=0 if rule.loss == "sender" else 1))
    return torch.where(lost, SILENT, left) if rule.addressed else left


def run(arm: str, scenario: str, rate: float, seed: int, rounds: int) -> float:
    """Return the mean test accuracy of the devices at the end; that of chance if they diverge."""
    (name, topology), (alpha, lost) = ARMS[arm], SCENARIOS[scenario]
    kind, data = find_gossip()[name], Data.of(alpha, seed)
    rule, random = kind(kind.options_type()), torch.Generator().manual_seed(seed)
    how = {"lr": rate, "momentum": 0.0 if arm.endswith(WITHOUT_MOMENTUM) else MOMENTUM}
    trial = Trial(rule, start(seed), lambda x: gradients(x, *data.batch(random)), **how)
    losses = torch.Generator().manual_seed(seed + 1)
    for t in range(1, rounds + 2):
        graph = topology.graph(NODES, server_round=t)
        rows = as_matrix(mixing_rows(graph, graph, push=rule.pushes), NODES)
        weights = torch.from_numpy(rows).float()
        trial.mix(thinned(weights, rule, lost, losses) if lost else weights)
        if t <= rounds:
            trial.train(torch.ones(NODES, dtype=torch.long))
    return accuracy(trial.x) if bool(trial.x.isfinite().all()) else 1 / CLASSES


def compare(seeds: Sequence[int], arms: Sequence[str], *, quick: bool) -> tuple[Table, list[str]]:
    """Return the accuracies of rules, tuned, and a line for each bar that is missed."""
    rounds, rates = (3, RATES[:1]) if quick else (ROUNDS, RATES)
    found, best = dict[tuple[str, str], dict[int, float]](), dict[tuple[str, str], float]()
    for scenario in SCENARIOS:
        for arm in arms:
            key, tried = (scenario, arm), list[float]()
            if len(rates) > 1:
                tried = [run(arm, scenario, rate, TUNED_ON, rounds) for rate in rates]
            best[key] = rates[tried.index(max(tried))] if tried else rates[0]
            found[key] = {s: run(arm, scenario, best[key], s, rounds) for s in seeds}
            each = " ".join(f"{x:.3f}" for x in found[key].values())
            of_rates = " ".join(f"{x:.3f}" for x in tried)
            line = f"{scenario} | {arm}: {each}; rate {best[key]:g}, of {of_rates}"
            CONSOLE.print(line, highlight=False)
    table = Table("rule", *(f"alpha {scenario}" for scenario in SCENARIOS))
    table.title = "mean accuracy (seeds; learning rate)"
    for arm in arms:
        table.add_row(arm, *(_cell(found[s, arm], best[s, arm]) for s in SCENARIOS))
    return table, [] if quick or set(arms) != set(ARMS) else judge(found)


def judge(runs: Runs) -> list[str]:
    """Return a line for each bar that is missed."""
    mean = {arm: fmean(runs[HARDEST, arm].values()) for arm in ARMS}
    wrong = [
        f"{arm} is {100 * (mean[arm] - mean['dpsgd']):+.1f} points from D-PSGD at Dirichlet "
        f"{HARDEST}; the bar is {AHEAD:+g}"
        for arm in LIKE_D_PSGD
        if 100 * (mean[arm] - mean["dpsgd"]) < AHEAD
    ]
    best = max(mean[arm] for arm in ("relaysgd", "sgp", *LIKE_D_PSGD))
    for arm in ("qg-dsgdm", "qg-dsgdm-n"):
        if not mean["dpsgd"] <= mean[arm] <= best:
            wrong.append(f"{arm} is not between D-PSGD and the better of relaying and push-sum")
    return wrong


def _cell(runs: Mapping[int, float], rate: float) -> str:
    by_seed = " ".join(f"{x:.3f}"[1:] for _, x in sorted(runs.items()))
    return f"{fmean(runs.values()):.3f} ({by_seed}; {rate:g})"
