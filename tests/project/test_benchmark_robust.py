"""``benchmarks/robust.py mnist`` steps every arm, on made images."""

import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT

sys.path.append(str(ROOT / "benchmarks"))
robust = pytest.importorskip(
    "robust", reason="benchmarks/ is in the repository, not in the package"
)
robust_mnist = pytest.importorskip("robust_mnist", reason="benchmarks/ is in the repository")


@pytest.mark.parametrize("name", robust.ARMS)
def test_every_arm_steps_under_every_attack(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    classes = [k / 10 + torch.rand(40, robust_mnist.PIXELS, generator=random) for k in range(10)]
    tests = torch.cat([images[:4] for images in classes]), torch.arange(10).repeat_interleave(4)
    monkeypatch.setattr(robust_mnist, "mnist", lambda folder: (classes, *tests))
    arm = robust.ARMS[name]
    for attack in (*robust.COLUMNS, robust.HIDDEN):
        found = robust_mnist.accuracies(Path(), "er", arm, attack, seed=0, start=1.0, record=(2, 3))
        assert found.keys() == {2, 3}
        assert all(0 <= low <= mean <= 100 for mean, low in found.values())
