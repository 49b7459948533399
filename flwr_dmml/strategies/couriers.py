"""Couriers of a run: who carries whose blocks in a round, and what has been brought."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import networkx as nx

from ..graph.couriers import Hub, Route, find_hubs, find_routes
from ..graph.weights import components
from ..payload.plan import Apart, Carried
from .energy.round_budget import Prospect
from .mixing import FarLink, owners_by_block


@dataclass(frozen=True)
class Carrying:
    """What couriers do in a round.

    Attributes
    ----------
    by : dict of int to tuple of Carried
        What each of them is to publish for others.
    bytes_more : dict of int to int
        What that adds to its payload.
    routes : list of tuple
        Names of blocks, and a way between two of their owners.
    hubs : list of tuple
        Names of blocks, and who sends the mean of whose.
    apart : dict of int to tuple of Apart
        What their owners seal for those whom couriers reach, and for owners among the neighbours.
    """

    by: dict[int, tuple[Carried, ...]] = field(default_factory=dict)
    bytes_more: dict[int, int] = field(default_factory=dict)
    routes: list[tuple[tuple[str, ...], Route]] = field(default_factory=list)
    hubs: list[tuple[tuple[str, ...], Hub]] = field(default_factory=list)
    apart: dict[int, tuple[Apart, ...]] = field(default_factory=dict)


Copy = tuple[int, str, int]
"""(origin, block, for whom: -1 for anybody, where payloads are not sealed)."""


class Couriers:
    """Plans, round by round, what non-owners of a block carry between owners that are not linked.

    A courier passes on in a round what it has received in that round, of the round before. So an
    owner mixes what came over one courier one round late, and one round more for each further one.

    Parameters
    ----------
    sealed : bool
        Whether payloads are sealed: then only that is carried which has been sealed for who is to
        get it, as the plan of the round in which it was published said.
    average : bool
        Whether a courier that stands between owners sends their mean instead of their copies; what
        is sealed has none.
    """

    def __init__(self, *, sealed: bool = False, average: bool = False) -> None:
        self._sealed, self._average = sealed, average
        self._hubs: list[tuple[tuple[str, ...], Hub]] = []  # of the last round
        self._routes: list[tuple[tuple[str, ...], Route]] = []  # of the last round
        self._held: dict[int, set[Copy]] = {}  # by courier
        self._told: set[Copy] = set()  # what has been sealed for whom in the last round

    def plan(
        self,
        received: nx.Graph,
        published: Collection[int],
        prospect: Prospect,
        blocks: Mapping[int, Mapping[str, int]],
    ) -> Carrying:
        """Return who is to carry what in a round.

        Parameters
        ----------
        received : networkx.Graph
            Over which the payloads of the round before have come.
        published : collection of int
            Whose they are.
        prospect : Prospect
            The links of this round, and what sending costs.
        blocks : mapping of int to mapping of str to int
            The bytes of each block of the live devices; the others carry nothing.
        """
        graph, routes = prospect.graph, list[tuple[tuple[str, ...], Route]]()
        hubs: list[tuple[tuple[str, ...], Hub]] = []
        carries: dict[int, dict[tuple[int, str], int]] = {}  # via, by origin and block
        of_means: dict[int, int] = {}  # bytes
        more: dict[int, int] = {}
        for owners, names in _groups(blocks).items():
            size = sum(blocks[owners[0]][name] for name in names)
            most = {
                r: int((spare - more.get(r, 0)) // size)
                for r, spare in prospect.spare_bytes.items()
            }
            prices = {r: prospect.price[r] * size for r in blocks if most.get(r, 1)}
            between = find_hubs(graph, owners, prices) if self._average else None
            for hub in between or ():
                came = [
                    j for j in hub.owners if j in published and received.has_edge(j, hub.courier)
                ]
                if len(came) > 1:
                    hubs.append((names, Hub(hub.courier, tuple(came))))
                    of_means[hub.courier] = of_means.get(hub.courier, 0) + size
            for route in find_routes(graph, owners, prices, most, between):
                routes.append((names, route))
                for way in route.ways():
                    self._along(way, names, received, published, carries)
            more = {
                r: sum(blocks[origin][name] for origin, name in carries.get(r, ()))
                + of_means.get(r, 0)
                for r in carries.keys() | of_means.keys()
            }
        apart = _apart(routes, graph, blocks) if self._sealed else {}
        by = {r: _written(own) for r, own in carries.items()}
        return Carrying(by, more, routes, hubs, apart)

    def begin(self, carrying: Carrying) -> None:
        """Begin a round in which couriers do this: the next one brings it."""
        self._routes, self._hubs = carrying.routes, carrying.hubs
        taken = {
            r: {(there.origin, name) for there in own for name in there.blocks}
            for r, own in carrying.by.items()
        }
        held: dict[int, set[Copy]] = {}
        for names, route in carrying.routes:
            for way in route.ways():
                for before, r in pairwise(way[:-1]):
                    for name in names:
                        copy = self._copy(way, name)
                        if (way[0], name) in taken.get(r, ()) and self._has(before, way, copy):
                            held.setdefault(r, set()).add(copy)
        self._held = held
        self._told = {
            self._copy(way, name)
            for names, route in carrying.routes
            for way in route.ways()
            for name in names
        }

    def _copy(self, way: tuple[int, ...], name: str) -> Copy:
        return way[0], name, way[-1] if self._sealed else -1

    def _has(self, before: int, way: tuple[int, ...], copy: Copy) -> bool:
        """Return whether a copy has come as far as to a node of a way."""
        if before == way[0]:
            return not self._sealed or copy in self._told
        return copy in self._held.get(before, ())

    def _along(
        self,
        way: tuple[int, ...],
        names: tuple[str, ...],
        received: nx.Graph,
        published: Collection[int],
        carries: dict[int, dict[tuple[int, str], int]],
    ) -> None:
        """Let the couriers along a way take on what has come so far."""
        origin = way[0]
        for before, r in pairwise(way[:-1]):
            if before not in published or not received.has_edge(before, r):
                continue
            for name in names:
                if self._has(before, way, self._copy(way, name)):
                    carries.setdefault(r, {}).setdefault((origin, name), before)

    def brought(
        self, received: nx.Graph, blocks: Mapping[int, Collection[str]]
    ) -> dict[str, list[FarLink]]:
        """Return the links between owners, by block, over which both have got what was carried.

        Parameters
        ----------
        received : networkx.Graph
            Over which the payloads of the round before have come.
        blocks : mapping of int to collection of str
            Of the devices that have published and go on.
        """
        found: dict[str, list[FarLink]] = {}
        owners, groups = owners_by_block(blocks), dict[str, dict[int, int]]()
        for names, route in self._routes:
            if not all(end in blocks for end in route.ends):
                continue
            for name in names:
                if name not in groups:
                    every = enumerate(components(received, owners.get(name, ())))
                    groups[name] = {p: number for number, group in every for p in group}
                first, second = route.ends
                joined = groups[name].get(first) == groups[name].get(second)
                last = (route.couriers[0], first), (route.couriers[-1], second)
                arrives = all(
                    r in blocks
                    and received.has_edge(r, end)
                    and self._copy((other, r, end), name) in self._held.get(r, ())
                    for (r, end), other in zip(last, (second, first), strict=True)
                )
                if arrives and not joined:
                    via = route.couriers[0], route.couriers[-1]
                    link = FarLink(route.ends, via, len(route.couriers))
                    found.setdefault(name, []).append(link)
        return found

    def means(
        self, received: nx.Graph, blocks: Mapping[int, Collection[str]]
    ) -> dict[str, list[Hub]]:
        """Return the means, by block, that all have got whose blocks are in them.

        Parameters are those of :meth:`brought`.
        """
        found: dict[str, list[Hub]] = {}
        for names, hub in self._hubs:
            ends = [(hub.courier, owner) for owner in hub.owners]
            if all(a in blocks and b in blocks and received.has_edge(a, b) for a, b in ends):
                for name in names:
                    found.setdefault(name, []).append(hub)
        return found

    def state(self) -> dict[str, Any]:
        """Return what the next round depends on, as JSON."""
        routes = [[list(n), list(r.ends), list(r.couriers)] for n, r in self._routes]
        hubs = [[list(names), hub.courier, list(hub.owners)] for names, hub in self._hubs]
        held = {str(r): sorted(map(list, own)) for r, own in self._held.items()}
        told = sorted(map(list, self._told))
        return {"routes": routes, "hubs": hubs, "held": held, "told": told}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self._routes = [
            (tuple(names), Route((ends[0], ends[1]), tuple(couriers)))
            for names, ends, couriers in state["routes"]
        ]
        self._hubs = [
            (tuple(names), Hub(int(courier), tuple(owners)))
            for names, courier, owners in state["hubs"]
        ]
        self._held = {int(r): set(map(_read, own)) for r, own in state["held"].items()}
        self._told = set(map(_read, state["told"]))


def _groups(blocks: Mapping[int, Iterable[str]]) -> dict[tuple[int, ...], tuple[str, ...]]:
    """Return the names of blocks by their owners, where there are devices without them."""
    names: dict[tuple[int, ...], list[str]] = {}
    for name, owners in owners_by_block(blocks).items():
        if len(owners) < len(blocks):
            names.setdefault(owners, []).append(name)
    return {owners: tuple(names[owners]) for owners in sorted(names)}


def _read(copy: Sequence[Any]) -> Copy:
    origin, name, end = copy
    return int(origin), str(name), int(end)


def _apart(
    routes: Iterable[tuple[tuple[str, ...], Route]],
    graph: nx.Graph,
    blocks: Mapping[int, Collection[str]],
) -> dict[int, tuple[Apart, ...]]:
    """Return what owners seal apart: for those at the other ends, and for owners nearby."""
    readers: dict[int, dict[tuple[str, ...], set[int]]] = {}
    for names, route in routes:
        for way in route.ways():
            near = {j for j in graph[way[0]] if names[0] in blocks.get(j, ())}
            readers.setdefault(way[0], {}).setdefault(names, near).add(way[-1])
    return {
        origin: tuple(Apart(names, tuple(sorted(who))) for names, who in sorted(own.items()))
        for origin, own in readers.items()
    }


def _written(own: Mapping[tuple[int, str], int]) -> tuple[Carried, ...]:
    """Return what a courier carries, the blocks of one origin together."""
    names: dict[tuple[int, int], list[str]] = {}
    for (origin, name), via in own.items():
        names.setdefault((origin, via), []).append(name)
    return tuple(Carried(a, via, tuple(of)) for (a, via), of in sorted(names.items()))
