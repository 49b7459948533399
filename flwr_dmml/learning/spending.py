"""What a device spends of its privacy budget, and the noise that it spends it on."""

from collections.abc import Iterator
from typing import Protocol

import torch

from ..data import Partition, Samples
from ..payload.plan import Plan
from ..privacy.accountant import Ledger
from ..privacy.noise import gaussian, poisson_rows
from ..privacy.options import Mechanism
from .batch import Batch, batch_of
from .optimisers import total
from .per_sample import check_separable
from .trainee import Trainee

LEDGER = "privacy.ledger"
"""What a device has spent under ``privacy.dp``, in its ``memory``."""
EPSILON = "privacy.epsilon"
"""The same as a metric."""
SIGMA, STEPS = "privacy.sigma", "privacy.steps"
"""Its noise multiplier, and how many steps with noise it has taken, as metrics."""
SPENT = "privacy.spent"
"""1 where the budget allows no more such rounds, else 0: a metric."""
OF_SHARES = ("test.accuracy_own_shares",)
"""Metrics that tell the shares of a device's classes."""
OF_SAMPLES = "validation.accuracy", "test.ece"
"""Metrics that tell something of own samples that a device does not train on."""


class Spender(Trainee, Protocol):
    """A device with data of its own, see :class:`~.learner.Learner`."""

    partition: Partition
    train_data: Samples
    block_names: tuple[str, ...]


class Spending:
    """The noise of one device under ``privacy.dp``, and its ledger.

    Parameters
    ----------
    learner : Spender
        The device's: its ``memory`` holds the ledger, its blocks get the noise.

    Attributes
    ----------
    how : Mechanism or None
        How gradients, or a round's change, get noise; None without ``privacy.dp``.
    spent : bool
        Whether the budget of ``privacy.epsilon`` does not allow to train in this round.

    Raises
    ------
    MethodError
        The model mixes samples.
    SettingsError
        The settings do not fit the number of samples.
    """

    def __init__(self, learner: Spender) -> None:
        self._learner = learner
        self.how: Mechanism | None = None
        self.spent = False
        self._steps = 0  # with noise, that it is to take in this round
        self._before = torch.empty(0)  # where its training began, if the change is to get noise
        privacy, settings = learner.settings.privacy, learner.settings
        if not privacy.on:
            return
        for module in learner.flat.modules.values() if privacy.dp == "sample" else ():
            check_separable(module)
        own = len(learner.train_data), settings.batch_size
        self.how = Mechanism.of(privacy, *own, self.planned_steps, settings.num_nodes)

    @property
    def of_samples(self) -> Mechanism | None:
        """How gradients of samples get noise; None where they get none."""
        return self.how if self.how is not None and self.how.of_samples else None

    @property
    def of_change(self) -> Mechanism | None:
        """How what a round has changed gets noise; None where it gets none."""
        return None if self.how is None or self.how.of_samples else self.how

    @property
    def planned_steps(self) -> int:
        """What is to get noise in a whole run in which each round trains ``local-iterations``."""
        settings = self._learner.settings
        each = dict.fromkeys(self._learner.partition.modalities, settings.local_iterations)
        return settings.num_server_rounds * self._booked(len(self._learner.steps(each)))

    def _booked(self, iterations: int) -> int:
        """Return how many of a round's steps get noise: each, or with ``dp = "device"`` one."""
        return iterations if self._learner.settings.privacy.dp == "sample" else min(1, iterations)

    @property
    def ledger(self) -> Ledger:
        """What has been spent so far in this run."""
        memory = self._learner.memory
        return Ledger.of(memory[LEDGER]) if LEDGER in memory else Ledger()

    def enter(self, plan: Plan) -> None:
        """See whether the budget allows what a plan asks for."""
        self.spent = False
        if self.how is not None and plan.iterations:
            updates = self._learner.updates(plan)
            self._steps = self._booked(len(self._learner.steps(updates)))
            self.spent = self.how.would_exceed(self.ledger, self._steps)

    def begin(self) -> None:
        """Remember where a round's training begins, if what it changes is to get noise."""
        if self.of_change is not None:
            self._before = self._learner.flat.vector.clone()

    def charge(self, steps: int) -> None:
        """Book steps with noise, before the first of them is taken."""
        assert self.how is not None
        self._learner.memory[LEDGER] = self.how.charged(self.ledger, steps).tensor()

    def drawn(self, iterations: int) -> Iterator[Batch]:
        """Yield mini-batches that hold each training sample with the same probability."""
        assert self.how is not None
        data = self._learner.train_data
        for _ in range(iterations):
            yield batch_of(data.subset(poisson_rows(len(data), self.how.rate)))

    def end(self) -> None:
        """Add noise to what the round's training has changed, if that is what gets it."""
        if self.of_change is not None:
            self._add_noise(self.of_change)

    @torch.no_grad()
    def _add_noise(self, how: Mechanism) -> None:
        """Clip what the round has changed in all that is sent, and add noise, in place.

        ``x + D min(1, C / ||D||) + N(0, sigma^2 C^2)`` with x where training began and D the way
        from there; by block each of n parts of D is clipped to ``C / sqrt(n)``. The device goes on
        from that itself: whatever it mixes and sends later has no more of D than its neighbours.
        """
        self.charge(1)
        flat, device = self._learner.flat, self._learner.device
        places = [flat.slices[block] for block in self._learner.block_names]
        parts = [[place] for place in places] if how.by_block else [places]
        most = how.clip / len(parts) ** 0.5
        for own in parts:
            ways = [flat.vector[place] - self._before[place] for place in own]
            norm = total(way.double().square().sum() for way in ways).sqrt()
            factor = float((most / norm.clamp(min=1e-30)).clamp(max=1.0))
            for place, way in zip(own, ways, strict=True):
                noise = how.sigma * how.clip * gaussian(len(way)).to(device)
                flat.vector[place] = self._before[place] + factor * way + noise

    def told(self) -> dict[str, float]:
        """Return what is spent, as metrics; nothing without ``privacy.dp``."""
        if self.how is None:
            return {}
        return {
            EPSILON: self.how.epsilon(self.ledger),
            SIGMA: self.how.sigma,
            STEPS: float(self.ledger.steps),
            SPENT: float(self.how.would_exceed(self.ledger, self._steps)),
        }

    @property
    def untold(self) -> tuple[str, ...]:
        """Metrics of an evaluation that would tell something of own samples without noise."""
        if self.how is None:
            return ()
        return OF_SHARES if self.how.of_samples else (*OF_SHARES, *OF_SAMPLES)
