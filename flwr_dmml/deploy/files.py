"""Files of a trained model: its weights (safetensors), and what they are of (JSON)."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ..base.errors import UserError
from ..base.files import write_whole
from ..base.formats import first_problem, parse_json
from ..data import DataError, Modality
from ..data.forms import Raw
from ..data.samples import Kind, Scale
from ..models import Architecture
from ..models.late_fusion import LateFusion

SCHEMA = 2
WEIGHTS, ABOUT = ".safetensors", ".json"
"""Suffixes of the two files; the rest of their names is the same."""
MOST_BYTES = 1 << 24
"""More than a description takes."""


class ModelError(UserError, ValueError):
    """A trained model that cannot be used: names its file, and what is wrong."""


class Input(BaseModel):
    """One modality: the kind and the shape of an input, and what it is made of.

    ``scale`` is how its numbers were standardised; None where they were not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    shape: tuple[int, ...] = Field(min_length=1, max_length=8)
    raw: Raw | None
    scale: Scale | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        channels = self.shape[0]
        if self.scale is None:
            return self
        if not len(self.scale.mean) == len(self.scale.deviation) == channels:
            raise ValueError(f"scale: {channels} channels need a mean and a deviation each")
        if not all(x > 0 for x in self.scale.deviation):
            raise ValueError("scale: a deviation is not above 0")
        return self

    @property
    def modality(self) -> Modality:
        """The same, as the data have it."""
        return Modality(self.kind, self.shape, self.raw)


class About(BaseModel):
    """Contents of the JSON file.

    Attributes
    ----------
    method, dataset : str
        What was run, on which data.
    device, round : int
        Whose model it is (partition id), and the round after which it was evaluated.
    kept : {"last", "best"}
        Whether it is that of the last evaluation, or the one of the highest validation accuracy.
    classes : tuple of str
        In the order of the outputs.
    modalities : dict of str to Input
        In the order of the data set.
    architecture : Decomposed, TwoProjector or Networks, or None
        What builds the network; None of a class of somebody's own.
    network : str
        Name of its class, for people.
    fusion : LateFusion or None
        How modalities are combined, with their temperatures; None, and not in the file, where the
        network does it.
    metrics : dict of str to float
        Of its evaluation.
    settings : dict
        Of the run, but for what only concerns the machine that it ran on.
    versions : dict of str to str
        Of Python and the libraries.
    digest : str
        Of both files, this field left empty (BLAKE2b, 16 bytes).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = Field(SCHEMA, alias="schema")
    method: str
    dataset: str
    device: int = Field(ge=0)
    round: int = Field(ge=0)
    kept: Literal["last", "best"]
    classes: tuple[str, ...] = Field(min_length=1)
    modalities: dict[str, Input] = Field(min_length=1)
    architecture: Architecture | None
    network: str
    fusion: LateFusion | None = None
    metrics: dict[str, float]
    settings: dict[str, JsonValue]
    versions: dict[str, str]
    digest: str = ""

    @field_validator("schema_version")
    @classmethod
    def _of_this_version(cls, schema: int) -> int:
        if schema != SCHEMA:
            raise ValueError(
                f"{schema} is of a version of flwr-dmml that reads inputs otherwise; allowed: "
                f"{SCHEMA} (train the model again)"
            )
        return schema

    @model_validator(mode="after")
    def _fuses_its_own(self) -> Self:
        if self.fusion and self.fusion.temperatures.keys() != self.modalities.keys():
            raise ValueError(
                f"fusion: temperatures of {', '.join(self.fusion.temperatures) or 'nothing'}; "
                f"needed: of {', '.join(self.modalities)}"
            )
        return self

    @property
    def scales(self) -> dict[str, Scale]:
        """How the numbers of modalities were standardised, of those that were."""
        found = {name: form.scale for name, form in self.modalities.items()}
        return {name: scale for name, scale in found.items() if scale is not None}

    @property
    def forms(self) -> dict[str, Modality]:
        """The modalities, as the data have them."""
        return {name: form.modality for name, form in self.modalities.items()}

    def text(self) -> str:
        """Return what is written."""
        left_out = set() if self.fusion else {"fusion"}
        return self.model_dump_json(indent=2, by_alias=True, exclude=left_out) + "\n"


@dataclass(frozen=True)
class ModelFiles:
    """The contents of a model's two files."""

    weights: bytes
    about: bytes

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], about: About) -> "ModelFiles":
        """Return the files of a model, with their digest.

        Parameters
        ----------
        weights : mapping of str to Tensor
            By the parameters' names in the network.
        about : About
            All else.
        """
        data = save({k: x.detach().cpu().clone().contiguous() for k, x in weights.items()})
        whole = about.model_copy(update={"digest": _digest(data, about)})
        return cls(data, whole.text().encode())

    def write(self, stem: Path, mode: int = 0o666) -> None:
        """Write both files: ``stem`` with the suffixes :data:`WEIGHTS` and :data:`ABOUT`.

        Raises
        ------
        WriteError
            One cannot be written.
        """
        for suffix, data in ((WEIGHTS, self.weights), (ABOUT, self.about)):
            write_whole(stem.with_name(stem.name + suffix), data, mode)


def file_stem(device: int, kept: str = "last") -> str:
    """Return the name of a device's model, without a suffix, such as ``device-003-best``."""
    return f"device-{device:03d}" + ("-best" if kept == "best" else "")


def stem_of(path: Path) -> Path:
    """Return the path of a model without its suffix."""
    return path.with_suffix("") if path.suffix in (WEIGHTS, ABOUT) else path


def read_model(path: Path, network: nn.Module | None = None) -> tuple[About, nn.Module]:
    """Read a model.

    Nothing of it is run, and nothing is built before the sizes of all weights are known to be
    right.

    Parameters
    ----------
    path : Path
        One of its two files; the other is beside it.
    network : nn.Module, optional
        A network of your own, which takes the weights.

    Raises
    ------
    ModelError
        What :func:`read_files` raises; or the network is not what the weights are of.
    """
    about, weights = read_files(path)
    file = stem_of(path)
    return about, _built(file.with_name(file.name + WEIGHTS), about, weights, network)


def read_files(path: Path) -> tuple[About, dict[str, Tensor]]:
    """Read the files of a model, whatever network it is of.

    Raises
    ------
    ModelError
        One is missing, damaged, or not one that goes with the other.
    """
    stem = stem_of(path)
    files = {suffix: stem.with_name(stem.name + suffix) for suffix in (WEIGHTS, ABOUT)}
    try:
        if files[ABOUT].stat().st_size > MOST_BYTES:
            raise ModelError(f"{files[ABOUT]} is no description of a model: it is too large")
        data = {suffix: file.read_bytes() for suffix, file in files.items()}
    except OSError as error:
        raise ModelError(f"{error.filename}: {error.strerror}") from error
    about = _read_about(files[ABOUT], data[ABOUT])
    if _digest(data[WEIGHTS], about) != about.digest:
        raise ModelError(
            f"{files[WEIGHTS]} and {files[ABOUT].name} were not written together, or one of them "
            "has changed: their digest is another; copy both again"
        )
    try:
        return about, load(data[WEIGHTS])
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{files[WEIGHTS]} is damaged: {_first(error)}") from error


def _read_about(file: Path, data: bytes) -> About:
    try:
        return About.model_validate(parse_json(data))
    except ValidationError as error:
        raise ModelError(f"{file} does not describe a model: {first_problem(error)}") from error
    except ValueError as error:
        raise ModelError(f"{file} does not describe a model: {_first(error)}") from error


def _built(
    file: Path, about: About, weights: Mapping[str, Tensor], network: nn.Module | None
) -> nn.Module:
    """Return the network with its weights."""
    try:
        if network is not None:
            own = network
        elif about.architecture is not None:
            with torch.device("meta"):  # sizes only
                own = about.architecture.build(about.forms, len(about.classes))
        else:
            raise ModelError(
                f"{file} holds weights of the class {about.network}, which is not one of this "
                "package's: give load_model a network of that class"
            )
    except (DataError, ValueError, TypeError, RuntimeError, LookupError, OverflowError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{file}: there is no such network: {_first(error)}") from error
    wanted = {k: (tuple(x.shape), x.dtype) for k, x in own.state_dict().items()}
    found = {k: (tuple(x.shape), x.dtype) for k, x in weights.items()}
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            raise ModelError(
                f"{file}: {name} is {_told(found.get(name))}, and in the network "
                f"{_told(wanted.get(name))}"
            )
    own.load_state_dict(dict(weights), assign=network is None)
    return own.eval().requires_grad_(False)


def _told(found: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "missing" if found is None else f"{found[0]} {str(found[1]).removeprefix('torch.')}"


def _digest(weights: bytes, about: About) -> str:
    hashed = blake2b(weights, digest_size=16)
    hashed.update(about.model_copy(update={"digest": ""}).text().encode())
    return hashed.hexdigest()


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def plain(value: Any) -> JsonValue:
    """Return a setting as a value of JSON."""
    return value if isinstance(value, str | int | float | bool) else str(value)
