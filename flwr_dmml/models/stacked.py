"""Layers for one device, or for many of one architecture at once: a *stack*.

In a stack every parameter has a first dimension for the devices, and so has what goes through the
layers: ``[device, batch, …]``. A model made of these layers and of
activations takes both. What a device gets in a stack does not depend on who else
is in it, to the last bit on a CPU (a test holds this for every layer): a number of workers, or an
engine, changes nothing.
"""

from collections.abc import Iterable, Mapping
from contextvars import ContextVar, Token
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from ..payload.flat import LINE
from .base import ModalityModel
from .strided import input_gradient, pays

DENSE = 3
"""A convolution in a stack is one matrix product where its input has at most so many times as many
positions as its kernel: a quarter less time than a convolution for each device."""


_in_stack: ContextVar[bool] = ContextVar("_in_stack", default=False)
"""Whether parameters of a stack stand in for those of the modules that are called."""


class Stackable(nn.Module):
    """Base of modules that compute in a stack, and alone."""


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a b`` of each device, ``[device, rows, columns]``.

    Parameters
    ----------
    a : Tensor
        ``[device, rows, inner]``.
    b : Tensor
        ``[device, inner, columns]``.
    """
    if a.shape[2] % LINE or b.shape[2] % LINE:
        out: Tensor = _Padded.apply(*_cast(a, b))
        return out
    return torch.bmm(a, b)


def _cast(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return tensors in the type of mixed precision, for functions that it does not see into."""
    kind = next(x.device.type for x in tensors if x is not None)
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return list(tensors)
    return [None if x is None else x.to(torch.get_autocast_dtype(kind)) for x in tensors]


padding: ContextVar[tuple[int, int]] = ContextVar("padding", default=(1, 1))
"""Of the product under way: its multiplications, and as many as there are with its padding."""


class _Padded(torch.autograd.Function):
    """A product of matrices that are filled up with zeros to whole lines."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        inner, columns = b.shape[1:]
        more, wide = -inner % LINE, -columns % LINE
        a, b = F.pad(a, (0, more)), F.pad(b, (0, wide, 0, more))
        ctx.save_for_backward(a, b)
        ctx.sizes = inner, columns
        token = padding.set((inner * columns, b.shape[1] * b.shape[2]))
        out = torch.bmm(a, b)[..., :columns]
        padding.reset(token)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        inner, columns = ctx.sizes
        wide = F.pad(g, (0, b.shape[2] - columns))
        needs = ctx.needs_input_grad
        token = padding.set((inner * columns, b.shape[1] * b.shape[2]))
        of_a = torch.bmm(wide, b.mT)[..., :inner] if needs[0] else None
        of_b = torch.bmm(a.mT, wide)[:, :inner, :columns] if needs[1] else None
        padding.reset(token)
        return of_a, of_b


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x W^T + b`` along the last dimension.

    Parameters
    ----------
    x : Tensor
        ``[..., in]``; in a stack ``[device, ..., in]``.
    weight : Tensor
        ``[out, in]``; in a stack ``[device, out, in]``.
    bias : Tensor, optional
        ``[out]``; in a stack ``[device, out]``.
    """
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    rows = x if x.dim() == 3 else x.reshape(len(x), -1, x.shape[-1])
    out: Tensor = _Linear.apply(*_cast(rows, weight, bias))
    return out if x.dim() == 3 else out.reshape(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """``x W^T + b``, with the gradient of W laid out as W is: torch transposes it instead."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        columns, inner = weight.shape[1:]
        wide, more = -columns % LINE, -inner % LINE
        ctx.sizes, ctx.biased = (columns, inner), bias is not None
        if more:
            x = F.pad(x, (0, more))
        if more or wide:
            weight = F.pad(weight, (0, more, 0, wide))
        ctx.save_for_backward(x, weight)
        token = padding.set((columns * inner, weight.shape[1] * weight.shape[2]))
        if bias is None:
            out = torch.bmm(x, weight.mT)
        else:
            bias = F.pad(bias, (0, wide)) if wide else bias
            out = torch.baddbmm(bias[:, None], x, weight.mT)
        padding.reset(token)
        return out[..., :columns] if wide else out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        columns, inner = ctx.sizes
        of_x, of_weight, of_bias = ctx.needs_input_grad
        wide = F.pad(g, (0, weight.shape[1] - columns)) if weight.shape[1] > columns else g
        token = padding.set((columns * inner, weight.shape[1] * weight.shape[2]))
        found = (
            torch.bmm(wide, weight)[..., :inner] if of_x else None,
            torch.bmm(wide.mT, x)[:, :columns, :inner] if of_weight else None,
            g.sum(dim=1) if ctx.biased and of_bias else None,
        )
        padding.reset(token)
        return found


class Linear(nn.Linear, Stackable):
    """``nn.Linear``, also in a stack."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm, Stackable):
    """``nn.LayerNorm``, also in a stack."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last dimensions."""
        if self.weight.dim() == len(self.normalized_shape):
            return super().forward(x)
        between = x.dim() - self.weight.dim()
        weight, bias = (p[(slice(None), *[None] * between)] for p in (self.weight, self.bias))
        return torch.addcmul(bias, F.layer_norm(x, self.normalized_shape, eps=self.eps), weight)


class GroupNorm(nn.GroupNorm, Stackable):
    """``nn.GroupNorm``, also in a stack."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``[..., channels, *positions]`` over groups of channels."""
        if self.weight.dim() == 1:
            return super().forward(x)
        normal = F.group_norm(x.flatten(0, 1), self.num_groups, eps=self.eps).view(x.shape)
        shape = len(x), 1, -1, *[1] * (x.dim() - 3)
        return torch.addcmul(self.bias.view(shape), normal, self.weight.view(shape))


class Conv1d(nn.Conv1d, Stackable):
    """``nn.Conv1d`` with zeros for padding, also in a stack."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[..., channels, steps]``."""
        if self.weight.dim() == 3:
            return super().forward(x)
        how = self.stride, self.padding, self.dilation, self.groups
        return _convolve(x, self.weight, self.bias, how)


class Conv2d(nn.Conv2d, Stackable):
    """``nn.Conv2d`` with zeros for padding, also in a stack."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[..., channels, height, width]``."""
        if self.weight.dim() == 4:
            return super().forward(x)
        how = self.stride, self.padding, self.dilation, self.groups
        kernel, plain = self.kernel_size, self.dilation == (1, 1) and self.groups == 1
        if plain and x.shape[-2] * x.shape[-1] <= DENSE * kernel[0] * kernel[1]:
            return _as_matrix(x, self.weight, self.bias, kernel, self.stride, self.padding)
        return _convolve(x, self.weight, self.bias, how)


def _as_matrix(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Any,
) -> Tensor:
    """Convolve small maps as one product: every input position times every output position."""
    devices, batch, channels, height, width = x.shape
    out = weight.shape[1]
    taps, size = _taps((height, width), kernel, stride, padding, x.device)
    places = size[0] * size[1]
    rows = weight.reshape(devices, out * channels, -1)
    spread = product(rows, taps.expand(devices, -1, -1))
    spread = spread.reshape(devices, out, channels, height * width, places)
    matrix = spread.permute(0, 2, 3, 1, 4).reshape(devices, channels * height * width, -1)
    y = product(x.reshape(devices, batch, -1), matrix).reshape(devices, batch, out, *size)
    return y if bias is None else y + bias[:, None, :, None, None]


@cache
def _taps(
    size: tuple[int, int],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    device: torch.device,
) -> tuple[Tensor, tuple[int, int]]:
    """Return where a kernel's weights go, ``[kernel, input * output positions]``, 0 or 1.

    Also returns the height and width of the output.
    """
    out = tuple(
        (n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, padding, kernel, stride, strict=True)
    )
    taps = torch.zeros(*kernel, *size, *out)
    for i in range(out[0]):
        for j in range(out[1]):
            for a in range(kernel[0]):
                for b in range(kernel[1]):
                    y, x = i * stride[0] + a - padding[0], j * stride[1] + b - padding[1]
                    if 0 <= y < size[0] and 0 <= x < size[1]:
                        taps[a, b, y, x, i, j] = 1.0
    return taps.view(kernel[0] * kernel[1], -1).to(device), (out[0], out[1])


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
    """Convolve the batches of a stack, each with its own device's kernel."""
    if x.device.type != "cpu":  # on a CPU a grouped one has bits that depend on the stack
        stride, padding, dilation, groups = how
        devices, batch = x.shape[:2]
        channels = x.transpose(0, 1).flatten(1, 2)  # [batch, device * channels, *positions]
        kernel, offset = weight.flatten(0, 1), None if bias is None else bias.flatten()
        convolve = F.conv1d if weight.dim() == 4 else F.conv2d
        y = convolve(channels, kernel, offset, stride, padding, dilation, devices * groups)
        return y.view(batch, devices, -1, *y.shape[2:]).transpose(0, 1)
    out: Tensor = _Each.apply(*_cast(x, weight, bias), how)
    return out


class _Each(torch.autograd.Function):
    """Convolutions one device after the other, in one step of the graph."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.biased = how, bias is not None
        convolve = F.conv1d if weight.dim() == 4 else F.conv2d
        biases = [None] * len(x) if bias is None else bias.unbind()
        pairs = zip(_on_lines(x), weight.unbind(), biases, strict=True)
        return torch.stack([convolve(a, w, b, *how) for a, w, b in pairs])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        wanted = [*ctx.needs_input_grad[:2], ctx.biased and ctx.needs_input_grad[2]]
        of_x: Tensor | None = None
        plain = groups == 1 and {*dilation} == {1}
        if wanted[0] and plain and pays(weight.shape[3:], stride, padding):
            size, wanted[0] = (x.shape[-2], x.shape[-1]), False
            of_x = input_gradient(g, weight, size, stride[0], padding[0], _on_lines)
        nothing, sizes = [0] * len(stride), [weight.shape[1]]
        parts = [
            torch.ops.aten.convolution_backward(
                gi, xi, wi, sizes, stride, padding, dilation, False, nothing, groups, wanted
            )
            for gi, xi, wi in zip(_on_lines(g), _on_lines(x), weight.unbind(), strict=True)
        ]
        found = [
            torch.stack([part[i] for part in parts]) if want else None
            for i, want in enumerate(wanted)
        ]
        return of_x if of_x is not None else found[0], found[1], found[2], None


def _on_lines(stack: Tensor) -> list[Tensor]:
    """Return each device's part, copied where it does not begin on a line."""
    return [part.clone() if part.data_ptr() % (4 * LINE) else part for part in stack.unbind()]


class Sigmoid(nn.Sigmoid, Stackable):
    """``nn.Sigmoid``, also in a stack."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``1 / (1 + exp(-x))`` of each value."""
        if not _in_stack.get():
            return super().forward(x)
        out: Tensor = _Sigmoid.apply(x)
        return out


class _Sigmoid(torch.autograd.Function):
    """A sigmoid of equal bits wherever a value lies: at the end of a tensor torch's own differs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.exp(-x).add_(1).reciprocal_()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten.sigmoid_backward(g, *ctx.saved_tensors)
        return found


SIMPLE = (nn.ReLU, nn.Tanh, nn.Identity)
"""Layers of torch that compute in a stack: each value by itself."""


def stackable(module: nn.Module) -> bool:
    """Return whether a module computes in a stack: it, or a sequence's layers."""
    if isinstance(module, nn.Sequential):
        return all(stackable(child) for child in module)
    if isinstance(module, nn.Flatten):
        return module.start_dim < 0
    return isinstance(module, Stackable) or type(module) in SIMPLE


def model_stacks(model: nn.Module) -> bool:
    """Return whether a model computes in a stack, and draws nothing at random."""
    if not isinstance(model, ModalityModel | Stackable):
        return stackable(model)
    return not any(isinstance(module, _DropoutNd) for module in model.modules())


def in_words(module: nn.Module) -> str:
    """Return layers and shapes of a module in words; equal words, equal computation."""
    shapes = [f"{name}{list(p.shape)}{p.requires_grad}" for name, p in module.named_parameters()]
    return f"{module} {shapes}"


class StandIns:
    """Lets tensors stand in for the parameters of modules, while it is entered.

    Parameters
    ----------
    modules : iterable of nn.Module
        Those of a device.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._slots = {
            (id(module), name): (module._parameters, name, p)
            for root in modules
            for module in root.modules()
            for name, p in module._parameters.items()
            if p is not None
        }
        self._token: Token[bool] | None = None

    def put(self, tensors: Mapping[int, Tensor]) -> None:
        """Replace parameters by tensors ``[device, *shape]``, by the ids of the parameters."""
        for table, name, p in self._slots.values():
            if id(p) in tensors:
                table[name] = tensors[id(p)]  # type: ignore[assignment]

    def __enter__(self) -> Self:
        self._token = _in_stack.set(True)
        return self

    def __exit__(self, *error: object) -> None:
        for table, name, p in self._slots.values():
            table[name] = p
        if self._token is not None:
            _in_stack.reset(self._token)


def encode(encoder: nn.Module, x: Tensor) -> Tensor:
    """Return an encoder's features of ``[batch, *shape]``; in a stack ``[device, batch, *shape]``.

    An encoder that does not compute in a stack is run for one device after the other.
    """
    if not _in_stack.get() or stackable(encoder):
        features: Tensor = encoder(x)
        return features
    stand_ins, rows = StandIns([encoder]), list[Tensor]()
    stacks = list(encoder.parameters())
    with stand_ins:
        _in_stack.set(False)
        each = zip(*(p.unbind() for p in stacks), strict=True)
        for own, batch in zip(each, x.unbind(), strict=True):
            stand_ins.put({id(stack): mine for stack, mine in zip(stacks, own, strict=True)})
            rows.append(encoder(batch))
    return torch.stack(rows)
