"""Runs of the hosted devices of a process, or of several; what came of them, for comparison."""

import os
import signal
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from helpers import FAST

from flwr_dmml.clients import make_client_app
from flwr_dmml.engine import FlowerApp, SimulationGrid, run_app
from flwr_dmml.graph.topology import make_topology
from flwr_dmml.methods.presets import DPSGD
from flwr_dmml.payload.plan import Inbox, Plan
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.strategies import PeerStrategy
from flwr_dmml.strategies.hosted import HostedExchange

NODES = 6
CONFIG: dict[str, Any] = {**FAST, "num-nodes": NODES, "modality-pattern": "audio,image,audio+image"}


class Killed(DPSGD):
    """Kills its process in round 3, once."""

    name: ClassVar[str] = "killed"

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Leave a mark in the data folder, and die."""
        mark = Path(os.environ["KILLED"])
        if plan.server_round == 3 and self.partition.partition_id == 0 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def run(
    method: str, workers: int, address: str = "", rounds: int = 3, **changed: Any
) -> tuple[list[Any], dict[int, str]]:
    """Return the records of all rounds, and a digest of what every device published last."""
    config = {**CONFIG, "method": method, **changed}
    client_app: ClientApp = make_client_app(Killed)
    parsed = parse_settings(config, find_parts(client_app.own))  # type: ignore[attr-defined]
    found: list[Any] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        topology = make_topology(str(changed.get("topology", "ring")))
        if isinstance(grid, SimulationGrid):
            grid.arrange(topology.graph(NODES))
        strategy = PeerStrategy(
            topology,
            num_nodes=NODES,
            method=method,
            local_iterations=3,
            evaluate_every=2,
            options=parsed.options[method],
            gossip=parsed.gossip_of(method),
            couriers=parsed.couriers_of(method),
        )
        strategy.start(grid, num_rounds=rounds)
        assert isinstance(strategy.exchange, HostedExchange)
        payloads = strategy.exchange.payloads
        digests = {
            p: blake2b(b"".join(a.numpy().tobytes() for a in record.values())).hexdigest()
            for p, record in payloads.items()
        }
        found.append(([record.to_json() for record in strategy.records], digests))

    run_app(FlowerApp(config, app, client_app), NODES, workers=workers, ray_address=address)
    records, digests = found[0]
    return records, digests
