"""Settings of differential privacy (``privacy.…``), and what they come to on a device."""

from dataclasses import dataclass
from math import inf
from typing import Literal, Self

from pydantic import Field, model_validator

from ..base.errors import SettingsError
from ..base.libraries import require
from ..base.options import Group
from .accountant import Accountant, Ledger, sigma_for, steps_within


class PrivacyOptions(Group):
    """Noise on local gradients, and the budget of each device."""

    dp: Literal["off", "sample", "device"] = Field(
        "off",
        description="sample: clip the gradient of each sample, and add noise to their sum; device: "
        "clip what a round has changed, and add noise to that",
    )
    clip: float = Field(
        1.0,
        gt=0,
        description="clip each sample's gradient to this norm, instead of clip-norm; or a round's "
        "change",
    )
    clip_by: Literal["block", "model"] = Field(
        "block",
        description="clip the whole of it, or each of the n blocks that an iteration trains, or "
        "that are sent, to clip / sqrt(n)",
    )
    sigma: float = Field(
        0.0,
        ge=0,
        description="standard deviation of the noise, in units of clip; 0: found from epsilon",
    )
    epsilon: float = Field(
        0.0,
        ge=0,
        description="budget of a device, which then only mixes and relays; 0: no limit, with sigma",
    )
    delta: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="delta of a device's epsilon; 0: 1 / (10 n) of n training samples, or devices",
    )
    accountant: Accountant = Field(
        "rdp",
        description="how epsilon is found: Renyi divergences, or the distribution of the privacy "
        "loss, a tighter bound (extra 'privacy')",
    )
    pacing: bool = Field(
        False,
        description="spread a device's budget over all rounds, by fewer iterations in each, and do "
        "not train until it is spent",
    )
    zip_noise: float = Field(
        0.0,
        ge=0,
        description="standard deviation of noise on each neighbour's copy of a model, which "
        "cancels in the network's mean; 0: none",
    )

    secure_sums: bool = Field(
        False, description="neighbours learn the weighted sum of all their neighbours' models only"
    )

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.on and not (self.sigma or self.epsilon):
            raise ValueError(f"dp = '{self.dp}' needs sigma, or epsilon to find it from; set one")
        if self.pacing and not (self.dp == "sample" and self.sigma and self.epsilon):
            raise ValueError(
                "pacing needs dp = 'sample', and both sigma and epsilon: otherwise the noise is "
                "found for all planned steps, and there is nothing to spread"
            )
        if self.zip_noise and self.secure_sums:
            raise ValueError("zip-noise and secure-sums: a sum has no copies; set one of them")
        return self

    @property
    def on(self) -> bool:
        """Whether there is noise."""
        return self.dp != "off"

    @property
    def unicast(self) -> bool:
        """Whether every neighbour gets another copy of a model, or another part of a sum."""
        return self.zip_noise > 0 or self.secure_sums

    @property
    def delta_told(self) -> str:
        """The delta of devices, in words."""
        return f"{self.delta:g}" if self.delta else f"1/(10 {self.dp}s)"

    @property
    def unit(self) -> str:
        """What two neighbouring data sets differ in, in words."""
        return "one training sample" if self.dp == "sample" else "all data of one device"


@dataclass(frozen=True)
class Mechanism:
    """How a device clips and adds noise, and what it may spend.

    Attributes
    ----------
    clip : float
        The most that the gradient of a sample counts, or the change of a round, > 0.
    by_block : bool
        Whether each block is clipped by itself.
    sigma : float
        Standard deviation of the noise, in units of ``clip``, >= 0.
    rate : float
        Probability of a sample to be in a mini-batch, in (0, 1].
    batch : float
        The expected number of samples of a mini-batch, > 0: what the noisy sum is divided by.
    delta : float
        In (0, 1).
    budget : float
        The most epsilon at that delta; inf where there is no limit.
    of_samples : bool
        Whether gradients of samples get noise; else each round's change does, once.
    by : {"rdp", "pld"}
        The accountant, see :func:`.epsilon_of`.
    """

    clip: float
    by_block: bool
    sigma: float
    rate: float
    batch: float
    delta: float
    budget: float = inf
    of_samples: bool = True
    by: Accountant = "rdp"

    @classmethod
    def of(
        cls, options: PrivacyOptions, samples: int, batch_size: int, steps: int, devices: int
    ) -> "Mechanism":
        """Return that of a device, for a run of so many steps, or rounds with ``dp = "device"``.

        Parameters
        ----------
        options : PrivacyOptions
            With noise.
        samples, batch_size, steps, devices : int
            Training samples of the device, its ``batch-size``, and ``num-nodes``.

        Raises
        ------
        SettingsError
            ``privacy.delta`` is not below 1 / samples, or 1 / devices, or no noise keeps to
            ``privacy.epsilon``.
        LibraryError
            The accountant's library is missing or does not load.
        """
        if options.accountant == "pld":
            require("dp_accounting")
        of_samples = options.dp == "sample"
        units = samples if of_samples else devices
        delta = options.delta or 1 / (10 * units)
        if delta * units >= 1:
            there = f"a device has {units} training samples" if of_samples else f"{units} devices"
            raise SettingsError(f"privacy.delta = {delta:g}: {there}; allowed: below 1/{units}")
        rate = min(1.0, batch_size / samples) if of_samples else 1.0
        sigma = options.sigma
        if not sigma:
            try:
                sigma = sigma_for(options.epsilon, rate, steps, delta, options.accountant)
            except ValueError as error:
                raise SettingsError(f"privacy.epsilon = {options.epsilon:g}: {error}") from error
        return cls(
            options.clip,
            options.clip_by == "block",
            sigma,
            rate,
            rate * samples,
            delta,
            options.epsilon or inf,
            of_samples,
            options.accountant,
        )

    def charged(self, ledger: Ledger, steps: int) -> Ledger:
        """Return the ledger after so many steps more."""
        return ledger.plus(self.sigma, self.rate, steps)

    def epsilon(self, ledger: Ledger) -> float:
        """Return the epsilon of what has been spent."""
        return ledger.epsilon(self.delta, self.by)

    def would_exceed(self, ledger: Ledger, steps: int) -> bool:
        """Return whether so many steps more would go over the budget."""
        return steps > 0 and self.epsilon(self.charged(ledger, steps)) > self.budget

    def steps_within(self, most: int) -> int:
        """Return how many steps, ``most`` at most, the budget allows."""
        return steps_within(self.budget, self.sigma, self.rate, self.delta, most, self.by)
