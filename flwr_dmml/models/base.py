"""The base of models with an encoder for each modality (:class:`ModalityModel`)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..base.seeding import derive_seed
from .by_name import ByName


class ModalityModel(nn.Module, ABC):
    """A model that knows its blocks, and predicts from any subset of its modalities.

    Attributes
    ----------
    encoders : ByName
        By modality.
    """

    encoders: ByName

    @abstractmethod
    def blocks(self) -> dict[str, nn.Module]:
        """Return what is mixed apart from one another, by block name."""

    def logits(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]
    ) -> list[Tensor]:
        """Return logits ``[batch, classes]`` from each subset of the modalities in ``inputs``."""
        return [self({m: inputs[m] for m in subset}) for subset in subsets]


@contextmanager
def seeded_blocks(seed: int) -> Iterator[Callable[[str], None]]:
    """Yield what seeds the numbers that the next block starts from, by ``seed`` and its name.

    ``nn.Module`` takes them from torch's global generator, which is as before at the end.
    """

    def fresh(name: str) -> None:
        torch.default_generator.manual_seed(derive_seed(seed, "init", name))

    with torch.random.fork_rng(devices=[]):
        yield fresh
