"""Ways over couriers: which, between whom, at what price; and the weights of what they make."""

from itertools import combinations
from math import inf

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_dmml.graph.couriers import Hub, Route, find_hubs, find_routes
from flwr_dmml.graph.weights import components, metropolis_rows, metropolis_weights, spectral_gap

RING = nx.cycle_graph(12)
AUDIO = [k for k in range(12) if k % 3 != 1]  # sensors in turn: audio, image, both


def free(graph: nx.Graph) -> dict[int, float]:
    return dict.fromkeys(graph, 1.0)


def with_links(graph: nx.Graph, owners: list[int], routes: list[Route]) -> nx.Graph:
    whole = graph.subgraph(owners).copy()
    whole.add_edges_from(route.ends for route in routes)
    return whole


def test_the_audio_owners_of_a_ring_become_one_ring() -> None:
    """Four pairs, 2-3, 5-6, 8-9 and 11-0, and a device with images only between any two."""
    routes = find_routes(RING, AUDIO, free(RING))
    assert routes == [
        Route((0, 2), (1,)),
        Route((3, 5), (4,)),
        Route((6, 8), (7,)),
        Route((9, 11), (10,)),
    ]
    whole = with_links(RING, AUDIO, routes)
    assert nx.is_connected(whole) and {degree for _, degree in whole.degree} == {2}
    for row in metropolis_rows(whole, AUDIO).values():
        assert row == pytest.approx(dict.fromkeys(row, 1 / 3))


def test_nothing_to_do() -> None:
    assert find_routes(RING, range(12), free(RING)) == []
    assert find_routes(nx.complete_graph(5), [0, 1, 2], free(RING)) == []
    assert find_routes(RING, [0], free(RING)) == [] == find_routes(RING, [], free(RING))


def test_the_components_around_a_courier_form_a_ring() -> None:
    """A hub with five owners, who know nobody else: each gets two copies, the hub carries five."""
    star = nx.star_graph(5)
    routes = find_routes(star, [1, 2, 3, 4, 5], {0: 1.0})
    assert [route.ends for route in routes] == [(1, 2), (1, 5), (2, 3), (3, 4), (4, 5)]
    assert {route.couriers for route in routes} == {(0,)}
    assert [r.ends for r in find_routes(nx.star_graph(2), [1, 2], {0: 1.0})] == [(1, 2)]


def test_the_cheapest_of_several_carries() -> None:
    """0 and 1 own the block; 2, 3 and 4 stand between them."""
    between = nx.Graph([(0, k) for k in (2, 3, 4)] + [(1, k) for k in (2, 3, 4)])
    assert find_routes(between, [0, 1], {2: 2.0, 3: 1.0, 4: 3.0}) == [Route((0, 1), (3,))]
    assert find_routes(between, [0, 1], {2: 1.0, 3: 1.0, 4: 1.0}) == [Route((0, 1), (2,))]
    assert find_routes(between, [0, 1], {2: 2.0, 4: 3.0}) == [Route((0, 1), (2,))]
    assert find_routes(between, [0, 1], {2: 2.0, 3: 1.0, 4: 3.0}, {3: 1}) == [Route((0, 1), (2,))]
    assert find_routes(between, [0, 1], {2: 2.0}, {2: 1}) == [], "it cannot pay for both copies"


def test_a_copy_that_serves_several_is_paid_once() -> None:
    """Owners 0, 1 and 2. Courier 3 stands between all three, 4 and 5 between two each.

    3 carries three copies for 3 x 1.3, 4 and 5 two each: the pairs that they join cost 2 each.
    All three pairs by 3 cost 3.9; 0-1 by 4 and 1-2 by 5 and 0-2 by 3 cost 2 + 2 + 2.6.
    """
    graph = nx.Graph([(0, 3), (1, 3), (2, 3), (0, 4), (1, 4), (1, 5), (2, 5)])
    routes = find_routes(graph, [0, 1, 2], {3: 1.3, 4: 1.0, 5: 1.0})
    assert {(route.ends, route.couriers) for route in routes} == {
        ((0, 1), (3,)), ((0, 2), (3,)), ((1, 2), (3,))
    }  # fmt: skip
    dear = find_routes(graph, [0, 1, 2], {3: 30.0, 4: 1.0, 5: 1.0})
    assert {(route.ends, route.couriers) for route in dear} == {
        ((0, 1), (4,)), ((0, 2), (3,)), ((1, 2), (5,))
    }  # fmt: skip


def test_longer_gaps_are_crossed_by_several() -> None:
    """0 - 1 - 2 - 3 and 0 - 4 - 5 - 3: the cheaper of two equally long ways; none where all die."""
    graph = nx.Graph([(0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 3)])
    assert find_routes(graph, [0, 3], free(graph)) == [Route((0, 3), (1, 2))]
    dear = {1: 5.0, 2: 1.0, 4: 1.0, 5: 1.0}
    assert find_routes(graph, [0, 3], dear) == [Route((0, 3), (4, 5))]
    assert find_routes(graph, [0, 3], {1: 1.0, 4: 1.0}) == []
    longer = nx.path_graph(6)
    assert find_routes(longer, [0, 1, 5], free(longer)) == [Route((1, 5), (2, 3, 4))]
    assert [*Route((1, 5), (2, 3, 4)).ways()] == [(1, 2, 3, 4, 5), (5, 4, 3, 2, 1)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[nx.Graph, list[int], dict[int, float], dict[int, int]]:
    nodes = draw(st.integers(2, 9))
    edges = draw(st.lists(st.sampled_from(list(combinations(range(nodes), 2))), unique=True))
    graph = nx.empty_graph(nodes)
    graph.add_edges_from(edges)
    owners = draw(st.lists(st.integers(0, nodes - 1), unique=True))
    others = [k for k in range(nodes) if k not in owners]
    able = draw(st.lists(st.sampled_from(others), unique=True)) if others else []
    prices = {k: draw(st.floats(0.1, 10)) for k in able}
    most = {k: draw(st.integers(0, 4)) for k in able if draw(st.booleans())}
    return graph, owners, prices, most


@settings(deadline=None, max_examples=300)
@given(cases())
def test_routes_are_ways_of_couriers_and_make_a_doubly_stochastic_matrix(
    case: tuple[nx.Graph, list[int], dict[int, float], dict[int, int]],
) -> None:
    graph, owners, prices, most = case
    routes = find_routes(graph, owners, prices, most)
    groups = components(graph, owners)
    group_of = {p: k for k, group in enumerate(groups) for p in group}
    copies: dict[int, set[int]] = {}
    for route in routes:
        assert set(route.couriers) <= set(prices) - set(owners) and route.couriers
        assert group_of[route.ends[0]] != group_of[route.ends[1]]
        for way in route.ways():
            assert nx.is_path(graph, way)
        for r in route.couriers:
            copies.setdefault(r, set()).update(route.ends)
    assert all(len(own) <= most.get(r, inf) for r, own in copies.items())
    assert find_routes(graph, owners, prices, most) == routes
    whole = with_links(graph, owners, routes)
    weights = metropolis_weights(nx.compose(nx.empty_graph(len(graph)), whole), owners)
    assert np.allclose(weights, weights.T) and np.allclose(weights.sum(axis=0), 1)
    assert weights.min() >= 0
    if not most:  # all that couriers can join is one
        reach = nx.Graph(graph.subgraph([*owners, *prices]))
        for one, two in combinations(owners, 2):
            assert nx.has_path(whole, one, two) == nx.has_path(reach, one, two)


# ---- hubs ---------------------------------------------------------------------------------------


def mixing_matrix(graph: nx.Graph, owners: list[int], hubs: list[Hub]) -> np.ndarray:
    """Return the weights with each mean's shared among its owners, ``[node, node]``."""
    matrix = np.eye(len(graph))
    around = {-1 - hub.courier: hub.owners for hub in hubs}
    for i, row in metropolis_rows(graph, owners, around).items():
        assert row[i] > 0, "it keeps some of what it has now"
        matrix[i, i] = 0
        for j, weight in row.items():
            members = around.get(j, (j,))
            for member in members:
                matrix[i, member] += weight / len(members)
    return matrix


def test_weights_of_means_by_hand() -> None:
    """A hub of three owners, 1 of which is linked to a fourth one: degrees 2, 1, 1 and 1.

    Link and mean weigh 1 / (1 + 2) = 1/3 each; of the mean that is 1/9 for each of the three.
    """
    graph = nx.star_graph(3)
    graph.add_edge(1, 4)
    hub = Hub(0, (1, 2, 3))
    rows = metropolis_rows(graph, [1, 2, 3, 4], {-1: hub.owners})
    third = pytest.approx(1 / 3)
    assert rows[1] == {1: third, 4: third, -1: third}
    assert rows[2] == {2: pytest.approx(2 / 3), -1: third} and rows[4] == {4: rows[2][2], 1: third}
    assert mixing_matrix(graph, [1, 2, 3, 4], [hub])[1:, 1:] == pytest.approx(
        np.array([[4, 1, 1, 3], [1, 7, 1, 0], [1, 1, 7, 0], [3, 0, 0, 6]]) / 9
    )


def test_one_hub_serves_all_around_it() -> None:
    star = nx.star_graph(5)
    assert find_hubs(star, [1, 2, 3, 4, 5], {0: 1.0}) == [Hub(0, (1, 2, 3, 4, 5))]
    assert find_hubs(star, [1], {0: 1.0}) == [] == find_hubs(star, [], {0: 1.0})
    assert find_hubs(star, [1, 2], {}) == [], "nobody can pay"
    star.add_edge(1, 2)
    assert find_hubs(star, [1, 2, 3], {0: 1.0}) == [Hub(0, (1, 3))], "one owner of a component"
    hubs = find_hubs(RING, AUDIO, free(RING))
    assert hubs == [Hub(1, (0, 2)), Hub(4, (3, 5)), Hub(7, (6, 8)), Hub(10, (9, 11))]
    assert find_routes(RING, AUDIO, free(RING), hubs=hubs) == []


def test_the_cheapest_hubs_bring_any_two_together() -> None:
    """3 stands between the owners 0, 1 and 2; 4, 5 and 6 between two of them each."""
    ends = [(3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (5, 1), (5, 2), (6, 0), (6, 2)]
    graph = nx.Graph(ends)
    prices = dict.fromkeys((4, 5, 6), 1.0)
    whole, pairs = [Hub(3, (0, 1, 2))], [Hub(4, (0, 1)), Hub(5, (1, 2)), Hub(6, (0, 2))]
    assert find_hubs(graph, [0, 1, 2], {3: 2.9, **prices}) == whole
    assert find_hubs(graph, [0, 1, 2], {3: 3.1, **prices}) == pairs
    assert find_hubs(graph, [0, 1, 2], {3: 9.0, 4: 1.0, 5: 1.0}) == whole, "only 3 joins 0 and 2"
    between = nx.Graph([(0, 2), (1, 2), (0, 3), (1, 3)])
    assert find_hubs(between, [0, 1], {2: 1.0, 3: 1.0}) == [Hub(2, (0, 1))], "the first of equals"
    assert find_hubs(between, [0, 1], {2: 2.0, 3: 1.0}) == [Hub(3, (0, 1))]


def test_what_no_hub_joins_is_joined_over_several_couriers() -> None:
    """0 - 1 - 2 by the hub 1; 2 - 3 - 4 - 5 over 3 and 4, which pay for two copies each."""
    graph = nx.path_graph(6)
    hubs = find_hubs(graph, [0, 2, 5], free(graph))
    assert hubs == [Hub(1, (0, 2))]
    assert find_routes(graph, [0, 2, 5], free(graph), hubs=hubs) == [Route((2, 5), (3, 4))]
    assert find_routes(graph, [0, 2, 5], free(graph), {3: 1}, hubs) == []


@settings(deadline=None, max_examples=300)
@given(cases())
def test_hubs_and_routes_make_a_symmetric_doubly_stochastic_matrix(
    case: tuple[nx.Graph, list[int], dict[int, float], dict[int, int]],
) -> None:
    graph, owners, every, most = case
    prices = {r: price for r, price in every.items() if most.get(r, 1)}
    hubs = find_hubs(graph, owners, prices)
    routes = find_routes(graph, owners, prices, most, hubs)
    groups = components(graph, owners)
    group_of = {p: k for k, group in enumerate(groups) for p in group}
    copies: dict[int, int] = {}
    for hub in hubs:
        assert hub.courier in prices and hub.courier not in owners and len(hub.owners) > 1
        assert all(graph.has_edge(hub.courier, owner) for owner in hub.owners)
        assert len({group_of[owner] for owner in hub.owners}) == len(hub.owners)
        copies[hub.courier] = copies.get(hub.courier, 0) + 1
    for route in routes:
        assert len(route.couriers) > 1
        for r in route.couriers:
            copies[r] = copies.get(r, 0) + 2
    assert all(count <= most.get(r, inf) for r, count in copies.items())
    for r in set(prices) - set(owners):
        near = {group_of[j] for j in graph[r] if j in group_of}
        for pair in combinations(near, 2):
            assert any({*pair} <= {group_of[owner] for owner in hub.owners} for hub in hubs)
    whole = nx.compose(nx.empty_graph(len(graph)), with_links(graph, owners, routes))
    matrix = mixing_matrix(whole, owners, hubs)
    assert np.allclose(matrix, matrix.T) and np.allclose(matrix.sum(axis=0), 1)
    assert matrix.min() >= 0
    joined = whole.copy()
    for hub in hubs:
        nx.add_path(joined, hub.owners)
    if not most:  # all that couriers can join is one
        reach = nx.Graph(graph.subgraph([*owners, *prices]))
        for one, two in combinations(owners, 2):
            assert nx.has_path(joined, one, two) == nx.has_path(reach, one, two)


def test_a_ring_of_eight_mixes_where_pairs_do_not() -> None:
    whole = with_links(RING, AUDIO, find_routes(RING, AUDIO, free(RING)))
    ring = metropolis_weights(nx.convert_node_labels_to_integers(whole))
    assert spectral_gap(ring) == pytest.approx((2 - 2 * np.cos(np.pi / 4)) / 3)
