"""Logbook of a run: records of its rounds, passed to the log and to the trackers."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from logging import INFO, WARNING
from typing import Any

import networkx as nx
from flwr.app import MetricRecord
from flwr.common.logger import log
from flwr.serverapp.strategy import Result

from ..energy.ledger import Floats
from ..payload.blocks import STATISTICS
from ..payload.plan import Plan
from ..tracking.history import read_record
from ..tracking.records import NodeResult, RoundRecord, Shortened, Tracker
from ..tracking.text import describe
from .energy.energy_constrained import EnergyConstrained
from .energy.measured import meters_told, read_meter
from .energy.own_rounds import OwnBudget
from .energy.round_budget import RoundBudget
from .epsilons import spent_in
from .member import Member
from .mixing import separate_groups
from .replies import Account


class Logbook:
    """The records of a run, round by round.

    Parameters
    ----------
    members : mapping of int to Member
        Who takes part, by partition.
    num_rounds : int
        Rounds of the run.
    trackers : sequence of Tracker
        Told of the start and of every completed round.
    energy : EnergyConstrained, optional
        Told of every joule that devices measured.
    liars : collection of int
        Devices that lie in a simulation.
    """

    def __init__(
        self,
        members: Mapping[int, Member],
        num_rounds: int,
        trackers: Sequence[Tracker],
        energy: EnergyConstrained | None = None,
        liars: Collection[int] = (),
    ) -> None:
        self._liars = frozenset(liars)
        self.records: list[RoundRecord] = []
        self._members = members
        self._num_rounds = num_rounds
        self._trackers = tuple(trackers)
        self._energy = energy
        self.lost: set[int] = set()
        """Who has not answered the last message, or not as it should."""
        self._flat: set[int] = set()
        self._unheard: set[int] = set()
        self._unread: set[int] = set()  # whose meter fails at present
        self._spent: set[int] = set()  # whose privacy budget allows no more training

    def announce(self, method: str, graph: nx.Graph | None, *, couriers: bool) -> None:
        """Say who takes part, and whose owners are not linked in ``graph`` (None: not known)."""
        log(INFO, "%s devices take part:", len(self._members))
        for partition, member in self._members.items():
            sensors = "+".join(member.modalities)
            log(INFO, "\t%3d  %-16s %5d training samples", partition, sensors, member.num_train)
        for line in meters_told(self._members.values()):
            log(INFO, "%s", line)
        if graph is not None:
            apart = separate_groups(graph, {p: m.blocks for p, m in self._members.items()})
            for blocks, count in apart.items():
                so = (
                    "couriers carry blocks between them"
                    if couriers
                    else "each group mixes on its own"
                )
                text = "%s: owners are split into %s disconnected groups; %s"
                log(INFO, text, ", ".join(blocks), count, so)
        for block in unequal_blocks(self._members):
            log(WARNING, "Block %s does not start equal on all devices that own it", block)
        sensors_of = ["+".join(member.modalities) for member in self._members.values()]
        for tracker in self._trackers:
            tracker.run_started(method, self._num_rounds, sensors_of)

    def state(self, complete: int) -> dict[str, Any]:
        """Return the rounds after so many complete ones, and who has left, as JSON."""
        records = [
            {
                "seconds": record.seconds,
                "phases": record.phases,
                "battery_j": {str(k): v for k, v in record.battery_j.items()},
                "line": record.to_json(),
            }
            for record in self.records[complete:]
        ]
        who = {"flat": self._flat, "unheard": self._unheard, "lost": self.lost}
        return {"records": records, **{name: sorted(those) for name, those in who.items()}}

    def load_state(self, state: Mapping[str, Any], before: Sequence[RoundRecord]) -> None:
        """Go on from what :meth:`state` gave; ``before`` are the rounds that were complete."""
        self.records = [*before]
        for written in state["records"]:
            record = read_record(written["line"])
            record.battery_j = {int(k): float(v) for k, v in written["battery_j"].items()}
            record.seconds = float(written["seconds"])
            record.phases = {str(k): float(v) for k, v in written["phases"].items()}
            self.records.append(record)
        self._flat, self._unheard = set(state["flat"]), set(state["unheard"])
        self.lost = set(state["lost"])
        self._spent = set().union(*(spent_in(record.nodes) for record in self.records))

    def open(self, server_round: int) -> RoundRecord:
        """Begin the record of a round."""
        self.records.append(RoundRecord(server_round))
        return self.records[-1]

    def asked(self) -> None:
        """Take note of a new message: nobody is lost yet."""
        self.lost = set()

    @property
    def present(self) -> list[int]:
        """Who has answered the last message, or rests; by partition."""
        away = self.lost | self._flat
        return [p for p in self._members if p not in away]

    def node(self, server_round: int, partition: int) -> NodeResult:
        """Return a node's entry in the record of a round (from 1)."""
        record = self.records[server_round - 1]
        node = record.node(partition, self._members[partition].modalities)
        if self._liars:
            node.lies = partition in self._liars
        return node

    def honest(self, partitions: Iterable[int]) -> list[int]:
        """Return those devices that do not lie in a simulation."""
        return [p for p in partitions if p not in self._liars]

    def failures(self, failed: Mapping[int, str]) -> None:
        """Note why nodes are left out of the current round; the first reason is the cause."""
        record = self.records[-1]
        self.lost |= failed.keys()
        for partition, reason in failed.items():
            if partition not in record.failed:
                record.failed[partition] = reason
                log(WARNING, "Round %s: node %s is left out: %s", record.round, partition, reason)

    def mixed(self, server_round: int, partition: int, account: Account) -> None:
        """Note what a node measured and rejected after mixing the payloads of a round."""
        self._meter(server_round + 1, partition, account)
        if server_round < 1:
            return
        node = self.node(server_round, partition)
        for claim in account.claims:
            about, text = claim.about, claim.text
            words = "says" if about is None else f"rejects from node {about}"
            log(WARNING, "Round %s: node %s %s: %s", server_round, partition, words, text)
            if about is not None:
                node.claims.setdefault(about, text)
                if not text.startswith(STATISTICS):
                    self._unheard.add(partition)
        node.measured(account.metrics)
        node.rejected = len(account.claims)

    def settle(self, server_round: int, plans: Mapping[int, Plan]) -> None:
        """Weigh what nodes say of each other's payloads of a round.

        What one node says is its word, and stands in its own line. A sender has failed if all who
        were to have its payload reject it, and these are several.

        Parameters
        ----------
        server_round : int
            The round; none before the first.
        plans : mapping of int to Plan
            By which nodes mixed it, of those that have answered.
        """
        if server_round < 1:
            return
        record = self.records[server_round - 1]
        claims = {p: record.by_partition[p].claims for p in plans if p in record.by_partition}
        for sender in sorted({about for own in claims.values() for about in own}):
            told = [claims[p].get(sender) for p, plan in plans.items() if sender in plan.neighbours]
            if len(told) > 1 and all(told):
                why = f"rejected by all of its {len(told)} neighbours: {told[0]}"
                record.failed.setdefault(sender, why)

    def unheard(self) -> set[int]:
        """Return who has not got something that it was to mix, since this was last asked."""
        found, self._unheard = self._unheard, set()
        return found

    def spent(self) -> set[int]:
        """Return who has told, so far, that its privacy budget allows no more training."""
        for record in self.records[-2:]:
            for partition in sorted(spent_in(record.nodes) - self._spent):
                text = "Round %s: node %s trains no more, its privacy budget is spent"
                log(INFO, text, record.round, partition)
                self._spent.add(partition)
        return self._spent

    def met(self, plans: Mapping[int, Plan]) -> None:
        """Note what couriers have brought, and who hears liars, by plans that begin with mixing.

        The origin of a mean is the courier that has made it.
        """
        for p, plan in plans.items():
            if self._liars and plan.server_round > 1:
                self.node(plan.server_round - 1, p).lying_neighbours = len(
                    self._liars & {*plan.sources}
                )
            if plan.far:
                record = self.records[plan.server_round - 2]
                record.carried |= {
                    (there.via if there.is_mean else there.origin, there.via, p)
                    for there in plan.far
                }

    def _meter(self, server_round: int, partition: int, account: Account) -> None:
        """Note what a node's meter counted in a round's work, and have it booked.

        What comes after the last round, mixing and evaluation, counts as that round's.
        """
        if not self._members[partition].equipment.has_meter:
            return
        reading = read_meter(account.metrics, account.meter_problem)
        if reading.problem:
            if partition not in self._unread:
                text = "Round %s: node %s's meter fails, its joules are the model's for now: %s"
                log(WARNING, text, server_round, partition, reading.problem)
            self._unread.add(partition)
            return
        if partition in self._unread:
            log(INFO, "Round %s: node %s's meter is read again", server_round, partition)
            self._unread.remove(partition)
        first = min(server_round, self._num_rounds)
        node = self.node(first, partition)
        node.measured_j = (node.measured_j or 0.0) + reading.joules
        node.measured_s = (node.measured_s or 0.0) + reading.seconds
        extra_j = 0.0
        if self._energy:
            booked_j = self._energy.measured(server_round, {partition: reading.joules})
            extra_j = float(booked_j[partition])
        for record in self.records[first - 1 :]:
            record.total_measured_j = (record.total_measured_j or 0.0) + reading.joules
            if partition in record.battery_j:
                record.battery_j[partition] = max(0.0, record.battery_j[partition] - extra_j)

    def notes(self, partition: int, lines: Iterable[str]) -> None:
        """Log what a node has to say."""
        for line in lines:
            log(INFO, "Round %s: node %s %s", self.records[-1].round, partition, line)

    def budget(self, budget: RoundBudget) -> None:
        """Note what the current round is billed, and who stays out for want of energy."""
        record, before = self.records[-1], RoundRecord(0)
        if len(self.records) > 1:
            before = self.records[-2]
        for partition, updates in budget.updates.items():
            node = self.node(record.round, partition)
            node.updates = updates
            node.compute_j = float(budget.compute_j[partition])
            node.radio_j = float(budget.radio_j[partition])
            node.simulated_s = float(budget.seconds[partition])
        if budget.battery_j is not None:
            record.battery_j = {p: float(budget.battery_j[p]) for p in self._members}
        record.total_j = before.total_j + record.compute_j + record.radio_j
        record.total_simulated_s = before.total_simulated_s + record.simulated_s
        record.total_bits = before.total_bits + float(budget.sent_bits.sum())
        record.total_measured_j = before.total_measured_j
        record.failed |= budget.flat
        for partition in budget.flat:
            self.node(record.round, partition)  # known, though it does nothing
        for partition in budget.flat.keys() - self._flat:
            reason = budget.flat[partition]
            log(WARNING, "Round %s: node %s leaves: %s", record.round, partition, reason)
        for partition in self._flat - budget.flat.keys():
            log(INFO, "Round %s: node %s can send again", record.round, partition)
        self._flat = set(budget.flat)
        for note in budget.notes:
            log(INFO, "Round %s: allocation: %s", record.round, note)

    def own_round(self, partition: int, budget: OwnBudget, bits: float) -> None:
        """Note a round that a device has done by itself: the current record has it.

        ``bits`` are what it has put on the air.
        """
        record = self.records[-1]
        node = self.node(record.round, partition)
        node.updates = {m: node.updates.get(m, 0) + n for m, n in budget.updates.items()}
        node.compute_j += budget.compute_j
        node.radio_j += budget.radio_j
        node.simulated_s += budget.seconds
        record.total_bits += bits
        for note in budget.notes:
            log(INFO, "Round %s: allocation of node %s: %s", record.round, partition, note)

    def close(self, now_s: float, battery_j: Floats | None) -> RoundRecord:
        """Close the current record at a simulated time, in seconds since the run began."""
        record, before = self.records[-1], RoundRecord(0)
        if len(self.records) > 1:
            before = self.records[-2]
        for partition in self.present:
            self.node(record.round, partition)  # known, though it may have done nothing
        if battery_j is not None:
            record.battery_j = {p: float(battery_j[p]) for p in self._members}
        record.total_j = before.total_j + record.compute_j + record.radio_j
        record.total_simulated_s = now_s
        record.total_bits += before.total_bits
        record.failed |= {p: why for p, why in before.failed.items() if p in self._flat}
        return record

    def leaves(self, partition: int, reason: str) -> None:
        """Note that a device stops for want of energy."""
        record = self.records[-1]
        record.failed[partition] = reason
        self._flat.add(partition)
        log(WARNING, "Round %s: node %s leaves: %s", record.round, partition, reason)

    def result(self) -> Result:
        """Return the mean training loss and test accuracy of every round, as Flower has them."""
        result = Result()
        for record in self.records:
            if record.train_loss is not None:
                loss = MetricRecord({"train.loss": record.train_loss})
                result.train_metrics_clientapp[record.round] = loss
            if record.accuracy is not None:
                mean = MetricRecord({"test.accuracy": record.accuracy})
                result.evaluate_metrics_clientapp[record.round] = mean
        return result

    def end_at(self, server_round: int) -> None:
        """Make a round the last one, before the closing message."""
        self._num_rounds = server_round
        for tracker in self._trackers:
            if isinstance(tracker, Shortened):
                tracker.run_shortened(server_round)

    def merged(self, trained: int) -> None:
        """Say what the final merge has made of the last round that trained."""
        before, after = self.records[trained - 1], self.records[-1]
        sent = [sum(node.bytes_sent for node in record.nodes) for record in self.records[trained:]]
        text = "Final merge: mean accuracy %.3f before, %.3f after; %.3g MB sent and %.3g J in %s"
        spent_j = after.total_j - before.total_j
        accuracies = [0.0 if r.accuracy is None else r.accuracy for r in (before, after)]
        log(INFO, text + " rounds", *accuracies, sum(sent) / 1e6, spent_j, len(sent))

    def complete(self, record: RoundRecord) -> None:
        """Report a round whose mixing and evaluation are in."""
        for tracker in self._trackers:
            tracker.round_ended(record)
        if record.accuracy is not None:
            log(INFO, "[ROUND %s/%s] %s", record.round, self._num_rounds, describe(record))


def unequal_blocks(members: Mapping[int, Member]) -> list[str]:
    """Return the blocks that do not start from the same numbers on all their owners."""
    digests: dict[str, set[str]] = {}
    for member in members.values():
        for block, digest in member.digests.items():
            digests.setdefault(block, set()).add(digest)
    return sorted(block for block, found in digests.items() if len(found) > 1)
