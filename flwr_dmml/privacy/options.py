"""Settings of differential privacy (``privacy.…``), and what they come to on a device."""

from dataclasses import dataclass
from math import inf
from typing import Literal, Self

from pydantic import Field, model_validator

from ..base.errors import SettingsError
from ..base.options import Group
from .accountant import Ledger, sigma_for


class PrivacyOptions(Group):
    """Noise on local gradients, and the budget of each device."""

    dp: Literal["off", "sample"] = Field(
        "off", description="sample: clip the gradient of each sample, and add noise to their sum"
    )
    clip: float = Field(
        1.0, gt=0, description="clip each sample's gradient to this norm, instead of clip-norm"
    )
    clip_by: Literal["block", "model"] = Field(
        "block",
        description="clip the whole gradient, or each of the n blocks that an iteration trains to "
        "clip / sqrt(n)",
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
        0.0, ge=0, lt=1, description="delta of a device's epsilon; 0: 1 / (10 training samples)"
    )
    zip_noise: float = Field(
        0.0,
        ge=0,
        description="standard deviation of noise on each neighbour's copy of a model, which "
        "cancels in the network's mean; 0: none",
    )

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.on and not (self.sigma or self.epsilon):
            raise ValueError("dp = 'sample' needs sigma, or epsilon to find it from; set one")
        return self

    @property
    def on(self) -> bool:
        """Whether there is noise."""
        return self.dp != "off"

    @property
    def unicast(self) -> bool:
        """Whether every neighbour gets another copy of a model."""
        return self.zip_noise > 0

    @property
    def delta_told(self) -> str:
        """The delta of devices, in words."""
        return f"{self.delta:g}" if self.delta else "1/(10 samples)"


@dataclass(frozen=True)
class Mechanism:
    """How a device clips and adds noise, and what it may spend.

    Attributes
    ----------
    clip : float
        The most that the gradient of a sample counts, > 0.
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
    """

    clip: float
    by_block: bool
    sigma: float
    rate: float
    batch: float
    delta: float
    budget: float = inf

    @classmethod
    def of(cls, options: PrivacyOptions, samples: int, batch_size: int, steps: int) -> "Mechanism":
        """Return that of a device with so many training samples, for a run of so many steps.

        Raises
        ------
        SettingsError
            ``privacy.delta`` is not below 1 / samples, or no noise keeps to ``privacy.epsilon``.
        """
        delta = options.delta or 1 / (10 * samples)
        if delta * samples >= 1:
            raise SettingsError(
                f"privacy.delta = {delta:g}: a device has {samples} training samples; allowed: "
                f"below 1/{samples}"
            )
        rate, sigma = min(1.0, batch_size / samples), options.sigma
        if not sigma:
            try:
                sigma = sigma_for(options.epsilon, rate, steps, delta)
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
        )

    def charged(self, ledger: Ledger, steps: int) -> Ledger:
        """Return the ledger after so many steps more."""
        return ledger.plus(self.sigma, self.rate, steps)

    def would_exceed(self, ledger: Ledger, steps: int) -> bool:
        """Return whether so many steps more would go over the budget."""
        return steps > 0 and self.charged(ledger, steps).epsilon(self.delta) > self.budget
