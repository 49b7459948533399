"""Noise on what a round has changed: clipping, ledger, budget, and what else stays at home."""

from collections.abc import Collection
from dataclasses import replace
from math import sqrt
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner, run_peers, run_together
from torch import Tensor, nn

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import DPSGD
from flwr_dmml.gossip.registry import find_gossip
from flwr_dmml.learning.learner import Learner
from flwr_dmml.learning.speedometer import SPEEDS
from flwr_dmml.learning.spending import EPSILON, SPENT
from flwr_dmml.payload.plan import Outcome, Plan
from flwr_dmml.privacy.accountant import Ledger
from flwr_dmml.settings import OwnParts, find_parts, parse_settings
from flwr_dmml.strategies.epsilons import epsilon_lines

DP: dict[str, Any] = {
    **FAST,
    "method": "dpsgd",
    "num-nodes": 3,
    "privacy.dp": "device",
    "privacy.sigma": 2.0,
}


def device(**changed: Any) -> Learner:
    learner = make_learner(DP, 2)
    assert learner.spending.how is not None
    learner.spending.how = replace(learner.spending.how, **changed)
    return learner


def a_round(learner: Learner, together: bool, t: int = 1, **plan: Any) -> Outcome:
    given = Plan(t, 3, **plan)
    (found,) = run_together([learner], [given]) if together else [learner.run_round(given, {})]
    assert not isinstance(found, Exception)
    return found


@pytest.mark.parametrize("together", [False, True])
def test_without_noise_and_clipping_it_is_plain(together: bool):
    plain = make_learner({**FAST, "method": "dpsgd", "num-nodes": 3}, 2)
    noisy = device(sigma=0.0, clip=1e9)
    for learner in (plain, noisy):
        a_round(learner, together)
    assert torch.allclose(plain.flat.vector, noisy.flat.vector, atol=1e-6)
    assert not torch.equal(plain.flat.vector, device().flat.vector)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("by_block", [False, True])
def test_a_round_counts_at_most_clip(by_block: bool, together: bool):
    before = device().flat.copy()
    learner = device(sigma=0.0, clip=1e-3, by_block=by_block)
    payload = a_round(learner, together).payload
    norms = {b: float((payload[b] - x).double().norm()) for b, x in before.items()}
    assert sqrt(sum(n * n for n in norms.values())) == pytest.approx(1e-3, rel=1e-3)
    if by_block:
        most = 1e-3 / sqrt(len(norms))
        assert all(n == pytest.approx(most, rel=1e-2) for n in norms.values())


@pytest.mark.parametrize("together", [False, True])
def test_the_noise_is_on_all_that_is_sent_and_the_device_goes_on_from_it(together: bool):
    learner, before = device(sigma=3.0, clip=0.5, by_block=False), device().flat.copy()
    payload = a_round(learner, together).payload
    for block, x in learner.flat.copy().items():
        assert torch.equal(x, payload[block])
    moved = torch.cat([payload[b] - x for b, x in before.items()])
    assert float(moved.std()) == pytest.approx(1.5, rel=0.05)
    again = a_round(device(sigma=3.0, clip=0.5, by_block=False), together).payload
    assert not any(torch.equal(again[b], payload[b]) for b in before)  # not from the run's seed


def test_a_round_is_booked_once_and_told():
    learner = device()
    for t in (1, 2, 3):
        metrics = a_round(learner, False, t).metrics
    expected = Ledger(((2.0, 1.0, 3),))
    assert learner.spending.ledger == expected
    assert metrics[EPSILON] == expected.epsilon(1 / 30)  # 1 / (10 devices)
    assert learner.spending.planned_steps == learner.settings.num_server_rounds


def test_what_tells_of_own_data_besides_stays_at_home():
    learner = device()
    outcome = a_round(learner, False, evaluate=True)
    told = outcome.metrics.keys()
    assert "test.accuracy" in told and "train.iterations" in told
    assert not {"train.loss", "validation.accuracy", "test.accuracy_own_shares"} & told
    assert not [name for name in told if name.startswith("speed.")]
    assert not outcome.payload[SPEEDS].any()


def test_a_device_whose_budget_is_spent_only_mixes():
    two = Ledger(((2.0, 1.0, 2),)).epsilon(1 / 30)
    peers = run_peers({**DP, "privacy.epsilon": two * 1.01}, num_rounds=4)
    each = [{n.partition: n for n in record.nodes} for record in peers.records]
    for k in range(3):
        assert each[3][k].own[EPSILON] == pytest.approx(two)
        assert [nodes[k].own[SPENT] for nodes in each] == [0, 1, 0, 0]
        assert [sum(nodes[k].updates.values()) > 0 for nodes in each] == [True] * 2 + [False] * 2
    options = parse_settings(DP, find_parts()).settings.privacy
    told, _ = epsilon_lines("dpsgd", peers.records, options)
    assert "differential privacy of all data of one device, against all who" in told
    assert told.endswith("at delta 1/(10 devices)")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"test-fusion": "uniform"}, "temperatures of own samples are sent"),
        ({"method": "fedproto"}, "the method 'fedproto' takes more"),
        ({"privacy.sigma": 0.0}, "dp = 'device' needs sigma, or epsilon"),
        ({"exchange.transport": "direct"}, "allowed: relay"),
        ({"gossip": "sheaf-dmfl"}, "the gossip rule 'sheaf-dmfl' tells neighbours of blocks"),
        ({"method": "harmony"}, "the method 'harmony' trains blocks that it does not always send"),
        ({"compare-with": "harmony"}, "allowed: d2, dmml, dpsgd, dsgdm, fedprox, greedy, local, "),
    ],
)
def test_what_is_refused(changed: dict[str, Any], said: str):
    with pytest.raises(SettingsError) as found:
        parse_settings({**DP, **changed}, find_parts())
    assert said in str(found.value)


def test_methods_that_keep_blocks_or_choose_weights_are_refused_unless_samples_are_protected():
    class Keeps(DPSGD):
        name = "keeps"

        def private_blocks(self) -> dict[str, nn.Module]:
            return {}

    class Waits(DPSGD):
        name = "waits"

        def sends(self, plan: Plan) -> Collection[str]:
            return ()

    class Chooses(DPSGD):
        name = "chooses"
        own_weights = True

    kinds = Keeps, Waits, Chooses
    for kind in kinds:
        config = {**DP, "method": kind.name}
        with pytest.raises(SettingsError, match=f"the method '{kind.name}' trains blocks"):
            parse_settings(config, find_parts(OwnParts(kinds)))
        parse_settings({**config, "privacy.dp": "sample"}, find_parts(OwnParts(kinds)))
    parse_settings({**DP, "privacy.dp": "sample", "gossip": "sheaf-dmfl"}, find_parts())


@pytest.mark.parametrize("rule", [n for n in find_gossip() if n != "sheaf-dmfl"])
def test_no_rule_sends_a_number_as_it_was_trained(rule: str, monkeypatch: pytest.MonkeyPatch):
    learner = make_learner({**DP, "gossip": rule, "topology": "line", "privacy.sigma": 1e5}, 1)
    trained = list[Tensor]()
    end = learner.spending.end

    def noted() -> None:
        trained.append(learner.flat.vector.clone())
        end()

    monkeypatch.setattr(learner.spending, "end", noted)
    payload = a_round(learner, False, recipients=(0, 2)).payload
    sent, own = torch.cat([x.flatten() for x in payload.values()]), trained[0]
    assert len(own[own != 0]) > 1000 < len(sent[sent != 0])
    assert torch.isin(sent[sent != 0], own).sum() < 3  # by chance


def test_a_delta_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(SettingsError, match="3 devices; allowed: below 1/3"):
        make_learner({**DP, "privacy.delta": 0.4}, 2)
