"""Front ends: from samples of sound and pixels to inputs, made of what every runtime has."""

from collections.abc import Mapping, Sequence
from math import pi
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.libraries import needed
from ..data import Modality
from ..data.forms import RawImage, RawSound
from ..data.reading.audio import FLOOR, SILENT
from ..data.reading.media import audio_samples, read_image, read_wave
from .model import TrainedModel


class LogMel(nn.Module):
    """Sound ``[batch, samples]`` to log-mel spectrograms ``[batch, 1, mels, frames]``.

    What :func:`~flwr_dmml.data.reading.media.read_audio` makes of a wave of that length, or of a
    shorter one with zeros at its end, with the Fourier transform as a convolution and the mel bands
    as a product of matrices.

    Parameters
    ----------
    raw : RawSound
        Rate, length, windows and bands.
    """

    waves: Tensor
    banks: Tensor

    def __init__(self, raw: RawSound) -> None:
        super().__init__()
        with needed("torchaudio"):
            from torchaudio.functional import melscale_fbanks
        self.samples, window, self.hop = audio_samples(raw)
        self.edge = window // 2
        hann = torch.hann_window(window, dtype=torch.float64)
        turns = torch.arange(self.edge + 1)[:, None] * torch.arange(window) % window
        angles = turns.double() * (2 * pi / window)
        waves = torch.cat([angles.cos(), angles.sin()]) * hann  # [2 bins, window]
        banks = melscale_fbanks(self.edge + 1, 0.0, float(raw.rate_hz // 2), raw.mels, raw.rate_hz)
        self.register_buffer("waves", waves.float()[:, None])
        self.register_buffer("banks", banks.T.contiguous())  # [mels, bins]

    def forward(self, sound: Tensor) -> Tensor:
        """Transform waves of any volume."""
        places = torch.arange(1, self.samples + 1, device=sound.device)
        length = ((sound != 0) * places).amax(dim=1, keepdim=True).clamp_min(1)
        centred = (sound - sound.sum(dim=1, keepdim=True) / length) * (places <= length)
        deviation = (centred.square().sum(dim=1, keepdim=True) / length).sqrt()
        wave = centred / deviation.clamp_min(1e-6)
        padded = F.pad(wave[:, None], (self.edge, self.edge), mode="reflect")
        parts = F.conv1d(padded, self.waves, stride=self.hop).square()  # real, then imaginary
        bins = self.edge + 1
        mel = self.banks @ (parts[:, :bins] + parts[:, bins:])  # [batch, mels, frames]
        level = (mel + FLOOR).log()
        centred = level - level.mean(dim=(1, 2), keepdim=True)
        deviation = centred.square().mean(dim=(1, 2), keepdim=True).sqrt()
        return (centred / deviation.clamp_min(SILENT))[:, None]


class Pixels(nn.Module):
    """Pixels ``[batch, side, side, channels]``, 0 to 255, to images ``[batch, channels, …]``.

    Parameters
    ----------
    raw : RawImage
        Side, channels, and which rows are black.
    """

    scale: Tensor

    def __init__(self, raw: RawImage) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((1, 1, raw.side, 1), 1 / 255))
        self.scale[:, :, round(raw.visible * raw.side) :] = 0

    def forward(self, pixels: Tensor) -> Tensor:
        """Scale pixels to [0, 1], channels first."""
        return pixels.permute(0, 3, 1, 2).float() * self.scale


def front_end(modality: Modality) -> nn.Module | None:
    """Return what makes an input from samples or pixels; None where it is numbers already."""
    if isinstance(modality.raw, RawSound):
        return LogMel(modality.raw)
    return Pixels(modality.raw) if isinstance(modality.raw, RawImage) else None


class Program(nn.Module):
    """What is exported: one argument for each modality, and probabilities.

    Parameters
    ----------
    model : TrainedModel
        Whose it is.
    modalities : sequence of str
        Those that it is given, in this order.
    raw : bool
        Whether front ends are part of it.
    """

    def __init__(self, model: TrainedModel, modalities: Sequence[str], *, raw: bool) -> None:
        super().__init__()
        self.model, self.modalities = model, tuple(modalities)
        fronts = {m: front_end(model.modalities[m]) for m in modalities} if raw else {}
        self.fronts = nn.ModuleDict({m: front for m, front in fronts.items() if front})

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return probabilities ``[batch, classes]``."""
        given: Mapping[str, Tensor] = {
            m: self.fronts[m](x) if m in self.fronts else x
            for m, x in zip(self.modalities, inputs, strict=True)
        }
        logits: Tensor = self.model(given)
        return logits.softmax(dim=1)

    def read(self, files: Mapping[str, Sequence[str | Path]]) -> dict[str, Tensor]:
        """Return files as the program takes them, ``[samples, …]`` by modality.

        Raises
        ------
        DataError
            One cannot be read.
        """
        forms, found = self.model.modalities, dict[str, Tensor]()
        for m, paths in files.items():
            raw = forms[m].raw
            if m in self.fronts and isinstance(raw, RawSound):
                found[m] = torch.stack([read_wave(Path(path), raw) for path in paths])
            elif m in self.fronts and isinstance(raw, RawImage):
                images = torch.stack([read_image(Path(path), raw) for path in paths])
                found[m] = (255 * images).round().to(torch.uint8).permute(0, 2, 3, 1)
            else:
                found |= self.model.read({m: list(paths)})
        return found

    def front(self, modality: str) -> nn.Module | None:
        """Return the front end of a modality, if it has one."""
        return dict(self.fronts).get(modality)

    def shape(self, modality: str) -> tuple[int, ...]:
        """Return the shape of one sample that it is given of a modality."""
        front, form = self.front(modality), self.model.modalities[modality]
        if isinstance(front, LogMel):
            return (front.samples,)
        return (*form.shape[1:], form.shape[0]) if front is not None else form.shape

    def kind(self, modality: str) -> torch.dtype:
        """Return the type of its numbers."""
        return torch.uint8 if isinstance(self.front(modality), Pixels) else torch.float32
