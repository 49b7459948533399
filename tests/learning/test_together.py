"""Devices that are trained together: the numbers of each are those of training alone."""

from collections.abc import Iterable
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import Message
from helpers import FAST, make_learner
from torch import Tensor

from flwr_dmml.base.errors import MethodError
from flwr_dmml.clients import (
    DPSGD,
    Batch,
    Learner,
    NonFiniteModelError,
    find_methods,
    make_client_app,
)
from flwr_dmml.engine import InProcessGrid, server_identity
from flwr_dmml.engine.nodes import answers
from flwr_dmml.graph.topology import make_topology
from flwr_dmml.learning.options import Options
from flwr_dmml.learning.together import Turn, likeness, run_together
from flwr_dmml.payload.plan import Inbox, Payload, Plan
from flwr_dmml.strategies import PeerStrategy

CONFIG: dict[str, Any] = {
    **FAST,
    "num-nodes": 4,
    "method": "dpsgd",
    "modality-pattern": "audio+image",
    "batched": "always",
}
LINEAR: dict[str, Any] = {"image-encoder": "mlp", "modality-pattern": "image", "batched": "auto"}


def close(a: dict[str, float], b: dict[str, float], tolerance: float = 1e-5) -> bool:
    return a.keys() == b.keys() and all(
        a[k] == pytest.approx(b[k], rel=tolerance, abs=tolerance) for k in a
    )


def ring(k: int, server_round: int, blocks: Iterable[str], **changed: Any) -> Plan:
    """Return the plan of device k of a ring of four."""
    near = ((k - 1) % 4, (k + 1) % 4)
    weights = dict.fromkeys(blocks, (0.4, 0.3, 0.3))
    given: dict[str, Any] = {"neighbours": near, "weights": weights} if server_round > 1 else {}
    return Plan(server_round, 4, **given, **changed)


def both_ways(config: dict[str, Any], **changed: Any) -> Any:
    """Run three rounds on a ring of four, alone and together; return what came of the last."""
    alone = [make_learner(config, k) for k in range(4)]
    together = [make_learner(config, k) for k in range(4)]
    sent: list[Payload] = [{} for _ in alone]
    sent_together = list(sent)
    for t in (1, 2, 3):
        plans = [ring(k, t, alone[k].blocks(), **changed) for k in range(4)]

        def inbox(k: int, payloads: list[Payload]) -> Inbox:
            return {j: payloads[j] for j in plans[k].neighbours}  # noqa: B023

        assert len({likeness(x, plans[k]) for k, x in enumerate(together)}) == 1
        single = [x.run_round(plans[k], inbox(k, sent)) for k, x in enumerate(alone)]
        turns = [Turn(x, plans[k], inbox(k, sent_together)) for k, x in enumerate(together)]
        results = [r for r in run_together(turns) if not isinstance(r, Exception)]
        sent = [outcome.payload for outcome in single]
        sent_together = [outcome.payload for outcome in results]
        for k in range(4):
            assert close(single[k].metrics, results[k].metrics), (t, k)
    return alone, [learner.state() for learner in together]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"clip-norm": 0.1},
        {"optimizer": "adam", "learning-rate": 0.001},
        {"weight-decay": 0.1, "momentum": 0.5},
        {"modality-loss": 0.5},
        {"speed-metric": "path"},
        {"speed-metric": "relative"},
        {"speed-metric": "cosine"},
        {"validation-fraction": 0.4, "lr-schedule": "cosine"},
        LINEAR,
    ],
    ids=str,
)
def test_the_numbers_are_those_of_training_alone(changed: dict[str, Any]):
    # Adam divides by what may be as small as rounding errors
    tolerance = 1e-3 if "optimizer" in changed else 1e-5
    alone, states = both_ways({**CONFIG, **changed}, num_rounds=3)
    for learner, state in zip(alone, states, strict=True):
        expected = learner.state()
        assert expected.keys() == state.keys()
        for name, value in expected.items():
            assert torch.allclose(state[name], value, rtol=tolerance, atol=tolerance), name


def test_devices_are_evaluated_with_what_mixing_left():
    both_ways(CONFIG, evaluate=True)


def test_solo_iterations_train_their_modality_alone():
    both_ways(CONFIG, by_modality={"audio": 0, "image": 2})


def test_a_device_that_diverges_fails_alone():
    learners = [make_learner({**CONFIG, **LINEAR}, k) for k in range(3)]
    length = learners[1].block_lengths()["head.common"]
    learners[1].load_state({"head.common": torch.full((length,), torch.inf)})
    results = run_together([Turn(x, Plan(1, 2), {}) for x in learners])
    assert [isinstance(r, NonFiniteModelError) for r in results] == [False, True, False]
    assert "round 1" in str(results[1]) and "NaN" in str(results[1])


def test_who_can_train_together():
    def of(k: int = 0, iterations: int = 2, **changed: Any) -> Any:
        config = {**CONFIG, **{key.replace("_", "-"): value for key, value in changed.items()}}
        return likeness(make_learner(config, k), Plan(1, iterations))

    assert of() == of(1) is not None
    assert of() != of(iterations=3) and of() != of(modality_pattern="audio")
    assert of(batched="never") is of(iterations=0) is of(method="dsgdm") is None
    assert of(batched="auto") is None, "not with convolutions, on a CPU"
    assert of(**{"batched": "auto", "image-encoder": "mlp", "modality-pattern": "image"})
    assert of(**{"missing.train-share": 0.5}) is None
    staggered = {of(k, iterations=4, stagger=0.5) for k in range(4)}
    assert len(staggered) > 1, "each device draws its own order"


class Sure(Learner):
    """Declares itself batched."""

    name = "sure"
    batched: ClassVar[bool] = True

    def local_loss(self, batch: Batch) -> Tensor:
        """Return twice the loss."""
        return 2 * super().local_loss(batch)


class Unsure(Sure):
    """Does not."""

    name = "unsure"


class Weighed(Sure):
    """Declares itself batched, and has options of its own."""

    name = "weighed"
    batched: ClassVar[bool] = True
    options_type: ClassVar[type[Options]] = type("WeighedOptions", (Options,), {})


class Wrong(DPSGD):
    """Declares itself batched, but does more in a round."""

    name = "wrong"
    batched: ClassVar[bool] = True

    def after_training(self, plan: Plan, inbox: Inbox) -> None:
        """Do more."""


def test_a_method_declares_itself_and_is_checked():
    find_methods([Sure, Unsure, Weighed])
    made = make_learner(CONFIG)
    for method, batched in ((Sure, True), (Unsure, False), (Weighed, True)):
        learner = method(made.partition, made.settings, made.options)
        assert (likeness(learner, Plan(1, 2)) is not None) == batched
    with pytest.raises(MethodError, match=r"'wrong' is declared batched.*overrides after_training"):
        find_methods([Wrong])


class Together(InProcessGrid):
    """Answers as a worker of the sharded engine does, in this process."""

    sizes: ClassVar[list[int]] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Answer all messages."""
        asked = [(self._nodes[m.metadata.dst_node_id], m) for m in messages]
        for _, message in asked:
            self._accept(message)
        groups = list(answers(self._client_app, asked, 1, self._run_config))
        self.sizes.extend(map(len, groups))
        return [reply for group in groups for _, reply in group]


def run(grid: type[InProcessGrid], config: dict[str, Any]) -> PeerStrategy:
    strategy = PeerStrategy(make_topology("ring"), num_nodes=6, local_iterations=2)
    with server_identity(1):
        strategy.start(grid(make_client_app(), 6, config), num_rounds=4)
    return strategy


def test_an_engine_that_asks_for_it_gets_the_same_run():
    config = {**CONFIG, **LINEAR, "num-nodes": 6, "modality-pattern": "image,image,audio+image"}
    Together.sizes.clear()
    together, alone = run(Together, config), run(InProcessGrid, config)
    # hello, round 1 and the closing message one by one; else those with an image only, together
    assert Together.sizes == [1] * 6 + [1] * 6 + [4, 1, 1] * 3 + [1] * 6
    for a, b in zip(together.records, alone.records, strict=True):
        assert [node.partition for node in a.nodes] == list(range(6))
        for node, other in zip(a.nodes, b.nodes, strict=True):
            assert node.train_loss == pytest.approx(other.train_loss, rel=1e-5)
            assert node.bytes_sent == other.bytes_sent > 0
    assert together.records[-1].accuracy == alone.records[-1].accuracy


def test_losses_in_bfloat16_leave_parameters_in_float32():
    full = make_learner(CONFIG).run_round(Plan(1, 3), {})
    mixed = make_learner({**CONFIG, "mixed-precision": True}).run_round(Plan(1, 3), {})
    a, b = full.metrics["train.loss"], mixed.metrics["train.loss"]
    assert a != b and a == pytest.approx(b, rel=0.05)
    assert {v.dtype for v in mixed.payload.values()} == {torch.float32}


class Peeking(Learner):
    """Looks at a number in its loss, which cannot be done for many devices at once."""

    name = "peeking"
    batched: ClassVar[bool] = True

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss, unless it is negative."""
        loss = super().local_loss(batch)
        assert loss.item() >= 0
        return loss


def test_who_cannot_answer_together_is_asked_alone(caplog: pytest.LogCaptureFixture):
    """It costs nobody the round, and the log says so."""
    caplog.set_level("WARNING", logger="flwr")
    config = {**CONFIG, **LINEAR, "num-nodes": 3, "method": "peeking"}
    Together.sizes.clear()
    strategy = PeerStrategy(
        make_topology("ring"), num_nodes=3, method="peeking", local_iterations=2
    )
    with server_identity(1):
        strategy.start(Together(make_client_app(Peeking), 3, config), num_rounds=2)
    assert Together.sizes == [1] * 12 and not any(r.failed for r in strategy.records)
    assert "3 nodes cannot answer together, but are asked one by one: RuntimeError" in caplog.text
