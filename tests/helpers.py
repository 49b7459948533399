"""Run a strategy by hand on the in-process grid, as the tests of learners and strategies do."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from flwr_dmml.clients import DPSGD, Learner, make_client_app
from flwr_dmml.data import load_partition
from flwr_dmml.engine import InProcessGrid, server_identity
from flwr_dmml.gossip.rule import GossipRule
from flwr_dmml.learning.crew import Crew
from flwr_dmml.learning.settings import choices_of
from flwr_dmml.payload.blocks import flatten
from flwr_dmml.payload.plan import Inbox, Outcome, Plan
from flwr_dmml.settings import OwnParts, find_parts, parse_settings
from flwr_dmml.strategies import PeerStrategy
from flwr_dmml.strategies.app import merge_of

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "examples" / "quickstart"
FEW_STEPS: dict[str, Any] = {"dmml-kd.generator-steps": 2, "fedgen.generator-steps": 2}
PLAIN: dict[str, Any] = {
    **{k: v for k, v in choices_of(Learner).items() if k not in ("stagger", "allocation.rule")},
    "gossip": Learner.gossip,
    "couriers": Learner.couriers,
}
"""None of DMML's choices: what DMML-KD adds is by itself."""
FAST: dict[str, Any] = {
    "samples-per-node": 40,
    "local-iterations": 2,
    "batch-size": 16,
    **FEW_STEPS,
}
"""Settings that make a round a matter of milliseconds."""


def make_learner(config: Mapping[str, Any], partition_id: int = 0) -> Learner:
    """Build the learner that a run config describes, for one device, without Flower."""
    parsed = parse_settings(config, find_parts())
    partition = load_partition(parsed.settings.partition_options(), partition_id)
    return parsed.learner(parsed.settings.method, partition)


def run_peers(
    config: Mapping[str, Any],
    *learners: type[Learner],
    num_rounds: int = 2,
    timeout: float = 60.0,
    stall_s: float = 60.0,
    rules: Sequence[type[GossipRule]] = (),
    grid: type[InProcessGrid] = InProcessGrid,
    kind: type[PeerStrategy] = PeerStrategy,
    **strategy: Any,
) -> PeerStrategy:
    """Run ``config`` on the in-process grid and return the strategy with its records."""
    n = config.get("num-nodes", 12)
    parsed = parse_settings(
        {"method": "dpsgd", **config}, find_parts(OwnParts(learners, tuple(rules)))
    )
    name = parsed.settings.method
    method = parsed.parts.methods[name]
    engine = grid(make_client_app(*learners, gossip=rules), n, config, stall_s=stall_s)
    plan: dict[str, Any] = {"options": parsed.options[name], "gossip": parsed.gossip_of(name)}
    plan["couriers"] = parsed.couriers_of(name)
    plan |= {"aggregation": parsed.aggregation}
    plan |= {"liars": parsed.settings.attack.liars(n, parsed.settings.seed)}
    plan |= {"loss_rate": parsed.settings.loss_rate, "merge": merge_of(parsed.settings)}
    privacy = parsed.settings.privacy
    plan |= {"shares": privacy.unicast, "sums": privacy.secure_sums}
    peers = kind(
        parsed.settings.make_topology(),
        num_nodes=n,
        method=name,
        communicates=method.communicates,
        local_iterations=config.get("local-iterations", 2),
        seed=config.get("seed", 0),
        **{**plan, **strategy},
    )
    with server_identity(1):
        peers.start(engine, num_rounds=num_rounds, timeout=timeout)
    return peers


def run_together(
    learners: Sequence[Learner], plans: Sequence[Plan], crew: Crew | None = None
) -> list[Outcome | Exception]:
    """Run a round of devices that one process hosts; return each one's result, with its payload."""
    crew = crew or Crew(dict(enumerate(learners)))
    results = crew.run(dict(enumerate(plans)))
    return [
        result if isinstance(result, Exception) else replace(result, payload=crew.payload(k))
        for k, result in results.items()
    ]


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


CUSTOM = ROOT / "examples" / "custom_method"


def install_metadata(package: Path, folder: Path) -> Path:
    """Write a package's metadata and entry points to ``folder``, as an installer would."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    name, version = project["name"].replace("-", "_"), project["version"]
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n"
    (info / "METADATA").write_text(head)
    groups = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    return folder


def simulate_custom(installed: Path, run_dir: Path, workers: int = 0, **settings: Any) -> Path:
    """Run examples/custom_method, as installed, by `flwr-dmml simulate`; return ``run_dir``."""
    install_metadata(CUSTOM, installed)
    sets = [part for k, v in settings.items() for part in ("--set", f"{k}={json.dumps(v)}")]
    command = [sys.executable, "-m", "flwr_dmml.cli", "simulate", str(CUSTOM), *sets]
    command += ["--workers", str(workers)]
    found = [str(installed), str(CUSTOM), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*command, "--set", f"run-dir={run_dir}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, found))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return run_dir
