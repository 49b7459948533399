"""The base of gossip rules (:class:`GossipRule`), and what they are given.

A rule works on rows: ``[1, length]`` on a device, ``[devices, length]`` where many are stepped at
once. It says what is sent of a block and what becomes of what arrived; it never asks who its
neighbours are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import pow
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from ..base.options import Group
from ..graph.spectral import groups_over_time
from ..graph.topology import Topology

State = dict[str, Tensor]
"""A rule's state of a block, kept from round to round."""
LARGEST_SCALE = 4.0
"""A device that took one step of a fleet's ten would multiply its noise by ten."""
Aggregate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(own ``[rows, length]``, near ``[rows, neighbours, length]``, weights ``[rows, 1 + neighbours]``)
to an aggregate ``[rows, length]``."""


@dataclass(frozen=True)
class Mix:
    """Received vectors of a block; ``mix(i)`` is the aggregate of the i-th vector that is sent.

    Attributes
    ----------
    own : tuple of Tensor
        The vectors that the device itself sent, ``[rows, length]`` each.
    near : tuple of Tensor
        Those of its neighbours, ``[rows, neighbours, length]``.
    weights : Tensor
        ``[rows, 1 + neighbours]``, the own first; rows sum to 1, 0 for one that has not arrived.
    aggregate : callable
        The aggregation rule.
    trained : Tensor or None
        The model as the last round has left it, ``[rows, length]``, where that is not what has been
        sent of it.
    kept : float
        The share of a vector's numbers that are sent in a round.
    late : Tensor or None
        By how many rounds neighbours' vectors are older than usual, as couriers have carried them,
        ``[rows, neighbours]``; None where none is.
    """

    own: tuple[Tensor, ...]
    near: tuple[Tensor, ...]
    weights: Tensor
    aggregate: Aggregate
    trained: Tensor | None = None
    kept: float = 1.0
    late: Tensor | None = None

    @property
    def z(self) -> Tensor:
        """The model as the last round has left it, ``[rows, length]``."""
        return self.own[0] if self.trained is None else self.trained

    def __call__(self, i: int) -> Tensor:
        """Return the aggregate ``[rows, length]`` of the own and the neighbours' i-th vector."""
        return self.aggregate(self.own[i], self.near[i], self.weights)


@dataclass(frozen=True)
class Steps:
    """The local steps of a block in a round.

    Attributes
    ----------
    lr : float
        The block's learning rate, > 0.
    momentum : float
        The run's ``momentum``, in [0, 1).
    taken : Tensor
        Steps that each parameter has taken, ``[rows, 1]`` where a block's all took as many, else
        ``[rows, length]``. Before the first step: 0.
    mean : float
        Steps that the devices that train this block take, on average, as planned: the same number
        on all its owners, but for rounding where a part of a device's iterations trains it.
    scale : float or Tensor
        What the progress of the round has been multiplied with (``gossip-normalise``), a number or
        ``[rows, 1]``.
    restarted : float
        The momentum that starts from 0 in every round; 0 where it is kept, or the rule's own.
    """

    lr: float
    momentum: float
    taken: Tensor
    mean: float = 0.0
    scale: float | Tensor = 1.0
    restarted: float = 0.0

    @property
    def carried(self) -> Tensor:
        """How far a gradient of 1 has carried each parameter, of the shape of ``taken``.

        Without momentum that is the sum of the learning rates of the steps taken.
        """
        return weight_of(self.taken, self.restarted) * self.lr * self.scale

    @property
    def common(self) -> float:
        """How far a gradient of 1 carries one that takes ``mean`` steps: equal on all owners."""
        return weight_of(self.mean, self.restarted) * self.lr


Number = TypeVar("Number", float, Tensor)


def weight_of(steps: Number, restarted: float) -> Number:
    """Return the sum of the weights that the gradients of so many steps have in their sum.

    With momentum b from 0 the s-th last gradient counts ``1 + b + ... + b^(s-1)`` times.
    """
    if not restarted:
        return steps
    if isinstance(steps, Tensor):
        exact = steps.double()  # it is a difference
        return _weight_of(exact, torch.pow(restarted, exact), restarted).to(steps.dtype)
    return _weight_of(steps, pow(restarted, steps), restarted)


def _weight_of(steps: Number, power: Number, restarted: float) -> Number:
    return (steps - restarted * (1 - power) / (1 - restarted)) / (1 - restarted)


class GossipRule:
    """Plain gossip, unless overridden: send the model, take the aggregate of the neighbourhood.

    A round of a block is ``mixed``, then local steps, then ``publish``. A local step makes of a
    gradient its ``direction``, of that what the momentum makes of it, and follows ``step`` of this.
    Each is a pure function of rows and of the rule's state.

    Parameters
    ----------
    options : Group
        An instance of ``options_type``.
    """

    name: ClassVar[str] = ""
    """Name of the rule in the run config."""
    paper: ClassVar[str] = "this project"
    """Source of the rule."""
    references: ClassVar[tuple[str, ...]] = ()
    """Keys of its papers in ``flwr_dmml/references.bib``."""
    options_type: ClassVar[type[Group]] = Group
    sends: ClassVar[tuple[Literal["block", "number"], ...]] = ("block",)
    """Parts sent for a block: vectors of its length, and single numbers; a vector comes first."""
    addressed: ClassVar[bool] = False
    """Whether every neighbour gets vectors of its own, ``[rows, neighbours, length]``."""
    momentum: ClassVar[Literal["round", "kept", "own"]] = "round"
    """The local optimiser's momentum: begun anew in each round, kept, or replaced by the rule's."""
    sgd: ClassVar[bool] = False
    """Whether it reads gradients off a round's progress, and so goes with ``optimizer = "sgd"``."""
    normalised: ClassVar[bool] = True
    """Whether ``gossip-normalise`` means something: the rule has no such correction of its own."""
    linear: ClassVar[bool] = False
    """Whether the rule keeps a sum over devices, and so goes with the weighted mean only, and with
    weights that are equal at both ends of a link."""
    resets: ClassVar[bool] = False
    """Whether all owners of a block start anew (:meth:`start`) when one comes or goes, or when one
    has not got what the others have."""
    static: ClassVar[bool] = False
    """Whether the mixing weights must stay the same from round to round."""
    loss: ClassVar[Literal["own", "pair", "sender"]] = "own"
    """What becomes of a lost message: its weight goes to the receiver's own copy; that of the
    message the other way to the sender's, too, as the rule keeps a sum over devices; or the sender
    keeps its share."""
    coded: ClassVar[bool] = False
    """Whether neighbours get what has changed in a vector, compressed, and keep copies of it
    (:class:`~.copies.Copies`). :class:`Mix` then has the copies, of the own vectors as well."""
    pushes: ClassVar[bool] = False
    """Whether it goes with links of one way: a sender deals out what it has, by weights that sum to
    1 over the receivers, and the rule undoes what is uneven in what arrives."""
    whole: ClassVar[bool] = False
    """Whether a block must be sent whole (``exchange.top-k = 1``)."""
    letters: ClassVar[Literal["beat", "newest", "every"]] = "beat"
    """What is mixed where devices do not wait for one another (``rounds = "async"``): the newest
    letter of each neighbour, again until a newer one comes; or every letter once, as each holds a
    share of a sum. "beat": the rule needs the same round of all, or does not say."""

    def __init__(self, options: Group) -> None:
        self.options = options

    @classmethod
    def sends_models(cls) -> bool:
        """Return whether a neighbour gets the trained model as it is, and nothing else of it."""
        return cls.publish is GossipRule.publish and not (cls.addressed or cls.coded or cls.pushes)

    def graph_problem(self, topology: Topology, num_nodes: int, seed: int) -> str:
        """Return why the rule cannot run on this graph; empty if it can."""
        if self.static and topology.time_varying:
            return "this graph changes every round, and the rule needs weights that stay the same"
        if self.pushes and len(groups := groups_over_time(topology, num_nodes, seed=seed)) > 1:
            return (
                f"devices {groups[0][0]} and {groups[1][0]} cannot reach one another both ways "
                f"({len(groups)} groups), and weight would gather in one of them"
            )
        if topology.directed and not self.pushes:
            if self.linear or self.static:
                return "its links are one-way, and the rule needs both ways; allowed with it: sgp"
            if not topology.even:
                return (
                    "its links go one way, and a device that more hear would weigh more; allowed "
                    "with it: sgp"
                )
        return ""

    def beat_problem(self) -> str:
        """Return why the rule needs rounds in which all wait for all; empty if it does not."""
        if self.letters != "beat":
            return ""
        if self.addressed:
            return "each of its messages continues the sums of the round before"
        if self.coded:
            return "it sends changes, each of which must be taken up once and in order"
        if self.linear:
            return "it keeps a sum over devices, which a letter mixed twice or never changes"
        if self.static:
            return "its correction compares models of one round, under weights that stay the same"
        return "it does not say that it can do without (GossipRule.letters)"

    def problem(self, vectors: Sequence[Tensor], num_nodes: int) -> str | None:
        """Return what is wrong with a neighbour's vectors besides type, shape and range.

        ``vectors`` are ``[length]`` each, in the order of ``sends``; ``num_nodes`` are in the run.
        """
        return None

    def weigh(self, weights: Tensor, near: Sequence[Tensor]) -> Tensor:
        """Return the weights to mix with, given those of the graph and what has arrived."""
        return weights

    def model_of(self, vectors: Sequence[Tensor]) -> Tensor:
        """Return the model in what is sent, of the shape of the first vector."""
        return vectors[0]

    def start(self, x: Tensor) -> State:
        """Return the state before the first round, of a block ``[rows, length]``."""
        return {}

    def mixed(self, mix: Mix, state: State) -> tuple[Tensor, State]:
        """Return where training begins, ``[rows, length]``, from what has arrived."""
        return mix(0), state

    def direction(self, g: Tensor, state: State, steps: Steps) -> Tensor:
        """Return the direction of a local step in place of the gradient ``[rows, length]``."""
        return g

    def step(self, v: Tensor, state: State, steps: Steps) -> Tensor:
        """Return what a step of SGD follows in place of the momentum ``v`` ``[rows, length]``.

        Without momentum ``v`` is the direction.
        """
        return v

    def publish(
        self, x: Tensor, z: Tensor, state: State, steps: Steps | None
    ) -> tuple[tuple[Tensor, ...], State]:
        """Return what is sent, as :attr:`sends` says, and the state to keep.

        Parameters
        ----------
        x, z : Tensor
            Where the round's training began and where it ended, ``[rows, length]``.
        state : State
            As :meth:`mixed` left it.
        steps : Steps or None
            None of a device that did not train in this round.
        """
        return (z,), state


def nothing_taken(x: Tensor) -> Tensor:
    """Return ``taken`` ``[rows, 1]`` before the first step."""
    return torch.zeros(len(x), 1, device=x.device)


def number(x: Tensor, value: float) -> Tensor:
    """Return a number of a block ``[rows, length]``: ``[rows, 1]``."""
    return torch.full_like(x[:, :1], value)
