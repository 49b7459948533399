"""Packed messages whose files and entries are anything at all."""

from random import Random

import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from fuzzing import UNCHANGED, fuzz
from test_fuzz_replies import spoil

from flwr_dmml.transport.messages import pack
from flwr_dmml.transport.packing import PACKED, PackingError, packed, unpacked

TENSORS = {"x": torch.arange(6.0).reshape(2, 3), "y": torch.tensor([True, False])}
TOLD = packed(
    RecordDict({"payload": pack(TENSORS), "metrics": MetricRecord({"loss": 0.5, "counts": [1, 2]})})
).config_records[PACKED]


def test_files(pytestconfig: pytest.Config) -> None:
    def parse(file: bytes) -> None:
        unpacked(RecordDict({PACKED: ConfigRecord({**TOLD, "0:file": file})}))

    fuzz(parse, (PackingError,), [bytes(TOLD["0:file"])], pytestconfig)  # type: ignore[arg-type]


def test_entries(pytestconfig: pytest.Config) -> None:
    def parse(data: bytes) -> None:
        content = RecordDict({PACKED: TOLD.copy()})
        if data != UNCHANGED:
            spoil(content, Random(data))
        unpacked(content)

    fuzz(parse, (PackingError,), [UNCHANGED], pytestconfig)
