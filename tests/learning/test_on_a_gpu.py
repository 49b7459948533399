"""What a GPU computes, on torch's device "meta", which has shapes only: nothing may stay behind."""

from typing import Any

import pytest
import torch
from helpers import FAST, make_learner

from flwr_dmml.learning.batch import Batch
from flwr_dmml.learning.optimisers import Iteration, LocalSteps, StepRule
from flwr_dmml.learning.speedometer import Odometer
from flwr_dmml.losses import ensemble_loss
from flwr_dmml.models.stacked import StandIns, linear
from flwr_dmml.payload.flat import Flat

DEVICES, BATCH = 3, 4


@pytest.mark.parametrize("encoder", ["conv", "conv3", "tiny", "mlp", "resnet20"])
@pytest.mark.parametrize("rows", [None, [0, 2]])
@pytest.mark.parametrize(
    "how", [{}, {"momentum": 0.9, "weight_decay": 0.1, "clip_norm": 1.0}, {"rates": {"x": 0.5}}]
)
def test_a_stacked_iteration_stays_on_its_device(
    encoder: str, rows: list[int] | None, how: dict[str, Any]
) -> None:
    config = {**FAST, "method": "dpsgd", "modality-pattern": "audio+image"}
    learner = make_learner({**config, "image-encoder": encoder})
    model = learner.model.to("meta")
    flat = Flat(model.blocks())
    assert flat.vector.is_meta
    matrix = torch.empty(DEVICES, flat.matrix.shape[1], device="meta")
    index = None if rows is None else torch.tensor(rows, device="meta")
    x = matrix if index is None else matrix[index]
    count = len(x)
    leaves = [v.detach().requires_grad_() for v in flat.views(x)]
    iteration = Iteration(x, leaves, index)
    local = LocalSteps(flat, matrix, range(len(leaves)), StepRule(0.1, **how))
    encoders = {m: flat.indices_of(list(e.parameters())) for m, e in model.encoders.items()}
    odometer = Odometer(matrix, flat, encoders, {"gradients", "path", "vectors"})
    forms = learner.partition.source_modalities
    inputs = {m: torch.empty(count, BATCH, *forms[m].shape, device="meta") for m in encoders}
    labels = torch.empty(count, BATCH, dtype=torch.int64, device="meta")
    with StandIns(flat.modules.values()) as stand_ins:
        stand_ins.put(dict(zip(map(id, flat.parameters), leaves, strict=True)))
        losses = learner.local_loss(Batch(inputs, labels))
    assert losses.shape == (count,) and losses.is_meta
    local.take(iteration, torch.autograd.grad(losses.sum(), leaves, allow_unused=True))
    local.gather(iteration)
    local.clip(iteration)
    odometer.before_step(iteration, tuple(encoders))
    local.step(iteration)
    odometer.after_step(iteration, tuple(encoders))
    assert local.taken.is_meta and iteration.x.is_meta
    assert all(g.is_meta for g in iteration.gradients.values())


def test_the_ensemble_of_heads_stays_on_its_device() -> None:
    features = torch.empty(DEVICES, BATCH, 8, device="meta", requires_grad=True)
    weight = torch.empty(DEVICES, 50, 8, device="meta")
    bias = torch.empty(DEVICES, 50, device="meta")
    logits = linear(features, weight, bias).view(DEVICES, BATCH, 5, 10)
    labels = torch.empty(DEVICES, BATCH, dtype=torch.int64, device="meta")
    loss = ensemble_loss(logits, labels, torch.empty(DEVICES, 5, 10, device="meta"))
    assert loss.shape == (DEVICES,) and loss.is_meta
    assert torch.autograd.grad(loss.sum(), features)[0].is_meta
