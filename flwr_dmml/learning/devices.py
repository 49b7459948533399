"""The torch device on which a learner computes, and samples moved to it."""

import torch

from ..base.errors import SettingsError
from ..data import Samples


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


def on_device(samples: Samples, device: torch.device) -> Samples:
    """Return the samples on a device; those on the CPU as they are."""
    if device.type == "cpu":
        return samples
    inputs = {name: x.to(device) for name, x in samples.inputs.items()}
    present = samples.present and {name: x.to(device) for name, x in samples.present.items()}
    return Samples(inputs, samples.labels.to(device), present=present)
