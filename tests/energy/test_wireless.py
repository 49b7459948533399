"""Radio links: hand-computed numbers, invariants, distributions, and what is refused."""

from dataclasses import FrozenInstanceError, replace
from math import exp, inf, log, log2, nan
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_dmml.energy.radio import (
    FADINGS,
    PATH_LOSSES,
    THERMAL_NOISE_W_PER_HZ,
    ChannelModel,
    PathLoss,
    RadioRound,
    Wireless,
    WirelessError,
    broadcast_rate_bps,
    channel_gains,
    grid_positions,
    links_up,
    load_positions,
    rate_bps,
    send_energy_j,
    send_time_s,
)
from flwr_dmml.graph.positions import uniform_positions
from flwr_dmml.graph.topology import Complete, Geometric, Line, Ring, Star

STILL = ChannelModel(shadowing_db=0.0, fading="none")  # path loss only
CHANNELS = [
    STILL,
    ChannelModel(),
    ChannelModel("cellular", 0.0, "rician", 5.0),
    ChannelModel(PathLoss(2.0, 40.0), 4.0, "rayleigh"),
]


def pairs(matrix: np.ndarray) -> np.ndarray:
    """Return the entries below the diagonal: each link once."""
    return matrix[np.tril_indices(len(matrix), -1)]


def draws(channel: ChannelModel, *, num_nodes: int = 400, server_round: int = 1) -> np.ndarray:
    """Return the gains of 79,800 links without path loss."""
    flat = replace(channel, path_loss=PathLoss(1e-12, 0.0))
    at = uniform_positions(num_nodes, 100.0, 0)
    return pairs(channel_gains(at, flat, server_round=server_round, seed=0))


# Positions


def test_uniform_positions() -> None:
    at = uniform_positions(2000, 50.0, 3)
    assert at.shape == (2000, 2) and at.dtype == np.float64
    assert (at >= 0).all() and (at < 50).all()
    # the mean of 2000 uniform numbers has the standard deviation 50 / sqrt(12 * 2000) = 0.32
    np.testing.assert_allclose(at.mean(axis=0), 25, atol=1.6)
    np.testing.assert_array_equal(at, uniform_positions(2000, 50.0, 3))
    np.testing.assert_array_equal(at[:7], uniform_positions(7, 50.0, 3))
    assert (at != uniform_positions(2000, 50.0, 4)).all()


def test_grid_positions() -> None:
    """5 nodes need 3 x 3 cells of 20 m, whose centres are at 10, 30 and 50 m."""
    expected = [[10, 10], [30, 10], [50, 10], [10, 30], [30, 30]]
    np.testing.assert_allclose(grid_positions(5, 60.0), expected)
    np.testing.assert_allclose(grid_positions(1, 60.0), [[30, 30]])
    np.testing.assert_allclose(grid_positions(4, 60.0).max(), 45)  # 2 x 2, not 3 x 3


@pytest.mark.parametrize("side_m", [0.0, -1.0, inf, nan])
def test_a_square_has_a_side(side_m: float) -> None:
    assert issubclass(WirelessError, ValueError)
    with pytest.raises(ValueError, match=f"side_m must be a number above 0, not {side_m}"):
        uniform_positions(3, side_m, 0)
    with pytest.raises(WirelessError, match="side_m must be a number above 0"):
        grid_positions(3, side_m)


def test_load_positions(tmp_path: Path) -> None:
    path = tmp_path / "at.txt"
    path.write_text("\ufeff# metres\n\n0 1.5\n -3e2\t4  # far\r\n", encoding="utf-8")
    np.testing.assert_array_equal(load_positions(str(path), 2), [[0, 1.5], [-300, 4]])
    at = Wireless(positions=str(path)).locate(2, seed=0)
    np.testing.assert_array_equal(at, load_positions(str(path), 2))


@pytest.mark.parametrize("line", ["1", "1 2 3", "a 2", "1,2", "nan 1", "1 inf", "1e999 0"])
def test_load_positions_names_the_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "at.txt"
    path.write_text(f"0 1\n{line} # wrong\n")
    with pytest.raises(WirelessError) as error:
        load_positions(str(path), 2)
    message = str(error.value)
    assert f"{path}, line 2: '{line} # wrong'" in message
    assert message.endswith("allowed: two finite numbers, x y in metres")


@pytest.mark.parametrize("num_nodes, lines", [(3, 2), (1, 2), (1, 0)])
def test_load_positions_wants_one_a_node(tmp_path: Path, num_nodes: int, lines: int) -> None:
    path = tmp_path / "at.txt"
    path.write_text("1 2\n" * lines)
    with pytest.raises(WirelessError) as error:
        load_positions(str(path), num_nodes)
    ends = f"{path}, line {lines}: the file ends with {lines} positions"
    assert str(error.value).endswith(f"{ends}; allowed: one a node, {num_nodes} in all")


def test_positions_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in ("", "unifrom", str(tmp_path), str(binary), "a\0b"):
        with pytest.raises(WirelessError, match="must be uniform, grid or a text file") as error:
            Wireless(positions=path).locate(3, seed=0)
        assert repr(path) in str(error.value)


# Path loss


@given(st.floats(0.001, 100))
def test_path_loss_presets_are_those_of_the_papers(distance_km: float) -> None:
    d2d, cellular = PATH_LOSSES["d2d"], PATH_LOSSES["cellular"]
    expected = 148 + 40 * np.log10(distance_km)
    assert d2d.db(1000 * distance_km) == pytest.approx(expected, abs=1e-9)
    expected = 128.1 + 37.6 * np.log10(distance_km)
    assert cellular.db(1000 * distance_km) == pytest.approx(expected, abs=1e-9)


def test_path_loss_by_hand() -> None:
    """Exponent 3 and 40 dB: 40 at 1 m, 70 at 10 m, 100 at 100 m; nearer than 1 m is 1 m."""
    loss = PathLoss(3.0, 40.0).db([[0, 0.5, 1], [10, 100, 1000]])
    np.testing.assert_allclose(loss, [[40, 40, 40], [70, 100, 130]])
    assert PathLoss(3.0, 40.0, min_distance_m=10.0).db(0) == pytest.approx(70)


@pytest.mark.parametrize(
    "values, words",
    [
        ((0.0, 40.0), "exponent must be a number above 0, not 0.0"),
        ((nan, 40.0), "exponent must be a number above 0, not nan"),
        ((2.0, -1.0), "reference_db must be a number, 0 or more, not -1.0"),
        ((2.0, 40.0, 0.0), "min_distance_m must be a number above 0, not 0.0"),
    ],
)
def test_path_losses_that_cannot_be(values: tuple[float, ...], words: str) -> None:
    with pytest.raises(WirelessError, match=words):
        PathLoss(*values)


# Channel


@pytest.mark.parametrize("channel", CHANNELS, ids=repr)
def test_gains_are_reciprocal_finite_and_repeatable(channel: ChannelModel) -> None:
    at = uniform_positions(30, 100.0, 1)
    at[1] = at[0]  # two nodes in one place
    gains = channel_gains(at, channel, server_round=2, seed=1)
    assert gains.shape == (30, 30) and gains.dtype == np.float64
    np.testing.assert_array_equal(gains, gains.T)
    assert (gains.diagonal() == 0).all() and (pairs(gains) > 0).all() and np.isfinite(gains).all()
    np.testing.assert_array_equal(gains, channel_gains(at, channel, server_round=2, seed=1))
    fewer = channel_gains(at[:9], channel, server_round=2, seed=1)
    np.testing.assert_array_equal(fewer, gains[:9, :9])  # who joins changes no other link


def test_a_gain_by_hand() -> None:
    """A 3-4-5 triangle in units of 10 m, exponent 2, 40 dB at 1 m: 10^-4 / d^2."""
    at = np.array([[0.0, 0.0], [30.0, 0.0], [30.0, 40.0]])
    channel = ChannelModel(PathLoss(2.0, 40.0), 0.0, "none")
    gains = channel_gains(at, channel, server_round=1, seed=0)
    expected = 1e-4 / np.array([[inf, 30, 50], [30, inf, 40], [50, 40, inf]]) ** 2
    np.testing.assert_allclose(gains, expected, rtol=1e-12)


def test_gains_leave_the_global_generator_alone() -> None:
    state = np.random.get_state()[1].tolist()  # type: ignore[index]
    draws(ChannelModel(), num_nodes=5)
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]


def test_rayleigh_power_is_exponential() -> None:
    """|g|^2 ~ Exp(1): mean 1, and P(|g|^2 <= -log(1 - q)) = q.

    With 79,800 links the mean has the standard deviation 1 / sqrt(79,800) = 0.0035, and a share q
    at most sqrt(1/4 / 79,800) = 0.0018.
    """
    power = draws(ChannelModel(shadowing_db=0.0, fading="rayleigh"))
    assert power.mean() == pytest.approx(1, abs=0.015)
    for q in (0.01, 0.1, 0.5, 0.9, 0.99):
        assert (power <= -log(1 - q)).mean() == pytest.approx(q, abs=0.008)


@pytest.mark.parametrize("k", [0.0, 1.0, 10.0])
def test_rician_power(k: float) -> None:
    """|s + a + jb|^2 = s^2 + 2sa + a^2 + b^2, with s^2 = K / (K + 1), a + jb ~ CN(0, 1 / (K + 1)).

    Mean: s^2 + 1 / (K + 1) = 1. Variance: that of 2sa, 4 s^2 / (2 (K + 1)), and of the exponential
    a^2 + b^2, 1 / (K + 1)^2, which are uncorrelated: (2K + 1) / (K + 1)^2.
    """
    power = draws(ChannelModel(shadowing_db=0.0, fading="rician", rician_k=k))
    assert power.mean() == pytest.approx(1, abs=0.015)
    assert power.var() == pytest.approx((2 * k + 1) / (k + 1) ** 2, rel=0.05)


def test_rician_without_a_direct_path_is_rayleigh_and_with_nothing_else_is_still() -> None:
    power = draws(ChannelModel(shadowing_db=0.0, fading="rician", rician_k=0.0))
    assert (power <= 1).mean() == pytest.approx(1 - exp(-1), abs=0.008)
    power = draws(ChannelModel(shadowing_db=0.0, fading="rician", rician_k=1e12))
    np.testing.assert_allclose(power, 1, atol=1e-4)


def test_shadowing_is_normal_in_db() -> None:
    """The standard deviation of n draws is known to 1 / sqrt(2 n): 0.25 %; the mean to 0.03 dB."""
    shadow_db = 10 * np.log10(draws(ChannelModel(shadowing_db=8.0, fading="none")))
    assert shadow_db.std() == pytest.approx(8, rel=0.015)
    assert shadow_db.mean() == pytest.approx(0, abs=0.15)
    assert (np.abs(shadow_db) < 8).mean() == pytest.approx(0.6827, abs=0.008)  # one sigma
    np.testing.assert_allclose(draws(STILL), 1)


def test_fading_changes_with_the_round_and_shadowing_does_not() -> None:
    shadowed = ChannelModel(shadowing_db=8.0, fading="none")
    np.testing.assert_array_equal(draws(shadowed), draws(shadowed, server_round=2))
    for fading in ("rayleigh", "rician"):
        faded = ChannelModel(shadowing_db=0.0, fading=fading)
        one, two = draws(faded), draws(faded, server_round=2)
        assert (one != two).all()
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.02  # 1 / sqrt(79,800) = 0.0035
        both = ChannelModel(shadowing_db=8.0, fading=fading)
        for t, alone in ((1, one), (2, two)):  # each round is the same shadow times its own fading
            np.testing.assert_allclose(draws(both, server_round=t), draws(shadowed) * alone)


@pytest.mark.parametrize("fading", FADINGS)
def test_another_seed_is_another_channel(fading: str) -> None:
    at = grid_positions(9, 100.0)
    one, two = (
        channel_gains(at, ChannelModel(fading=fading), server_round=1, seed=seed) for seed in (0, 1)
    )
    assert (pairs(one) != pairs(two)).all()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"path_loss": "moon"}, "unknown path loss 'moon'; allowed: d2d, cellular or a PathLoss"),
        ({"fading": "fast"}, "unknown fading 'fast'; allowed: none, rayleigh, rician"),
        ({"shadowing_db": -1.0}, "shadowing_db must be a number, 0 or more, not -1.0"),
        ({"rician_k": inf}, "rician_k must be a number, 0 or more, not inf"),
    ],
)
def test_channels_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(WirelessError, match=words):
        ChannelModel(**options)


# Rates, time and energy


def test_the_scale_check_of_the_methods() -> None:
    """By hand: 0.1 W, 1 MHz, d2d path loss, 50 m, no fading.

    Loss 148 + 40 log10(0.05) = 148 - 52.04 = 95.96 dB. Received 20 dBm - 95.96 dB = -75.96 dBm;
    noise -174 + 60 = -114 dBm; SNR 38.04 dB = 6369. Rate 1e6 log2(6370) = 12.637 Mb/s.
    ResNet-18, 11.2e6 x 32 bit = 358.4 Mbit: 28.36 s, and 0.1 W x 28.36 s = 2.836 J.
    50,000 parameters, 1.6 Mbit: 0.1266 s and 0.01266 J.
    """
    at = np.array([[0.0, 0.0], [30.0, 40.0]])
    gains = channel_gains(at, STILL, server_round=1, seed=0)
    snr = 0.1 * gains[0, 1] / (THERMAL_NOISE_W_PER_HZ * 1e6)
    assert 10 * np.log10(snr) == pytest.approx(38.04, abs=0.005)
    rate = rate_bps(gains, 0.1, 1e6, THERMAL_NOISE_W_PER_HZ)
    assert rate[0, 1] == pytest.approx(12.637e6, rel=1e-4)
    seconds = send_time_s([358.4e6, 1.6e6], rate[0, 1])
    np.testing.assert_allclose(seconds, [28.36, 0.1266], rtol=1e-3)
    energy = send_energy_j([358.4e6, 1.6e6], rate[0, 1], 0.1)
    np.testing.assert_allclose(energy, [2.836, 0.01266], rtol=1e-3)


def test_a_rate_by_hand() -> None:
    """Noise 1e-3 W/Hz x 1000 Hz = 1 W; received 2 W x 1.5 = 3 W: 1000 log2(1 + 3) = 2000 bit/s."""
    assert rate_bps(1.5, 2.0, 1000.0, 1e-3) == pytest.approx(2000)
    assert rate_bps(0.0, 2.0, 1000.0, 1e-3) == 0
    # an SNR far below the rounding error of 1 + SNR still has its rate, B SNR / ln 2
    assert rate_bps(1e-20, 1.0, 1000.0, 1e-3) == pytest.approx(1000 * 1e-20 / log(2))


def test_power_and_band_belong_to_the_sender() -> None:
    """Row k is what k sends: with N0 B = 1 and SNR 1, 3, 7 these are 1, 2, 3 bit/s/Hz."""
    rate = rate_bps(np.ones((3, 3)), [1.0, 3.0, 7.0], 1.0, 1.0)
    np.testing.assert_allclose(rate, [[1, 1, 1], [2, 2, 2], [3, 3, 3]])
    rate = rate_bps(np.ones((2, 2)), 3.0, [1.0, 3.0], 1.0)  # SNR 3 and 1
    np.testing.assert_allclose(rate, [[2, 2], [3, 3]])
    np.testing.assert_allclose(rate_bps([1.0, 1.0], [1.0, 3.0], 1.0, 1.0), [1, 2])


positive = st.floats(1e-3, 1e3)


@given(st.floats(1, 1e4), st.floats(1.01, 10), positive, st.floats(1e3, 1e8))
def test_rates_are_monotone(distance: float, more: float, power: float, band: float) -> None:
    """Further is slower; more power, and a wider band, is faster, if less than in proportion."""

    def rate(distance: float, power: float, band: float) -> float:
        at = np.array([[0.0, 0.0], [distance, 0.0]])
        gain = channel_gains(at, STILL, server_round=1, seed=0)[0, 1]
        return float(rate_bps(gain, power, band, THERMAL_NOISE_W_PER_HZ))

    here = rate(distance, power, band)
    assert rate(more * distance, power, band) < here
    assert here < rate(distance, more * power, band) < more * here * (1 + 1e-12)
    assert here < rate(distance, power, more * band) < more * here * (1 + 1e-12)


def test_links_up_is_symmetric() -> None:
    """0-1 is fast enough one way only; 0-2 both ways, at the limit; 1-2 has no rate at all."""
    rate = np.array([[0.0, 9.0, 5.0], [4.0, 0.0, 0.0], [5.0, 0.0, 9.0]])
    none, between_0_and_2 = np.zeros((3, 3), bool), np.zeros((3, 3), bool)
    between_0_and_2[0, 2] = between_0_and_2[2, 0] = True
    np.testing.assert_array_equal(links_up(rate, 5.0), between_0_and_2)
    np.testing.assert_array_equal(links_up(rate, 5.1), none)
    between_0_and_2[0, 1] = between_0_and_2[1, 0] = True
    np.testing.assert_array_equal(links_up(rate, 0.0), between_0_and_2)


def test_the_worst_neighbour_sets_the_broadcast_rate() -> None:
    """Node 0 is heard by 1 and 2, node 1 by 0, node 2 by 0, and node 3 by nobody."""
    rate = np.array([[0, 9, 5, 1], [8, 0, 1, 1], [2, 1, 0, 1], [1, 1, 1, 0]], dtype=float)
    neighbours = nx.to_numpy_array(nx.Graph([(0, 1), (0, 2), (3, 3)]), nodelist=range(4)) > 0
    np.testing.assert_array_equal(broadcast_rate_bps(rate, neighbours), [5, 8, 2, inf])


def test_nothing_to_send_or_nobody_to_hear_costs_nothing() -> None:
    bits, rate = [0.0, 0.0, 0.0, 8.0, 8.0, 8.0], [2.0, 0.0, inf, inf, 2.0, 0.0]
    np.testing.assert_array_equal(send_time_s(bits, rate), [0, 0, 0, 0, 4, inf])
    np.testing.assert_array_equal(send_energy_j(bits, rate, 0.5), [0, 0, 0, 0, 2, inf])
    np.testing.assert_array_equal(send_energy_j(8.0, 2.0, [0.5, 1.0]), [2, 4])
    for wrong in (-1.0, inf, nan):
        with pytest.raises(WirelessError, match="payload_bits must be finite and at least 0"):
            send_time_s([1.0, wrong], 1.0)


# The facade


def radio_round(
    graph: nx.Graph, bits: Any, *, t: int = 1, seed: int = 0, **options: Any
) -> RadioRound:
    return Wireless(**options).broadcast(graph, bits, server_round=t, seed=seed)


def test_a_line_by_hand(tmp_path: Path) -> None:
    """Nodes at 0, 10 and 30 m on a line, loss d^2 (exponent 2, 0 dB), N0 B = 1 W, 1 Hz.

    SNR 0-1: p / 100; 1-2: p / 400. Powers 300, 1200, 2800 W: 0 -> 1 has SNR 3, 2 bit/s;
    1 -> 0 has 12 but 1 -> 2 has 3, so 1 broadcasts at 2 bit/s; 2 -> 1 has 7, 3 bit/s.
    12 bits: 6, 6, 4 s, and 1800, 7200, 11,200 J.
    """
    path = tmp_path / "at.txt"
    path.write_text("0 0\n10 0\n30 0\n")
    done = radio_round(
        Line().graph(3),
        [12, 12, 12],
        positions=str(path),
        channel=ChannelModel(PathLoss(2.0, 0.0), 0.0, "none"),
        power_w=(300.0, 1200.0, 2800.0),
        bandwidth_hz=1.0,
        noise_w_per_hz=1.0,
    )
    np.testing.assert_allclose(done.rate_bps, [2, 2, 3])
    np.testing.assert_allclose(done.time_s, [6, 6, 4])
    np.testing.assert_allclose(done.energy_j, [1800, 7200, 11200])
    assert set(done.graph.edges) == {(0, 1), (1, 2)}


@given(st.integers(1, 12), st.integers(1, 50), st.integers(0, 50), st.sampled_from(CHANNELS))
def test_a_round_always(num_nodes: int, t: int, seed: int, channel: ChannelModel) -> None:
    graph = Geometric(100.0, 60.0).graph(num_nodes, seed=seed)
    options: dict[str, Any] = {"channel": channel, "min_rate_bps": 1e7}
    bits = 1e6 * np.arange(num_nodes)
    done = radio_round(graph, bits, t=t, seed=seed, **options)
    again = radio_round(graph, bits, t=t, seed=seed, **options)
    np.testing.assert_array_equal(done.energy_j, again.energy_j)
    np.testing.assert_array_equal(done.up, done.up.T)
    rate = rate_bps(done.gains, 0.1, 1e6, THERMAL_NOISE_W_PER_HZ)
    assert list(done.graph) == list(range(num_nodes))
    for i, j in nx.complete_graph(num_nodes).edges:
        assert done.up[i, j] == (min(rate[i, j], rate[j, i]) >= 1e7)
        assert done.graph.has_edge(i, j) == (graph.has_edge(i, j) and done.up[i, j])
    for k in range(num_nodes):
        assert done.rate_bps[k] == min((rate[k, j] for j in done.graph[k]), default=inf)
        assert done.time_s[k] == (bits[k] / done.rate_bps[k] if done.graph[k] else 0)
    np.testing.assert_allclose(done.energy_j, 0.1 * done.time_s)
    assert (done.time_s <= bits / 1e7).all()  # no link below the minimum is waited for
    assert set(map(frozenset, done.graph.edges)) <= set(map(frozenset, graph.edges))


def test_outage_can_silence_everybody() -> None:
    done = radio_round(Ring().graph(5), [1e6] * 5, min_rate_bps=1e12)
    assert done.graph.number_of_edges() == 0 and not done.up.any()
    assert (done.rate_bps == inf).all()
    assert (done.time_s == 0).all() and (done.energy_j == 0).all()


def test_outages_follow_the_fading() -> None:
    """Grid of 4 on a 100 m square: sides 50 m, mean SNR 6369. P(|g|^2 < x) = 1 - exp(-x).

    A minimum of log2(1 + 6369/2) bit/s/Hz needs |g|^2 >= 1/2: up with probability exp(-1/2) =
    0.607. Over 300 rounds of 4 sides the share has a deviation of sqrt(0.24 / 1200) = 0.014.
    """
    radios = Wireless(
        positions="grid",
        channel=ChannelModel(shadowing_db=0.0, fading="rayleigh"),
        min_rate_bps=1e6 * log2(1 + 6369 / 2),
    )
    graph = nx.Graph([(0, 1), (1, 3), (3, 2), (2, 0)])
    live = [
        radios.broadcast(graph, [0] * 4, server_round=t, seed=0).graph.number_of_edges()
        for t in range(1, 301)
    ]
    assert sum(live) / 1200 == pytest.approx(exp(-0.5), abs=0.06)
    assert len(set(live)) > 2


def test_dead_nodes_are_left_out_of_the_graph() -> None:
    """Star around node 0 without node 3: node 3 has nobody to send to, and nobody waits for it."""
    whole = radio_round(Star().graph(4), [1e6] * 4, channel=STILL)
    alive = radio_round(Star().graph(4).subgraph([0, 1, 2]), [1e6] * 4, channel=STILL)
    assert len(alive.graph) == 4 and alive.graph.number_of_edges() == 2
    np.testing.assert_array_equal(alive.gains, whole.gains)
    assert alive.energy_j[3] == 0 < whole.energy_j[3]
    rate = rate_bps(alive.gains, 0.1, 1e6, THERMAL_NOISE_W_PER_HZ)
    assert alive.rate_bps[0] == rate[0, 1:3].min() and whole.rate_bps[0] == rate[0, 1:].min()


def test_one_node_has_nobody_to_send_to() -> None:
    for positions in ("uniform", "grid"):
        done = radio_round(Ring().graph(1), [1e6], positions=positions)
        assert (done.gains, done.up, done.time_s, done.energy_j) == (0, False, 0, 0)


def test_more_power_is_faster_but_costs_more() -> None:
    """Energy p / log2(1 + p h / N0 B) rises with p: the rate is concave in it."""
    weak, strong = (radio_round(Complete().graph(6), [1e6] * 6, power_w=p) for p in (0.01, 0.1))
    assert (strong.time_s < weak.time_s).all() and (strong.energy_j > weak.energy_j).all()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"side_m": 0.0}, "side_m must be a number above 0, not 0.0"),
        ({"power_w": 0.0}, "power_w must be a number above 0, not 0.0"),
        ({"power_w": (0.1, -1.0)}, "power_w must be a number above 0, not -1.0"),
        ({"bandwidth_hz": inf}, "bandwidth_hz must be a number above 0, not inf"),
        ({"noise_w_per_hz": nan}, "noise_w_per_hz must be a number above 0, not nan"),
        ({"min_rate_bps": -1.0}, "min_rate_bps must be a number, 0 or more, not -1.0"),
    ],
)
def test_radios_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(WirelessError, match=words):
        Wireless(**options)


def test_sizes_must_agree() -> None:
    with pytest.raises(WirelessError, match=r"one of each node, not of shape \[3\], for Graph.* 4"):
        radio_round(Ring().graph(4), [1.0, 1.0, 1.0])
    with pytest.raises(WirelessError, match=r"one of each node, not of shape \[\]"):
        radio_round(Ring().graph(1), 1.0)
    with pytest.raises(WirelessError, match="power_w must be one number or 4, not 3"):
        radio_round(Ring().graph(4), [1.0] * 4, power_w=(1.0, 1.0, 1.0))


def test_options_are_values() -> None:
    assert Wireless() == Wireless() and hash(Wireless()) == hash(Wireless())
    assert Wireless() != Wireless(channel=STILL)
    with pytest.raises(FrozenInstanceError):
        Wireless().side_m = 1.0  # type: ignore[misc]
