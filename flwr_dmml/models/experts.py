"""A classifier of several predictions, each weighed by how sure it is of a sample."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Modality
from .base import ModalityModel, seeded_blocks
from .by_name import ByName
from .encoders import DEFAULT_CHOICE, EncoderChoice, make_encoder
from .late_fusion import energy, sureness
from .stacked import Linear, encode

Weighing = Literal["entropy", "certainty", "energy"]


def weigh(logits: Sequence[Tensor], how: Weighing) -> Tensor:
    """Return ``sum_e w_e o_e`` of several predictions o_e ``[..., batch, classes]``.

    The weights ``[..., batch]`` of a sample carry no gradient. With p_e = softmax(o_e):

    - "entropy": ``softmax_e(-H(p_e))`` (MLA);
    - "certainty": ``softmax_e(max p_e)`` (DI-MML);
    - "energy": :func:`confidence`, not normalised (QMF).
    """
    given = [o.detach() for o in logits]
    if how == "energy":
        weights = [confidence(o) for o in given]
    else:
        sure = [sureness(F.log_softmax(o, dim=-1), how) for o in given]
        weights = list(torch.stack(sure, dim=-1).softmax(dim=-1).unbind(dim=-1))
    return reduce(torch.add, [w[..., None] * o for w, o in zip(weights, logits, strict=True)])


def confidence(logits: Tensor) -> Tensor:
    """Return QMF's ``energy / 10`` ``[...]`` of logits ``[..., classes]``, see :func:`.energy`."""
    return energy(logits) / 10


class ExpertsClassifier(ModalityModel):
    """Encoders, and linear heads on them that decide together.

    The experts are a head h_m of each modality, or one head h of all modalities where ``own`` is
    false, and with ``fused`` a head on all features present, ``sum_m F_m(z_m)``, which does not
    train the encoders. Those of the modalities present are weighed by :func:`weigh`. With ``own``
    and ``shared`` there is h as well, which is trained but not asked.

    Parameters
    ----------
    modalities : mapping of str to Modality
        The modalities this node owns.
    num_classes : int
        Number of classes.
    width : int
        Length of a feature.
    own, shared, fused : bool
        Which heads there are; one of the first two. A node with one modality has no fused one.
    weighing : {"entropy", "certainty", "energy"}
        How experts are weighed.
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
        width: int = 64,
        own: bool = True,
        shared: bool = True,
        fused: bool = True,
        weighing: Weighing = "certainty",
        choice: EncoderChoice = DEFAULT_CHOICE,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.width, self.choice, self.weighing = width, choice, weighing
        self.own, self.shared, self.fused = own, shared, fused
        with seeded_blocks(seed) as fresh:
            self.encoders, self.heads, self.fusers = ByName(), ByName(), ByName()
            if shared:
                fresh("head")
                self.head = Linear(width, num_classes)
            for name, modality in modalities.items():
                fresh(f"encoder.{name}")
                self.encoders[name] = make_encoder(modality, width, choice)
                if own:
                    fresh(f"head.{name}")
                    self.heads[name] = Linear(width, num_classes)
                if fused and len(modalities) > 1:
                    fresh(f"fuse.{name}")
                    self.fusers[name] = Linear(width, num_classes)

    def blocks(self) -> dict[str, nn.Module]:
        """Return the parts that are mixed apart from one another, by name."""
        named: dict[str, nn.Module] = {"head": self.head} if self.shared else {}
        named |= {f"encoder.{name}": encoder for name, encoder in self.encoders.items()}
        named |= {f"head.{name}": head for name, head in self.heads.items()}
        return named | {f"fuse.{name}": head for name, head in self.fusers.items()}

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encode every modality in ``inputs`` (``[batch, *shape]`` each): ``[batch, width]``."""
        return {name: encode(self.encoders[name], x) for name, x in inputs.items()}

    def alone(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Classify each modality by its expert: ``[batch, classes]`` each."""
        return {m: (self.heads[m] if self.own else self.head)(z) for m, z in features.items()}

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """Classify from all features by the fused head: ``[batch, classes]``."""
        parts = [self.fusers[m](z.detach()) for m, z in features.items()]
        logits: Tensor = reduce(torch.add, parts)
        return logits

    def decide(self, features: Mapping[str, Tensor]) -> Tensor:
        """Classify from all features by the experts together: ``[batch, classes]``."""
        experts = list(self.alone(features).values())
        if len(self.fusers) and len(features) > 1:
            experts.append(self.fuse(features))
        return weigh(experts, self.weighing)

    def logits(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]
    ) -> list[Tensor]:
        """Return logits ``[batch, classes]`` from each subset; every modality is encoded once."""
        encoded = self.encode(inputs)
        return [self.decide({m: encoded[m] for m in subset}) for subset in subsets]

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Classify inputs of any non-empty subset of the modalities: ``[batch, classes]``."""
        return self.decide(self.encode(inputs))
