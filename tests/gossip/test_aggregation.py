"""Aggregation rules against slow copies of their papers, by hand, and against liars."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.base.options import Group
from flwr_dmml.gossip.aggregation.balance import Balance, BalanceOptions
from flwr_dmml.gossip.aggregation.gated_ios import ODD, ODD_ONE, GatedIos, GatedIosOptions, Robust
from flwr_dmml.gossip.aggregation.ios import Ios
from flwr_dmml.gossip.aggregation.mean import Mean
from flwr_dmml.gossip.aggregation.monna import Monna
from flwr_dmml.gossip.aggregation.rule import AggregationRule
from flwr_dmml.gossip.aggregation.scclip import Scclip, ScclipOptions
from flwr_dmml.gossip.aggregation.trimmed_mean import TrimmedMean, TrimmedMeanOptions
from flwr_dmml.gossip.aggregation.weighing import PIECE, Around, Weighing, table_of
from flwr_dmml.gossip.registry import find_aggregation, make_aggregation
from flwr_dmml.settings import find_parts, parse_settings

Floats = NDArray[np.float64]
KNOWN = find_aggregation()
ROBUST = [name for name, kind in KNOWN.items() if kind.robust]
NAMES = [*ROBUST, *(f"nnm+{name}" for name in ROBUST)]


def make(name: str, liars: float, **options: Any) -> AggregationRule:
    kind = KNOWN[name.removeprefix("nnm+")]
    given = {kind.name: kind.options_type(**options)}
    rule = make_aggregation(name, KNOWN, given, liars)
    assert rule is not None
    return rule


def drawn(rows: int, n: int, length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    own, near = (
        torch.randn(rows, length, generator=random),
        torch.randn(rows, n, length, generator=random),
    )
    near *= 0.5 + torch.rand(rows, n, 1, generator=random)
    weights = torch.rand(rows, n + 1, generator=random) + 0.1
    return own, near, weights / weights.sum(dim=1, keepdim=True)


# ---- slow copies --------------------------------------------------------------------------------
# (own, near, weights of all, liars) -> aggregate, one device, loops, float64


def mean_of(own: Floats, near: Sequence[Floats], w: Floats, keep: Sequence[int]) -> Floats:
    total = w[0] + sum(w[1 + j] for j in keep)
    return np.asarray((w[0] * own + sum(w[1 + j] * near[j] for j in keep)) / total)


def scissor(own: Floats, near: Sequence[Floats], w: Floats, b: int) -> list[int]:
    keep = list(range(len(near)))
    for _ in range(b):
        m = mean_of(own, near, w, keep)
        keep.remove(max(keep, key=lambda j: float(np.linalg.norm(near[j] - m))))
    return keep


def ios(own: Floats, near: Sequence[Floats], w: Floats, b: int) -> Floats:
    return mean_of(own, near, w, scissor(own, near, w, b))


def reached(own: Floats, near: Sequence[Floats], reach: float) -> list[int]:
    away = [float(np.linalg.norm(x - own)) for x in near]
    bound = reach * float(np.linalg.norm(own))
    if len(near) >= 3 and min(away) > bound:
        bound = ODD_ONE * min(away)
    return [j for j, distance in enumerate(away) if distance <= bound]


def gated(
    own: Floats,
    near: Sequence[Floats],
    w: Floats,
    b: int,
    *,
    gate: float,
    along: float,
    reach: float,
) -> Floats:
    inside = reached(own, near, reach)
    b = min(max(0, b - len(near) + len(inside)), len(inside) // 2)
    near, w = [near[j] for j in inside], np.array([w[0], *(w[1 + j] for j in inside)])
    w = w / w.sum()
    keep = scissor(own, near, w, b)
    m = mean_of(own, near, w, keep)
    farthest = max([float(np.linalg.norm(x - m)) for x in (own, *(near[j] for j in keep))])
    back = [
        j
        for j, x in enumerate(near)
        if np.linalg.norm(x - m) <= gate * farthest
        or (len(near) < 4 and j in reached(own, near, reach))
    ]
    for j in {*back} - {*keep}:
        x, others = near[j] - own, m - own
        if x @ others >= -0.5 * np.linalg.norm(x) * np.linalg.norm(others):
            keep = sorted([*keep, j])
    m = mean_of(own, near, w, keep)
    lengths = [float(x @ m / np.linalg.norm(m)) for x in (own, *near)]
    all_off = [abs(x - float(np.median(lengths))) for x in lengths]
    off = {j: all_off[1 + j] for j in keep}
    least = max(along * farthest, ODD * float(np.median(all_off)))
    suspects = sorted((j for j in keep if off[j] > least), key=lambda j: -off[j])
    gone = suspects[: b - (len(near) - len(keep))]
    return mean_of(own, near, w, [j for j in keep if j not in gone])


def trimmed(own: Floats, near: Sequence[Floats], w: Floats, b: int, equal: bool = False) -> Floats:
    result = own.copy()
    for i in range(len(own)):
        order = sorted(range(len(near)), key=lambda j: near[j][i])[b : len(near) - b]
        if equal:
            result[i] = (own[i] + sum(near[j][i] for j in order)) / (len(near) - 2 * b + 1)
        else:
            result[i] = own[i] + sum(w[1 + j] * (near[j][i] - own[i]) for j in order)
    return result


def scclip(own: Floats, near: Sequence[Floats], w: Floats, b: int, radius: float = 0.0) -> Floats:
    far = sorted(range(len(near)), key=lambda j: -float(np.linalg.norm(near[j] - own)))[:b]
    spread = sum(w[1 + j] * ((near[j] - own) ** 2).sum() for j in range(len(near)) if j not in far)
    t = radius or float(np.sqrt(spread / sum(w[1 + j] for j in far)))
    return np.asarray(own + sum(pull(x - own, t, w[1 + j]) for j, x in enumerate(near)))


def pull(away: Floats, t: float, w: float) -> Floats:
    return w * min(1, t / max(float(np.linalg.norm(away)), 1e-300)) * away


def rtc(own: Floats, near: Sequence[Floats], w: Floats, b: int) -> Floats:
    d = sum(sorted(w[1:], reverse=True)[:b])
    order = sorted(range(len(near)), key=lambda j: -float(np.linalg.norm(near[j] - own)))
    kept, gone = list(range(len(near))), 0.0
    for j in order:
        if gone + w[1 + j] > d + 1e-9:
            break
        gone += w[1 + j]
        kept.remove(j)
    t = np.sqrt(sum(w[1 + j] * ((near[j] - own) ** 2).sum() for j in kept) / d)
    return np.asarray(own + sum(pull(near[j] - own, float(t), w[1 + j]) for j in kept))


def monna(own: Floats, near: Sequence[Floats], w: Floats, b: int) -> Floats:
    pool = [own, *near]
    pool.sort(key=lambda x: float(np.linalg.norm(x - own)))
    return np.mean(pool[: len(pool) - b], axis=0)


def krum(own: Floats, near: Sequence[Floats], w: Floats, b: int) -> Floats:
    pool = [own, *near]
    m, scores = len(pool), []
    for i, x in enumerate(pool):
        others = sorted(((x - y) ** 2).sum() for k, y in enumerate(pool) if k != i)
        scores.append(sum(others[: m - b - 2]))
    order = np.argsort(scores)[: m - b]
    return np.mean([pool[i] for i in order], axis=0)


def balance(own: Floats, near: Sequence[Floats], w: Floats, b: int, t: float = 0.0) -> Floats:
    bound = 1.2 * np.exp(-0.5 * t) * np.linalg.norm(own)
    taken = [x for x in near if np.linalg.norm(x - own) <= bound]
    return np.asarray(0.4 * own + 0.6 * np.mean(taken, axis=0)) if taken else own


def middle(own: Floats, near: Sequence[Floats], w: Floats, b: int) -> Floats:
    return np.median([own, *near], axis=0)


def geometric(own: Floats, near: Sequence[Floats], w: Floats, b: int) -> Floats:
    pool, z = np.array([own, *near]), np.average([own, *near], axis=0, weights=w)
    for _ in range(2000):
        u = w / np.maximum(np.linalg.norm(pool - z, axis=1), 1e-12)
        z = (u[:, None] * pool).sum(axis=0) / u.sum()
    return np.asarray(z)


def nnm(inner: Callable[..., Floats]) -> Callable[..., Floats]:
    def mixed(own: Floats, near: Sequence[Floats], w: Floats, b: int) -> Floats:
        pool = [own, *near]
        means = []
        for x in pool:
            nearest = sorted(pool, key=lambda y: float(((x - y) ** 2).sum()))[: len(pool) - b]
            means.append(np.mean(nearest, axis=0))
        return inner(means[0], means[1:], w, b)

    return mixed


LOOPS: dict[str, tuple[Callable[..., Floats], dict[str, Any]]] = {
    "ios": (ios, {}),
    "gated-ios": (
        lambda *x: gated(*x, gate=1.1, along=0.1, reach=1.4),
        {"gate": 1.1, "along": 0.1, "reach": 1.4},
    ),
    "robust": (lambda *x: gated(*x, gate=3.0, along=0.5, reach=0.9), {}),
    "trimmed-mean": (trimmed, {}),
    "scclip": (scclip, {}),
    "rtc": (rtc, {}),
    "monna": (monna, {}),
    "multi-krum": (krum, {}),
    "median": (middle, {}),
    "geometric-median": (geometric, {}),
    "balance": (balance, {"gamma": 1.2, "kappa": 0.5, "alpha": 0.4}),
}


@pytest.mark.parametrize("mixed", [False, True], ids=["", "nnm"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_rule_is_its_slow_copy(name: str, mixed: bool) -> None:
    """All rows at once, of 3, 4 and 7 neighbours, with 1 and 2 liars assumed."""
    slow, options = LOOPS[name]
    near_enough = 1e-3 if name == "geometric-median" else 2e-5  # 100 of 2000 steps
    for n, b in ((3, 1), (4, 1), (7, 1), (7, 2)):
        rule = make("nnm+" * mixed + name, b, **options)
        b = rule.liars(n)  # multi-krum bears none of three
        own, near, weights = drawn(5, n, 40, seed=n)
        found = rule(own, near, weights)
        assert found.dtype == own.dtype
        for k in range(5):
            given = (
                own[k].double().numpy(),
                list(near[k].double().numpy()),
                weights[k].double().numpy(),
            )
            if not b:
                expected = mean_of(*given, list(range(n)))
            else:
                expected = (nnm(slow) if mixed else slow)(*given, b)
            assert np.allclose(found[k].numpy(), expected, atol=near_enough), (n, b, k)


def test_options_of_the_published_forms() -> None:
    own, near, weights = drawn(1, 6, 30, seed=1)
    given = own[0].double().numpy(), list(near[0].double().numpy()), weights[0].double().numpy()
    equal = TrimmedMean(TrimmedMeanOptions(equal=True), 2)(own, near, weights)
    assert np.allclose(equal[0].numpy(), trimmed(*given, 2, equal=True), atol=1e-5)
    fixed = Scclip(ScclipOptions(radius=2.5), 1)(own, near, weights)
    assert np.allclose(fixed[0].numpy(), scclip(*given, 1, radius=2.5), atol=1e-5)
    late = Balance(BalanceOptions(gamma=1.2, kappa=0.5, alpha=0.4), 1).at(1.0)
    assert np.allclose(late(own, near, weights)[0].numpy(), balance(*given, 1, t=1.0), atol=1e-5)
    assert late.progress == 1.0


# ---- by hand ------------------------------------------------------------------------------------

LINE = torch.tensor([[[1.0], [2.0], [9.0]]])
EVEN = torch.full((1, 4), 0.25)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # 9 is farthest from 12/4 = 3: (0 + 1 + 2) / 3
        (Ios(Group(), 1), 1.0),
        # 8 from the mean 1, the farthest kept 1: back from a gate of 8 on, 12/4
        (GatedIos(GatedIosOptions(gate=7.9, along=0, reach=0), 1), 1.0),
        (GatedIos(GatedIosOptions(gate=8.0, along=0, reach=0), 1), 3.0),
        # all are out of reach of 0, and 9 is beyond three times the nearest
        (GatedIos(GatedIosOptions(gate=8.0, along=0), 1), 1.0),
        # 1 and 9 go; 0 + (2 - 0) / 4
        (TrimmedMean(TrimmedMeanOptions(), 1), 0.5),
        (TrimmedMean(TrimmedMeanOptions(equal=True), 1), 1.0),
        # T^2 = (1 + 4) / 4 / (1 / 4) = 5: (1 + 2 + 2.236) / 4
        (Scclip(ScclipOptions(), 1), (3 + 5**0.5) / 4),
        (Scclip(ScclipOptions(radius=1.5), 1), (1 + 1.5 + 1.5) / 4),
        # 9 goes to 0, (1 + 2) / 4
        (make("rtc", 1), 0.75),
        (Monna(Group(), 1), 1.0),
        (make("median", 1), 1.5),
    ],
    ids=lambda x: x.name if isinstance(x, AggregationRule) else str(x),
)
def test_a_line_of_four_by_hand(rule: AggregationRule, expected: float) -> None:
    """The own copy is 0, the neighbours' are 1, 2, 9, all with weight 1/4, one liar assumed."""
    assert float(rule(torch.zeros(1, 1), LINE, EVEN)) == pytest.approx(expected, abs=1e-6)


def test_weights_are_respected_by_hand() -> None:
    """0 with 0.1, 1 with 0.3, 2 with 0.5, 9 with 0.1: without 9, (0.3 + 1.0) / 0.9."""
    weights = torch.tensor([[0.1, 0.3, 0.5, 0.1]])
    found = Ios(Group(), 1)(torch.zeros(1, 1), LINE, weights)
    assert float(found) == pytest.approx(1.3 / 0.9)


# ---- what holds for all -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_nobody_assumed_to_lie_is_the_mean(name: str) -> None:
    own, near, weights = drawn(4, 5, 50, seed=2)
    expected = Mean(Group())(own, near, weights)
    assert torch.equal(make(name, 0)(own, near, weights), expected)
    few = near[:, :1], weights[:, :2] / weights[:, :2].sum(dim=1, keepdim=True)
    if make(name, 1).liars(1) == 0 and not make(name, 1).alone:  # too few neighbours
        assert torch.equal(make(name, 1)(own, *few), Mean(Group())(own, *few))


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_neighbours_and_of_rows_makes_no_difference(name: str) -> None:
    own, near, weights = drawn(4, 6, 50, seed=3)
    if name.startswith("nnm+"):  # means that are equal have no order, their weights would
        weights = torch.full_like(weights, 1 / 7)
    rule, order = make(name, 2), torch.tensor([4, 1, 5, 0, 3, 2])
    found = rule(own, near, weights)
    columns = torch.cat([torch.tensor([0]), order + 1])
    assert torch.allclose(rule(own, near[:, order], weights[:, columns]), found, atol=1e-5)
    each = [rule(own[k : k + 1], near[k : k + 1], weights[k : k + 1]) for k in range(4)]
    assert torch.equal(torch.cat(each), found)  # to the last bit


@pytest.mark.parametrize("name", NAMES)
def test_liars_at_a_million_do_not_move_it(name: str) -> None:
    """Two of seven, alike; the others are in a ball of radius about 7."""
    own, near, weights = drawn(3, 7, 50, seed=4)
    near[:, [2, 5]] = 1e6
    found = make(name, 2)(own, near, torch.full_like(weights, 1 / 8))
    assert float(torch.linalg.vector_norm(found, dim=1).max()) < 30
    assert float(Mean(Group())(own, near, weights).abs().max()) > 1e4


@pytest.mark.parametrize("name", NAMES)
def test_what_has_not_arrived_is_not_there(name: str) -> None:
    """A weight of 0 is as if there were no such neighbour; NaN is a liar that has been found."""
    own, near, weights = drawn(2, 5, 50, seed=5)
    more = torch.cat([near[:, :2], torch.zeros(2, 1, 50), near[:, 2:]], dim=1)
    gaps = torch.cat([weights[:, :3], torch.zeros(2, 1), weights[:, 3:]], dim=1)
    rule = make(name, 1)
    assert torch.allclose(rule(own, more, gaps), rule(own, near, weights), atol=1e-5)
    more[:, 2], given = torch.nan, gaps.clone()
    given[:, 3], given[:, 0] = gaps[:, 0] / 2, gaps[:, 0] / 2
    # one of one liars is found: the rest is the mean, the lost weight with the own copy
    expected = Mean(Group())(own, near, weights)
    assert torch.allclose(rule(own, more, given), expected, atol=1e-5)


def test_rows_may_have_different_numbers_of_neighbours() -> None:
    own, near, weights = drawn(2, 5, 50, seed=6)
    weights[1, 3:] = 0
    weights /= weights.sum(dim=1, keepdim=True)
    for name in NAMES:
        rule = make(name, 2)
        found = rule(own, near, weights)
        alone = rule(own[1:], near[1:, :2], weights[1:, :3])
        assert torch.allclose(found[1:], alone, atol=1e-5), name
        assert torch.allclose(found[:1], rule(own[:1], near[:1], weights[:1]), atol=1e-5), name


def test_the_assumed_number() -> None:
    """A share is rounded up, and nothing exceeds what a rule can bear."""
    assert [Ios(Group(), 0.2).liars(n) for n in (0, 1, 2, 3, 5, 6, 10)] == [0, 0, 0, 1, 1, 2, 2]
    assert [Ios(Group(), 3).liars(n) for n in (2, 3, 5, 7, 20)] == [0, 1, 2, 3, 3]
    assert [make("multi-krum", 3).liars(n) for n in (3, 4, 6, 8)] == [0, 1, 2, 3]
    assert [make("nnm+multi-krum", 3).liars(n) for n in (3, 4, 6, 8)] == [0, 1, 2, 3]
    assert [make("balance", 0.2).liars(n) for n in (0, 1, 2, 6)] == [0, 1, 1, 2]
    assert Mean(Group(), 3).liars(20) == 0


@pytest.mark.parametrize("length", [10, PIECE // 3 + 7])
def test_inner_products_in_pieces(length: int) -> None:
    own, near, _ = drawn(1, 3, length, seed=7)
    begun, slow = past = drawn(2, 1, length, seed=8)[0]
    vectors = torch.cat([own, near[0] - own, own - begun, (begun - slow)[None]]).double()
    table = table_of(own[0], near[0], past)
    assert torch.allclose(table, vectors @ vectors.T, rtol=1e-4, atol=1e-1)
    assert torch.equal(table_of(own[0], list(near[0]), past), table)
    shorter = table_of(own[0], near[0], past[:1])
    assert torch.allclose(shorter, table[:-1, :-1], rtol=1e-5)
    without = table_of(own[0], near[0])
    assert without.shape == (4, 4) and torch.allclose(without, table[:-2, :-2], rtol=1e-5)


def test_weights_are_all_that_a_weighing_rule_finds() -> None:
    own, near, weights = drawn(3, 6, 40, seed=8)
    for name in NAMES:
        rule = make(name, 2)
        if isinstance(rule, Weighing):
            shares = rule.weigh(own, near, weights)
            assert shares.dtype == weights.dtype and bool((shares >= -1e-7).all())
            assert torch.allclose(shares.sum(dim=1), torch.ones(3), atol=1e-5)
            assert torch.equal(Mean(Group())(own, near, shares), rule(own, near, weights))


def test_who_pulls_along_the_model_is_dropped_though_it_is_near() -> None:
    """Six copies of (10, 0, ...) that differ by 1 in directions of their own, and one that is 0.9
    shorter: no farther than the others, and far from them along the model."""
    own = torch.zeros(1, 10)
    own[0, 0] = 10
    near = own.repeat(7, 1)
    near[:6, 1:7] += torch.eye(6)
    near[6, 0] = 9.1
    weights = torch.full((1, 8), 1 / 8)
    kept = GatedIos(GatedIosOptions(), 1).weigh(own, near[None], weights)
    assert kept[0].tolist() == pytest.approx([1 / 7] * 7 + [0])
    blind = GatedIos(GatedIosOptions(along=0), 1).weigh(own, near[None], weights)
    assert torch.equal(blind, weights)  # the gate has taken back what was dropped
    honest = near[None, :6], weights[:, :7] * 8 / 7
    assert torch.equal(GatedIos(GatedIosOptions(), 1).weigh(own, *honest), honest[1])


def test_noise_is_dropped_where_honest_copies_are_out_of_reach_too() -> None:
    """A small block: data pull honest copies 1.2 to 1.5 norms apart. Two of four neighbours send
    noise, one more than is assumed. With nobody lying nothing is dropped."""
    own, far = torch.zeros(1, 10), torch.eye(10)
    own[0, 9] = 3
    honest = own + torch.stack([3.6 * far[0], 4.5 * far[1], 4.0 * far[2]])
    noise = own + torch.stack([500 * far[3], 550 * far[4]])
    weights = torch.full((1, 5), 1 / 5)
    rule = GatedIos(GatedIosOptions(), 0.2)
    found = rule.weigh(own, torch.cat([honest[:2], noise])[None], weights)
    assert found[0].tolist() == pytest.approx([1 / 3] * 3 + [0.0] * 2)
    without = torch.full((1, 4), 1 / 4)
    assert torch.equal(rule.weigh(own, honest[None], without), without)


def test_who_pulls_against_the_others_is_dropped_though_it_is_near() -> None:
    """Neighbours at a distance of 1 each, in directions of their own, and one on the other side, or
    in one more direction: of two the farther one, of four one that the gate would take back."""
    own = torch.zeros(1, 10)
    own[0, 9] = 10
    rule = GatedIos(GatedIosOptions(along=0), 0.2)
    for n in (1, 3):
        honest = own + torch.eye(10)[:n]
        weights = torch.full((1, n + 2), 1 / (n + 2))
        against = own - 1.5 * (honest - own).mean(dim=0)
        other = own + 1.5 * torch.eye(10)[5]
        found = rule.weigh(own, torch.cat([honest, against])[None], weights)
        assert found[0].tolist() == pytest.approx([1 / (n + 1)] * (n + 1) + [0.0])
        assert torch.equal(rule.weigh(own, torch.cat([honest, other])[None], weights), weights)


def test_what_is_ahead_of_the_own_progress_is_dropped() -> None:
    """From (4, 0) to (5, 0) the progress is (1, 0). Honest (4, 1) is behind, the mirror ahead.

    Without the progress nothing tells which of the two is the lie, and it takes the wrong one.
    """
    own, begun = torch.tensor([[5.0, 0.0]]), [torch.tensor([4.0, 0.0]).expand(2, -1)]
    honest, mirror = torch.tensor([4.0, 1.0]), torch.tensor([6.0, -1.0])
    near, weights = torch.stack([honest, mirror])[None], torch.full((1, 3), 1 / 3)
    rule = make("gated-ios", 0.2)
    assert isinstance(rule, GatedIos) and rule.remembers
    blind = rule.weigh(own, near, weights)
    assert blind.tolist() == [[0.5, 0.0, 0.5]]
    assert rule.weigh(own, near, weights, begun).tolist() == [[0.5, 0.5, 0.0]]
    assert torch.allclose(rule(own, near, weights, begun), (own + honest) / 2)
    off = GatedIos(GatedIosOptions(ahead=1), 0.2)
    assert torch.equal(off.weigh(own, near, weights, begun), blind)
    rests = rule.weigh(
        own, near, weights, [own[0].expand(2, -1)]
    )  # no progress, nothing to tell by
    assert torch.equal(rests, blind)
    odd = mirror.expand(1, 3, 2)  # all are ahead: the own copy is the odd one
    assert rule.weigh(own, odd, torch.full((1, 4), 0.25), begun).tolist() == [[0.25] * 4]


def test_what_lags_behind_the_own_drift_is_dropped() -> None:
    """A slow mean at (10, 0), and mixing came to (12, 0): the drift is (2, 0). From (12, 1), where
    training went, a copy at (11, 0) lacks half of it, and one at (10, 0.5) all."""
    own, past = torch.tensor([[12.0, 1.0]]), [torch.tensor([[12.0, 0.0], [10.0, 0.0]])]
    honest, old = torch.tensor([11.0, 0.0]), torch.tensor([10.0, 0.5])
    near, weights = torch.stack([honest, old])[None], torch.full((1, 3), 1 / 3)
    rule = GatedIos(GatedIosOptions(reach=0, ahead=1, behind=0.9), 0.2)
    around = Around.of(rule, own, near, weights, past)
    assert around is not None and around.behind[0].tolist() == [0.0, 0.5, 1.0]
    assert rule.weigh(own, near, weights, past).tolist() == [[0.5, 0.5, 0.0]]
    off = GatedIos(GatedIosOptions(reach=0, ahead=1), 0.2)
    assert off.weigh(own, near, weights, past)[0, 2] > 0
    assert rule.remembers == 2 and off.remembers == 0
    first = [torch.tensor([[12.0, 0.0], [11.5, 0.0]])]  # it has drifted less than it has trained
    assert torch.equal(rule.weigh(own, near, weights, first), off.weigh(own, near, weights, first))


def test_what_is_out_of_reach_is_dropped_where_nobody_can_be_outvoted() -> None:
    """One or two liars of one to four neighbours send zeros, or flip signs."""
    own = torch.tensor([[10.0, 0.0, 0.0]])
    rule = GatedIos(GatedIosOptions(), 0.2)
    honest = [own[0] + torch.tensor([0.0, 1.0, 0.0]), own[0] + torch.tensor([0.0, 0.0, 1.0])]
    for lie in (torch.zeros(3), -own[0]):
        for lies, truths in ((1, 0), (2, 0), (2, 1), (2, 2)):
            near = torch.stack([*honest[:truths], *[lie] * lies])[None]
            weights = torch.full((1, 1 + near.shape[1]), 1 / (1 + near.shape[1]))
            found = rule.weigh(own, near, weights)[0].tolist()
            assert found == pytest.approx([1 / (1 + truths)] * (1 + truths) + [0.0] * lies)
            blind = GatedIos(GatedIosOptions(reach=0, ahead=1), 0.2).weigh(own, near, weights)
            assert blind[0, -1] > 0
        trusting = GatedIos(GatedIosOptions(), 0).weigh(own, near, weights)
        assert torch.equal(trusting, weights)


def test_who_is_far_from_three_and_more_is_the_odd_one() -> None:
    """A device that begins elsewhere: it comes to the others."""
    own = torch.tensor([[0.0, 1.0, 0.0]])
    near = torch.tensor([[[10.0, 0.0, 0.0], [10.0, 1.0, 0.0], [10.0, 0.0, 1.0]]])
    weights = torch.full((1, 4), 0.25)
    assert torch.equal(GatedIos(GatedIosOptions(), 0.2).weigh(own, near, weights), weights)


def test_robust_is_gated_ios_with_its_defaults() -> None:
    own, near, weights = drawn(3, 6, 40, seed=9)
    near[:, 0] *= 9
    expected = GatedIos(GatedIosOptions(), 1)(own, near, weights)
    assert torch.equal(Robust(Group(), 1)(own, near, weights), expected)


# ---- settings -----------------------------------------------------------------------------------


def test_a_rule_is_chosen_with_its_options_and_the_assumed_liars() -> None:
    config = {"aggregation": "nnm+trimmed-mean", "trimmed-mean.equal": True, "assume-liars": 2}
    rule = parse_settings(config, find_parts()).aggregation
    assert rule is not None and rule.liars(9) == 2
    inner = rule.rule  # type: ignore[attr-defined]
    assert inner.options.equal and inner.assume_liars == 2
    assert parse_settings({}, find_parts()).resolved()["assume-liars"] == 0.2


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"aggregation": "iso"}, "aggregation = 'iso': there are balance, gated-ios, "),
        ({"aggregation": "nnm+iso"}, "aggregation = 'nnm+iso': there are balance, gated-ios, "),
        ({"aggregation": "nnm+mean"}, "aggregation = 'nnm+mean': nothing can be mixed before"),
        ({"assume-liars": 1.5}, "assume-liars = 1.5: must be a share of the neighbours below 1"),
        ({"assume-liars": -1}, "assume-liars = -1: must be a share"),
        *(
            (
                {"aggregation": "ios", "gossip": rule, "method": "dpsgd"},
                f"aggregation = 'ios': the gossip rule '{rule}' keeps a sum over all devices; all",
            )
            for rule in (
                "d2",
                "relaysgd",
                "k-gt",
                "mt",
                "gut",
                "qg-gutm",
                "sgp",
                "choco",
                "beer",
                "motef",
            )
        ),
        (
            {"aggregation": "robust", "final-merge": "owners"},
            "final-merge = 'owners': its rounds are to average, which aggregation = 'robust' does",
        ),
        (
            {"aggregation": "robust", "couriers": "average", "method": "dpsgd"},
            "couriers = 'average': a mean hides who of its owners lies from aggregation = 'robust'",
        ),
        (
            {"attack.kind": "zero", "attack.devices": 1, "couriers": "average", "method": "dpsgd"},
            "couriers = 'average': liars lie to their neighbours, and what a courier averages",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_settings(config, find_parts())
    assert words in str(error.value)
