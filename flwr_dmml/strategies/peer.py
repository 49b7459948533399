"""The round plan of plain gossip: route, train, watch. Never averages a model."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO
from typing import Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from ..base.options import Group
from ..gossip.dpsgd import DPSGDRule
from ..gossip.rule import GossipRule
from ..graph.topology import Topology, TopologyError
from ..learning.options import Options
from ..payload.plan import Plan
from ..tracking.checkpoints import Checkpoint
from ..tracking.records import RoundRecord, Tracker
from ..transport.messages import unpack
from .energy.energy_constrained import EnergyConstrained
from .exchange import Exchange, MakeExchange
from .logbook import Logbook
from .planner import RoundPlanner
from .roster import Roster, handshake, wait_for_nodes


class RunKeeper(Protocol):
    """What keeps a run on disk, so that it can go on (:class:`~.keeper.Keeper`)."""

    def load(self) -> Checkpoint | None:
        """Return the checkpoint to go on from, if there is one."""

    def begun(self, strategy: "PeerStrategy") -> None:
        """Take note of who takes part."""

    def restore(self, strategy: "PeerStrategy", grid: Grid, checkpoint: Checkpoint) -> None:
        """Take a strategy that has met its devices back to a checkpoint."""

    def after_rounds(
        self, strategy: "PeerStrategy", grid: Grid, before: int, server_round: int
    ) -> None:
        """Write a checkpoint if one is due after these rounds."""

    def ended(self, strategy: "PeerStrategy") -> None:
        """Take note of the end."""


class PeerStrategy(Strategy):
    """Neighbour-wise rounds: every node mixes with its graph neighbours only.

    The message of round t carries what the neighbours published in round t-1: the node mixes it
    (which completes round t-1), is evaluated if that round is to be, trains, and publishes. A
    closing message completes the last round. A node that fails, is late or is not connected costs
    only its own contribution: the others are re-weighted on the subgraph of live nodes. On a
    complete graph this is FedAvg with equal weights.

    Parameters
    ----------
    topology : Topology
        Who is whose neighbour.
    num_nodes : int
        Devices to wait for; partition ids are 0 .. num_nodes - 1.
    method : str (default: "dpsgd")
        What the nodes run.
    communicates : bool (default: True)
        False routes nothing (the ``local`` baseline).
    local_iterations : int (default: 20)
        Mini-batches a node trains a round.
    evaluate_every : int (default: 5)
        Evaluate every so many rounds; the last round always is.
    wait_timeout : float (default: 60)
        Seconds to wait for the devices before round 1.
    min_nodes : int, optional
        Go on with so many devices instead of all; the others' places stay empty.
    seed : int (default: 0)
        Seed of random graphs.
    options : Options, optional
        The method's own: they say which graphs will do, the phase of each round, and who trains.
    gossip : GossipRule, optional
        How the devices' blocks move: it says which graphs will do. Plain gossip by default.
    energy : EnergyConstrained, optional
        Batteries, radio and the iterations of each round; by default every device is on mains power
        and trains ``local_iterations``.
    trackers : sequence of Tracker
        Told of every round.
    keeper : RunKeeper, optional
        Writes checkpoints; where there is one already, the run goes on from it.
    exchange : callable
        Makes the exchange of a run: a relay of all payloads, or another kind of it.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        num_nodes: int,
        method: str = "dpsgd",
        communicates: bool = True,
        local_iterations: int = 20,
        evaluate_every: int = 5,
        wait_timeout: float = 60.0,
        min_nodes: int | None = None,
        seed: int = 0,
        options: Options | None = None,
        gossip: GossipRule | None = None,
        energy: EnergyConstrained | None = None,
        trackers: Sequence[Tracker] = (),
        keeper: RunKeeper | None = None,
        exchange: MakeExchange = Exchange,
    ) -> None:
        self.options = options or Options()
        topology.check(num_nodes)
        self.gossip = gossip or DPSGDRule(Group())
        for needs in (self.options, self.gossip):
            if problem := needs.graph_problem(topology, num_nodes, seed):
                raise TopologyError(problem)
        self.topology = topology
        self.num_nodes = num_nodes
        self.method = method
        self.communicates = communicates
        self.local_iterations = local_iterations
        self.evaluate_every = evaluate_every
        self.wait_timeout = wait_timeout
        self.min_nodes = num_nodes if min_nodes is None else min_nodes
        self.seed = seed
        self.trackers = tuple(trackers)
        self.keeper = keeper
        self._make_exchange = exchange
        self.planner = RoundPlanner(
            topology,
            num_nodes,
            energy,
            communicates=communicates,
            local_iterations=local_iterations,
            evaluate_every=evaluate_every,
            seed=seed,
            addressed=self.gossip.addressed,
        )
        self.roster = Roster({})
        self._logbook = Logbook({}, 0, ())
        self.exchange = exchange(method, self.roster, self._logbook)
        self._num_rounds, self.timeout = 0, 3600.0

    @property
    def records(self) -> list[RoundRecord]:
        """The record of every round so far."""
        return self._logbook.records

    def summary(self) -> None:
        """Log the strategy's configuration as a tree."""
        log(INFO, "\t├──> Method: %s", self.method)
        for line in self.planner.summary():
            log(INFO, "\t├──> %s", line)
        log(INFO, "\t└──> Evaluated every %s round(s), and at the end", self.evaluate_every)

    # ---- one round --------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return the messages of a round, or of several: plans, inbox, ``arrays`` to start from."""
        self._logbook.open(server_round)
        invited = self._invite(grid)
        sizes, speeds = self.exchange.sizes, self.exchange.speeds
        rounds: list[dict[int, Plan]] = []
        last = min(server_round + self.exchange.rounds_per_message - 1, self._num_rounds)
        for t in range(server_round, last + 1):
            if t > server_round:
                self._logbook.open(t)
                invited = list(rounds[-1])
                sizes = self.exchange.expected_sizes(invited)
            plans, budget = self.planner.plans(t, invited, sizes, speeds)
            self._logbook.budget(budget)
            rounds.append(plans)
        return self.exchange.messages(rounds, "train", arrays)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[None, MetricRecord | None]:
        """Take the payloads for the next round; there is no model to aggregate."""
        self.exchange.trained(server_round, replies)
        loss = self.records[-1].train_loss
        return None, None if loss is None else MetricRecord({"train.loss": loss})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return the closing messages after the last round; until then training carries them."""
        if server_round < self._num_rounds:
            return []
        plans = self.planner.closing_plans(self._invite(grid), self.exchange.sizes)
        return self.exchange.messages([plans], "evaluate")

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Note the results of the closing messages."""
        self.exchange.closed(server_round, replies)
        accuracy = self.records[-1].accuracy
        return None if accuracy is None else MetricRecord({"test.accuracy": accuracy})

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the method.

        Parameters
        ----------
        grid : Grid
            Any engine's.
        initial_arrays : ArrayRecord, optional
            Blocks (name -> flat float32 vector) that every owner starts from, instead of the
            numbers that the run's seed gives.
        num_rounds : int (default: 3)
            Rounds.
        timeout : float (default: 3600)
            Seconds to wait for a round's replies.
        train_config, evaluate_config, evaluate_fn : optional
            Not used: nodes read the run config, and there is no global model to evaluate.

        Returns
        -------
        Result
            Mean training loss and test accuracy by round; all else is in ``records``.

        Raises
        ------
        NoDevicesError
            Too few devices to start, or none left to go on.
        ValueError
            ``evaluate_fn`` is given, or ``initial_arrays`` holds a block that no device takes.
        """
        if evaluate_fn is not None:
            raise ValueError("evaluate_fn: there is no global model to evaluate on the server")
        if num_rounds < 1:
            raise ValueError(f"num_rounds = {num_rounds}: must be at least 1")
        log(INFO, "Starting %s:", type(self).__name__)
        self.summary()
        started = time.monotonic()
        self._num_rounds, self.timeout = num_rounds, timeout
        checkpoint = self.keeper.load() if self.keeper else None
        node_ids = wait_for_nodes(grid, self.min_nodes, self.wait_timeout)
        self.roster = Roster(handshake(grid, node_ids, self.num_nodes, self.method, timeout))
        self._logbook = Logbook(self.roster.members, num_rounds, self.trackers, self.planner.energy)
        self.exchange = self._make_exchange(self.method, self.roster, self._logbook)
        phases = self.options.phases(num_rounds)
        self.planner.begin(self.roster.members, phases, self.options.trained)
        fixed = self.communicates and not self.topology.time_varying
        self._logbook.announce(self.method, self.planner.graph(1) if fixed else None)

        arrays, config = initial_arrays or ArrayRecord(), ConfigRecord()
        self.roster.check_initial(unpack(arrays))
        first = 1
        if self.keeper:
            self.keeper.begun(self)
        if self.keeper and checkpoint:
            self.keeper.restore(self, grid, checkpoint)
            first = checkpoint.server_round + 1
        done = first - 1
        while done < num_rounds:
            before, begun = done, time.monotonic()
            messages = self.configure_train(before + 1, arrays, config, grid)
            replies = self.roster.send(grid, messages, timeout)
            done = self.records[-1].round  # the last one of these messages
            self.aggregate_train(before + 1, replies)
            for record in self.records[before:]:
                record.seconds = (time.monotonic() - begun) / (done - before)
            for record in self.records[max(0, before - 1) : -1]:
                self._logbook.complete(record)
            if self.keeper:
                self.keeper.after_rounds(self, grid, before, done)
        closing = self.configure_evaluate(num_rounds, arrays, config, grid)
        self.aggregate_evaluate(num_rounds, self.roster.send(grid, closing, timeout))
        self._logbook.complete(self.records[-1])
        if self.keeper:
            self.keeper.ended(self)
        log(INFO, "%s finished in %.1f s", self.method, time.monotonic() - started)
        return self._logbook.result()

    # ---- checkpoints ------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what the next round depends on besides devices and payloads, as JSON."""
        return {
            "planner": self.planner.state(),
            "logbook": self._logbook.state(),
            "exchange": self.exchange.state(),
        }

    def load_state(
        self,
        state: Mapping[str, Any],
        payloads: Mapping[int, ArrayRecord],
        before: Sequence[RoundRecord],
    ) -> None:
        """Go on from a :meth:`state`, with its payloads and the records of complete rounds."""
        self.planner.load_state(state["planner"])
        self._logbook.load_state(state["logbook"], before)
        self.exchange.load_state(state["exchange"], payloads)

    def _invite(self, grid: Grid) -> list[int]:
        """Return who can be asked now; the others are named in the log."""
        invited, absent = self.roster.invite(grid)
        self._logbook.failures(absent)
        return invited
