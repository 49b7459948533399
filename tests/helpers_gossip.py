"""Devices that each want another number, and how gradient tracking brings them together."""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from flwr_dmml.clients import Learner
from flwr_dmml.gossip.rule import GossipRule, Mix, State, Steps


class Point(torch.nn.Module):
    """One number."""

    def __init__(self) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.zeros(1))


class OnAParabola(Learner):
    """(k + 1) (x - a)^2 / 2 with a = 1, 3, 8 on devices k = 0, 1, 2."""

    name = "on-a-parabola"
    gossip = "tracking"
    final: ClassVar[dict[int, float]] = {}

    def build_model(self) -> torch.nn.Module:  # type: ignore[override]
        return Point()

    def local_loss(self, batch: Any) -> Tensor:
        k = self.partition.partition_id
        away = (self.model.x - (1.0, 3.0, 8.0)[k]).reshape(1, 1)  # type: ignore[union-attr, operator]
        return (k + 1) * (away @ away).sum() / 2

    def evaluate(self) -> dict[str, float]:
        self.final[self.partition.partition_id] = float(self.model.x.detach())  # type: ignore[union-attr, operator]
        return {}


class Tracking(GossipRule):
    """Gradient tracking, which sends two vectors."""

    name: ClassVar[str] = "tracking"
    sends: ClassVar[tuple[Literal["block", "number"], ...]] = ("block", "block")
    linear: ClassVar[bool] = True

    def start(self, x: Tensor) -> State:
        return {"c": torch.zeros_like(x), "d": torch.zeros_like(x)}

    def mixed(self, mix: Mix, state: State) -> tuple[Tensor, State]:
        return mix(0), {**state, "c": state["c"] - state["d"] + mix(1)}

    def direction(self, g: Tensor, state: State, steps: Steps) -> Tensor:
        return g + state["c"]

    def publish(
        self, x: Tensor, z: Tensor, state: State, steps: Steps | None
    ) -> tuple[tuple[Tensor, ...], State]:
        d = torch.zeros_like(x) if steps is None else (x - z) / steps.carried
        return (z, d), {**state, "d": d}


def tracked(rounds: int, tau: int, lr: float) -> list[float]:
    """K-GT as plain arithmetic on a line of three."""
    w = np.array([[2 / 3, 1 / 3, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 3, 2 / 3]])
    a, s = np.array([1.0, 3.0, 8.0]), np.array([1.0, 2.0, 3.0])
    x, c = np.zeros(3), np.zeros(3)
    for _ in range(rounds):
        z = x.copy()
        for _ in range(tau):
            z = z - lr * (s * (z - a) + c)
        d = (x - z) / (lr * tau)
        x, c = w @ z, c - d + w @ d
    return x.tolist()
