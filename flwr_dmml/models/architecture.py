"""Architectures as values of JSON: what is needed to build a model again."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal, Self

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
    """Base of the architectures; ``encoders`` names the encoder of each kind of modality.

    The other fields are attributes of the model and arguments of its class, of the same names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: ClassVar[type[ModalityModel]]
    """The class of the models."""

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

    @classmethod
    def of(cls, model: Any) -> Self:
        """Return that of a model of the class :attr:`model`."""
        values = {name: getattr(model, name) for name in cls.fields()}
        return cls(encoders=names(model.choice), **values)

    @classmethod
    def fields(cls) -> list[str]:
        """Return the fields besides ``kind`` and ``encoders``."""
        return [name for name in cls.model_fields if name not in ("kind", "encoders")]

    def build(self, modalities: Mapping[str, Modality], classes: int) -> ModalityModel:
        """Return a fresh model."""
        values = {name: getattr(self, name) for name in self.fields()}
        make: Any = self.model
        built: ModalityModel = make(modalities, num_classes=classes, choice=self.choice, **values)
        return built


def names(choice: EncoderChoice) -> dict[str, Any]:
    """Return the encoders' names by kind; where their weights began does not matter any more."""
    return {kind: name for kind, name in asdict(choice).items() if kind != "weights"}


class Decomposed(Built):
    """The architecture of a :class:`~.decomposed.DecomposedClassifier`."""

    model = DecomposedClassifier
    kind: Literal["decomposed"] = "decomposed"
    common_dim: Width
    specific_dim: Width
    fusion: Fusion


class TwoProjector(Built):
    """The architecture of a :class:`~.two_projector.TwoProjectorClassifier`."""

    model = TwoProjectorClassifier
    kind: Literal["two-projector"] = "two-projector"
    width: Width
    slots: tuple[str, ...]
    fill: bool


class Networks(Built):
    """The architecture of :class:`~.modality_networks.ModalityNetworks`."""

    model = ModalityNetworks
    kind: Literal["networks"] = "networks"
    width: Width
    every: tuple[str, ...]
    fuses: bool

    @classmethod
    def of(cls, model: Any) -> Self:
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

    model = ExpertsClassifier
    kind: Literal["experts"] = "experts"
    width: Width
    own: bool
    shared: bool
    fused: bool
    weighing: Weighing


class Slots(Built):
    """The architecture of a :class:`~.slots.SlotClassifier`."""

    model = SlotClassifier
    kind: Literal["slots"] = "slots"
    width: Width
    slots: tuple[str, ...]
    fill: bool


class Sliced(Built):
    """The architecture of a :class:`~.sliced.SlicedClassifier`."""

    model = SlicedClassifier
    kind: Literal["sliced"] = "sliced"
    width: Width
    summed: bool


Architecture = Annotated[
    Decomposed | TwoProjector | Networks | Experts | Slots | Sliced, Field(discriminator="kind")
]

_OF: dict[type[nn.Module], Any] = {
    kind.model: kind for kind in (Decomposed, TwoProjector, Networks, Experts, Slots, Sliced)
}


def architecture_of(model: nn.Module) -> Architecture | None:
    """Return a model's architecture; None for a class that is not one of this package's."""
    kind = _OF.get(type(model))
    return None if kind is None else kind.of(model)
