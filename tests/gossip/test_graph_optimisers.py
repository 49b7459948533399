"""Optimisers over a graph, stepped by hand on a quadratic of one parameter.

Two linked devices minimise (x - a)^2 / 2 with a = 1 and a = 3, from x = 0. Their mixing weights are
1/2 each, the learning rate is 0.1.
"""

from typing import ClassVar

import pytest
import torch
from helpers import FAST, make_learner, run_peers
from torch import Tensor, nn

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import Learner
from flwr_dmml.gossip.d2 import D2Rule
from flwr_dmml.gossip.rule import GossipRule
from flwr_dmml.learning.batch import Batch
from flwr_dmml.methods.presets import D2, QgDsgdm, QgDsgdmN


class Point(nn.Module):
    """One parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1))


class OnAQuadratic(Learner):
    """Mixed into an optimiser: its model is a point, its loss a parabola around 1 or 3."""

    name = "quadratic"
    final: ClassVar[dict[int, float]] = {}

    def build_model(self) -> nn.Module:  # type: ignore[override]
        return Point()

    def blocks(self) -> dict[str, nn.Module]:
        return {"point": self.model}

    def encoders(self) -> dict[str, nn.Module]:
        return {"audio": self.model}

    def local_loss(self, batch: Batch) -> Tensor:
        a = 1.0 + 2.0 * self.partition.partition_id
        # a product of matrices, so that there is an operation to count
        away = (self.model.x - a).reshape(1, 1)  # type: ignore[union-attr, operator]
        return (away @ away).sum() / 2

    def evaluate(self) -> dict[str, float]:
        self.final[self.partition.partition_id] = float(self.model.x.detach())  # type: ignore[union-attr, operator]
        return {}


def run(
    optimiser: type[Learner], num_rounds: int, iterations: int = 1, **more: object
) -> list[float]:
    """Return both devices' points after the last mixing."""
    learner = type("Quadratic", (OnAQuadratic, optimiser), {"name": "quadratic"})
    config = {
        **FAST,
        "method": "quadratic",
        "num-nodes": 2,
        "modality-pattern": "audio",
        "local-iterations": iterations,
        "learning-rate": 0.1,
        "momentum": 0.9,
        "clip-norm": 0.0,
        **{key.replace("_", "-"): value for key, value in more.items()},
    }
    OnAQuadratic.final.clear()
    run_peers(config, learner, num_rounds=num_rounds, rules=[Halved])
    return [OnAQuadratic.final[0], OnAQuadratic.final[1]]


def quasi_global(
    rounds: int, iterations: int, *, nesterov: bool, beta: float = 0.9, mu: float = 0.1
) -> list[float]:
    """Lin et al.'s algorithm 1 as plain arithmetic, m frozen within a round."""
    x, m, lr = [0.0, 0.0], [0.0, 0.0], 0.1
    for _ in range(rounds):
        half = list(x)
        for k, a in enumerate((1.0, 3.0)):
            for _ in range(iterations):
                g = half[k] - a
                m_hat = beta * m[k] + g
                half[k] -= lr * (g + beta * m_hat if nesterov else m_hat)
        mixed = (half[0] + half[1]) / 2
        for k in range(2):
            d = (x[k] - mixed) / (lr * iterations)
            m[k] = (1 - mu) * m[k] + mu * d
        x = [mixed, mixed]
    return x


def test_two_rounds_of_quasi_global_momentum_by_hand():
    """Plain form. Round 1: g = -1, -3; m = 0, so x_half = 0.1, 0.3 and both mix to 0.2.

    d = (0 - 0.2) / 0.1 = -2, m = 0.1 * -2 = -0.2 on both devices. Round 2: g = -0.8, -2.8;
    m^ = 0.9 * -0.2 + g = -0.98, -2.98; x_half = 0.298, 0.498; mixed 0.398. D-PSGD would be at 0.38.
    """
    assert run(QgDsgdm, 1) == pytest.approx([0.2, 0.2])
    assert run(QgDsgdm, 2) == pytest.approx([0.398, 0.398])


def test_two_rounds_with_nesterov_by_hand():
    """Round 1: step = g + 0.9 g = 1.9 g: x_half = 0.19, 0.57, mixed 0.38; m = 0.1 * -3.8 = -0.38.

    Round 2: g = -0.62, -2.62; m^ = -0.342 + g = -0.962, -2.962; step = g + 0.9 m^ = -1.4858,
    -5.2858; the mean step is -3.3858, so both are at 0.38 + 0.33858.
    """
    assert run(QgDsgdmN, 1) == pytest.approx([0.38, 0.38])
    assert run(QgDsgdmN, 2) == pytest.approx([0.71858, 0.71858])


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("iterations", [1, 3])
def test_quasi_global_momentum_is_its_pseudo_code(nesterov: bool, iterations: int):
    learner = QgDsgdmN if nesterov else QgDsgdm
    expected = quasi_global(6, iterations, nesterov=nesterov)
    assert run(learner, 6, iterations) == pytest.approx(expected, rel=1e-5)


def test_quasi_global_momentum_needs_sgd():
    with pytest.raises(SettingsError, match=r"optimizer = 'adam': .* sgd only"):
        make_learner({"method": "qg-dsgdm", "optimizer": "adam"})


def d_squared(rounds: int, iterations: int) -> list[float]:
    """D-squared with corrected local steps, as plain arithmetic; (I + W) / 2 has rows 3/4, 1/4."""
    x, c, lr = [0.0, 0.0], [0.0, 0.0], 0.1
    for _ in range(rounds):
        end = list(x)
        for k, a in enumerate((1.0, 3.0)):
            for _ in range(iterations):
                end[k] -= lr * (end[k] - a + c[k])
        x = [0.75 * end[0] + 0.25 * end[1], 0.25 * end[0] + 0.75 * end[1]]
        c = [old - (to - at) / (lr * iterations) for old, to, at in zip(c, x, end, strict=True)]
    return x


def published(rounds: int) -> list[float]:
    """Tang et al.'s algorithm 1: ``W (2 x_t - x_(t-1) - lr (g_t - g_(t-1)))``, one step a round."""
    lr, a = 0.1, (1.0, 3.0)
    before, x = [0.0, 0.0], [0.0, 0.0]
    for t in range(rounds):
        g = [p - q for p, q in zip(x, a, strict=True)]
        y = [p - lr * d for p, d in zip(x, g, strict=True)]
        if t:
            y = [2 * x[k] - before[k] - lr * ((x[k] - a[k]) - (before[k] - a[k])) for k in range(2)]
        before, x = x, [0.75 * y[0] + 0.25 * y[1], 0.25 * y[0] + 0.75 * y[1]]
    return x


def test_two_rounds_of_d_squared_by_hand():
    """Round 1: end = 0.1, 0.3; mixed 0.15, 0.25. Round 2: end = 0.235, 0.525.

    y = end + x - end_before = 0.235 + 0.15 - 0.1 = 0.285 and 0.525 + 0.25 - 0.3 = 0.475; mixed
    0.3325, 0.4275.
    """
    assert run(D2, 1) == pytest.approx([0.15, 0.25])
    assert run(D2, 2) == pytest.approx([0.3325, 0.4275])


@pytest.mark.parametrize("iterations", [1, 4])
def test_d_squared_is_its_pseudo_code(iterations: int):
    assert run(D2, 7, iterations, momentum=0.0) == pytest.approx(d_squared(7, iterations), rel=1e-5)
    assert d_squared(7, 1) == pytest.approx(published(7), rel=1e-12)


def test_d_squared_ends_at_the_common_minimum_where_gossip_stays_apart():
    """Devices that pull to 1 and to 3 meet at 2; plain gossip keeps a gap for ever."""
    assert run(D2, 120) == pytest.approx([2.0, 2.0], abs=1e-3)
    first, second = run(Gossip, 120)
    assert (first + second) / 2 == pytest.approx(2.0, abs=1e-3) and second - first > 0.05


class Halved(GossipRule):
    """Plain gossip with the weights of D-squared."""

    name = "halved"
    weigh = D2Rule.weigh


class Gossip(Learner):
    """Cross-entropy on that."""

    gossip = "halved"
