"""Which devices of a process are alike, and their training as one stack."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from ..models.stacked import in_words
from ..payload.plan import Inbox, Plan
from .learner import Learner
from .mixing import Taken
from .training import train

_architectures: "WeakKeyDictionary[Learner, tuple[int, str]]" = WeakKeyDictionary()


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


@dataclass(frozen=True)
class Likeness:
    """What devices that can train as one stack have in common.

    Attributes
    ----------
    method : hashable
        Devices with an equal one do together what comes after their training, too, whatever their
        models.
    architecture : str
        Layers and shapes of their models.
    """

    method: Hashable
    architecture: str


def likeness(learner: Learner, plan: Plan) -> Likeness | None:
    """Return what a device has in common with others; None for one that trains alone.

    That depends on the device and its plan alone, not on who else is there.
    """
    if not plan.iterations or not learner.stacks_now():
        return None
    known = _architectures.get(learner)
    if known is None or known[0] != id(learner.model):
        known = id(learner.model), in_words(learner.model)
        _architectures[learner] = known
    when = plan.server_round, plan.num_rounds, plan.phase
    return Likeness((type(learner), learner.device, when, learner.stack_key()), known[1])


def train_together(stacks: Sequence[Sequence[Turn]]) -> list[Taken]:
    """Train devices of one :attr:`Likeness.method`, which have begun their round; or a single one.

    Those of a stack have the same likeness. Returns the steps of each device, stack by stack.
    """
    return train([[(turn.learner, turn.plan) for turn in stack] for stack in stacks])


def finish_together(turns: Sequence[Turn]) -> None:
    """Do what a method does after training, for devices of one :attr:`Likeness.method`."""
    for turn in turns:
        if turn.learner.listens:  # its hooks read the model
            turn.learner.flat.attach()
    type(turns[0].learner).after_stack([(turn.learner, turn.plan, turn.inbox) for turn in turns])
