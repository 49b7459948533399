"""What a device predicts by: the mixed model, its own, their mean, or the best on its samples."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner
from helpers_engines import SENSORS, on_both_engines

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import Learner, make_client_app
from flwr_dmml.deploy.model import load_model
from flwr_dmml.engine import FlowerApp, run_app
from flwr_dmml.learning.serving import SERVED, SHARES, between
from flwr_dmml.payload.plan import Plan
from flwr_dmml.strategies import make_server_app

PAIR: dict[str, Any] = {
    **FAST,
    "method": "dpsgd",
    "num-nodes": 2,
    "topology": "line",
    "samples-per-node": 400,
    "validation-fraction": 0.25,
    "modality-pattern": "audio+image",
}


def test_between_by_hand() -> None:
    mixed, own = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])
    found = {share: between(mixed, own, share).tolist() for share in SHARES.values()}
    assert found == {0.0: [1, 2], 0.5: [2, 0], 1.0: [3, -2]}


def evaluated(serve: str, tries: int = 6) -> tuple[Learner, dict[str, float], torch.Tensor]:
    """Train a device, mix with rubbish, evaluate; return its metrics and its own model."""
    learner = make_learner({**PAIR, "serve": serve})
    learner.run_round(Plan(1, 40), {})
    own = learner.flat.vector.clone()
    lengths = learner.block_lengths()
    g = torch.Generator().manual_seed(0)
    rubbish = {name: torch.randn(n, generator=g) for name, n in lengths.items()}
    plan = Plan(2, 0, evaluate=True, neighbours=(1,), weights=dict.fromkeys(lengths, (0.5, 0.5)))
    return learner, learner.run_round(plan, {1: rubbish}).metrics, own


def test_each_is_what_it_says_and_training_goes_on_from_the_mixed_one() -> None:
    found = {serve: evaluated(serve) for serve in ("mixed", "own", "ensemble", "auto")}
    plain, before, own = found["mixed"]
    mixed = plain.flat.vector.clone()
    assert SERVED not in before
    for learner, _, _ in found.values():
        assert torch.equal(learner.flat.vector, mixed)
    for serve, share in (("own", 1.0), ("ensemble", 0.5)):
        learner, metrics, _ = found[serve]
        assert metrics[SERVED] == share
        plain.flat.vector.copy_(between(mixed, own, share))
        expected = plain.evaluate()
        assert {k: metrics[k] for k in expected} == expected
        kept = learner.evaluated(Plan(2, 0, evaluate=True))
        weights = plain.predictor().state_dict()
        assert all(torch.equal(kept.weights[name], weights[name]) for name in weights)
    assert found["own"][1]["test.accuracy"] > before["test.accuracy"] + 0.2


def test_validation_samples_choose_and_the_test_set_is_not_looked_at() -> None:
    """Rubbish from a neighbour: the own model fits better; after a round by itself it is the same.

    The choice stays the same where all labels of the test set are others.
    """
    _, metrics, _ = evaluated("auto")
    assert metrics[SERVED] == 1
    other = make_learner({**PAIR, "serve": "auto"})
    others = (other.test_data.labels + 1) % 10  # in a copy: tests share what is loaded
    other.test_data = replace(other.test_data, labels=others)
    other.run_round(Plan(1, 40), {})
    other.run_round(Plan(2, 0, evaluate=True), {})
    assert other.measured[SERVED] == 0, "all three are one model: the first of equals"
    few = make_learner({**PAIR, "serve": "auto", "validation-fraction": 0.04})
    few.run_round(Plan(1, 40), {})
    lengths = few.block_lengths()
    rubbish = {name: torch.ones(n) for name, n in lengths.items()}
    plan = Plan(2, 0, evaluate=True, neighbours=(1,), weights=dict.fromkeys(lengths, (0.5, 0.5)))
    assert few.run_round(plan, {1: rubbish}).metrics[SERVED] == 0, "16 samples choose nothing"


def test_both_engines_agree() -> None:
    config = {**SENSORS, "samples-per-node": 200, "validation-fraction": 0.25, "serve": "auto"}
    plain = {**config, "serve": "mixed"}
    run, mixed = on_both_engines(config), on_both_engines(plain)
    shares = {n.own["serve.own"] for n in run.records[-1].nodes}
    assert shares <= {0.0, 0.5, 1.0}
    assert [r.train_loss for r in run.records] == [r.train_loss for r in mixed.records]


def test_a_kept_model_is_the_one_that_was_served(tmp_path: Path) -> None:
    config = {**PAIR, "serve": "own", "keep-models": True, "num-server-rounds": 2}
    config |= {"run-dir": str(tmp_path), "compare-with": ""}
    run_app(FlowerApp({}, make_server_app(), make_client_app()), 2, config)
    learner = make_learner(config, 0)
    (file,) = tmp_path.glob("*/*/models/device-000.json")
    model = load_model(file)
    x = dict(learner.test_data.inputs)
    (logits,) = model.scores(x, [("audio", "image")])
    right = float((logits.argmax(dim=1) == learner.test_data.labels).float().mean())
    assert right == pytest.approx(model.about.metrics["test.accuracy"], abs=1e-6)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"serve": "own", "privacy.dp": "device", "privacy.sigma": 1.0},
            "serve = 'own' with privacy.dp = 'device'",
        ),
        ({"serve": "own", "final-merge": "owners"}, "serve = 'own': the rounds of final-merge"),
        ({"serve": "auto", "validation-fraction": 0}, "serve = 'auto': the model is chosen by"),
    ],
)
def test_what_cannot_be_served_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        make_learner({**PAIR, **config})
