"""Attacks: the formulas by hand, who lies, and what is refused."""

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.gossip.aggregation.mean import weighted_mean
from flwr_dmml.gossip.attacks import ATTACKS, AttackOptions, Scene
from flwr_dmml.settings import find_parts, parse_settings

OWN = torch.tensor([1.0, 2.0])
NEAR = torch.tensor([[3.0, 0.0], [5.0, 4.0], [1.0, 2.0]])  # mean (3, 2), std (2, 2)
TRUE = torch.tensor([[7.0, 7.0], [8.0, -8.0]])


def scene(seed: int = 0, **changed: Any) -> Scene:
    given: dict[str, Any] = {
        "own": OWN,
        "near": NEAR,
        "lying": TRUE,
        "weights": (0.3, (0.1, 0.2, 0.1), 0.3),
        "neighbours": 5,
        "random": [torch.Generator().manual_seed(seed + k) for k in range(2)],
        "earlier": TRUE - 1,
    }
    return Scene(**{**given, **changed})


def told(kind: str, where: Scene | None = None, strength: float | None = None) -> Tensor:
    attack, usual = ATTACKS[kind]
    return attack(where or scene(), usual if strength is None else strength)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", TRUE.tolist()),
        ("label-flip", TRUE.tolist()),  # which lies in its data
        ("stale", (TRUE - 1).tolist()),
        ("sign-flip", [[-2.5, -2.0]] * 2),  # - ((3, 2) 3 + (1, 2)) / 4
        ("scale", [[70.0, 70.0], [80.0, -80.0]]),
        ("ipm", [[-0.3, -0.2]] * 2),
        ("zero", [[0.0, 0.0]] * 2),
        ("mimic", [[3.0, 0.0]] * 2),
        # sum_j w_ij (x_j - x_i) = .1 (2, -2) + .2 (4, 2) = (1.0, 0.2); over 0.3
        ("isolation", [[1 - 10 / 3, 2 - 2 / 3]] * 2),
        ("dissensus", [[1 - 5.0, 2 - 1.0]] * 2),
        # R^2 of (3, 2): the farthest is (5, 4), 8; (3, 2) (1 - sqrt(8/13))
        ("hidden-sign-flip", [[3 * (1 - (8 / 13) ** 0.5), 2 * (1 - (8 / 13) ** 0.5)]] * 2),
    ],
)
def test_a_lie_by_hand(kind: str, expected: list[list[float]]) -> None:
    assert torch.allclose(told(kind), torch.tensor(expected), atol=1e-6)


def test_isolation_leaves_the_weighted_mean_where_the_victim_is() -> None:
    """(1 - w_ii) x_i = sum_j w_ij x_j + sum_b w_ib x_b."""
    copies = torch.cat([NEAR, told("isolation")])[None]
    weights = torch.tensor([[0.3, 0.1, 0.2, 0.1, 0.15, 0.15]])
    assert torch.allclose(weighted_mean(OWN[None], copies, weights), OWN[None], atol=1e-6)


@pytest.mark.parametrize(("n", "liars", "z"), [(10, 2, 0.524), (10, 1, 0.253), (8, 1, 0.319)])
def test_alie_hides_within_the_spread(n: int, liars: int, z: float) -> None:
    """k = floor((n + 1) / 2) - b supporters are needed: of 10 with two liars 3, Phi^-1(0.7)."""
    near = torch.randn(n - liars, 6, generator=torch.Generator().manual_seed(1))
    where = scene(near=near, lying=torch.zeros(liars, 6), neighbours=n)
    found = told("alie", where)
    assert torch.allclose(found, near.mean(0) + z * near.std(0), atol=2e-3)
    needed = (n + 1) // 2 - liars
    assert NormalDist().cdf(z) == pytest.approx((n - needed) / n, abs=1e-3)
    assert torch.allclose(told("alie", where, 10.0), near.mean(0) + 10 * near.std(0), atol=1e-4)
    alone = scene(near=near[:1], lying=torch.zeros(1, 6), neighbours=2)
    assert torch.equal(told("alie", alone)[0], near[0])


def test_noise_is_of_each_liar_and_round() -> None:
    one, same, later = told("gaussian"), told("gaussian"), told("gaussian", scene(seed=9))
    assert torch.equal(one, same) and not torch.equal(one, later)
    assert not torch.equal(one[0], one[1])
    long = scene(own=torch.zeros(4000), near=torch.ones(2, 4000), lying=torch.zeros(2, 4000))
    found = told("gaussian", long)
    assert float(found.std()) == pytest.approx(30, rel=0.05)
    assert float(found.mean()) == pytest.approx(1, abs=2)


def test_a_duplicate_is_an_honest_copy() -> None:
    """Of all liars the same one, another one each time."""
    drawn = [told("duplicate", scene(seed)).tolist() for seed in range(30)]
    assert all(row == rows[0] for rows in drawn for row in rows) and len(drawn[0]) > 1
    assert {tuple(rows[0]) for rows in drawn} == {tuple(row) for row in NEAR.tolist()}


def test_hidden_lies_are_no_farther_than_the_farthest() -> None:
    near = torch.randn(5, 40, generator=torch.Generator().manual_seed(2)) + 3
    lie = told("hidden-sign-flip", scene(own=near[0], near=near, lying=near[:1]))[0]
    away = torch.linalg.vector_norm(near - near.mean(0), dim=1)
    assert float((lie - near.mean(0)).norm()) == pytest.approx(float(away.max()), rel=1e-5)
    assert float((lie - near.mean(0)) @ near.mean(0)) < 0


# ---- who lies -----------------------------------------------------------------------------------


def test_liars_are_named_or_drawn() -> None:
    assert AttackOptions(devices="7, 3", kind="zero").liars(12, 0) == (3, 7)
    assert parse_settings({"attack.devices": 3}, find_parts()).settings.attack.devices == "3"
    drawn = AttackOptions(share=0.25, kind="zero")
    assert len(drawn.liars(12, 0)) == 3 and drawn.liars(12, 0) == drawn.liars(12, 0)
    assert len({drawn.liars(12, seed) for seed in range(8)}) > 3
    assert len(AttackOptions(share=0.01, kind="zero").liars(12, 0)) == 1
    assert AttackOptions().liars(12, 0) == ()
    control = AttackOptions(devices="3")  # marked, and honest
    assert control.liars(12, 0) == (3,) and not control.in_payloads
    assert not AttackOptions(devices="3", kind="label-flip").in_payloads
    assert AttackOptions(devices="3", payload="forged").in_payloads


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"kind": "alei"}, "there are none, sign-flip, "),
        ({"kind": "alie"}, "no device lies: set devices or share"),
        ({"payload": "forged"}, "no device lies"),
        ({"kind": "alie", "devices": "1", "share": 0.2}, "not both"),
        ({"kind": "alie", "devices": "one"}, "give partition ids with commas between"),
        ({"kind": "label-flip", "devices": "1", "start": 2}, "from the first round on"),
        ({"kind": "alie", "devices": "1", "strength": -1.0}, 'must be "auto" or a number'),
    ],
)
def test_an_attack_that_cannot_be_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        AttackOptions(**config)


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ("1,12", "attack.devices = '1,12': the ids are 0 to 11"),
        ("0,1,2", "all 3 devices would lie"),
    ],
)
def test_liars_that_are_not_there_are_refused(devices: str, words: str) -> None:
    nodes = 12 if "12" in devices else 3
    config = {"attack.kind": "zero", "attack.devices": devices, "num-nodes": nodes}
    with pytest.raises(SettingsError, match=words):
        parse_settings(config, find_parts())


def test_a_victim_with_liars_only() -> None:
    """Then what is honest is its own copy."""
    where = scene(near=OWN[None], weights=(0.4, (), 0.6))
    for kind in ATTACKS:
        found = told(kind, where)
        assert found.shape == TRUE.shape and bool(np.isfinite(found.numpy()).all()), kind
    assert torch.allclose(told("isolation", where), OWN.expand(2, 2))
