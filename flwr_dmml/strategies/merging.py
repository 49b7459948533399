"""The final merge: after the last round all owners of a block average it, by rounds of gossip."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, repeat

import networkx as nx

from ..graph.couriers import find_routes
from ..graph.spectral import rounds_to_agree
from ..graph.weights import Rows, components
from .mixing import Weigh, owners_by_block


@dataclass(frozen=True)
class FinalMerge:
    """What is asked of a final merge.

    Attributes
    ----------
    tolerance : float
        How much of the models' spread may be left, in (0, 1).
    most : int
        Rounds that it may take, at least 1.
    """

    tolerance: float
    most: int

    def rounds(
        self,
        graphs: Callable[[int, str], nx.Graph],
        blocks: Mapping[int, Collection[str]],
        weigh: Weigh,
        *,
        lasting: bool,
        couriers: bool,
    ) -> tuple[int, float]:
        """Return how many rounds it takes, if nothing is lost, and how much they leave.

        Parameters
        ----------
        graphs : callable
            The graph of a block in the n-th round of the merge, from 1.
        blocks : mapping of int to collection of str
            Of every device.
        weigh : callable
            The weights of a graph among owners.
        lasting : bool
            Whether the graphs stay as they are.
        couriers : bool
            Whether blocks are carried between owners that are not linked: what comes a round late
            counts as a link of two rounds.
        """
        count, left = 0, 0.0
        names: dict[tuple[int, ...], str] = {}
        for block, owners in owners_by_block(blocks).items():
            names.setdefault(owners, block)
        for owners, block in names.items():
            graph, late = graphs(1, block), 1
            if couriers and lasting:
                others = dict.fromkeys(set(graph) - set(owners), 1.0)
                if routes := find_routes(graph, owners, others):
                    graph, late = nx.Graph(graph), 2
                    graph.add_edges_from(route.ends for route in routes)
            groups = components(graph, owners) if lasting else [list(owners)]
            more, rest = rounds_to_agree(
                self._every(graphs, block, graph, owners, weigh, lasting=lasting),
                groups,
                self.tolerance,
            )
            count, left = max(count, min(late * more, self.most)), max(left, rest)
        return count, left

    def _every(
        self,
        graphs: Callable[[int, str], nx.Graph],
        block: str,
        first: nx.Graph,
        owners: tuple[int, ...],
        weigh: Weigh,
        *,
        lasting: bool,
    ) -> Iterator[Rows]:
        """Yield the weights of each round that it may take."""
        begins = weigh(first, owners, {})
        if lasting:
            return repeat(begins, self.most)
        others = (weigh(graphs(n, block), owners, {}) for n in range(2, self.most + 1))
        return chain([begins], others)
