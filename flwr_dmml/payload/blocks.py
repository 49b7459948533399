"""A model as named blocks: one flat float32 vector each, mixed apart from one another.

A block is the unit of ownership: ``encoder.audio`` belongs to the nodes with a microphone,
``head.common`` to everybody. What travels between nodes is a mapping from block name to vector.
"""

import hashlib
from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

STATISTICS = "stats."
"""Prefix of payload entries that travel with the blocks but are never mixed."""

_TO = "@"
_OF = "<"
COMPANION = "#"
"""Stands in a payload between a block's name and that of what belongs to it, such as its scales."""


def addressed(block: str, recipient: int) -> str:
    """Return the name in a payload of what only the device ``recipient`` is to get of a block."""
    return f"{block}{_TO}{recipient}"


def carried(block: str, origin: int) -> str:
    """Return the name in a courier's payload of a block that it carries for the device ``origin``.

    What belongs to the block goes with it: ``encoder.audio<3#scale``.
    """
    return f"{block}{_OF}{origin}"


def is_statistic(name: str) -> bool:
    """Return whether an entry of a payload is a statistic, and no block's."""
    return name.startswith(STATISTICS)


def is_carried(name: str) -> bool:
    """Return whether an entry of a payload is carried for another device."""
    return _OF in name


def unaddressed(name: str) -> str:
    """Return the block that a name in a payload belongs to, addressed or not, or a companion."""
    return without_companion(name).partition(_TO)[0]


def without_companion(name: str) -> str:
    """Return the name, addressed or not, of the block that an entry of a payload goes with."""
    return name.partition(COMPANION)[0]


def block_of(name: str) -> str:
    """Return the block that an entry of a payload belongs to, whoever it is for or from."""
    return unaddressed(name).partition(_OF)[0]


LARGEST = 1e6
"""A received block with a larger value is rubbish: mixing it would wreck the receiver."""


def name_problem(name: str) -> str | None:
    """Say why a block cannot have a name, or return None: a payload keeps some for other things."""
    for mark in (_TO, _OF, COMPANION):
        if mark in name:
            return f"a name cannot hold '{mark}'"
    return f"a name cannot begin with '{STATISTICS}'" if name.startswith(STATISTICS) else None


def check_mixable(blocks: Mapping[str, nn.Module]) -> None:
    """Refuse blocks whose state is more than their parameters.

    Averaging running statistics of different data distributions gives statistics of none of them,
    so BatchNorm (with running statistics) and any other floating-point buffer are refused.

    Raises
    ------
    ValueError
        Names the block and its buffer, an empty block, two blocks that share a parameter, or a name
        that a payload keeps for other things.
    """
    owner: dict[int, str] = {}
    for name, module in blocks.items():
        if problem := name_problem(name):
            raise ValueError(f"block '{name}': {problem}")
        if not num_parameters(module):
            raise ValueError(f"block '{name}' has no parameters: there is nothing to mix")
        for buffer, value in module.named_buffers():
            if value.is_floating_point():
                raise ValueError(
                    f"block '{name}' has the buffer '{buffer}', which cannot be mixed: use "
                    "GroupNorm or LayerNorm, or BatchNorm with track_running_stats=False"
                )
        for parameter in module.parameters():
            other = owner.setdefault(id(parameter), name)
            if other != name:
                raise ValueError(f"blocks '{other}' and '{name}' share a parameter")


def check_kept(model: nn.Module, blocks: Mapping[str, nn.Module]) -> None:
    """Refuse a model with a trained parameter that is in no block.

    Raises
    ------
    ValueError
        Names the parameter: it would not survive until the next round.
    """
    kept = {id(p) for module in blocks.values() for p in module.parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in kept:
            raise ValueError(
                f"the parameter '{name}' is trained, but is in none of blocks() and "
                "private_blocks(): it would not survive until the next round"
            )


def flatten(module: nn.Module) -> Tensor:
    """Return the parameters of ``module`` as one detached float32 CPU vector ``[length]``."""
    vector = parameters_to_vector(module.parameters()).detach()  # a copy
    return vector.to(device="cpu", dtype=torch.float32)


def digest(module: nn.Module) -> str:
    """Return a short digest of the parameters: equal for equal numbers, in any process."""
    return hashlib.blake2b(flatten(module).numpy().tobytes(), digest_size=8).hexdigest()


def load_flat(module: nn.Module, vector: Tensor) -> None:
    """Copy a flat vector ``[length]`` into the parameters of ``module``.

    Raises
    ------
    ValueError
        If the length is not that of the module.
    """
    expected = num_parameters(module)
    if vector.shape != (expected,):
        raise ValueError(f"expected a vector of length {expected}, got {tuple(vector.shape)}")
    start = 0
    with torch.no_grad():
        for parameter in module.parameters():
            end = start + parameter.numel()
            parameter.copy_(vector[start:end].view_as(parameter))
            start = end


def unflatten(module: nn.Module, vectors: Tensor) -> dict[str, Tensor]:
    """Cut flat copies of a block into its parameters, for ``torch.func.functional_call``.

    Parameters
    ----------
    module : nn.Module
        Gives names and shapes.
    vectors : Tensor
        Flat copies ``[copies, length]``.

    Returns
    -------
    dict of str to Tensor
        Parameter name -> ``[copies, *shape]``.
    """
    named = list(module.named_parameters())
    parts = torch.split(vectors, [p.numel() for _, p in named], dim=1)
    shaped = zip(named, parts, strict=True)
    return {name: part.reshape(-1, *p.shape) for (name, p), part in shaped}


def num_parameters(module: nn.Module) -> int:
    """Return the number of parameters of ``module``."""
    return sum(parameter.numel() for parameter in module.parameters())


def vector_problem(vector: Tensor, shape: int | tuple[int, ...]) -> str | None:
    """Say what is wrong with a received tensor, or return None when it can be used.

    Parameters
    ----------
    vector : Tensor
        What a peer sent.
    shape : int or tuple of int
        The length that this block has on every node, or a shape.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if vector.shape != shape:
        return f"has shape {tuple(vector.shape)} instead of {shape}"
    if vector.dtype != torch.float32:
        return f"has type {vector.dtype} instead of torch.float32"
    if not vector.numel():
        return None
    lowest, highest = torch.aminmax(vector)
    if not (isfinite(lowest) and isfinite(highest)):  # NaN is both
        return "holds NaN or infinite values"
    return f"holds values beyond {LARGEST:g}" if max(-lowest, highest) > LARGEST else None
