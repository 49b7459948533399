"""ResNet-18 of torchvision with GroupNorm, and weights from a file to start from."""

from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..base.libraries import needed
from ..data import DataError

GROUPS = 32
"""Groups of channels that are normalised together, as in the paper of GroupNorm."""

IGNORED = ("fc.", "running_mean", "running_var", "num_batches_tracked")
"""Names ignored in a file: the classifier (prefix), running statistics of BatchNorm (suffix)."""


def resnet18(shape: tuple[int, ...], features: int) -> nn.Module:
    """Return a ResNet-18 encoder for images and log-mel spectrograms.

    torchvision's, with GroupNorm of 32 groups instead of BatchNorm, a first convolution for the
    channels that there are, and a linear layer to ``features``. It leaves a 32nd of the height and
    the width: meant for 64x64 and more.

    Parameters
    ----------
    shape : tuple of int
        ``(channels, height, width)`` of one sample.
    features : int
        Length of the output.

    Raises
    ------
    DataError
        The samples are no images.

    Notes
    -----
    ``11,167,104 + 3,136 * channels + 513 * features`` parameters, whatever the size of the image:
    11,209,344 with three channels and 64 features (42.8 MiB on the wire).

    References
    ----------
    K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; Y. Wu and K. He,
    "Group Normalization", ECCV 2018.
    """
    if len(shape) != 3:
        raise DataError(
            f"resnet18: cannot read samples of shape {shape}; allowed: (channels, height, width)"
        )
    with needed("torchvision"):
        from torchvision.models import resnet18 as of_torchvision

    network: nn.Module = of_torchvision(norm_layer=_group_norm, num_classes=features)
    if shape[0] != 3:
        conv = nn.Conv2d(shape[0], 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        network.conv1 = conv
    return network


def load_weights(network: nn.Module, path: str) -> None:
    """Copy the weights of a file into a :func:`resnet18`.

    All convolutions and the weights and biases of all norms are copied. Where the number of input
    channels differs, the first convolution gets the mean over those of the file for each, scaled so
    that equal channels give what they gave before. The classifier and the running statistics of
    BatchNorm are left out; the linear layer stays as it was.

    Parameters
    ----------
    network : Module
        Changed in place.
    path : str
        Local file with torchvision's names: safetensors (``.safetensors``), or a mapping of names
        to tensors saved by ``torch.save``, which is read with ``weights_only=True``.

    Raises
    ------
    DataError
        The file cannot be read; or names the weight that is missing, that the network does not
        have, or whose shape is another one.
    """
    given = {k: v for k, v in _read(path, _age(path)).items() if not _ignored(k)}
    own = {name: p for name, p in network.named_parameters() if not _ignored(name)}
    if missing := [name for name in own if name not in given]:
        raise DataError(f"encoder-weights: {path} has no {_some(missing)}: not those of a resnet18")
    if unknown := [name for name in given if name not in own]:
        raise DataError(f"encoder-weights: {path} has {_some(unknown)}, which resnet18 has not")
    with torch.no_grad():
        for name, parameter in own.items():
            value = given[name]
            if name == "conv1.weight" and value.dim() == 4:
                value = _for_channels(value, parameter.shape[1])
            if value.shape != parameter.shape:
                raise DataError(
                    f"encoder-weights: {name} of {path} has shape {tuple(value.shape)} instead of "
                    f"{tuple(parameter.shape)}"
                )
            parameter.copy_(value)


def _for_channels(weight: Tensor, channels: int) -> Tensor:
    """Return a convolution's weights ``[out, in, h, w]`` for another number of inputs."""
    if weight.shape[1] == channels:
        return weight
    mean = weight.mean(dim=1, keepdim=True) * (weight.shape[1] / channels)
    return mean.expand(-1, channels, -1, -1)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(GROUPS, channels)


def _ignored(name: str) -> bool:
    return name.startswith(IGNORED[0]) or name.endswith(IGNORED[1:])


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _age(path: str) -> float:
    try:
        return Path(path).stat().st_mtime
    except OSError as error:
        raise DataError(f"encoder-weights: {path}: {error.strerror}") from error


@lru_cache(maxsize=2)
def _read(path: str, age: float) -> dict[str, Tensor]:
    """Read a file once for all devices of a process; ``age`` tells a file that is written anew."""
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        given = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, OSError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise DataError(f"encoder-weights: {path} cannot be read: {_first(error)}") from error
    if not isinstance(given, dict) or not all(isinstance(v, Tensor) for v in given.values()):
        raise DataError(f"encoder-weights: {path} is no mapping of names to tensors")
    return given


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
