"""Radio links: node positions, path loss, shadowing, fading, Shannon rate, time and energy to send.

Links are reciprocal (the gain from i to j is that from j to i) and free of interference. Matrices
are sender first: row k is what node k sends, column j what node j hears. All units are SI.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, isqrt, log, sqrt
from pathlib import Path

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.seeding import numpy_generator
from ..graph.positions import uniform_positions
from ..graph.weights import with_links

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

THERMAL_NOISE_W_PER_HZ = 10 ** ((-174 - 30) / 10)  # -174 dBm/Hz, about 4.0e-21 W/Hz at 290 K


class WirelessError(ValueError):
    """A radio option or position that cannot be; the message says what is wrong and allowed."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise WirelessError(message)


def _require_positive(name: str, value: float, *, or_zero: bool = False) -> None:
    allowed = "a number, 0 or more" if or_zero else "a number above 0"
    valid = 0 <= value < inf if or_zero else 0 < value < inf
    _require(valid, f"{name} must be {allowed}, not {value}")


def grid_positions(num_nodes: int, side_m: float) -> Array:
    """Return positions [n, 2] in metres: the centres of c x c cells of a square, row by row.

    c = ceil(sqrt(n)), n >= 1, so the nearest nodes are side_m / c apart; the last cells may be
    empty. Raises :class:`WirelessError` unless side_m > 0.
    """
    _require_positive("side_m", side_m)
    cols = isqrt(num_nodes - 1) + 1
    row, col = np.divmod(np.arange(num_nodes), cols)  # [n], [n]
    return (np.stack([col, row], axis=1) + 0.5) * (side_m / cols)


def load_positions(path: str, num_nodes: int) -> Array:
    """Return positions [n, 2] in metres from a UTF-8 file: one ``x y`` a line, ``#`` comments.

    Raises :class:`WirelessError` unless it holds exactly ``num_nodes`` pairs of finite numbers.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        why = f"positions must be uniform, grid or a text file's path, not {path!r} ({error})"
        raise WirelessError(why) from error
    positions: list[tuple[float, float]] = []
    for number, line in enumerate(lines, start=1):
        if words := line.partition("#")[0].split():
            where = f"positions: {path}, line {number}: {line.strip()!r}"
            try:
                x, y = map(float, words)
            except ValueError:
                x = y = inf
            valid = isfinite(x) and isfinite(y)
            _require(valid, f"{where} is no position; allowed: two finite numbers, x y in metres")
            positions.append((x, y))
    found = f"positions: {path}, line {len(lines)}: the file ends with {len(positions)} positions"
    _require(len(positions) == num_nodes, f"{found}; allowed: one a node, {num_nodes} in all")
    return np.array(positions, dtype=np.float64)  # [n, 2]


@dataclass(frozen=True)
class PathLoss:
    """Path loss of ``reference_db`` (>= 0) at 1 m and 10 x ``exponent`` (> 0) more dB a decade."""

    exponent: float
    reference_db: float
    min_distance_m: float = 1.0  # > 0; nearer nodes count as this far apart

    def __post_init__(self) -> None:
        for name in ("exponent", "reference_db", "min_distance_m"):
            _require_positive(name, getattr(self, name), or_zero=name == "reference_db")

    def db(self, distance_m: ArrayLike) -> Array:
        """Return the loss in dB at distances >= 0, of any shape."""
        far = np.maximum(np.asarray(distance_m, dtype=np.float64), self.min_distance_m)
        return np.asarray(self.reference_db + 10 * self.exponent * np.log10(far))


# a + b log10(d [km]) is a - 3b dB at 1 m. 3GPP style: device to device 148 + 40 log10(d [km]), and
# macro cell 128.1 + 37.6 log10(d [km]).
PATH_LOSSES = {"d2d": PathLoss(4.0, 148.0 - 3 * 40.0), "cellular": PathLoss(3.76, 128.1 - 3 * 37.6)}


def _rician(rng: np.random.Generator, num_links: int, k: float) -> Array:
    """|sqrt(K / (K + 1)) + CN(0, 1 / (K + 1))|^2, a complex normal's parts having half each."""
    re, im = rng.normal(scale=sqrt(0.5 / (k + 1)), size=(num_links, 2)).T  # [links], [links]
    return np.asarray((sqrt(k / (k + 1)) + re) ** 2 + im**2)


# |g|^2 [links] of mean 1, from (generator, number of links, Rician K factor)
FADINGS: dict[str, Callable[[np.random.Generator, int, float], Array]] = {
    "none": lambda rng, num_links, k: np.ones(num_links),
    "rayleigh": lambda rng, num_links, k: rng.exponential(size=num_links),
    "rician": _rician,
}


@dataclass(frozen=True)
class ChannelModel:
    """Channel between two nodes: path loss, shadowing fixed for a run, fading new every round.

    ``path_loss`` is a name of :data:`PATH_LOSSES` or a :class:`PathLoss`; ``shadowing_db`` >= 0 the
    standard deviation of the log-normal shadowing; ``fading`` a name of :data:`FADINGS`;
    ``rician_k`` >= 0 the power of the direct path over that of all others (a ratio, not dB; 0 is
    Rayleigh), for "rician" only. Raises :class:`WirelessError` otherwise. Defaults: this project.
    """

    path_loss: str | PathLoss = "d2d"
    shadowing_db: float = 8.0
    fading: str = "rayleigh"
    rician_k: float = 3.0

    def __post_init__(self) -> None:
        known = isinstance(self.path_loss, PathLoss) or self.path_loss in PATH_LOSSES
        names = f"{', '.join(PATH_LOSSES)} or a PathLoss"
        _require(known, f"unknown path loss {self.path_loss!r}; allowed: {names}")
        allowed = ", ".join(FADINGS)
        _require(self.fading in FADINGS, f"unknown fading {self.fading!r}; allowed: {allowed}")
        for name in ("shadowing_db", "rician_k"):
            _require_positive(name, getattr(self, name), or_zero=True)


def channel_gains(
    positions: Array, channel: ChannelModel, *, server_round: int, seed: int
) -> Array:
    """Return the power gains [n, n] in a round between nodes at ``positions`` [n, 2] in metres.

    ``h = 10^(-(PL(d) + X) / 10) |g|^2`` with X ~ N(0, shadowing_db^2) drawn once a run and |g|^2 of
    mean 1 once a round (block fading), both for each pair of nodes; with more nodes the links
    between the first ones stay the same. Linear (not dB), symmetric, >= 0; 0 on the diagonal, as
    nobody sends to itself.
    """
    n = len(positions)
    i, j = np.tril_indices(n, -1)  # [links]: each pair once, the pairs of the first nodes first
    loss = channel.path_loss
    loss = PATH_LOSSES[loss] if isinstance(loss, str) else loss
    loss_db = loss.db(np.hypot(*(positions[i] - positions[j]).T))  # [links]
    loss_db += channel.shadowing_db * numpy_generator(seed, "shadowing").normal(size=len(i))
    rng = numpy_generator(seed, "fading", server_round)
    power = FADINGS[channel.fading](rng, len(i), channel.rician_k)  # |g|^2 [links]
    gains = np.zeros((n, n))
    gains[i, j] = gains[j, i] = 10 ** (-loss_db / 10) * power
    return gains


def rate_bps(
    gain: ArrayLike, power_w: ArrayLike, bandwidth_hz: ArrayLike, noise_w_per_hz: float
) -> Array:
    """Return the Shannon rate ``B log2(1 + p h / (N0 B))`` in bit/s.

    ``gain`` h >= 0, linear, sender first, e.g. [n, n]; ``power_w`` p >= 0 and ``bandwidth_hz`` B >
    0 of all senders, or [n] of each; noise density N0 > 0. Returns the shape of ``gain``: accurate
    for the weakest links too, 0 where the gain is 0. Source: Shannon 1949.
    """
    h = np.asarray(gain, dtype=np.float64)
    p, band = (  # [n] becomes [n, 1] beside gains [n, n]
        value.reshape(value.shape + (1,) * (h.ndim - value.ndim))
        for value in (np.asarray(power_w, np.float64), np.asarray(bandwidth_hz, np.float64))
    )
    return np.asarray(band * np.log1p(p * h / (noise_w_per_hz * band)) / log(2))


def links_up(rate: Array, min_rate_bps: float) -> Mask:
    """Return which links [n, n] work: both ways at ``min_rate_bps`` (>= 0) or more, and above 0.

    Symmetric for any rates [n, n] (bit/s); False on the diagonal. The others are in outage.
    """
    enough = (rate >= min_rate_bps) & (rate > 0)
    return np.asarray(enough & enough.T & ~np.eye(len(rate), dtype=np.bool_))


def broadcast_rate_bps(rate: Array, neighbours: Mask) -> Array:
    """Return the rate [n] at which all neighbours hear a node: that of its worst link.

    ``rate`` [n, n] in bit/s, ``neighbours`` [n, n] whether j listens to k (the diagonal is
    ignored). Infinite without neighbours: such a node sends in no time.
    """
    others = neighbours & ~np.eye(len(rate), dtype=np.bool_)
    return np.asarray(np.where(others, rate, inf).min(axis=1))


def send_time_s(payload_bits: ArrayLike, rate: ArrayLike) -> Array:
    """Return payload_bits / rate in seconds: 0 for 0 bits or an infinite rate, infinite at rate 0.

    Raises :class:`WirelessError` unless all payloads are finite and >= 0.
    """
    bits, bps = np.broadcast_arrays(np.asarray(payload_bits, np.float64), rate)
    valid = bool(np.all(np.isfinite(bits) & (bits >= 0)))
    _require(valid, f"payload_bits must be finite and at least 0, not {bits}")
    time_s = np.zeros(bits.shape)
    with np.errstate(divide="ignore"):
        np.divide(bits, bps, out=time_s, where=bits > 0)
    return time_s


def send_energy_j(payload_bits: ArrayLike, rate: ArrayLike, power_w: ArrayLike) -> Array:
    """Return power_w x :func:`send_time_s` in joules: one transmission, its radiated power only."""
    return np.asarray(power_w, np.float64) * send_time_s(payload_bits, rate)


@dataclass(frozen=True)
class RadioRound:
    """A round of n broadcasts; matrices are sender first.

    ``gains`` [n, n] and ``up`` [n, n] (which links work) are of all pairs; ``graph`` is the given
    one on all n nodes without its links in outage; ``rate_bps`` (infinite without neighbours in
    ``graph``), ``time_s`` and ``energy_j`` [n] are of each node's one broadcast to those.
    """

    gains: Array
    up: Mask
    graph: nx.Graph
    rate_bps: Array
    time_s: Array
    energy_j: Array


@dataclass(frozen=True)
class Wireless:
    """The radios of a fleet; raises :class:`WirelessError` for an option that cannot be."""

    positions: str = "uniform"  # "uniform", "grid", or the path of a file for load_positions
    side_m: float = 100.0  # > 0, of the square, for "uniform" and "grid"
    channel: ChannelModel = ChannelModel()
    power_w: float | tuple[float, ...] = 0.1  # > 0; one of all nodes, or one a node
    bandwidth_hz: float = 1e6  # > 0, of each node's own band
    noise_w_per_hz: float = THERMAL_NOISE_W_PER_HZ  # > 0
    min_rate_bps: float = 0.0  # >= 0; slower links are down in that round

    def __post_init__(self) -> None:
        for name in ("side_m", "bandwidth_hz", "noise_w_per_hz"):
            _require_positive(name, getattr(self, name))
        _require_positive("min_rate_bps", self.min_rate_bps, or_zero=True)
        for power_w in np.atleast_1d(self.power_w):
            _require_positive("power_w", power_w)

    def locate(self, num_nodes: int, *, seed: int) -> Array:
        """Return the positions [n, 2] in metres."""
        if self.positions == "uniform":
            return uniform_positions(num_nodes, self.side_m, seed)
        if self.positions == "grid":
            return grid_positions(num_nodes, self.side_m)
        return load_positions(self.positions, num_nodes)

    def broadcast(
        self, graph: nx.Graph, payload_bits: ArrayLike, *, server_round: int, seed: int
    ) -> RadioRound:
        """Return what it costs in a round that every node sends its payload to its neighbours.

        ``payload_bits`` [n] >= 0, one of each node, dead or alive; ``graph``: who listens to whom,
        on some or all of the nodes ``0 .. n - 1``. ``server_round`` and the run's ``seed`` make the
        channel. Raises :class:`WirelessError` when the sizes do not agree.
        """
        bits = np.asarray(payload_bits, dtype=np.float64)  # [n]
        n = bits.size
        sizes = f"payload_bits must be one of each node, not of shape {list(bits.shape)}"
        _require(bits.ndim == 1 and set(graph) <= set(range(n)), f"{sizes}, for {graph}")
        power = np.asarray(self.power_w, dtype=np.float64)  # [] or [n]
        _require(power.size in (1, n), f"power_w must be one number or {n}, not {power.size}")
        where = self.locate(n, seed=seed)  # [n, 2]
        gains = channel_gains(where, self.channel, server_round=server_round, seed=seed)  # [n, n]
        rate = rate_bps(gains, power, self.bandwidth_hz, self.noise_w_per_hz)  # [n, n]
        up = links_up(rate, self.min_rate_bps)  # [n, n]
        live = with_links(graph, lambda i, j: bool(up[i, j]))
        live.add_nodes_from(range(n))
        neighbours = nx.to_numpy_array(live, nodelist=range(n), weight=None) > 0  # [n, n]
        worst = broadcast_rate_bps(rate, neighbours)  # [n]
        time_s = send_time_s(bits, worst)
        return RadioRound(gains, up, live, worst, time_s, send_energy_j(bits, worst, power))
