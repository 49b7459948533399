"""Topologies that can be named in a run config, see :class:`~.family.Topology`."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from math import isfinite, isqrt
from pathlib import Path
from typing import Any, ClassVar, cast, get_type_hints

import networkx as nx
import numpy as np

from ..base.registry import installed
from ..base.seeding import numpy_generator
from .base_graph import BaseGraph
from .epidemic import Epidemic, random_regular
from .family import Topology, TopologyError, require
from .positions import uniform_positions
from .weights import Edges, components, metropolis_weights, spectral_gap

# fmt: off
__all__ = [
    "TOPOLOGIES", "BaseGraph", "Complete", "Dyck", "EdgeList", "Edges", "Epidemic", "ErdosRenyi",
    "Exponential", "FlorentineFamilies", "Geometric", "Line", "OnePeerExponential",
    "RandomMatching", "RandomRegular", "Ring", "Star", "Topology", "TopologyError", "Torus",
    "WattsStrogatz", "add_topologies", "components", "find_topology", "make_topology",
    "metropolis_weights", "own_fields", "spectral_gap",
]
# fmt: on


@dataclass(frozen=True)
class Circulant(Topology):
    """A graph in which every node has the same links, seen from itself.

    With ``directed`` it is drawn over the owners of each block: everybody sends to as many as it
    hears from, and averages are exact there, too.
    """

    directed: bool = False

    @property
    def by_owners(self) -> bool:
        """Whether links go one way."""
        return self.directed

    @property
    def even(self) -> bool:
        """True."""
        return True


class Ring(Circulant):
    """Node i is linked to i - 1 and i + 1 (modulo n); with ``directed`` it sends to i + 1."""

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        return ((i, (i + 1) % n) for i in range(n))


class Line(Topology):
    """A ring without the link between the last and the first node."""

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        return ((i, i + 1) for i in range(n - 1))


class Star(Topology):
    """Node 0 is linked to every other node."""

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        return ((0, i) for i in range(1, n))


class Complete(Topology):
    """Every node is linked to every other; its Metropolis weights are 1/n each, i.e. FedAvg."""

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        return ((i, j) for i in range(n) for j in range(i))


class Torus(Topology):
    """A grid, as square as possible, that wraps around; both sides >= 2, so no prime n."""

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        cols = min(c for c in range(isqrt(n - 1) + 1, n + 1) if n % c == 0)  # rows <= cols
        near = f"{n - 1} and {n + 1}" if n > 4 else "4"  # the neighbours of a prime > 4 are even
        require(cols < n, f"torus: no grid >= 2 x 2 has {n} nodes; nearest allowed: {near}")
        right = [(i, i - i % cols + (i + 1) % cols) for i in range(n)]
        down = [(i, (i + cols) % n) for i in range(n)]
        return right + down


@dataclass(frozen=True)
class RandomRegular(Topology):
    """A random graph with ``degree`` links a node: 1 <= degree < n, and n * degree is even."""

    degree: int = 4

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        d = self.degree
        rule = "it must be at least 1, less than the number of nodes, and degree x nodes even"
        possible = 1 <= d < n and d * n % 2 == 0
        require(possible, f"random-regular: degree {d} is impossible with {n} nodes; {rule}")
        return random_regular(n, d, seed)


@dataclass(frozen=True)
class ErdosRenyi(Topology):
    """Every two nodes are linked with ``probability`` in [0, 1]; it may be disconnected.

    With ``directed`` each of the two directions is there with this probability.
    """

    probability: float = 0.3
    directed: bool = False

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        p = self.probability
        require(0 <= p <= 1, f"erdos-renyi: probability must be from 0 to 1, not {p}")
        return list(nx.gnp_random_graph(n, p, seed=seed, directed=self.directed).edges)


@dataclass(frozen=True)
class WattsStrogatz(Topology):
    """A ring with degree / 2 (even) links to each side, each moved with ``probability``."""

    degree: int = 4
    probability: float = 0.2

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        d, p = self.degree, self.probability
        rule = "it must be even, at least 2 and less than the number of nodes"
        possible = 2 <= d < n and d % 2 == 0
        require(possible, f"watts-strogatz: degree {d} is impossible with {n} nodes; {rule}")
        require(0 <= p <= 1, f"watts-strogatz: probability must be from 0 to 1, not {p}")
        return list(nx.watts_strogatz_graph(n, d, p, seed=seed).edges)


@dataclass(frozen=True)
class Geometric(Topology):
    """Nodes within ``range_m`` (> 0) in a square of ``side_m`` (> 0); it may be disconnected.

    Same run seed and side, same :func:`~.wireless.uniform_positions` as in the wireless model.
    """

    side_m: float = 100.0
    range_m: float = 50.0

    def _seed(self, seed: int, t: int) -> int:
        return seed

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        for name, metres in (("side_m", self.side_m), ("range_m", self.range_m)):
            allowed = f"geometric: {name} must be a number above 0, not {metres}"
            require(isfinite(metres) and metres > 0, allowed)
        x, y = uniform_positions(n, self.side_m, seed).T  # [n], [n]
        distance_m = np.hypot(np.subtract.outer(x, x), np.subtract.outer(y, y))  # [n, n]
        return [(i, j) for i, j in np.argwhere(distance_m <= self.range_m).tolist()]


class Exponential(Circulant):
    """Node i is linked to i +- 2^j (modulo n) for all 2^j < n.

    With ``directed`` it sends to i + 2^j. Source: Ying et al., NeurIPS 2021.
    """

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        return ((i, (i + 2**j) % n) for i in range(n) for j in range((n - 1).bit_length()))


class Dyck(Topology):
    """The Dyck graph: 32 nodes, 3 neighbours each."""

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        require(n == 32, f"dyck: this graph has exactly 32 nodes, not {n}")
        return list(nx.LCF_graph(32, [5, -5, 13, -13], 8).edges)


class FlorentineFamilies(Topology):
    """The marriages of 15 families (Breiger and Pattison 1986); nodes in order of their names."""

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        require(n == 15, f"florentine: this graph has exactly 15 nodes, not {n}")
        families = nx.florentine_families_graph()
        node = {name: i for i, name in enumerate(sorted(families))}
        return [(node[a], node[b]) for a, b in families.edges]


@dataclass(frozen=True)
class EdgeList(Topology):
    """A UTF-8 file: one ``i j`` a line, ``#`` comments; nodes it does not name are isolated.

    With ``directed`` such a link leads from i to j only.
    """

    path: str = ""
    directed: bool = False

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        try:
            lines = Path(self.path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            why = f"edge-list: path must name a text file of links, not {self.path!r} ({error})"
            raise TopologyError(why) from error
        node, edges = {str(i): i for i in range(n)}, []
        for number, line in enumerate(lines, start=1):
            if words := line.partition("#")[0].split():
                link = [node[word] for word in words if word in node]
                where = f"edge-list: {self.path}, line {number}: {line.strip()!r} is no link"
                valid = len(words) == len(set(link)) == 2
                require(valid, f"{where}; allowed: two different nodes from 0 to {n - 1}")
                edges.append((link[0], link[1]))
        return edges


class OnePeerExponential(Circulant):
    """In round t node i has one partner, 2^((t - 1) mod ceil(log2 n)) away, or none.

    With ``directed`` it sends to the node so far on (modulo n), and everybody has one to send to.
    With n a power of two, log2(n) rounds give the exact average. Source: Ying et al., NeurIPS
    2021; where links go both ways, in a symmetric form (a hypercube).
    """

    time_varying: ClassVar[bool] = True

    def period(self, num_nodes: int) -> int:
        """Return after how many rounds the graphs repeat: ceil(log2 n), at least 1."""
        return max(1, (num_nodes - 1).bit_length())

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        hop = 2 ** ((t - 1) % self.period(n))
        if self.directed:
            return ((i, (i + hop) % n) for i in range(n))
        return ((i, i + hop) for i in range(n - hop) if i // hop % 2 == 0)


class RandomMatching(Topology):
    """Every round pairs all nodes at random; one is left out when their number is odd."""

    time_varying: ClassVar[bool] = True

    def _edges(self, n: int, t: int, seed: int) -> Edges:
        order = numpy_generator(seed).permutation(n).tolist()
        return zip(order[0::2], order[1::2], strict=False)


GROUP = "flwr_dmml.topologies"

# fmt: off
TOPOLOGIES: dict[str, type[Topology]] = {
    "ring": Ring, "line": Line, "star": Star, "complete": Complete, "torus": Torus,
    "random-regular": RandomRegular, "erdos-renyi": ErdosRenyi, "watts-strogatz": WattsStrogatz,
    "exponential": Exponential, "dyck": Dyck, "florentine": FlorentineFamilies,
    "edge-list": EdgeList, "one-peer-exponential": OnePeerExponential,
    "random-matching": RandomMatching, "geometric": Geometric, "base": BaseGraph,
    "epidemic": Epidemic,
}
# fmt: on


_of_apps: dict[str, type[Topology]] = {}
"""What apps bring along, in this process."""
SHARED = ("degree", "probability", "path", "side_m", "range_m", "directed")
"""Fields that the run config's ``topology-…`` settings fill, whatever the topology."""


def add_topologies(topologies: Iterable[type[Topology]]) -> None:
    """Make an app's own topologies known in this process, by their ``name``.

    Raises
    ------
    TopologyError
        One is no named subclass of :class:`Topology`, or has the name of another.
    """
    for family in topologies:
        sound = isinstance(family, type) and issubclass(family, Topology)
        require(sound, f"topologies: {family!r} is no subclass of Topology")
        require(bool(family.name), f"{family.__name__}.name must be set, as in name = 'mine'")
        taken = family.name in TOPOLOGIES or family.name in installed(GROUP)
        require(not taken, f"topologies: '{family.name}' is the name of an installed topology")
        _of_apps[family.name] = family


def find_topology(name: str) -> type[Topology]:
    """Return the topology of a name: a built-in one, an installed one, or an app's own.

    Raises
    ------
    TopologyError
        There is none.
    """
    if family := TOPOLOGIES.get(name) or _of_apps.get(name):
        return family
    others = installed(GROUP)
    more = sorted((others.keys() | _of_apps.keys()) - TOPOLOGIES.keys())
    allowed = ", ".join([*TOPOLOGIES, *more])
    require(name in others, f"unknown topology {name!r}; allowed: {allowed}")
    found = others[name].load()
    sound = isinstance(found, type) and issubclass(found, Topology)
    require(sound, f"the entry point {name!r} is {found!r}, no subclass of Topology")
    family = cast(type[Topology], found)
    return family


def own_fields(family: type[Topology]) -> dict[str, tuple[Any, Any]]:
    """Return type and default of each field that only this topology has (... of one without)."""
    hints = get_type_hints(family)
    return {
        f.name: (hints[f.name], ... if f.default is MISSING else f.default)
        for f in fields(family)
        if f.name not in SHARED
    }


def make_topology(
    name: str,
    *,
    own: Mapping[str, Any] | None = None,
    degree: int = 4,
    probability: float = 0.3,
    path: str = "",
    side_m: float = 100.0,
    range_m: float = 50.0,
    directed: bool = False,
) -> Topology:
    """Return the topology of a name, given the parameters that it has.

    Parameters
    ----------
    name : str
        See :func:`find_topology`.
    own : mapping of str to value, optional
        The fields of :func:`own_fields`.
    degree, probability, path, side_m, range_m
        Given to the topologies that have them.
    directed : bool
        Whether links go one way; only topologies that have such a field can.

    Raises
    ------
    TopologyError
        There is none of this name, or its links cannot go one way.
    """
    family = find_topology(name)
    names = _names(family)
    if directed and "directed" not in names:
        able = ", ".join(n for n, kind in TOPOLOGIES.items() if "directed" in _names(kind))
        raise TopologyError(f"{name}: its links go both ways; allowed with directed: {able}")
    given: dict[str, Any] = {"degree": degree, "probability": probability, "path": path}
    given |= {"side_m": side_m, "range_m": range_m, "directed": directed, **(own or {})}
    return family(**{name: given[name] for name in names if name in given})


def _names(family: type[Topology]) -> list[str]:
    return [f.name for f in fields(family)]
