"""Links that go one way, epidemic graphs, their weights and how fast they mix."""

import networkx as nx
import numpy as np
import pytest

from flwr_dmml.graph.epidemic import Epidemic
from flwr_dmml.graph.spectral import effective_spectral_gap, graph_lines, groups_over_time
from flwr_dmml.graph.topology import (
    EdgeList,
    Exponential,
    OnePeerExponential,
    Ring,
    TopologyError,
    make_topology,
)
from flwr_dmml.graph.weights import (
    as_matrix,
    components,
    mixing_rows,
    receiver_rows,
    sender_rows,
)


def links(graph: nx.Graph) -> set[tuple[int, int]]:
    return set(graph.edges)


# ---- one way ------------------------------------------------------------------------------------


def test_circulants_one_way() -> None:
    assert links(Ring(directed=True).graph(3)) == {(0, 1), (1, 2), (2, 0)}
    assert set(Exponential(directed=True).graph(8)[6]) == {7, 0, 2}
    rounds = [OnePeerExponential(directed=True).graph(6, server_round=t) for t in (1, 2, 3, 4)]
    assert links(rounds[0]) == links(rounds[3]) == {(i, (i + 1) % 6) for i in range(6)}
    assert set(rounds[1][5]) == {1} and set(rounds[2][5]) == {3}


@pytest.mark.parametrize("name", ["ring", "exponential", "one-peer-exponential"])
@pytest.mark.parametrize("nodes", [1, 2, 7, 8])
def test_everybody_sends_to_as_many_as_it_hears_from(name: str, nodes: int) -> None:
    topology = make_topology(name, directed=True)
    graph = topology.graph(nodes, server_round=2)
    assert graph.is_directed() and list(graph) == list(range(nodes))
    assert len({d for _, d in graph.in_degree} | {d for _, d in graph.out_degree}) == 1
    assert topology.directed and topology.even and topology.by_owners


def test_which_topologies_can_go_one_way() -> None:
    with pytest.raises(TopologyError, match="torus: its links go both ways; allowed with directed"):
        make_topology("torus", directed=True)
    assert make_topology("erdos-renyi", directed=True).directed
    assert not make_topology("erdos-renyi", directed=True).even
    assert not make_topology("ring").directed and not make_topology("ring").by_owners


def test_a_file_of_links_one_way(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "links.txt"
    path.write_text("0 1\n1 2\n2 1\n")
    topology = EdgeList(str(path), directed=True)
    assert links(topology.graph(3)) == {(0, 1), (1, 2), (2, 1)}
    assert components(topology.graph(3)) == groups_over_time(topology, 3) == [[0], [1, 2]]
    assert graph_lines(topology, 3)[-1].endswith("2 groups that cannot reach one another both ways")


# ---- epidemic -----------------------------------------------------------------------------------


def test_epidemic_graphs_are_regular_and_new_in_every_round() -> None:
    topology = Epidemic(degree=3)
    graphs = [topology.graph(10, server_round=t, seed=1) for t in (1, 2)]
    assert all({d for _, d in graph.degree} == {3} for graph in graphs)
    assert links(graphs[0]) != links(graphs[1])
    assert links(graphs[0]) == links(topology.graph(10, server_round=1, seed=1))
    assert links(graphs[0]) != links(topology.graph(10, server_round=1, seed=2))
    weights = as_matrix(mixing_rows(graphs[0], graphs[0]), 10)
    assert set(np.unique(weights)) == {0, 0.25}


@pytest.mark.parametrize(("nodes", "degree"), [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (7, 4)])
def test_odd_numbers_have_one_neighbour_more_and_few_have_all(nodes: int, degree: int) -> None:
    graph = Epidemic(degree=3).graph(nodes)
    assert {d for _, d in graph.degree} == {degree}


def test_epidemic_one_way_draws_receivers() -> None:
    topology = Epidemic(degree=3, directed=True)
    graph = topology.graph(10, seed=4)
    assert {d for _, d in graph.out_degree} == {3} and len({d for _, d in graph.in_degree}) > 1
    assert {d for _, d in topology.graph(3).out_degree} == {2}
    assert topology.even and topology.by_owners


def test_a_degree_below_one_is_refused() -> None:
    with pytest.raises(TopologyError, match="epidemic: degree must be at least 1, not 0"):
        Epidemic(0).check(4)


# ---- weights ------------------------------------------------------------------------------------


def path() -> nx.DiGraph:
    """0 -> 1 -> 2 -> 1, and 0 -> 2."""
    return nx.DiGraph([(0, 1), (1, 2), (2, 1), (0, 2)])


def test_weights_of_receivers_and_senders_by_hand() -> None:
    graph, third = path(), 1 / 3
    assert receiver_rows(graph, graph) == {
        0: {0: 1.0},
        1: {1: third, 0: third, 2: third},
        2: {2: third, 0: third, 1: third},
    }
    # 0 deals out to 1, 2 and itself; 1 and 2 to each other and themselves.
    assert sender_rows(graph, graph) == {
        0: {0: third},
        1: {1: 0.5, 0: third, 2: 0.5},
        2: {2: 0.5, 0: third, 1: 0.5},
    }
    assert as_matrix(sender_rows(graph, graph), 3).sum(axis=0) == pytest.approx(np.ones(3))
    # Nothing leads back to 0: on a graph that lasts all would end up with the others.
    kept = sender_rows(graph, graph, lasting=True)
    assert kept == {0: {0: 1.0}, 1: {1: 0.5, 2: 0.5}, 2: {2: 0.5, 1: 0.5}}
    assert mixing_rows(graph, graph, push=True, lasting=True) == kept
    assert mixing_rows(graph, graph) == receiver_rows(graph, graph)


def test_members_only() -> None:
    assert sender_rows(path(), [0, 1]) == {0: {0: 0.5}, 1: {1: 1.0, 0: 0.5}}
    assert receiver_rows(path(), [1, 2]) == {1: {1: 0.5, 2: 0.5}, 2: {2: 0.5, 1: 0.5}}


def test_senders_deal_out_over_links_of_both_ways() -> None:
    """On a line of three the middle deals out thirds, the ends halves."""
    weights = as_matrix(sender_rows(nx.path_graph(3), range(3), lasting=True), 3)
    assert weights == pytest.approx(np.array([[3, 2, 0], [3, 2, 3], [0, 2, 3]]) / 6)


# ---- how fast -----------------------------------------------------------------------------------


def test_the_gap_of_a_ring_one_way() -> None:
    """Eigenvalues of (I + S) / 2 are (1 + exp(2 pi i k / n)) / 2: |second| = cos(pi / n)."""
    gap = effective_spectral_gap(Ring(directed=True), 6)
    assert gap == pytest.approx(1 - np.cos(np.pi / 6))


def test_the_gap_of_many_is_that_of_few_by_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    topology = make_topology("erdos-renyi", probability=0.2, directed=True)
    dense = effective_spectral_gap(topology, 40, seed=1)
    monkeypatch.setattr("flwr_dmml.graph.spectral.DENSE", 10)
    assert effective_spectral_gap(topology, 40, seed=1) == pytest.approx(dense, abs=1e-4)


def test_one_peer_one_way_averages_exactly() -> None:
    assert effective_spectral_gap(OnePeerExponential(directed=True), 8) > 0.999
    lines = graph_lines(OnePeerExponential(directed=True), 8)
    about = "OnePeerExponential, new every round, again after 3, links one way, 8 nodes, 8 links"
    assert lines == [
        f"Topology: {about}",
        "Spectral gap: 1.0000 a round, over 3 rounds",
        "Connectivity: every device reaches every other within 3 rounds",
    ]


def test_one_round_of_a_pair_graph_is_not_connected_but_a_period_is() -> None:
    assert groups_over_time(OnePeerExponential(), 6) == [list(range(6))]
    assert len(groups_over_time(make_topology("erdos-renyi", probability=0.0), 3)) == 3
