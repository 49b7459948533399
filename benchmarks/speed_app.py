"""The speed benchmark's workload, D-PSGD of an MLP, as a plain loop and as a Flower app by hand.

Both compute the same. :func:`plain_loop` is PyTorch alone. :data:`client_app` and
:func:`server_app` are what anybody would write: of this package they have the data, the graph and
the seeds, and the hint to an engine who exchanges. ``speed_learner.py`` has the third way.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from math import prod
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_dmml.base.seeding import derive_seed
from flwr_dmml.data import load_partition
from flwr_dmml.graph.topology import make_topology
from flwr_dmml.settings import Settings
from flwr_dmml.tracking import RoundRecord

ROWS, TOTAL, BATCH, STEPS, RATE, DEGREE = 60, 60_000, 32, 2, 0.05, 8
TOPOLOGY = make_topology("random-regular", degree=DEGREE)


@dataclass(frozen=True)
class Run:
    """When it began, when rounds ended, and a digest and a sample of the last models.

    ``ended`` leaves out what is not a round like the others: the first, and a closing one.
    """

    begun: float
    ended: Sequence[float]
    digest: str
    models: list[list[float]]

    @classmethod
    def of(
        cls, begun: float, ended: Sequence[float], nodes: int, model: Callable[[int], np.ndarray]
    ) -> "Run":
        """Look at one model after another: all at once would count as the engine's memory."""
        whole, sample = blake2b(), list[list[float]]()
        for k in range(nodes):
            vector = model(k)
            whole.update(vector.tobytes())
            if k % max(1, nodes // 16) == 0:
                sample.append(vector[::97].tolist())
        return cls(begun, ended, whole.hexdigest(), sample)


class Clock:
    """A tracker that notes when rounds end.

    A round ends when its models are mixed. Where the next round's messages carry that, it is when
    the next has been trained, and the last round ends with a closing message that trains nothing.
    """

    def run_started(self, method: str, num_rounds: int, node_modalities: Sequence[str]) -> None:
        """Note the beginning."""
        self.begun = time.perf_counter()
        self.ended, self.records = list[float](), list[RoundRecord]()

    def round_ended(self, record: RoundRecord) -> None:
        """Note the end of a round."""
        self.ended.append(time.perf_counter())
        self.records.append(record)


def settings(nodes: int, data: str, dataset: str = "mnist", device: str = "cpu") -> dict[str, Any]:
    """Return the run config; ``digits`` has too few samples to divide, devices share them."""
    divided = {"partition": "iid", "samples-per-node": min(ROWS, TOTAL // nodes)}
    shared = {"partition": "own", "samples-per-node": ROWS}
    return {
        "method": "small-mlp",
        "num-nodes": nodes,
        "dataset": dataset,
        "data-path": data,
        **(divided if dataset == "mnist" else shared),
        "validation-fraction": 0.0,
        "modality-pattern": "image",
        "batch-size": BATCH,
        "learning-rate": RATE,
        "momentum": 0.0,
        "clip-norm": 0.0,
        "device": device,
    }


class Mlp(nn.Module):
    """An MLP pixels-64-10: 50,890 parameters for 28x28 pixels, 4,810 for 8x8."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.hidden, self.out = nn.Linear(pixels, 64), nn.Linear(64, 10)
        self.flatten, self.relu = nn.Flatten(), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.out(self.relu(self.hidden(self.flatten(images))))
        return logits


# ---- by hand ------------------------------------------------------------------------------------


class Node:
    """A model and its images: 60, or fewer where there are not as many."""

    def __init__(self, index: int, config: dict[str, Any]) -> None:
        parsed = Settings(**{key.replace("-", "_"): value for key, value in config.items()})
        train = load_partition(parsed.partition_options(), index).train
        self.index, self.y = index, train.labels.to(parsed.device)
        self.x = train.inputs["image"].to(parsed.device)
        self.model = Mlp(prod(self.x.shape[1:])).to(parsed.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE)

    def vector(self) -> Tensor:
        """Return the parameters."""
        with torch.no_grad():
            return nn.utils.parameters_to_vector(self.model.parameters())


def train(node: Node, own: Tensor, others: Iterable[Tensor], server_round: int) -> float:
    """Mix ``own`` with the others, train one epoch, and return the last loss."""
    weight, inbox = 1 / (DEGREE + 1), list(others)
    mixed = own * weight if inbox else own.clone()
    for other in inbox:
        mixed.add_(other, alpha=weight)
    nn.utils.vector_to_parameters(mixed, node.model.parameters())
    rng = torch.Generator().manual_seed(derive_seed(0, "batches", node.index, server_round))
    passes = [torch.randperm(len(node.y), generator=rng) for _ in range(1 + STEPS * BATCH // ROWS)]
    for rows in torch.cat(passes)[: STEPS * BATCH].split(BATCH):
        node.optimizer.zero_grad()
        loss = F.cross_entropy(node.model(node.x[rows]), node.y[rows])
        loss.backward()
        node.optimizer.step()
    return loss.item()


def plain_loop(nodes: int, rounds: int, config: dict[str, Any]) -> Run:
    """Do all in one loop, without messages."""
    every, near = [Node(k, config) for k in range(nodes)], TOPOLOGY.graph(nodes)
    begun, ended = time.perf_counter(), list[float]()
    for server_round in range(1, rounds + 1):
        vectors = [node.vector() for node in every]
        for node in every:
            heard = sorted(near[node.index]) if server_round > 1 else []
            train(node, vectors[node.index], [vectors[j] for j in heard], server_round)
        ended.append(time.perf_counter())
    return Run.of(begun, ended[1:], nodes, lambda k: every[k].vector().cpu().numpy())


client_app = ClientApp()


@cache
def node_of(index: int, nodes: int) -> Node:
    """Return a node of this process."""
    return Node(index, settings(nodes, os.environ["FLWR_DMML_DATA"]))


@client_app.train()
def on_train(message: Message, context: Context) -> Message:
    """Take up the model, run a round, and send the new one."""
    torch.set_num_threads(1)
    config, place = message.content.config_records["config"], context.node_config
    node = node_of(int(place["partition-id"]), int(place["num-partitions"]))
    if "model" in context.state:
        own = torch.from_numpy(context.state.array_records["model"]["vector"].numpy())
    else:
        own = node.vector()
    others = [
        torch.from_numpy(record["vector"].numpy())
        for _, record in sorted(message.content.array_records.items())
    ]
    loss = train(node, own, others, int(config["round"]))  # type: ignore[arg-type]
    record = ArrayRecord({"vector": Array(node.vector().numpy())})
    context.state["model"] = record
    content = RecordDict({"model": record, "metrics": MetricRecord({"loss": loss})})
    return Message(content, reply_to=message)


@client_app.query("who")
def on_who(message: Message, context: Context) -> Message:
    """Say which node this is."""
    who = MetricRecord({"partition": int(context.node_config["partition-id"])})
    return Message(RecordDict({"who": who}), reply_to=message)


def run_rounds(grid: Grid, nodes: int, rounds: int) -> Run:
    """Relay models between neighbours."""
    near, models, ended = TOPOLOGY.graph(nodes), dict[int, ArrayRecord](), list[float]()
    if hasattr(grid, "arrange"):
        grid.arrange(near)
    while len(ids := grid.get_node_ids()) < nodes:
        time.sleep(0.05)
    asked = [Message(RecordDict(), node_id, "query.who") for node_id in ids]
    replies = grid.send_and_receive(asked)
    partitions = [int(r.content.metric_records["who"]["partition"]) for r in replies]
    node_ids = dict(zip(partitions, (r.metadata.src_node_id for r in replies), strict=True))
    of_node = {node_id: k for k, node_id in node_ids.items()}
    begun = time.perf_counter()
    for server_round in range(1, rounds + 1):
        messages: list[Message] = []
        for k in range(nodes):
            inbox = {f"{j:05d}": models[j] for j in sorted(near[k])} if models else {}
            content = RecordDict({"config": ConfigRecord({"round": server_round}), **inbox})
            messages.append(Message(content, node_ids[k], "train"))
        replies = grid.send_and_receive(messages)
        models = {
            of_node[r.metadata.src_node_id]: r.content.array_records["model"] for r in replies
        }
        ended.append(time.perf_counter())
    return Run.of(begun, ended[1:], nodes, lambda k: models[k]["vector"].numpy())


def server_app(results: list[Run], nodes: int, rounds: int) -> ServerApp:
    """Return a ServerApp that appends to ``results`` what :func:`run_rounds` returns."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        results.append(run_rounds(grid, nodes, rounds))

    return app
