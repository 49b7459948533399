"""The local optimiser of a device, and its state as plain tensors."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .settings import DeviceSettings

OPTIMIZER = "optimizer."
"""Prefix of the optimiser's entries in a learner's state."""


def make_optimizer(
    settings: DeviceSettings,
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    state: Mapping[str, Tensor],
) -> torch.optim.Optimizer:
    """Return the optimiser that the settings name, continuing from ``state`` if that is not empty.

    Parameters
    ----------
    settings : DeviceSettings
        ``optimizer``, ``momentum`` and ``weight-decay``.
    parameters : iterable of Parameter
        What to optimise; the order must be that of the run that gave ``state``.
    learning_rate : float
        Of this round.
    state : mapping of str to Tensor
        What :func:`optimizer_tensors` gave, or empty.
    """
    optimizer: torch.optim.Optimizer
    decay = settings.weight_decay
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            parameters, lr=learning_rate, momentum=settings.momentum, weight_decay=decay
        )
    else:
        family = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
        optimizer = family(parameters, lr=learning_rate, weight_decay=decay)
    if state:
        by_index: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            index, key = name.removeprefix(OPTIMIZER).split(".", 1)
            by_index.setdefault(int(index), {})[key] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": by_index, "param_groups": groups})
    return optimizer


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return momentum buffers and the like as ``optimizer.<parameter index>.<name>`` tensors."""
    return {
        f"{OPTIMIZER}{index}.{key}": torch.as_tensor(value, dtype=torch.float32).cpu()
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if value is not None
    }
