"""Layout of a run for an engine that places devices: who exchanges with whom, and the work."""

from collections.abc import Sequence

import networkx as nx

from ..methods.stages import fleet
from ..settings import Settings


def layout(settings: Settings) -> tuple[nx.Graph, Sequence[float]]:
    """Return the graph of the first round on partition ids, and each device's work ``[node]``.

    The work is the number of its modalities: all devices train the same number of iterations.
    """
    drawn = settings.make_topology().graph(settings.num_nodes, server_round=1, seed=settings.seed)
    graph = nx.empty_graph(settings.num_nodes)
    graph.add_edges_from(drawn.edges)  # whichever way they go
    return graph, [float(len(modalities)) for modalities in fleet(settings)]
