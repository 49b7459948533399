"""DMML: a method that is nothing but choices, each of which the run config can take back."""

from typing import Any

import pytest
import torch
from helpers import FAST, PLAIN, make_learner, run_peers

from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import find_parts, parse_settings

CONFIG: dict[str, Any] = {**FAST, "num-nodes": 6}


@pytest.mark.parametrize("method", ["dmml", "dmml-kd"])
def test_what_it_chooses(method: str) -> None:
    learner = make_learner({**CONFIG, "method": method}, 2)
    s = learner.settings
    assert (s.stagger_share, s.modality_weight, s.label_correction) == (0.5, 1.0, "network")
    assert s.exchange.number_type == "int8" and learner.rule.name == "leaky-d2"
    assert s.allocation.rule == "max-min" and s.noise == 1.0
    assert learner.noisy == [] and not learner.model.fusers, "there are no vectors"
    parsed = parse_settings({**CONFIG, "method": method}, find_parts())
    assert parsed.couriers_of(method) == "forward"


@pytest.mark.parametrize("method", ["dpsgd", "fedgen", "local", "qg-dsgdm-n"])
def test_baselines_choose_none_of_it(method: str) -> None:
    s = make_learner({**CONFIG, "method": method}, 2).settings
    assert (s.stagger_share, s.modality_weight, s.label_correction) == (0.0, 0.0, "off")
    assert s.exchange.number_type == "float32" and s.allocation.rule == "uniform"
    assert s.noise == 0.0 and s.fusion == "additive"
    assert parse_settings({**CONFIG, "method": method}, find_parts()).couriers_of(method) == "off"


def test_with_all_choices_taken_back_it_is_dpsgd() -> None:
    plan = Plan(1, 4)
    plain, taken_back = (
        make_learner({**CONFIG, **PLAIN, "stagger": 0.0, "method": method}, 2)
        .run_round(plan, {})
        .payload
        for method in ("dpsgd", "dmml")
    )
    assert plain.keys() == taken_back.keys()
    assert all(torch.equal(plain[name], taken_back[name]) for name in plain)


@pytest.mark.parametrize("gossip", ["d2", "relaysgd"])
def test_a_rule_that_cannot_have_couriers_goes_without(gossip: str) -> None:
    config = {**CONFIG, "method": "dmml", "gossip": gossip, "topology": "line"}
    assert parse_settings(config, find_parts()).couriers_of("dmml") == "off"


def test_it_runs_and_carries() -> None:
    peers = run_peers({**CONFIG, "method": "dmml"}, num_rounds=3)
    assert peers.records[1].carried and not any(record.failed for record in peers.records)
