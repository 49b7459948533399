"""The base of methods with a public set: the same unlabelled samples on every device."""

from functools import cached_property

import torch

from ..data import PublicSet, Samples, load_public
from ..learning.devices import on_device
from ..learning.learner import Learner


class WithPublic(Learner):
    """A learner that reads the run's public set."""

    @cached_property
    def public_set(self) -> PublicSet:
        """The run's public set."""
        return load_public(self.settings.public, self.settings.partition_options())

    @cached_property
    def public(self) -> Samples:
        """The public set as this device sees it; the labels are positions, ``0 .. n-1``."""
        shared = {m: x for m, x in self.public_set.inputs.items() if m in self.partition.modalities}
        return on_device(Samples(shared, torch.arange(len(self.public_set))), self.device)
