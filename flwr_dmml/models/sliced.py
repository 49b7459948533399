"""A classifier of three slices of each feature: what modalities share, what each one has, both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from ..data import Modality
from .base import ModalityModel, seeded_blocks
from .by_name import ByName
from .encoders import DEFAULT_CHOICE, EncoderChoice, make_encoder
from .stacked import Linear, encode


@dataclass(frozen=True)
class Slices:
    """The slices of one batch by modality, ``[batch, width]`` each."""

    redundant: dict[str, Tensor]
    unique: dict[str, Tensor]
    synergistic: dict[str, Tensor]


class SlicedClassifier(ModalityModel):
    """Encoders whose output is cut in three equal slices [r; u; s], with a head for each kind.

    The logits are the mean of ``h_R(mean_m r^m)``, ``mean_m h_U^m(u^m)`` and, of several
    modalities, ``sum_m S^m s^m``, or their sum where ``summed``: heads that are trained as one.

    Parameters
    ----------
    modalities : mapping of str to Modality
        The modalities this node owns.
    num_classes : int
        Number of classes.
    width : int
        Length of a slice.
    summed : bool
        Whether the heads' logits are added up.
    choice : EncoderChoice
        Which encoder reads which kind of modality.
    seed : int
        Every block starts from numbers that depend on this and on its name only.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        num_classes: int,
        *,
        width: int = 21,
        summed: bool = False,
        choice: EncoderChoice = DEFAULT_CHOICE,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.width, self.summed, self.choice = width, summed, choice
        with seeded_blocks(seed) as fresh:
            fresh("redundant")
            self.redundant = Linear(width, num_classes)
            self.encoders, self.unique, self.synergistic = ByName(), ByName(), ByName()
            for name, modality in modalities.items():
                fresh(f"encoder.{name}")
                self.encoders[name] = make_encoder(modality, 3 * width, choice)
                fresh(f"unique.{name}")
                self.unique[name] = Linear(width, num_classes)
                if len(modalities) > 1:
                    fresh(f"synergistic.{name}")
                    self.synergistic[name] = Linear(width, num_classes, bias=False)

    def blocks(self) -> dict[str, nn.Module]:
        """Return the parts by name."""
        named: dict[str, nn.Module] = {f"encoder.{m}": x for m, x in self.encoders.items()}
        named |= {"redundant": self.redundant}
        named |= {f"unique.{m}": head for m, head in self.unique.items()}
        return named | {f"synergistic.{m}": head for m, head in self.synergistic.items()}

    def encode(self, inputs: Mapping[str, Tensor]) -> Slices:
        """Encode every modality in ``inputs`` (``[batch, *shape]`` each) and cut the results."""
        cut = {m: encode(self.encoders[m], x).chunk(3, dim=-1) for m, x in inputs.items()}
        return Slices(*({m: parts[k] for m, parts in cut.items()} for k in range(3)))

    def heads(self, z: Slices) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return logits ``[batch, classes]``: redundant, unique of each, synergistic of several."""
        redundant = self.redundant(reduce(torch.add, z.redundant.values()) / len(z.redundant))
        unique = [self.unique[m](u) for m, u in z.unique.items()]
        if len(z.synergistic) < 2:
            return redundant, unique, []
        parts = [self.synergistic[m](s) for m, s in z.synergistic.items()]
        return redundant, unique, [reduce(torch.add, parts)]

    def fuse(self, z: Slices) -> Tensor:
        """Classify from all slices: ``[batch, classes]``."""
        redundant, unique, synergistic = self.heads(z)
        kinds = [redundant, reduce(torch.add, unique) / len(unique), *synergistic]
        logits = reduce(torch.add, kinds)
        return logits if self.summed else logits / len(kinds)

    def logits(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]
    ) -> list[Tensor]:
        """Return logits ``[batch, classes]`` from each subset; every modality is encoded once."""
        z = self.encode(inputs)
        kinds = z.redundant, z.unique, z.synergistic
        return [self.fuse(Slices(*({m: x[m] for m in own} for x in kinds))) for own in subsets]

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Classify inputs of any non-empty subset of the modalities: ``[batch, classes]``."""
        return self.fuse(self.encode(inputs))
