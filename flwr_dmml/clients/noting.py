"""Notes of a device on its rounds, for its status and its metrics."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import WARNING

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from ..base.facts import Facts, facts_file, read_facts, write_facts
from ..base.files import WriteError
from ..base.log import log
from ..base.text import one_line
from ..learning.learner import Learner
from ..payload.plan import Plan
from ..transport.messages import METRICS, REJECTED, REPORT, parted
from ..transport.traffic import Traffic
from .metering import MEASURED_J


@dataclass
class Note:
    """What a message has brought; the facts are those of before until it is taken up."""

    facts: Facts = field(default_factory=Facts)
    waited_s: float = 0.0

    def ran(
        self, learner: Learner, plans: Sequence[Plan], reply: RecordDict, traffic: Traffic
    ) -> None:
        """Take up the rounds of a message."""
        facts, last = self.facts, plans[-1]
        if last.server_round < facts.round:  # another run
            facts.heard = {}
        partition = learner.partition
        facts.method, facts.partition = learner.name, partition.partition_id
        facts.modalities = "+".join(partition.modalities)
        facts.rounds = last.num_rounds or learner.settings.num_server_rounds
        facts.round = min(last.server_round, facts.rounds)  # the closing message comes after it
        for metrics in parted(reply.metric_records.get(METRICS, MetricRecord()), len(plans)):
            facts.loss = _number(metrics, "train.loss", facts.loss)
            facts.accuracy = _number(metrics, "test.accuracy", facts.accuracy)
            facts.joules += _number(metrics, MEASURED_J, None) or 0.0
        report = reply.config_records.get(REPORT) or ConfigRecord()
        for said in parted(report, len(plans)):
            rejected = said.get(REJECTED)
            facts.rejected += len(rejected) if isinstance(rejected, list) else 0
        facts.heard = {**facts.heard, **traffic.heard}
        facts.received = dict(Counter(facts.received) + traffic.received)
        facts.sent = dict(Counter(facts.sent) + traffic.sent)
        self.waited_s = traffic.waited_s


def _number(metrics: Mapping[str, object], name: str, otherwise: float | None) -> float | None:
    value = metrics.get(name, otherwise)
    return float(value) if isinstance(value, int | float) else None


@contextmanager
def noting() -> Iterator[Note]:
    """Give what is to take up a message's rounds, and write it down when the block has ended.

    Nothing is written where the device was not started by ``flwr-dmml fleet device``.
    """
    file = facts_file()
    if file is None:
        yield Note()
        return
    note, began = Note(read_facts(file)), time.monotonic()
    note.facts.error = ""
    try:
        yield note
    except Exception as error:
        note.facts.error = one_line(f"{type(error).__name__}: {error}")
        note.facts.failures += 1
        raise
    finally:
        facts, spent_s = note.facts, time.monotonic() - began
        phases = {"letters": note.waited_s, "work": max(spent_s - note.waited_s, 0.0)}
        facts.seconds = {k: facts.seconds.get(k, 0.0) + s for k, s in phases.items()}
        facts.time_s = time.time()
        try:
            write_facts(file, facts)
        except WriteError as problem:
            log(WARNING, "%s", problem)
