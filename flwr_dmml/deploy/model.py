"""A trained model, which predicts from raw inputs or tensors (:func:`load_model`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import DataError
from ..data.reading.raw import read_raw
from ..data.standard import scale_inputs
from ..models import ModalityModel
from .files import About, ModelError, read_model

CHUNK = 256
"""Samples that are predicted at once."""


@dataclass(frozen=True)
class Prediction:
    """What a model makes of some samples.

    Attributes
    ----------
    classes : list of str
        The most probable class of each.
    probabilities : Tensor
        ``[samples, classes]``, in the order of the model's classes; each row sums to 1.
    """

    classes: list[str]
    probabilities: Tensor


class TrainedModel(nn.Module):
    """A device's model as its run has evaluated it.

    Parameters
    ----------
    about : About
        What it is of.
    network : nn.Module
        With its weights: a :class:`~flwr_dmml.models.ModalityModel`, or a module whose ``forward``
        takes ``{modality: tensor}``.

    Attributes
    ----------
    about : About
        Its method, metrics, settings, versions and so on.
    classes : tuple of str
        Names of the classes, in the order of the outputs.
    modalities : dict of str to Modality
        What it can be given, in order: kinds, shapes, and what an input is made of.
    """

    def __init__(self, about: About, network: nn.Module) -> None:
        super().__init__()
        self.about, self.network = about, network
        self.classes, self.modalities = about.classes, about.forms

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Classify inputs of any non-empty subset of the modalities.

        Parameters
        ----------
        inputs : mapping of str to Tensor
            ``[batch, *shape]`` float32 by modality.

        Returns
        -------
        Tensor
            ``[batch, classes]``: logits, or logarithms of probabilities up to a constant of each
            sample.
        """
        (logits,) = self.scores(inputs, [tuple(inputs)])
        return logits

    def scores(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]
    ) -> list[Tensor]:
        """Return what :meth:`forward` does, from each of several subsets of the inputs."""
        late = self.about.fusion
        return (self._scores if late is None else late.scores(self._scores))(inputs, subsets)

    def _scores(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]
    ) -> list[Tensor]:
        if isinstance(self.network, ModalityModel):
            return self.network.logits(inputs, subsets)
        return [self.network({m: inputs[m] for m in own}) for own in subsets]

    @torch.no_grad()
    def predict(self, inputs: Mapping[str, Any]) -> Prediction:
        """Predict from raw inputs, read as they were for training.

        Parameters
        ----------
        inputs : mapping of str to object
            By modality, any of those that the model has: a sample as
            :func:`~flwr_dmml.data.reading.raw.read_raw` takes it (a path, a wave, a picture,
            numbers), or a list of samples, as many for each modality.

        Raises
        ------
        DataError
            There is no such modality, the lists differ in length, or a sample cannot be read; the
            message says which one, and why.

        Examples
        --------
        >>> model.predict({"audio": "seven.wav", "image": "seven.png"}).classes
        ['7']
        """
        tensors = self.read(inputs)
        (count, *_) = map(len, tensors.values())
        here = next(self.network.parameters()).device
        parts = [
            self({m: x[start : start + CHUNK].to(here) for m, x in tensors.items()}).cpu()
            for start in range(0, count, CHUNK)
        ]
        probabilities = torch.cat(parts).softmax(dim=1)
        best = probabilities.argmax(dim=1).tolist()
        return Prediction([self.classes[k] for k in best], probabilities)

    def read(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return raw inputs as tensors ``[samples, *shape]``, in the order of the modalities.

        See :meth:`predict`.
        """
        if not inputs or not inputs.keys() <= self.modalities.keys():
            unknown = sorted(inputs.keys() - self.modalities.keys())
            told = f"no modality {unknown[0]!r}" if unknown else "nothing to predict from"
            raise DataError(f"{told}; this model has {', '.join(self.modalities)}")
        lists = {m: x if isinstance(x, list) else [x] for m, x in inputs.items()}
        if len({len(x) for x in lists.values()}) > 1 or not all(lists.values()):
            counts = ", ".join(f"{len(x)} of {m}" for m, x in lists.items())
            raise DataError(f"as many samples are needed of each modality, at least 1: {counts}")
        return {m: self._stacked(m, lists[m]) for m in self.modalities if m in lists}

    def _stacked(self, modality: str, samples: Sequence[Any]) -> Tensor:
        found: list[Tensor] = []
        for place, sample in enumerate(samples):
            try:
                found.append(read_raw(sample, self.modalities[modality]))
            except DataError as error:
                named = isinstance(sample, str | Path)
                where = str(sample) if named else f"sample {place} of {modality}"
                raise DataError(f"{where}: {error}") from error
        scale = self.about.scales.get(modality)
        given = torch.stack(found)
        return given if scale is None else scale_inputs(given, self.modalities[modality], scale)


def load_model(path: str | Path, network: nn.Module | None = None) -> TrainedModel:
    """Return a model that a run has kept, ready to predict.

    Parameters
    ----------
    path : str or Path
        ``RUN/METHOD/models/device-003.safetensors``, or the JSON file beside it.
    network : nn.Module, optional
        For a method of your own with a network of your own: one of the same class, which takes the
        weights. If it has a method ``logits`` as a :class:`~flwr_dmml.models.ModalityModel` does,
        that predicts; otherwise ``forward``.

    Raises
    ------
    ModelError
        The files are missing, damaged or not what they should be.
    """
    return TrainedModel(*read_model(Path(path), network))


__all__ = ["ModelError", "Prediction", "TrainedModel", "load_model"]
