"""Rounds of many devices in one process: those that are alike train as one stack."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

from ..payload.plan import Inbox, Outcome, Plan
from .learner import Learner
from .mixing import Taken
from .nonfinite import NonFiniteModelError
from .training import train

_architectures: "WeakKeyDictionary[Learner, tuple[int, Hashable]]" = WeakKeyDictionary()


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


def likeness(learner: Learner, plan: Plan) -> Hashable | None:
    """Return what devices that can train as one stack have in common; None for one that cannot.

    That depends on the device and its plan alone, not on who else is there.
    """
    if not plan.iterations or not learner.stacks_now():
        return None
    known = _architectures.get(learner)
    if known is None or known[0] != id(learner.model):
        known = id(learner.model), _architecture(learner.model)
        _architectures[learner] = known
    key = learner.stack_key()
    return (
        type(learner),
        learner.device,
        known[1],
        plan.server_round,
        plan.num_rounds,
        plan.phase,
        key,
    )


def run_together(turns: Sequence[Turn]) -> list[Outcome | Exception]:
    """Run the round of devices with the same likeness.

    Returns
    -------
    list of Outcome or Exception
        Of every device what its ``run_round`` would return, or raise. A device that fails takes
        nobody with it.
    """
    results: dict[int, Outcome | Exception] = {}
    going: dict[int, Turn] = {}
    for k, turn in enumerate(turns):
        learner, plan = turn.learner, turn.plan
        try:
            with learner.in_round(plan):
                going[k] = Turn(learner, plan, learner.begin(plan, turn.inbox))
                if learner.trains(plan):
                    learner.before_training(plan, going[k].inbox)
        except Exception as error:  # its own reply says so
            going.pop(k, None)
            results[k] = error
    training = [k for k, turn in going.items() if turn.learner.trains(turn.plan)]
    taken: dict[int, Taken] = {}
    if training:
        groups: dict[Hashable, list[int]] = {}
        for k in training:  # again: a round's stage or labels are known once it has begun
            groups.setdefault(likeness(going[k].learner, going[k].plan) or k, []).append(k)
        for group in groups.values():
            taken |= dict(zip(group, train_together([going[k] for k in group]), strict=True))
    for k, turn in going.items():
        try:
            results[k] = turn.learner.finish(turn.plan, turn.inbox, taken.get(k))
        except NonFiniteModelError as error:
            results[k] = error
    return [results[k] for k in range(len(turns))]


def train_together(turns: Sequence[Turn]) -> list[Taken]:
    """Train devices with the same likeness, which have begun their round; or a single one."""
    found = train([(turn.learner, turn.plan) for turn in turns])
    for turn in turns:
        if turn.learner.listens:  # its hooks read the model
            turn.learner.flat.attach()
    type(turns[0].learner).after_stack([(turn.learner, turn.plan, turn.inbox) for turn in turns])
    return found


def _architecture(model: nn.Module) -> str:
    """Return layers and shapes in words; equal words, equal computation."""
    shapes = [f"{name}{list(p.shape)}{p.requires_grad}" for name, p in model.named_parameters()]
    return f"{model} {shapes}"
