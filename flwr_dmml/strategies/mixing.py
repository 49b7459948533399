"""Mixing neighbourhoods: neighbours and weights of every block a node owns."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx

from ..graph.couriers import Hub
from ..graph.topology import Topology, components
from ..graph.weights import Rows, heard_by, mixing_rows, with_links
from ..payload.plan import Carried, mean_of

Hubs = Mapping[int, Collection[int]]
Weigh = Callable[[nx.Graph, tuple[int, ...], Hubs], Rows]
"""(graph, owners of a block, those around each hub) to the weights of the owners."""


@dataclass(frozen=True)
class FarLink:
    """Two owners of a block that have got each other's by couriers.

    Attributes
    ----------
    ends : tuple of int
        The owners.
    via : tuple of int
        The neighbour that has brought it to the first end, and to the second.
    couriers : int
        How many there are on the way.
    """

    ends: tuple[int, int]
    via: tuple[int, int]
    couriers: int = 1


@dataclass(frozen=True)
class Neighbourhood:
    """A node's neighbours in one round, and the weights of every block it owns.

    ``weights[block]`` holds the node's own weight, then one for each of ``neighbours`` (0 where the
    neighbour does not own the block) and of ``far``; they sum to 1, unless senders divide what they
    send. Of a node without live neighbours there are only own weights below 1: what it keeps while
    others hear it. One that shares no block is a neighbour all the same: statistics reach it.
    """

    neighbours: tuple[int, ...] = ()
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    far: tuple[Carried, ...] = ()


def owners_by_block(blocks: Mapping[int, Iterable[str]]) -> dict[str, tuple[int, ...]]:
    """Return the sorted owners of every block, given each node's blocks."""
    owners: dict[str, list[int]] = {}
    for node in sorted(blocks):
        for name in blocks[node]:
            owners.setdefault(name, []).append(node)
    return {name: tuple(nodes) for name, nodes in owners.items()}


def over_owners(
    topology: Topology, blocks: Mapping[int, Iterable[str]], *, server_round: int, seed: int
) -> dict[str, nx.Graph]:
    """Return the graph of each block, of a topology that is drawn over the owners of each.

    Blocks with the same owners have one graph, on these owners alone.

    Parameters
    ----------
    topology : Topology
        One of these (:attr:`~.family.Topology.by_owners`).
    blocks : mapping of int to iterable of str
        Of each device that is there.
    server_round, seed : int
        See :meth:`.Topology.graph`.
    """
    owners, graphs = owners_by_block(blocks), dict[tuple[int, ...], nx.Graph]()
    for nodes in dict.fromkeys(owners.values()):
        drawn = topology.graph(len(nodes), server_round=server_round, seed=seed)
        graphs[nodes] = nx.relabel_nodes(drawn, dict(enumerate(nodes)))
    return {block: graphs[nodes] for block, nodes in owners.items()}


def neighbourhoods(
    graph: nx.Graph,
    blocks: Mapping[int, Collection[str]],
    links: Mapping[str, Sequence[FarLink]] | None = None,
    means: Mapping[str, Sequence[Hub]] | None = None,
    *,
    over: Mapping[str, nx.Graph] | None = None,
    weigh: Weigh = mixing_rows,
) -> dict[int, Neighbourhood]:
    """Return the neighbourhood of every live node.

    Each block is mixed over the subgraph of its live owners, by default with Metropolis-Hastings
    weights of that subgraph, of the links over couriers, and of their means: symmetric and doubly
    stochastic, so the mean over these owners is kept (of what was carried, as it was earlier).

    Parameters
    ----------
    graph : networkx.Graph
        The graph of the round over all nodes.
    blocks : mapping of int to collection of str
        The blocks of every *live* node; other nodes of the graph take no part.
    links : mapping of str to sequence of FarLink, optional
        By block, between owners that no path of owners joins.
    means : mapping of str to sequence of Hub, optional
        By block, who has sent the mean of whose: they have got it.
    over : mapping of str to networkx.Graph, optional
        Graphs of blocks that have one of their own; of it counts what is in ``graph``, too.
    weigh : callable
        The weights of the owners of a block, given their graph and the hubs around them: see
        :func:`~.weights.mixing_rows`.
    """
    links, means, over = links or {}, means or {}, over or {}
    known = dict[tuple[Any, ...], Rows]()
    weights: dict[str, Rows] = {}
    for name, nodes in owners_by_block(blocks).items():
        edges = tuple(link.ends for link in links.get(name, ()))
        hubs, own = tuple(means.get(name, ())), over.get(name)
        key = nodes, edges, hubs, id(own)
        if key not in known:
            whole = graph if own is None else with_links(own, graph.has_edge)
            if edges:
                whole = nx.Graph(graph.subgraph(nodes))
                whole.add_edges_from(edges)
            around = {mean_of(hub.courier): hub.owners for hub in hubs}
            known[key] = weigh(whole, nodes, around)
        weights[name] = known[key]
    brought = _brought(links, means)
    result: dict[int, Neighbourhood] = {}
    for node, owned in blocks.items():
        near = [j for j in heard_by(graph, node) if j in blocks]
        if not near:  # others may hear it all the same
            kept = {b: (weights[b][node][node],) for b in owned if weights[b][node][node] < 1}
            result[node] = Neighbourhood(weights=kept)
            continue
        far = brought.get(node, ())
        rows = {b: tuple(weights[b][node].get(j, 0.0) for j in (node, *near)) for b in owned}
        for b in rows if far else ():
            rows[b] += tuple(weights[b][node][f.origin] if b in f.blocks else 0.0 for f in far)
        result[node] = Neighbourhood(tuple(near), rows, far)
    return result


def _brought(
    links: Mapping[str, Sequence[FarLink]], means: Mapping[str, Sequence[Hub]]
) -> dict[int, tuple[Carried, ...]]:
    """Return what couriers have brought to each node."""
    names: dict[int, dict[tuple[int, int, int], list[str]]] = {}
    for name in links:
        for link in links[name]:
            for (me, origin), via in zip((link.ends, link.ends[::-1]), link.via, strict=True):
                got = names.setdefault(me, {})
                got.setdefault((origin, via, link.couriers), []).append(name)
    for name in means:
        for hub in means[name]:
            for me in hub.owners:
                got = names.setdefault(me, {})
                got.setdefault((mean_of(hub.courier), hub.courier, 1), []).append(name)
    return {
        me: tuple(Carried(a, via, tuple(of), n) for (a, via, n), of in sorted(got.items()))
        for me, got in names.items()
    }


def separate_groups(
    graph: nx.Graph, blocks: Mapping[int, Iterable[str]]
) -> dict[tuple[str, ...], int]:
    """Return the blocks whose owners are not all linked, with the number of their groups.

    Blocks with the same owners come together.
    """
    names: dict[tuple[int, ...], list[str]] = {}
    for block, owners in owners_by_block(blocks).items():
        names.setdefault(owners, []).append(block)
    groups = {tuple(b): len(components(graph, owners)) for owners, b in names.items()}
    return {found: count for found, count in groups.items() if count > 1}
