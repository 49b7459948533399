"""Rounds of a device that does not wait for its neighbours: it mixes what has come."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from ..learning.learner import Learner
from ..payload.plan import Outcome, Payload, Plan
from ..transport.letter import Letter
from ..transport.messages import BEGAN_S, ENDED_S, FETCHED_BYTES, LETTER_AGE
from .direct import Link, publish
from .metering import NodeConfig, run_metered

BOX = "box."
"""Prefix of letters, in what a device keeps between messages."""


class Mailbox(Link, Protocol):
    """Carrier of letters that come by themselves, see :class:`.DirectLink`."""

    @property
    def bytes_sent(self) -> int:
        """Bytes of all letters that were sent."""

    def listen(self, peers: Mapping[int, str], known: Mapping[int, int]) -> dict[int, str]:
        """Fetch newer letters from now on; return who cannot be asked, and why."""

    def arrived(self) -> tuple[dict[int, Letter], dict[int, str]]:
        """Return the newest letters since the last call, and why others were refused."""


@dataclass(frozen=True)
class Kept:
    """The newest letter of a neighbour, or the device's own last one.

    Attributes
    ----------
    number : int
        The sender's round.
    came : int
        Rounds that this device had begun when it came.
    tensors : Payload
        What it holds.
    """

    number: int
    came: int
    tensors: Payload


def run_at_own_pace(
    learner: Learner,
    plans: Sequence[Plan],
    peers: Mapping[int, str],
    link: Mailbox,
    run: str,
    kept: Payload,
    max_staleness: int,
    node_config: NodeConfig,
    shared: Collection[str],
) -> tuple[list[Outcome], Payload]:
    """Run the rounds of a message, one after another; nobody is waited for.

    Each round mixes the newest letter of each neighbour that is at most ``max_staleness`` of this
    device's own rounds old, as :class:`~flwr_dmml.strategies.event_time.EventTime` has it; the
    others' weights go to the own copy. Letters come in the background, and are kept from message to
    message, in which no letter comes.

    The closing message, after which all have ended, is the one beat of a run: each device waits for
    the last letters of its neighbours, for at most ``exchange.timeout-s`` seconds.

    Parameters
    ----------
    learner : Learner
        With the state of the round before.
    plans : sequence of Plan
        Of consecutive rounds of this device; one without iterations closes the run.
    peers : mapping of int to str
        Addresses of the neighbours, by partition id.
    link : Mailbox
        Open.
    run : str
        Id of the run.
    kept : Payload
        What the last message has left: see below.
    max_staleness : int
        At least 0.
    node_config : mapping
        See :func:`~.metering.measures`.
    shared : collection of str
        Blocks that letters hold, see :func:`~.direct.in_letters`.

    Returns
    -------
    list of Outcome
        With when each round was, and which letters it mixed, in its metrics.
    Payload
        To keep until the next message: the own last letter, and the neighbours' newest.
    """
    me, timeout_s = learner.partition.partition_id, learner.settings.exchange.timeout_s
    box, came_to = _read(kept), monotonic()
    if own := box.pop(me, None):
        link.publish(Letter(run, me, own.number, own.tensors))
    closing = not plans[0].iterations
    if not closing:
        refused = link.listen(peers, {n: letter.number for n, letter in box.items()})
    outcomes: list[Outcome] = []
    fetched = 0
    for plan in plans:
        begun = plan.server_round - 1  # rounds, before this one
        if closing:  # any letter will do: the newest comes
            letters, refused = link.collect(peers, 1, timeout_s, 0.0)
        else:
            letters, others = link.arrived()
            refused |= others
        box |= {n: Kept(x.server_round, begun, dict(x.tensors)) for n, x in letters.items()}
        box = {n: x for n, x in box.items() if x.came >= begun - max_staleness}
        began_s = monotonic() - came_to
        mixes = plan.without([n for n in plan.neighbours if n not in box])
        inbox = {n: box[n].tensors for n in mixes.neighbours}
        outcome = run_metered(learner, mixes, inbox, node_config)
        near = sorted(refused.keys() & {*plan.neighbours})
        outcome.rejected.extend(f"{n}: {refused[n]}" for n in near)
        refused = {}
        if outcome.payload:
            letter = Letter(run, me, plan.server_round, {})
            sent = publish(outcome, letter, link, shared, plan.recipients)
            own = Kept(plan.server_round, plan.server_round, sent)
        ended_s = monotonic() - came_to
        if closing:
            link.linger(list(peers), 1, timeout_s)
        told = {
            BEGAN_S: began_s,
            ENDED_S: ended_s,
            FETCHED_BYTES: float(link.bytes_sent - fetched),
            **{f"{LETTER_AGE}{n}": float(begun - box[n].came) for n in mixes.neighbours},
        }
        outcome.metrics.update(told)
        fetched = link.bytes_sent
        outcomes.append(outcome)
    return outcomes, _written(box | ({me: own} if own else {}))


def _written(box: Mapping[int, Kept]) -> Payload:
    return {
        f"{BOX}{n}.{x.number}.{x.came}.{name}": tensor
        for n, x in box.items()
        for name, tensor in x.tensors.items()
    }


def _read(kept: Payload) -> dict[int, Kept]:
    box: dict[int, Kept] = {}
    for key, tensor in kept.items():
        if key.startswith(BOX):
            sender, number, came, name = key.removeprefix(BOX).split(".", 3)
            own = box.setdefault(int(sender), Kept(int(number), int(came), {}))
            own.tensors[name] = tensor
    return box
