"""Blocks: there and back, and what may be mixed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from flwr_dmml.payload.blocks import (
    addressed,
    check_mixable,
    flatten,
    load_flat,
    num_parameters,
    unaddressed,
    unflatten,
    vector_problem,
)


def linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    module = nn.Linear(len(weight[0]), len(weight))
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight))
        module.bias.copy_(torch.tensor(bias))
    return module


# Flat vectors


def test_flatten_is_weights_by_row_then_bias() -> None:
    module = linear([[1, 2, 3], [4, 5, 6]], [7, 8])
    assert flatten(module).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert num_parameters(module) == 8


def test_flatten_is_a_detached_float32_copy() -> None:
    module = linear([[1.0]], [2.0])
    vector = flatten(module)
    assert vector.dtype == torch.float32 and vector.device.type == "cpu"
    assert not vector.requires_grad
    vector.zero_()
    assert flatten(module).tolist() == [1, 2]
    assert flatten(module.double()).dtype == torch.float32


def test_round_trip() -> None:
    def fresh() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 3))

    source, target = fresh(), fresh()
    vector = flatten(source)
    assert not torch.equal(flatten(target), vector)
    load_flat(target, vector)
    assert torch.equal(flatten(target), vector)
    image = torch.rand(2, 1, 3, 3)
    assert torch.equal(source(image), target(image))
    vector.zero_()  # the module has its own copy
    assert torch.equal(flatten(source), flatten(target))


def test_load_flat_keeps_the_parameters_trainable() -> None:
    module = linear([[1.0]], [2.0])
    weight = module.weight
    load_flat(module, torch.tensor([3.0, 4.0]))
    assert module.weight is weight and weight.requires_grad and weight.item() == 3


@pytest.mark.parametrize("shape", [(7,), (9,), (0,), (1, 8), (8, 1), ()])
def test_load_flat_refuses_another_shape(shape: tuple[int, ...]) -> None:
    module = linear([[1, 2, 3], [4, 5, 6]], [7, 8])
    with pytest.raises(ValueError) as error:
        load_flat(module, torch.zeros(shape))
    assert str(error.value) == f"expected a vector of length 8, got {shape}"
    assert flatten(module).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]  # as it was


def test_unflatten_gives_each_copy_its_parameters() -> None:
    copies = [linear([[1, 2, 3], [4, 5, 6]], [7, 8]), linear([[9, 8, 7], [6, 5, 4]], [3, 2])]
    values = unflatten(copies[0], torch.stack([flatten(module) for module in copies]))
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        "weight": (2, 2, 3),
        "bias": (2, 2),
    }
    inputs = torch.rand(5, 3)
    for i, module in enumerate(copies):
        one = {name: value[i] for name, value in values.items()}
        assert torch.equal(functional_call(copies[0], one, (inputs,)), module(inputs))


# Names


BLOCK = st.from_regex(r"[a-z]+(\.[a-z0-9-]+)*", fullmatch=True)


def test_an_addressed_name_by_hand() -> None:
    assert addressed("encoder.audio", 12) == "encoder.audio@12"
    assert unaddressed("encoder.audio@12") == unaddressed("encoder.audio") == "encoder.audio"


@given(BLOCK, st.integers(0, 10**6), st.integers(0, 10**6))
def test_an_address_can_be_told_from_others_and_taken_off(block: str, one: int, other: int) -> None:
    assert unaddressed(addressed(block, one)) == unaddressed(block) == block
    assert addressed(block, one) != block
    assert (addressed(block, one) == addressed(block, other)) == (one == other)


# What may be mixed


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.InstanceNorm2d(4)])
def test_running_statistics_are_refused(norm: nn.Module) -> None:
    if isinstance(norm, nn.InstanceNorm2d):  # has none unless asked for
        check_mixable({"encoder.image": nn.Sequential(nn.Linear(4, 4), norm)})
        norm = nn.InstanceNorm2d(4, track_running_stats=True)
    encoder = nn.Sequential(nn.Linear(4, 4), norm)
    with pytest.raises(ValueError) as error:
        check_mixable({"head.common": nn.Linear(2, 2), "encoder.image": encoder})
    assert "block 'encoder.image' has the buffer '1.running_mean'" in str(error.value)
    assert "GroupNorm" in str(error.value)


@pytest.mark.parametrize(
    "norm",
    [nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.BatchNorm1d(4, track_running_stats=False)],
    ids=repr,
)
def test_norms_without_state_are_accepted(norm: nn.Module) -> None:
    """Mixing touches parameters only: a block with these has nothing else that could drift."""
    block = nn.Sequential(nn.Linear(4, 4), norm)
    check_mixable({"encoder.image": block, "head.common": nn.Linear(4, 2)})
    assert set(block.state_dict()) == {name for name, _ in block.named_parameters()}


def test_whole_number_buffers_are_accepted_and_others_are_not() -> None:
    block = nn.Linear(2, 2)
    block.register_buffer("order", torch.tensor([1, 0]))
    check_mixable({"head": block})
    block.register_buffer("scale", torch.tensor(1.0))
    with pytest.raises(ValueError, match="block 'head' has the buffer 'scale'"):
        check_mixable({"head": block})


def test_a_parameter_of_two_blocks_is_refused() -> None:
    one, other = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3))
    check_mixable({"one": one, "other": other})
    other[0].weight = one.weight
    with pytest.raises(ValueError, match=r"^blocks 'one' and 'other' share a parameter$"):
        check_mixable({"one": one, "other": other})


def test_a_parameter_used_twice_in_one_block_is_accepted_and_counted_once() -> None:
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    check_mixable({"tied": tied})
    assert num_parameters(tied) == len(flatten(tied)) == 9


@pytest.mark.parametrize(
    "vector, problem",
    [
        (torch.zeros(4), "has shape (4,) instead of (3,)"),
        (torch.zeros(0), "has shape (0,) instead of (3,)"),
        (torch.tensor(1.0), "has shape () instead of (3,)"),
        (torch.zeros(1, 3), "has shape (1, 3) instead of (3,)"),
        (torch.zeros(3, dtype=torch.float64), "has type torch.float64 instead of torch.float32"),
        (torch.zeros(3, dtype=torch.float16), "has type torch.float16 instead of torch.float32"),
        (torch.zeros(3, dtype=torch.int64), "has type torch.int64 instead of torch.float32"),
        (torch.zeros(3, dtype=torch.complex64), "has type torch.complex64 instead of"),
        (torch.tensor([0.0, torch.nan, 0.0]), "holds NaN or infinite values"),
        (torch.tensor([0.0, 0.0, torch.inf]), "holds NaN or infinite values"),
        (torch.tensor([-torch.inf, 0.0, 0.0]), "holds NaN or infinite values"),
    ],
)
def test_vector_problem(vector: Tensor, problem: str) -> None:
    found = vector_problem(vector, 3)
    assert found is not None and found.startswith(problem)


def test_values_that_would_wreck_the_receiver_are_refused() -> None:
    assert "beyond 1e+06" in (vector_problem(torch.tensor([0.0, -1e30, 1.0]), 3) or "")


def test_vector_problem_of_a_good_vector() -> None:
    assert vector_problem(torch.tensor([0.0, -1e6, 1e-45]), 3) is None
    assert vector_problem(torch.zeros(0), 0) is None
