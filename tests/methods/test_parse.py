"""PARSE: three slices, their losses by hand, and who shares what."""

from math import log
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner, run_peers

from flwr_dmml.clients import Batch, Parse, ParseOptions
from flwr_dmml.data import Modality, Partition, Samples
from flwr_dmml.learning.work import measure_work
from flwr_dmml.losses import alignment_loss, orthogonality_loss
from flwr_dmml.models import SlicedClassifier
from flwr_dmml.payload.plan import Plan
from flwr_dmml.settings import Settings

CONFIG: dict[str, Any] = {**FAST, "num-nodes": 3, "modality-pattern": "audio+image"}
SHARES = ("slices", "heads", "encoders", "both")


def parse(config: dict[str, Any] = CONFIG, node: int = 0, **own: Any) -> Parse:
    options = {f"parse.{k}": v for k, v in own.items()}
    learner = make_learner({**config, "method": "parse", **options}, node)
    assert isinstance(learner, Parse)
    return learner


def first(learner: Parse) -> Batch:
    rows = learner.train_data.subset(torch.arange(8))
    return Batch(dict(rows.inputs), rows.labels)


def test_the_prediction_by_hand():
    """Slices of one feature; r = 2 and 4, u = 1 and 3, s = 1 and 2, weights (1, 0) everywhere.

    R: 3; U: 2; S: 1 + 2 = 3; their mean is 8/3, their sum 8. From a alone: (2 + 1) / 2.
    """
    model = SlicedClassifier({m: Modality("vector", (3,)) for m in "ab"}, 2, width=1)
    model.encoders["a"] = model.encoders["b"] = torch.nn.Identity()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.tensor([[1.0], [0.0]]) if name.endswith("weight") else torch.zeros(2))
    inputs = {"a": torch.tensor([[2.0, 1.0, 1.0]]), "b": torch.tensor([[4.0, 3.0, 2.0]])}
    assert model(inputs)[0].tolist() == pytest.approx([8 / 3, 0])
    assert model({"a": inputs["a"]})[0].tolist() == pytest.approx([1.5, 0])
    model.summed = True
    assert model(inputs)[0].tolist() == pytest.approx([8, 0])


def test_the_loss_by_hand():
    """Heads of zeros: ln 10 of each kind; then the contrast and the difference of slices."""
    learner = parse(contrast=0.5, apart=2.0)
    for block in learner.model.blocks().items():
        for p in block[1].parameters() if not block[0].startswith("encoder") else ():
            p.data.zero_()
    batch = first(learner)
    z = learner.model.encode(batch.inputs)
    near = alignment_loss(z.redundant["audio"], z.redundant["image"], 0.1)
    alike = sum(orthogonality_loss(r, z.unique[m]) for m, r in z.redundant.items()) / 2
    expected = 3 * log(10) + 0.5 * near.item() + 2 * alike.item()
    assert learner.loss_of(batch).item() == pytest.approx(expected, abs=1e-4)
    alone = batch.only(["audio"])
    apart = orthogonality_loss(z.redundant["audio"], z.unique["audio"])
    found = learner.loss_of(alone).item()
    assert found == pytest.approx(2 * log(10) + 2 * apart.item(), abs=1e-4)


def test_who_shares_what():
    """Blocks of one name are mixed: the synergistic ones by devices of the same modalities."""
    sets = ("audio+image", "audio")
    found = {
        share: [
            set(parse({**CONFIG, "modality-pattern": own}, share=share).blocks()) for own in sets
        ]
        for share in SHARES
    }
    encoders = {"encoder.audio", "encoder.image"}
    heads = {"redundant", "unique.audio", "unique.image"}
    aligned = {f"synergistic.audio+image.{m}" for m in ("audio", "image")}
    plain = {f"synergistic.{m}" for m in ("audio", "image")}
    assert found["slices"][0] == encoders | heads | aligned
    assert found["slices"][1] == {"encoder.audio", "redundant", "unique.audio"}
    assert found["heads"] == [heads | plain, {"redundant", "unique.audio"}]
    assert found["encoders"] == [encoders, {"encoder.audio"}]
    assert found["both"][0] == encoders | heads | plain


def test_the_baselines_are_gossip_on_the_same_model_and_only_what_is_sent_differs():
    """Alone, each comes to the same numbers; what stays local survives a restart."""
    learners = [parse(share=share) for share in SHARES]
    batch = first(learners[0])
    logits = [learner.model(batch.inputs) for learner in learners]
    assert all(torch.allclose(3 * logits[0], x, atol=1e-5) for x in logits[1:])
    for learner in learners[1:]:
        expected = learner.cross_entropy(logits[1], batch.labels)
        assert torch.equal(learner.loss_of(batch), expected)
    for learner in learners:
        learner.run_round(Plan(1, 3), {})
    logits = [learner.model(batch.inputs) for learner in learners]
    assert all(torch.equal(logits[1], x) for x in logits[2:])
    for share, learner in zip(SHARES, learners, strict=True):
        fresh = parse(share=share)
        fresh.load_state({name: value.clone() for name, value in learner.state().items()})
        assert torch.equal(fresh.model(batch.inputs), learner.model(batch.inputs))
        a, b = (x.run_round(Plan(2, 3), {}).payload for x in (learner, fresh))
        assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("share", SHARES)
def test_a_run_with_different_sensors(share: str):
    config = {**CONFIG, "method": "parse", "parse.share": share, "num-nodes": 4}
    config |= {"modality-pattern": "audio,image,audio+image", "missing.train-share": 0.4}
    peers = run_peers({**config, "stagger": 0.5}, num_rounds=2, evaluate_every=1)
    assert not any(record.failed for record in peers.records)
    assert not any(node.rejected for record in peers.records for node in record.nodes)


def test_three_modalities():
    source = {m: Modality("vector", (3,)) for m in "abc"}
    samples = Samples({m: torch.randn(8, 3) for m in source}, torch.arange(8) % 4)
    partition = Partition(0, tuple(source), samples, samples, source, 4, samples)
    learner = Parse(partition, Settings(local_iterations=2, batch_size=4), ParseOptions())
    assert "synergistic.a+b+c.b" in learner.block_names
    metrics = learner.run_round(Plan(1, 2, evaluate=True), {}).metrics
    assert 0 <= metrics["test.without.a"] <= 1


def test_a_joint_iteration_costs_more_than_its_parts():
    """By the synergistic heads, the contrast and one redundant head less."""
    found = measure_work(parse())
    assert found.joint > sum(found.solo.values()) * 0.99 and found.per_round == 0
