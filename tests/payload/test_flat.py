"""Flat vectors: parameters as views of a row, steps on rows, and what neighbours send."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flwr_dmml.learning.optimisers import OPTIMIZER, STEPS, LocalSteps, StepRule
from flwr_dmml.payload.flat import Flat, joined, part, stack
from flwr_dmml.payload.plan import Inbox
from flwr_dmml.payload.received import received


def network(seed: int) -> nn.ModuleDict:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = {"a": nn.Sequential(nn.Linear(4, 5), nn.ReLU()), "b": nn.Linear(5, 3, bias=False)}
        return nn.ModuleDict(layers | {"c": nn.Linear(5, 3)})


def blocks(module: nn.ModuleDict) -> dict[str, nn.Module]:
    return dict(module.items())


# ---- views ------------------------------------------------------------------------------------


def test_parameters_are_views_and_blocks_are_slices() -> None:
    module = network(0)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    flat = Flat(blocks(module))
    assert len(flat) == 25 + 15 + 18 and flat.slices["b"] == slice(25, 40)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    flat.vector[flat.slices["b"]] = 7.0
    assert bool((module["b"].weight == 7).all())
    with torch.no_grad():
        module["c"].bias.fill_(-1.0)
    assert flat.vector[-3:].tolist() == [-1.0] * 3
    copied = flat.copy()
    flat.vector.zero_()
    assert copied["b"].tolist() == [7.0] * 15  # a copy
    flat.load("b", copied["b"])
    assert bool((module["b"].weight == 7).all())
    with pytest.raises(ValueError, match=r"block 'b': expected a vector of length 15, got \(14,\)"):
        flat.load("b", torch.zeros(14))


def test_devices_come_together_in_one_matrix_and_stay_themselves() -> None:
    modules = [network(seed) for seed in range(3)]
    flats = [Flat(blocks(module)) for module in modules]
    before = [flat.vector.clone() for flat in flats]
    x = torch.randn(2, 4)
    outputs = [module["b"](module["a"](x)) for module in modules]
    matrix = stack(flats)
    assert torch.equal(matrix, torch.stack(before)) and stack(flats) is matrix
    for module, output in zip(modules, outputs, strict=True):
        assert torch.equal(module["b"](module["a"](x)), output)
    matrix[1].zero_()
    assert not any(p.any() for p in modules[1].parameters())
    assert stack(flats[:2]) is not matrix and torch.equal(flats[2].vector, before[2])


def test_a_copied_model_has_memory_of_its_own() -> None:
    module = network(0)
    flat = Flat(blocks(module))
    frozen = copy.deepcopy(module)
    flat.vector.zero_()
    assert any(p.any() for p in frozen.parameters())


def test_slices_that_follow_on_one_another_are_joined() -> None:
    given = [slice(0, 2), slice(2, 5), slice(7, 8), slice(8, 9)]
    assert joined(given) == [slice(0, 5), slice(7, 9)] and joined([]) == []
    matrix = torch.arange(10.0)[None]
    assert part(matrix, joined(given)).tolist() == [[0, 1, 2, 3, 4, 7, 8]]
    assert part(matrix, [slice(2, 4)]).data_ptr() == matrix[:, 2:].data_ptr()


# ---- steps ------------------------------------------------------------------------------------

HOW: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.5, "weight_decay": 0.1},
    {"momentum": 0.9, "weight_decay": 0.01, "clip_norm": 0.05},
    {"family": "adam", "weight_decay": 0.1},
    {"family": "adamw", "weight_decay": 0.1, "clip_norm": 0.05},
]


def gradients(module: nn.ModuleDict, i: int) -> list[Tensor | None]:
    """Of a loss that reaches a and b in even iterations, a and c in odd ones."""
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(i))
    loss = module["bc"[i % 2]](module["a"](x)).square().mean()
    return list(torch.autograd.grad(loss, list(module.parameters()), allow_unused=True))


def steps_of(
    module: nn.ModuleDict, how: dict[str, Any], kept: dict[str, Tensor] | None = None
) -> LocalSteps:
    flat = Flat(blocks(module))
    count = range(len(flat.parameters))
    return LocalSteps(flat, flat.rows, flat.parameters, count, StepRule(0.1, **how), kept=kept)


def optimiser_of(module: nn.Module, how: dict[str, Any]) -> torch.optim.Optimizer:
    decay = how.get("weight_decay", 0)
    if "family" not in how:
        return torch.optim.SGD(module.parameters(), 0.1, how.get("momentum", 0), weight_decay=decay)
    family = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[how["family"]]
    return family(module.parameters(), 0.1, weight_decay=decay)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_steps_are_those_of_torch(how: dict[str, Any]) -> None:
    """What an iteration does not reach keeps its value and its momentum."""
    module, other = network(0), network(0)
    local = steps_of(module, how)
    theirs = optimiser_of(other, how)
    for i in range(6):
        local.take(gradients(module, i))
        local.settle()
        local.step()
        for p, g in zip(other.parameters(), gradients(other, i), strict=True):
            p.grad = g
        if most := how.get("clip_norm"):
            nn.utils.clip_grad_norm_(other.parameters(), most)
        theirs.step()
        for p, q in zip(module.parameters(), other.parameters(), strict=True):
            assert torch.allclose(p, q, atol=1e-6), i
    assert local.taken.tolist() == [6, 6, 3, 3, 3]
    local.end()
    assert all(p.grad is None for p in module.parameters())
    kept = ["first", "second"] if "family" in how else ["momentum"] * ("momentum" in how)
    expected = {OPTIMIZER + name for name in kept} | ({STEPS} if "family" in how else set())
    assert set(local.state(0)) == expected


@pytest.mark.parametrize("how", HOW[1:], ids=str)
def test_steps_go_on_from_what_was_kept(how: dict[str, Any]) -> None:
    """Six steps in one go are four, state out, state in, two more."""
    straight, broken = network(0), network(0)
    local = steps_of(straight, how)
    for i in range(6):
        local.take(gradients(straight, i))
        local.settle()
        local.step()
    kept: dict[str, Tensor] = {}
    for part_of in (range(4), range(4, 6)):
        again = steps_of(broken, how, kept)
        for i in part_of:
            again.take(gradients(broken, i))
            again.settle()
            again.step()
        kept = again.state(0)
    for p, q in zip(straight.parameters(), broken.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_rows_step_as_one_by_one_to_the_last_bit(how: dict[str, Any]) -> None:
    alone, together = [network(k) for k in range(3)], [network(k) for k in range(3)]
    one_by_one = [steps_of(module, how) for module in alone]
    flats = [Flat(blocks(module)) for module in together]
    matrix = stack(flats)
    leaves = [v.detach() for v in flats[0].views(matrix)]
    local = LocalSteps(flats[0], matrix, leaves, range(5), StepRule(0.1, **how))
    for i in range(4):
        every = [gradients(module, i) for module in together]
        columns: list[Any] = list(zip(*every, strict=True))
        local.take([None if column[0] is None else torch.stack(column) for column in columns])
        local.settle()
        local.step()
        for module, steps in zip(alone, one_by_one, strict=True):
            steps.take(gradients(module, i))
            steps.settle()
            steps.step()
    for flat, steps in zip(flats, one_by_one, strict=True):
        assert torch.equal(flat.vector, steps.matrix[0])


def test_a_method_may_change_replace_and_drop_gradients() -> None:
    module = network(0)
    local = steps_of(module, {})
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    local.take(gradients(module, 0))
    weight, bias = module["a"][0].weight, module["a"][0].bias
    weight.grad = torch.ones_like(weight)  # replaced
    bias.grad = None  # dropped
    module["b"].weight.grad.mul_(0)  # changed
    local.settle()
    local.step()
    assert torch.allclose(weight, before["a.0.weight"] - 0.1)
    for name in ("a.0.bias", "b.weight", "c.weight"):
        assert torch.equal(dict(module.named_parameters())[name], before[name])
    assert local.taken.tolist() == [1, 0, 1, 0, 0]


def test_blocks_have_learning_rates_of_their_own() -> None:
    module = network(0)
    flat = Flat(blocks(module))
    how = StepRule(0.1, rates={"b": 0.5})
    local = LocalSteps(flat, flat.rows, flat.parameters, range(5), how)
    before = flat.vector.clone()
    local.take([torch.ones_like(p) for p in flat.parameters])
    local.step()
    moved = before - flat.vector
    assert torch.allclose(moved[flat.slices["a"]], torch.tensor(0.1))
    assert torch.allclose(moved[flat.slices["b"]], torch.tensor(0.05))


# ---- what has come ----------------------------------------------------------------------------


def test_what_is_good_and_what_is_said_of_the_rest() -> None:
    good, nan = torch.tensor([1.0, 2.0]), torch.tensor([1.0, torch.nan])
    inbox: Inbox = {
        1: {"v": good},
        2: {"v": nan},
        3: {},
        4: {"v": good[:1]},
        5: {"v": good.double()},
    }
    found, wrong = received(inbox, "v", 2)
    assert found == {1: good}
    assert wrong == [
        "2: v holds NaN or infinite values",
        "3: v is missing",
        "4: v has shape (1,) instead of (2,)",
        "5: v has type torch.float64 instead of torch.float32",
    ]
    found, wrong = received(inbox, "v", 2, of=[1, 3, 9], optional=True)
    assert list(found) == [1] and wrong == []


def test_a_range_is_part_of_what_is_good() -> None:
    inbox: Inbox = {1: {"v": torch.tensor([-1.0])}, 2: {"v": torch.tensor([3.0])}}
    assert received(inbox, "v", 1, lowest=0)[1] == ["1: v holds negative values"]
    assert received(inbox, "v", 1, lowest=0, highest=2, called="bias")[1] == [
        "1: bias holds values outside of 0 to 2",
        "2: bias holds values outside of 0 to 2",
    ]
    table: Inbox = {1: {"t": torch.zeros(2, 3)}}
    assert list(received(table, "t", (2, 3))[0]) == [1]
    assert received(table, "t", (3, 2))[1] == ["1: t has shape (2, 3) instead of (3, 2)"]


def test_a_good_tensor_is_looked_at_again_only_if_it_has_changed() -> None:
    vector = torch.ones(3)
    inbox: Inbox = {1: {"v": vector}}
    assert received(inbox, "v", 3)[1] == received(inbox, "v", 3)[1] == []
    assert received(inbox, "v", 4)[1] == ["1: v has shape (3,) instead of (4,)"]
    vector[1] = torch.nan
    assert received(inbox, "v", 3)[1] == ["1: v holds NaN or infinite values"]
