"""A small Flower app for the speed benchmark: D-PSGD of an MLP, by hand.

A ClientApp and a round plan as anybody would write them against Flower's messages; of this package
it has only the reader of MNIST, and the hint to an engine that has one who exchanges. What a node
computes is :func:`train`, which the plain loop calls too.
"""

import os
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache

import networkx as nx
import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_dmml.data.registry import LoadOptions, load_source

ROWS, BATCH, RATE, DEGREE = 60, 32, 0.05, 8


def graph(nodes: int) -> nx.Graph:
    """Return the graph: 8-regular, all weights 1/9."""
    return nx.random_regular_graph(DEGREE, nodes, seed=0)


class Node:
    """An MLP 784-64-10 and 60 images."""

    def __init__(self, index: int, data: str) -> None:
        train = load_source("mnist", LoadOptions(path=data)).train
        rows = torch.arange(index * ROWS, (index + 1) * ROWS) % len(train)
        self.index, self.x, self.y = index, train.inputs["image"][rows], train.labels[rows]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.model = nn.Sequential(
                nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)
            )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE)

    def vector(self) -> Tensor:
        """Return the parameters."""
        with torch.no_grad():
            return nn.utils.parameters_to_vector(self.model.parameters())


def train(node: Node, own: Tensor, others: Iterable[Tensor], server_round: int) -> float:
    """Mix ``own`` with the others, train one epoch, and return the last loss."""
    mixed, weight = own / (DEGREE + 1), 1 / (DEGREE + 1)
    for other in others:
        mixed.add_(other, alpha=weight)
    nn.utils.vector_to_parameters(mixed, node.model.parameters())
    rng = torch.Generator().manual_seed(1000 * server_round + node.index)
    for rows in torch.randperm(ROWS, generator=rng).split(BATCH):
        node.optimizer.zero_grad()
        loss = F.cross_entropy(node.model(node.x[rows]), node.y[rows])
        loss.backward()
        node.optimizer.step()
    return loss.item()


client_app = ClientApp()
node_of = lru_cache(maxsize=None)(Node)


@client_app.train()
def on_train(message: Message, context: Context) -> Message:
    """Take up the model, run a round, and send the new one."""
    torch.set_num_threads(1)
    config = message.content.config_records["config"]
    node = node_of(int(context.node_config["partition-id"]), os.environ["FLWR_DMML_DATA"])
    if "model" in context.state:
        own = torch.from_numpy(context.state.array_records["model"]["vector"].numpy())
    else:
        own = node.vector()
    others = [
        torch.from_numpy(record["vector"].numpy())
        for _, record in sorted(message.content.array_records.items())
    ] or [own] * DEGREE
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


def run_rounds(grid: Grid, nodes: int, rounds: int) -> tuple[list[float], np.ndarray]:
    """Relay models between neighbours; return when each round began, and the last models.

    The last time is that of the end.
    """
    if hasattr(grid, "arrange"):
        grid.arrange(graph(nodes))
    while len(ids := grid.get_node_ids()) < nodes:
        time.sleep(0.05)
    asked = [Message(RecordDict(), node_id, "query.who") for node_id in ids]
    replies = grid.send_and_receive(asked)
    partitions = [int(r.content.metric_records["who"]["partition"]) for r in replies]
    node_ids = dict(zip(partitions, (r.metadata.src_node_id for r in replies), strict=True))
    of_node = {node_id: k for k, node_id in node_ids.items()}
    near, models, times = graph(nodes), dict[int, ArrayRecord](), list[float]()
    for server_round in range(rounds):
        times.append(time.perf_counter())
        messages: list[Message] = []
        for k in range(nodes):
            inbox = {f"{j:05d}": models[j] for j in sorted(near[k])} if models else {}
            content = RecordDict({"config": ConfigRecord({"round": server_round}), **inbox})
            messages.append(Message(content, node_ids[k], "train"))
        replies = grid.send_and_receive(messages)
        models = {
            of_node[r.metadata.src_node_id]: r.content.array_records["model"] for r in replies
        }
    times.append(time.perf_counter())
    return times, np.stack([models[k]["vector"].numpy() for k in range(nodes)])


def plain_loop(nodes: int, rounds: int, data: str) -> tuple[list[float], np.ndarray]:
    """Do the same in one loop, without messages."""
    every, near = [Node(k, data) for k in range(nodes)], graph(nodes)
    times = list[float]()
    for server_round in range(rounds):
        times.append(time.perf_counter())
        vectors = [node.vector() for node in every]
        for node in every:
            own = vectors[node.index]
            others = [vectors[j] for j in sorted(near[node.index])] if server_round else [own] * 8
            train(node, own, others, server_round)
    times.append(time.perf_counter())
    return times, np.stack([node.vector().numpy() for node in every])


def server_app(
    results: list[tuple[Sequence[float], np.ndarray]], nodes: int, rounds: int
) -> ServerApp:
    """Return a ServerApp that appends to ``results`` what :func:`run_rounds` returns."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        results.append(run_rounds(grid, nodes, rounds))

    return app
