"""The ClientApp of every method: keeps a learner's state in Flower's context, runs its rounds."""

from collections.abc import Callable, Iterable, Mapping

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from ..data import Dataset
from ..gossip.aggregation.rule import AggregationRule
from ..gossip.rule import GossipRule
from ..graph.topology import Topology
from ..learning.learner import Learner
from ..settings import OwnParts
from ..transport.messages import (
    ABOUT,
    CONFUSION,
    INITIAL,
    PLAN,
    PRIVATE,
    SECRET,
    STATE,
    add_note,
    pack,
    read_plans,
    unpack,
)
from ..transport.packing import is_packed, packed, unpacked
from .hello import introduction
from .hosted import HostedDevices, Node
from .hosting import learner_for
from .models import add_models
from .noting import Note, noting
from .own_state import OwnState
from .required import check_required, check_understood
from .sealing import lock_state, unlock_state
from .state import begin_afresh, confusion_of, hold, take_up
from .transports import transport_of


class PeerClientApp(ClientApp):
    """A ClientApp that can also host all devices of a process, for an engine that asks.

    Parameters
    ----------
    own : OwnParts
        Parts of the app's own.
    """

    def __init__(self, own: OwnParts) -> None:
        super().__init__(mods=[_unpacking])
        self.own = own

    def hosted(
        self, nodes: Callable[[], Iterable[Node]], run_config: Mapping[str, object]
    ) -> HostedDevices:
        """Return all devices that a process simulates, for an engine that asks."""
        return HostedDevices(self.own, nodes, run_config)


def own_parts(app: ClientApp) -> OwnParts:
    """Return an app's own parts; none of an app that is not made by :func:`make_client_app`."""
    return app.own if isinstance(app, PeerClientApp) else OwnParts()


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

    @app.query("idle")
    def idle(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    @app.query("restore")
    def restore(message: Message, context: Context) -> Message:
        return _restore(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _round(message, context, own)

    return app


def _unpacking(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Read a message that came packed, and pack the reply to it."""
    if not is_packed(message.content):
        return call_next(message, context)
    message.content = unpacked(message.content)
    reply = call_next(message, context)
    reply.content = packed(reply.content)
    return reply


def _hello(message: Message, context: Context, own: OwnParts) -> Message:
    """Start afresh, and say who this device is and what its work costs."""
    check_required(context, message.content)
    check_understood(context, message.content)
    learner = learner_for(message, context, own)
    about = introduction(learner, context)
    begin_afresh(learner)
    partition = learner.partition.partition_id
    OwnState(context, learner.name).begin(partition, lambda: pack(learner.state()))
    if learner.private_key:
        context.state[SECRET] = ConfigRecord({PRIVATE: learner.private_key})
    return Message(RecordDict({ABOUT: about}), reply_to=message)


def _method(message: Message) -> str:
    return str(message.content.config_records[PLAN]["method"])


def _state(message: Message, context: Context) -> Message:
    """Give back what this device keeps from round to round, for a checkpoint."""
    check_required(context, message.content)
    own_state = OwnState(context, _method(message))
    recovered = own_state.recover()
    kept = context.state.array_records.get(STATE, ArrayRecord())
    reply = RecordDict({STATE: lock_state(context, kept)})
    own_state.release()
    if recovered:
        add_note(reply, _recovered(recovered))
    return Message(reply, reply_to=message)


def _recovered(when: str) -> str:
    return f"goes on from what it has kept on its disk, {when}"


def _restore(message: Message, context: Context) -> Message:
    """Take up what a checkpoint held: empty, this device starts afresh."""
    check_required(context, message.content)
    if kept := unlock_state(context, message.content.array_records[STATE]):
        own_state = OwnState(context, _method(message))
        own_state.keep(kept, "of the run that was resumed")
        own_state.release()
    return Message(RecordDict(), reply_to=message)


def _round(message: Message, context: Context, own: OwnParts) -> Message:
    """Run the rounds of a message, and take note of them."""
    with noting() as note:
        return _rounds(message, context, own, note)


def _rounds(message: Message, context: Context, own: OwnParts, note: Note) -> Message:
    """Take up the state, run the round, put the state back."""
    check_required(context, message.content)
    learner = learner_for(message, context, own)
    own_state = OwnState(context, learner.name)
    recovered = own_state.recover()
    take_up(learner, context.state)
    if INITIAL in message.content.array_records:
        learner.load_state(unpack(message.content.array_records[INITIAL]))

    plans = read_plans(message.content)
    transport = transport_of(message.content, context)
    content, kept, traffic = transport.run(learner, plans, message.content)
    note.ran(learner, plans, content, traffic)
    reply = Message(content, reply_to=message)
    own_state.keep(kept, f"after round {plans[-1].server_round}")
    if recovered:
        add_note(reply.content, _recovered(recovered))
    closing = plans[-1].evaluate and not plans[-1].iterations
    if closing and (counts := confusion_of(learner)):
        reply.content[CONFUSION] = MetricRecord({CONFUSION: counts})
    add_models(reply.content, learner, plans[-1], context)
    hold(learner, kept)
    own_state.release()
    return reply
