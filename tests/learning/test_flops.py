"""The counter of operations agrees with torch's own, and is cheap to begin with."""

import subprocess
import sys

import pytest
import torch
from helpers import FAST, make_learner
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flwr_dmml.learning.flops import FlopCounter
from flwr_dmml.models.pooling import AveragePool
from flwr_dmml.payload.plan import Plan


def test_a_linear_layer_by_hand() -> None:
    """3 samples, 4 to 5: 2 * 3 * 4 * 5 = 120 forward, as much for the weights' gradient."""
    layer, x = nn.Linear(4, 5), torch.randn(3, 4)
    with FlopCounter() as counter:
        layer(x).sum().backward()
    assert counter.flops == 240
    with FlopCounter() as counter, torch.no_grad():
        layer(x)
    assert counter.flops == 120


def test_pooling_is_not_counted() -> None:
    """8 x 4 to 4 x 4 is a product with a matrix here, forward and back."""
    pool, x = AveragePool(4), torch.randn(3, 2, 8, 4, requires_grad=True)
    with FlopCounter() as counter:
        pool(x).sum().backward()
    assert counter.flops == 0


@pytest.mark.parametrize(
    "config",
    [
        {"method": "dmml-kd"},
        {"method": "fedproto"},
        {"method": "ogm-ge"},
        {"method": "agm"},
        {"method": "mmpareto"},
        {"method": "dpsgd", "modality-pattern": "image", "image-encoder": "resnet20"},
    ],
    ids=str,
)
def test_it_counts_as_torch_does(config: dict[str, str]) -> None:
    learner = make_learner({**FAST, "num-nodes": 3, "modality-pattern": "audio+image", **config})
    learner.server_round = 2
    learner.before_training(Plan(2, 1), {})
    batch = next(iter(learner.batches(1)))
    with FlopCounter() as counter:
        learner.loss_of(batch).backward()
    for encoder in learner.encoders().values():
        for name, module in encoder.named_modules():
            if isinstance(module, AveragePool):
                encoder.set_submodule(name, nn.AdaptiveAvgPool2d(module.size))
    with FlopCounterMode(display=False) as theirs:
        learner.loss_of(batch).backward()
    assert counter.flops == theirs.get_total_flops() > 0


ROUNDS = """
import sys
from helpers import FAST, make_learner
from flwr_dmml.learning.work import measure_work
from flwr_dmml.payload.plan import Plan

learner = make_learner({**FAST, "num-nodes": 2, "method": "fedgen", "optimizer": "adam"})
measure_work(learner)
for t in (1, 2):
    learner.run_round(Plan(t, 2, evaluate=True), {})
print("torch._dynamo" in sys.modules)
"""


def test_a_device_never_loads_torchs_compiler() -> None:
    """It would take two seconds and 90 MB in each process."""
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{ROUNDS}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False", done.stdout
