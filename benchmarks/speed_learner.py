"""The speed benchmark's workload as a method of this package.

With all that comes with one: blocks, checks of what arrives, mixing in float64 (batched: float32),
training speeds, records of every round.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from speed_app import STEPS, TOPOLOGY, Mlp, Run
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_dmml.clients import Batch, Learner, make_client_app
from flwr_dmml.strategies import PeerStrategy
from flwr_dmml.transport.messages import PAYLOAD


class SmallMlp(Learner):
    """D-PSGD of the MLP."""

    name: ClassVar[str] = "small-mlp"
    batched: ClassVar[bool] = True

    def build_model(self) -> nn.Module:  # type: ignore[override]
        """Return the model."""
        return Mlp()

    def blocks(self) -> dict[str, nn.Module]:
        """Mix it as a whole."""
        return {"model": self.model}

    def encoders(self) -> dict[str, nn.Module]:
        """Take it for the encoder."""
        return {"image": self.model}

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy."""
        return F.cross_entropy(self.model(batch.inputs["image"]), batch.labels)  # type: ignore[arg-type]

    def predict(self, inputs: Any, subsets: Sequence[tuple[str, ...]]) -> list[Tensor]:
        """Return classes."""
        return [self.model(inputs["image"]).argmax(dim=1) for _ in subsets]


client_app = make_client_app(SmallMlp)


class Watched(PeerStrategy):
    """Notes when rounds begin, and keeps the last models."""

    def start(self, *args: Any, **options: Any) -> Any:
        """Run."""
        self.times, self.models = list[float](), dict[int, ArrayRecord]()
        return super().start(*args, **options)

    def configure_train(self, *args: Any) -> list[Message]:
        """Begin a round."""
        self.times.append(time.perf_counter())
        return super().configure_train(*args)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """End it."""
        kept = list(replies)
        done = super().aggregate_train(server_round, kept)
        self.end = time.perf_counter()
        contents, _ = self.roster.sort(kept)
        self.models = {k: content.array_records[PAYLOAD] for k, content in contents.items()}
        return done


def server_app(results: list[Run], nodes: int, rounds: int) -> ServerApp:
    """Return a ServerApp that runs this package's round plan with :class:`SmallMlp`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        if hasattr(grid, "arrange"):
            grid.arrange(TOPOLOGY.graph(nodes))
        strategy = Watched(
            TOPOLOGY,
            num_nodes=nodes,
            method=SmallMlp.name,
            local_iterations=STEPS,
            evaluate_every=rounds,
        )
        strategy.start(grid, num_rounds=rounds)
        times = [*strategy.times, strategy.end]
        results.append(Run.of(times, nodes, lambda k: strategy.models[k]["model"].numpy()))

    return app
