"""The speed benchmark's workload as a method of this package.

With all that comes with one: blocks, checks of what is mixed, training speeds, records of every
round.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from speed_app import STEPS, TOPOLOGY, Clock, Run
from torch import Tensor, nn

from flwr_dmml.clients import Batch, Learner, make_client_app
from flwr_dmml.engine import SimulationGrid
from flwr_dmml.losses import cross_entropy
from flwr_dmml.models.stacked import Linear, Stackable
from flwr_dmml.strategies import PeerStrategy


class StackedMlp(Stackable):
    """The MLP of layers that compute for many devices at once."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.hidden, self.out = Linear(pixels, 64), Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[..., batch, 10]``."""
        logits: Tensor = self.out(self.hidden(images.flatten(-3)).relu())
        return logits


class SmallMlp(Learner):
    """D-PSGD of the MLP."""

    name: ClassVar[str] = "small-mlp"
    stacks: ClassVar[bool] = True

    def build_model(self) -> nn.Module:  # type: ignore[override]
        """Return the model."""
        return StackedMlp(prod(self.partition.source_modalities["image"].shape))

    def blocks(self) -> dict[str, nn.Module]:
        """Mix it as a whole."""
        return {"model": self.model}

    def encoders(self) -> dict[str, nn.Module]:
        """Take it for the encoder."""
        return {"image": self.model}

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy."""
        return cross_entropy(self.model(batch.inputs["image"]), batch.labels)  # type: ignore[arg-type]

    def scores(self, inputs: Any, subsets: Sequence[tuple[str, ...]]) -> list[Tensor]:
        """Return logits."""
        return [self.model(inputs["image"]) for _ in subsets]


client_app = make_client_app(SmallMlp)


def models_of(strategy: PeerStrategy) -> Callable[[int], np.ndarray]:
    """Return what gives a device's parameters as it published them in the last round.

    The only place in this benchmark that knows where they are.
    """
    payloads = strategy.exchange.payloads
    return lambda k: payloads[k]["model"].numpy()


def server_app(results: list[Run], nodes: int, rounds: int) -> ServerApp:
    """Return a ServerApp that runs this package's round plan with :class:`SmallMlp`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        if isinstance(grid, SimulationGrid):
            grid.arrange(TOPOLOGY.graph(nodes))
        clock = Clock()
        strategy = PeerStrategy(
            TOPOLOGY,
            num_nodes=nodes,
            method=SmallMlp.name,
            local_iterations=STEPS,
            evaluate_every=rounds,
            trackers=[clock],
        )
        strategy.start(grid, num_rounds=rounds)
        results.append(Run.of(clock.begun, clock.ended[:-1], nodes, models_of(strategy)))

    return app
