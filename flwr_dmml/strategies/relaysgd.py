"""The round plan of RelaySGD: plain gossip's, on a tree."""

from typing import ClassVar

import networkx as nx

from ..graph.topology import Topology, TopologyError
from .peer import PeerStrategy


class RelaySGDStrategy(PeerStrategy):
    """Neighbour-wise rounds on a graph without cycles, the same in every round.

    On a cycle a device's model would come back to it, and be counted again and again.
    """

    addressed: ClassVar[bool] = True

    @classmethod
    def check(cls, topology: Topology, num_nodes: int, seed: int) -> None:
        """Raise TopologyError unless the graph is a tree, or several, and stays what it is."""
        super().check(topology, num_nodes, seed)
        if topology.time_varying:
            problem = "changes every round"
        elif not nx.is_forest(topology.graph(num_nodes, seed=seed)):
            problem = "has a cycle"
        else:
            return
        raise TopologyError(
            f"this graph {problem}, and models are relayed along a tree; allowed: line, star, or "
            "an edge-list without cycles"
        )
