"""A classifier with a slot for every modality; prototypes fill those that are missing."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Modality
from .base import ModalityModel, seeded_blocks
from .by_name import ByName
from .encoders import DEFAULT_CHOICE, EncoderChoice, make_encoder
from .modality_networks import FusionHead
from .stacked import encode, product


class Prototypes(nn.Module):
    """Prototypes ``[classes, width]`` of each modality, which no gradient trains, and the known.

    ``known`` is 1 for each class of which there is one, ``[classes]``; by modality, both.
    """

    def __init__(self, modalities: Sequence[str], classes: int, width: int) -> None:
        super().__init__()
        self.values, self.known = ByName(), ByName()
        for m in modalities:
            for table, shape in ((self.values, (classes, width)), (self.known, (classes,))):
                table[m] = _Held(shape)

    def of(self, modality: str) -> tuple[Tensor, Tensor]:
        """Return a modality's prototypes, and which are known."""
        values, known = self.values[modality].value, self.known[modality].value
        assert isinstance(values, Tensor) and isinstance(known, Tensor)
        return values, known

    @torch.no_grad()
    def put(self, modality: str, values: Tensor, known: Tensor) -> None:
        """Replace a modality's prototypes of the classes that are known now; keep the others."""
        old, there = self.of(modality)
        old.copy_(torch.where(known[:, None] > 0, values, old))
        there.copy_(torch.maximum(there, (known > 0).to(there.dtype)))


class _Held(nn.Module):
    """Numbers that are kept, and not trained."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(shape), requires_grad=False)


class SlotClassifier(ModalityModel):
    """Encoders and one linear head on slots for every modality of the data set.

    ``logits = b + sum_m W_m z^m``, where the slot of a missing modality holds the prototype that
    the others expect, ``sum_c q_c p_c^m``, q being the softmax of the logits without it, over the
    classes whose prototype is known. No label is read. Without any prototype the slot stays 0.

    Parameters
    ----------
    modalities : mapping of str to Modality
        The modalities this node owns.
    slots : sequence of str
        Every modality of the data set, in the same order on all nodes.
    num_classes : int
        Number of classes.
    width : int
        Length of a feature.
    fill : bool
        False leaves the slots of missing modalities 0.
    choice : EncoderChoice
        Which encoder reads which kind of modality.
    seed : int
        Every block starts from numbers that depend on this and on its name only.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        slots: Sequence[str],
        num_classes: int,
        *,
        width: int = 64,
        fill: bool = True,
        choice: EncoderChoice = DEFAULT_CHOICE,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.slots, self.width, self.fill, self.choice = tuple(slots), width, fill, choice
        with seeded_blocks(seed) as fresh:
            fresh("fusion")
            self.fusion = FusionHead(slots, width, num_classes)
            self.prototypes = Prototypes(slots, num_classes, width)
            self.encoders = ByName()
            for name, modality in modalities.items():
                fresh(f"encoder.{name}")
                self.encoders[name] = make_encoder(modality, width, choice)

    def blocks(self) -> dict[str, nn.Module]:
        """Return the parts that are mixed apart from one another, by name; prototypes are not."""
        encoders = {f"encoder.{name}": encoder for name, encoder in self.encoders.items()}
        return {"fusion": self.fusion, **encoders}

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encode every modality in ``inputs`` (``[batch, *shape]`` each): ``[batch, width]``."""
        return {name: encode(self.encoders[name], x) for name, x in inputs.items()}

    def filled(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return features ``[batch, width]`` by slot; those of missing ones carry no gradient."""
        missing = [m for m in self.slots if m not in features]
        if not self.fill or not missing:
            return dict(features)
        logits = self.fusion(features).detach()
        return {**features, **{m: self._expected(m, logits) for m in missing}}

    def _expected(self, modality: str, logits: Tensor) -> Tensor:
        values, known = self.prototypes.of(modality)
        shares = F.softmax(logits, dim=-1) * known[..., None, :]
        shares = shares / shares.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        return product(shares, values) if shares.dim() > 2 else shares @ values

    def logits(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]
    ) -> list[Tensor]:
        """Return logits ``[batch, classes]`` from each subset; every modality is encoded once."""
        encoded = self.encode(inputs)
        each = [self.filled({m: encoded[m] for m in subset}) for subset in subsets]
        return [self.fusion(features) for features in each]

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Classify inputs of any non-empty subset of the modalities: ``[batch, classes]``."""
        logits: Tensor = self.fusion(self.filled(self.encode(inputs)))
        return logits
