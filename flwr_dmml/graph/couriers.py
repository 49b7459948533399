"""Ways between owners of a block that no link joins: over devices that do not own it, couriers.

Owners that are linked with one another form a component, and each mixes on its own. A courier
stands between two or more of them and passes on what it receives, unread, one round late.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx
import numpy as np

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


def find_routes(
    graph: nx.Graph,
    owners: Collection[int],
    prices: Mapping[int, float],
    most: Mapping[int, int] | None = None,
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
    candidates: dict[tuple[int, int], list[Route]] = {}
    for r in sorted(left):
        near: dict[int, int] = {}  # the first owner of each component
        for j in sorted(graph[r]):
            if j in group_of:
                near.setdefault(group_of[j], j)
        ring = sorted(near)
        pairs = [*pairwise(ring), *([(ring[0], ring[-1])] if len(ring) > 2 else [])]
        for a, b in pairs:
            ends = min(near[a], near[b]), max(near[a], near[b])
            candidates.setdefault((a, b), []).append(Route(ends, (r,)))
    routes = _cheapest(candidates, prices, left)
    for r, copies in _copies(routes).items():
        left[r] -= len(copies)
    joined = nx.Graph()
    joined.add_nodes_from(range(len(groups)))
    joined.add_edges_from((group_of[a], group_of[b]) for a, b in (x.ends for x in routes))
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
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    copies = [(r, origin) for r, own in sorted(_copies(every).items()) for origin in sorted(own)]
    place = {copy: len(every) + k for k, copy in enumerate(copies)}
    # variables: whether a route is taken, then whether a courier carries an owner's copy
    entries: list[tuple[int, int, float]] = []  # row, column, value
    upper: list[float] = []

    def at_most(bound: float, terms: Mapping[int, float]) -> None:
        entries.extend((len(upper), column, value) for column, value in terms.items())
        upper.append(bound)

    number = {route: k for k, route in enumerate(every)}
    for routes in candidates.values():
        at_most(1.0, {number[route]: 1.0 for route in routes})
    for k, route in enumerate(every):
        for end in route.ends:
            at_most(0.0, {k: 1.0, place[route.couriers[0], end]: -1.0})
    for r in _copies(every):
        at_most(float(most[r]), {place[copy]: 1.0 for copy in copies if copy[0] == r})
    cost = np.array([prices[r] for r, _ in copies])
    cost = cost / cost.max() * (1 + 1e-6 * np.arange(len(cost)) / len(cost))  # the first of equals
    gain = 1.0 + cost.sum()  # joining comes first
    rows, columns, values = zip(*entries, strict=True)
    found = milp(
        np.concatenate([np.full(len(every), -gain), cost]),
        integrality=np.ones(len(every) + len(copies)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(
            coo_array((values, (rows, columns))).tocsr(), -np.inf, np.array(upper)
        ),
    )
    if found.x is None:
        raise RuntimeError(f"the choice of couriers has no solution: {found.message}")
    return [route for route, taken in zip(every, found.x, strict=False) if taken > 0.5]


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
