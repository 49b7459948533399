"""The torch device on which a learner computes, and samples moved to it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..base.errors import SettingsError
from ..data.samples import Rows, Samples


def resolve_device(device: str) -> torch.device:
    """Return the torch device of a ``device`` setting; "auto" takes a GPU when there is one.

    Raises
    ------
    SettingsError
        A GPU is named that this process does not see.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"device = {device!r}: this process sees {torch.cuda.device_count()} GPUs; allowed: "
            "auto, cpu, or a GPU that is there"
        )
    return chosen


_moved: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
"""Tensors of sources on other devices, with the tensor that they are copies of."""


def on_device(samples: Samples, device: torch.device) -> Samples:
    """Return the samples on a device; those on the CPU as they are.

    What many devices' samples are rows of is moved once.
    """
    if device.type == "cpu":
        return samples
    given, inputs = samples.inputs, dict[str, Tensor]()
    if isinstance(given, Rows):
        for name, x in given.source.items():
            key = id(x), device
            if key not in _moved:
                _moved[key] = x, x.to(device)
            inputs[name] = _moved[key][1]
        moved: Mapping[str, Tensor] = Rows(inputs, given.index)
    else:
        moved = {name: x.to(device) for name, x in given.items()}
    present = samples.present and {name: x.to(device) for name, x in samples.present.items()}
    return Samples(moved, samples.labels.to(device), present=present)
