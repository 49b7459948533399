"""Budget of a round, decided before it begins: links, joules, iterations."""

from collections.abc import Collection
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from ...energy.ledger import Floats
from ...graph.weights import with_links

Updates = dict[str, int]
"""Encoder updates by modality."""


def among(graph: nx.Graph, live: Collection[int]) -> nx.Graph:
    """Return all nodes of ``graph``, with only the links between those that are live."""
    if len(live) == len(graph):
        return graph
    members = set(live)
    return with_links(graph, lambda i, j: i in members and j in members)


@dataclass(frozen=True, eq=False)
class Sending:
    """The links that work in a round, and what one broadcast of each device costs, ``[node]``."""

    graph: nx.Graph
    energy_j: Floats
    time_s: Floats


@dataclass(frozen=True, eq=False)
class Prospect:
    """What a round looks like before it is planned, if nobody carries anything for others.

    Attributes
    ----------
    graph : networkx.Graph
        All devices, and the links that work between those that can pay for sending.
    price : FloatArray, shape ``[node]``
        Of a byte more in a device's payload: the share of its battery, or 1 where sending is free.
    spare_bytes : dict of int to float
        What a device can pay for at most; without an entry, there is no limit.
    """

    graph: nx.Graph
    price: Floats
    spare_bytes: dict[int, float]


@dataclass(frozen=True, eq=False)
class Decision:
    """Decision on a round's links, iterations ``[node, modality]`` and limits."""

    sending: Sending
    flat: dict[int, str]
    tau: NDArray[np.int64]
    budget_j: Floats
    notes: list[str]


@dataclass(frozen=True, eq=False)
class RoundBudget:
    """Limits and bill of a round, as :meth:`EnergyConstrained.plan` decides.

    Attributes
    ----------
    graph : networkx.Graph
        All devices, and the links that work between those that take part.
    updates : dict of int to dict of str to int
        ``tau[k, m]`` of every device that takes part; all 0 for one that is parked.
    flat : dict of int to str
        Who stays out because its battery cannot pay for sending, and why.
    budget_j : FloatArray, shape ``[node]``
        The most that the computing of this round may cost.
    compute_j, radio_j, seconds : FloatArray, shape ``[node]``
        What the round is billed, and how long it takes each device to compute and send.
    battery_j : FloatArray or None, shape ``[node]``
        What is left after it; None on mains power.
    sent_bits : FloatArray, shape ``[node]``
        What each device puts on the air: its payload once, to all neighbours.
    notes : list of str
        What the allocation has to say: of a solver that failed, say.
    """

    graph: nx.Graph
    updates: dict[int, Updates]
    flat: dict[int, str]
    budget_j: Floats
    compute_j: Floats
    radio_j: Floats
    seconds: Floats
    battery_j: Floats | None
    sent_bits: Floats
    notes: list[str]
