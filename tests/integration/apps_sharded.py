"""ClientApps and strategies for the tests of the sharded engine; workers import them from here."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flwr_dmml.engine.shard import Shard

counting = ClientApp()


@counting.train()
def count(message: Message, context: Context) -> Message:
    """Count this node's messages, and do what the message says."""
    node = int(context.node_config["partition-id"])
    before = context.state.array_records.get("count", ArrayRecord())
    count = int(before["count"].numpy()[0]) + 1 if before else 1
    context.state["count"] = ArrayRecord({"count": Array(np.full(1000, count))})
    do = message.content.config_records.get("do", ConfigRecord())
    if do.get("raise") == node:
        raise RuntimeError(f"node {node} has had enough")
    if do.get("die") == node:
        mark = Path(str(do["mark"]))
        deaths = len(mark.read_text()) if mark.exists() else 0
        if deaths < int(do["times"]):  # type: ignore[arg-type]
            mark.write_text("x" * (deaths + 1))
            os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(do.get("seconds", 0.0)))  # type: ignore[arg-type]
    heard = {
        name: float(record["own"].numpy().sum())
        for name, record in message.content.array_records.items()
    }
    reply = RecordDict({"own": ArrayRecord({"own": Array(np.full(50_000, float(node + count)))})})
    reply["about"] = MetricRecord({"node": node, "count": count, "pid": os.getpid(), **heard})
    machine = ray.get_runtime_context().get_node_id()
    reply["where"] = ConfigRecord({"machine": machine})
    return Message(reply, reply_to=message)


averaging = ClientApp()


@averaging.train()
def train(message: Message, context: Context) -> Message:
    """Move every number towards one that only this node likes."""
    node = int(context.node_config["partition-id"])
    arrays = [x + (node + 1 - x) / 3 for x in message.content["arrays"].to_numpy_ndarrays()]  # type: ignore[union-attr]
    metrics = MetricRecord({"num-examples": node + 1, "loss": float(np.mean(arrays[0]))})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "m": metrics}), reply_to=message)


@averaging.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Say how far off the mean is."""
    node = int(context.node_config["partition-id"])
    mean = float(np.mean(message.content["arrays"].to_numpy_ndarrays()[0]))  # type: ignore[union-attr]
    metrics = MetricRecord({"num-examples": node + 1, "off": abs(mean - node)})
    return Message(RecordDict({"m": metrics}), reply_to=message)


fedavg = ServerApp()


@fedavg.main()
def main(grid: Grid, context: Context) -> None:
    """Run Flower's FedAvg and write what it ends with."""
    start = ArrayRecord([np.linspace(0, 1, 5000, dtype=np.float32), np.ones((3, 3))])
    strategy = FedAvg(min_train_nodes=5, min_evaluate_nodes=5, min_available_nodes=5)
    result = strategy.start(grid, initial_arrays=start, num_rounds=3)
    arrays = result.arrays.to_numpy_ndarrays()
    metrics = [
        value
        for by_round in (result.train_metrics_clientapp, result.evaluate_metrics_clientapp)
        for record in by_round.values()
        for value in record.values()
    ]
    np.savez(os.environ["FEDAVG_OUT"], *arrays, metrics=np.array(metrics))


class Fragile(Shard):
    """A worker that dies in a call that the file ``DEATHS`` names, ``<call> <times>``."""

    def take(self, *given: Any) -> None:
        """Die, or host nodes."""
        self._die("take")
        super().take(*given)

    def begin(self, method: str) -> Any:
        """Die, or take up the devices' states for a method."""
        self._die("begin")
        return super().begin(method)

    def enter(self, *given: Any) -> None:
        """Die, or give the devices their rows."""
        self._die("enter")
        super().enter(*given)

    def _die(self, call: str) -> None:
        deaths = Path(os.environ["DEATHS"])
        named, times = deaths.read_text().split() if deaths.exists() else ("", "0")
        if named == call and int(times):
            deaths.write_text(f"{call} {int(times) - 1}")
            os.kill(os.getpid(), signal.SIGKILL)


class OnGPU(Shard):
    """A worker whose devices compute on a GPU."""

    def on_cpu(self) -> bool:
        """Return that they do."""
        return False
