"""The setting of IOS's MNIST experiment: softmax regression, one class a node, two liars of twelve.

Wu, Chen and Ling, "Byzantine-Resilient Decentralized Stochastic Optimization with Robust
Aggregation Rules", IEEE TSP 2023, and its public code: pixels in [-1, 1], batches of 32 images that
follow one another in the file, weight decay 0.01, learning rate 0.9 / sqrt(k + 1), every node
starts from other numbers. Nodes send after each step. Without an attack there are no liars. The
rules and the attacks are the package's; nothing else of it is used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean

import networkx as nx
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from flwr_dmml.data.sets.mnist_files import read_mnist
from flwr_dmml.gossip.aggregation.rule import AggregationRule
from flwr_dmml.gossip.aggregation.weighing import Weighing
from flwr_dmml.gossip.attacks import ATTACKS, Scene
from flwr_dmml.gossip.registry import find_aggregation, make_aggregation
from flwr_dmml.graph.weights import metropolis_weights

NODES, CLASSES, PIXELS = 12, 10, 784
MISSING = "0-10 1-3 1-7 1-9 1-11 2-9 2-10 3-6 3-8 3-10 4-5 4-7 4-9 4-11 5-7 5-10 6-8 6-9 8-11"
"""Links that the Erdos-Renyi graph lacks: fast_gnp_random_graph(12, .7, Random(300))."""
KNOWN = find_aggregation()


def graph_of(name: str) -> tuple[nx.Graph, tuple[int, ...]]:
    """Return a graph of the paper, and its liars."""
    graph = nx.complete_graph(NODES)
    if name == "er":
        graph.remove_edges_from(tuple(map(int, edge.split("-"))) for edge in MISSING.split())
        return graph, (6, 7)
    graph.remove_edges_from((i, i + 6) for i in range(6))  # two castles
    return graph, (7, 9)


@dataclass(frozen=True)
class Arm:
    """A rule with its options, and the liars it assumes: ``None`` knows each node's number."""

    rule: str
    options: Mapping[str, object] = field(default_factory=dict)
    liars: float | None = None

    def make(self, liars: int) -> AggregationRule:
        """Return the rule of a node with so many lying neighbours."""
        kind = KNOWN[self.rule.removeprefix("nnm+")]
        options = {kind.name: kind.options_type.model_validate(dict(self.options))}
        bound = liars if self.liars is None else self.liars
        rule = make_aggregation(self.rule, KNOWN, options, bound)
        assert rule is not None
        return rule


@cache
def mnist(folder: Path) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the training images of each class, and the test images and labels."""
    images, labels = read_mnist(folder, train=True)
    x = (images.flatten(1).float() / 255 - 0.5) / 0.5
    tests, answers = read_mnist(folder, train=False)
    by_class = [x[labels == k] for k in range(CLASSES)]
    return by_class, (tests.flatten(1).float() / 255 - 0.5) / 0.5, answers


class Network:
    """Twelve nodes that learn, or ten where nobody attacks.

    Parameters
    ----------
    folder : Path
        That holds ``MNIST/raw``.
    graph : str
        ``er`` or ``castles``.
    arm : Arm
        What they aggregate by.
    attack : str
        A name of the package's attacks.
    seed : int
        Of batches, start, noise and draws.
    start : float
        Standard deviation of the parameters that a node starts from.
    """

    def __init__(
        self, folder: Path, graph: str, arm: Arm, attack: str, seed: int, start: float
    ) -> None:
        self.classes, *self.tests = mnist(folder)
        whole, liars = graph_of(graph)
        if attack == "none":
            whole.remove_nodes_from(liars)
        self.attack, self.strength = ATTACKS[attack]
        self.honest = [i for i in range(NODES) if i not in liars]
        order = sorted(whole)
        table = metropolis_weights(nx.convert_node_labels_to_integers(whole, ordering="sorted"))
        self.random = torch.Generator().manual_seed(seed)
        self.noise = [torch.Generator().manual_seed(seed + 1 + k) for k in range(len(liars))]
        size = (PIXELS + 1) * CLASSES
        self.x = start * torch.randn(len(self.honest), size, generator=self.random)
        self.victims: list[tuple[list[int], list[int], Tensor]] = []  # near, lying, weights
        self.nodes: dict[int, list[int]] = {}  # by how many of their neighbours lie
        for k, i in enumerate(self.honest):
            near = [j for j in sorted(whole[i]) if j not in liars]
            lying = [j for j in sorted(whole[i]) if j in liars]
            row = [float(table[order.index(i), order.index(j)]) for j in (i, *near, *lying)]
            places = [self.honest.index(j) for j in near], [liars.index(j) for j in lying]
            self.victims.append((*places, torch.tensor(row)))
            self.nodes.setdefault(len(lying), []).append(k)
        self.rules = {count: arm.make(count) for count in self.nodes}

    def gradients(self) -> Tensor:
        """Return the gradients of one batch a node, ``[node, parameters]``."""
        batches = []
        for images in self.classes:
            at = int(torch.randint(len(images) - 31, (1,), generator=self.random))
            batches.append(images[at : at + 32])
        inputs = torch.stack(batches)  # [node, batch, pixels]
        labels = torch.eye(CLASSES)[:, None]  # node k has class k
        w = self.x.view(-1, PIXELS + 1, CLASSES)
        wrong = (inputs @ w[:, :-1] + w[:, -1:]).softmax(dim=2) - labels
        g = torch.cat([inputs.transpose(1, 2) @ wrong, wrong.sum(dim=1, keepdim=True)], dim=1)
        return g.flatten(1) / 32

    def step(self, k: int) -> None:
        """Step every node, send, and aggregate."""
        rate = 0.9 / (k + 1) ** 0.5
        begun, self.x = self.x, (1 - 0.01 * rate) * self.x - rate * self.gradients()
        mixed = torch.empty_like(self.x)
        for count, nodes in self.nodes.items():  # who has fewer neighbours has some of weight 0
            copies = pad_sequence([self.told(node) for node in nodes], batch_first=True)
            rows = [self.victims[node][2] for node in nodes]
            weights = pad_sequence(rows, batch_first=True)
            rule, last = self.rules[count], [begun[node][None] if k else None for node in nodes]
            known = (last,) if isinstance(rule, Weighing) else ()
            mixed[nodes] = rule(self.x[nodes], copies, weights, *known)
        self.x = mixed

    def told(self, node: int) -> Tensor:
        """Return what a node gets, ``[neighbours, parameters]``, lies last."""
        near, lying, weights = self.victims[node]
        copies = self.x[near]
        if not lying:
            return copies
        own, *others = weights.tolist()
        scene = Scene(
            own=self.x[node],
            near=copies,
            lying=copies[:1].expand(len(lying), -1),
            weights=(own, tuple(others[: len(near)]), sum(others[len(near) :])),
            neighbours=len(near) + len(lying),
            random=[self.noise[j] for j in lying],
            earlier=copies[: len(lying)],
        )
        return torch.cat([copies, self.attack(scene, self.strength)])

    def accuracy(self) -> tuple[float, float]:
        """Return the mean and the lowest test accuracy of the honest nodes, in per cent."""
        inputs, answers = self.tests
        w = self.x.view(-1, PIXELS + 1, CLASSES)
        found = [(F.linear(inputs, v[:-1].T, v[-1]).argmax(dim=1) == answers) for v in w]
        rates = [100 * float(right.float().mean()) for right in found]
        return fmean(rates), min(rates)


def accuracies(
    folder: Path,
    graph: str,
    arm: Arm,
    attack: str,
    *,
    seed: int,
    start: float,
    record: Sequence[int],
) -> dict[int, tuple[float, float]]:
    """Return mean and lowest accuracy of the honest nodes after numbers of iterations."""
    torch.set_num_threads(1)
    network, found = Network(folder, graph, arm, attack, seed, start), {}
    for k in range(max(record)):
        network.step(k)
        if k + 1 in record:
            found[k + 1] = network.accuracy()
    return found
