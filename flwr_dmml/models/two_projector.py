"""FedCMI's classifier: two projectors a modality, one for its own, one for what others teach it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from ..data import Modality
from .base import ModalityModel, seeded_blocks
from .by_name import ByName
from .encoders import DEFAULT_CHOICE, EncoderChoice, make_encoder
from .stacked import Linear, encode, linear


@dataclass(frozen=True)
class Projections:
    """Both projections of one batch by modality, ``[batch, width]`` each."""

    own: dict[str, Tensor]
    infiltration: dict[str, Tensor]

    def only(self, modalities: Iterable[str]) -> "Projections":
        """Return the projections of these modalities alone."""
        kept = list(modalities)
        own, infiltration = self.own, self.infiltration
        return Projections({m: own[m] for m in kept}, {m: infiltration[m] for m in kept})


class TwoProjectorClassifier(ModalityModel):
    """Encoders, a self and an infiltration projector each, a head for both, and a fusion head.

    ``logits = W [slot_1; slot_2; ...] + b`` with a slot for every modality of the data set: its
    self projection, or where it is missing the mean infiltration projection of those present
    (of two, the other one's).

    Parameters
    ----------
    modalities : mapping of str to Modality
        The modalities this node owns.
    slots : sequence of str
        Every modality of the data set, in the same order on all nodes.
    num_classes : int
        Number of classes.
    width : int
        Length of a projection.
    choice : EncoderChoice
        Which encoder reads which kind of modality.
    fill : bool
        False leaves the slot of a missing modality zero.
    train_filled : bool
        False gives the fusion head no gradient from filled slots: they learn to fit what its
        weights say of the modality itself.
    seed : int
        Every block starts from numbers that depend on this and on its name only.

    References
    ----------
    Fan et al., "Balanced Multi-modal Federated Learning via Cross-Modal Infiltration", arXiv
    2401.00894, 2024. More than two modalities: this project's generalisation.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        slots: Sequence[str],
        num_classes: int,
        *,
        width: int = 64,
        choice: EncoderChoice = DEFAULT_CHOICE,
        fill: bool = True,
        train_filled: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.slots, self.fill, self.train_filled = tuple(slots), fill, train_filled
        self.width, self.choice = width, choice
        with seeded_blocks(seed) as fresh:
            fresh("fusion")
            self.fusion = Linear(len(self.slots) * width, num_classes)
            self.encoders, self.projectors = ByName(), ByName()
            self.heads = ByName()
            for name, modality in modalities.items():
                fresh(f"encoder.{name}")
                self.encoders[name] = make_encoder(modality, width, choice)
                fresh(f"projectors.{name}")
                self.projectors[name] = Linear(width, 2 * width)  # own, infiltration
                fresh(f"head.{name}")
                self.heads[name] = Linear(width, num_classes)

    def blocks(self) -> dict[str, nn.Module]:
        """Return the parts that are mixed apart from one another, by name."""
        named: dict[str, nn.Module] = {"fusion": self.fusion}
        for name in self.encoders:
            named[f"encoder.{name}"] = self.encoders[name]
            named[f"projectors.{name}"] = self.projectors[name]
            named[f"head.{name}"] = self.heads[name]
        return named

    def encode(self, inputs: Mapping[str, Tensor]) -> Projections:
        """Project every modality in ``inputs`` (``[batch, *shape]`` each) in both ways."""
        own, infiltration = dict[str, Tensor](), dict[str, Tensor]()
        for name, x in inputs.items():
            encoded = encode(self.encoders[name], x)
            own[name], infiltration[name] = self.projectors[name](encoded).chunk(2, dim=-1)
        return Projections(own, infiltration)

    def head(self, modality: str, projection: Tensor) -> Tensor:
        """Classify a projection of a modality, either one, ``[batch, width]``."""
        logits: Tensor = self.heads[modality](projection)
        return logits

    def fuse(self, projections: Projections) -> Tensor:
        """Classify from the modalities in ``projections``: ``[batch, classes]``."""
        infiltration = projections.infiltration.values()
        missing = reduce(torch.add, infiltration) / len(infiltration)
        if not self.fill:
            missing = torch.zeros_like(missing)
        own = projections.own
        slots = torch.cat([own.get(name, missing) for name in self.slots], dim=-1)
        weights = zip(self.slots, self.fusion.weight.chunk(len(self.slots), dim=-1), strict=True)
        trained = [w if m in own or self.train_filled else w.detach() for m, w in weights]
        return linear(slots, torch.cat(trained, dim=-1), self.fusion.bias)

    def logits(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]
    ) -> list[Tensor]:
        """Return logits ``[batch, classes]`` from each subset; every modality is encoded once."""
        encoded = self.encode(inputs)
        return [self.fuse(encoded.only(subset)) for subset in subsets]

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Classify inputs of any non-empty subset of the modalities: ``[batch, classes]``."""
        return self.fuse(self.encode(inputs))
