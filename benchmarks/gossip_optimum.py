"""Gossip rules on a problem whose optimum is known: where each ends, and what it takes.

Sixteen devices minimise ``(x - b_k)^T A_k (x - b_k) / 2`` each, with full gradients: 10 dimensions,
eigenvalues of A_k from 0.2 to 1.8, the optima b_k far apart. The package's rule classes are stepped
on rows in float64 with an effective learning rate of 0.02: 6,000 rounds of one local step, and
2,500 of five, and of 1, 3, 5, 7 and 9, with progress normalised and not. A figure is the distance
to the common optimum: of the mean model, and the root mean square over devices. *Equal bytes* is
the latter after as many bytes as D-PSGD sends: a rule with two vectors gets half of the rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from flwr_dmml.gossip.registry import find_gossip
from flwr_dmml.gossip.rule import GossipRule
from flwr_dmml.gossip.trial import Trial
from flwr_dmml.graph.topology import Topology, make_topology
from flwr_dmml.graph.weights import as_matrix, mixing_rows

NODES, LENGTH, LR, MOMENTUM = 16, 10, 0.02, 0.9
EXACT, BIASED = 1e-6, 0.05
LENGTH_OF_A_MODEL = 10_000
"""Numbers that go with a block are few beside it, but not beside 10."""
GRAPHS: dict[str, dict[str, Any]] = {
    "ring": {},
    "exponential": {},
    "base": {"degree": 1},
    "one-peer-exponential": {"directed": True},
}
"""Families and their parameters; ``base`` is the Base-2 graph."""
TAUS = {
    "1": torch.ones(NODES, dtype=torch.long),
    "5": torch.full((NODES,), 5),
    "1..9": torch.arange(NODES) % 5 * 2 + 1,
}
ROUNDS = {"1": 6000, "5": 2500, "1..9": 2500}


@dataclass(frozen=True)
class Entry:
    """A rule as it is run.

    Attributes
    ----------
    rule : str
        Its name.
    options : dict
        Its options.
    momentum : bool
        Whether it has momentum: its learning rate is a tenth then.
    exact : tuple of str
        With which numbers of local steps it ends at the common optimum.
    kept : float
        The share of the numbers of a change that it sends, the largest ones.
    """

    rule: str
    options: dict[str, Any]
    momentum: bool = False
    exact: tuple[str, ...] = ()
    kept: float = 1.0

    @property
    def called(self) -> str:
        """Its name, with its options."""
        more = [] if self.kept == 1 else [f"top {self.kept:.0%}"]
        return " ".join([self.rule, *(f"{k} {v:g}" for k, v in self.options.items()), *more])

    def make(self) -> GossipRule:
        """Return the rule."""
        kind = find_gossip()[self.rule]
        return kind(kind.options_type(**self.options))

    @property
    def vectors(self) -> float:
        """How many models' bytes it sends to a neighbour; a kept number goes with its place."""
        sends = self.make().sends
        share = 1.0 if self.kept == 1 else 2 * self.kept
        return sends.count("block") * share + sends.count("number") / LENGTH_OF_A_MODEL


ENTRIES = (
    Entry("dpsgd", {}),
    Entry("dsgdm", {}, momentum=True),
    Entry("qg-dsgdm", {}, momentum=True),
    Entry("qg-dsgdm-n", {}, momentum=True),
    Entry("decentlam", {}, momentum=True),
    Entry("qg-gutm", {}, momentum=True),
    Entry("gut", {}),
    Entry("gut", {"mu": 1.0}, exact=("1",)),
    Entry("d2", {}, exact=tuple(TAUS)),
    Entry("leaky-d2", {}),
    Entry("leaky-d2", {"keep": 1.0}),
    Entry("k-gt", {}, exact=tuple(TAUS)),
    Entry("mt", {}, momentum=True, exact=tuple(TAUS)),
    Entry("choco", {}, kept=0.2),
    # With five steps a round they are on their way on the ring: 8e-4 after 10,000 rounds.
    Entry("beer", {}, exact=("1",), kept=0.2),
    Entry("motef", {}, momentum=True, exact=("1",), kept=0.2),
    Entry("sgp", {}, momentum=True),
)


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """Return A ``[node, length, length]``, b ``[node, length]`` and the common optimum."""
    g = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(NODES, LENGTH, LENGTH, generator=g))
    a = q @ torch.diag_embed(0.2 + 1.6 * torch.rand(NODES, LENGTH, generator=g)) @ q.mT
    b = torch.randn(LENGTH, generator=g) / 2 + 2 * torch.randn(NODES, LENGTH, generator=g)
    return a, b, torch.linalg.solve(a.sum(0), (a @ b[:, :, None]).sum(0))[:, 0]


def weights_of(topology: Topology, rounds: int, *, push: bool) -> list[Tensor]:
    """Return the matrices of as many rounds as there are different ones, of these."""
    last = rounds if topology.time_varying else 1
    graphs = [topology.graph(NODES, server_round=t) for t in range(1, min(last, 240) + 1)]
    return [
        torch.from_numpy(as_matrix(mixing_rows(graph, graph, push=push), NODES)) for graph in graphs
    ]


def run(
    entry: Entry, mixing: Sequence[Tensor], tau: str, rounds: int, *, normalises: bool
) -> tuple[float, float, float]:
    """Return the distances of the mean and of the devices, and theirs after equal bytes."""
    a, b, best = problem()
    trial = Trial(
        entry.make(),
        torch.zeros(NODES, LENGTH),
        lambda x: (a @ (x - b)[:, :, None])[:, :, 0],
        lr=LR * (1 - MOMENTUM) if entry.momentum else LR,
        momentum=MOMENTUM if entry.momentum else 0.0,
        normalises=normalises,
        code=None if entry.kept == 1 else partial(largest, share=entry.kept),
        kept=entry.kept,
    )
    paid, afforded = float("nan"), min(rounds, int(rounds / entry.vectors))
    for t, w in enumerate(islice(cycle(mixing), rounds + 1)):
        trial.mix(w)
        if t == afforded:
            paid = rms(trial.x, best)
        if t < rounds:
            trial.train(TAUS[tau])
    return float((trial.x.mean(dim=0) - best).norm()), rms(trial.x, best), paid


def largest(change: Tensor, share: float) -> Tensor:
    """Return a change ``[node, length]`` with a share of its numbers, the largest, and 0 else."""
    kept = change.abs().topk(max(1, round(share * change.shape[1])), dim=1).indices
    return torch.zeros_like(change).scatter(1, kept, change.gather(1, kept))


def rms(x: Tensor, best: Tensor) -> float:
    """Return the root mean square distance of rows to a point."""
    return float((x - best).square().sum(dim=1).mean().sqrt())


def judge(entry: Entry, tau: str, ends: Sequence[float]) -> str:
    """Return what is wrong with where a rule ends, after equal rounds or bytes."""
    if tau in entry.exact and not all(end < EXACT for end in ends):
        return f"{entry.called} is exact, and ends at {max(ends):.1e} with tau {tau}"
    if entry.rule == "dpsgd" and not min(ends) > BIASED:
        return f"D-PSGD ends at {min(ends):.3f} with tau {tau}, below {BIASED:g}"
    return ""


def tables(
    graphs: Sequence[str], rules: Sequence[str], *, quick: bool
) -> tuple[list[Table], list[str]]:
    """Return a table for each graph, and a line for each bar that is missed."""
    before, share = torch.get_default_dtype(), 0.1 if quick else 1.0
    torch.set_default_dtype(torch.float64)
    entries = [entry for entry in ENTRIES if entry.rule in rules]
    found = [table_of(graph, entries, share) for graph in graphs]
    torch.set_default_dtype(before)
    return [table for table, _ in found], [line for _, wrong in found for line in wrong]


def table_of(graph: str, entries: Sequence[Entry], share: float) -> tuple[Table, list[str]]:
    """Return the table of a graph, and what is wrong."""
    topology, wrong = make_topology(graph, **GRAPHS[graph]), list[str]()
    table = Table(title=f"{graph}: distance of the mean / of the devices")
    for head in ("rule", "sends", *(f"tau {tau}" for tau in TAUS), "tau 1..9, raw"):
        table.add_column(head)
    table.add_column("equal bytes: tau 1, 5, 1..9")
    for entry in entries:
        rule = entry.make()
        cells = [entry.called, f"{entry.vectors:.2g} vec"]
        if why := rule.graph_problem(topology, NODES, 0):
            table.add_row(*cells, f"refused: {why.split(',')[0]}")
            continue
        paid: list[str] = []
        for tau in TAUS:
            rounds = int(share * ROUNDS[tau])
            mixing = weights_of(topology, rounds, push=rule.pushes)
            mean, end, cheap = run(entry, mixing, tau, rounds, normalises=True)
            cells.append(f"{mean:.1e} / {end:.1e}")
            paid.append(f"{cheap:.1e}")
            wrong += filter(None, [judge(entry, tau, (end, cheap))])
        mean, end, _ = run(entry, mixing, tau, rounds, normalises=False)
        table.add_row(*cells, f"{mean:.1e} / {end:.1e}", ", ".join(paid))
    return table, [f"{graph}: {line}" for line in wrong]
