"""The local iterations of a round: of a stack of devices, or of one as its method has it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from ..models.stacked import StandIns
from ..payload.flat import Stack
from ..payload.plan import Plan
from .batch import Batch, mean_over
from .mixing import Taken
from .optimisers import Iteration
from .per_sample import NoisyGradients
from .trainee import Trainee

Part = tuple[Trainee, Plan]
"""A device and its plan, which trains at least one of its modalities."""


def train(stacks: Sequence[Sequence[Part]]) -> list[Taken]:
    """Train devices for as many iterations as each one's plan says.

    What comes of it is noted in each learner.

    Parameters
    ----------
    stacks : sequence of sequence of (Learner, Plan)
        The devices of a stack are alike by :func:`~.together.likeness`, those of all by its method;
        or there is a single device.

    Returns
    -------
    list of Taken
        The steps of each device, in that order.
    """
    every = [_Stack(parts) for parts in stacks]
    if every[0].first.stacks_now():
        _together(every)
    else:
        _alone(every[0])
    return [taken for stack in every for taken in stack.end()]


class _Stack:
    """The local iterations of devices of one architecture.

    Attributes
    ----------
    parts : sequence of (Trainee, Plan)
        The devices.
    first : Trainee
        Whose model and method compute for all.
    matrix : Tensor
        Their parameters, ``[device, width]``.
    done : list of int
        Iterations of each device so far.
    losses : Tensor
        Their sums, ``[device]``.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts, (self.first, plan) = parts, parts[0]
        self.flat, learners = self.first.flat, [learner for learner, _ in parts]
        self._rows = Stack([learner.flat for learner in learners])
        self.matrix = matrix = self._rows.matrix
        self.local = self.first.local_steps(learners, plan, matrix)
        self.trained = set(self.local.trained)
        self.odometer = self.first.speedometer.odometer(matrix)
        self.schedules = [learner.steps(learner.updates(plan)) for learner, plan in parts]
        self.done = [0] * len(parts)
        noisy = self.first.noisy
        self._noise = [learner.rng("input-noise") for learner in learners] if noisy else []
        self.losses = torch.zeros(len(parts), dtype=torch.float64, device=self.first.device)
        self.first.module.train()

    def ready(self) -> None:
        """Get what the iterations of a stack read."""
        learners = [learner for learner, _ in self.parts]
        self.batches = _Batches(learners, [len(steps) for steps in self.schedules])
        self.fixed = _stack_all([learner.fixed() for learner in learners])
        shifts = [shift for learner in learners if (shift := learner.shift()) is not None]
        self.shifts = torch.stack(shifts) if shifts else None
        self.running = _running(learners)
        frozen = [learner.frozen() for learner in learners]
        self.stand_ins = StandIns([*self.flat.modules.values(), *frozen[0].values()])
        self.constant = {
            id(p): torch.stack([row.detach() for row in rows])
            for name in frozen[0]
            for p, *rows in zip(
                frozen[0][name].parameters(),
                *(each[name].parameters() for each in frozen),
                strict=True,
            )
        }
        self._leaves = self.leaves(self.matrix)

    def leaves(self, x: Tensor) -> list[Tensor]:
        """Return the parameters in rows ``[device, width]``, for gradients to be taken of."""
        return [
            view.detach().requires_grad_(i in self.trained)
            for i, view in enumerate(self.flat.views(x))
        ]

    def next_batches(
        self, devices: Sequence[int], modalities: tuple[str, ...]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the next inputs and labels of some devices, ``[device, batch, ...]``."""
        inputs, labels = self.batches.of(devices, modalities)
        if self._noise:
            own = [{m: x[n] for m, x in inputs.items()} for n in range(len(devices))]
            inputs = _stack_all([self.with_noise(k, x) for k, x in zip(devices, own, strict=True)])
        return inputs, labels

    def with_noise(self, k: int, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a device's inputs with noise on its vectors, under ``input-noise``."""
        found, learner = dict(inputs), self.parts[k][0]
        for m in self.first.noisy:
            if m in found:
                noise = torch.randn(found[m].shape, generator=self._noise[k])
                found[m] = found[m] + learner.noise_scale(m) * noise.to(found[m].device)
        return found

    def waiting(self) -> dict[tuple[str, ...], list[int]]:
        """Return the devices by the modalities that they train next."""
        found: dict[tuple[str, ...], list[int]] = {}
        for k, (steps, at) in enumerate(zip(self.schedules, self.done, strict=True)):
            if at < len(steps):
                found.setdefault(steps[at], []).append(k)
        return found

    def iteration(self, devices: Sequence[int], *, leaves: bool) -> Iteration:
        """Return the next iteration of some devices."""
        if len(devices) == len(self.parts):
            return Iteration(self.matrix, self._leaves)
        rows = torch.tensor(devices, device=self.matrix.device)
        x = self.matrix[rows]
        return Iteration(x, self.leaves(x) if leaves else [], rows)

    def draw(
        self, devices: Sequence[int], inputs: Mapping[str, Tensor], labels: Tensor
    ) -> list[dict[str, Tensor]]:
        """Return what an iteration of some devices has of each."""
        if not self.first.draws:
            return []
        each = zip(devices, *(x.unbind() for x in inputs.values()), labels.unbind(), strict=True)
        return [
            self.parts[k][0].draw(Batch(dict(zip(inputs, own[:-1], strict=True)), own[-1]))
            for k, *own in each
        ]

    def step(
        self,
        iteration: Iteration,
        devices: Sequence[int],
        modalities: tuple[str, ...],
        losses: Tensor,
        resting: Mapping[int, Tensor],
    ) -> None:
        """Clip, measure and step; ``losses`` ``[device]`` are noted."""
        for i, rests in resting.items():
            g = iteration.gradients[i]
            iteration.gradients[i] = g.masked_fill(rests.view(-1, *[1] * (g.dim() - 1)), 0.0)
        self.local.gather(iteration)
        self.local.clip(iteration)
        self.odometer.before_step(iteration, modalities)
        for part in iteration.apart(resting):
            self.local.step(part)
        self.odometer.after_step(iteration, modalities)
        iteration.add(self.losses, losses.detach().double())
        for k in devices:
            self.done[k] += 1

    def end(self) -> list[Taken]:
        """Write back what has been trained, and note it; return the steps of each device."""
        self._rows.put_back()
        phases = self.odometer.phases([learner.speedometer.start for learner, _ in self.parts])
        counts, losses = self.local.taken.cpu(), self.losses.tolist()
        momentum, how, every = self.first.settings.momentum, self.local.how, list[Taken]()
        for row, (learner, plan) in enumerate(self.parts):
            n = self.done[row]
            learner.keep_optimizer(self.local, row)
            learner.note_training(losses[row] / n, n, phases[row])
            planned = learner.planned(plan)
            every.append(Taken(how.lr, momentum, counts[row], how.rates or {}, planned))
        return every


def _alone(stack: _Stack) -> None:
    """Train one device, whose method is not for stacks."""
    ((learner, _),), local = stack.parts, stack.local
    learner.flat.attach()
    flat, (steps,) = learner.flat, stack.schedules
    iteration = Iteration(flat.rows, flat.parameters)
    trained = [flat.parameters[i] for i in local.trained]
    learner.label_shift = learner.shift()
    fixed, running = learner.fixed(), _running([learner])
    running = {name: value[0] for name, value in running.items()}
    noisy: NoisyGradients | None = None
    if learner.spending.of_samples is None:
        batches = learner.batches(len(steps))
    else:
        learner.spending.charge(len(steps))
        batches = learner.spending.drawn(len(steps))
        noisy = NoisyGradients(learner, local.trained, learner.spending.of_samples, fixed | running)
    for modalities, batch in zip(steps, batches, strict=True):
        seen = dict(running)

        def loss_of(part: Batch, seen: dict[str, Tensor] = seen) -> Tensor:
            part = replace(part, inputs=stack.with_noise(0, part.inputs))
            given = fixed | running | learner.draw(part)
            seen |= given
            return learner.local_loss(replace(part, given=given))

        gradients: Sequence[Tensor | None]
        if noisy is None:
            with learner.precision():
                loss = mean_over(batch.only(modalities), loss_of)
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        else:
            loss = torch.zeros((), device=learner.device)  # not told
            gradients = noisy.of(batch, modalities)
        local.take(iteration, gradients)
        resting = _modulate(learner, iteration, modalities, replace(batch, given=fixed | seen))
        iteration.gradients = {i: g[None] for i, g in iteration.gradients.items()}
        stack.step(iteration, [0], modalities, loss[None], resting)
    learner.memory.update({name: value.cpu() for name, value in running.items()})


def _together(stacks: Sequence[_Stack]) -> None:
    """Train stacks of one method: devices whose next iteration is the same take it together.

    So a device with two modalities that trains one of them goes with those that have no other.
    """
    with ExitStack() as entered:
        for stack in stacks:
            stack.ready()
            entered.enter_context(stack.stand_ins)
        joins = _Joins(stacks)
        while (chosen := joins.next()) is not None:
            modalities, lead, devices = chosen
            if len(devices) > 1:
                joins.take(modalities, lead, devices)
            else:
                _take(lead, devices[lead], modalities)
    for stack in stacks:
        stack.first.label_shift = None
        for row, (learner, _) in enumerate(stack.parts):
            own = {name: value[row].cpu().clone() for name, value in stack.running.items()}
            learner.memory.update(own)


def _take(stack: _Stack, devices: Sequence[int], modalities: tuple[str, ...]) -> None:
    """Take the next iteration of some devices of a stack."""
    first, iteration = stack.first, stack.iteration(devices, leaves=True)
    ids = map(id, stack.flat.parameters)
    stack.stand_ins.put(
        dict(zip(ids, iteration.leaves, strict=True))
        | {key: iteration.of(value) for key, value in stack.constant.items()}
    )
    inputs, labels = stack.next_batches(devices, modalities)
    now = {name: iteration.of(value) for name, value in stack.running.items()}
    given = now | {name: iteration.of(value) for name, value in stack.fixed.items()}
    given |= _stack_all(stack.draw(devices, inputs, labels))
    batch = Batch(inputs, labels, given=given)
    first.label_shift = None if stack.shifts is None else iteration.of(stack.shifts)
    with first.precision():
        losses = first.local_loss(batch)
    wanted = [iteration.leaves[i] for i in stack.local.trained]
    gradients = torch.autograd.grad(losses.sum(), wanted, allow_unused=True)
    stack.local.take(iteration, gradients)
    resting = _modulate(first, iteration, modalities, batch)
    stack.step(iteration, devices, modalities, losses, resting)
    for name, value in now.items():
        iteration.put(stack.running[name], value)


class _Joins:
    """Which stacks can take an iteration together, and how.

    A stack leads those that have all of its blocks: an iteration that its devices could take is
    computed with its model, from a copy of these blocks of each.
    """

    def __init__(self, stacks: Sequence[_Stack]) -> None:
        self._stacks = stacks
        self._led: dict[int, list[_Stack]] = {}
        for lead in stacks:
            others = [s for s in stacks if s is not lead and lead.first.leads(s.first)]
            self._led[id(lead)] = [lead, *others]

    def next(self) -> tuple[tuple[str, ...], _Stack, dict[_Stack, list[int]]] | None:
        """Return the modalities that most devices train next, who leads, and the devices."""
        waiting = {stack: stack.waiting() for stack in self._stacks}
        best: tuple[tuple[str, ...], _Stack, dict[_Stack, list[int]]] | None = None
        most = 0
        for lead in self._stacks:
            for modalities in waiting[lead]:
                found = {
                    stack: devices
                    for stack in self._led[id(lead)]
                    if (devices := waiting[stack].get(modalities))
                }
                count = sum(map(len, found.values()))
                if count > most:
                    most, best = count, (modalities, lead, found)
        return best

    def take(
        self, modalities: tuple[str, ...], lead: _Stack, devices: Mapping[_Stack, Sequence[int]]
    ) -> None:
        """Take the next iteration of devices of several stacks, with the model of the first."""
        first, flat = lead.first, lead.flat
        iterations = {s: s.iteration(own, leaves=False) for s, own in devices.items()}
        x = torch.cat([s.flat.columns(it.x, flat) for s, it in iterations.items()])
        leaves = lead.leaves(x)
        lead.stand_ins.put(dict(zip(map(id, flat.parameters), leaves, strict=True)))
        looked_up = [s.next_batches(own, modalities) for s, own in devices.items()]
        inputs = {m: torch.cat([own[m] for own, _ in looked_up]) for m in modalities}
        labels = torch.cat([own for _, own in looked_up])
        drawn = [
            own
            for (s, ks), (x, y) in zip(devices.items(), looked_up, strict=True)
            for own in s.draw(ks, x, y)
        ]
        shifts = [it.of(s.shifts) for s, it in iterations.items() if s.shifts is not None]
        first.label_shift = torch.cat(shifts) if shifts else None
        with first.precision():
            losses = first.local_loss(Batch(inputs, labels, given=_stack_all(drawn)))
        wanted = [leaves[i] for i in lead.local.trained]
        gradients = torch.autograd.grad(losses.sum(), wanted, allow_unused=True)
        at = 0
        for s, own in devices.items():
            iteration, end = iterations[s], at + len(own)
            there = s.flat.positions(flat)
            iteration.gradients = {
                there[i]: g[at:end]
                for i, g in zip(lead.local.trained, gradients, strict=True)
                if g is not None
            }
            s.step(iteration, own, modalities, losses[at:end], {})
            at = end


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


def _stack_all(each: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors of devices by name, stacked; nothing of none."""
    return {name: torch.stack([own[name] for own in each]) for name in each[0]} if each else {}


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
