"""The Base-(k+1) graph: exact averages after a few rounds, whatever the number of devices."""

from math import log

import numpy as np
import pytest
from numpy.typing import NDArray

from flwr_dmml.graph.base_graph import BaseGraph, base_rounds
from flwr_dmml.graph.spectral import effective_spectral_gap
from flwr_dmml.graph.topology import TopologyError, make_topology
from flwr_dmml.graph.weights import as_matrix, mixing_rows


def matrix(num_nodes: int, degree: int, t: int) -> NDArray[np.float64]:
    graph = BaseGraph(degree).graph(num_nodes, server_round=t)
    assert max((d for _, d in graph.degree), default=0) <= degree
    return as_matrix(mixing_rows(graph, graph), num_nodes)


def test_five_nodes_by_hand() -> None:
    """5 = 4 + 1. The four average in two rounds, m; node 0 then is 0.2 m + 0.8 x_4, and node 4 is
    0.8 m + 0.2 x_4, the mean. Two more rounds bring (3 m + 0.2 m + 0.8 x_4) / 4 = 0.8 m + 0.2 x_4
    to the four."""
    four = [{(0, 1): 0.5, (2, 3): 0.5}, {(0, 2): 0.5, (1, 3): 0.5}]
    assert list(base_rounds(5, 1)) == [*four, {(4, 0): 0.8}, *four]


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_a_period_of_rounds_averages_exactly(degree: int) -> None:
    for n in range(1, 33):
        period, product = BaseGraph(degree).period(n), np.eye(n)
        assert period <= max(1, 2 * log(n) / log(degree + 1) + 2)
        for t in range(1, 1 + period):
            weights = matrix(n, degree, t)
            assert weights.min() >= 0 and np.array_equal(weights, weights.T)
            assert weights.sum(axis=1) == pytest.approx(np.ones(n))
            product = weights @ product
        assert np.abs(product - 1 / n).max() < 1e-12, n
        assert np.array_equal(matrix(n, degree, 1 + period), matrix(n, degree, 1))


def test_its_gap_is_one_where_that_of_a_ring_is_small() -> None:
    base, ring = make_topology("base", degree=1), make_topology("ring")
    assert effective_spectral_gap(base, 12) == pytest.approx(1, abs=1e-2)  # rounding ^ (1 / period)
    assert effective_spectral_gap(ring, 12) < 0.1


def test_a_node_that_is_gone_leaves_weights_symmetric() -> None:
    graph = BaseGraph(2).graph(7, server_round=3)
    weights = as_matrix(mixing_rows(graph, set(range(7)) - {0}), 7)
    assert np.array_equal(weights, weights.T) and weights[0, 0] == 1
    assert weights.sum(axis=1) == pytest.approx(np.ones(7)) and weights.min() >= 0


def test_a_degree_below_one_is_refused() -> None:
    with pytest.raises(TopologyError, match="base: degree must be at least 1, not 0"):
        BaseGraph(0).check(4)
