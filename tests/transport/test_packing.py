from math import inf, isnan, nan

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from flwr_dmml.transport import packing, size_bytes
from flwr_dmml.transport.arrays import NumpyArray, array_problem, record_of
from flwr_dmml.transport.messages import pack, unpack
from flwr_dmml.transport.packing import PACKED, PackingError, is_packed, packed, unpacked


def over_the_wire(content: RecordDict) -> tuple[RecordDict, int]:
    """Return records as their receiver has them, and how many objects Flower makes of them."""
    objects = get_all_nested_objects(content)
    contents = {name: thing.deflate() for name, thing in objects.items()}
    there = inflate_object_from_contents(content.object_id, contents)
    assert isinstance(there, RecordDict)
    return there, len(objects)


def everything() -> RecordDict:
    """Records of each kind, empty ones too, with names and values that are easily lost."""
    tensors = {
        "b:head": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "a": torch.tensor(2.5, dtype=torch.float64),
        "": torch.zeros(0, 4, dtype=torch.int64),
        "x/é\n": torch.tensor([True, False]),
        "half": torch.tensor([1.5, -0.0, inf, nan], dtype=torch.float16),
        "small": torch.tensor([-128, 127], dtype=torch.int8),
    }
    plain = ArrayRecord({"own": Array(np.arange(4, dtype=np.uint16))})
    return RecordDict(
        {
            "inbox.3": pack(tensors),
            "plan": ConfigRecord(
                {"1:a": "text", "n": 3, "x": 3.0, "yes": True, "b": b"\0\xff", "l": ["a", "b"]}
            ),
            "none": ConfigRecord(),
            "inbox.0": ArrayRecord(),
            "metrics": MetricRecord({"loss": nan, "count": 2, "each": [1.0, 2.0]}),
            "plain": plain,
        }
    )


def check_equal(found: RecordDict, expected: RecordDict) -> None:
    assert list(found) == list(expected)
    for name, record in expected.items():
        assert type(found[name]) is type(record)
        assert list(found[name]) == list(record)
        if isinstance(record, ArrayRecord):
            for key, array in record.items():
                there, numbers = found[name][key], array.numpy()
                assert there.numpy().dtype == numbers.dtype and there.shape == array.shape
                assert there.numpy().tobytes() == numbers.tobytes()
        else:
            for key, value in record.items():
                there = found[name][key]
                assert type(there) is type(value)
                assert there == value or (isnan(there) and isnan(value))


def test_records_come_back_as_they_were():
    expected = everything()
    there, objects = over_the_wire(packed(expected))
    assert objects == 2  # the records, and the one that holds all of them
    assert is_packed(there) and not is_packed(expected)
    check_equal(unpacked(there), expected)
    assert over_the_wire(expected)[1] > 15


def test_payloads_have_the_bytes_that_they_have_in_a_simulation():
    expected = everything()
    found = unpacked(over_the_wire(packed(expected))[0])
    for name in ("inbox.3", "plain"):
        assert size_bytes(found[name]) == size_bytes(expected[name])
        assert size_bytes(found[name]) == sum(len(array.data) for array in found[name].values())


def test_numbers_that_came_packed_can_be_mixed():
    tensors = {"block": torch.arange(5.0)}
    found = unpacked(over_the_wire(packed(RecordDict({"payload": pack(tensors)})))[0])
    assert all(array_problem(array) is None for array in found["payload"].values())
    mixed = unpack(found["payload"])
    mixed["block"] += 1  # a copy
    assert torch.equal(unpack(found["payload"])["block"], tensors["block"])


def test_what_is_large_goes_in_chunks(monkeypatch: pytest.MonkeyPatch):
    """The first of three files has room beside the small records, the second one not."""
    monkeypatch.setattr(packing, "TOGETHER_BYTES", 1000)
    sizes = {"first": 100, "second": 300, "third": 50}
    expected = RecordDict({k: pack({"x": torch.rand(n)}) for k, n in sizes.items()})
    expected["plan"] = ConfigRecord({"n": 1})
    small = packed(expected)
    assert list(small) == [PACKED, f"{PACKED}.1"]
    (array,) = small.array_records[f"{PACKED}.1"].values()
    assert array.numpy().dtype == np.uint8 and array.numpy().ndim == 1
    there, objects = over_the_wire(small)
    assert objects == 5  # and the record, its array, and one chunk of it
    check_equal(unpacked(there), expected)


def test_what_is_not_packed_is_left_alone():
    content = everything()
    assert unpacked(content) is content


def damaged(file: bytes) -> RecordDict:
    told = {"0": "array payload", "0:names": ["x"], "0:file": file}
    return RecordDict({PACKED: ConfigRecord(told)})


GOOD = packed(RecordDict({"payload": pack({"x": torch.arange(3.0)})}))
FILE = bytes(GOOD.config_records[PACKED]["0:file"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"0:file": FILE[:-1]}, "its file is damaged"),
        ({"0:file": FILE[:20]}, "its file is damaged"),
        ({"0:file": b""}, "its file is damaged"),
        ({"0:file": b"\x80\x04K\x01."}, "its file is damaged"),  # a pickle
        ({"0:file": b"\xff" * 8 + FILE[8:]}, "its file is damaged"),
        ({"0:file": FILE.replace(b'"F32"', b'"F4"  ')}, "its file is damaged"),
        ({"0:file": FILE.replace(b'"F32"', b'"BF8"')}, "its file is damaged"),
        ({"0:file": "text"}, "its file is missing"),
        ({"0:names": ["x", "y"]}, "its file holds 1 arrays for 2 names"),
        ({"0:names": ["x", "x"]}, "its file holds 1 arrays for 2 names"),
        ({"0:names": [1]}, "its names are no list of names"),
        ({"0:names": "x"}, "its names are no list of names"),
        ({"0": "pickle payload"}, "is of an unknown kind"),
        ({"0": "metric payload"}, "packed record 'payload'"),
        ({"0": 3}, "is of an unknown kind"),
    ],
)
def test_damage_is_named(entries: dict[str, object], said: str):
    told = {**GOOD.config_records[PACKED], **entries}
    content = RecordDict({PACKED: ConfigRecord(told)})  # type: ignore[arg-type]
    with pytest.raises(PackingError, match=said):
        unpacked(content)


def test_an_entry_of_no_record_is_named():
    with pytest.raises(PackingError, match="an entry 'x:y'"):
        unpacked(RecordDict({PACKED: ConfigRecord({"x:y": 1})}))
    with pytest.raises(PackingError, match="'payload': its file is missing"):
        unpacked(RecordDict({PACKED: ConfigRecord({"0": "array payload", "0:names": ["x"]})}))


def test_complex_numbers_are_refused():
    file = FILE.replace(b'"F32"', b'"C64"').replace(b'"shape":[3]', b'"shape":[1]')
    with pytest.raises(PackingError, match="its file is damaged"):
        unpacked(damaged(file))
    from safetensors.numpy import save

    with pytest.raises(PackingError, match="'0' holds complex64, which are no plain numbers"):
        unpacked(damaged(save({"0": np.zeros(2, np.complex64)})))


def test_a_file_apart_that_is_no_bytes_is_named():
    told = RecordDict({PACKED: ConfigRecord({"0": "array payload", "0:names": ["x"]})})
    told[f"{PACKED}.0"] = record_of({"file": NumpyArray(np.zeros(3, np.float32))})
    with pytest.raises(PackingError, match="its file is missing"):
        unpacked(told)
    told[f"{PACKED}.0"] = ArrayRecord(
        {"file": Array("uint8", (3,), "numpy.ndarray", b"no numbers")}
    )
    with pytest.raises(PackingError, match="its file is missing"):
        unpacked(told)
