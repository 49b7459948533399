"""Train devices with the same model together, their parameters stacked: one step for all of them.

Nothing of the method changes. A device's numbers differ from those of training alone by rounding.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..base.errors import MethodError
from ..payload.flat import stack
from ..payload.plan import Inbox, Outcome, Plan
from .batch import Batch
from .learner import Learner
from .mixing import Taken
from .nonfinite import NonFiniteModelError

LINEAR = (nn.Linear, nn.ReLU, nn.Flatten, nn.LayerNorm, nn.Identity)
"""Layers with which a round on a CPU takes half as long: "auto" stacks them there. With small
convolutions it is a third shorter: not worth results that are no longer equal to the last bit."""
OWN = {
    "options_type", "build_model", "blocks", "private_blocks", "encoders", "local_loss", "predict",
    "evaluate", "sends", "mix", "outgoing", "learning_rates", "trained_parameters",
}  # fmt: skip
"""Members that a method that declares itself batched may override."""
_models: "WeakKeyDictionary[Learner, tuple[str, bool]]" = WeakKeyDictionary()
"""A learner's architecture in words, and whether it is worth stacking on a CPU."""


@dataclass(frozen=True)
class Turn:
    """One device's part in a round.

    Parameters
    ----------
    learner : Learner
        The device, with the state of the round before.
    plan : Plan
        Of the round.
    inbox : Inbox
        What its neighbours published.
    """

    learner: Learner
    plan: Plan
    inbox: Inbox


def check_batched(method: type[Learner]) -> None:
    """Refuse a method that cannot be what it declares.

    Raises
    ------
    MethodError
        It declares itself batched, but a round of it is more than its loss.
    """
    inherited = {name for name, value in vars(Learner).items() if getattr(method, name) is value}
    changed = {name for name, value in vars(Learner).items() if callable(value)} - inherited - OWN
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
    if not plan.iterations or learner.train_data.present:
        return None
    if learner.rule.momentum != "round" or learner.mixer.direction(0.0, 0.0) is not None:
        return None  # rules with a momentum or a direction of their own are stepped one by one
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


def run_together(turns: Sequence[Turn]) -> list[Outcome | NonFiniteModelError]:
    """Run the round of devices with the same likeness.

    Returns
    -------
    list of Outcome or NonFiniteModelError
        Of every device what its ``run_round`` would return, or raise.
    """
    for turn in turns:
        with turn.learner.in_round(turn.plan):
            turn.learner.begin(turn.plan, turn.inbox)
    taken = _train(turns)
    results: list[Outcome | NonFiniteModelError] = []
    for turn in turns:
        try:
            results.append(turn.learner.finish(turn.plan, turn.inbox, taken))
        except NonFiniteModelError as error:
            results.append(error)
    return results


class _Loss(nn.Module):
    """A learner's loss as a module, whose parameters can be given in the call."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.model, self._learner = learner.model, [learner]

    def forward(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Return the loss of one mini-batch."""
        return self._learner[0].local_loss(Batch(inputs, labels))


def _train(turns: Sequence[Turn]) -> Taken:
    """Train all for as many steps as their plan says; note what came of it at each."""
    first, plan = turns[0].learner, turns[0].plan
    flat, matrix = first.flat, stack([turn.learner.flat for turn in turns])
    loss_of = _Loss(first)
    loss_of.train()
    names = {id(p): name for name, p in loss_of.named_parameters()}
    leaves = [v.detach().requires_grad_() for v in flat.views(matrix)]
    given = {
        names[id(p)]: leaf
        for p, leaf in zip(flat.parameters, leaves, strict=True)
        if id(p) in names
    }
    local = first.local_steps(plan, leaves, matrix)
    odometer = first.speedometer.odometer(matrix)
    steps = first.steps(first.updates(plan))
    total = torch.zeros(len(turns), dtype=torch.float64, device=first.device)
    batches = [turn.learner.batches(len(steps)) for turn in turns]
    one = lambda parameters, inputs, labels: functional_call(loss_of, parameters, (inputs, labels))  # noqa: E731
    for modalities, *each in zip(steps, *batches, strict=True):
        inputs = {m: torch.stack([batch.inputs[m] for batch in each]) for m in modalities}
        labels = torch.stack([batch.labels for batch in each])
        with first.precision():
            losses = vmap(one)(given, inputs, labels)
        local.take(torch.autograd.grad(losses.sum(), local.trained, allow_unused=True))
        local.settle()
        odometer.before_step(local.gradient, modalities)
        local.step()
        odometer.after_step(modalities)
        total += losses.detach()
    local.end()
    for row, (turn, loss) in enumerate(zip(turns, (total / len(steps)).tolist(), strict=True)):
        turn.learner.note_training(loss, len(steps), odometer, row)
    return Taken(local.how.lr, first.settings.momentum, local.taken)


def _architecture(model: nn.Module) -> str:
    """Return layers and shapes in words; equal words, equal computation."""
    shapes = [f"{name}{list(p.shape)}{p.requires_grad}" for name, p in model.named_parameters()]
    return f"{model} {shapes}"


def _linear(model: nn.Module) -> bool:
    """Return whether all layers that compute something are of :data:`LINEAR`."""
    leaves = [module for module in model.modules() if not list(module.children())]
    return all(isinstance(module, LINEAR) for module in leaves)
