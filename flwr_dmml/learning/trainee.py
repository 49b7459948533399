"""What a device has to offer to be trained, alone or in a stack (:mod:`~.training`)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..payload.flat import Flat
from ..payload.plan import Plan
from ..privacy.options import Mechanism
from .balance import LocalPhase
from .batch import Batch, Pool
from .optimisers import LocalSteps
from .settings import DeviceSettings
from .speedometer import Speedometer


class Spends(Protocol):
    """Which iterations of a device get noise, see :class:`~.spending.Spending`."""

    @property
    def of_samples(self) -> Mechanism | None:
        """How gradients of samples get noise."""

    def charge(self, steps: int) -> None:
        """Book iterations with noise."""

    def drawn(self, iterations: int) -> Iterator[Batch]:
        """Yield the mini-batches of these."""


class Trainee(Protocol):
    """A device as it is trained, see :class:`~.learner.Learner`."""

    @property
    def flat(self) -> Flat:
        """Its parameters, a row."""

    @property
    def pool(self) -> Pool:
        """Its training samples, among those of others."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def settings(self) -> DeviceSettings:
        """Those that all methods share."""

    @property
    def speedometer(self) -> Speedometer:
        """The training speeds of its encoders."""

    @property
    def memory(self) -> dict[str, Tensor]:
        """What a method keeps from round to round."""

    @property
    def module(self) -> nn.Module:
        """Its model."""

    @property
    def modulates(self) -> bool:
        """Whether its method changes gradients."""

    @property
    def draws(self) -> bool:
        """Whether an iteration has something of its own."""

    def leads(self, other: Any) -> bool:
        """Return whether its model computes iterations of a device that has all of its blocks."""

    @property
    def noisy(self) -> list[str]:
        """Modalities whose inputs get noise."""

    def noise_scale(self, modality: str) -> Tensor:
        """Return the standard deviation of that, ``[width]``."""

    def rng(self, purpose: str) -> torch.Generator:
        """Return a generator for one purpose of this round."""

    @property
    def batches_of_rows(self) -> bool:
        """Whether mini-batches are just rows of its training samples."""

    def stacks_now(self) -> bool:
        """Return whether this round's iterations can be those of a stack."""

    def updates(self, plan: Plan) -> dict[str, int]:
        """Return how many times a plan trains each modality."""

    def planned(self, plan: Plan) -> dict[str, tuple[float, float]]:
        """Return by block its steps in a plan, and the mean over those who train it."""

    def steps(self, updates: Mapping[str, int]) -> list[tuple[str, ...]]:
        """Return which modalities each iteration trains."""

    def batches(self, iterations: int) -> Iterator[Batch]:
        """Yield mini-batches."""

    def batch_rows(self, iterations: int) -> Tensor:
        """Return which training samples they hold, ``[iterations, batch]``."""

    @property
    def spending(self) -> Spends:
        """Which iterations get noise."""

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss."""

    label_shift: Tensor | None
    """What is added to logits of own samples, of those whose loss is computed."""

    def shift(self) -> Tensor | None:
        """Return that of this device in this round."""

    def fixed(self) -> dict[str, Tensor]:
        """Return what all losses of a round read."""

    def running(self) -> dict[str, Tensor]:
        """Return what iterations bring up to date."""

    def draw(self, batch: Batch) -> dict[str, Tensor]:
        """Return what an iteration has of its own."""

    def frozen(self) -> dict[str, nn.Module]:
        """Return modules that the loss calls and does not train."""

    def modulate(self, modalities: tuple[str, ...], batch: Batch) -> Mapping[str, Tensor] | None:
        """Change gradients."""

    def precision(self) -> torch.autocast:
        """Return the context in which losses are computed."""

    def local_steps(self, learners: Sequence[Any], plan: Plan, matrix: Tensor) -> LocalSteps:
        """Return what steps devices that are alike."""

    def keep_optimizer(self, local: LocalSteps, row: int) -> None:
        """Keep the momentum and the like of a row."""

    def note_training(self, loss: float, iterations: int, phases: Mapping[str, LocalPhase]) -> None:
        """Note what came of a round's iterations."""
