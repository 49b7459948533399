"""Ways between owners of a block that no link joins: over devices that do not own it, couriers.

Owners that are linked with one another form a component, and each mixes on its own. A courier
stands between two or more of them and passes on what it receives, unread, one round late. Or it is
a hub: it sends the mean of one owner of each, instead of all copies.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import inf

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from .weights import components


@dataclass(frozen=True)
class Route:
    """A way between two owners, for what either has, in both directions.

    Attributes
    ----------
    ends : tuple of int
        The owners, of different components, the lower id first.
    couriers : tuple of int
        From the first end to the second, at least one.
    """

    ends: tuple[int, int]
    couriers: tuple[int, ...]

    def ways(self) -> Iterator[tuple[int, ...]]:
        """Yield the nodes from end to end, in both directions."""
        there = (self.ends[0], *self.couriers, self.ends[1])
        yield there
        yield there[::-1]


@dataclass(frozen=True)
class Hub:
    """A courier that sends several owners the mean of what they have.

    Attributes
    ----------
    courier : int
        Who makes the mean.
    owners : tuple of int
        Neighbours of the courier, of different components, sorted; at least two.
    """

    courier: int
    owners: tuple[int, ...]


def find_hubs(graph: nx.Graph, owners: Collection[int], prices: Mapping[int, float]) -> list[Hub]:
    """Return the hubs that join the components of a block's owners, as cheaply as can be.

    Any two components that stand around a common courier share a hub. Which couriers become hubs is
    the choice of the lowest sum of prices (a small integer program, HiGHS).

    Parameters
    ----------
    graph : networkx.Graph
        The links of a round.
    owners : collection of int
        The live owners of the block.
    prices : mapping of int to float
        Who can pay for one block more, and what it costs, > 0; owners are not asked.

    Returns
    -------
    list of Hub
        In order of their couriers.
    """
    groups = components(graph, owners)
    group_of = {owner: number for number, group in enumerate(groups) for owner in group}
    around = {r: _near(graph, r, group_of) for r in sorted(set(prices) - set(group_of))}
    around = {r: near for r, near in around.items() if len(near) > 1}
    every = [Hub(r, tuple(sorted(near.values()))) for r, near in around.items()]
    if len(every) < 2:
        return every
    shared: dict[tuple[int, int], set[int]] = {}  # by two components: places in every
    for k, near in enumerate(around.values()):
        for pair in combinations(sorted(near), 2):
            shared.setdefault(pair, set()).add(k)
    taken = {k for hubs in shared.values() if len(hubs) == 1 for k in hubs}
    open_pairs = [hubs for hubs in shared.values() if not hubs & taken]
    if open_pairs:
        cost = _first_of_equals([prices[hub.courier] for hub in every])
        terms = [dict.fromkeys(hubs, 1.0) for hubs in open_pairs]
        found = _cheapest_choice(cost, terms, [1.0] * len(terms), [inf] * len(terms))
        taken |= {k for hubs in open_pairs for k in hubs if found[k] > 0.5}
    return [hub for k, hub in enumerate(every) if k in taken]


def find_routes(
    graph: nx.Graph,
    owners: Collection[int],
    prices: Mapping[int, float],
    most: Mapping[int, int] | None = None,
    hubs: Sequence[Hub] | None = None,
) -> list[Route]:
    """Return the routes that join the components of a block's owners, as cheaply as can be.

    The components around a courier form a ring: each gets what two others have, however many there
    are. Two components that stand around several couriers are joined by one of them. Which ones
    carry is the choice of the lowest sum of prices (a small integer program, HiGHS): a courier pays
    once for what it carries for several. Components that no courier joins are joined by the
    shortest way over several, and by the cheapest of these.

    Parameters
    ----------
    graph : networkx.Graph
        The links of a round.
    owners : collection of int
        The live owners of the block.
    prices : mapping of int to float
        Who can carry, and what one copy costs it, > 0; owners are not asked.
    most : mapping of int to int, optional
        The most copies that a courier can pay for, where there is a limit.
    hubs : sequence of Hub, optional
        Those of :func:`find_hubs`: then routes lead over several couriers, between what the hubs
        leave apart.

    Returns
    -------
    list of Route
        In order of their ends. Components that cannot be joined have none.
    """
    groups = components(graph, owners)
    if len(groups) < 2:
        return []
    group_of = {owner: number for number, group in enumerate(groups) for owner in group}
    left = {r: (most or {}).get(r, len(group_of)) for r in prices if r not in group_of}
    routes = _over_one(graph, group_of, prices, left) if hubs is None else []
    for r, copies in _copies(routes).items():
        left[r] -= len(copies)
    joined = nx.Graph()
    joined.add_nodes_from(range(len(groups)))
    joined.add_edges_from((group_of[a], group_of[b]) for a, b in (x.ends for x in routes))
    for hub in hubs or ():
        left[hub.courier] -= 1
        nx.add_path(joined, [group_of[owner] for owner in hub.owners])
    while nx.number_connected_components(joined) > 1:
        here = min(nx.connected_components(joined), key=min)
        route = _shortest(graph, here, group_of, prices, left)
        if route is None:
            joined.remove_nodes_from(here)
            continue
        routes.append(route)
        joined.add_edge(*(group_of[end] for end in route.ends))
        for r in route.couriers:
            left[r] -= 2
    return sorted(routes, key=lambda route: (route.ends, route.couriers))


def _over_one(
    graph: nx.Graph,
    group_of: Mapping[int, int],
    prices: Mapping[int, float],
    most: Mapping[int, int],
) -> list[Route]:
    """Return the routes over one courier each."""
    candidates: dict[tuple[int, int], list[Route]] = {}
    for r in sorted(most):
        near = _near(graph, r, group_of)
        ring = sorted(near)
        pairs = [*pairwise(ring), *([(ring[0], ring[-1])] if len(ring) > 2 else [])]
        for a, b in pairs:
            ends = min(near[a], near[b]), max(near[a], near[b])
            candidates.setdefault((a, b), []).append(Route(ends, (r,)))
    return _cheapest(candidates, prices, most)


def _near(graph: nx.Graph, r: int, group_of: Mapping[int, int]) -> dict[int, int]:
    """Return the components around a device, with the first owner of each that it is linked to."""
    near: dict[int, int] = {}
    for j in sorted(graph[r]):
        if j in group_of:
            near.setdefault(group_of[j], j)
    return near


def _copies(routes: Collection[Route]) -> dict[int, set[int]]:
    """Return whose copies each courier carries."""
    found: dict[int, set[int]] = {}
    for route in routes:
        for r in route.couriers:
            found.setdefault(r, set()).update(route.ends)
    return found


def _cheapest(
    candidates: Mapping[tuple[int, int], list[Route]],
    prices: Mapping[int, float],
    most: Mapping[int, int],
) -> list[Route]:
    """Return one route for each pair of components, where couriers can pay for it."""
    every = [route for pair in sorted(candidates) for route in candidates[pair]]
    choice = any(len(routes) > 1 for routes in candidates.values())
    if not choice and all(len(own) <= most[r] for r, own in _copies(every).items()):
        return every
    copies = [(r, origin) for r, own in sorted(_copies(every).items()) for origin in sorted(own)]
    place = {copy: len(every) + k for k, copy in enumerate(copies)}
    # variables: whether a route is taken, then whether a courier carries an owner's copy
    terms: list[dict[int, float]] = []
    upper: list[float] = []

    def at_most(bound: float, row: dict[int, float]) -> None:
        terms.append(row)
        upper.append(bound)

    number = {route: k for k, route in enumerate(every)}
    for routes in candidates.values():
        at_most(1.0, {number[route]: 1.0 for route in routes})
    for k, route in enumerate(every):
        for end in route.ends:
            at_most(0.0, {k: 1.0, place[route.couriers[0], end]: -1.0})
    for r in _copies(every):
        at_most(float(most[r]), {place[copy]: 1.0 for copy in copies if copy[0] == r})
    cost = _first_of_equals([prices[r] for r, _ in copies])
    gain = 1.0 + cost.sum()  # joining comes first
    cost = np.concatenate([np.full(len(every), -gain), cost])
    found = _cheapest_choice(cost, terms, [-inf] * len(terms), upper)
    return [route for route, taken in zip(every, found, strict=False) if taken > 0.5]


def _first_of_equals(prices: Sequence[float]) -> NDArray[np.float64]:
    """Return costs of at most about 1, by which the first of equals is chosen."""
    cost = np.array(prices)
    scaled: NDArray[np.float64] = cost / cost.max() * (1 + 1e-6 * np.arange(len(cost)) / len(cost))
    return scaled


def _cheapest_choice(
    cost: NDArray[np.float64],
    terms: Iterable[Mapping[int, float]],
    lower: Sequence[float],
    upper: Sequence[float],
) -> NDArray[np.float64]:
    """Return the choice ``[variable]`` of 0 and 1 that costs least, with sums within bounds.

    ``terms`` holds the factors of the variables in each sum.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    entries = [(row, k, x) for row, factors in enumerate(terms) for k, x in factors.items()]
    rows, columns, values = zip(*entries, strict=True)
    sums = coo_array((values, (rows, columns)), shape=(len(lower), len(cost))).tocsr()
    found = milp(
        cost,
        integrality=np.ones(len(cost)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(sums, np.array(lower), np.array(upper)),
    )
    if found.x is None:
        raise RuntimeError(f"the choice of couriers has no solution: {found.message}")
    choice: NDArray[np.float64] = found.x
    return choice


def _shortest(
    graph: nx.Graph,
    here: Collection[int],
    group_of: Mapping[int, int],
    prices: Mapping[int, float],
    left: Mapping[int, int],
) -> Route | None:
    """Return the shortest way from some components to another one, the cheapest of these."""
    begin = {owner for owner, group in group_of.items() if group in here}
    able = {r for r, copies in left.items() if copies >= 2}
    far = 1.0 + sum(prices[r] for r in able)  # one more courier costs more than all prices
    ways = nx.DiGraph()
    ways.add_nodes_from(begin)
    for a in begin | able:
        for b in graph[a]:
            if b in able:
                ways.add_edge(a, b, weight=far + prices[b])
            elif a in able and b in group_of and b not in begin:
                ways.add_edge(a, b, weight=0.0)
    length, path = nx.multi_source_dijkstra(ways, begin)
    ends = [(length[b], b) for b in group_of if b not in begin and b in length]
    if not ends:
        return None
    way = path[min(ends)[1]]
    a, *between, b = way if way[0] < way[-1] else way[::-1]
    return Route((a, b), tuple(between))
