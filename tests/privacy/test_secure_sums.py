"""Sums that hide their parts: masks, what neighbours get, who drops out, and refusals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers import FAST, Recording, make_learner, run_peers
from helpers_resume import run, stopped_and_resumed
from torch import Tensor

from flwr_dmml.api.auditing import audit
from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import DPSGD
from flwr_dmml.graph.topology import TopologyError
from flwr_dmml.learning.learner import SKIPPED, Learner
from flwr_dmml.payload.blocks import addressed
from flwr_dmml.payload.plan import Inbox, Outcome, Payload, Plan
from flwr_dmml.privacy.masks import MaskError, masked, new_key, pair_mask, summed
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.transport.messages import read_plan, write_plan

SUMS: dict[str, Any] = {
    **FAST,
    "method": "dpsgd",
    "num-nodes": 4,
    "topology": "complete",
    "modality-pattern": "audio+image",
    "privacy.secure-sums": True,
}
KEYS = {p: new_key() for p in range(5)}


# ---- masks --------------------------------------------------------------------------------------


def test_two_devices_know_the_same_mask_and_a_third_another():
    (a, a_public), (b, b_public), (c, _) = KEYS[0], KEYS[1], KEYS[2]
    mask = pair_mask(a, b_public, "3 1 head", 1000)
    assert np.array_equal(mask, pair_mask(b, a_public, "3 1 head", 1000))
    assert not np.array_equal(mask, pair_mask(c, b_public, "3 1 head", 1000))
    assert not np.array_equal(mask, pair_mask(a, b_public, "3 2 head", 1000))
    assert 0.45 < float((mask > 2**31).mean()) < 0.55


@pytest.mark.parametrize("count", [2, 3, 5])
def test_masks_cancel_exactly(count: int):
    """To the bit: the sum of the parts is that of the rounded vectors."""
    vectors = [torch.randn(500) * 10 for _ in range(count)]
    shares = [0.1 + 0.1 * p for p in range(count)]
    parts, whole = list[Tensor](), torch.zeros(500, dtype=torch.float64)
    for p, (x, share) in enumerate(zip(vectors, shares, strict=True)):
        others = {k: KEYS[k][1] for k in range(count) if k != p}
        parts.append(masked(x, share, p, others, KEYS[p][0], "7 1 head"))
        whole += (x.double() * share * 2**20).round()
    assert torch.equal(summed(parts), (whole / 2**20).float())
    for part, x in zip(parts, vectors, strict=True):  # a part alone says nothing
        assert abs(float(torch.corrcoef(torch.stack([part.double(), x.double()]))[0, 1])) < 0.2


def test_what_does_not_fit_is_refused():
    with pytest.raises(MaskError, match="too large for a secure sum; allowed: below 2048"):
        masked(torch.tensor([3000.0]), 0.5, 0, {1: KEYS[1][1]}, KEYS[0][0], "")


# ---- rounds -------------------------------------------------------------------------------------


def final(config: Mapping[str, Any], *more: type[Learner], **given: Any) -> dict[int, Payload]:
    Recording.final.clear()
    (kind,) = more or (Recording,)
    run_peers({**config, "method": kind.name}, kind, **given)
    return {p: dict(own) for p, own in Recording.final.items()}


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_run_comes_to_what_it_does_without(rounds: int):
    plain = final({**SUMS, "privacy.secure-sums": False}, num_rounds=rounds)
    hidden = final(SUMS, num_rounds=rounds)
    assert plain.keys() == hidden.keys() == set(range(4))
    for p, own in plain.items():
        for block, x in own.items():
            assert torch.allclose(x, hidden[p][block], atol=1e-4), (p, block)


def plans(**more: Any) -> dict[int, Plan]:
    """A first round of three devices that all hear each other."""
    blocks = make_learner({**SUMS, "num-nodes": 3}, 0).block_names
    found: dict[int, Plan] = {}
    for p in range(3):
        others = tuple(k for k in range(3) if k != p)
        partners = {
            addressed(block, v): tuple(k for k in range(3) if k != v)
            for block in blocks
            for v in others
        }
        found[p] = Plan(
            1,
            1,
            recipients=others,
            shares=dict.fromkeys(blocks, (1 / 3, 1 / 3, 1 / 3)),
            partners=partners,
            keys={k: KEYS[k][1] for k in others},
            **more,
        )
    return found


def published() -> tuple[dict[int, Learner], dict[int, Payload]]:
    learners = {p: make_learner({**SUMS, "num-nodes": 3}, p) for p in range(3)}
    sent: dict[int, Payload] = {}
    for p, learner in learners.items():
        learner.private_key = KEYS[p][0]
        sent[p] = learner.run_round(plans()[p], {}).payload
    return learners, sent


def mixing(learner: Learner, inbox: Inbox, t: int = 2) -> Outcome:
    near = tuple(sorted(inbox))
    weights = dict.fromkeys(learner.block_names, (1 / 3,) * (1 + len(near)))
    return learner.run_round(Plan(t, 0, neighbours=near, weights=weights), inbox)


def test_neighbours_get_whole_numbers_and_mix_the_mean():
    learners, sent = published()
    trained = {p: learner.flat.copy() for p, learner in learners.items()}
    for payload in sent.values():
        blocks = {k: x for k, x in payload.items() if not k.startswith("stats.")}
        assert all(x.dtype == torch.int32 for x in blocks.values())
    mixing(learners[0], {1: sent[1], 2: sent[2]})
    for block, x in trained[0].items():
        mean = (x + trained[1][block] + trained[2][block]) / 3
        assert torch.allclose(learners[0].flat.copy()[block], mean, atol=1e-5)


def test_who_drops_out_costs_the_mixing_of_the_block_and_no_more():
    learners, sent = published()
    before = learners[0].flat.copy()
    lost = min(before)
    del sent[2][addressed(lost, 0)]
    outcome = mixing(learners[0], {1: sent[1], 2: sent[2]})
    assert outcome.rejected == [f"2: block {lost} is missing, so that nothing of it is mixed"]
    assert outcome.metrics[SKIPPED] == 1
    after = learners[0].flat.copy()
    assert torch.equal(after[lost], before[lost])
    assert not any(torch.equal(after[b], before[b]) for b in before if b != lost)


def test_parts_of_another_round_are_not_added_up():
    learners, sent = published()
    before = learners[0].flat.vector.clone()
    mixing(learners[0], {1: sent[1], 2: sent[2]}, t=3)
    assert torch.equal(learners[0].flat.vector, before)


class Fails(Recording):
    """Device 2 fails in round 2."""

    name = "fails"
    final: ClassVar[dict[int, dict[str, Any]]] = Recording.final

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        if self.partition.partition_id == 2 and plan.server_round == 2:
            raise RuntimeError("gone")
        return super().run_round(plan, inbox)


def test_a_run_goes_on_when_a_device_fails():
    found = final(SUMS, Fails, num_rounds=4)
    assert found.keys() == set(range(4))
    plain = final({**SUMS, "privacy.secure-sums": False}, Fails, num_rounds=4)
    for p, own in found.items():
        for block, x in own.items():
            assert x.isfinite().all() and float((x - plain[p][block]).abs().max()) < 1


def test_a_run_in_one_process_is_resumed_and_audited(tmp_path: Path):
    """Who gets a sum is attacked with the mean of what is in it; no checkpoint has a key."""
    more = {"topology": "complete", "modality-pattern": "audio+image"}
    given = {"method": "dpsgd", "energy.battery-share": 0.0, **more, "privacy.secure-sums": True}
    folder = stopped_and_resumed(tmp_path, 2, **given)
    assert (folder / "dpsgd" / "end.json").exists()
    assert len(audit(folder).pairs) == 12
    plain = run(tmp_path, "plain", **{**given, "privacy.secure-sums": False})
    states = [list((f / "dpsgd" / "checkpoints").glob("*/state.json")) for f in (folder, plain)]
    assert all(states) and "private-key" not in states[0][0].read_text()


def test_a_plan_says_whose_parts_there_are():
    plan = plans()[1]
    assert read_plan(write_plan(plan, "dpsgd")) == plan


# ---- refusals -----------------------------------------------------------------------------------


def test_a_single_neighbour_is_refused_by_name():
    with pytest.raises(TopologyError, match=r"device 0 only one has the block .*\(2 devices\)"):
        run_peers({**SUMS, "topology": "line"})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"gossip": "choco"}, "the gossip rule 'choco' does not just mix"),
        ({"aggregation": "median"}, "needs the models of single neighbours"),
        ({"gossip": "sheaf-dmfl"}, "the gossip rule 'sheaf-dmfl' does not just mix"),
        ({"method": "ccl"}, "looks at the models of single neighbours"),
        ({"method": "fedgen"}, "the method 'fedgen' looks at the models of single neighbours"),
        ({"method": "dmml-kd", "gossip": "dpsgd"}, "the method 'dmml-kd' looks at the models"),
        ({"exchange.precision": "int8"}, "would round masks"),
        ({"exchange.transport": "direct"}, "allowed: relay"),
        ({"privacy.zip-noise": 0.1}, "zip-noise and secure-sums"),
        ({"num-nodes": 2}, "a sum needs 3 devices"),
        ({"attack.kind": "zero", "attack.devices": "1"}, "a lie is made of single models"),
        ({"couriers": "forward"}, "send what is for one neighbour"),
    ],
)
def test_where_it_cannot_go(changed: dict[str, Any], said: str):
    with pytest.raises(SettingsError) as found:
        parse_settings({**SUMS, **changed}, find_parts())
    assert said in str(found.value)


def test_methods_say_whether_they_compare():
    assert not DPSGD.compares
