"""How many liars each owner's neighbourhood of a block can hold, before a run begins."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import networkx as nx

from ..gossip.aggregation.rule import AggregationRule
from ..graph.weights import heard_by
from ..settings import Settings
from .mixing import over_owners, owners_by_block


@dataclass(frozen=True)
class Held:
    """How many liars can be held in blocks with the same owners.

    Attributes
    ----------
    blocks : tuple of str
        Their names.
    neighbours : dict of int to sequence of int
        By owner: those of its neighbours that own them, too.
    liars : dict of int to int
        By owner: how many of these may lie.
    """

    blocks: tuple[str, ...]
    neighbours: Mapping[int, tuple[int, ...]]
    liars: Mapping[int, int]

    def __str__(self) -> str:
        """Say in one line how many owners bear how many liars."""
        near, counts = [len(n) for n in self.neighbours.values()], Counter(self.liars.values())
        span = f"{min(near)}" if min(near) == max(near) else f"{min(near)} to {max(near)}"
        most = sorted(counts, reverse=True)
        each = ", ".join(f"{b} on {counts[b]} device{'s' * (counts[b] > 1)}" for b in most)
        return f"{', '.join(self.blocks)}: {each}, of {span} neighbours that own it"


def held(
    graph: nx.Graph,
    blocks: Mapping[int, Collection[str]],
    rule: AggregationRule,
    over: Mapping[str, nx.Graph] | None = None,
) -> list[Held]:
    """Return what a rule can hold on a graph; blocks with the same owners come together.

    Neighbours by couriers are not counted: they come and go.

    Parameters
    ----------
    graph : networkx.Graph
        Who is linked with whom.
    blocks : mapping of int to collection of str
        Of each device, by partition id.
    rule : AggregationRule
        How devices aggregate.
    over : mapping of str to networkx.Graph, optional
        Graphs of blocks that have one of their own.
    """
    over = over or {}
    alike: dict[tuple[int, ...], list[str]] = {}
    for block, owners in owners_by_block(blocks).items():
        alike.setdefault(owners, []).append(block)
    found: list[Held] = []
    for owners, names in alike.items():
        links = over.get(names[0], graph)
        near = {p: tuple(n for n in heard_by(links, p) if n in owners and n != p) for p in owners}
        liars = {p: rule.liars(len(n)) for p, n in near.items()}
        found.append(Held(tuple(names), near, liars))
    return found


def told(
    found: Collection[Held],
    rule: AggregationRule,
    lying: Collection[int] = (),
    *,
    moving: bool = False,
) -> list[str]:
    """Return what is to be said of it at the start: a line for each, and what is beyond it.

    Parameters
    ----------
    found : collection of Held
        From :func:`held`.
    rule : AggregationRule
        How devices aggregate; nothing is said of one that is not robust.
    lying : collection of int
        The liars of a simulation.
    moving : bool (default: False)
        Whether the graph changes, and what was found is of the first round alone.
    """
    if not rule.robust:
        return []
    when = " in round 1" * moving
    said = [f"Liars that {rule} tolerates next to a device{when}: {each}" for each in found]
    if not any(any(each.liars.values()) for each in found):
        does = "only drops what is out of reach" if rule.alone else "is the weighted mean"
        said.append(
            f"{rule} {does} here: no device has enough neighbours to tell who lies; add links"
        )
    beyond = {
        p
        for each in found
        for p, near in each.neighbours.items()
        if p not in lying and len({*lying} & {*near}) > each.liars[p]
    }
    if beyond:
        said.append(f"More liars than that are next to {', '.join(map(str, sorted(beyond)))}")
    return said


def told_of(
    settings: Settings, blocks: Mapping[int, Collection[str]], rule: AggregationRule
) -> list[str]:
    """Return what is to be said of a run's settings, given the blocks of each device."""
    topology, given = settings.make_topology(), {"server_round": 1, "seed": settings.seed}
    over = over_owners(topology, blocks, **given) if topology.by_owners else {}
    graph = topology.graph(settings.num_nodes, **given)
    lying = settings.attack.liars(settings.num_nodes, settings.seed)
    return told(held(graph, blocks, rule, over), rule, lying, moving=topology.time_varying)
