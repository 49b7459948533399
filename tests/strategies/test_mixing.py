"""Who mixes with whom."""

from collections.abc import Collection

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_dmml.graph.topology import Epidemic, OnePeerExponential, Topology
from flwr_dmml.graph.weights import mixing_rows
from flwr_dmml.strategies.mixing import (
    Hubs,
    neighbourhoods,
    over_owners,
    owners_by_block,
    separate_groups,
)

A, V, C = "encoder.audio", "encoder.image", "head.common"


def test_owners_are_found_by_block():
    assert owners_by_block({2: [A, C], 0: [C]}) == {C: (0, 2), A: (2,)}


def test_line_of_three_with_one_deaf_node_by_hand():
    """Line 0-1-2; audio at 0 and 1, image at 1 and 2, common everywhere.

    Common: degrees 1, 2, 1, so w_01 = w_12 = 1/3 and w_00 = 2/3, w_11 = 1/3. Audio lives on the
    link 0-1 alone: degrees 1, 1, weights 1/2. Image the same on 1-2.
    """
    around = neighbourhoods(nx.path_graph(3), {0: [A, C], 1: [A, V, C], 2: [V, C]})
    assert around[0].neighbours == (1,)
    assert around[0].weights[C] == pytest.approx((2 / 3, 1 / 3))
    assert around[0].weights[A] == pytest.approx((1 / 2, 1 / 2))
    assert around[1].neighbours == (0, 2)
    assert around[1].weights[C] == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert around[1].weights[A] == pytest.approx((1 / 2, 1 / 2, 0))
    assert around[1].weights[V] == pytest.approx((1 / 2, 0, 1 / 2))


def test_a_dead_node_leaves_its_neighbours_to_one_another():
    """Ring of three without node 2: only the link 0-1 is left, weights 1/2."""
    around = neighbourhoods(nx.cycle_graph(3), {0: [C], 1: [C]})
    assert set(around) == {0, 1}
    assert around[0].neighbours == (1,) and around[0].weights[C] == pytest.approx((0.5, 0.5))


def test_a_neighbour_that_shares_no_block_is_one_for_statistics():
    around = neighbourhoods(nx.path_graph(3), {0: [A], 1: [V]})  # 2 is not live
    assert around[0].neighbours == (1,) and dict(around[0].weights) == {A: (1.0, 0.0)}
    assert around[1].neighbours == (0,) and dict(around[1].weights) == {V: (1.0, 0.0)}


def test_separate_groups_are_counted_once_for_blocks_with_the_same_owners():
    graph = nx.Graph([(0, 1), (2, 3)])
    blocks = {k: [A, C] if k in (0, 1) else [C, "generator"] for k in range(4)}
    assert separate_groups(graph, blocks) == {(C,): 2}
    everywhere = {k: [A, C] for k in range(4)}
    assert separate_groups(graph, everywhere) == {(A, C): 2}


@given(
    st.integers(2, 9),
    st.integers(0, 10_000),
    st.data(),
)
def test_every_block_is_mixed_by_a_symmetric_doubly_stochastic_matrix(n, seed, data):
    graph = nx.gnp_random_graph(n, 0.5, seed=seed)
    live = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
    blocks = {k: data.draw(st.sets(st.sampled_from([A, V, C]), min_size=1)) for k in live}
    around = neighbourhoods(graph, blocks)
    for block in (A, V, C):
        owners = [k for k in sorted(live) if block in blocks[k]]
        matrix = np.zeros((n, n))
        for k in owners:
            row = around[k].weights.get(block, (1.0,))
            matrix[k, [k, *around[k].neighbours]] = row
        part = matrix[np.ix_(owners, owners)]
        assert np.allclose(part, part.T, atol=1e-12)
        assert np.allclose(part.sum(axis=1), 1.0, atol=1e-12)
        assert np.isclose(matrix.sum(), part.sum()), "no weight on a node that is no live owner"


@pytest.mark.parametrize(
    ("topology", "gone"),
    [(Epidemic(1, directed=True), set()), (OnePeerExponential(directed=True), {3})],
    ids=["epidemic", "one-peer"],
)
@pytest.mark.parametrize("seed", range(5))
def test_what_senders_deal_out_sums_to_1_even_of_one_that_hears_nobody(
    topology: Topology, gone: Collection[int], seed: int
) -> None:
    def pushed(graph: nx.Graph, nodes: Collection[int], hubs: Hubs):
        return mixing_rows(graph, nodes, hubs, push=True)

    deaf = 0
    for t in range(1, 11):
        over = over_owners(topology, {k: [C] for k in range(8)}, server_round=t, seed=seed)
        live = {k: [C] for k in range(8) if k not in gone}
        around = neighbourhoods(over[C], live, over=over, weigh=pushed)
        matrix = np.zeros((8, 8))
        for k, near in around.items():
            matrix[k, [k, *near.neighbours]] = near.weights.get(C, (1.0,))
            deaf += not near.neighbours and bool(near.weights)
        assert matrix.sum(axis=0)[list(live)] == pytest.approx(1.0, abs=1e-12)
    assert deaf
