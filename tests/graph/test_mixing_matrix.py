"""Mixing matrices: hand-computed numbers and invariants."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_dmml.graph import spectral
from flwr_dmml.graph.spectral import effective_spectral_gap
from flwr_dmml.graph.topology import (
    Complete,
    ErdosRenyi,
    Line,
    OnePeerExponential,
    RandomRegular,
    Ring,
    Topology,
)
from flwr_dmml.graph.weights import components, metropolis_weights, spectral_gap


@st.composite
def graphs(draw: st.DrawFn) -> nx.Graph:
    n = draw(st.integers(1, 12))
    pairs = [(i, j) for j in range(n) for i in range(j)]
    graph = nx.empty_graph(n)
    graph.add_edges_from(draw(st.lists(st.sampled_from(pairs))) if pairs else [])
    return graph


@st.composite
def graphs_and_members(draw: st.DrawFn) -> tuple[nx.Graph, list[int]]:
    graph = draw(graphs())
    return graph, draw(st.lists(st.sampled_from(range(len(graph)))))


def test_metropolis_weights_of_a_line() -> None:
    """Degrees 1, 2, 1: both links weigh 1/(1 + 2); the ends keep 2/3, the middle 1/3."""
    expected = np.array([[2, 1, 0], [1, 1, 1], [0, 1, 2]]) / 3
    np.testing.assert_allclose(metropolis_weights(Line().graph(3)), expected, atol=1e-15)


def test_metropolis_weights_of_members_only() -> None:
    """On the line 0-1-2-3 without 3, and with 1 left out: 0 alone; 2 and 3 weigh 1/2 each."""
    without_3 = np.eye(4)
    without_3[:3, :3] = metropolis_weights(Line().graph(3))
    np.testing.assert_array_equal(metropolis_weights(Line().graph(4), [2, 0, 1]), without_3)
    without_1 = np.eye(4)
    without_1[2:, 2:] = 0.5
    np.testing.assert_array_equal(metropolis_weights(Line().graph(4), {0, 2, 3}), without_1)
    np.testing.assert_array_equal(metropolis_weights(Line().graph(4), iter([0, 2, 3])), without_1)
    np.testing.assert_array_equal(metropolis_weights(Line().graph(4), []), np.eye(4))


def test_complete_is_federated_averaging() -> None:
    np.testing.assert_allclose(metropolis_weights(Complete().graph(7)), 1 / 7, atol=1e-15)


def test_metropolis_weights_ignore_self_loops() -> None:
    looped = Line().graph(3)
    looped.add_edge(1, 1)
    np.testing.assert_array_equal(metropolis_weights(looped), metropolis_weights(Line().graph(3)))


@given(graphs_and_members())
def test_metropolis_weights_always(case: tuple[nx.Graph, list[int]]) -> None:
    graph, members = case
    n = len(graph)
    weights = metropolis_weights(graph, members)
    assert weights.shape == (n, n) and weights.dtype == np.float64
    assert (weights == weights.T).all()
    assert (weights >= 0).all() and (weights.diagonal() > 0).all()
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=0, atol=1e-12)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=1e-12)
    linked = nx.to_numpy_array(graph, nodelist=range(n)) > 0
    inside = np.isin(np.arange(n), members)
    off_diagonal = ~np.eye(n, dtype=bool)
    assert ((weights > 0) == (linked & np.outer(inside, inside)))[off_diagonal].all()
    assert (weights[~inside] == np.eye(n)[~inside]).all()
    block = np.random.default_rng(0).normal(size=(n, 3))
    mixed = weights @ block
    np.testing.assert_allclose(mixed[inside].sum(0), block[inside].sum(0), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(mixed[~inside], block[~inside])
    for component in components(graph, members):  # nothing flows between components
        np.testing.assert_allclose(mixed[component].sum(0), block[component].sum(0), atol=1e-12)


@given(graphs_and_members())
def test_components_partition_the_members(case: tuple[nx.Graph, list[int]]) -> None:
    graph, members = case
    parts = components(graph, members)
    assert sorted(node for part in parts for node in part) == sorted(set(members))
    assert parts == sorted(parts) and all(part == sorted(part) for part in parts)


def test_components_of_a_ring_that_lost_two_nodes() -> None:
    assert components(Ring().graph(6)) == [[0, 1, 2, 3, 4, 5]]
    assert components(Ring().graph(6), [5, 4, 0, 2]) == [[0, 4, 5], [2]]


def test_spectral_gap_by_hand() -> None:
    """Line of 3: eigenvalues 1, 2/3, 0. Ring of n: 1/3 + 2/3 cos(2 pi k / n).

    Ring of 4: 1, 1/3, -1/3, 1/3. Ring of 6: the second largest is 1/3 + 2/3 * 1/2 = 2/3.
    """
    assert spectral_gap(metropolis_weights(Line().graph(3))) == pytest.approx(1 / 3)
    assert spectral_gap(metropolis_weights(Ring().graph(4))) == pytest.approx(2 / 3)
    assert spectral_gap(metropolis_weights(Ring().graph(6))) == pytest.approx(1 / 3)


def test_spectral_gap_at_its_ends() -> None:
    assert spectral_gap(np.eye(1)) == 1
    assert spectral_gap(metropolis_weights(Complete().graph(9))) == pytest.approx(1)
    assert spectral_gap(metropolis_weights(Line().graph(4), [0, 1, 2])) == pytest.approx(0)
    assert spectral_gap(np.array([[0.0, 1.0], [1.0, 0.0]])) == 0  # eigenvalue -1 counts


@given(graphs())
def test_spectral_gap_agrees_with_eigenvalues(graph: nx.Graph) -> None:
    weights = metropolis_weights(graph)
    gap = spectral_gap(weights)
    magnitudes = np.sort(np.abs(np.linalg.eigvalsh(weights)))
    assert gap == pytest.approx(1 - magnitudes[-2] if len(graph) > 1 else 1, abs=1e-12)
    assert 0 <= gap <= 1
    assert (gap > 1e-9) == nx.is_connected(graph)


@pytest.mark.parametrize(
    "topology", [Ring(), RandomRegular(4), ErdosRenyi(0.3), OnePeerExponential()]
)
def test_the_gap_of_many_devices_is_found_without_a_matrix_of_all_pairs(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = effective_spectral_gap(topology, 64, seed=3)
    monkeypatch.setattr(spectral, "DENSE", 10)
    assert effective_spectral_gap(topology, 64, seed=3) == pytest.approx(dense, abs=1e-5)
