"""Run a strategy by hand on the in-process grid, as the tests of learners and strategies do."""

from collections.abc import Mapping
from typing import Any, ClassVar

from flwr_dmml.blocks import flatten
from flwr_dmml.clients import DPSGD, Learner, find_methods, make_client_app, option_types
from flwr_dmml.config import parse_settings
from flwr_dmml.data import load_partition
from flwr_dmml.engine import InProcessGrid, server_identity
from flwr_dmml.plan import Inbox, Outcome, Plan
from flwr_dmml.strategies import PeerStrategy
from flwr_dmml.strategies.registry import find_strategies
from flwr_dmml.topology import make_topology

FAST: dict[str, Any] = {"samples-per-node": 40, "local-iterations": 2, "batch-size": 16}
"""Settings that make a round a matter of milliseconds."""


def make_learner(config: Mapping[str, Any], partition_id: int = 0) -> Learner:
    """Build the learner that a run config describes, for one device, without Flower."""
    methods = find_methods()
    settings, options = parse_settings(config, option_types(methods))
    partition = load_partition(settings.partition_options(), partition_id)
    return methods[settings.method](partition, settings, options[settings.method])


def run_peers(
    config: Mapping[str, Any],
    *learners: type[Learner],
    num_rounds: int = 2,
    timeout: float = 60.0,
    stall_s: float = 60.0,
    **strategy: Any,
) -> PeerStrategy:
    """Run ``config`` on the in-process grid and return the strategy with its records."""
    n = config.get("num-nodes", 12)
    methods = find_methods(learners)
    method = methods[config.get("method", "dpsgd")]
    grid = InProcessGrid(make_client_app(*learners), n, config, stall_s=stall_s)
    peers = find_strategies().get(method.name, PeerStrategy)(
        make_topology(config.get("topology", "ring"), path=config.get("topology-file", "")),
        num_nodes=n,
        method=method.name,
        communicates=method.communicates,
        local_iterations=config.get("local-iterations", 2),
        seed=config.get("seed", 0),
        **strategy,
    )
    with server_identity(1):
        peers.start(grid, num_rounds=num_rounds, timeout=timeout)
    return peers


class Recording(DPSGD):
    """D-PSGD that keeps every device's final blocks (in this process) for inspection."""

    name = "recording"
    final: ClassVar[dict[int, dict[str, Any]]] = {}

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        outcome = super().run_round(plan, inbox)
        if plan.iterations == 0:
            blocks = {name: flatten(module) for name, module in self.blocks().items()}
            self.final[self.partition.partition_id] = blocks
        return outcome
