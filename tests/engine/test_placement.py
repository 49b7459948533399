"""Which worker hosts which node."""

import random

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_dmml.engine.placement import links_between, place


def test_a_ring_is_cut_into_arcs():
    """Arcs of a ring are joined by as many links as there are arcs, and none can do with fewer."""
    for workers in (2, 3, 8):
        homes = place(nx.cycle_graph(64), [1.0] * 64, workers)
        assert links_between(nx.cycle_graph(64), homes) == workers
        assert max(map(homes.count, range(workers))) - min(map(homes.count, range(workers))) <= 1


def test_two_villages_with_scattered_numbers_are_told_apart():
    """Two cliques joined by one link; members have odd and even numbers."""
    graph = nx.disjoint_union(nx.complete_graph(6), nx.complete_graph(6))
    graph.add_edge(0, 6)
    graph = nx.relabel_nodes(graph, {n: 2 * n if n < 6 else 2 * (n - 6) + 1 for n in graph})
    homes = place(graph, [1.0] * 12, 2)
    assert links_between(graph, homes) == 1
    assert {homes[n] for n in range(0, 12, 2)} != {homes[n] for n in range(1, 12, 2)}


def test_few_links_of_a_random_graph_are_cut():
    """Of 256 links about half would be cut by chance: 128."""
    graph = nx.random_regular_graph(8, 64, seed=0)
    assert links_between(graph, place(graph, [1.0] * 64, 2)) < 90


def test_a_large_random_graph_is_cut_as_well_and_a_large_torus_along_its_short_side():
    """Half of 16,000 links would be cut by chance. A torus of 80 x 20, its nodes in any order, has
    40 links around its two cuts."""
    graph = nx.random_regular_graph(8, 4000, seed=0)
    assert links_between(graph, place(graph, [1.0] * 4000, 2)) < 4800
    torus = nx.convert_node_labels_to_integers(nx.grid_2d_graph(80, 20, periodic=True))
    order = list(range(len(torus)))
    random.Random(0).shuffle(order)
    torus = nx.relabel_nodes(torus, dict(enumerate(order)))
    assert links_between(torus, place(torus, [1.0] * len(torus), 2)) <= 48


def test_expensive_nodes_are_spread():
    """Two nodes of cost 3 and six of 1: both workers get 6."""
    costs = [3.0, 3.0, 1, 1, 1, 1, 1, 1]
    homes = place(nx.cycle_graph(8), costs, 2)
    loads = [sum(c for c, home in zip(costs, homes, strict=True) if home == w) for w in (0, 1)]
    assert loads == [6, 6]


@given(
    nodes=st.integers(1, 24),
    workers=st.integers(1, 6),
    links=st.floats(0, 1),
    costs=st.lists(st.floats(0.1, 5), min_size=24, max_size=24),
)
def test_everybody_has_a_place_and_no_worker_gets_too_much(nodes, workers, links, costs):
    """No more than its share of the work, a share more, and the largest node."""
    graph, costs = nx.gnp_random_graph(nodes, links, seed=1), costs[:nodes]
    homes = place(graph, costs, workers)
    assert len(homes) == nodes and set(homes) <= set(range(workers))
    if nodes >= workers:
        assert set(homes) == set(range(workers))
    loads = [sum(c for c, home in zip(costs, homes, strict=True) if home == w) for w in set(homes)]
    assert max(loads) <= 2 * sum(costs) / workers + 2 * max(costs)


def test_a_worker_keeps_its_last_node():
    """0.1 + 0.2 - 0.1 - 0.2 is not 0: nodes are counted, not their costs."""
    costs = [1, 0.5, 1, 1, 0.6991507190168188, 1, 1, 5]
    assert set(place(nx.complete_graph(8), costs, 5)) == {0, 1, 2, 3, 4}


def test_no_worker_is_refused():
    with pytest.raises(ValueError, match="workers = 0: must be at least 1"):
        place(nx.cycle_graph(3), [1.0] * 3, 0)
