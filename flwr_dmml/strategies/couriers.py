"""Couriers of a run: who carries whose blocks in a round, and what has been brought."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import networkx as nx

from ..graph.couriers import Route, find_routes
from ..graph.weights import components
from ..payload.plan import Carried
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
    """

    by: dict[int, tuple[Carried, ...]] = field(default_factory=dict)
    bytes_more: dict[int, int] = field(default_factory=dict)
    routes: list[tuple[tuple[str, ...], Route]] = field(default_factory=list)


class Couriers:
    """Plans, round by round, what non-owners of a block carry between owners that are not linked.

    A courier passes on in a round what it has received in that round, of the round before. So an
    owner mixes what came over one courier one round late, and one round more for each further one.
    """

    def __init__(self) -> None:
        self._routes: list[tuple[tuple[str, ...], Route]] = []  # of the last round
        self._held: dict[int, set[tuple[int, str]]] = {}  # (origin, block) by courier

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
        spare = dict(prospect.spare_bytes)
        carries: dict[int, dict[tuple[int, str], int]] = {}  # via, by origin and block
        more: dict[int, int] = {}
        for owners, names in _groups(blocks).items():
            size = sum(blocks[owners[0]][name] for name in names)
            most = {r: int(left // size) for r, left in spare.items()}
            prices = {r: prospect.price[r] * size for r in blocks if most.get(r, 1)}
            for route in find_routes(graph, owners, prices, most):
                routes.append((names, route))
                for way in route.ways():
                    self._along(way, names, received, published, carries)
            for r, own in carries.items():
                extra = sum(blocks[origin][name] for origin, name in own) - more.get(r, 0)
                more[r] = more.get(r, 0) + extra
                if r in spare:
                    spare[r] -= extra
        return Carrying({r: _written(own) for r, own in carries.items()}, more, routes)

    def begin(self, carrying: Carrying) -> None:
        """Begin a round in which couriers do this: the next one brings it."""
        self._routes = carrying.routes
        self._held = {
            r: {(there.origin, name) for there in own for name in there.blocks}
            for r, own in carrying.by.items()
        }

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
            held = self._held.get(before, set())
            for name in names if before == origin else [n for n in names if (origin, n) in held]:
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
        owners, apart = owners_by_block(blocks), dict[tuple[int, ...], dict[int, int]]()
        for names, route in self._routes:
            if not all(end in blocks for end in route.ends):
                continue
            for name in names:
                of = owners.get(name, ())
                if of not in apart:
                    groups = enumerate(components(received, of))
                    apart[of] = {p: number for number, group in groups for p in group}
                first, second = route.ends
                joined = apart[of].get(first) == apart[of].get(second)
                last = (route.couriers[0], first), (route.couriers[-1], second)
                arrives = all(
                    r in blocks
                    and received.has_edge(r, end)
                    and (other, name) in self._held.get(r, ())
                    for (r, end), other in zip(last, (second, first), strict=True)
                )
                if arrives and not joined:
                    link = FarLink(route.ends, (route.couriers[0], route.couriers[-1]))
                    found.setdefault(name, []).append(link)
        return found

    def state(self) -> dict[str, Any]:
        """Return what the next round depends on, as JSON."""
        routes = [[list(n), list(r.ends), list(r.couriers)] for n, r in self._routes]
        held = {str(r): sorted(map(list, own)) for r, own in self._held.items()}
        return {"routes": routes, "held": held}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self._routes = [
            (tuple(names), Route((ends[0], ends[1]), tuple(couriers)))
            for names, ends, couriers in state["routes"]
        ]
        self._held = {int(r): {(o, b) for o, b in own} for r, own in state["held"].items()}


def _groups(blocks: Mapping[int, Iterable[str]]) -> dict[tuple[int, ...], tuple[str, ...]]:
    """Return the names of blocks by their owners, where there are devices without them."""
    names: dict[tuple[int, ...], list[str]] = {}
    for name, owners in owners_by_block(blocks).items():
        if len(owners) < len(blocks):
            names.setdefault(owners, []).append(name)
    return {owners: tuple(names[owners]) for owners in sorted(names)}


def _written(own: Mapping[tuple[int, str], int]) -> tuple[Carried, ...]:
    """Return what a courier carries, the blocks of one origin together."""
    names: dict[tuple[int, int], list[str]] = {}
    for (origin, name), via in sorted(own.items()):
        names.setdefault((origin, via), []).append(name)
    return tuple(Carried(origin, via, tuple(of)) for (origin, via), of in names.items())
