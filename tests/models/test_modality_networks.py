"""The networks of methods in stages: where blocks start, what a missing modality is, lessons."""

from typing import Any

import torch
from helpers import FAST, make_learner
from helpers_staged import SENSORS

from flwr_dmml.data import Samples
from flwr_dmml.methods.teaching import logits_of
from flwr_dmml.models import DecomposedClassifier, ModalityNetworks
from flwr_dmml.payload.blocks import flatten, num_parameters

BOTH: dict[str, Any] = {
    **FAST, "method": "modality-mirror", "modality-pattern": "audio+image", "num-nodes": 3,
}  # fmt: skip
TEACHER = {"teacher.encoder.audio", "teacher.encoder.image", "teacher.head"}


def test_blocks_start_from_their_names() -> None:
    """Encoders are those of D-PSGD, what the teacher begins as, and equal on all devices."""
    several, audio = (
        make_learner(BOTH, 0),
        make_learner({**BOTH, "modality-pattern": "audio+image,audio"}, 1),
    )
    blocks, plain = several.blocks(), make_learner({**BOTH, "method": "dpsgd"}).blocks()
    assert isinstance(make_learner({**BOTH, "method": "dpsgd"}).model, DecomposedClassifier)
    assert set(audio.blocks()) == {"encoder.audio", "head.audio"}
    assert set(blocks) == {*plain, *TEACHER} - {"head.common"} | {"head.audio", "head.image"}
    for m in ("audio", "image"):
        start = flatten(blocks[f"encoder.{m}"])
        assert torch.equal(start, flatten(plain[f"encoder.{m}"]))
        assert torch.equal(start, flatten(blocks[f"teacher.encoder.{m}"]))
    for name, block in audio.blocks().items():
        assert torch.equal(flatten(block), flatten(blocks[name]))
    other = make_learner({**BOTH, "seed": 1}).blocks()
    assert all(not torch.equal(flatten(blocks[n]), flatten(other[n])) for n in blocks)


def test_heads_of_other_sensors_are_the_same_block() -> None:
    """Three modalities: a head has weights for each, whoever owns what."""
    every = dict.fromkeys(("a", "b", "c"), SENSORS["image"])
    models = [
        ModalityNetworks({m: every[m] for m in own}, list(every), 4, width=5, seed=3)
        for own in ("ab", "bc", "abc")
    ]
    heads = [flatten(model.fusion_head) for model in models]
    assert all(torch.equal(head, heads[0]) for head in heads)
    assert num_parameters(models[0].fusion_head) == 3 * 5 * 4 + 4
    assert ModalityNetworks({"a": every["a"]}, list(every), 4).fusion_blocks() == {}


def test_a_missing_modality_is_a_feature_of_zeros() -> None:
    """``h([f_1; f_2])`` with f_2 = 0, as one matrix: W [f_1; 0] + b."""
    model = ModalityNetworks(SENSORS, list(SENSORS), 4, width=5)
    x = {m: torch.randn(6, *modality.shape) for m, modality in SENSORS.items()}
    layers = model.fusion_head.layers
    matrix = torch.cat([layers[m].weight for m in SENSORS], dim=1)  # type: ignore[list-item]
    f = {m: model.fusion_encoders[m](x[m]) for m in SENSORS}
    for has in (("audio", "image"), ("audio",)):
        slots = torch.cat([f[m] if m in has else torch.zeros(6, 5) for m in SENSORS], dim=1)
        expected = slots @ matrix.T + model.fusion_head.bias
        assert torch.allclose(model.fused({m: x[m] for m in has}), expected, atol=1e-6)


def test_lessons_are_those_of_the_samples_whatever_they_lack() -> None:
    """Rows of three kinds, put back in their order."""
    model = ModalityNetworks(SENSORS, list(SENSORS), 4)
    x = {m: torch.randn(5, *modality.shape) for m, modality in SENSORS.items()}
    has = {"audio": [1, 0, 1, 1, 0], "image": [1, 1, 0, 1, 1]}
    present = {m: torch.tensor(rows, dtype=torch.bool) for m, rows in has.items()}
    found = logits_of(model.fused, Samples(x, torch.zeros(5, dtype=torch.int64), None, present))
    for row in range(5):
        alone = {m: x[m][row : row + 1] for m in x if has[m][row]}
        assert torch.allclose(found[row], model.fused(alone)[0], atol=1e-6)
