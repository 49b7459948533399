"""Rounds of two other packages, for ``speed.py --peers``; run by their own Python.

    python3 -m venv peers && peers/bin/pip install "torch<2.12" "torchvision<0.27" fluke-fl pfl
    python benchmarks/speed.py --peers peers/bin/python

The same MLP, data of the same size (random numbers: they do not change the time), one epoch.
Neither does what the other arms do: fluke's gossip sends to one neighbour a round, and who has
heard of nobody does not train; pfl's FedAvg has a centre, and devices without states.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import networkx as nx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS, BATCH, RATE, DEGREE = 60, 32, 0.05, 8


class Mlp(nn.Module):
    """An MLP 784-64-10, with the loss that pfl asks a model for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.layers(x)
        return logits

    def loss(self, x: Tensor, y: Tensor, is_eval: bool = False) -> Tensor:
        """Return the cross-entropy."""
        return F.cross_entropy(self(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, object]:
        """Return nothing: nothing is evaluated."""
        return {}


def part() -> tuple[Tensor, Tensor]:
    """Return a node's data."""
    return torch.randn(ROWS, 784), torch.randint(0, 10, (ROWS,))


def fluke(nodes: int, rounds: int) -> list[float]:
    """Return when each round of fluke's gossip began, and the last ended."""
    from fluke import FlukeENV
    from fluke.algorithms.decentralized import GossipDFL, Topology
    from fluke.algorithms.decentralized.client import GossipClient
    from fluke.config import OptimizerConfigurator
    from fluke.data import FastDataLoader

    FlukeENV().set_eval_cfg(locals=False, pre_fit=False, post_fit=False)
    graph = nx.random_regular_graph(DEGREE, nodes, seed=0)
    constant = {"name": "StepLR", "step_size": 1, "gamma": 1.0}
    optimizer = OptimizerConfigurator({"name": "SGD", "lr": RATE}, constant)
    clients = [
        GossipClient(
            index=k,
            model=Mlp(),
            neighbours=sorted(graph[k]),
            train_set=FastDataLoader(*part(), num_labels=10, batch_size=BATCH, shuffle=True),
            test_set=None,
            optimizer_cfg=optimizer,
            loss_fn=nn.CrossEntropyLoss(),
            local_epochs=1,
            policy="aggregate",
        )
        for k in range(nodes)
    ]
    times = list[float]()

    class Watched(GossipDFL):
        def notify(self, event: str, **about: object) -> None:
            if event == "start_round":
                times.append(time.perf_counter())
            super().notify(event, **about)

        def finalize(self) -> None:
            times.append(time.perf_counter())

    Watched(nodes, None, {}, topology=Topology(graph), clients=clients).run(rounds)
    return times


def pfl(nodes: int, rounds: int) -> list[float]:
    """Return when each round of pfl's FedAvg began, and the last ended."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    users = {str(k): Dataset(list(part()), user_id=str(k)) for k in range(nodes)}

    def sample() -> Iterator[str]:
        while True:
            yield from users

    each = sample()
    data = FederatedDataset(users.__getitem__, lambda: next(each))
    times = [time.perf_counter()]

    class Clock(TrainingProcessCallback):
        def after_central_iteration(self, *args: object, **about: object) -> tuple[bool, Metrics]:
            times.append(time.perf_counter())
            return False, Metrics()

    module = Mlp()
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=10 * rounds,
            train_cohort_size=nodes,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data),
        model,
        NNTrainHyperParams(local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=RATE),
        NNEvalHyperParams(local_batch_size=None),
        [Clock()],
        send_metrics_to_platform=False,
    )
    return times


PEERS: dict[str, Callable[[int, int], list[float]]] = {"fluke": fluke, "pfl": pfl}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", choices=PEERS, required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--json", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = time.perf_counter()
    times = PEERS[options.arm](options.nodes, options.rounds)
    seconds = [after - before for before, after in pairwise(times[2:])]  # as in the other arms
    found = {"rounds_s": seconds, "first_s": times[2] - times[0], "start_s": times[0] - started}
    Path(options.json).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
