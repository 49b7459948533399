"""Counts the floating-point operations of real computations."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..models.pooling import is_constant
from ..models.stacked import padding


class FlopCounter(TorchDispatchMode):
    """Context that counts what ``torch.utils.flop_counter`` counts, by its formulas.

    These are matrix products, convolutions and attention, forward and back; a multiply-add is 2.
    Average pooling is not counted, although it is computed as a product here, nor are the zeros
    with which the products of a stack are filled up.
    torch's own counter imports a compiler when it is first used, which takes two seconds and 90 MB
    in every process.

    Attributes
    ----------
    flops : int
        Operations so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tell torch not to wrap this class for its compiler, which would import that."""
        return False

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and add what it takes; what has no formula is taken apart first."""
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        pools = any(isinstance(x, Tensor) and is_constant(x) for x in args)
        if packet in flop_registry and not pools:
            counted, done = padding.get()
            self.flops += flop_registry[packet](*args, **kwargs, out_val=result) * counted // done
        return result
