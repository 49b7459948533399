"""Plan of a node for a round, and outcome of the round. Independent of Flower."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from math import inf, isfinite

from torch import Tensor

Payload = dict[str, Tensor]
"""Published by a node: block name -> flat float32 vector, and statistics (``stats.…``)."""

Inbox = dict[int, Payload]
"""The neighbours' payloads of the last round, by partition id."""


@dataclass(frozen=True)
class Carried:
    """Blocks of a device that are no neighbour's own: a courier brings them.

    Attributes
    ----------
    origin : int
        Whose they are; :func:`mean_of` a courier for the mean that it makes.
    via : int
        The neighbour whose payload holds them: a courier, or of what a courier takes on the device
        itself.
    blocks : tuple of str
        Their names, in the order of :class:`Apart` where they are sealed apart.
    couriers : int
        How many have carried what is brought; each took a round.
    """

    origin: int
    via: int
    blocks: tuple[str, ...]
    couriers: int = 1

    @property
    def is_mean(self) -> bool:
        """Whether it is a mean of several devices' blocks, made by the courier."""
        return self.origin == mean_of(self.via)


def mean_of(courier: int) -> int:
    """Return what stands for the mean that a courier makes, in place of a partition id: below 0."""
    return -1 - courier


@dataclass(frozen=True)
class Averaged:
    """A block that is no own one: a courier publishes the mean of its neighbours'.

    Attributes
    ----------
    block : str
        Its name.
    origins : tuple of int
        Partition ids of the neighbours whose mean it is.
    length : int
        Of the block, which the courier does not own.
    """

    block: str
    origins: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class Apart:
    """Blocks that are sealed apart from the rest of a payload, as couriers carry them.

    Attributes
    ----------
    blocks : tuple of str
        Their names.
    readers : tuple of int
        Partition ids of those who may read them: owners, near and far.
    """

    blocks: tuple[str, ...]
    readers: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """One node's part in one round.

    Attributes
    ----------
    server_round : int
        The round, from 1.
    iterations : int
        Mini-batches to train; 0 in the closing message, which only mixes and evaluates.
    evaluate : bool
        Whether to evaluate the mixed model, before training.
    neighbours : tuple of int
        Partition ids of the live neighbours whose payloads are in the inbox.
    weights : dict of str to tuple of float
        For each block: this node's own mixing weight, then that of each of :attr:`sources` (0 for
        one that does not own the block). They sum to 1, unless senders deal out shares.
    by_modality : dict of str to int
        Encoder updates of modalities that do not get ``iterations``. A device whose modalities all
        get 0 is parked: it publishes what it has mixed.
    steps : dict of str to float
        How many updates of a modality's encoder the devices that train it get in this round, on
        average; under ``""``, how many iterations in all.
    anew : tuple of str
        Blocks whose owners have changed: all of them let the gossip rule start anew, once they have
        mixed what has come.
    num_rounds : int
        Rounds of the whole run, for learning-rate schedules; 0 where the run config tells.
    budget_j : float
        The most that this round's computing may cost, J; inf where nobody counts.
    phase : str
        What the method is to do in this round besides training; empty for methods without phases.
    recipients : tuple of int
        Partition ids of the devices that this round's payload is for.
    shares : dict of str to tuple of float
        For each block, where every neighbour gets another copy: the weight with which this node is
        to mix its own of this round's, then that of each of ``recipients``; empty otherwise.
    partners : dict of str to tuple of int
        For what is addressed to a recipient (``block@3``), where it learns a sum only: partition
        ids of all whose parts it adds up, this node among them. There are two at least.
    keys : dict of int to bytes
        Their public keys, by partition id.
    far : tuple of Carried
        What couriers among the neighbours have brought: it is mixed, too.
    carries : tuple of Carried
        What this node is to publish, unread, for others: it is a courier.
    averages : tuple of Averaged
        Of what this node is to publish the mean, for those whose mean it is: it is a hub.
    apart : tuple of Apart
        Which of its own blocks this node seals apart, where payloads are sealed.
    resend : tuple of int
        Recipients that lack something of what earlier rounds have sent.
    merges : bool
        Whether this round trains nothing and publishes the blocks as they are: the final merge.
    merged : bool
        Whether what has come was published so.
    hand_over : bool
        Whether the reply is to hold the models that are to be kept, see
        :func:`~flwr_dmml.clients.models.models_of`: a simulation asks for them.
    sent : Plan or None
        The plan as it would be if no message had been lost; None where none has been. The node is
        not told.
    """

    server_round: int
    iterations: int
    evaluate: bool = False
    neighbours: tuple[int, ...] = ()
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    num_rounds: int = 0
    by_modality: dict[str, int] = field(default_factory=dict)
    budget_j: float = inf
    phase: str = ""
    recipients: tuple[int, ...] = ()
    shares: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    partners: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    keys: Mapping[int, bytes] = field(default_factory=dict)
    far: tuple[Carried, ...] = ()
    carries: tuple[Carried, ...] = ()
    averages: tuple[Averaged, ...] = ()
    apart: tuple[Apart, ...] = ()
    steps: Mapping[str, float] = field(default_factory=dict)
    anew: tuple[str, ...] = ()
    resend: tuple[int, ...] = ()
    merges: bool = False
    merged: bool = False
    hand_over: bool = False
    sent: "Plan | None" = None

    @property
    def as_sent(self) -> "Plan":
        """The plan by which neighbours have sent, whether or not it has arrived."""
        return self.sent or self

    @property
    def sources(self) -> tuple[int, ...]:
        """Ids of those whose blocks are mixed: the neighbours, then the origins of :attr:`far`."""
        return (*self.neighbours, *(there.origin for there in self.far))

    def without(self, missing: Collection[int], *, kept: bool = True) -> "Plan":
        """Return the plan without some neighbours, and without what they were to bring.

        Their weights go to the own copy; or to nobody, if they are not ``kept``.
        """
        ways = [*self.neighbours, *(there.via for there in self.far)]
        gone = [k for k, way in enumerate(ways) if way in missing]
        here = [k for k in range(len(ways)) if k not in gone]
        weights = {
            block: (own + kept * sum(others[k] for k in gone), *(others[k] for k in here))
            for block, (own, *others) in self.weights.items()
        }
        return replace(
            self,
            neighbours=tuple(n for n in self.neighbours if n not in missing),
            weights=weights,
            far=tuple(there for there in self.far if there.via not in missing),
            carries=tuple(there for there in self.carries if there.via not in missing),
            averages=tuple(
                replace(mean, origins=tuple(j for j in mean.origins if j not in missing))
                for mean in self.averages
            ),
        )


@dataclass(frozen=True)
class Outcome:
    """Outcome of a round on one node.

    Attributes
    ----------
    payload : Payload
        For the neighbours; empty after the closing message.
    metrics : dict of str to float
        ``train.loss``, ``train.iterations``, ``speed.<modality>``, ``near.<modality>`` (mean speed
        over the device and its neighbours); with neighbours
        ``mix.disagreement``; of methods that label a public set ``labels.…``; when evaluated
        ``test.accuracy``, ``test.accuracy_own_shares``, ``test.macro_f1`` and ``test.uar`` (from
        all own modalities),
        ``test.accuracy.<modality>`` (from it alone), ``validation.accuracy``, of
        a device with several modalities ``test.without.<modality>`` (from all its others), and with
        ``missing.test-share`` ``test.missing`` (each sample from what it then has); ``test.ece``
        and ``test.ece_uncalibrated`` (:func:`~flwr_dmml.learning.calibration.errors_of`), with
        ``test-fusion`` ``test.temperature.<modality>``; with ``serve`` ``serve.own``. A
        number that does not exist, NaN or infinite, is left out.
    rejected : list of str
        What was wrong with neighbours' payloads, for the log.
    meter_problem : str
        Why the round's joules could not be measured; empty where they were, or need not be.
    """

    payload: Payload
    metrics: dict[str, float]
    rejected: list[str]
    meter_problem: str = ""

    def __post_init__(self) -> None:
        for name in [name for name, value in self.metrics.items() if not isfinite(value)]:
            del self.metrics[name]
