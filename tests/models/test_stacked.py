"""Layers in a stack: a device's bits do not depend on who else is there; torch's own, but rounding.

On a CPU, in outputs and in the gradients of inputs and parameters.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_dmml import losses
from flwr_dmml.data import Modality
from flwr_dmml.learning.optimisers import square_norms, total
from flwr_dmml.methods.moon import contrastive_loss
from flwr_dmml.models import ENCODERS, DecomposedClassifier
from flwr_dmml.models.experts import ExpertsClassifier
from flwr_dmml.models.modality_networks import ModalityNetworks
from flwr_dmml.models.pooling import AveragePool
from flwr_dmml.models.series import Gru, MaskedConvolutions, MeanOverSteps
from flwr_dmml.models.sliced import SlicedClassifier
from flwr_dmml.models.slots import SlotClassifier
from flwr_dmml.models.stacked import (
    DENSE,
    Conv1d,
    Conv2d,
    GroupNorm,
    LayerNorm,
    Linear,
    Sigmoid,
    StandIns,
    encode,
    linear,
    product,
    stackable,
)
from flwr_dmml.models.strided import pays
from flwr_dmml.models.two_projector import TwoProjectorClassifier
from flwr_dmml.payload.flat import Flat, Stack

MOST = 5
few = partial(settings, derandomize=True, database=None)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make()
        for p in module.parameters():  # not the ones and zeros of a norm
            nn.init.normal_(p, std=0.5)
    return module


Result = dict[str, Tensor]
"""The output of a device and its gradients, by name."""


def in_a_stack(
    make: Callable[[], nn.Module],
    inputs: Sequence[Tensor],
    devices: Sequence[int],
    call: Callable[[nn.Module, Tensor], Tensor],
) -> list[Result]:
    """Compute some devices at once; their parameters are rows of a matrix, as in training."""
    modules = [seeded(make, k) for k in devices]
    flats = [Flat({"module": module, "odd": nn.Linear(2, 1)}) for module in modules]
    leaves = [v.detach().requires_grad_() for v in flats[0].views(Stack(flats).matrix)]
    x = torch.stack([inputs[k] for k in devices]).requires_grad_()
    with StandIns([modules[0]]) as stand_ins:
        stand_ins.put(dict(zip(map(id, flats[0].parameters), leaves, strict=True)))
        out = call(modules[0], x)
    weights = torch.stack([normal(90 + k, *out.shape[1:]) for k in devices])
    own = leaves[: len(list(modules[0].parameters()))]
    found = torch.autograd.grad((out * weights).sum(), [x, *own])
    names = ["out", "x", *(name for name, _ in modules[0].named_parameters())]
    rows = zip(*(t.detach().unbind() for t in (out, *found)), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def alone(
    make: Callable[[], nn.Module],
    inputs: Sequence[Tensor],
    k: int,
    call: Callable[[nn.Module, Tensor], Tensor],
) -> Result:
    """Compute a device by torch's own layer."""
    module, x = seeded(make, k), inputs[k].clone().requires_grad_()
    out = call(module, x)
    parameters = dict(module.named_parameters())
    weights = normal(90 + k, *out.shape)
    found = torch.autograd.grad((out * weights).sum(), [x, *parameters.values()])
    return dict(zip(["out", "x", *parameters], [out.detach(), *found], strict=True))


def check(
    make: Callable[[], nn.Module],
    inputs: Sequence[Tensor],
    call: Callable[[nn.Module, Tensor], Tensor] = lambda module, x: module(x),
    tolerance: float = 1e-4,
) -> None:
    """Compare stacks of one, of two and of five, and each device by itself."""
    every = in_a_stack(make, inputs, range(MOST), call)
    stacks = [[k] for k in range(MOST)] + [[0, 1], [4, 2]]
    for devices in stacks:
        for k, found in zip(devices, in_a_stack(make, inputs, devices, call), strict=True):
            for name, value in found.items():
                assert torch.equal(value, every[k][name]), (devices, name)
    for k in range(MOST):
        for name, value in alone(make, inputs, k, call).items():
            size = max(1.0, float(value.abs().max()))
            assert torch.allclose(every[k][name], value, rtol=0, atol=tolerance * size), name


def batches(*shape: int) -> list[Tensor]:
    return [normal(10 + k, *shape) for k in range(MOST)]


# ---- layers -----------------------------------------------------------------------------------


@few(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 17), st.booleans())
def test_linear(inner: int, out: int, batch: int, bias: bool) -> None:
    check(lambda: Linear(inner, out, bias), batches(batch, inner))


@pytest.mark.parametrize(
    ("inner", "out", "batch"),
    [(25, 3, 7), (3, 25, 7), (1, 1, 1), (64, 10, 16), (16, 32, 5), (33, 16, 8), (130, 70, 33)],
)
def test_linear_of_odd_and_even_sizes(inner: int, out: int, batch: int) -> None:
    check(lambda: Linear(inner, out), batches(batch, inner))


def test_linear_on_more_dimensions() -> None:
    check(lambda: Linear(7, 3), batches(4, 5, 7))


@few(max_examples=20)
@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 3),
    st.integers(5, 20),
    st.booleans(),
)
def test_conv1d(channels: int, out: int, size: int, stride: int, steps: int, bias: bool) -> None:
    make = partial(Conv1d, channels, out, size, stride=stride, padding=size // 2, bias=bias)
    check(make, batches(3, channels, steps))


@few(max_examples=30)
@given(
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 2),
    st.tuples(st.integers(5, 14), st.integers(5, 14)),
    st.booleans(),
)
def test_conv2d(
    channels: int, out: int, size: int, stride: int, shape: tuple[int, int], bias: bool
) -> None:
    make = partial(Conv2d, channels, out, size, stride=stride, padding=size // 2, bias=bias)
    check(make, batches(3, channels, *shape))


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv2d_as_a_product_and_device_by_device(dense: bool, stride: int) -> None:
    side = 8 if dense else 14
    assert (side * side <= DENSE * 25) == dense
    make = partial(Conv2d, 3, 8, 5, stride=stride, padding=2)
    check(make, batches(7, 3, side, side))


@few(max_examples=40)
@given(
    st.sampled_from([(5, 2), (6, 2), (7, 2), (7, 3), (8, 3)]),
    st.integers(0, 6),
    st.integers(1, 3),
    st.integers(1, 5),
    st.tuples(st.integers(16, 21), st.integers(16, 21)),
)
def test_strided_convolutions(
    how: tuple[int, int], padding: int, channels: int, out: int, shape: tuple[int, int]
) -> None:
    """Where the input's gradient is computed as a convolution without a stride."""
    size, stride = how
    assert pays((size, size), (stride, stride), (padding, padding))
    check(partial(Conv2d, channels, out, size, stride, padding), batches(2, channels, *shape))


def test_where_that_pays() -> None:
    assert not pays((3, 3), (2, 2), (1, 1)) and not pays((5, 5), (1, 1), (2, 2))
    assert not pays((5, 7), (2, 2), (2, 2)) and not pays((5,), (2,), (2,))


@pytest.mark.parametrize("how", [{"groups": 2}, {"dilation": 2}, {"padding": (0, 2)}])
def test_other_convolutions(how: dict[str, Any]) -> None:
    check(partial(Conv2d, 4, 6, 3, **how), batches(3, 4, 9, 7))
    how = {key: value for key, value in how.items() if key != "padding"}
    check(partial(Conv1d, 4, 6, 3, **how), batches(3, 4, 9))


@few(max_examples=15)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 9), st.integers(1, 6))
def test_group_norm(groups: int, each: int, height: int, width: int) -> None:
    shape = (groups * each, height, width + 1)
    check(partial(GroupNorm, groups, groups * each), batches(3, *shape), tolerance=1e-3)


def test_group_norm_of_a_series() -> None:
    check(partial(GroupNorm, 2, 6), batches(3, 6, 11))


@few(max_examples=15)
@given(st.integers(2, 70), st.integers(1, 9))
def test_layer_norm(length: int, batch: int) -> None:
    check(partial(LayerNorm, length), batches(batch, length), tolerance=1e-3)


def test_layer_norm_of_steps() -> None:
    check(partial(LayerNorm, 6), batches(3, 11, 6))


@pytest.mark.parametrize("shape", [(8, 4), (7, 7), (16, 8), (3, 5)])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_average_pool(size: int, shape: tuple[int, int]) -> None:
    check(partial(AveragePool, size), batches(3, 5, *shape))


def test_mean_over_steps() -> None:
    check(MeanOverSteps, batches(3, 5, 11))


def sequences(features: int, steps: int) -> list[Tensor]:
    """Return batches of sequences of every length, the mask as the last channel."""
    found = batches(steps, features + 1, steps)
    for x in found:
        x[:, -1] = torch.ones(steps, steps).tril()
        x[:, :-1] *= x[:, -1:]
    return found


def test_masked_convolutions() -> None:
    check(partial(MaskedConvolutions, (4, 9), 6), sequences(3, 9), tolerance=1e-3)


@pytest.mark.parametrize("masked", [False, True])
def test_gru(masked: bool) -> None:
    x = sequences(3, 7) if masked else batches(5, 3, 7)
    check(partial(Gru, (3 + masked, 7), 6, masked=masked, width=13), x)


@few(max_examples=25)
@given(st.sampled_from([nn.ReLU, Sigmoid, nn.Tanh, nn.Identity]), st.integers(1, 70))
def test_activations(kind: type[nn.Module], length: int) -> None:
    """Where a vector of the processor is cut depends on how many devices there are."""
    assert stackable(kind())
    check(kind, batches(1, length))


def test_a_sigmoid_far_out() -> None:
    """As torch has it: 0 and 1, and no gradient."""
    x = torch.tensor([[-200.0, -20.0, 0.0, 20.0, 200.0]], requires_grad=True)
    with StandIns([]):
        y = Sigmoid()(x)
    assert torch.allclose(y, torch.sigmoid(x))
    (g,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(g, torch.autograd.grad(torch.sigmoid(x).sum(), x)[0])


# ---- whole models -----------------------------------------------------------------------------

SHAPES: dict[str, tuple[int, ...]] = {
    "image": (1, 8, 8),
    "audio": (1, 32, 16),
    "series": (3, 12),
    "sequence": (4, 10),
    "vector": (6,),
}
CHOICES = [(kind, name) for kind, named in ENCODERS.items() for name in named]


@pytest.mark.parametrize(("kind", "name"), CHOICES)
def test_every_encoder(kind: str, name: str) -> None:
    """Also those that are run device by device: the residual networks."""
    shape = SHAPES[kind]
    assert stackable(ENCODERS[kind][name](shape, 10)) == ("resnet" not in name)
    x = sequences(shape[0] - 1, shape[1]) if kind == "sequence" else batches(3, *shape)
    # a norm divides by what may be small
    check(lambda: ENCODERS[kind][name](shape, 10), x, encode, tolerance=2e-3)


def test_an_encoder_of_28_by_28_and_of_three_channels() -> None:
    for shape in ((1, 28, 28), (3, 16, 8)):
        make = partial(ENCODERS["image"]["conv"], shape, 9)
        check(make, batches(7, *shape), encode, tolerance=1e-3)


MODALITIES = {name: Modality("vector", (4,)) for name in "abcd"}


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize(
    "kind", ["decomposed", "two projectors", "experts", "slots", "slices", "alone", "fused"]
)
def test_models_of_many_modalities(kind: str, count: int) -> None:
    """Each modality is a column of the inputs."""
    owned = dict(list(MODALITIES.items())[:count])
    every = tuple(MODALITIES)

    def make() -> nn.Module:
        if kind == "decomposed":
            return DecomposedClassifier(owned, 3, common_dim=5, specific_dim=2)
        if kind == "two projectors":
            return TwoProjectorClassifier(owned, every, 3, width=7)
        if kind == "experts":
            return ExpertsClassifier(owned, 3, width=7)
        if kind == "slots":
            slots = SlotClassifier(owned, every, 3, width=7)
            for m in every:
                slots.prototypes.put(m, torch.randn(3, 7), torch.tensor([1.0, 0, 1]))
            return slots.requires_grad_()  # the prototypes as well
        if kind == "slices":
            return SlicedClassifier(owned, 3, width=7)
        return ModalityNetworks(owned, every, 3, width=7)

    def call(model: Any, x: Tensor) -> Tensor:
        inputs = {m: x[..., k, :] for k, m in enumerate(owned)}
        if kind == "alone":
            own: Tensor = torch.cat(list(model.alone(inputs).values()), dim=-1)
        elif kind == "fused":
            own = model.fused(inputs)
        else:
            own = model(inputs)
        return own + 0 * sum(p.sum() for p in model.parameters())  # all are reached

    if kind == "fused" and count == 1:
        return  # there is nothing to fuse
    check(make, batches(7, count, 4), call, tolerance=1e-3)


# ---- losses -----------------------------------------------------------------------------------

LABELS = [torch.randint(3, (7,), generator=torch.Generator().manual_seed(k)) for k in range(20)]


def soft(x: Tensor) -> Tensor:
    return torch.softmax(x, dim=-1)


LOSSES: dict[str, tuple[tuple[tuple[int, ...], ...], Callable[..., Tensor]]] = {
    "cross-entropy": (((7, 3),), lambda y, a: losses.cross_entropy(a, y)),
    "soft labels": (((7, 3), (7, 3)), lambda y, a, b: losses.cross_entropy(a, soft(b))),
    "distillation": (((7, 3), (7, 3)), lambda y, a, b: losses.distillation_loss(a, b, 2.0)),
    "latent": (((7, 3), (7, 3)), lambda y, a, b: losses.latent_distillation_loss(a, b)),
    "diversity": (((7, 5), (7, 3)), lambda y, a, b: losses.diversity_loss(a, b)),
    "ensemble": (
        ((7, 2, 3), (2, 3)),
        lambda y, a, b: losses.ensemble_loss(a, y, soft(b)),
    ),
    "infiltration": (
        ((7, 3), (7, 3), (7,)),
        lambda y, a, b, t: losses.infiltration_loss(a, b, 0.5 + t.square()),
    ),
    "orthogonality": (((7, 5), (7, 3)), lambda y, a, b: losses.orthogonality_loss(a, b)),
    "similarity": (
        ((7, 3), (7, 3), (7, 3), (7, 3)),
        lambda y, *every: losses.similarity_loss(every),
    ),
    "alignment": (((7, 5), (7, 5)), lambda y, a, b: losses.alignment_loss(a, b, 0.5)),
    "rank": (((7,), (7,)), lambda y, a, b: losses.rank_loss(a, b)),
    "contrastive": (
        ((7, 5), (7, 5), (7, 5)),
        lambda y, a, b, c: contrastive_loss(a, b, c, 0.5),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    """Of a stack of 1, 2, 5 or 17 they are ``[device]``, each device's own to the last bit."""
    shapes, loss = LOSSES[name]
    inputs = [[normal(7 * k + j, *shape) for j, shape in enumerate(shapes)] for k in range(17)]

    def of(devices: Sequence[int] | int) -> list[Tensor]:
        if isinstance(devices, int):
            tensors, y = [x.clone() for x in inputs[devices]], LABELS[devices]
        else:
            columns = zip(*(inputs[k] for k in devices), strict=True)
            tensors = [torch.stack(column) for column in columns]
            y = torch.stack([LABELS[k] for k in devices])
        for x in tensors:
            x.requires_grad_()
        value = loss(y, *tensors)
        assert value.shape == (() if isinstance(devices, int) else (len(devices),))
        found = torch.autograd.grad(value.sum(), tensors, allow_unused=True)
        return [value.detach(), *(g for g in found if g is not None)]

    every = of(range(17))
    for k in range(17):
        for one, expected in zip(of([k]), every, strict=True):
            assert torch.equal(one[0], expected[k])
        for one, expected in zip(of(k), every, strict=True):
            assert torch.allclose(one, expected[k], rtol=1e-4, atol=1e-6)
    for devices in ([0, 1], [16, 3], [2, 0, 5, 9, 1]):
        for some, expected in zip(of(devices), every, strict=True):
            assert torch.equal(some, expected[devices])


def test_every_loss_is_tested() -> None:
    """Those that are a loss, not what weighs or scales one."""
    others = {"cross_entropies", "label_weights", "sampling_distribution", "class_temperatures"}
    words = " ".join(LOSSES).replace("-", "_")
    for name in set(losses.__all__) - others - {"unit"}:
        assert name.removesuffix("_distillation_loss").removesuffix("_loss") in words, name


# ---- what they are made of --------------------------------------------------------------------


@few(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20))
def test_products(rows: int, inner: int, columns: int) -> None:
    """Of each device those of torch, whatever is filled up with zeros."""
    a, b = normal(0, 5, rows, inner), normal(1, 5, inner, columns)
    found = product(a, b)
    expected = torch.einsum("dri,dic->drc", a.double(), b.double())
    assert found.shape == expected.shape and torch.allclose(found.double(), expected, atol=1e-4)
    for k in range(5):
        one = product(a[k : k + 1].clone(), b[k : k + 1].clone())
        assert torch.equal(one[0], found[k])


def test_linear_of_one_device_is_torchs() -> None:
    x, weight, bias = normal(0, 4, 5), normal(1, 3, 5), normal(2, 3)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


@few(max_examples=25)
@given(st.integers(1, 200), st.integers(1, 9))
def test_norms_and_sums_of_rows(length: int, count: int) -> None:
    rows = [normal(k, 17, length) for k in range(count)]
    every = total(square_norms(x) for x in rows)
    for k in range(17):
        one = total(square_norms(x[k : k + 1].clone()) for x in rows)
        assert torch.equal(one[0], every[k])
    assert torch.allclose(every, torch.cat(rows, dim=1).square().sum(dim=1), rtol=1e-4)


def test_parameters_come_back_when_a_stack_ends() -> None:
    """Also after an error, and those of a module within another."""
    module = nn.Sequential(Linear(2, 3), nn.ReLU(), Linear(3, 1))
    before = list(module.parameters())
    stacks = {id(p): torch.zeros(4, *p.shape) for p in before[:2]}
    with pytest.raises(RuntimeError, match="on purpose"), StandIns([module]) as stand_ins:
        stand_ins.put(stacks)
        assert module[0].weight.shape == (4, 3, 2) and module[2].weight is before[2]
        raise RuntimeError("on purpose")
    assert all(p is q for p, q in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("module", "stacks"),
    [
        (nn.Sequential(Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Tanh())), True),
        (nn.Sequential(nn.Flatten(-2), Linear(2, 3)), True),
        (nn.Sequential(nn.Flatten(), Linear(2, 3)), False),
        (nn.Linear(2, 3), False),
        (nn.Sequential(Linear(2, 3), nn.Dropout(0.1)), False),
        (nn.Conv2d(1, 1, 1), False),
        (nn.Sigmoid(), False),
    ],
)
def test_what_computes_in_a_stack(module: nn.Module, stacks: bool) -> None:
    assert stackable(module) == stacks
