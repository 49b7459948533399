"""Late fusion by hand: two modalities, two classes."""

from math import exp, log, sqrt

import pytest
import torch
from torch import Tensor

from flwr_dmml.models.late_fusion import LateFusion, LateRule, static_weight

RULES: list[LateRule] = ["uniform", "entropy", "certainty", "energy", "static"]
LOGITS = {"a": torch.tensor([[log(4), 0.0]]), "b": torch.tensor([[0.0, log(3)]])}
"""Softmax: (0.8, 0.2) and (0.25, 0.75); sums of exponentials: 5 and 4."""
COLD = {"a": 1.0, "b": 1.0}


def odds(rule: LateRule, temperatures: dict[str, float] = COLD, **weights: float) -> float:
    """Return the odds of the first class."""
    p = LateFusion(rule, temperatures, weights)(LOGITS).softmax(dim=1)
    return float(p[0, 0] / p[0, 1])


def weighted(a: float, b: float) -> float:
    """Return ``4^wa * (1/3)^wb``, with weights in these proportions."""
    return float(4 ** (a / (a + b)) * 3 ** (-b / (a + b)))


def entropy(p: float) -> float:
    return -p * log(p) - (1 - p) * log(1 - p)


def test_weights_of_every_rule_by_hand() -> None:
    assert odds("uniform") == pytest.approx(sqrt(4 / 3))
    assert odds("entropy") == pytest.approx(weighted(exp(-entropy(0.8)), exp(-entropy(0.75))))
    assert odds("certainty") == pytest.approx(weighted(exp(0.8), exp(0.75)))
    assert odds("energy") == pytest.approx(weighted(log(5), log(4)))
    assert odds("static", a=3.0, b=1.0) == pytest.approx(weighted(3, 1))
    assert odds("static", a=2.0) == pytest.approx(4), "b weighs nothing"


def test_temperatures_divide_logits_before_anything_else() -> None:
    """At T = 2 modality a has odds of 2: (2/3, 1/3), and a sum of exponentials of 3."""
    warm = {"a": 2.0, "b": 1.0}

    def of(a: float, b: float) -> float:
        return float(2 ** (a / (a + b)) * 3 ** (-b / (a + b)))

    assert odds("uniform", warm) == pytest.approx(sqrt(2 / 3))
    assert odds("entropy", warm) == pytest.approx(of(exp(-entropy(2 / 3)), exp(-entropy(0.75))))
    assert odds("certainty", warm) == pytest.approx(of(exp(2 / 3), exp(0.75)))
    assert odds("energy", warm) == pytest.approx(of(log(3), log(4)))
    assert LateFusion("energy", warm).uncalibrated == LateFusion("energy", COLD)


def test_where_no_modality_weighs_anything_all_count_alike() -> None:
    """Logarithms of probabilities have an energy of 0, lower logits a negative one."""
    for shift in (0.0, -5.0):
        logs = {m: x.log_softmax(dim=1) + shift for m, x in LOGITS.items()}
        p = LateFusion("energy", COLD)(logs).softmax(dim=1)
        assert float(p[0, 0] / p[0, 1]) == pytest.approx(sqrt(4 / 3), rel=1e-5)
    assert odds("static") == pytest.approx(sqrt(4 / 3))


@pytest.mark.parametrize("rule", RULES)
def test_one_modality_is_itself_under_every_rule(rule: LateRule) -> None:
    logits = torch.randn(40, 5)
    found = LateFusion(rule, {"a": 0.5}, {"a": 1.3})({"a": logits})
    assert torch.equal(found, (2 * logits).log_softmax(dim=1))


@pytest.mark.parametrize("rule", RULES)
def test_modalities_that_agree_are_not_surer_than_one(rule: LateRule) -> None:
    logits = torch.randn(40, 5)
    found = LateFusion(rule, COLD, {"a": 1.0, "b": 2.0})({"a": logits, "b": logits})
    assert torch.allclose(found, logits.log_softmax(dim=1), atol=1e-5)


def test_subsets_are_fused_from_single_modalities_alone() -> None:
    asked: list[list[tuple[str, ...]]] = []

    def scores(inputs: dict[str, Tensor], subsets: list[tuple[str, ...]]) -> list[Tensor]:
        asked.append(list(subsets))
        return [inputs[m] for (m,) in subsets]

    fusion = LateFusion("entropy", COLD)
    found = fusion.scores(scores)(LOGITS, [("a", "b"), ("b",)])  # type: ignore[arg-type]
    assert asked == [[("a",), ("b",)]]
    assert torch.equal(found[0], fusion(LOGITS))
    assert torch.equal(found[1], LOGITS["b"].log_softmax(dim=1))


def test_static_weights() -> None:
    """Those of a vote: 0 at chance, and never below."""
    assert static_weight(0.9, 2) == pytest.approx(log(9))
    assert static_weight(0.5, 2) == static_weight(0.3, 2) == static_weight(0.5, 1) == 0
    assert static_weight(0.5, 10) == pytest.approx(log(9))
    assert static_weight(0.1, 10) == pytest.approx(0, abs=1e-12)
