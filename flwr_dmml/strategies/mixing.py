"""Mixing neighbourhoods: neighbours and weights of every block a node owns."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import networkx as nx

from ..graph.topology import components
from ..graph.weights import metropolis_rows


@dataclass(frozen=True)
class Neighbourhood:
    """A node's neighbours in one round, and the weights of every block it owns.

    ``weights[block]`` holds the node's own weight, then one for each of ``neighbours`` (0 where the
    neighbour does not own the block); they sum to 1. Both are empty for a node without live
    neighbours. One that shares no block is a neighbour all the same: statistics reach it.
    """

    neighbours: tuple[int, ...] = ()
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def owners_by_block(blocks: Mapping[int, Iterable[str]]) -> dict[str, tuple[int, ...]]:
    """Return the sorted owners of every block, given each node's blocks."""
    owners: dict[str, list[int]] = {}
    for node in sorted(blocks):
        for name in blocks[node]:
            owners.setdefault(name, []).append(node)
    return {name: tuple(nodes) for name, nodes in owners.items()}


def neighbourhoods(
    graph: nx.Graph, blocks: Mapping[int, Collection[str]]
) -> dict[int, Neighbourhood]:
    """Return the neighbourhood of every live node.

    Each block is mixed over the subgraph of its live owners with Metropolis-Hastings weights of
    that subgraph: symmetric and doubly stochastic, so the mean over these owners is kept.

    Parameters
    ----------
    graph : networkx.Graph
        The graph of the round over all nodes.
    blocks : mapping of int to collection of str
        The blocks of every *live* node; other nodes of the graph take no part.
    """
    owners = owners_by_block(blocks)
    by_owners = {nodes: metropolis_rows(graph, nodes) for nodes in owners.values()}
    weights = {name: by_owners[nodes] for name, nodes in owners.items()}
    result: dict[int, Neighbourhood] = {}
    for node, owned in blocks.items():
        near = [j for j in sorted(graph[node]) if j in blocks]
        if near:
            rows = {b: tuple(weights[b][node].get(j, 0.0) for j in (node, *near)) for b in owned}
            result[node] = Neighbourhood(tuple(near), rows)
        else:
            result[node] = Neighbourhood()
    return result


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
