"""The base of this package's grids of simulated nodes (:class:`SimulationGrid`)."""

from collections.abc import Callable, Sequence

import networkx as nx
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from ..tracking import Tracker
from .nodes import Hosted, simulated_nodes


def never() -> bool:
    """Return that a run is not to end early."""
    return False


class SimulationGrid(Grid):
    """A Grid with simulated nodes.

    Parameters
    ----------
    num_nodes : int
        Nodes; node i has partition id i.
    run_id : int
        Id of the run.
    trackers : sequence of Tracker
        Handed to the ServerApp, which tells them of every round.
    on_reply : callable or None
        Called with the number of replies and of messages in the exchange that is going on.
    """

    def __init__(
        self,
        num_nodes: int,
        run_id: int,
        trackers: Sequence[Tracker],
        on_reply: Callable[[int, int], None] | None,
    ) -> None:
        self.trackers = tuple(trackers)
        self.stopping: Callable[[], bool] = never  # whether the run is to end early
        self._on_reply = on_reply
        self._replies: dict[str, Message] = {}  # by the id of the message they answer
        self._nodes = simulated_nodes(num_nodes)
        self._run = Run.create_empty(run_id)
        self._count = 0

    @property
    def hosted(self) -> Hosted | None:
        """All devices, to run whole rounds; None of a ClientApp that takes messages only."""
        return None

    def tell(self, there: int, of: int) -> None:
        """Tell how many devices of an exchange are done."""
        if self._on_reply:
            self._on_reply(there, of)

    def arrange(self, graph: nx.Graph, costs: Sequence[float] | None = None) -> None:
        """Take note of who exchanges with whom, on partition ids, and of each device's work."""

    def set_run(self, run: Run) -> None:
        """Set the run this grid works for."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run this grid works for."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message (deprecated in Flower; use ``Message`` itself)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes."""
        return list(self._nodes)

    def _accept(self, message: Message) -> str:
        """Give a message its id and return that.

        Raises
        ------
        ValueError
            It is for a node that does not exist.
        """
        if message.metadata.dst_node_id not in self._nodes:
            raise ValueError(f"there is no node {message.metadata.dst_node_id}")
        self._count += 1
        message.metadata.__dict__["_message_id"] = f"{self._run.run_id}-{self._count}"
        return message.metadata.message_id
