"""Runs in which devices do not wait for one another: what they need, and what times them."""

from collections.abc import Collection, Iterator
from typing import Protocol

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from ..base.errors import MethodError
from ..engine.grid import SimulationGrid
from ..gossip.rule import GossipRule
from ..settings import Settings
from ..tracking.events import DeviceRound
from ..tracking.records import RoundRecord
from .direct import SpanExchange
from .energy.energy_constrained import EnergyConstrained
from .energy.own_rounds import OwnRounds
from .event_time import EventTime
from .exchange import Exchange, MakeExchange
from .letters import LetterExchange
from .logbook import Logbook
from .planner import RoundPlanner
from .real_time import RealTime
from .roster import Roster

OF_ALL = "graph", "participants", "allocate", "configure_train", "aggregate_train"
"""Hooks of a strategy that are about rounds of all devices."""


class Timing(Protocol):
    """When each device does its rounds, and what it mixes then."""

    events: list[DeviceRound]
    """Rounds that devices have ended since this was last emptied."""

    @property
    def over(self) -> bool:
        """Whether no device is in a round any more."""

    def summary(self) -> list[str]:
        """Return what is known before the first round, in a few lines for the log."""

    def run(self, grid: Grid, initial: ArrayRecord, timeout: float) -> Iterator[RoundRecord]:
        """Run to the end; yield each record when it is complete, in order."""

    def end(self) -> None:
        """Let no device begin another round."""


def own_rounds(
    energy: EnergyConstrained | None,
    rule: GossipRule | None,
    mains: Settings,
    strategy: str,
    overridden: Collection[str],
) -> OwnRounds:
    """Return the energy of devices that do not wait for one another.

    Parameters
    ----------
    energy : EnergyConstrained or None
        The run's; None for devices on mains power.
    rule : GossipRule or None
        How blocks move; None where they do not.
    mains : Settings
        For these.
    strategy, overridden : str and collection of str
        The name of the strategy, and those of :data:`OF_ALL` that it has of its own.

    Raises
    ------
    MethodError
        The gossip rule cannot, or a strategy of one's own plans the rounds of all.
    """
    if own := [hook for hook in OF_ALL if hook in overridden]:
        raise MethodError(
            f"{strategy}.{own[0]} is about rounds of all devices, and with rounds = 'async' there "
            "are none; allowed: sync"
        )
    if rule and (why := rule.beat_problem()):
        raise MethodError(f"rounds = 'async': the gossip rule {rule.name!r}: {why}")
    energy = energy or OwnRounds(mains)
    if not isinstance(energy, OwnRounds):
        raise MethodError("rounds = 'async' goes with an energy of the kind OwnRounds")
    return energy


def timing_of(
    grid: Grid,
    method: str,
    planner: RoundPlanner,
    roster: Roster,
    logbook: Logbook,
    rule: GossipRule,
    make_exchange: MakeExchange,
    *,
    num_rounds: int,
    max_staleness: int,
) -> tuple[Timing, Exchange]:
    """Return what times the devices of a run, and its exchange with them.

    Raises
    ------
    MethodError
        The devices are real, and payloads do not go directly from one to the other.
    """
    counts = {"num_rounds": num_rounds, "max_staleness": max_staleness}
    if isinstance(grid, SimulationGrid):
        letters = LetterExchange(method, roster, logbook)
        return EventTime(planner, roster, logbook, letters, rule, **counts), letters
    exchange = make_exchange(method, roster, logbook)
    if not isinstance(exchange, SpanExchange):
        raise MethodError(
            "rounds = 'async': these devices are real, and by relay they would wait for their "
            "messages; allowed: exchange.transport = 'direct', or flwr-dmml simulate"
        )
    return RealTime(planner, roster, logbook, exchange, **counts), exchange
