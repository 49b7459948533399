"""The base of topologies (:class:`Topology`): the communication graph of each round."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import networkx as nx

from ..base.seeding import derive_seed
from .weights import Edges, add_links


class TopologyError(ValueError):
    """A topology that cannot be built; the message says what is wrong and what is allowed."""


def require(holds: bool, message: str) -> None:
    """Raise :class:`TopologyError` unless something holds."""
    if not holds:
        raise TopologyError(message)


@dataclass(frozen=True)
class Topology(ABC):
    """A family of graphs: a frozen dataclass whose fields are its parameters.

    Links go both ways, unless a field ``directed`` is true.
    """

    name: ClassVar[str] = ""  # in the run config, of one that an app brings along
    time_varying: ClassVar[bool] = False  # False: the same graph in every round

    @property
    def directed(self) -> bool:
        """Whether links go one way."""
        return False

    @property
    def by_owners(self) -> bool:
        """Whether the graph is drawn over the owners of each block, of those that are there."""
        return False

    @property
    def even(self) -> bool:
        """Whether plain averages over it weigh all devices equally, in the long run."""
        return not self.directed

    def period(self, num_nodes: int) -> int:
        """Return after how many rounds the graphs repeat; 0: never."""
        return 0 if self.time_varying else 1

    def check(self, num_nodes: int) -> None:
        """Raise :class:`TopologyError` unless the parameters and ``num_nodes`` (>= 1) work."""
        self.graph(num_nodes)

    def graph(self, num_nodes: int, *, server_round: int = 1, seed: int = 0) -> nx.Graph:
        """Return the graph of a round: nodes ``0 .. num_nodes - 1`` in this order, no self loops.

        A ``networkx.DiGraph`` where links go one way, from the sender to the receiver. Mixing
        weights that come with the links are their ``weight``.

        Only time-varying topologies look at ``server_round`` (from 1), only random ones at the
        run's ``seed``. It may be disconnected. Raises :class:`TopologyError` as :meth:`check` does.
        """
        require(num_nodes >= 1, f"a topology needs at least 1 node, not {num_nodes}")
        t = server_round if self.time_varying else 1
        edges = self._edges(num_nodes, t, self._seed(seed, t))
        graph = nx.DiGraph() if self.directed else nx.Graph()
        graph.add_nodes_from(range(num_nodes))
        add_links(graph, (edge for edge in edges if edge[0] != edge[1]))
        return graph

    def _seed(self, seed: int, t: int) -> int:
        """Return the seed of round t's links, from the run's."""
        return derive_seed(seed, "topology", type(self).__name__, t)

    @abstractmethod
    def _edges(self, n: int, t: int, seed: int) -> Edges:
        """Return the links in round t, or refuse; repeats and self loops are dropped."""
