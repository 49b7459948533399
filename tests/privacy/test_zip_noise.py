"""Noise that cancels: what each neighbour gets, what is left of it in the mean, and refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FAST, Recording, make_learner, run_peers
from helpers_resume import run, stopped_and_resumed
from torch import Tensor

from flwr_dmml.api.auditing import audit
from flwr_dmml.base.errors import SettingsError
from flwr_dmml.payload.blocks import addressed
from flwr_dmml.payload.plan import Plan
from flwr_dmml.privacy.cancelling import cancelling
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.transport.messages import pack, read_plan, unpack, write_plan

ZIP: dict[str, Any] = {**FAST, "method": "dpsgd", "num-nodes": 4, "privacy.zip-noise": 0.5}


@pytest.mark.parametrize("weights", [(0.25,) * 4, (0.5, 0.3, 0.2), (0.9, 0.1)])
def test_the_weighted_sum_is_zero(weights: tuple[float, ...]):
    noise = cancelling(weights, 2000, 3.0)
    total = (torch.tensor(weights)[:, None] * noise).sum(dim=0)
    assert noise.shape == (len(weights), 2000)
    assert float(total.abs().max()) < 1e-5
    d, w = len(weights), torch.tensor(weights)
    others = torch.stack([(w[torch.arange(d) != v] ** 2).sum() for v in range(d)])
    variance = ((d - 1) ** 2 / d**2 + others / (d * w) ** 2) * 9.0
    assert torch.allclose(noise.double().var(dim=1), variance.double(), rtol=0.15)


def final(config: dict[str, Any], rounds: int = 1, **strategy: Any) -> dict[int, dict[str, Tensor]]:
    Recording.final.clear()
    run_peers({**config, "method": "recording"}, Recording, num_rounds=rounds, **strategy)
    return dict(Recording.final)


def test_the_mean_over_the_owners_is_that_without_noise():
    """After one round, in which all have trained from the same numbers; the models differ."""
    plain, noisy = final({**ZIP, "privacy.zip-noise": 0.0}), final(ZIP)
    assert plain.keys() == noisy.keys() == set(range(4))
    apart = 0.0
    for block in {name for own in plain.values() for name in own}:
        owners = [p for p in plain if block in plain[p]]
        means = [torch.stack([run[p][block] for p in owners]).mean(dim=0) for run in (plain, noisy)]
        assert torch.allclose(*means, atol=1e-5), block
        if len(owners) > 1:
            apart = max(apart, float((plain[owners[0]][block] - noisy[owners[0]][block]).std()))
    assert apart > 0.05


def test_each_neighbour_gets_another_copy_and_nobody_the_model():
    learner = make_learner(ZIP, 2)
    blocks = learner.block_names
    shares = dict.fromkeys(blocks, (0.4, 0.4, 0.2)) | {blocks[0]: (0.6, 0.4, 0.0)}
    shares[blocks[1]] = (1.0, 0.0, 0.0)  # nobody else has it
    payload = learner.run_round(Plan(1, 1, recipients=(0, 3), shares=shares), {}).payload
    sent = {name: x for name, x in payload.items() if not name.startswith("stats.")}
    one, none, *both = blocks
    names = [addressed(one, 0), none, *(addressed(b, r) for b in both for r in (0, 3))]
    assert sorted(sent) == sorted(names) and not len(sent[none])
    trained = learner.flat.copy()
    own = learner.mixer.sent(both[0], {})[addressed(both[0], 2)]
    noise = [x - trained[both[0]] for x in (own, *(sent[addressed(both[0], r)] for r in (0, 3)))]
    assert all(0.2 < float(z.std()) < 2.5 for z in noise)
    assert torch.allclose(0.4 * noise[0] + 0.4 * noise[1] + 0.2 * noise[2], noise[0] * 0, atol=1e-5)
    alone = learner.run_round(Plan(2, 1), {}).payload  # no recipients: no model leaves
    assert not any(len(x) for name, x in alone.items() if not name.startswith("stats."))


def test_the_seed_of_the_run_does_not_give_the_noise_again():
    shares = dict.fromkeys(make_learner(ZIP, 2).block_names, (0.5, 0.5))
    plan = Plan(1, 1, recipients=(0,), shares=shares)
    first, then = (make_learner(ZIP, 2).run_round(plan, {}).payload for _ in range(2))
    moved = [k for k in first if not k.startswith("stats.") and torch.equal(first[k], then[k])]
    assert first.keys() == then.keys() and not moved


def test_what_is_mixed_of_ones_own_is_kept():
    learner = make_learner(ZIP, 2)
    shares = dict.fromkeys(learner.block_names, (0.5, 0.5))
    learner.run_round(Plan(1, 1, recipients=(0,), shares=shares), {})
    other = make_learner(ZIP, 2)
    other.load_state(unpack(pack(learner.state())))
    for block in learner.block_names:
        (mine,) = learner.mixer.sent(block, {}).values()
        assert torch.equal(mine, other.mixer.sent(block, {})[addressed(block, 2)])
        assert not torch.equal(mine, learner.flat.copy()[block])


def test_shares_reach_a_device():
    plan = Plan(3, 1, recipients=(1, 2), shares={"head.common": (0.5, 0.25, 0.25)})
    assert read_plan(write_plan(plan, "dpsgd")) == plan


def test_a_run_goes_on_and_can_be_audited(tmp_path: Path):
    """Each neighbour is attacked with the copy that it has got."""
    changed = {"method": "dpsgd", "partition": "iid", "energy.battery-share": 0.0}
    folder = stopped_and_resumed(tmp_path, 2, **changed, **{"privacy.zip-noise": 0.1})
    assert (folder / "dpsgd" / "end.json").exists()
    assert audit(folder).pairs


def test_it_goes_with_compression_and_with_sample_level_noise(tmp_path: Path):
    more = {"exchange.precision": "int8", "privacy.dp": "sample", "privacy.sigma": 1.0}
    folder = run(tmp_path, "more", method="dpsgd", **more, **{"privacy.zip-noise": 0.1})
    assert (folder / "dpsgd" / "end.json").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"gossip": "choco"}, "the gossip rule 'choco' does not just mix"),
        ({"gossip": "relaysgd", "topology": "line"}, "allowed: dpsgd, dsgdm"),
        ({"gossip": "sheaf-dmfl"}, "the gossip rule 'sheaf-dmfl' does not just mix"),
        ({"method": "fedgen"}, "the method 'fedgen' looks at the models of single neighbours"),
        ({"aggregation": "median"}, "needs the models of single"),
        ({"exchange.top-k": 0.5}, "exchange.top-k = 0.5"),
        ({"final-merge": "owners"}, "sends models as they are"),
        ({"couriers": "forward"}, "send what is for one neighbour"),
        ({"topology": "exponential", "topology-directed": True}, "links go one way"),
    ],
)
def test_where_it_cannot_go(changed: dict[str, Any], said: str):
    with pytest.raises(SettingsError) as found:
        parse_settings({**ZIP, **changed}, find_parts())
    assert said in str(found.value)
