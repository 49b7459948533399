"""Runs of the hosted devices of a process, or of several; what came of them, for comparison."""

import os
import signal
from collections.abc import Callable, Hashable
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from helpers import FAST
from torch import Tensor

from flwr_dmml.clients import Learner, make_client_app
from flwr_dmml.engine import FlowerApp, SimulationGrid, run_app
from flwr_dmml.graph.topology import make_topology
from flwr_dmml.methods.presets import DPSGD
from flwr_dmml.payload.plan import Inbox, Plan
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.strategies import Keeper, PeerStrategy
from flwr_dmml.strategies.hosted import HostedExchange
from flwr_dmml.tracking import RunFolder

NODES = 6
CONFIG: dict[str, Any] = {**FAST, "num-nodes": NODES, "modality-pattern": "audio,image,audio+image"}


class Killed(DPSGD):
    """Kills its process in round 3, once."""

    name: ClassVar[str] = "killed"

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Leave a mark, and die."""
        _die_once(self, 3)


class KilledTelling(DPSGD):
    """Kills its process when it tells its state after round 2, once."""

    name: ClassVar[str] = "killed-telling"

    def state(self) -> dict[str, Tensor]:
        """Leave a mark, and die."""
        _die_once(self, 2)
        return super().state()


class Far(DPSGD):
    """Device 0 leaves the range of values in round 2."""

    name: ClassVar[str] = "far"

    def stack_key(self) -> Hashable:
        """Return what sets device 0 apart in that round."""
        return self._leaves

    def learning_rates(self) -> dict[str, float]:
        """Return far too high ones."""
        heads = [name for name in self.block_names if name.startswith("head")]
        return dict.fromkeys(heads, 1e8) if self._leaves else {}

    @property
    def _leaves(self) -> bool:
        return self.server_round == 2 and self.partition.partition_id == 0


def _die_once(learner: Learner, server_round: int) -> None:
    mark = Path(os.environ["KILLED"])
    here = learner.partition.partition_id == 0 and learner.server_round == server_round
    if here and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def client_app() -> ClientApp:
    """Return what the devices run."""
    return make_client_app(Far, Killed, KilledTelling)


def run(
    method: str,
    workers: int,
    address: str = "",
    rounds: int = 3,
    folder: Path | None = None,
    stopping: Callable[[], bool] = lambda: False,
    **changed: Any,
) -> tuple[list[Any], dict[int, str]]:
    """Return the records of all rounds, and a digest of what every device published last.

    In a ``folder`` there is a checkpoint of every round, and the run goes on from the last one.
    """
    config = {**CONFIG, "method": method, **changed}
    devices = client_app()
    kept: RunFolder | None = None
    if folder is not None:
        again = folder.exists()
        kept = RunFolder.reopen(folder) if again else RunFolder(folder.parent, folder.name, config)
    parsed = parse_settings(config, find_parts(devices.own))  # type: ignore[attr-defined]
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
            keeper=Keeper(kept.path / method, 1, 9, stopping) if kept else None,
            trackers=[kept] if kept else [],
        )
        strategy.start(grid, num_rounds=rounds)
        assert isinstance(strategy.exchange, HostedExchange)
        payloads = strategy.exchange.payloads
        digests = {
            p: blake2b(b"".join(a.numpy().tobytes() for a in record.values())).hexdigest()
            for p, record in payloads.items()
        }
        found.append(([record.to_json() for record in strategy.records], digests))

    run_app(FlowerApp(config, app, devices), NODES, workers=workers, ray_address=address)
    records, digests = found[0]
    return records, digests
