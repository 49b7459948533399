"""One run config on two engines: rows of one process, and a message for each device."""

from collections.abc import Mapping
from typing import Any

from helpers import FAST, run_peers

from flwr_dmml.clients import Learner
from flwr_dmml.engine import InProcessGrid
from flwr_dmml.gossip.rule import GossipRule
from flwr_dmml.strategies import PeerStrategy

SENSORS: dict[str, Any] = {**FAST, "method": "dpsgd", "num-nodes": 6}
"""Six devices: two with a microphone, two with a camera, two with both."""


class ByMessages(InProcessGrid):
    """Asks each device by a message of its own, as Flower's engine does."""

    @property
    def hosted(self) -> None:
        """Nobody hosts all devices at once."""
        return None


def on_both_engines(
    config: Mapping[str, Any],
    *learners: type[Learner],
    rounds: int = 3,
    rules: tuple[type[GossipRule], ...] = (),
) -> PeerStrategy:
    """Run a config on both engines, compare all records, and return one of the runs."""
    runs = [
        run_peers(config, *learners, num_rounds=rounds, evaluate_every=2, rules=rules, grid=grid)
        for grid in (InProcessGrid, ByMessages)
    ]
    together, alone = ([record.to_json() for record in run.records] for run in runs)
    assert together == alone
    assert not any(record.failed for record in runs[0].records)
    assert all(node.rejected == 0 for record in runs[0].records for node in record.nodes)
    return runs[0]
