"""Stacks: a device's numbers are the same, to the last bit, whoever is trained with it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from helpers import FAST, PLAIN, make_learner, run_together
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_dmml.clients import (
    DPSGD,
    Batch,
    Learner,
    ModalityMirror,
    NonFiniteModelError,
    find_methods,
    make_client_app,
)
from flwr_dmml.engine import InProcessGrid, server_identity
from flwr_dmml.graph.topology import make_topology
from flwr_dmml.learning import crew, training
from flwr_dmml.learning.together import likeness
from flwr_dmml.payload.plan import Outcome, Plan
from flwr_dmml.strategies import PeerStrategy

CONFIG: dict[str, Any] = {
    **FAST,
    "num-nodes": 4,
    "method": "dpsgd",
    "modality-pattern": "audio+image",
    "stagger": 0.5,
    "topology": "line",  # relaysgd needs a tree
    "public.samples": 60,
}
LINEAR: dict[str, Any] = {"image-encoder": "mlp", "modality-pattern": "image"}
ROUNDS = 4
OWN: dict[str, dict[str, Any]] = {
    "ccl": {"seed": 1},  # with seed 0 one ReLU is so near to 0 that rounding tips it
    "dmml": {"exchange.precision": "float32"},  # what rounds up or down depends on the last digits
    "dmml-kd": {"exchange.precision": "float32"},
    "fedcmi": {"fedcmi.proximal": 0.1},
    "greedy": {"greedy.threshold": 0.3, "greedy.steps": 2},
    "modality-mirror": {"modality-mirror.margin": 0.0},
    "ogm-ge": {"ogm-ge.alpha": 0.5},
}
"""Options with which devices differ in what they do."""


def plan_for(learner: Learner, server_round: int, **changed: Any) -> Plan:
    """Return a device's plan of a round on a line of four, as long as the method says."""
    k, o, owned = learner.partition.partition_id, learner.options, learner.partition.modalities
    near = tuple(j for j in (k - 1, k + 1) if 0 <= j < 4)
    weights = dict.fromkeys(learner.blocks(), (1 - 0.3 * len(near), *[0.3] * len(near)))
    phase = o.phase(server_round, ROUNDS)
    trained = o.trained(phase, owned)
    given: dict[str, Any] = {
        "by_modality": {m: 4 * (m in trained) for m in owned},
        "neighbours": near if server_round > 1 else (),
        "weights": weights if server_round > 1 else {},
    }
    how = {"recipients": near, "phase": phase, "num_rounds": ROUNDS}
    return Plan(server_round, 4, **{**given, **how, **changed})


def outcomes(learners: Sequence[Learner], *plans: Plan, **how: Any) -> list[Outcome]:
    """Run a round of devices, each by its plan or all by the same one; fail where one does."""
    each = plans if len(plans) > 1 else plans * len(learners)
    found = run_together(learners, each, **how)
    for result in found:
        if isinstance(result, Exception):
            raise result
    return [result for result in found if isinstance(result, Outcome)]


def line(
    config: Mapping[str, Any], size: int, rounds: int = ROUNDS, **changed: Any
) -> tuple[list[Learner], list[dict[str, Tensor]], list[dict[str, float]]]:
    """Run a line of four devices in stacks of a size; return them, their states and metrics."""
    learners = [make_learner(config, k) for k in range(4)]
    last: list[Outcome] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(crew, "STACK", size)
        hosted = crew.Crew(dict(enumerate(learners)))
        for t in range(1, rounds + 1):
            plans = [plan_for(learner, t, **changed) for learner in learners]
            last = outcomes(learners, *plans, crew=hosted)
    return learners, [learner.state() for learner in learners], [o.metrics for o in last]


def differing(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names under which two runs' devices differ in a bit."""
    names: set[str] = set()
    for one, two in zip(a, b, strict=True):
        assert one.keys() == two.keys()
        pairs = {name: (torch.as_tensor(x), torch.as_tensor(two[name])) for name, x in one.items()}
        names |= {name for name, (x, y) in pairs.items() if not same(x, y)}
    return names


def same(x: Tensor, y: Tensor) -> bool:
    equal: Tensor = (x == y) | (x.isnan() & y.isnan())
    return x.dtype == y.dtype and x.shape == y.shape and bool(equal.all())


def assert_close(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], tolerance: float = 1e-4
) -> None:
    for one, two in zip(a, b, strict=True):
        for name, x in one.items():
            y = torch.as_tensor(two[name]).double()
            x = torch.as_tensor(x).double()
            assert torch.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True), name


def count_stacks(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Return how often so many devices train together, from now on."""
    sizes, together = Counter[int](), training._together

    def counted(stacks: Sequence[Any]) -> None:
        sizes[sum(len(stack.parts) for stack in stacks)] += 1
        together(stacks)

    monkeypatch.setattr(training, "_together", counted)
    return sizes


# ---- every method -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(find_methods()))
def test_a_device_is_the_same_to_the_last_bit_in_a_stack_of_one_two_and_four(
    method: str, monkeypatch: pytest.MonkeyPatch
):
    """And close to what it is row by row."""
    if method == "modality-mirror":  # all teach, or an untrained teacher would not pass
        reset = ModalityMirror.reset

        def passed(learner: ModalityMirror) -> None:
            reset(learner)
            learner.memory["passed"] = torch.tensor([1])

        monkeypatch.setattr(ModalityMirror, "reset", passed)
    sizes = count_stacks(monkeypatch)
    config = {**CONFIG, "method": method, **OWN.get(method, {})}
    learners, states, metrics = line(config, 1)
    assert all(likeness(x, plan_for(x, ROUNDS)) is not None for x in learners)
    assert sizes == {1: 4 * ROUNDS}
    for size in (2, 4):
        sizes.clear()
        _, found, measured = line(config, size)
        assert max(sizes) == size and sum(n * count for n, count in sizes.items()) == 4 * ROUNDS
        # a device may have no labels of a public set yet; ccl: as many models as neighbours teach
        if method not in ("idkd", "ccl"):
            assert sizes == {size: 4 // size * ROUNDS}, "all train as one"
        assert not differing(states, found) and not differing(metrics, measured)
    sizes.clear()
    _, exact, measured = line({**config, "exact": True}, 4)
    assert not sizes
    assert_close(states, exact)
    assert_close(metrics, measured)


CHANGED: list[dict[str, Any]] = [
    {"clip-norm": 0.1},
    {"optimizer": "adam", "learning-rate": 0.001},
    {"weight-decay": 0.1, "momentum": 0.5},
    {"modality-loss": 0.5},
    {"label-correction": "network", "modality-loss": 0.5},
    {**PLAIN, "label-correction": "uniform", "method": "dmml-kd"},
    {"speed-metric": "path"},
    {"speed-metric": "relative"},
    {"speed-metric": "cosine"},
    {"validation-fraction": 0.4, "lr-schedule": "cosine"},
    {"batch-size": 7, "common-dim": 5, "specific-dim": 9},  # nothing fills a cache line
    {"method": "kd", "modality-loss": 0.5},
    {"method": "greedy", "optimizer": "adamw", "learning-rate": 0.001, **OWN["greedy"]},
    {"method": "fedcmi", "fedcmi.infiltrate": "features"},
    {"method": "fedprox", "gossip": "d2"},
    LINEAR,
]


@pytest.mark.parametrize("changed", CHANGED, ids=str)
def test_whatever_the_settings(changed: dict[str, Any]):
    config = {**CONFIG, **changed}
    _, states, metrics = line(config, 1)
    _, found, measured = line(config, 4)
    assert not differing(states, found) and not differing(metrics, measured)
    # Adam divides by what may be as small as rounding errors
    tolerance = 1e-3 if "optimizer" in changed else 1e-4
    _, exact, measured = line({**config, "exact": True}, 4)
    assert_close(states, exact, tolerance)
    assert_close(metrics, measured, tolerance)


def test_some_devices_of_a_stack_have_moments_of_earlier_rounds(
    monkeypatch: pytest.MonkeyPatch,
):
    """One that trains for the first time begins with none; all are as they are alone."""
    config = {**CONFIG, "optimizer": "adam", "gossip": "dsgdm"}
    alone, together = ([make_learner(config, k) for k in range(3)] for _ in range(2))
    for learner in (alone[0], alone[2], together[0], together[2]):
        learner.run_round(Plan(1, 3), {})
    sizes = count_stacks(monkeypatch)
    found = outcomes(together, Plan(2, 3))
    assert sizes == {3: 1}
    expected = [learner.run_round(Plan(2, 3), {}) for learner in alone]
    assert not differing([o.payload for o in expected], [o.payload for o in found])


def test_devices_are_evaluated_with_what_mixing_left():
    _, _, metrics = line(CONFIG, 1, evaluate=True)
    _, _, together = line(CONFIG, 4, evaluate=True)
    assert not differing(metrics, together) and "test.accuracy" in metrics[0]


# ---- who does what differs --------------------------------------------------------------------


def test_devices_with_different_schedules_train_together(monkeypatch: pytest.MonkeyPatch):
    """Joint and solo iterations in orders of their own, and different numbers of them."""

    def run(size: int) -> tuple[list[dict[str, Tensor]], list[dict[str, float]]]:
        learners = [make_learner(CONFIG, k) for k in range(4)]
        updates = [(5, 5), (7, 2), (0, 3), (4, 0)]
        plans = [Plan(1, 5, by_modality={"audio": a, "image": i}) for a, i in updates]
        monkeypatch.setattr(crew, "STACK", size)
        found = outcomes(learners, *plans)
        return [x.state() for x in learners], [o.metrics for o in found]

    states, metrics = run(1)
    together, measured = run(4)
    assert not differing(states, together) and not differing(metrics, measured)
    assert len({m["train.iterations"] for m in measured}) > 1


def test_devices_differ_in_whom_they_freeze_and_who_is_ahead():
    """What the tests above compare does happen: not all devices of a stack take the same turn."""
    learners, _, _ = line({**CONFIG, "method": "greedy", **OWN["greedy"]}, 4)
    frozen = {tuple(int(x.memory[f"frozen.{m}"]) for m in ("audio", "image")) for x in learners}
    assert len(frozen) > 1
    ahead: list[list[bool]] = []

    class Watched(find_methods()["fedcmi"]):  # type: ignore[misc]
        name = "watched"

        def dominant(self, p: Any, labels: Tensor) -> dict[str, Tensor]:
            found: dict[str, Tensor] = super().dominant(p, labels)
            ahead.append(found["audio"].tolist())
            return found

    made = [make_learner({**CONFIG, "method": "fedcmi"}, k) for k in range(4)]
    watched = [Watched(x.partition, x.settings, x.options) for x in made]
    outcomes(watched, Plan(2, 20))
    assert any(len(set(each)) == 2 for each in ahead)


def test_a_row_that_turns_nan_takes_nobody_with_it():
    """Its own reply says so; the others' numbers are those without it, to the last bit."""
    for more in ({}, LINEAR, {"method": "dmml-kd"}, {"method": "greedy"}, {"method": "fedcmi"}):
        config = {**CONFIG, **more}
        learners = [make_learner(config, k) for k in range(3)]
        name = next(name for name in learners[1].block_lengths() if name.startswith("head"))
        length = learners[1].block_lengths()[name]
        learners[1].load_state({name: torch.full((length,), torch.inf)})
        results = run_together(learners, [Plan(2, 3)] * 3)
        assert [isinstance(r, NonFiniteModelError) for r in results] == [False, True, False]
        assert "round 2" in str(results[1]) and "NaN" in str(results[1])
        others = [make_learner(config, k) for k in (0, 2)]
        expected = outcomes(others, Plan(2, 3))
        found = [r for r in results if isinstance(r, Outcome)]
        assert not differing([r.payload for r in expected], [r.payload for r in found])


def test_who_can_train_together():
    def of(k: int = 0, iterations: int = 2, **changed: Any) -> Any:
        config = {**CONFIG, **{key.replace("_", "-"): value for key, value in changed.items()}}
        return likeness(make_learner(config, k), Plan(1, iterations))

    assert of() == of(1) is not None
    assert of() == of(iterations=3), "a device may take more iterations than another"
    assert of() != of(modality_pattern="audio") and of() != of(method="fedprox")
    assert of(exact=True) is of(iterations=0) is None
    assert of(**{"missing.train-share": 0.5}) is None
    assert len({of(k, iterations=4) for k in range(4)}) == 1, "and in another order"


def test_only_some_have_labels_of_a_public_set():
    """KD: who has been taught trains on soft labels, the others on their own; none waits."""
    config = {**CONFIG, "method": "kd"}
    learners = [make_learner(config, k) for k in range(4)]
    for x in learners:
        x.run_round(Plan(1, 2, phase="label"), {})
    for x in learners[:2]:
        x.memory = {}  # no labels are pending
    found = outcomes(learners, Plan(2, 2, phase="fine-tune"))
    assert [x.learns for x in learners] == [False, False, True, True]  # type: ignore[attr-defined]
    for k, x in enumerate(learners):
        alone = make_learner(config, k)
        alone.run_round(Plan(1, 2, phase="label"), {})
        if k < 2:
            alone.memory = {}
        expected = alone.run_round(Plan(2, 2, phase="fine-tune"), {})
        assert not differing([expected.payload], [found[k].payload]), x


# ---- methods of one's own ---------------------------------------------------------------------


class Sure(Learner):
    """Says of its own loss that it can be that of a stack."""

    name = "sure"
    stacks: ClassVar[bool] = True

    def local_loss(self, batch: Batch) -> Tensor:
        """Return twice the loss, with what is fixed, drawn and frozen."""
        given = batch.given
        assert given["drawn"].shape == batch.labels.shape
        noise = (given["scale"] * given["drawn"].mean(dim=-1)).square()
        mixed: Tensor = self.teacher(batch.inputs)
        return 2 * super().local_loss(batch) + noise + 0.1 * mixed.square().sum(dim=(-2, -1))

    def before_training(self, plan: Plan, inbox: Any) -> None:
        """Freeze a model, and start to draw."""
        self.teacher, self.generator = self.build_model(), self.rng("mine")

    def fixed(self) -> dict[str, Tensor]:
        """Return a number of the device."""
        return {"scale": torch.tensor(float(self.partition.partition_id))}

    def draw(self, batch: Batch) -> dict[str, Tensor]:
        """Draw a number a sample."""
        return {"drawn": torch.rand(len(batch.labels), generator=self.generator)}

    def frozen(self) -> dict[str, nn.Module]:
        """Return the frozen model."""
        return {"teacher": self.teacher}


class Unsure(Sure):
    """Has a loss of its own and says nothing."""

    name = "unsure"

    def local_loss(self, batch: Batch) -> Tensor:
        """Return a loss of one device, which a stack's tensors would not fit."""
        assert batch.labels.dim() == 1
        return F.cross_entropy(self.model(batch.inputs), batch.labels)


class Renamed(DPSGD):
    """Overrides nothing that is computed."""

    name = "renamed"


class Flattened(nn.Module):
    """Torch's own layers, and a module of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(64, 10), nn.Linear(10, 10)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Classify images ``[batch, 1, 8, 8]``."""
        hidden = torch.relu(self.hidden(inputs["image"].flatten(1)))
        logits: Tensor = self.head(hidden)
        return logits


class WithLinear(Learner):
    """Brings a model of torch's layers along."""

    name = "with-linear"

    def build_model(self) -> nn.Module:  # type: ignore[override]
        """Return the model."""
        return Flattened()


class SaysSo(WithLinear):
    """Says that it stacks: its model does not."""

    name = "says-so"
    stacks: ClassVar[bool] = True


def devices_of(method: type[Learner], **changed: Any) -> list[Learner]:
    made = [make_learner({**CONFIG, **changed}, k) for k in range(3)]
    return [method(x.partition, x.settings, x.options) for x in made]


@pytest.mark.parametrize(
    ("method", "stacks"),
    [(Sure, True), (Renamed, True), (Unsure, False), (WithLinear, False), (SaysSo, False)],
)
def test_a_method_of_ones_own_is_a_stack_or_row_by_row(
    method: type[Learner], stacks: bool, monkeypatch: pytest.MonkeyPatch
):
    """It runs together with others either way, and is the same to the last bit."""
    find_methods([method])
    rows: list[int] = []
    alone = training._alone
    monkeypatch.setattr(
        training, "_alone", lambda learner, *more: rows.append(1) or alone(learner, *more)
    )
    changed = {"modality-pattern": "image"}
    learners = devices_of(method, **changed)
    assert all((likeness(x, Plan(1, 3)) is not None) == stacks for x in learners)
    found = outcomes(learners, Plan(1, 3))
    assert len(rows) == (0 if stacks else 3)
    for x, outcome in zip(devices_of(method, **changed), found, strict=True):
        expected = x.run_round(Plan(1, 3), {})
        assert not differing([expected.payload], [outcome.payload])
        assert expected.metrics == outcome.metrics
    exact = devices_of(method, exact=True, **changed)
    expected = [x.run_round(Plan(1, 3), {}) for x in exact]
    assert_close([o.payload for o in expected], [o.payload for o in found])


# ---- engines ----------------------------------------------------------------------------------


class ByMessages(InProcessGrid):
    """Asks each device by a message of its own, as Flower's engine does."""

    @property
    def hosted(self) -> None:
        """Nobody hosts all devices at once."""
        return None


def run(grid: type[InProcessGrid], config: dict[str, Any]) -> PeerStrategy:
    strategy = PeerStrategy(make_topology("ring"), num_nodes=6, local_iterations=2)
    with server_identity(1):
        strategy.start(grid(make_client_app(), 6, config), num_rounds=4)
    return strategy


def test_an_engine_that_hosts_all_devices_has_the_same_run(monkeypatch: pytest.MonkeyPatch):
    config = {**CONFIG, "num-nodes": 6, "topology": "ring"}
    config |= {"modality-pattern": "image,image,audio+image"}
    sizes = count_stacks(monkeypatch)
    together = run(InProcessGrid, config)
    assert sizes == {6: 4}, "those with an image only, and those with both"
    sizes.clear()
    alone = run(ByMessages, config)
    assert sizes == {1: 24}
    for a, b in zip(together.records, alone.records, strict=True):
        assert [node.partition for node in a.nodes] == list(range(6))
        for node, other in zip(a.nodes, b.nodes, strict=True):
            assert node.train_loss == other.train_loss
            assert node.accuracy == other.accuracy
            assert node.bytes_sent == other.bytes_sent > 0
    assert together.records[-1].accuracy == alone.records[-1].accuracy


def test_losses_in_bfloat16_leave_parameters_in_float32():
    full = make_learner(CONFIG).run_round(Plan(1, 3), {})
    mixed = make_learner({**CONFIG, "mixed-precision": True}).run_round(Plan(1, 3), {})
    a, b = full.metrics["train.loss"], mixed.metrics["train.loss"]
    assert a != b and a == pytest.approx(b, rel=0.05)
    assert {v.dtype for v in mixed.payload.values()} == {torch.float32}
