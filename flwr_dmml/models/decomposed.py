"""Decomposed classifier: features common to all modalities, apart from those of each one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from ..data import Modality
from .base import ModalityModel, seeded_blocks
from .by_name import ByName
from .encoders import DEFAULT_CHOICE, EncoderChoice, make_encoder
from .stacked import Linear, encode

Fusion = Literal["additive", "detached"]


@dataclass(frozen=True)
class Features:
    """Features of one batch, by modality: ``common`` ``[batch, common_dim]`` and ``specific``."""

    common: dict[str, Tensor]
    specific: dict[str, Tensor]

    def only(self, modalities: Iterable[str]) -> "Features":
        """Return the features of these modalities alone."""
        kept = list(modalities)
        return Features({m: self.common[m] for m in kept}, {m: self.specific[m] for m in kept})


class DecomposedClassifier(ModalityModel):
    """Encoders with a common and a specific half, a shared head, and one head a modality.

    ``logits = h_com(mean_m c^m) + sum_m h_m(s^m)`` over the modalities that are present, so any
    subset works, and a missing modality adds exactly nothing (the specific heads have no bias).
    The common head alone sees only common features: that is what makes them common.

    With ``fusion = "detached"`` these are the logits of a single modality only. Several are
    classified by heads of their own on features that these do not train, ``sum_m F_m([c^m, s^m])``:
    a strong modality then cannot spare the others' encoders the work, nor a weak one's noise come
    in with full weight. Encoders learn from each modality's own loss.

    Parameters
    ----------
    modalities : mapping of str to Modality
        The modalities this node owns.
    num_classes : int
        Number of classes.
    common_dim, specific_dim : int
        Lengths of the common and the specific part of every modality's feature.
    choice : EncoderChoice
        Which encoder reads which kind of modality.
    fusion : {"additive", "detached"}
        How several modalities are classified.
    seed : int
        Every block starts from numbers that depend on this and on its name only: nodes with
        different modalities start from the same copies of what they share.

    References
    ----------
    The decomposition is named by DMML-KD (Yin et al., IEEE TMC 2024); this form (a split linear
    output, additive fusion) is this project's reconstruction, and detached fusion this project's.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        num_classes: int,
        *,
        common_dim: int = 32,
        specific_dim: int = 32,
        choice: EncoderChoice = DEFAULT_CHOICE,
        fusion: Fusion = "additive",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.common_dim, self.specific_dim = common_dim, specific_dim
        self.choice, self.fusion = choice, fusion
        detached = fusion == "detached" and len(modalities) > 1

        with seeded_blocks(seed) as fresh:
            fresh("head.common")
            self.head_common = Linear(common_dim, num_classes)
            self.encoders = ByName()
            self.heads = ByName()
            self.fusers = ByName()
            for name, modality in modalities.items():
                fresh(f"encoder.{name}")
                width = common_dim + specific_dim
                self.encoders[name] = make_encoder(modality, width, choice)
                fresh(f"head.{name}")
                self.heads[name] = Linear(specific_dim, num_classes, bias=False)
                if detached:
                    fresh(f"fuse.{name}")
                    self.fusers[name] = Linear(width, num_classes)

    def blocks(self) -> dict[str, nn.Module]:
        """Return the parts that are mixed apart from one another, by name."""
        named: dict[str, nn.Module] = {"head.common": self.head_common}
        named |= {f"encoder.{name}": encoder for name, encoder in self.encoders.items()}
        named |= {f"head.{name}": head for name, head in self.heads.items()}
        named |= {f"fuse.{name}": head for name, head in self.fusers.items()}
        return named

    def encode(self, inputs: Mapping[str, Tensor]) -> Features:
        """Encode every modality in ``inputs`` (``[batch, *shape]`` each) and split the result."""
        encoded = {name: encode(self.encoders[name], x) for name, x in inputs.items()}
        return Features(
            common={name: z[..., : self.common_dim] for name, z in encoded.items()},
            specific={name: z[..., self.common_dim :] for name, z in encoded.items()},
        )

    def common_logits(self, common: Tensor) -> Tensor:
        """Classify common features ``[batch, common_dim]`` alone: ``[batch, classes]``."""
        logits: Tensor = self.head_common(common)
        return logits

    def fuse(self, features: Features) -> Tensor:
        """Classify from every modality in ``features``: ``[batch, classes]``."""
        if len(self.fusers) and len(features.common) > 1:
            return self._fuse_detached(features)
        common = features.common.values()
        logits = self.common_logits(reduce(torch.add, common) / len(common))
        for name, specific in features.specific.items():
            logits = logits + self.heads[name](specific)
        return logits

    def _fuse_detached(self, features: Features) -> Tensor:
        parts = [
            self.fusers[m](torch.cat([features.common[m], features.specific[m]], dim=-1).detach())
            for m in features.common
        ]
        logits: Tensor = reduce(torch.add, parts)
        return logits

    def logits(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]
    ) -> list[Tensor]:
        """Return logits ``[batch, classes]`` from each subset; every modality is encoded once."""
        encoded = self.encode(inputs)
        return [self.fuse(encoded.only(subset)) for subset in subsets]

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Classify inputs of any non-empty subset of the modalities: ``[batch, classes]``."""
        return self.fuse(self.encode(inputs))
