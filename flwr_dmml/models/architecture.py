"""Architectures as values of JSON: what is needed to build a model again."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from ..data import Modality
from .base import ModalityModel
from .decomposed import DecomposedClassifier, Fusion
from .encoders import EncoderChoice
from .experts import ExpertsClassifier, Weighing
from .modality_networks import ModalityNetworks
from .sliced import SlicedClassifier
from .slots import SlotClassifier
from .two_projector import TwoProjectorClassifier

Width = Annotated[int, Field(ge=1, le=1 << 20)]
Kind = Literal["image", "audio", "series", "vector"]


class Built(BaseModel):
    """Base of the architectures; ``encoders`` names the encoder of each kind of modality."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoders: dict[Kind, str]

    @property
    def choice(self) -> EncoderChoice:
        """The encoders.

        Raises
        ------
        DataError
            There is none of that name.
        """
        return EncoderChoice(**self.encoders)


def names(choice: EncoderChoice) -> dict[str, Any]:
    """Return the encoders' names by kind; where their weights began does not matter any more."""
    return {kind: name for kind, name in asdict(choice).items() if kind != "weights"}


class Decomposed(Built):
    """The architecture of a :class:`~.decomposed.DecomposedClassifier`."""

    kind: Literal["decomposed"] = "decomposed"
    common_dim: Width
    specific_dim: Width
    fusion: Fusion

    @classmethod
    def of(cls, model: DecomposedClassifier) -> Self:
        """Return that of a model."""
        return cls(
            encoders=names(model.choice),
            common_dim=model.common_dim,
            specific_dim=model.specific_dim,
            fusion=model.fusion,
        )

    def build(self, modalities: Mapping[str, Modality], classes: int) -> ModalityModel:
        """Return a fresh model."""
        return DecomposedClassifier(
            modalities,
            classes,
            common_dim=self.common_dim,
            specific_dim=self.specific_dim,
            choice=self.choice,
            fusion=self.fusion,
        )


class TwoProjector(Built):
    """The architecture of a :class:`~.two_projector.TwoProjectorClassifier`."""

    kind: Literal["two-projector"] = "two-projector"
    width: Width
    slots: tuple[str, ...]
    fill: bool

    @classmethod
    def of(cls, model: TwoProjectorClassifier) -> Self:
        """Return that of a model."""
        encoders = names(model.choice)
        return cls(encoders=encoders, width=model.width, slots=model.slots, fill=model.fill)

    def build(self, modalities: Mapping[str, Modality], classes: int) -> ModalityModel:
        """Return a fresh model."""
        given = modalities, self.slots, classes
        return TwoProjectorClassifier(*given, width=self.width, choice=self.choice, fill=self.fill)


class Networks(Built):
    """The architecture of :class:`~.modality_networks.ModalityNetworks`."""

    kind: Literal["networks"] = "networks"
    width: Width
    every: tuple[str, ...]
    fuses: bool

    @classmethod
    def of(cls, model: ModalityNetworks) -> Self:
        """Return that of a model, with how it predicts now."""
        encoders = names(model.choice)
        return cls(
            encoders=encoders, width=model.width, every=model.every, fuses=model.predicts_fused
        )

    def build(self, modalities: Mapping[str, Modality], classes: int) -> ModalityModel:
        """Return a fresh model."""
        model = ModalityNetworks(
            modalities, self.every, classes, width=self.width, choice=self.choice
        )
        model.predicts_fused = self.fuses
        return model


class Experts(Built):
    """The architecture of an :class:`~.experts.ExpertsClassifier`."""

    kind: Literal["experts"] = "experts"
    width: Width
    own: bool
    shared: bool
    fused: bool
    weighing: Weighing

    @classmethod
    def of(cls, model: ExpertsClassifier) -> Self:
        """Return that of a model."""
        return cls(
            encoders=names(model.choice),
            width=model.width,
            own=model.own,
            shared=model.shared,
            fused=model.fused,
            weighing=model.weighing,
        )

    def build(self, modalities: Mapping[str, Modality], classes: int) -> ModalityModel:
        """Return a fresh model."""
        return ExpertsClassifier(
            modalities,
            classes,
            width=self.width,
            own=self.own,
            shared=self.shared,
            fused=self.fused,
            weighing=self.weighing,
            choice=self.choice,
        )


class Slots(Built):
    """The architecture of a :class:`~.slots.SlotClassifier`."""

    kind: Literal["slots"] = "slots"
    width: Width
    slots: tuple[str, ...]
    fill: bool

    @classmethod
    def of(cls, model: SlotClassifier) -> Self:
        """Return that of a model."""
        encoders = names(model.choice)
        return cls(encoders=encoders, width=model.width, slots=model.slots, fill=model.fill)

    def build(self, modalities: Mapping[str, Modality], classes: int) -> ModalityModel:
        """Return a fresh model."""
        given = modalities, self.slots, classes
        return SlotClassifier(*given, width=self.width, fill=self.fill, choice=self.choice)


class Sliced(Built):
    """The architecture of a :class:`~.sliced.SlicedClassifier`."""

    kind: Literal["sliced"] = "sliced"
    width: Width
    summed: bool

    @classmethod
    def of(cls, model: SlicedClassifier) -> Self:
        """Return that of a model."""
        return cls(encoders=names(model.choice), width=model.width, summed=model.summed)

    def build(self, modalities: Mapping[str, Modality], classes: int) -> ModalityModel:
        """Return a fresh model."""
        return SlicedClassifier(
            modalities, classes, width=self.width, summed=self.summed, choice=self.choice
        )


Architecture = Annotated[
    Decomposed | TwoProjector | Networks | Experts | Slots | Sliced, Field(discriminator="kind")
]

_OF: dict[type[nn.Module], Any] = {
    DecomposedClassifier: Decomposed,
    TwoProjectorClassifier: TwoProjector,
    ModalityNetworks: Networks,
    ExpertsClassifier: Experts,
    SlotClassifier: Slots,
    SlicedClassifier: Sliced,
}


def architecture_of(model: nn.Module) -> Architecture | None:
    """Return a model's architecture; None for a class that is not one of this package's."""
    kind = _OF.get(type(model))
    return None if kind is None else kind.of(model)
