"""The ClientApp of every method: keeps a learner's state in Flower's context, runs its rounds."""

from collections.abc import Hashable, Iterable, Sequence
from weakref import WeakKeyDictionary

import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from torch import Tensor

from ..gossip.aggregation.rule import AggregationRule
from ..gossip.rule import GossipRule
from ..learning.evaluation import confusion, predictions
from ..learning.learner import Learner
from ..learning.together import Turn, likeness, run_together
from ..payload.plan import Outcome, Payload, Plan
from ..settings import OwnParts
from ..transport.arrays import record_of
from ..transport.messages import (
    ABOUT,
    CONFUSION,
    INITIAL,
    METRICS,
    NOTES,
    PAYLOAD,
    PEERS,
    PLAN,
    REPORT,
    STATE,
    join,
    pack,
    read_inbox,
    read_peers,
    read_plan,
    read_plans,
    unpack,
    write_report,
)
from .direct import SENT, open_link, run_directly
from .hello import introduction
from .hosting import learner_for
from .metering import metered_alone, run_metered
from .own_state import OwnState
from .sealing import encrypts, lock_state, run_sealed, unlock_state

_held: WeakKeyDictionary[Learner, ArrayRecord] = WeakKeyDictionary()
"""The state that a learner of this process has been left with: it is not loaded again."""
TOGETHER = 64
"""Devices that train together at most: on a CPU more are no faster, and take memory."""


class PeerClientApp(ClientApp):
    """A ClientApp that can also answer for several devices at once, for an engine that asks.

    Parameters
    ----------
    own : OwnParts
        Parts of the app's own.
    """

    def __init__(self, own: OwnParts) -> None:
        super().__init__()
        self.own = own

    def groups(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[list[int]]:
        """Return the positions of messages by who can answer together; all, each once, in order."""
        alike = dict[Hashable, list[int]]()
        for i, (message, context) in enumerate(zip(messages, contexts, strict=True)):
            try:
                common = self._likeness(message, context)
            except Exception:  # this device is asked alone, and its reply says what is wrong
                common = None
            alike.setdefault(common or i, []).append(i)
        return [
            group[start : start + TOGETHER]
            for group in alike.values()
            for start in range(0, len(group), TOGETHER)
        ]

    def _likeness(self, message: Message, context: Context) -> Hashable | None:
        content, state = message.content, context.state.array_records
        if message.metadata.message_type != MessageType.TRAIN or STATE not in state:
            return None
        if INITIAL in content.array_records or metered_alone(context.run_config):
            return None
        learner = learner_for(message, context, self.own)
        common = likeness(learner, read_plan(content.config_records[PLAN]))
        return common and (tuple(sorted(context.run_config.items())), common)

    def answer_together(
        self, messages: Sequence[Message], contexts: Sequence[Context]
    ) -> list[Message | Exception]:
        """Answer messages of one group: a reply or what went wrong, for each."""
        turns: list[Turn] = []
        for message, context in zip(messages, contexts, strict=True):
            learner = learner_for(message, context, self.own)
            _take_up(learner, context)
            plan = read_plan(message.content.config_records[PLAN])
            turns.append(Turn(learner, plan, read_inbox(message.content)))
        replies: list[Message | Exception] = []
        for turn, message, context, result in zip(
            turns, messages, contexts, run_together(turns), strict=True
        ):
            if isinstance(result, Exception):
                replies.append(result)
                continue
            reply, kept = _records(message, result, turn.learner.state())
            context.state[STATE] = _held[turn.learner] = kept
            replies.append(reply)
        return replies


def make_client_app(
    *learners: type[Learner],
    gossip: Iterable[type[GossipRule]] = (),
    aggregation: Iterable[type[AggregationRule]] = (),
) -> ClientApp:
    """Return a ClientApp that trains with whatever method the server names.

    Parameters
    ----------
    *learners : type[Learner]
        Methods of your own, besides the registered ones.
    gossip : iterable of type[GossipRule]
        Gossip rules of your own.
    aggregation : iterable of type[AggregationRule]
        Aggregation rules of your own.

    Give the app to ``make_server_app``, which then knows the same parts.

    Examples
    --------
    >>> app = make_client_app()  # in client_app.py
    """
    own = OwnParts(learners, tuple(gossip), tuple(aggregation))
    app = PeerClientApp(own)  # its functions travel to other processes: they only call others

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        return _hello(message, context, own)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _round(message, context, own)

    @app.query("state")
    def state(message: Message, context: Context) -> Message:
        return _state(message, context)

    @app.query("restore")
    def restore(message: Message, context: Context) -> Message:
        return _restore(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _round(message, context, own)

    return app


def _hello(message: Message, context: Context, own: OwnParts) -> Message:
    """Start afresh, and say who this device is and what its work costs."""
    learner = learner_for(message, context, own)
    _held.pop(learner, None)
    about = introduction(learner, context)
    OwnState(context, learner.name).begin(lambda: pack(learner.state()))
    return Message(RecordDict({ABOUT: about}), reply_to=message)


def _method(message: Message) -> str:
    return str(message.content.config_records[PLAN]["method"])


def _confusion(learner: Learner) -> list[int]:
    """Return how often each class is taken for each; [] for a method with a measure of its own."""
    if type(learner).evaluate is not Learner.evaluate:
        return []
    part, test = learner.partition, learner.test_data
    found = predictions(learner.predict, test, [part.modalities])[part.modalities]
    counts: list[int] = confusion(found, test.labels, part.num_classes).flatten().tolist()
    return counts


def _state(message: Message, context: Context) -> Message:
    """Give back what this device keeps from round to round, for a checkpoint."""
    recovered = OwnState(context, _method(message)).recover()
    kept = context.state.array_records.get(STATE, ArrayRecord())
    reply = RecordDict({STATE: lock_state(context, kept)})
    if recovered:
        reply[NOTES] = _recovered(recovered)
    return Message(reply, reply_to=message)


def _recovered(when: str) -> ConfigRecord:
    return ConfigRecord({NOTES: [f"goes on from what it has kept on its disk, {when}"]})


def _restore(message: Message, context: Context) -> Message:
    """Take up what a checkpoint held: empty, this device starts afresh."""
    if kept := unlock_state(context, message.content.array_records[STATE]):
        OwnState(context, _method(message)).keep(kept, "of the run that was resumed")
    return Message(RecordDict(), reply_to=message)


def _round(message: Message, context: Context, own: OwnParts) -> Message:
    """Take up the state, run the round, put the state back."""
    learner = learner_for(message, context, own)
    own_state = OwnState(context, learner.name)
    recovered = own_state.recover()
    _take_up(learner, context)
    if INITIAL in message.content.array_records:
        learner.load_state(unpack(message.content.array_records[INITIAL]))

    plans = read_plans(message.content)
    if PEERS in message.content.config_records:
        reply, kept = _rounds_directly(message, context, learner, plans)
    elif encrypts(context):
        outcome, sealed = run_sealed(learner, plans[0], message.content, context)
        reply, kept = _records(message, outcome, learner.state())
        if sealed:
            reply.content[PAYLOAD] = sealed
    else:
        outcome = run_metered(learner, plans[0], read_inbox(message.content), context.node_config)
        reply, kept = _records(message, outcome, learner.state())
    own_state.keep(kept, f"after round {plans[-1].server_round}")
    if recovered:
        reply.content[NOTES] = _recovered(recovered)
    closing = plans[-1].evaluate and not plans[-1].iterations
    if closing and (counts := _confusion(learner)):
        reply.content[CONFUSION] = MetricRecord({CONFUSION: counts})
    _held[learner] = kept
    return reply


def _take_up(learner: Learner, context: Context) -> None:
    """Bring a learner to the state that its device has kept."""
    torch.set_num_threads(learner.settings.torch_threads)
    held = _held.pop(learner, None)  # a round that fails leaves a learner that holds no known state
    if STATE not in context.state.array_records:
        learner.reset()
    elif not _is(context.state.array_records[STATE], held):
        learner.load_state(unpack(context.state.array_records[STATE]))


def _rounds_directly(
    message: Message, context: Context, learner: Learner, plans: Sequence[Plan]
) -> tuple[Message, ArrayRecord]:
    """Run a message's rounds with the neighbours themselves; return numbers, and what is kept."""
    before = unpack(context.state.array_records.get(STATE, ArrayRecord()))
    sent = {k.removeprefix(SENT): v for k, v in before.items() if k.startswith(SENT)}
    me, exchange = learner.partition.partition_id, learner.settings.exchange
    peers = read_peers(message.content)
    with open_link(context, exchange, me) as link:
        run, own = str(context.run_id), context.node_config
        outcomes, sent = run_directly(learner, plans, peers, link, run, sent, own)
    reply = RecordDict({METRICS: MetricRecord(join(outcome.metrics for outcome in outcomes))})
    if report := join(map(write_report, outcomes)):
        reply[REPORT] = ConfigRecord(report)
    kept = pack(learner.state() | {SENT + k: v for k, v in sent.items()})
    return Message(reply, reply_to=message), kept


def _records(message: Message, outcome: Outcome, state: Payload) -> tuple[Message, ArrayRecord]:
    """Write what a device gives back after a round, and what it keeps: once, where it is equal."""
    reply = RecordDict({METRICS: MetricRecord(dict(outcome.metrics))})
    payload = pack(outcome.payload)
    if payload:
        reply[PAYLOAD] = payload
    if report := write_report(outcome):
        reply[REPORT] = report
    kept = pack({k: v for k, v in state.items() if not _is_in(v, outcome.payload.get(k))})
    shared = {k: payload[k] if k in payload and k not in kept else kept[k] for k in state}
    return Message(reply, reply_to=message), record_of(shared)


def _is_in(value: Tensor, published: Tensor | None) -> bool:
    """Return whether a value of the state has been published as it is."""
    if published is None or published.dtype != value.dtype:  # equal numbers are not enough
        return False
    return value is published or torch.equal(value, published)


def _is(record: ArrayRecord, held: ArrayRecord | None) -> bool:
    """Return whether these are the very arrays of the state that a learner still holds."""
    if held is None or record.keys() != held.keys():
        return False
    return all(array is held[name] for name, array in record.items())
