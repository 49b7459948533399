"""Devices of methods in stages: with steady networks, stepped by hand, and watched in runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from helpers import FAST, make_learner
from torch import Tensor, nn

from flwr_dmml.clients import Learner, make_client_app
from flwr_dmml.data import Modality, Partition, Samples
from flwr_dmml.engine import FlowerApp, run_app
from flwr_dmml.methods.staged import Staged
from flwr_dmml.methods.stages import StagedOptions
from flwr_dmml.payload.plan import Inbox, Outcome, Plan
from flwr_dmml.settings import Settings
from flwr_dmml.strategies import make_server_app
from flwr_dmml.transport.messages import pack, unpack

Records = list[dict[str, Any]]
Seen = dict[tuple[int, int], Any]
"""By round and device."""

SENSORS = {"audio": Modality("vector", (3,)), "image": Modality("vector", (2,))}


def set_logits(head: nn.Module, logits: Sequence[float]) -> None:
    """Make a head say the same of every feature."""
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.copy_(torch.tensor(logits) if name == "bias" else torch.tensor(0.0))


def steady(
    kind: type[Staged],
    options: StagedOptions,
    alone: Mapping[str, Sequence[float]],
    fused: Sequence[float] = (),
    *,
    labels: Sequence[int] = (0, 1),
    held_out: Sequence[int] = (0, 1),
    **settings: Any,
) -> Staged:
    """Build a device whose networks give the same logits for every input, at first."""

    def samples(y: Sequence[int]) -> Samples:
        rng = torch.Generator().manual_seed(len(y))
        shapes = {m: SENSORS[m].shape for m in alone}
        inputs = {m: torch.randn(len(y), *shape, generator=rng) for m, shape in shapes.items()}
        return Samples(inputs, torch.tensor(y))

    held = samples(held_out)
    classes = len(next(iter(alone.values())))
    part = Partition(0, tuple(alone), samples(labels), held, SENSORS, classes, held)
    common = {"batch_size": 2, "common_dim": 2, "specific_dim": 2, "local_iterations": 2}
    learner = kind(part, Settings(**{**common, **settings}), options)
    for m, logits in alone.items():
        set_logits(learner.model.heads[m], logits)
    if fused:
        set_logits(learner.model.fusion_head, fused)
    return learner


def step(
    learner: Learner,
    server_round: int,
    phase: str,
    inbox: Inbox | None = None,
    updates: Mapping[str, int] | None = None,
    **plan: Any,
) -> Outcome:
    """Run a round of two iterations, in the last stage of the student only."""
    if updates is None and phase == "distil" and len(learner.partition.modalities) > 1:
        updates = {"image": 0}
    given = Plan(server_round, 2, phase=phase, by_modality=dict(updates or {}), **plan)
    return learner.run_round(given, inbox or {})


def copied(learner: Learner, config: Mapping[str, Any]) -> Learner:
    """Build the same device anew, with the state as Flower would keep it."""
    other = make_learner(config, learner.partition.partition_id)
    other.load_state(unpack(pack(learner.state())))
    return other


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Say whether these are the same numbers under the same names, bit for bit."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class Watching(Learner):
    """Mixed into a method: keeps what every device was told, mixed and published."""

    plans: Seen
    mixed: Seen
    sent_by: Seen

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        self.plans[plan.server_round, self.partition.partition_id] = plan
        outcome = super().run_round(plan, inbox)
        self.sent_by[plan.server_round, self.partition.partition_id] = dict(outcome.payload)
        return outcome

    def after_mixing(self, plan: Plan, inbox: Inbox) -> None:
        super().after_mixing(plan, inbox)
        state = {n: v for n, v in self.state().items() if n in self.blocks()}
        self.mixed[plan.server_round, self.partition.partition_id] = state


def watching(kind: type[Staged]) -> type[Any]:
    """Return a method that is watched, with nothing seen yet."""
    seen: dict[str, Any] = {"plans": {}, "mixed": {}, "sent_by": {}}
    return type("Watched", (Watching, kind), {"name": "watched", **seen})


def run(folder: Path, kind: type[Staged], num_rounds: int = 6, **more: Any) -> Records:
    """Run a watched method on devices with audio, image and both; return its rounds."""
    own = {k.replace("__", ".").replace("_", "-"): v for k, v in more.items()}
    config = {
        **FAST, "num-nodes": 6, "topology": "complete", "method": "watched", "run-name": "x",
        "run-dir": str(folder), "num-server-rounds": num_rounds, "evaluate-every": 1, **own,
    }  # fmt: skip
    server = make_server_app(kind)
    run_app(FlowerApp(config, server, make_client_app(kind)), config["num-nodes"])
    lines = (folder / "x" / "watched" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def numbers(value: Any) -> list[float]:
    """Return every number in a record."""
    if isinstance(value, dict):
        return [x for item in value.values() for x in numbers(item)]
    if isinstance(value, list):
        return [x for item in value for x in numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []
