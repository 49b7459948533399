"""A process's share of the devices: where their rows are, and where they cannot be."""

import gc
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FAST

from flwr_dmml.clients import hosted
from flwr_dmml.clients.hosted import HostedDevices, Left
from flwr_dmml.clients.shares import RowsLostError, Share
from flwr_dmml.engine.nodes import simulated_nodes
from flwr_dmml.learning.rows import layouts
from flwr_dmml.settings import OwnParts

CONFIG: dict[str, Any] = {**FAST, "method": "dpsgd", "num-nodes": 2}


def devices(**changed: Any) -> HostedDevices:
    return HostedDevices(OwnParts(), simulated_nodes(2).values, {**CONFIG, **changed})


def test_rows_that_should_be_there_are_not_made_up(tmp_path: Path) -> None:
    share = Share(devices(), tmp_path)
    _, found = share.begin("dpsgd")
    every = layouts(found, sorted(found))
    with pytest.raises(RowsLostError, match="rows-1-0-a is not there, or not whole"):
        share.enter(1, every, left=Left(2, {}, False))
    share.enter(1, every)
    share.enter(1, every, left=Left(2, share.devices.kept(), False))
    (rows,) = tmp_path.glob("*/rows-1-0-b")
    rows.write_bytes(b"0")
    with pytest.raises(RowsLostError, match="rows-1-0-b is not there, or not whole"):
        share.enter(1, every, left=Left(2, {}, False))


def test_the_rows_of_a_method_that_is_over_are_let_go(tmp_path: Path) -> None:
    share = Share(devices(), tmp_path)
    for number, method in enumerate(("dpsgd", "fedprox")):
        _, found = share.begin(method)
        share.enter(number, layouts(found, sorted(found)))
        gc.collect()
        mapped = re.findall(r"/(rows-\d)-", Path("/proc/self/maps").read_text())
        assert set(mapped) == {f"rows-{number}"}


@pytest.mark.parametrize(
    ("how", "gpu", "on_cpu"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"device": "cpu"}, True, True),
        ({"device": "cuda:1"}, False, False),
        ({"overrides": "device=cuda"}, False, False),
    ],
)
def test_who_computes_on_the_cpu(
    how: dict[str, Any], gpu: bool, on_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = torch.device("cuda" if gpu else "cpu")
    monkeypatch.setattr(hosted, "resolve_device", lambda name: found)
    assert devices(**how).on_cpu() == on_cpu
