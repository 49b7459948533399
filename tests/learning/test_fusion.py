"""Detached fusion, and noise on vectors: what is trained by what, alone and in a stack."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import FAST, make_learner, run_peers, run_together

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.data import Modality
from flwr_dmml.learning.learner import Learner
from flwr_dmml.models import DecomposedClassifier
from flwr_dmml.payload.plan import Outcome, Plan
from flwr_dmml.settings import find_parts, parse_settings

BOTH: dict[str, Any] = {**FAST, "num-nodes": 3, "modality-pattern": "audio+image"}
DETACHED: dict[str, Any] = {**BOTH, "method": "dpsgd", "fusion": "detached"}
TWO = {"a": Modality("vector", (3,)), "b": Modality("vector", (4,))}
X = {"a": torch.randn(5, 3), "b": torch.randn(5, 4)}


def model(fusion: Any, *names: str) -> DecomposedClassifier:
    owned = {name: TWO[name] for name in names or TWO}
    return DecomposedClassifier(owned, 2, common_dim=2, specific_dim=3, fusion=fusion)


# ---- the model ----------------------------------------------------------------------------------


def test_several_modalities_have_heads_of_their_own() -> None:
    """``sum_m F_m [c^m, s^m]``; one modality alone is classified as ever, by the same numbers."""
    detached, additive = model("detached"), model("additive")
    features = detached.encode(X)
    expected = sum(
        detached.fusers[m](torch.cat([features.common[m], features.specific[m]], dim=1)) for m in X
    )
    assert torch.equal(detached(X), expected) and not torch.equal(additive(X), expected)
    for m in X:
        alone = {m: X[m]}
        assert torch.equal(detached(alone), additive(alone))
        assert torch.equal(detached(alone), model("detached", m)(alone))
    assert set(detached.blocks()) - set(additive.blocks()) == {"fuse.a", "fuse.b"}
    assert set(model("detached", "a").blocks()) == set(model("additive", "a").blocks())


def test_the_fused_loss_trains_nothing_but_these_heads() -> None:
    made = model("detached")
    made(X).square().sum().backward()
    trained = {name for name, p in made.named_parameters() if p.grad is not None}
    assert trained == {f"fusers.of_{m}.{what}" for m in X for what in ("weight", "bias")}


# ---- training -----------------------------------------------------------------------------------


def test_encoders_learn_from_each_modalitys_own_loss() -> None:
    """A joint iteration moves every block; the loss is CE(fused) + sum_m CE(m)."""
    learner = make_learner(DETACHED)
    assert learner.settings.modality_weight == 1.0
    (batch,) = learner.batches(1)
    features = learner.model.encode(batch.inputs)
    terms = [learner.model.fuse(features)]
    terms += [learner.model.fuse(features.only([m])) for m in batch.inputs]
    losses = [torch.nn.functional.cross_entropy(x, batch.labels).item() for x in terms]
    expected = sum(losses)
    assert learner.local_loss(batch).item() == pytest.approx(expected, rel=1e-6)
    before = learner.state()
    learner.run_round(Plan(1, 2), {})
    after = learner.state()
    assert all(not torch.equal(after[name], before[name]) for name in learner.block_names)


def test_solo_iterations_leave_the_fused_heads_alone() -> None:
    learner = make_learner({**DETACHED, "stagger": 1.0})
    before = learner.state()
    learner.run_round(Plan(1, 2), {})
    after = learner.state()
    for m in ("audio", "image"):
        assert torch.equal(after[f"fuse.{m}"], before[f"fuse.{m}"])
        assert not torch.equal(after[f"encoder.{m}"], before[f"encoder.{m}"])


def test_without_a_loss_for_the_encoders_it_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"modality-loss = 0 with fusion = 'detached'"):
        parse_settings({**DETACHED, "modality-loss": 0.0}, find_parts())


@pytest.mark.parametrize("method", ["dpsgd", "dmml-kd", "fedprox"])
def test_a_network_of_both_kinds_mixes_them_over_those_who_have_them(method: str) -> None:
    config = {**DETACHED, "method": method, "modality-pattern": "audio,image,audio+image"}
    peers = run_peers({**config, "num-nodes": 6, "stagger": 0.5})
    assert not any(record.failed for record in peers.records)
    owners = [p for p, m in peers.roster.members.items() if "fuse.audio" in m.blocks]
    assert owners == [2, 5]


# ---- noise on vectors ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A feature table of two vectors, 60 samples to train and 20 to test."""
    folder: Path = tmp_path_factory.mktemp("table")
    rng, rows = np.random.default_rng(0), range(80)
    labels = rng.integers(0, 2, 80)
    with (folder / "labels.csv").open("w", newline="") as file:
        split = ["test" if k >= 60 else "train" for k in rows]
        csv.writer(file).writerows(
            [["id", "label", "split"], *([f"u{k}", labels[k], split[k]] for k in rows)]
        )
    for name, width in (("text", 6), ("video", 9)):
        values = rng.normal(size=(80, width)) + labels[:, None]
        np.save(folder / f"{name}.npy", values.astype(np.float32))
    return {
        **FAST, "samples-per-node": 0, "dataset": "feature-table", "data-path": str(folder),
        "num-nodes": 3, "alpha": 10.0, "modality-pattern": "text+video,text,text+video",
        "method": "dpsgd",
    }  # fmt: skip


def trained(config: dict[str, Any], k: int = 0) -> Learner:
    learner = make_learner(config, k)
    learner.run_round(Plan(1, 4), {})
    return learner


def test_noise_is_seeded_and_only_on_vectors(table: dict[str, Any]) -> None:
    plain, noisy, again = (
        trained({**table, "input-noise": scale}).state()["encoder.text"]
        for scale in (0.0, 1.0, 1.0)
    )
    assert torch.equal(noisy, again) and not torch.equal(plain, noisy)
    pictures = [trained({**BOTH, "method": "dpsgd", "input-noise": s}).state() for s in (0.0, 1.0)]
    assert all(torch.equal(pictures[0][name], pictures[1][name]) for name in pictures[0])


def test_noise_has_its_standard_deviation(table: dict[str, Any]) -> None:
    from flwr_dmml.learning.training import _Stack

    """Half of that of each column among the device's own samples, and of each device its own."""
    learner = make_learner({**table, "input-noise": 0.5})
    stack = _Stack([(learner, Plan(1, 4))])
    own = learner.train_data.inputs
    found = stack.with_noise(0, {m: torch.zeros(20_000, own[m].shape[1]) for m in own})
    for m, noise in found.items():
        expected = 0.5 * own[m].std(dim=0, correction=0)
        assert torch.allclose(noise.std(dim=0), expected, rtol=0.03)
        assert bool((noise.mean(dim=0).abs() < 0.02).all())


@pytest.mark.parametrize(
    "how", [{"input-noise": 0.7}, {"fusion": "detached"}, {"fusion": "detached", "input-noise": 1}],
    ids=str,
)  # fmt: skip
def test_devices_of_a_stack_get_what_each_gets_by_itself(
    how: dict[str, Any], table: dict[str, Any]
) -> None:
    config = {**table, "stagger": 0.5, **how}
    together = [make_learner(config, k) for k in range(3)]
    found = run_together(together, [Plan(1, 4)] * 3)
    for k, outcome in enumerate(found):
        assert isinstance(outcome, Outcome)
        alone = make_learner(config, k).run_round(Plan(1, 4), {})
        assert alone.metrics == outcome.metrics
        assert all(torch.equal(alone.payload[n], outcome.payload[n]) for n in alone.payload)
        exact = make_learner({**config, "exact": True}, k).run_round(Plan(1, 4), {})
        for name, value in exact.payload.items():
            assert torch.allclose(value, outcome.payload[name], atol=1e-4), name
