"""Messages between the processes of the sharded engine."""

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from flwr_dmml.engine.wire import Chunk, Description, Export, RemoteArray, find_in, read, write
from flwr_dmml.transport.arrays import TensorArray, record_of

TENSOR = torch.arange(6, dtype=torch.float32).reshape(2, 3)


def records() -> RecordDict:
    """A tensor that occurs twice, a plain array, and something that is no array."""
    tensor = TensorArray(TENSOR)
    content = RecordDict({"a": record_of({"x": tensor}), "b": record_of({"x": tensor})})
    content["plain"] = ArrayRecord({"y": Array(np.ones(2))})
    content["config"] = ConfigRecord({"rate": 0.5})
    return content


def test_what_arrays_hold_is_exported_once_and_not_written():
    export = Export(7)
    text = write(records(), export.describe)
    first, second = export.buffers()
    assert len(export.arrays) == 2 and first.tolist() == TENSOR.tolist()
    assert second.tolist() == [1, 1], "its bytes have been read"
    assert TENSOR.numpy().tobytes() not in text


def test_a_worker_that_has_the_arrays_gets_the_very_same():
    export, content = Export(7), records()
    text = write(content, export.describe)
    back = read(text, find_in({7: export.arrays}, fetch=lambda number: pytest.fail("fetched")))
    for name in ("a", "b"):
        assert back.array_records[name]["x"] is content.array_records[name]["x"]
    assert back.array_records["plain"]["y"] is export.arrays[1]
    assert back["config"] == content["config"]


def test_another_worker_gets_views_of_the_buffers():
    export = Export(7)
    text, fetched = write(records(), export.describe), list[int]()

    def fetch(number: int) -> Any:
        fetched.append(number)
        return export.buffers()

    back = read(text, find_in({}, fetch)).array_records
    assert fetched == [7, 7]  # once an array: who fetches keeps what it has
    assert torch.equal(back["a"]["x"].tensor, TENSOR) and back["a"]["x"] is back["b"]["x"]
    assert back["a"]["x"].tensor.data_ptr() == TENSOR.data_ptr()
    assert back["plain"]["y"].numpy().tolist() == [1, 1]


@pytest.mark.parametrize(
    "array",
    [
        Array(np.arange(6.0).reshape(2, 3)),
        Array(np.asfortranarray(np.arange(6.0).reshape(2, 3))),
        Array(np.zeros((0, 3), np.int16)),
        Array("float32", (2,), "other.kind", b"sealed"),
        Array("float32", (2,), "numpy.ndarray", b"no file of numpy's"),
    ],
)
def test_any_array_arrives_as_it_was(array: Array):
    export = Export(1)
    text = write([array], export.describe)
    for chunks in ({}, {1: export.arrays}):
        (back,) = read(text, find_in(chunks, lambda number: export.buffers()))
        assert (back.dtype, back.shape, back.stype) == (array.dtype, array.shape, array.stype)
        assert back.data == array.data
        if array.data.startswith(b"\x93NUMPY"):
            numbers = back.numpy()
            assert np.array_equal(numbers, array.numpy())
            numbers[...] = 7  # as any ``Array``, it gives a copy
            assert back.data == array.data


def test_a_remote_array_is_described_without_its_bytes():
    """5 float32 and a header of 128 bytes make 148."""
    described = Export(3).describe(TensorArray(torch.zeros(5)))
    unused = list[int]()
    array = RemoteArray(described, Chunk(3, ref=None, on_unused=unused.append))
    assert (array.dtype, array.shape, array.serialised_bytes) == ("float32", (5,), 148)
    assert unused == []
    del array
    assert unused == [3], "nobody can ask for the chunk any more"


def test_a_driver_sends_back_only_where_arrays_lie():
    export = Export(7)
    text = write(records(), export.describe)
    chunk = Chunk(7, ref=None, on_unused=lambda number: None)
    in_driver = read(text, lambda description: RemoteArray(description, chunk))
    asked = list[Description]()

    def describe(array: Array) -> Description | None:
        assert isinstance(array, RemoteArray)
        asked.append(array.description)
        return array.description

    again = write(in_driver, describe)
    back = read(again, find_in({7: export.arrays}, fetch=lambda number: pytest.fail("fetched")))
    assert back.array_records["a"]["x"] is export.arrays[0] and len(asked) == 3
