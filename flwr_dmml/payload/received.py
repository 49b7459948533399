"""Validation of tensors that neighbours have sent."""

from collections.abc import Iterable
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .blocks import LARGEST, vector_problem
from .plan import Inbox

_sound: WeakValueDictionary[tuple[int, int], Tensor] = WeakValueDictionary()
"""Tensors without a problem, by id and version: a process may host many of their receivers."""


def received(
    inbox: Inbox,
    key: str,
    shape: int | tuple[int, ...],
    *,
    of: Iterable[int] | None = None,
    optional: bool = False,
    lowest: float = -LARGEST,
    highest: float = LARGEST,
    called: str = "",
) -> tuple[dict[int, Tensor], list[str]]:
    """Return what is as it should be of the tensors that neighbours have sent under a key.

    Nothing that has been received is read otherwise: what is good is finite, float32, of the given
    shape, and within the given range.

    Parameters
    ----------
    inbox : Inbox
        What has come; not trusted.
    key : str
        Its name in a payload.
    shape : int or tuple of int
        A vector's length, or a shape.
    of : iterable of int, optional
        The neighbours that are asked; all of the inbox by default. One that is not there has sent
        nothing.
    optional : bool (default: False)
        Whether a neighbour may do without it.
    lowest, highest : float
        The range of its values.
    called : str (default: the key)
        What it is called in the lines about it.

    Returns
    -------
    tuple of dict of int to Tensor, and list of str
        The good ones by neighbour, and a line for each of the others: ``"3: block head.audio is
        missing"``.
    """
    good, wrong = dict[int, Tensor](), list[str]()
    called = called or key
    for neighbour in inbox if of is None else of:
        tensor = inbox.get(neighbour, {}).get(key)
        if tensor is None:
            if not optional:
                wrong.append(f"{neighbour}: {called} is missing")
            continue
        problem = _problem(tensor, shape) or _outside(tensor, lowest, highest)
        if problem:
            wrong.append(f"{neighbour}: {called} {problem}")
        else:
            good[neighbour] = tensor
    return good, wrong


def _problem(tensor: Tensor, shape: int | tuple[int, ...]) -> str | None:
    """Return what :func:`~.blocks.vector_problem` does; the numbers are looked at once."""
    key = id(tensor), tensor._version
    same = _sound.get(key) is tensor
    if same and tensor.shape == ((shape,) if isinstance(shape, int) else tuple(shape)):
        return None
    problem = vector_problem(tensor, shape)
    if problem is None:
        _sound[key] = tensor
    return problem


def _outside(tensor: Tensor, lowest: float, highest: float) -> str | None:
    if not tensor.numel() or (lowest <= -LARGEST and highest >= LARGEST):
        return None
    low, high = torch.aminmax(tensor)
    if low >= lowest and high <= highest:
        return None
    if highest >= LARGEST and lowest == 0:
        return "holds negative values"
    return f"holds values outside of {lowest:g} to {highest:g}"
