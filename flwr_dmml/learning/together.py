"""Train devices with the same model together, their parameters stacked: one step for all of them.

Nothing of the method changes. A device's numbers differ from those of training alone by rounding.
"""

from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..base.errors import MethodError
from ..payload.blocks import unflatten
from ..payload.plan import Inbox, Outcome, Payload, Plan
from .balance import SPEED_METRICS, LocalPhase
from .batch import Batch
from .learner import Learner
from .mixing import mix_stacked
from .nonfinite import NonFiniteModelError, check_finite
from .speedometer import SPEEDS

LINEAR = (nn.Linear, nn.ReLU, nn.Flatten, nn.LayerNorm, nn.Identity)
"""Layers with which a round on a CPU takes half as long: "auto" stacks them there. With small
convolutions it is a third shorter: not worth results that are no longer equal to the last bit."""
OWN = {
    "options_type", "build_model", "blocks", "private_blocks", "encoders", "local_loss", "predict",
    "evaluate",
}  # fmt: skip
"""What a method that declares itself batched may override."""
_models: "WeakKeyDictionary[Learner, tuple[str, bool]]" = WeakKeyDictionary()
"""A learner's architecture in words, and whether it is worth stacking on a CPU."""


@dataclass(frozen=True)
class Turn:
    """What one device is asked to do in a round.

    Parameters
    ----------
    learner : Learner
        The device. Its model and its optimiser need not be those of the state.
    plan : Plan
        Of the round.
    inbox : Inbox
        What its neighbours published.
    state : Payload
        What the device kept after the round before.
    """

    learner: Learner
    plan: Plan
    inbox: Inbox
    state: Payload


def check_batched(method: type[Learner]) -> None:
    """Refuse a method that cannot be what it declares.

    Raises
    ------
    MethodError
        It declares itself batched, but a round of it is more than its loss.
    """
    inherited = {name for name, value in vars(Learner).items() if getattr(method, name) is value}
    changed = {name for name, value in vars(Learner).items() if callable(value)} - inherited - OWN
    if method.keeps_optimizer:
        changed.add("keeps_optimizer")
    if vars(method).get("batched") and changed:
        names = ", ".join(sorted(changed))
        raise MethodError(f"method '{method.name}' is declared batched, but it overrides {names}")


def likeness(learner: Learner, plan: Plan) -> Hashable | None:
    """Return what devices that can train together have in common; None for one that cannot.

    That depends on the device and its plan alone, not on who else is there. A method declares
    itself batched; a subclass of one that does is another matter.
    """
    settings = learner.settings
    if settings.batched == "never" or not vars(type(learner)).get("batched"):
        return None
    if not plan.iterations or learner.train_data.present or learner.compressor.active:
        return None
    if learner not in _models:
        _models[learner] = _architecture(learner.model), _linear(learner.model)
    architecture, linear = _models[learner]
    if settings.batched == "auto" and learner.device.type == "cpu" and not linear:
        return None
    learner.server_round = plan.server_round
    steps = tuple(learner.steps(learner.updates(plan)))
    if not steps:
        return None
    rounds = plan.server_round, plan.num_rounds, plan.evaluate
    return type(learner), learner.device, architecture, steps, rounds, tuple(plan.weights)


def run_together(turns: Sequence[Turn]) -> list[tuple[Outcome, Payload] | NonFiniteModelError]:
    """Run the round of devices with the same likeness.

    Returns
    -------
    list of (Outcome, Payload) or NonFiniteModelError
        Of every device what its ``run_round`` would return, and its new state.
    """
    first = turns[0]
    for turn in turns:
        turn.learner.server_round, turn.learner.measured = turn.plan.server_round, {}
    stacks, rejected = _mix(turns)
    if first.plan.evaluate:
        for i, turn in enumerate(turns):
            turn.learner.load_state(turn.state | {name: x[i] for name, x in stacks.items()})
            turn.learner.measured |= turn.learner.evaluate()
    after, phases = _train(turns, stacks)
    results: list[tuple[Outcome, Payload] | NonFiniteModelError] = []
    for i, turn in enumerate(turns):
        learner, rows = turn.learner, {name: x[i] for name, x in after.items()}
        try:
            check_finite(turn.plan.server_round, rows)
        except NonFiniteModelError as error:
            results.append(error)
            continue
        learner.speedometer.load_state(turn.state)
        learner.measured |= learner.speedometer.take(phases[i])
        near, wrong = learner.speedometer.near(learner.modalities, turn.inbox)
        payload = {name: rows[name] for name in learner.blocks()}
        payload[SPEEDS] = learner.speedometer.report(learner.modalities)
        kept = {name: value.clone() for name, value in learner.speedometer.state().items()}
        outcome = Outcome(payload, learner.measured | near, rejected[i] + wrong)
        results.append((outcome, rows | kept))
    return results


def _mix(turns: Sequence[Turn]) -> tuple[dict[str, Tensor], list[list[str]]]:
    """Return all blocks, mixed, ``[device, length]`` each, and what could not be mixed."""
    learner = turns[0].learner
    stacks, rejected = dict[str, Tensor](), [list[str]() for _ in turns]
    disagreement = torch.zeros(len(turns), device=learner.device)
    for name in learner.blocks() | learner.private_blocks():
        own = [turn.state[name] for turn in turns]
        if name not in turns[0].plan.weights:
            stacks[name] = torch.stack(own).to(learner.device)
            continue
        plans, inboxes = [turn.plan for turn in turns], [turn.inbox for turn in turns]
        stacks[name], apart, wrong = mix_stacked(name, own, plans, inboxes, learner.device)
        disagreement += apart
        for lines, more in zip(rejected, wrong, strict=True):
            lines += more
    for turn, value in zip(turns, disagreement.tolist(), strict=True):
        if turn.plan.neighbours:
            turn.learner.measured["mix.disagreement"] = value
    return stacks, rejected


class _Loss(nn.Module):
    """A learner's loss as a module, whose parameters can be given in the call."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.model, self._learner = learner.model, [learner]

    def forward(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Return the loss of one mini-batch."""
        return self._learner[0].local_loss(Batch(inputs, labels))


class _Odometer:
    """How far the encoder of one modality goes, on every device.

    Parameters
    ----------
    parameters : sequence of Parameter
        The encoder's, ``[device, *shape]`` each.
    uses : set of str
        What is to be measured, see :class:`~flwr_dmml.learning.balance.SpeedMetric`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], uses: Set[str]) -> None:
        self._parameters, self._uses = parameters, uses
        self._before = self._last = self._vectors()
        self._ratio, self._path = self._before.new_zeros(2, len(self._before))
        self._updates = 0

    def _vectors(self) -> Tensor:
        if "vectors" in self._uses:
            return _flat(self._parameters)
        first = self._parameters[0]
        return first.new_zeros(len(first), 0)

    def before_step(self) -> None:
        """Add the gradients of an iteration."""
        if "gradients" not in self._uses:
            return
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        trained = [p for p in self._parameters if p.grad is not None]
        self._ratio += _squares(gradients) / (_squares(trained) + 1e-12)

    def after_step(self) -> None:
        """Add the way that its step went."""
        self._updates += 1
        if "path" in self._uses:
            now = _flat(self._parameters)
            self._path += torch.linalg.vector_norm(now - self._last, dim=1)
            self._last = now

    def phases(self, starts: Sequence[Tensor]) -> list[LocalPhase]:
        """Return what every device's encoder went through, given how it was at the run's start."""
        before, after = self._before.cpu(), self._vectors().cpu()
        ratio, path = self._ratio.tolist(), self._path.tolist()
        each = zip(starts, before, after, ratio, path, strict=True)
        return [LocalPhase(s, b, a, self._updates, r, w) for s, b, a, r, w in each]


def _train(
    turns: Sequence[Turn], stacks: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[dict[str, LocalPhase]]]:
    """Train all for as many steps as their plan says; note loss and iterations of each.

    Returns the blocks ``[device, length]`` float32 on the CPU, and what each device's encoders went
    through.
    """
    first, plan = turns[0].learner, turns[0].plan
    loss_of, leaves = _Loss(first), dict[str, nn.Parameter]()
    loss_of.train()
    names = {id(p): name for name, p in loss_of.named_parameters()}
    blocks = first.blocks() | first.private_blocks()
    for block, module in blocks.items():
        shaped = unflatten(module, stacks[block]).values()
        for p, stacked in zip(module.parameters(), shaped, strict=True):
            leaves[names[id(p)]] = nn.Parameter(stacked.clone(), requires_grad=p.requires_grad)
    parameters = [p for p in leaves.values() if p.requires_grad]
    uses = SPEED_METRICS[first.settings.speed_metric].uses
    odometers = {
        m: _Odometer([leaves[names[id(p)]] for p in encoder.parameters()], uses)
        for m, encoder in first.encoders().items()
    }
    rate = first.settings.learning_rate_at(plan.server_round, plan.num_rounds)
    optimizer = first.make_optimizer(parameters, rate)
    steps, total = first.steps(first.updates(plan)), torch.zeros(len(turns), device=first.device)
    batches = [turn.learner.batches(len(steps)) for turn in turns]
    for modalities, *each in zip(steps, *batches, strict=True):
        inputs = {m: torch.stack([batch.inputs[m] for batch in each]) for m in modalities}
        labels = torch.stack([batch.labels for batch in each])
        optimizer.zero_grad(set_to_none=True)
        with first.precision():
            losses = vmap(lambda *given: functional_call(loss_of, given[0], given[1:]))(
                leaves, inputs, labels
            )
        losses.sum().backward()
        if first.settings.clip_norm:
            _clip(parameters, first.settings.clip_norm)
        with torch.no_grad():
            for m in modalities:
                odometers[m].before_step()
            optimizer.step()
            for m in modalities:
                odometers[m].after_step()
        total += losses.detach()
    for turn, loss in zip(turns, (total / len(steps)).tolist(), strict=True):
        turn.learner.measured |= {"train.loss": loss, "train.iterations": float(len(steps))}
    trained = {
        block: _flat([leaves[names[id(p)]] for p in module.parameters()]).cpu()
        for block, module in blocks.items()
    }
    gone = {
        m: odometer.phases([turn.learner.speedometer.start[m] for turn in turns])
        for m, odometer in odometers.items()
        if any(m in modalities for modalities in steps)
    }
    return trained, [{m: phases[i] for m, phases in gone.items()} for i in range(len(turns))]


def _flat(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return parameters ``[device, *shape]`` side by side, ``[device, length]``."""
    return torch.cat([p.detach().flatten(1) for p in parameters], dim=1)


def _squares(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of squares of tensors ``[device, *shape]``: ``[device]``."""
    parts = [x.detach().flatten(1).square().sum(dim=1) for x in tensors]
    return torch.stack(parts).sum(dim=0)


def _clip(parameters: Sequence[nn.Parameter], most: float) -> None:
    """Clip the gradient norm of every device, as ``clip_grad_norm_`` does that of one."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    factor = (most / (_squares(gradients).sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))


def _architecture(model: nn.Module) -> str:
    """Return layers and shapes in words; equal words, equal computation."""
    shapes = [f"{name}{list(p.shape)}{p.requires_grad}" for name, p in model.named_parameters()]
    return f"{model} {shapes}"


def _linear(model: nn.Module) -> bool:
    """Return whether all layers that compute something are of :data:`LINEAR`."""
    leaves = [module for module in model.modules() if not list(module.children())]
    return all(isinstance(module, LINEAR) for module in leaves)
