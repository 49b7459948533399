"""Temperatures on validation samples and by gossip, calibration error, and predictions."""

from collections.abc import Mapping, Sequence
from math import isnan, log
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner, run_peers
from torch import Tensor

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import find_methods
from flwr_dmml.data import Samples
from flwr_dmml.engine import inprocess
from flwr_dmml.learning.calibration import (
    ENOUGH,
    REPORT,
    TEMPERATURES,
    Calibration,
    calibration_error,
    calibration_metrics,
    errors_of,
    fitted_temperature,
)
from flwr_dmml.models.late_fusion import LateFusion, static_weight
from flwr_dmml.settings import find_parts, parse_settings

NAMES = ("a", "b")
RULES = ["uniform", "entropy", "certainty", "energy", "static"]
CONFIG: dict[str, Any] = {
    **FAST,
    "num-nodes": 3,
    "topology": "ring",
    "modality-pattern": "audio+image",
    "validation-fraction": 0.8,  # 32 samples, 8 train
}


# ---- by hand ------------------------------------------------------------------------------------


def test_calibration_error_of_six_samples() -> None:
    """15 bins: .95 and .95 in the last, .85, then .62 and .61, then .55.

    |1 - 1.9| + |1 - .85| + |1 - 1.23| + |0 - .55| = 1.83.
    """
    sure = torch.tensor([0.95, 0.95, 0.85, 0.62, 0.61, 0.55], dtype=torch.float64)
    right = torch.tensor([True, False, True, True, False, False])
    assert calibration_error(sure, right) == pytest.approx(1.83 / 6)
    assert calibration_error(torch.ones(3), torch.ones(3, dtype=torch.bool)) == 0
    assert isnan(calibration_error(torch.ones(0), torch.ones(0, dtype=torch.bool)))


def test_a_temperature_undoes_what_logits_are_too_large() -> None:
    """8 of 10 are right, so log-odds of log 4 are: five times as large, T is the next to 5."""
    logits = 5 * torch.tensor([[log(4), 0.0]]).expand(10, 2)
    labels = torch.tensor([0] * 8 + [1] * 2)
    assert TEMPERATURES[0] == 0.1 and TEMPERATURES[20] == 1 and TEMPERATURES[40] == 10
    assert fitted_temperature(logits, labels) == TEMPERATURES[34] == pytest.approx(5.0119, abs=1e-4)
    assert fitted_temperature(logits / 5, labels) == 1
    assert fitted_temperature(100 * logits, labels) == 10
    assert fitted_temperature(logits, torch.zeros(10, dtype=torch.int64)) == 0.1


def test_labels_shares_are_taken_into_account() -> None:
    """Odds of 4 are what odds of 2 come to where the first class is twice as frequent."""
    logits, labels = (
        5 * torch.tensor([[log(2), 0.0]]).expand(10, 2),
        torch.tensor([0] * 8 + [1] * 2),
    )
    assert fitted_temperature(logits, labels, torch.tensor([log(2), 0.0])) == TEMPERATURES[34]
    assert fitted_temperature(logits, labels) < TEMPERATURES[30]


class Sure:
    """Modality a has the logits of the sample's number, b the same times 4."""

    def __call__(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]
    ) -> list[Tensor]:
        return [inputs[m] * (4.0 if m == "b" else 1.0) for (m,) in subsets]


def four_of_five(n: int, has_b: int | None = None) -> Samples:
    """Return samples with odds of 4 for the first class, which has 4 of 5."""
    x = torch.tensor([[log(4), 0.0]]).repeat(n, 1)
    labels = torch.tensor([0, 0, 0, 0, 1]).repeat(n // 5)
    present = None
    if has_b is not None:
        there = torch.arange(n) < has_b
        present = {"a": torch.ones(n, dtype=torch.bool), "b": there}
    return Samples({"a": x, "b": x}, labels, present=present)


def temperatures(found: LateFusion | None) -> dict[str, float]:
    assert found is not None
    return {m: round(t, 4) for m, t in found.temperatures.items()}


def test_too_few_samples_fit_no_temperature() -> None:
    own = Calibration("uniform", NAMES, 2)
    assert temperatures(own.fusion(NAMES)) == {"a": 1, "b": 1}
    own.fit(Sure(), four_of_five(25), None)
    assert ENOUGH == 30 and own.report() == [0.0] * 6
    own.fit(Sure(), four_of_five(40, has_b=29), None)
    assert own.report() == pytest.approx([40, 0, 1, 0, 33 / 42, 0])
    own.fit(Sure(), four_of_five(40), None)
    assert temperatures(own.fusion(NAMES)) == {"a": 1, "b": 3.9811}  # the next to 4
    assert own.fusion(("b",)) == LateFusion("uniform", {"b": pytest.approx(TEMPERATURES[32])})


def test_neighbours_count_by_their_validation_samples() -> None:
    """Of a: 2 from 60 samples, 1/2 from 30: 2^(60/90 - 30/90). Of b: nobody, then a neighbour."""
    own = Calibration("static", NAMES, 2)
    own.hear([[60, 0, 2, 0, 0.9, 0], [30, 0, 0.5, 0, 0.6, 0], [0.0] * 6])
    found = own.fusion(NAMES)
    assert temperatures(found) == {"a": round(2 ** (1 / 3), 4), "b": 1}
    assert found is not None and found.weights == {
        "a": pytest.approx(static_weight(0.8, 2)),  # (60 * .9 + 30 * .6) / 90
        "b": 0,
    }
    own.hear([[0, 50, 0, 4, 0, 0.7]])
    assert temperatures(own.fusion(NAMES)) == {"a": 1, "b": 4}, "only the last reports count"
    own.fit(Sure(), four_of_five(50), None)  # 1 and 3.98
    own.hear([[100, 0, 8, 0, 0.5, 0]])
    assert temperatures(own.fusion(NAMES)) == {"a": 4, "b": 3.9811}  # 8^(100/150)
    own.hear([])
    assert temperatures(own.fusion(NAMES)) == {"a": 1, "b": 3.9811}


def test_with_liars_about_the_median_counts_and_claims_stay_in_range() -> None:
    own = Calibration("uniform", NAMES, 2, robust=True)
    own.hear([[40, 40, 2, 2, 0.5, 0.5], [40, 40, 4, 4, 0.5, 0.5], [1e6, 1e6, 1e6, 1e6, 9, 9]])
    assert temperatures(own.fusion(NAMES)) == {"a": 4, "b": 4}
    own.hear([[40, 40, 1e9, 0, 0.5, 0.5]])
    assert temperatures(own.fusion(NAMES)) == {"a": 10, "b": 0.1}


def test_reports_that_cannot_be_are_left_out_by_name() -> None:
    own = Calibration("uniform", NAMES, 2)
    good = torch.tensor([40.0, 0, 2, 0, 0.9, 0])
    inbox = {3: {REPORT: good}, 4: {REPORT: -good}, 5: {REPORT: good[:4]}, 6: {}}
    wrong = own.read(inbox)
    assert [line.split(" ")[:2] for line in wrong] == [
        ["4:", "temperatures"],
        ["5:", "temperatures"],
    ]
    assert temperatures(own.fusion(NAMES)) == {"a": 2, "b": 1}


def test_what_a_device_knows_survives() -> None:
    own, again = Calibration("entropy", NAMES, 2), Calibration("entropy", NAMES, 2)
    own.fit(Sure(), four_of_five(50), None)
    own.hear([[60, 0, 2, 0, 0.9, 0]])
    again.load_state(own.state())
    assert again.fusion(NAMES) == own.fusion(NAMES) and again.report() == own.report()
    again.load_state({})
    assert temperatures(again.fusion(NAMES)) == {"a": 1, "b": 1}


def test_errors_before_and_after_by_hand() -> None:
    """Odds of 4^4 say 0.9961, where 4 of 5 are right; odds of 4 say 0.8."""
    test = four_of_five(50)
    fusion = LateFusion("uniform", {"b": 4.0})
    part = Samples({"b": test.inputs["b"]}, test.labels)
    assert calibration_metrics(Sure(), fusion, part) == {
        "test.temperature.b": 4,
        "test.ece_uncalibrated": pytest.approx(256 / 257 - 0.8),
        "test.ece": pytest.approx(0, abs=1e-6),
    }


def test_errors_of_a_prediction_as_trained() -> None:
    """The same, by the temperature of 40 validation samples; of 25 there is none."""
    test, enough, few = ([(4 * x.inputs["b"], x.labels)] for x in map(four_of_five, (50, 40, 25)))
    before = {"test.ece_uncalibrated": pytest.approx(256 / 257 - 0.8)}
    after = {"test.ece": pytest.approx(0, abs=2e-3)}
    assert errors_of(test, enough) == before | after
    assert errors_of(test, few) == before
    assert errors_of([], enough) == {}


# ---- devices ------------------------------------------------------------------------------------


def lines(config: Mapping[str, Any], **how: Any) -> list[dict[str, Any]]:
    peers = run_peers(config, evaluate_every=1, **how)
    return [record.to_json() for record in peers.records]


def test_trained_is_what_a_run_without_the_setting_does() -> None:
    """No number is added, none changes, and nothing is sent; late fusion changes no training."""
    plain, trained, late = (
        lines({**CONFIG, **how})
        for how in ({}, {"test-fusion": "trained"}, {"test-fusion": "entropy"})
    )
    assert plain == trained
    assert not any("temperature" in line["nodes"][0] for line in plain)
    assert all(0 <= line["ece"] <= 1 for line in plain), "one temperature for the whole prediction"
    learner = make_learner({**CONFIG, "method": "dpsgd"})
    learner.evaluate()
    assert REPORT not in learner.extras() and learner.late_fusion is None
    assert not any(name.startswith("temperatures") for name in learner.state())
    for a, b in zip(plain, late, strict=True):
        assert a["train_loss"] == b["train_loss"]
        assert a["consensus_distance"] == b["consensus_distance"]
        assert a["accuracy_by_modality"] == b["accuracy_by_modality"], "one alone has no weight"
        assert 0 <= b["ece"] <= 1 and set(b["nodes"][0]["temperature"]) == {"audio", "image"}


@pytest.mark.parametrize("rule", RULES)
def test_a_device_predicts_by_its_rule(rule: str) -> None:
    """From samples as from their logits one by one; with one sensor all rules agree."""
    learner = make_learner({**CONFIG, "method": "dpsgd", "test-fusion": rule})
    metrics = learner.evaluate()
    x = dict(learner.test_data.inputs)
    audio, image = learner.scores(x, [("audio",), ("image",)])
    fusion = learner.late_fusion
    assert fusion is not None and fusion.rule == rule
    found = fusion({"audio": audio, "image": image}).argmax(dim=1)
    right = int((found == learner.test_data.labels).sum()) / len(found)
    assert metrics["test.accuracy"] == right
    assert metrics["test.temperature.audio"] == fusion.temperatures["audio"] != 1
    one = {**CONFIG, "method": "dpsgd", "modality-pattern": "image"}
    solo = [make_learner({**one, "test-fusion": how}).evaluate() for how in ("trained", rule)]
    shared = {k: v for k, v in solo[1].items() if k in solo[0]}
    assert solo[0] == pytest.approx(shared, abs=1e-6)
    assert solo[1].keys() - solo[0].keys() == {"test.temperature.image"}


def test_temperatures_travel_in_payloads_and_in_reports_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rounds with a message for each device, and rounds without, give the same numbers."""
    for more in ({}, {"label-correction": "network"}):
        config = {**CONFIG, "method": "dpsgd", "test-fusion": "static", **more}
        bulk = lines(config, num_rounds=3)
        with monkeypatch.context() as patched:
            patched.setattr(inprocess.InProcessGrid, "hosted", None)
            messages = lines(config, num_rounds=3)
        assert bulk == messages
        first, last = bulk[0]["nodes"], bulk[-1]["nodes"]
        assert first[0]["temperature"] != last[0]["temperature"]


def test_devices_with_few_samples_have_their_neighbours_temperatures() -> None:
    """Three on a ring that know of each other all go by the same, unless none has enough."""
    config = {**CONFIG, "method": "dpsgd", "test-fusion": "uniform"}
    few = lines({**config, "validation-fraction": 0.5})[-1]["nodes"]
    assert all(node["temperature"] == {"audio": 1, "image": 1} for node in few)
    assert all(node["ece"] == node["ece_uncalibrated"] for node in few)


@pytest.mark.parametrize("method", sorted(find_methods()))
def test_every_method_takes_it(method: str) -> None:
    config = {**CONFIG, "method": method, "public.samples": 60, "topology": "line"}
    for line in lines({**config, "test-fusion": "entropy"}):
        assert all(0 <= node["ece"] <= 1 for node in line["nodes"])


def test_a_static_rule_needs_held_out_samples() -> None:
    with pytest.raises(SettingsError, match="set validation-fraction above 0"):
        parse_settings({"test-fusion": "static", "validation-fraction": 0.0}, find_parts())
    with pytest.raises(SettingsError, match="test-fusion"):
        parse_settings({"test-fusion": "median"}, find_parts())
