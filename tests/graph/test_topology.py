"""Graphs: hand-computed numbers, invariants, and what is refused."""

import subprocess
import sys
from dataclasses import FrozenInstanceError
from importlib.metadata import EntryPoint
from math import isqrt
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_dmml.graph import topology as topologies
from flwr_dmml.graph.positions import uniform_positions
from flwr_dmml.graph.spectral import effective_spectral_gap
from flwr_dmml.graph.topology import (
    TOPOLOGIES,
    Complete,
    Dyck,
    EdgeList,
    ErdosRenyi,
    Exponential,
    FlorentineFamilies,
    Geometric,
    Line,
    OnePeerExponential,
    RandomMatching,
    RandomRegular,
    Ring,
    Star,
    Topology,
    TopologyError,
    Torus,
    WattsStrogatz,
    components,
    make_topology,
    metropolis_weights,
    spectral_gap,
)

RANDOM_STATIC = [RandomRegular(), ErdosRenyi(), WattsStrogatz(), Geometric()]


def edges(graph: nx.Graph) -> set[tuple[int, int]]:
    return {(min(edge), max(edge)) for edge in graph.edges}


# Graphs


def test_ring_line_star_complete() -> None:
    assert edges(Ring().graph(4)) == {(0, 1), (1, 2), (2, 3), (0, 3)}
    assert edges(Ring().graph(2)) == {(0, 1)}
    assert edges(Line().graph(4)) == {(0, 1), (1, 2), (2, 3)}
    assert edges(Star().graph(4)) == {(0, 1), (0, 2), (0, 3)}
    assert edges(Complete().graph(3)) == {(0, 1), (0, 2), (1, 2)}


def test_torus_2_x_3() -> None:
    """Rows 0 1 2 and 3 4 5: two triangles, and one link, not two, in each column."""
    triangles = {(0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5)}
    assert edges(Torus().graph(6)) == triangles | {(0, 3), (1, 4), (2, 5)}


@pytest.mark.parametrize("num_nodes, rows", [(4, 2), (9, 3), (12, 3), (14, 2), (16, 4), (30, 5)])
def test_torus_is_the_squarest_grid(num_nodes: int, rows: int) -> None:
    expected = nx.grid_2d_graph(rows, num_nodes // rows, periodic=True)
    assert nx.is_isomorphic(Torus().graph(num_nodes), expected)


@pytest.mark.parametrize("num_nodes, near", [(1, "4"), (2, "4"), (3, "4"), (13, "12 and 14")])
def test_torus_names_the_nearest_numbers_that_work(num_nodes: int, near: str) -> None:
    with pytest.raises(TopologyError, match=f"has {num_nodes} nodes; nearest allowed: {near}$"):
        Torus().check(num_nodes)


@given(st.integers(1, 300))
def test_torus_refuses_primes_only(num_nodes: int) -> None:
    prime = all(num_nodes % k for k in range(2, isqrt(num_nodes) + 1))
    if prime:  # 1 included
        with pytest.raises(TopologyError) as error:
            Torus().check(num_nodes)
        for near in str(error.value).rpartition(": ")[2].split(" and "):
            Torus().check(int(near))
    else:
        assert nx.is_connected(Torus().graph(num_nodes))


def test_exponential() -> None:
    """With n = 7 the hops 1, 2, 4 are 1, 2, 3 on the other way round: everybody is a neighbour.

    With n = 8 only the hops 3 and 5 are missing: node 0 is not linked to 3 and 5.
    """
    assert edges(Exponential().graph(7)) == edges(Complete().graph(7))
    assert set(Exponential().graph(8)[0]) == {1, 2, 4, 6, 7}


def test_dyck() -> None:
    graph = Dyck().graph(32)
    assert len(graph) == 32 and graph.number_of_edges() == 48
    assert {degree for _, degree in graph.degree} == {3}
    assert nx.is_connected(graph) and nx.is_bipartite(graph)
    assert nx.diameter(graph) == 5  # the published value


def test_florentine_families() -> None:
    """Sorted: Acciaiuoli 0, ..., Medici 8, Pazzi 9, ..., Salviati 12. Medici has the most links."""
    graph = FlorentineFamilies().graph(15)
    assert list(graph) == list(range(15)) and graph.number_of_edges() == 20
    assert max(graph, key=graph.degree) == 8 and graph.degree[8] == 6
    assert set(graph[9]) == {12} and set(graph[0]) == {8}


@pytest.mark.parametrize(
    "num_nodes, degree", [(2, 1), (5, 2), (10, 3), (10, 9), (20, 17), (64, 62)]
)
def test_random_regular_is_regular(num_nodes: int, degree: int) -> None:
    graph = RandomRegular(degree).graph(num_nodes, seed=3)
    assert {d for _, d in graph.degree} == {degree}


def test_extreme_probabilities() -> None:
    assert edges(ErdosRenyi(0.0).graph(6)) == set()
    assert edges(ErdosRenyi(1.0).graph(6)) == edges(Complete().graph(6))
    assert edges(WattsStrogatz(2, 0.0).graph(6)) == edges(Ring().graph(6))
    assert WattsStrogatz(4, 1.0).graph(9).number_of_edges() == 18


@given(st.integers(1, 20), st.integers(0, 99), st.floats(1, 150))
def test_geometric_links_the_radio_positions_within_range(
    num_nodes: int, seed: int, range_m: float
) -> None:
    """The run's seed places the nodes just where the wireless model has them."""
    graph = Geometric(side_m=100.0, range_m=range_m).graph(num_nodes, seed=seed)
    at = uniform_positions(num_nodes, 100.0, seed)
    near = {
        (i, j) for j in range(num_nodes) for i in range(j) if np.hypot(*(at[i] - at[j])) <= range_m
    }
    assert edges(graph) == near


def test_geometric_ranges() -> None:
    assert edges(Geometric(10.0, 1e-9).graph(9)) == set()
    assert edges(Geometric(10.0, 14.15).graph(9)) == edges(Complete().graph(9))  # the diagonal


@pytest.mark.parametrize("topology", RANDOM_STATIC, ids=repr)
def test_static_random_graphs_depend_on_the_seed_only(topology: Topology) -> None:
    first = edges(topology.graph(20, seed=1))
    assert first == edges(topology.graph(20, seed=1, server_round=7))
    assert first != edges(topology.graph(20, seed=2))


def test_random_graphs_leave_global_generators_alone_and_agree_between_processes() -> None:
    state = np.random.get_state()[1].tolist()  # type: ignore[index]
    here = [sorted(edges(t.graph(12, seed=5))) for t in [*RANDOM_STATIC, RandomMatching()]]
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]
    code = (
        "from flwr_dmml.graph.topology import *\n"
        "for t in RandomRegular(), ErdosRenyi(), WattsStrogatz(), Geometric(), RandomMatching():\n"
        "    print(sorted(tuple(sorted(e)) for e in t.graph(12, seed=5).edges))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.splitlines() == [str(links) for links in here]


def test_random_matching_depends_on_seed_and_round() -> None:
    matchings = [
        edges(RandomMatching().graph(20, server_round=t, seed=s)) for s in (0, 1) for t in (1, 2)
    ]
    assert all(a != b for i, a in enumerate(matchings) for b in matchings[:i])
    assert matchings[1] == edges(RandomMatching().graph(20, server_round=2, seed=0))


@given(st.integers(1, 40), st.integers(1, 100), st.integers(0, 2**31))
def test_random_matching_pairs_all_but_one(num_nodes: int, server_round: int, seed: int) -> None:
    graph = RandomMatching().graph(num_nodes, server_round=server_round, seed=seed)
    assert all(degree <= 1 for _, degree in graph.degree)
    assert graph.number_of_edges() == num_nodes // 2


def test_one_peer_exponential_on_six_nodes() -> None:
    """Period ceil(log2 6) = 3. Hop 4 pairs 0-4 and 1-5; 2 and 3 have no partner."""
    rounds = [edges(OnePeerExponential().graph(6, server_round=t)) for t in (1, 2, 3, 4)]
    assert rounds[0] == rounds[3] == {(0, 1), (2, 3), (4, 5)}
    assert rounds[1] == {(0, 2), (1, 3)}
    assert rounds[2] == {(0, 4), (1, 5)}


@given(st.integers(1, 40))
def test_one_peer_exponential_connects_every_number_of_nodes(num_nodes: int) -> None:
    topology = OnePeerExponential()
    union = nx.empty_graph(num_nodes)
    for t in range(1, topology.period(num_nodes) + 1):
        graph = topology.graph(num_nodes, server_round=t)
        assert all(degree <= 1 for _, degree in graph.degree)
        union.add_edges_from(graph.edges)
    assert nx.is_connected(union)


@pytest.mark.parametrize("num_nodes", [2, 8, 32])
@pytest.mark.parametrize("start", [1, 2])
def test_one_peer_exponential_reaches_the_exact_average(num_nodes: int, start: int) -> None:
    """All numbers are dyadic, so even floating point is exact; any log2(n) rounds in a row do."""
    product = np.eye(num_nodes)
    for t in range(start, start + num_nodes.bit_length() - 1):
        product = (
            metropolis_weights(OnePeerExponential().graph(num_nodes, server_round=t)) @ product
        )
    assert (product == 1 / num_nodes).all()


ONE_NODE = [
    "ring",
    "line",
    "star",
    "complete",
    "exponential",
    "one-peer-exponential",
    "random-matching",
    "erdos-renyi",
    "geometric",
    "base",
    "epidemic",
]


@pytest.mark.parametrize("name", ONE_NODE)
def test_one_node(name: str) -> None:
    topology = make_topology(name)
    graph = topology.graph(1)
    assert list(graph) == [0] and graph.number_of_edges() == 0
    assert metropolis_weights(graph) == [[1.0]]
    assert effective_spectral_gap(topology, 1) == 1.0


@given(
    st.sampled_from(sorted(TOPOLOGIES)), st.integers(1, 33), st.integers(1, 9), st.integers(0, 9)
)
def test_every_graph_is_simple_and_in_order_or_refused(
    name: str, num_nodes: int, server_round: int, seed: int
) -> None:
    topology = make_topology(name)
    try:
        topology.check(num_nodes)
    except TopologyError as error:
        assert str(error).startswith(name)
        with pytest.raises(TopologyError):
            topology.graph(num_nodes, server_round=server_round, seed=seed)
        return
    graph = topology.graph(num_nodes, server_round=server_round, seed=seed)
    assert list(graph) == list(range(num_nodes))
    assert not graph.is_directed() and not graph.is_multigraph()
    assert nx.number_of_selfloops(graph) == 0


@pytest.mark.parametrize(
    "topology, num_nodes, words",
    [
        (Ring(), 0, "at least 1 node, not 0"),
        (Ring(), -3, "at least 1 node, not -3"),
        (RandomRegular(3), 5, "degree 3 is impossible with 5 nodes.*degree x nodes even"),
        (RandomRegular(4), 4, "less than the number of nodes"),
        (RandomRegular(0), 4, "at least 1"),
        (RandomRegular(4), 1, "less than the number of nodes"),
        (WattsStrogatz(3), 9, "degree 3 is impossible with 9 nodes; it must be even"),
        (WattsStrogatz(4), 4, "less than the number of nodes"),
        (WattsStrogatz(0), 4, "at least 2"),
        (WattsStrogatz(4, -0.1), 9, "probability must be from 0 to 1, not -0.1"),
        (ErdosRenyi(1.5), 9, "probability must be from 0 to 1, not 1.5"),
        (ErdosRenyi(float("nan")), 9, "probability must be from 0 to 1, not nan"),
        (Geometric(side_m=0.0), 9, "geometric: side_m must be a number above 0, not 0.0"),
        (Geometric(range_m=float("inf")), 9, "geometric: range_m must be .* above 0, not inf"),
        (Geometric(range_m=float("nan")), 9, "geometric: range_m must be .* above 0, not nan"),
        (Dyck(), 31, "exactly 32 nodes, not 31"),
        (FlorentineFamilies(), 16, "exactly 15 nodes, not 16"),
    ],
)
def test_refusals(topology: Topology, num_nodes: int, words: str) -> None:
    assert issubclass(TopologyError, ValueError)
    for refusing in (topology.check, topology.graph):
        with pytest.raises(TopologyError, match=words):
            refusing(num_nodes)


# Edge lists


def test_edge_list(tmp_path: Path) -> None:
    path = tmp_path / "links.txt"
    path.write_text("\ufeff# a comment\n\n0 1\n 3\t1  # another\r\n1 0\n", encoding="utf-8")
    graph = EdgeList(str(path)).graph(5)
    assert list(graph) == [0, 1, 2, 3, 4] and edges(graph) == {(0, 1), (1, 3)}
    assert components(graph) == [[0, 1, 3], [2], [4]]


@pytest.mark.parametrize(
    "line", ["0 5", "-1 2", "1", "0 1 2", "0 1 0", "2 2", "a b", "0,1", "1.0 2", "9" * 5000 + " 1"]
)
def test_edge_list_names_the_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "links.txt"
    path.write_text(f"0 1\n{line} # wrong\n")
    with pytest.raises(TopologyError) as error:
        EdgeList(str(path)).check(5)
    message = str(error.value)
    assert f"{path}, line 2: '{line} # wrong'" in message
    assert message.endswith("allowed: two different nodes from 0 to 4")


def test_edge_list_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in ("", str(tmp_path / "missing"), str(tmp_path), str(binary), "a\0b"):
        with pytest.raises(TopologyError, match="must name a text file of links") as error:
            EdgeList(path).check(5)
        assert repr(path) in str(error.value)


# Registry


def test_make_topology_picks_the_parameters_that_a_family_has(tmp_path: Path) -> None:
    assert make_topology("ring", degree=7, probability=0.9, path="x") == Ring()
    assert make_topology("random-regular", degree=7, probability=0.9) == RandomRegular(degree=7)
    assert make_topology("erdos-renyi", degree=7, probability=0.9) == ErdosRenyi(probability=0.9)
    assert make_topology("watts-strogatz", degree=6, probability=0.9) == WattsStrogatz(6, 0.9)
    assert make_topology("edge-list", path="x") == EdgeList("x")
    assert make_topology("geometric", side_m=9.0, range_m=4.0, path="x") == Geometric(9.0, 4.0)
    for name, family in TOPOLOGIES.items():
        assert type(make_topology(name)) is family


def test_make_topology_lists_the_names() -> None:
    with pytest.raises(TopologyError) as error:
        make_topology("Ring")
    assert str(error.value) == f"unknown topology 'Ring'; allowed: {', '.join(TOPOLOGIES)}"


class Pairs(Topology):
    """Node 2i and node 2i + 1."""

    def _edges(self, n: int, t: int, seed: int) -> list[tuple[int, int]]:
        return [(i, i + 1) for i in range(0, n - 1, 2)]


NOT_A_TOPOLOGY = 3


def test_packages_may_register_topologies(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint(name, f"{__name__}:{value}", topologies.GROUP)
        for name, value in (("pairs", "Pairs"), ("three", "NOT_A_TOPOLOGY"), ("ring", "Pairs"))
    ]
    monkeypatch.setattr(topologies, "installed", lambda group: {p.name: p for p in points})
    assert edges(make_topology("pairs").graph(4)) == {(0, 1), (2, 3)}
    assert type(make_topology("ring")) is Ring  # a built-in name stays what it is
    with pytest.raises(TopologyError, match=r"ring, .+, epidemic, pairs, three\Z"):
        make_topology("donut")
    with pytest.raises(TopologyError, match="'three' is 3, no subclass of Topology"):
        make_topology("three")


def test_topologies_are_values() -> None:
    assert Ring() == Ring() != Line() and hash(Ring()) == hash(Ring())
    assert len({RandomRegular(3), RandomRegular(3), RandomRegular(4)}) == 2
    with pytest.raises(FrozenInstanceError):
        RandomRegular().degree = 3  # type: ignore[misc]
    assert {n for n, t in TOPOLOGIES.items() if t.time_varying} == {
        "base",
        "epidemic",
        "one-peer-exponential",
        "random-matching",
    }


# Spectral gaps over rounds


def test_effective_gap_of_a_static_topology_is_its_gap() -> None:
    gap = spectral_gap(metropolis_weights(ErdosRenyi().graph(12, seed=4)))
    assert effective_spectral_gap(ErdosRenyi(), 12, seed=4) == gap
    assert effective_spectral_gap(ErdosRenyi(), 12, seed=4, rounds=5) == gap


def test_effective_gap_of_one_peer_exponential() -> None:
    """The exact average after 3 rounds; after 2 of them the two halves still differ.

    With n = 3, W_1 averages the nodes 0 and 1, and W_2 the nodes 0 and 2.
    W_2 W_1 maps u = (1, 1, -2)/sqrt(6) to W_2 u = (-1/2, 1, -1/2)/sqrt(6) and (1, -1, 0) to 0, so
    sigma_2 = |(-1/2, 1, -1/2)| / sqrt(6) = sqrt(3/2) / sqrt(6) = 1/2, and the gap 1 - (1/2)^(1/2).
    """
    assert effective_spectral_gap(OnePeerExponential(), 8) == 1
    assert effective_spectral_gap(OnePeerExponential(), 8, rounds=2) == pytest.approx(0)
    assert effective_spectral_gap(OnePeerExponential(), 3) == pytest.approx(1 - 0.5**0.5)


def test_effective_gap_of_random_matchings() -> None:
    """Two nodes are averaged at once; long products do not drown in rounding errors."""
    assert effective_spectral_gap(RandomMatching(), 2) == 1
    gap = effective_spectral_gap(RandomMatching(), 10, seed=1)
    assert gap == effective_spectral_gap(RandomMatching(), 10, seed=1, rounds=16)
    assert gap != effective_spectral_gap(RandomMatching(), 10, seed=2)
    # sigma_2 is below 1e-50 after 1000 rounds, far under the rounding error of the product itself
    assert 0.1 < effective_spectral_gap(RandomMatching(), 10, seed=1, rounds=1000) < 0.6
