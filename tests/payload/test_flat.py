"""Flat vectors: parameters as views of a row, steps on rows, and what neighbours send."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner
from torch import Tensor, nn

from flwr_dmml.clients import Batch, Learner
from flwr_dmml.learning.optimisers import OPTIMIZER, STEPS, Iteration, LocalSteps, StepRule
from flwr_dmml.payload.flat import Flat, Stack, joined, part
from flwr_dmml.payload.plan import Inbox, Plan
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
    assert flat.slices == {"a": slice(0, 25), "b": slice(32, 47), "c": slice(48, 66)}  # on lines
    assert len(flat) == 80 and flat.vector[25:32].tolist() == [0.0] * 7
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    flat.vector[flat.slices["b"]] = 7.0
    assert bool((module["b"].weight == 7).all())
    with torch.no_grad():
        module["c"].bias.fill_(-1.0)
    assert flat.vector[63:].tolist() == [-1.0] * 3 + [0.0] * 14
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
    matrix = Stack(flats).matrix
    assert torch.equal(matrix, torch.stack(before))
    assert Stack(flats).matrix.data_ptr() == matrix.data_ptr(), "they are together already"
    assert matrix.shape == (3, 80) and matrix.data_ptr() % 64 == 0, "rows begin on a cache line"
    assert not matrix[:, 25:32].any() and not matrix[:, 66:].any()
    for flat, module, output in zip(flats, modules, outputs, strict=True):
        flat.attach()
        assert torch.equal(module["b"](module["a"](x)), output)
    matrix[1].zero_()
    assert not any(p.any() for p in modules[1].parameters())
    assert torch.equal(flats[2].vector, before[2])


def test_some_rows_of_a_matrix_are_a_copy_that_is_put_back() -> None:
    """Rows 1 and 2 follow one another: a view. 2 and 0 do not."""
    flats = [Flat(blocks(network(seed))) for seed in range(3)]
    matrix = Stack(flats).matrix
    near, apart = Stack(flats[1:]), Stack([flats[2], flats[0]])
    assert near.matrix.data_ptr() == matrix[1:].data_ptr()
    apart.matrix[0] = 5.0
    assert not bool((flats[2].vector == 5).any())
    apart.put_back()
    assert bool((flats[2].vector == 5).all()) and not bool((flats[0].vector == 5).any())
    assert bool((near.matrix[1] == 5).all())


def test_a_row_is_written_in_the_layout_of_a_smaller_model() -> None:
    """Of a, b and c those that the other has, in its order: c and a."""
    module = network(0)
    flat, other = Flat(blocks(module)), Flat({name: network(1)[name] for name in ("c", "a")})
    there = flat.columns(flat.rows, other)
    assert there.shape == other.rows.shape
    for name, place in other.slices.items():
        assert torch.equal(there[0, place], flat.vector[flat.slices[name]])
    assert flat.positions(other) == [3, 4, 0, 1], "weight and bias of c, then those of a"
    assert flat.columns(flat.rows, flat) is not None and flat.positions(flat) == [0, 1, 2, 3, 4]


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


class Steps:
    """Local steps of modules with one layout: a row each."""

    def __init__(
        self,
        modules: Sequence[nn.ModuleDict],
        how: dict[str, Any],
        kept: Sequence[dict[str, Tensor]] = (),
    ) -> None:
        self.flats = [Flat(blocks(module)) for module in modules]
        self.matrix = Stack(self.flats).matrix
        for flat in self.flats:
            flat.attach()
        count = range(len(self.flats[0].parameters))
        rule = StepRule(0.1, **how)
        self.local = LocalSteps(self.flats[0], self.matrix, count, rule, kept=kept)

    def step(
        self,
        gradients: Sequence[list[Tensor | None]],
        rows: list[int] | None = None,
        resting: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Step some rows, or all, by a module's gradients each."""
        chosen = None if rows is None else torch.tensor(rows)
        x = self.matrix if chosen is None else self.matrix[chosen]
        iteration = Iteration(x, [], chosen)
        columns = zip(*gradients, strict=True)
        found = [None if c[0] is None else torch.stack(c) for c in columns]  # type: ignore[arg-type]
        self.local.take(iteration, found)
        self.local.gather(iteration)
        self.local.clip(iteration)
        for part_of in iteration.apart(resting or {}):
            self.local.step(part_of)
        assert torch.equal(iteration.x, x)
        assert chosen is None or torch.equal(self.matrix[chosen], iteration.x)


def steps_of(
    module: nn.ModuleDict, how: dict[str, Any], kept: dict[str, Tensor] | None = None
) -> Steps:
    return Steps([module], how, [kept] if kept else [])


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
    steps = steps_of(module, how)
    theirs = optimiser_of(other, how)
    for i in range(6):
        steps.step([gradients(module, i)])
        for p, g in zip(other.parameters(), gradients(other, i), strict=True):
            p.grad = g
        if most := how.get("clip_norm"):
            nn.utils.clip_grad_norm_(other.parameters(), most)
        theirs.step()
        for p, q in zip(module.parameters(), other.parameters(), strict=True):
            assert torch.allclose(p, q, atol=1e-6), i
    assert steps.local.taken.tolist() == [[6, 6, 3, 3, 3]]
    assert all(p.grad is None for p in module.parameters())
    kept = ["first", "second"] if "family" in how else ["momentum"] * ("momentum" in how)
    expected = {OPTIMIZER + name for name in kept} | ({STEPS} if "family" in how else set())
    assert set(steps.local.state(0)) == expected


def test_small_parameters_of_a_block_are_stepped_as_one() -> None:
    """Positions 0 to 5: a Linear's weight and bias in each of three blocks."""
    flat = Flat({name: nn.Linear(3, 2) for name in "abc"})
    assert flat.runs((0, 1, 2, 3, 4, 5)) == [(0, 1), (2, 3), (4, 5)]
    assert flat.runs((0, 2, 3, 5)) == [(0,), (2, 3), (5,)]
    flat.cut([3])
    assert flat.runs((0, 1, 2, 3)) == [(0, 1), (2,), (3,)]
    large = Flat({"a": nn.Linear(200, 100)})
    assert large.runs((0, 1)) == [(0,), (1,)]


def test_a_parameter_may_be_a_single_number() -> None:
    """It steps, and is clipped, as it does in torch: by 0.1 times the gradient, 0.6 of a norm 1."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.zeros(2))

    flat = Flat({"a": Scaled()})
    local = LocalSteps(flat, flat.rows, [0, 1], StepRule(0.1, clip_norm=1.0))
    iteration = Iteration(flat.rows, flat.parameters)
    local.take(iteration, [torch.tensor([3.0]), torch.tensor([[4.0, 0.0]])])
    local.gather(iteration)
    local.clip(iteration)
    local.step(iteration)
    assert flat.vector[:3].tolist() == pytest.approx([1 - 0.06, -0.08, 0.0], abs=1e-5)


@pytest.mark.parametrize("how", HOW[1:], ids=str)
def test_steps_go_on_from_what_was_kept(how: dict[str, Any]) -> None:
    """Six steps in one go are four, state out, state in, two more."""
    straight, broken = network(0), network(0)
    steps = steps_of(straight, how)
    for i in range(6):
        steps.step([gradients(straight, i)])
    kept: dict[str, Tensor] = {}
    for part_of in (range(4), range(4, 6)):
        again = steps_of(broken, how, kept)
        for i in part_of:
            again.step([gradients(broken, i)])
        kept = again.local.state(0)
    for p, q in zip(straight.parameters(), broken.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_rows_step_as_one_by_one_to_the_last_bit(how: dict[str, Any]) -> None:
    """All, then some: their steps are counted, and their moments kept, row by row."""
    alone, together = [network(k) for k in range(3)], [network(k) for k in range(3)]
    one_by_one = [steps_of(module, how) for module in alone]
    every = Steps(together, how)
    for i, rows in enumerate([None, None, [0, 2], [1], [2, 1], None]):
        chosen = rows if rows is not None else [0, 1, 2]
        every.step([gradients(together[k], i) for k in chosen], rows)
        for k in chosen:
            one_by_one[k].step([gradients(alone[k], i)])
    for k, steps in enumerate(one_by_one):
        assert torch.equal(every.matrix[k], steps.matrix[0])
        assert torch.equal(every.local.taken[k], steps.local.taken[0])
        kept, expected = every.local.state(k), steps.local.state(0)
        assert kept.keys() == expected.keys()
        assert all(torch.equal(kept[name], value) for name, value in expected.items())


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("rows", [None, [0, 1, 2], [2, 0]], ids=str)
def test_what_rests_on_a_device_is_as_if_the_loss_had_not_reached_it(
    how: dict[str, Any], rows: list[int] | None
) -> None:
    """Device 0 lets both parameters of a rest, device 2 those of c: neither moves, nor its moments.

    The others are stepped, to the last bit.
    """
    how = {key: value for key, value in how.items() if key != "clip_norm"}
    alone, together = [network(k) for k in range(3)], [network(k) for k in range(3)]
    one_by_one, every = [steps_of(module, how) for module in alone], Steps(together, how)
    chosen = rows if rows is not None else [0, 1, 2]
    rest = {0: {0, 1}, 1: set(), 2: {3, 4}}
    for i in (1, 3):
        if i == 1:  # there are moments, by then
            every.step([gradients(module, i) for module in together])
        else:
            resting = {p: torch.tensor([p in rest[k] for k in chosen]) for p in (0, 1, 3, 4)}
            every.step([gradients(together[k], i) for k in chosen], rows, resting)
        for k in range(3) if i == 1 else chosen:
            own = gradients(alone[k], i)
            dropped = rest[k] if i == 3 else set()
            one_by_one[k].step([[None if p in dropped else g for p, g in enumerate(own)]])
    for k, steps in enumerate(one_by_one):
        assert torch.equal(every.matrix[k], steps.matrix[0])
        assert torch.equal(every.local.taken[k], steps.local.taken[0])
        kept, expected = every.local.state(k), steps.local.state(0)
        assert all(torch.equal(kept[name], value) for name, value in expected.items())


class Changing(Learner):
    """Replaces one gradient, drops another, changes a third."""

    name = "changing"

    def modulate(self, modalities: tuple[str, ...], batch: Batch) -> None:
        """Change the gradients of the three layers of the common head and the image's."""
        self.model.head_common.weight.grad = torch.ones_like(self.model.head_common.weight)
        self.model.head_common.bias.grad = None
        self.model.heads["image"].weight.grad.mul_(0)


def test_a_method_may_change_replace_and_drop_gradients() -> None:
    made = make_learner({**FAST, "modality-pattern": "image", "learning-rate": 0.1, "clip-norm": 0})
    learner = Changing(made.partition, made.settings, made.options)
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    learner.run_round(Plan(1, 1), {})
    after = dict(learner.model.named_parameters())
    expected = before["head_common.weight"] - 0.1
    assert torch.allclose(after["head_common.weight"], expected)
    for name in ("head_common.bias", "heads.of_image.weight"):
        assert torch.equal(after[name], before[name])
    assert any(not torch.equal(after[n], p) for n, p in before.items() if "encoders" in n)
    assert all(p.grad is None for p in learner.model.parameters())


def test_blocks_have_learning_rates_of_their_own() -> None:
    module = network(0)
    steps = steps_of(module, {"rates": {"b": 0.5}})
    flat = steps.flats[0]
    before = flat.vector.clone()
    steps.step([[torch.ones_like(p) for p in flat.parameters]])
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
