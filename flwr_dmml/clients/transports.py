"""Transports of a device: the relay, sealed payloads, and direct exchange with the neighbours."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from logging import WARNING
from typing import TYPE_CHECKING, ClassVar, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from flwr.common.logger import log
from torch import Tensor, equal

from ..learning.learner import Learner
from ..payload.plan import Outcome, Payload, Plan
from ..transport import size_bytes
from ..transport.arrays import record_of
from ..transport.letter import name_of_run
from ..transport.messages import (
    INBOX,
    MAX_STALENESS,
    METRICS,
    OWN_PACE,
    PAYLOAD,
    PEERS,
    REPORT,
    STATE,
    add_note,
    join,
    pack,
    read_blocks,
    read_inbox,
    read_peers,
    unpack,
    write_report,
)
from ..transport.traffic import Traffic
from .direct import SENT, in_the_clear, open_link, run_directly
from .limits import limits_of
from .metering import run_metered
from .own_pace import run_at_own_pace
from .sealing import run_sealed, seals

if TYPE_CHECKING:
    from ..transport.direct.link import DirectLink


class Transport(Protocol):
    """Runs the rounds of a message: brings in the neighbours' payloads, and hands out the own."""

    def run(
        self, learner: Learner, plans: Sequence[Plan], content: RecordDict
    ) -> tuple[RecordDict, ArrayRecord, Traffic]:
        """Return the content of the reply, what the device keeps, and what it has exchanged.

        Parameters
        ----------
        learner : Learner
            With the state of the round before.
        plans : sequence of Plan
            Of the message's rounds, at least one.
        content : RecordDict
            The message's.
        """
        ...


def transport_of(content: RecordDict, context: Context) -> Transport:
    """Return the transport that a message asks for."""
    if OWN_PACE in content.config_records:
        return OwnPace(context)
    if PEERS in content.config_records:
        return Direct(context)
    return Sealed(context) if seals(context) else Relayed(context)


@dataclass(frozen=True)
class Relayed:
    """The coordinator hands payloads on: they come with the plan, and go with the reply."""

    context: Context

    def run(
        self, learner: Learner, plans: Sequence[Plan], content: RecordDict
    ) -> tuple[RecordDict, ArrayRecord, Traffic]:
        """See :class:`Transport`."""
        inbox = read_inbox(content)
        outcome = run_metered(learner, plans[0], inbox, self.context.node_config)
        return *records(outcome, learner.state()), relayed(content, plans[0])


@dataclass(frozen=True)
class Sealed:
    """As :class:`Relayed`, but nobody except the neighbours can read a payload."""

    context: Context

    def run(
        self, learner: Learner, plans: Sequence[Plan], content: RecordDict
    ) -> tuple[RecordDict, ArrayRecord, Traffic]:
        """See :class:`Transport`."""
        outcome, sealed = run_sealed(learner, plans[0], content, self.context)
        reply, kept = records(outcome, learner.state())
        if sealed:
            reply[PAYLOAD] = sealed
        return reply, kept, relayed(content, plans[0])


@dataclass(frozen=True)
class Direct:
    """Devices exchange letters with their neighbours, for several rounds; numbers come back."""

    context: Context
    newest: ClassVar[bool] = False
    """Whether a device asks for its neighbours' newest letters, of whatever round."""

    def run(
        self, learner: Learner, plans: Sequence[Plan], content: RecordDict
    ) -> tuple[RecordDict, ArrayRecord, Traffic]:
        """See :class:`Transport`."""
        context = self.context
        me, exchange = learner.partition.partition_id, learner.settings.exchange
        peers, shared = read_peers(content), read_blocks(content)
        if warning := in_the_clear(context, peers):
            log(WARNING, "This device %s", warning)
        limits = limits_of(learner, shared)
        with open_link(context, exchange, me, limits, newest=self.newest) as link:
            outcomes, kept = self._rounds(learner, plans, content, link)
            traffic = link.traffic
        reply = RecordDict({METRICS: MetricRecord(join(outcome.metrics for outcome in outcomes))})
        if report := join(map(write_report, outcomes)):
            reply[REPORT] = ConfigRecord(report)
        if warning:
            add_note(reply, warning)
        return reply, pack(learner.state() | kept), traffic

    def _rounds(
        self, learner: Learner, plans: Sequence[Plan], content: RecordDict, link: "DirectLink"
    ) -> tuple[list[Outcome], Payload]:
        """Run the rounds; return what came of each, and what to keep until the next message."""
        peers, shared = read_peers(content), read_blocks(content)
        before = self._kept()
        sent = {k.removeprefix(SENT): v for k, v in before.items() if k.startswith(SENT)}
        run, own = name_of_run(self.context.run_id), self.context.node_config
        outcomes, sent = run_directly(learner, plans, peers, link, run, sent, own, shared)
        return outcomes, {SENT + k: v for k, v in sent.items()}

    def _kept(self) -> Payload:
        return unpack(self.context.state.array_records.get(STATE, ArrayRecord()))


@dataclass(frozen=True)
class OwnPace(Direct):
    """As :class:`Direct`, but a device mixes what has come, and waits for nobody."""

    newest: ClassVar[bool] = True

    def _rounds(
        self, learner: Learner, plans: Sequence[Plan], content: RecordDict, link: "DirectLink"
    ) -> tuple[list[Outcome], Payload]:
        peers, shared = read_peers(content), read_blocks(content)
        most = int(str(content.config_records[OWN_PACE][MAX_STALENESS]))
        run, own = name_of_run(self.context.run_id), self.context.node_config
        return run_at_own_pace(learner, plans, peers, link, run, self._kept(), most, own, shared)


def relayed(content: RecordDict, plan: Plan) -> Traffic:
    """Return what a message has brought of neighbours' payloads."""
    received = {
        int(key.removeprefix(INBOX)): size_bytes(record)
        for key, record in content.array_records.items()
        if key.startswith(INBOX)
    }
    return Traffic(Counter(received), heard=dict.fromkeys(received, plan.server_round))


def records(outcome: Outcome, state: Payload) -> tuple[RecordDict, ArrayRecord]:
    """Write what a device gives back after a round, and what it keeps: once, where it is equal."""
    reply = RecordDict({METRICS: MetricRecord(dict(outcome.metrics))})
    payload = pack(outcome.payload)
    if payload:
        reply[PAYLOAD] = payload
    if report := write_report(outcome):
        reply[REPORT] = report
    kept = pack({k: v for k, v in state.items() if not _is_in(v, outcome.payload.get(k))})
    shared = {k: payload[k] if k in payload and k not in kept else kept[k] for k in state}
    return reply, record_of(shared)


def _is_in(value: Tensor, published: Tensor | None) -> bool:
    """Return whether a value of the state has been published as it is."""
    if published is None or published.dtype != value.dtype:  # equal numbers are not enough
        return False
    return value is published or equal(value, published)
