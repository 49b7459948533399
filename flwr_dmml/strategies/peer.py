"""The round plan of plain gossip: route, train, watch. Never averages a model."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from logging import INFO, WARNING
from math import isfinite
from typing import Any, Literal, Protocol

import networkx as nx
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from ..base.options import Group
from ..clients.models import Models
from ..energy.allocation import Allocation, RoundProblem
from ..energy.ledger import Floats
from ..engine.grid import SimulationGrid
from ..engine.nodes import Hosted
from ..gossip.aggregation.mean import Mean
from ..gossip.aggregation.rule import AggregationRule
from ..gossip.dpsgd import DPSGDRule
from ..gossip.rule import GossipRule
from ..graph.topology import Topology, TopologyError
from ..learning.hooks import CourierChoice
from ..learning.options import Options
from ..payload.plan import Plan
from ..settings import Settings
from ..tracking.checkpoints import Checkpoint
from ..tracking.events import DeviceRound
from ..tracking.pace import Laps
from ..tracking.records import RoundRecord, Tracker
from ..transport.messages import unpack
from .breakdown import held, told
from .energy.energy_constrained import EnergyConstrained
from .event_time import EventTime
from .exchange import Exchange, MakeExchange
from .hosted import HostedExchange
from .logbook import Logbook, unequal_blocks
from .losses import Losses
from .member import Member
from .merging import FinalMerge
from .planner import RoundPlanner
from .reasons import join_reasons
from .returning import Returning
from .roster import NoDevicesError, QuorumError, Roster, handshake, wait_for_nodes
from .sending import simulates
from .without_beat import OF_ALL, Timing, own_rounds, timing_of

PLANNING, DEVICES, READING, KEEPING = "planning", "devices", "reading", "checkpoint"
"""Phases of a round: its plans, the wait for the replies, what comes of them, and keeping it."""
MODELS_BYTES = 1 << 30
"""More of all devices' models are not kept unless that is asked for."""


class RunKeeper(Protocol):
    """What keeps a run on disk, so that it can go on (:class:`~.keeper.Keeper`)."""

    def load(self) -> Checkpoint | None:
        """Return the checkpoint to go on from, if there is one."""

    def begun(self, strategy: "PeerStrategy") -> None:
        """Take note of who takes part in a run that begins."""

    def members_of(self, checkpoint: Checkpoint) -> dict[int, Member]:
        """Return the devices of a run, by partition id."""

    def restore(
        self, strategy: "PeerStrategy", grid: Grid, checkpoint: Checkpoint
    ) -> dict[int, ArrayRecord]:
        """Take a strategy that has met its devices back to a checkpoint.

        Returns what those devices kept that are away, by partition.
        """

    def after_rounds(
        self,
        strategy: "PeerStrategy",
        grid: Grid,
        before: int,
        server_round: int,
        *,
        last: bool = False,
    ) -> None:
        """Write a checkpoint if one is due after these rounds, or if it is the last chance to."""

    def happened(self, rounds: Sequence[DeviceRound]) -> None:
        """Keep what devices did that do not wait for one another."""

    def models(self, found: Mapping[int, Models]) -> None:
        """Keep models that devices have handed over, by partition id."""

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
        Seconds to wait for the devices before round 1, or for those of a run that is resumed: it
        then goes on without those that are away, if ``quorum`` are there.
    min_nodes : int, optional
        Begin with so many devices instead of all; the others' places stay empty.
    quorum : int (default: 1)
        Stop, with a checkpoint, when fewer devices answer.
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
    couriers : {"off", "forward", "average"} (default: "off")
        How devices carry blocks that they do not own between owners that no link joins.
    sealed : bool (default: False)
        Whether payloads are sealed: what is carried then is, too.
    aggregation : AggregationRule, optional
        What devices make of their neighbours' copies: how many liars it can bear is said at the
        start. The weighted mean by default.
    liars : collection of int
        Devices that lie in a simulation: no mean counts them.
    loss_rate : float (default: 0)
        Probability that a message is lost, in [0, 1).
    merge : FinalMerge, optional
        What follows on the last round: all owners of a block average it.
    shares : bool (default: False)
        Whether every neighbour gets another copy of a model, so that devices are told how each is
        to weigh it (``privacy.zip-noise``).
    sums : bool (default: False)
        Whether that is a part of a sum (``privacy.secure-sums``): no device may have a single
        neighbour that has one of its blocks.
    keep_models : {"auto"} or bool (default: False)
        Whether devices hand over their evaluated models, for the keeper; "auto" where all of them
        take :data:`MODELS_BYTES`, or less.
    rounds : {"sync", "async"} (default: "sync")
        Whether all wait for the slowest, or nobody for anybody (:class:`~.event_time.EventTime`):
        then ``energy`` is :class:`~.energy.own_rounds.OwnRounds`.
    max_staleness : int (default: 3)
        In how many of its own rounds more a device mixes a letter again, where nobody waits.
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
        quorum: int = 1,
        seed: int = 0,
        options: Options | None = None,
        gossip: GossipRule | None = None,
        energy: EnergyConstrained | None = None,
        trackers: Sequence[Tracker] = (),
        keeper: RunKeeper | None = None,
        exchange: MakeExchange = Exchange,
        couriers: CourierChoice = "off",
        sealed: bool = False,
        aggregation: AggregationRule | None = None,
        liars: Collection[int] = (),
        loss_rate: float = 0.0,
        merge: FinalMerge | None = None,
        shares: bool = False,
        sums: bool = False,
        keep_models: Literal["auto"] | bool = False,
        rounds: Literal["sync", "async"] = "sync",
        max_staleness: int = 3,
    ) -> None:
        self.options = options or Options()
        topology.check(num_nodes)
        self.gossip = gossip or DPSGDRule(Group())
        if self.gossip.static and self._overrides("graph"):
            raise TopologyError(
                f"{type(self).__name__} plans graphs of its own, and the gossip rule "
                f"{self.gossip.name!r} needs weights that stay the same"
            )
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
        self.quorum = quorum
        self.seed = seed
        self.aggregation = aggregation or Mean(Group())
        self._liars, self._sums = frozenset(liars), sums
        self.trackers = tuple(trackers)
        self.keeper = keeper
        self._keep_models = keep_models
        self.rounds, self.max_staleness = rounds, max_staleness
        self._make_exchange = exchange
        self._returning: Returning | None = None  # of a run that was resumed
        self._timing: Timing | None = None  # of devices that do not wait for one another
        if rounds == "async":
            energy = own_rounds(
                energy,
                self.gossip if communicates else None,
                Settings(local_iterations=local_iterations, seed=seed),
                type(self).__name__,
                [hook for hook in OF_ALL if self._overrides(hook)],
            )
        self.planner = RoundPlanner(
            topology,
            num_nodes,
            energy,
            communicates=communicates,
            local_iterations=local_iterations,
            evaluate_every=evaluate_every,
            seed=seed,
            addressed=self.gossip.addressed,
            couriers=couriers,
            sealed=sealed,
            pushes=self.gossip.pushes,
            losses=Losses(loss_rate, seed, self.gossip.loss),
            coded=self.gossip.coded,
            merge=merge,
            resets=self.gossip.resets,
            shares=shares,
            sums=sums,
        )
        self.roster = Roster({})
        self._logbook = Logbook({}, 0, ())
        self.exchange = exchange(method, self.roster, self._logbook)
        self._num_rounds, self.timeout = 0, 3600.0
        self.rounds_done = 0
        """Rounds whose mixing and evaluation are in."""

    @property
    def records(self) -> list[RoundRecord]:
        """The record of every round so far."""
        return self._logbook.records

    @property
    def num_rounds(self) -> int:
        """Rounds of the run, fewer than was asked for where :meth:`stop` ended it."""
        return self._num_rounds

    @property
    def present(self) -> list[int]:
        """Partition ids of those who have answered the last message, or rest; ascending."""
        return self._logbook.present

    def summary(self) -> None:
        """Log the strategy's configuration as a tree."""
        log(INFO, "\t├──> Method: %s", self.method)
        for line in self.planner.summary():
            log(INFO, "\t├──> %s", line)
        every = "every round" if self.evaluate_every == 1 else f"every {self.evaluate_every} rounds"
        log(INFO, "\t└──> Evaluation: %s, and at the end", every)

    # ---- what a strategy of your own overrides ----------------------------------------------

    def graph(self, server_round: int) -> nx.Graph:
        """Return who is to send to whom in a round (from 1): partition ids, links undirected.

        Whoever cannot be reached, or cannot pay for sending, is taken out of it afterwards, and
        the mixing weights are those of what is left.
        """
        return self.planner.of_topology(server_round).copy()

    def participants(self, server_round: int, connected: Collection[int]) -> Collection[int]:
        """Return which of the connected devices take part in a round; the others rest."""
        return connected

    def allocate(self, problem: RoundProblem, server_round: int) -> Allocation:
        """Return the iterations of a round, from its prices, speeds and limits.

        What exceeds a device's ``budget_j``, ``latency_s`` or ``tau_max`` is refused.
        """
        return self.planner.energy.by_rule(problem, server_round)

    def recorded(self, record: RoundRecord) -> Mapping[str, float]:
        """Return numbers to record of a complete round, by names of your own.

        They reach ``metrics.jsonl`` (``own``), the report and the sinks. A number that does not
        exist, NaN or infinite, is left out.
        """
        return {}

    def stop(self, record: RoundRecord) -> str:
        """Return why the run is to end after a complete round, or nothing to go on.

        Asked of each round but the last. What the devices have trained since that round began is
        mixed and evaluated in one more closing message.
        """
        return ""

    @property
    def battery_j(self) -> Floats | None:
        """What the batteries hold, ``[node]``; None on mains power and before the first plan."""
        return self.planner.battery_j

    # ---- one round --------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return the messages of a round, or of several: plans, inbox, ``arrays`` to start from."""
        return self.exchange.messages(self._plans(server_round, grid), "train", arrays)

    def _plans(self, server_round: int, grid: Grid) -> list[dict[int, Plan]]:
        """Open a round, or several, and return the plans of each."""
        self._logbook.open(server_round)
        self._logbook.asked()
        connected = self._invite(grid)
        invited = self._take_part(server_round, connected)
        sizes, speeds = self.exchange.sizes, self.exchange.speeds
        unheard = self._logbook.unheard()
        rounds: list[dict[int, Plan]] = []
        last = min(server_round + self.exchange.rounds_per_message - 1, self._num_rounds)
        for t in range(server_round, last + 1):
            if t > server_round:
                self._logbook.open(t)
                invited = self._take_part(t, list(rounds[-1]))
                sizes = self.exchange.expected_sizes(invited)
            resting = set(connected) - set(invited)
            plans, budget = self.planner.plans(
                t,
                invited,
                sizes,
                speeds,
                resting=resting,
                parked=self._logbook.spent(),
                unheard=unheard,
            )
            unheard = set()
            self._logbook.budget(budget)
            self._logbook.met(plans)
            rounds.append(plans)
        return rounds

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
        return self.exchange.messages([self._closing_plans(grid)], "evaluate")

    def _closing_plans(self, grid: Grid) -> dict[int, Plan]:
        self._logbook.asked()
        plans = self.planner.closing_plans(self._invite(grid), self.exchange.sizes)
        self._logbook.met(plans)
        return plans

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
        QuorumError
            Fewer than ``quorum`` are left.
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
        self.timeout = timeout
        checkpoint = self.keeper.load() if self.keeper else None
        how = self.num_nodes, self.method, timeout
        if self.keeper and checkpoint and not isinstance(grid, SimulationGrid):
            had = self.keeper.members_of(checkpoint)  # not all of them come at once
            met = handshake(grid, grid.get_node_ids(), *how, had, self.wait_timeout)
            self.roster = Roster(met, had, in_order=not simulates(grid))
        else:
            met = handshake(grid, wait_for_nodes(grid, self.min_nodes, self.wait_timeout), *how)
            self.roster = Roster(met, in_order=not simulates(grid))
        if len(met) < self.quorum:
            can = f"{len(met)} devices can take part"
            raise NoDevicesError(f"min-devices asks for {self.quorum}, and only {can}")
        self.planner.begin(
            self.roster.members,
            self.options.phases(num_rounds),
            self.options.trained,
            graph=self.graph if self._overrides("graph") else None,
            allocate=self._allocation if self._overrides("allocate") else None,
            alike=not unequal_blocks(self.roster.members),
        )
        self._check_sums()
        trained, last = num_rounds, self.planner.last_round  # others are of the final merge
        self._num_rounds = last
        self._logbook = Logbook(
            self.roster.members, last, self.trackers, self.planner.energy, self._liars
        )
        given = self.method, self.roster, self._logbook
        self.planner.hand_over = self._models_wanted()
        devices = self._hosted(grid)
        if self.rounds == "async":
            self._timing, self.exchange = timing_of(
                grid,
                self.method,
                self.planner,
                self.roster,
                self._logbook,
                self.gossip,
                self._make_exchange,
                num_rounds=last,
                max_staleness=self.max_staleness,
            )
        elif isinstance(grid, SimulationGrid) and devices:
            self.exchange = HostedExchange(*given, devices, grid.tell)
        else:
            self.exchange = self._make_exchange(*given)
        fixed = self.communicates and not self._time_varying
        graph = self.planner.graph(1) if fixed else None
        self._logbook.announce(self.method, graph, couriers=self.planner.couriers)
        self._say_who_may_lie()
        for line in self.planner.merge_lines():
            log(INFO, "%s", line)

        arrays, config = initial_arrays or ArrayRecord(), ConfigRecord()
        self.roster.check_initial(unpack(arrays))
        first = 1
        if self.keeper and checkpoint:
            states = self.keeper.restore(self, grid, checkpoint)
            self._returning = Returning(self.roster, self.method, states)
            first = checkpoint.server_round + 1
        elif self.keeper:
            self.keeper.begun(self)
        if self._timing:
            self._run_without_beat(grid, arrays, self._timing)
        else:
            self._run_in_rounds(grid, arrays, config, first, trained)
        if self.keeper:
            self.keeper.ended(self)
        log(INFO, "%s finished in %.1f s", self.method, time.monotonic() - started)
        return self._logbook.result()

    def _run_in_rounds(
        self, grid: Grid, arrays: ArrayRecord, config: ConfigRecord, first: int, trained: int
    ) -> None:
        """Run to the end, from a round on, in rounds of all; ``trained`` is the last one to train.

        Raises
        ------
        QuorumError
            Too few are left.
        """
        done, last, timeout = first - 1, self._num_rounds, self.timeout
        while done < last:
            before, laps = done, Laps()
            if isinstance(self.exchange, HostedExchange):
                (plans,) = self._plans(before + 1, grid)
                laps.lap(PLANNING)
                self.exchange.run(before + 1, plans, arrays)
                laps.lap(DEVICES)
                done = before + 1
            else:
                messages = self.configure_train(before + 1, arrays, config, grid)
                laps.lap(PLANNING)
                replies = self.roster.send(grid, messages, timeout)
                laps.lap(DEVICES)
                done = self.records[-1].round  # the last one of these messages
                self.aggregate_train(before + 1, replies)
                laps.lap(READING)
            self._take_models()
            for record in self.records[before:]:
                record.phases = {k: s / (done - before) for k, s in laps.seconds.items()}
                record.seconds = sum(record.phases.values())
            complete = self.records[max(0, before - 1) : -1]
            for record in complete:
                self._complete(record)
            short = self._short()
            if self.keeper:
                # The closing message changes the devices: too few may answer it.
                closing_next = done == last and self.quorum > 1
                laps = Laps()
                self.keeper.after_rounds(self, grid, before, done, last=bool(short) or closing_next)
                laps.lap(KEEPING)
                self.records[-1].phases |= laps.seconds
            if short:
                raise self._too_few(f"round {done}", short)
            if done < trained and (why := next(filter(None, map(self.stop, complete)), "")):
                log(INFO, "The run ends after round %s: %s", done, why)
                trained = done
                self.planner.end_at(done)
                last = self._num_rounds = self.planner.last_round
                self._logbook.end_at(last)
        if isinstance(self.exchange, HostedExchange):
            self.exchange.run(last, self._closing_plans(grid), closing=True)
        else:
            closing = self.configure_evaluate(last, arrays, config, grid)
            self.aggregate_evaluate(last, self.roster.send(grid, closing, timeout))
        self._take_models()
        self._complete(self.records[-1])
        if short := self._short():
            raise self._too_few(f"the last round, {last}", short)
        if last > trained:
            self._logbook.merged(trained)

    def _check_sums(self) -> None:
        """Refuse sums of one part.

        Raises
        ------
        TopologyError
            Names a device and a block.
        """
        for block, found in self.planner.only_parts().items() if self._sums else ():
            raise TopologyError(
                f"privacy.secure-sums: of the neighbours of device {found[0]} only one has the "
                f"block {block}, so that its sum would be that one's model ({len(found)} devices); "
                "allowed: none, two or more, as with topology = 'complete' or a higher degree"
            )

    def _run_without_beat(self, grid: Grid, arrays: ArrayRecord, timing: Timing) -> None:
        """Run to the end, each device in rounds of its own.

        Raises
        ------
        QuorumError
            Too few are left.
        """
        for line in timing.summary():
            log(INFO, "%s", line)
        for record in timing.run(grid, arrays, self.timeout):
            self._take_models()
            self._complete(record)
            if not timing.over and (why := self.stop(record)):
                log(INFO, "The run ends after round %s: %s", record.round, why)
                timing.end()
            short = self._short()
            if self.keeper:
                self.keeper.happened(timing.events)
                timing.events = []
                if not timing.over:
                    before = record.round - 1
                    self.keeper.after_rounds(self, grid, before, record.round, last=bool(short))
            if short:
                raise self._too_few(f"round {record.round}", short)
        self._num_rounds = self.records[-1].round

    def _models_wanted(self) -> bool:
        """Return whether devices are to hand over their models; say so if they are too large."""
        if self.keeper is None or self._keep_models != "auto":
            return self.keeper is not None and bool(self._keep_models)
        size = sum(4 * sum(m.blocks.values()) for m in self.roster.members.values())
        if size <= MODELS_BYTES:
            return True
        text = "Models of %s devices take %.1f GB, and are not kept; keep-models = true keeps them"
        log(INFO, text, len(self.roster.members), size / 1e9)
        return False

    def _take_models(self) -> None:
        if self.keeper and self.exchange.models:
            self.keeper.models(self.exchange.models)
        self.exchange.models = {}

    def _say_who_may_lie(self) -> None:
        """Say how many liars the aggregation rule can bear on the graph of the first round."""
        blocks = {p: member.blocks for p, member in self.roster.members.items()}
        graph, over = self.planner.links(1)
        found = held(graph, blocks, self.aggregation, over)
        for line in told(found, self.aggregation, self._liars, moving=self._time_varying):
            log(WARNING, "%s", line)
        if self._liars:
            log(WARNING, "Liars of this simulation: %s", ", ".join(map(str, sorted(self._liars))))

    def _hosted(self, grid: Grid) -> Hosted | None:
        """Return the devices of an engine that runs whole rounds; None where messages go.

        They do where the engine is another, the method's rounds are not run so, or the strategy has
        messages or an exchange of its own.
        """
        own = "configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate"
        if self._make_exchange is not Exchange or any(map(self._overrides, own)):
            return None
        devices = grid.hosted if isinstance(grid, SimulationGrid) else None
        return devices if devices and devices.takes(self.method) else None

    # ---- checkpoints ------------------------------------------------------------------------

    @property
    def resumable(self) -> bool:
        """Whether there is a state to go on from: not of real devices that do not wait."""
        return self._timing is None or isinstance(self._timing, EventTime)

    def state(self) -> dict[str, Any]:
        """Return what the next round depends on besides devices and payloads, as JSON."""
        own = {
            "planner": self.planner.state(),
            "logbook": self._logbook.state(self.rounds_done),
            "exchange": self.exchange.state(),
        }
        if isinstance(self._timing, EventTime):
            own["timing"] = self._timing.state()
        return own

    @property
    def payloads(self) -> Mapping[int, ArrayRecord]:
        """What devices have published that is still to be mixed, by partition."""
        own = self._timing if isinstance(self._timing, EventTime) else self.exchange
        return own.payloads

    def load_state(
        self,
        state: Mapping[str, Any],
        payloads: Mapping[int, ArrayRecord],
        before: Sequence[RoundRecord],
    ) -> None:
        """Go on from a :meth:`state`, with its payloads and the records of complete rounds."""
        self.rounds_done = len(before)
        self.planner.load_state(state["planner"])
        self._logbook.load_state(state["logbook"], before)
        if isinstance(self._timing, EventTime):
            self._timing.load_state(state["timing"], payloads)
            payloads = {}
        self.exchange.load_state(state["exchange"], payloads)

    def _invite(self, grid: Grid) -> list[int]:
        """Return who can be asked now; the others are named in the log."""
        if self._returning:
            self._returning.look(grid)
        invited, absent = self.roster.invite(grid)
        self._logbook.failures(absent)
        return invited

    def _take_part(self, server_round: int, connected: Collection[int]) -> list[int]:
        """Return who takes part in a round, of those that can be asked.

        Raises
        ------
        ValueError
            :meth:`participants` names somebody else, or nobody.
        """
        chosen = sorted(set(self.participants(server_round, connected)))
        if others := set(chosen) - set(connected):
            raise ValueError(
                f"round {server_round}: participants() names device {min(others)!r}, which is not "
                "connected"
            )
        if not chosen:
            raise ValueError(f"round {server_round}: participants() names no device")
        return chosen

    def _allocation(self, problem: RoundProblem, server_round: int) -> Allocation:
        """Return the strategy's own allocation, checked.

        Raises
        ------
        ValueError
            :meth:`allocate` gives a device more than it may have; the message names it.
        """
        plan = self.allocate(problem, server_round)
        if plan.tau.shape != problem.owned.shape:
            raise ValueError(
                f"round {server_round}: allocate() gives iterations of shape {plan.tau.shape}, "
                f"not {problem.owned.shape} (node, modality)"
            )
        if not (fits := problem.is_feasible(plan.tau)).all():
            k = int(fits.argmin())
            raise ValueError(
                f"round {server_round}: allocate() gives device {k} the iterations "
                f"{plan.tau[k].tolist()}; allowed are all 0, or {problem.lower[k].tolist()} to "
                f"{problem.upper[k].tolist()} within {problem.budget_j[k]:.4g} J and "
                f"{problem.latency_s[k]:.4g} s"
            )
        return plan

    def _short(self) -> str:
        """Return why too few devices are left after a message, or nothing.

        One that rests, or whose modelled battery is flat, is not missed.
        """
        lost, of = self._logbook.lost, len(self.roster.members)
        if of - len(lost) >= self.quorum:
            return ""
        why = join_reasons(
            {p: next(r.failed[p] for r in reversed(self.records) if p in r.failed) for p in lost}
        )
        return (
            f"{of - len(lost)} of {of} devices are left, min-devices asks for {self.quorum}: {why}"
        )

    def _too_few(self, after: str, short: str) -> QuorumError:
        go_on = "; the run can be resumed" if self.keeper and self.resumable else ""
        return QuorumError(f"Stopped after {after}: {short}{go_on}")

    def _complete(self, record: RoundRecord) -> None:
        """Report a round whose mixing and evaluation are in."""
        recorded = {str(k): float(v) for k, v in self.recorded(record).items()}
        record.noted |= {name: value for name, value in recorded.items() if isfinite(value)}
        self._logbook.complete(record)
        self.rounds_done = record.round

    def _overrides(self, hook: str) -> bool:
        return getattr(type(self), hook) is not getattr(PeerStrategy, hook)

    @property
    def _time_varying(self) -> bool:
        return self.topology.time_varying or self._overrides("graph")
