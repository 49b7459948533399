"""Sheaf-DMFL: heads of unequal shapes, coupled by a map for each end of a link."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner
from helpers_engines import SENSORS, on_both_engines

from flwr_dmml.base.errors import MethodError, SettingsError
from flwr_dmml.gossip.sheaf_dmfl import SheafDmflOptions, SheafDmflRule
from flwr_dmml.learning.coupled import COUPLING
from flwr_dmml.learning.work import measure_work
from flwr_dmml.payload.blocks import STATISTICS
from flwr_dmml.payload.plan import Plan

PAIR: dict[str, Any] = {
    **FAST,
    "method": "dpsgd",
    "gossip": "sheaf-dmfl",
    "num-nodes": 2,
    "modality-pattern": "audio,audio+image",
    "sheaf-dmfl.dim": 400,
}


def test_a_step_by_hand() -> None:
    """phi (1, 2, 3) is (1, 2) by both maps; neighbours have sent (0, 4) and (3, 2).

    e is (1, -2) and (-2, 0), back by the maps (1, -2, 0) and (-2, 0, 0), on average (-1/2, -1, 0);
    half of that is taken off. A tenth of e phi^T is taken off the maps.
    """
    rule = SheafDmflRule(SheafDmflOptions(dim=2, step=0.5, map_step=0.1))
    assert rule.first_map(3).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert SheafDmflRule(SheafDmflOptions(dim=2)).first_map(1).tolist() == [[1], [0]]
    maps = torch.stack([rule.first_map(3)] * 2)
    phi, maps = rule.couple(
        torch.tensor([1.0, 2.0, 3.0]), maps, torch.tensor([[0.0, 4.0], [3.0, 2.0]])
    )
    assert phi.tolist() == [1.25, 2.5, 3.0]
    first = [[0.9, -0.2, -0.3], [0.2, 1.4, 0.6]]
    second = [[1.2, 0.4, 0.6], [0, 1, 0]]
    torch.testing.assert_close(maps, torch.tensor([first, second]))


def test_the_coupling_falls_where_nothing_else_happens() -> None:
    """Three of lengths 4, 6 and 9 on a triangle, from random numbers."""
    rule = SheafDmflRule(SheafDmflOptions(dim=3, step=0.5, map_step=0.01))
    g = torch.Generator().manual_seed(0)
    phis = [torch.randn(n, generator=g) for n in (4, 6, 9)]
    maps = {k: torch.stack([rule.first_map(len(phis[k]))] * 2) for k in range(3)}
    others = {k: [j for j in range(3) if j != k] for k in range(3)}
    apart = []
    for _ in range(30):
        sent = {(k, j): maps[k][i] @ phis[k] for k in range(3) for i, j in enumerate(others[k])}
        apart.append(sum(float((sent[k, j] - sent[j, k]).square().sum()) for k, j in sent))
        for k in range(3):
            near = torch.stack([sent[j, k] for j in others[k]])
            phis[k], maps[k] = rule.couple(phis[k], maps[k], near)
    assert all(b < a for a, b in pairwise(apart)) and apart[-1] < 1e-3 * apart[0]


def test_heads_stay_and_are_coupled_and_encoders_are_mixed() -> None:
    one, two = make_learner(PAIR, 0), make_learner(PAIR, 1)
    assert set(one.block_lengths()) == {"encoder.audio"}
    assert set(two.block_lengths()) == {"encoder.audio", "encoder.image"}
    sent = [
        learner.run_round(Plan(1, 2, recipients=(1 - k,)), {}).payload
        for k, learner in enumerate((one, two))
    ]
    told = sent[1][f"{STATISTICS}{COUPLING}0"]
    phi = torch.cat([two.state()[f"head.{name}"] for name in ("common", "audio", "image")])
    assert told.tolist() == phi[:400].tolist()  # the first map; there are more numbers than 400
    before = one.state()
    plan = Plan(2, 0, neighbours=(1,), weights={"encoder.audio": (0.5, 0.5)})
    outcome = one.run_round(plan, {1: sent[1]})
    after = one.state()
    own = torch.cat([before["head.common"], before["head.audio"]])
    width = len(own)
    mine = torch.eye(400, width)
    e = mine @ own - told
    expected = own - 0.5 * mine.T @ e
    found = torch.cat([after["head.common"], after["head.audio"]])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        after[f"memory.{COUPLING}1"], mine - 0.001 * e[:, None] * own[None, :]
    )
    mean = (before["encoder.audio"] + sent[1]["encoder.audio"]) / 2
    torch.testing.assert_close(after["encoder.audio"], mean)
    assert outcome.metrics[f"{COUPLING}apart"] == pytest.approx(float(e.square().sum()), rel=1e-5)
    assert not outcome.rejected


def test_what_does_not_fit_costs_its_sender_only() -> None:
    learner = make_learner(PAIR, 0)
    learner.run_round(Plan(1, 2, recipients=(1,)), {})
    before = learner.state()
    for wrong in (torch.ones(3), torch.full((400,), torch.nan)):
        payload = {f"{STATISTICS}{COUPLING}0": wrong, "encoder.audio": before["encoder.audio"]}
        plan = Plan(2, 0, neighbours=(1,), weights={"encoder.audio": (0.5, 0.5)})
        outcome = learner.run_round(plan, {1: payload})
        assert [line.startswith("1: coupling ") for line in outcome.rejected] == [True]
        assert torch.equal(learner.state()["head.common"], before["head.common"])


def test_both_engines_agree_and_the_work_is_billed() -> None:
    config = {**SENSORS, "gossip": "sheaf-dmfl", "sheaf-dmfl.dim": 32}
    run = on_both_engines(config)
    assert all(n.own["coupling.norm"] > 0 for n in run.records[-1].nodes)
    plain, coupled = (
        measure_work(make_learner({**SENSORS, "gossip": rule})) for rule in ("dpsgd", "sheaf-dmfl")
    )
    assert coupled.joint == plain.joint and coupled.per_round > plain.per_round


def test_a_resumed_device_goes_on_with_its_maps() -> None:
    one, other = make_learner(PAIR, 0), make_learner(PAIR, 1)
    inbox: Any = {}
    for t in (1, 2):
        near = (1,) * bool(inbox)
        one.run_round(Plan(t, 2, neighbours=near, recipients=(1,)), inbox)
        inbox = {1: other.run_round(Plan(t, 2, recipients=(0,)), {}).payload}
    again = make_learner(PAIR, 0)
    again.load_state({name: x.clone() for name, x in one.state().items()})
    plan = Plan(3, 2, neighbours=(1,), recipients=(1,))
    a, b = one.run_round(plan, inbox), again.run_round(plan, inbox)
    assert a.metrics == b.metrics
    assert all(torch.equal(a.payload[name], b.payload[name]) for name in a.payload)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"method": "dmml-kd"}, "the method 'dmml-kd' reads its neighbours' blocks 'head.…'"),
        ({"aggregation": "median"}, "aggregation = 'median': it does not see what"),
    ],
)
def test_what_does_not_go_with_it_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        make_learner({**PAIR, **config})


def test_a_model_without_such_heads_is_refused() -> None:
    with pytest.raises(MethodError, match=r"gossip = 'sheaf-dmfl': .* no blocks 'head\.…'"):
        make_learner({**PAIR, "method": "parse"})
