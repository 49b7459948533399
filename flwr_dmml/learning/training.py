"""The local iterations of a round: of a stack of devices, or of one as its method has it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..models.stacked import StandIns
from ..payload.flat import Flat, Stack
from ..payload.plan import Plan
from .balance import LocalPhase
from .batch import Batch, Pool, mean_over
from .mixing import Taken
from .optimisers import Iteration, LocalSteps
from .settings import DeviceSettings
from .speedometer import Odometer, Speedometer


class Trainee(Protocol):
    """A device as it is trained, see :class:`~.learner.Learner`."""

    @property
    def flat(self) -> Flat:
        """Its parameters, a row."""

    @property
    def pool(self) -> Pool:
        """Its training samples, among those of others."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def settings(self) -> DeviceSettings:
        """Those that all methods share."""

    @property
    def speedometer(self) -> Speedometer:
        """The training speeds of its encoders."""

    @property
    def memory(self) -> dict[str, Tensor]:
        """What a method keeps from round to round."""

    @property
    def module(self) -> nn.Module:
        """Its model."""

    @property
    def modulates(self) -> bool:
        """Whether its method changes gradients."""

    @property
    def draws(self) -> bool:
        """Whether an iteration has something of its own."""

    @property
    def batches_of_rows(self) -> bool:
        """Whether mini-batches are just rows of its training samples."""

    def stacks_now(self) -> bool:
        """Return whether this round's iterations can be those of a stack."""

    def updates(self, plan: Plan) -> dict[str, int]:
        """Return how many times a plan trains each modality."""

    def steps(self, updates: Mapping[str, int]) -> list[tuple[str, ...]]:
        """Return which modalities each iteration trains."""

    def batches(self, iterations: int) -> Iterator[Batch]:
        """Yield mini-batches."""

    def batch_rows(self, iterations: int) -> Tensor:
        """Return which training samples they hold, ``[iterations, batch]``."""

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss."""

    label_shift: Tensor | None
    """What is added to logits of own samples, of those whose loss is computed."""

    def shift(self) -> Tensor | None:
        """Return that of this device in this round."""

    def fixed(self) -> dict[str, Tensor]:
        """Return what all losses of a round read."""

    def running(self) -> dict[str, Tensor]:
        """Return what iterations bring up to date."""

    def draw(self, batch: Batch) -> dict[str, Tensor]:
        """Return what an iteration has of its own."""

    def frozen(self) -> dict[str, nn.Module]:
        """Return modules that the loss calls and does not train."""

    def modulate(self, modalities: tuple[str, ...], batch: Batch) -> Mapping[str, Tensor] | None:
        """Change gradients."""

    def precision(self) -> torch.autocast:
        """Return the context in which losses are computed."""

    def local_steps(self, learners: Sequence[Any], plan: Plan, matrix: Tensor) -> LocalSteps:
        """Return what steps devices that are alike."""

    def keep_optimizer(self, local: LocalSteps, row: int) -> None:
        """Keep the momentum and the like of a row."""

    def note_training(self, loss: float, iterations: int, phases: Mapping[str, LocalPhase]) -> None:
        """Note what came of a round's iterations."""


Part = tuple[Trainee, Plan]
"""A device and its plan, which trains at least one of its modalities."""


def train(parts: Sequence[Part]) -> list[Taken]:
    """Train devices that are alike, for as many iterations as each one's plan says.

    What comes of it is noted in each learner.

    Parameters
    ----------
    parts : sequence of (Learner, Plan)
        Alike by :func:`~.together.likeness`; or a single one.

    Returns
    -------
    list of Taken
        The steps of each device.
    """
    first = parts[0][0]
    rows = Stack([learner.flat for learner, _ in parts])
    matrix = rows.matrix
    local = first.local_steps([learner for learner, _ in parts], parts[0][1], matrix)
    odometer = first.speedometer.odometer(matrix)
    if first.stacks_now():
        losses = _stacked(parts, matrix, local, odometer)
    else:
        losses = [_alone(*parts[0], local, odometer)]
    rows.put_back()
    phases = odometer.phases([learner.speedometer.start for learner, _ in parts])
    counts, taken = local.taken.cpu(), list[Taken]()
    for row, ((learner, _), loss) in enumerate(zip(parts, losses, strict=True)):
        learner.keep_optimizer(local, row)
        learner.note_training(*loss, phases[row])
        taken.append(Taken(local.how.lr, first.settings.momentum, counts[row]))
    return taken


def _alone(
    learner: Trainee, plan: Plan, local: LocalSteps, odometer: Odometer
) -> tuple[float, int]:
    """Train one device; return its mean loss and its iterations."""
    learner.module.train()
    learner.flat.attach()
    flat, steps = learner.flat, learner.steps(learner.updates(plan))
    total = torch.zeros((), dtype=torch.float64, device=learner.device)
    iteration = Iteration(flat.rows, flat.parameters)
    trained = [flat.parameters[i] for i in local.trained]
    learner.label_shift = learner.shift()
    fixed, running = learner.fixed(), _running([learner])
    running = {name: value[0] for name, value in running.items()}
    for modalities, batch in zip(steps, learner.batches(len(steps)), strict=True):
        seen = dict(running)

        def loss_of(part: Batch, seen: dict[str, Tensor] = seen) -> Tensor:
            given = fixed | running | learner.draw(part)
            seen |= given
            return learner.local_loss(replace(part, given=given))

        with learner.precision():
            loss = mean_over(batch.only(modalities), loss_of)
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        local.take(iteration, gradients)
        resting = _modulate(learner, iteration, modalities, replace(batch, given=fixed | seen))
        iteration.gradients = {i: g[None] for i, g in iteration.gradients.items()}
        _step(local, odometer, iteration, modalities, resting)
        total += loss.detach()
    learner.memory.update({name: value.cpu() for name, value in running.items()})
    return float(total) / len(steps), len(steps)


def _stacked(
    parts: Sequence[Part], matrix: Tensor, local: LocalSteps, odometer: Odometer
) -> list[tuple[float, int]]:
    """Train a stack; return each device's mean loss and its iterations.

    Devices whose next iteration trains the same modalities take it together.
    """
    first, flat, count = parts[0][0], parts[0][0].flat, len(parts)
    first.module.train()
    schedules = [learner.steps(learner.updates(plan)) for learner, plan in parts]
    batches = _Batches([learner for learner, _ in parts], [len(steps) for steps in schedules])
    done = [0] * count
    fixed = _stack_all([learner.fixed() for learner, _ in parts])
    corrections = [x for learner, _ in parts if (x := learner.shift()) is not None]
    shifts = torch.stack(corrections) if corrections else None
    running = _running([learner for learner, _ in parts])
    frozen = [learner.frozen() for learner, _ in parts]
    stand_ins = StandIns([*flat.modules.values(), *frozen[0].values()])
    constant = {
        id(p): torch.stack([row.detach() for row in rows])
        for name in frozen[0]
        for p, *rows in zip(
            frozen[0][name].parameters(), *(each[name].parameters() for each in frozen), strict=True
        )
    }
    trained = set(local.trained)
    every = _leaves(flat.views(matrix), trained)
    total = torch.zeros(count, dtype=torch.float64, device=first.device)
    with stand_ins:
        while (chosen := _next(schedules, done)) is not None:
            modalities, devices = chosen
            if len(devices) == count:
                iteration = Iteration(matrix, every)
            else:
                rows = torch.tensor(devices, device=matrix.device)
                x = matrix[rows]
                iteration = Iteration(x, _leaves(flat.views(x), trained), rows)
            ids = map(id, flat.parameters)
            stand_ins.put(
                dict(zip(ids, iteration.leaves, strict=True))
                | {key: iteration.of(value) for key, value in constant.items()}
            )
            inputs, labels = batches.of(devices, modalities)
            now = {name: iteration.of(value) for name, value in running.items()}
            given = now | {name: iteration.of(value) for name, value in fixed.items()}
            if first.draws:
                each = zip(
                    devices, *(x.unbind() for x in inputs.values()), labels.unbind(), strict=True
                )
                drawn = [
                    parts[k][0].draw(Batch(dict(zip(inputs, own[:-1], strict=True)), own[-1]))
                    for k, *own in each
                ]
                given |= _stack_all(drawn)
            batch = Batch(inputs, labels, given=given)
            first.label_shift = None if shifts is None else iteration.of(shifts)
            with first.precision():
                losses = first.local_loss(batch)
            wanted = [iteration.leaves[i] for i in local.trained]
            gradients = torch.autograd.grad(losses.sum(), wanted, allow_unused=True)
            local.take(iteration, gradients)
            resting = _modulate(first, iteration, modalities, batch)
            _step(local, odometer, iteration, modalities, resting)
            for name, value in now.items():
                iteration.put(running[name], value)
            iteration.add(total, losses.detach().double())
            for k in devices:
                done[k] += 1
    first.label_shift = None
    for row, (learner, _) in enumerate(parts):
        own = {name: value[row].cpu().clone() for name, value in running.items()}
        learner.memory.update(own)
    return [(loss / n, n) for loss, n in zip(total.tolist(), done, strict=True)]


class _Batches:
    """The mini-batches of a stack."""

    def __init__(self, learners: Sequence[Trainee], counts: Sequence[int]) -> None:
        self._at = [0] * len(learners)
        self._pool = pool = learners[0].pool
        self._rows: list[Tensor] = []
        self._each: list[Iterator[Batch]] = []
        pairs = list(zip(learners, counts, strict=True))
        if learners[0].batches_of_rows and all(
            x.pool.index is pool.index and x.pool.inputs is pool.inputs for x in learners
        ):
            self._rows = [x.batch_rows(count) + x.pool.start for x, count in pairs]
        else:
            self._each = [x.batches(count) for x, count in pairs]

    def of(
        self, devices: Sequence[int], modalities: tuple[str, ...]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the next inputs and labels of some devices, ``[device, batch, ...]``."""
        if self._each:
            own = [next(self._each[k]).only(modalities) for k in devices]
            inputs = {m: torch.stack([batch.inputs[m] for batch in own]) for m in modalities}
            return inputs, torch.stack([batch.labels for batch in own])
        rows = torch.stack([self._rows[k][self._at[k]] for k in devices])
        for k in devices:
            self._at[k] += 1
        return self._pool.look_up(rows, modalities)


def _next(
    schedules: Sequence[Sequence[tuple[str, ...]]], done: Sequence[int]
) -> tuple[tuple[str, ...], list[int]] | None:
    """Return the modalities that most devices train next, and these devices; None at the end."""
    waiting: dict[tuple[str, ...], list[int]] = {}
    for k, (steps, at) in enumerate(zip(schedules, done, strict=True)):
        if at < len(steps):
            waiting.setdefault(steps[at], []).append(k)
    return max(waiting.items(), key=lambda item: len(item[1])) if waiting else None


def _leaves(views: Sequence[Tensor], trained: set[int]) -> list[Tensor]:
    return [v.detach().requires_grad_(i in trained) for i, v in enumerate(views)]


def _stack_all(each: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors of devices by name, stacked."""
    return {name: torch.stack([own[name] for own in each]) for name in each[0]}


def _running(learners: Sequence[Trainee]) -> dict[str, Tensor]:
    """Return copies of what the methods bring up to date in iterations, ``[device, ...]``."""
    stacks = _stack_all([learner.running() for learner in learners])
    return {name: value.to(learners[0].device) for name, value in stacks.items()}


def _modulate(
    learner: Trainee, iteration: Iteration, modalities: tuple[str, ...], batch: Batch
) -> dict[int, Tensor]:
    """Let a method change the gradients; return who lets which parameter rest, ``[rows]`` bool."""
    if not learner.modulates:
        return {}
    for i, g in iteration.gradients.items():
        iteration.leaves[i].grad = g
    resting = learner.modulate(modalities, batch) or {}
    changed = {i: iteration.leaves[i].grad for i in iteration.gradients}
    iteration.gradients = {i: g for i, g in changed.items() if g is not None}
    for i in changed:
        iteration.leaves[i].grad = None
    blocks = {i: learner.flat.block_of(i) for i in iteration.gradients}
    return {i: resting[name].view(-1) for i, name in blocks.items() if name in resting}


def _step(
    local: LocalSteps,
    odometer: Odometer,
    iteration: Iteration,
    modalities: tuple[str, ...],
    resting: Mapping[int, Tensor],
) -> None:
    """Clip, measure and step."""
    for i, rests in resting.items():
        g = iteration.gradients[i]
        iteration.gradients[i] = g.masked_fill(rests.view(-1, *[1] * (g.dim() - 1)), 0.0)
    local.gather(iteration)
    local.clip(iteration)
    odometer.before_step(iteration, modalities)
    for part in iteration.apart(resting):
        local.step(part)
    odometer.after_step(iteration, modalities)
