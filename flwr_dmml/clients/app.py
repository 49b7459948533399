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

from ..data import Dataset
from ..gossip.aggregation.rule import AggregationRule
from ..gossip.rule import GossipRule
from ..graph.topology import Topology
from ..learning.evaluation import confusion, predictions
from ..learning.learner import Learner
from ..learning.together import Turn, likeness, run_together
from ..settings import OwnParts
from ..transport.messages import (
    ABOUT,
    CONFUSION,
    INITIAL,
    NOTES,
    PLAN,
    STATE,
    pack,
    read_inbox,
    read_plan,
    read_plans,
    unpack,
)
from .hello import introduction
from .hosting import learner_for
from .metering import metered_alone
from .own_state import OwnState
from .sealing import lock_state, unlock_state
from .transports import records, transport_of

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
            content, kept = records(result, turn.learner.state())
            context.state[STATE] = _held[turn.learner] = kept
            replies.append(Message(content, reply_to=message))
        return replies


def make_client_app(
    *learners: type[Learner],
    gossip: Iterable[type[GossipRule]] = (),
    aggregation: Iterable[type[AggregationRule]] = (),
    datasets: Iterable[Dataset] = (),
    topologies: Iterable[type[Topology]] = (),
) -> ClientApp:
    """Return a ClientApp that trains with whatever method the server names.

    Give it to ``make_server_app`` as ``client_app``, which then knows the same parts.

    Parameters
    ----------
    *learners : type[Learner]
        Methods of your own, besides the registered ones.
    gossip : iterable of type[GossipRule]
        Gossip rules of your own.
    aggregation : iterable of type[AggregationRule]
        Aggregation rules of your own.
    datasets : iterable of Dataset
        Data sets of your own.
    topologies : iterable of type[Topology]
        Families of graphs of your own, with a ``name``.

    Examples
    --------
    >>> app = make_client_app()  # in client_app.py
    """
    own = OwnParts(learners, tuple(gossip), tuple(aggregation), tuple(datasets), tuple(topologies))
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
    content, kept = transport_of(message.content, context).run(learner, plans, message.content)
    reply = Message(content, reply_to=message)
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


def _is(record: ArrayRecord, held: ArrayRecord | None) -> bool:
    """Return whether these are the very arrays of the state that a learner still holds."""
    if held is None or record.keys() != held.keys():
        return False
    return all(array is held[name] for name, array in record.items())
