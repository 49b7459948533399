"""Plans and payloads in Flower's records, and the relay that passes them on unread."""

import io
import pickle
import zipfile
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_dmml.payload.blocks import addressed, vector_problem
from flwr_dmml.payload.plan import Plan
from flwr_dmml.transport import Relay, size_bytes
from flwr_dmml.transport.arrays import TensorArray, copy_records
from flwr_dmml.transport.messages import (
    INBOX,
    PLAN,
    join,
    pack,
    parted,
    read_inbox,
    read_plan,
    read_plans,
    unpack,
    write_plan,
)

# Plans

BLOCKS = st.sampled_from(["head.common", "encoder.audio", "head.audio", "generator", "weights.x"])


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    neighbours = tuple(draw(st.lists(st.integers(0, 2**40), max_size=4, unique=True)))
    size = len(neighbours) + 1
    rows = st.lists(st.floats(0, 1), min_size=size, max_size=size).map(tuple)
    return Plan(
        server_round=draw(st.integers(1, 10**6)),
        iterations=draw(st.integers(0, 10**6)),
        evaluate=draw(st.booleans()),
        neighbours=neighbours,
        weights=draw(st.dictionaries(BLOCKS, rows)),
        num_rounds=draw(st.integers(0, 10**6)),
        by_modality=draw(st.dictionaries(st.sampled_from(["audio", "image"]), st.integers(0, 99))),
        budget_j=draw(st.floats(0, 1e6) | st.just(inf)),
        phase=draw(st.sampled_from(["", "train", "label", "fine-tune"]) | st.text(max_size=9)),
        recipients=tuple(draw(st.lists(st.integers(0, 2**40), max_size=4, unique=True))),
        steps=draw(st.dictionaries(st.sampled_from(["", "audio"]), st.floats(0, 1e6))),
        anew=tuple(draw(st.lists(BLOCKS, max_size=3, unique=True))),
    )


@settings(deadline=None)
@given(plans())
def test_a_plan_comes_back_as_it_was(plan: Plan) -> None:
    record = write_plan(plan, "dmml-kd")
    assert read_plan(record) == plan
    assert record["method"] == "dmml-kd"
    assert [key for key, value in record.items() if value == []] == []
    assert record.count_bytes() > 0  # Flower cannot count the bytes of an empty list


def test_a_plan_without_neighbours() -> None:
    plan = Plan(server_round=1, iterations=20)
    record = write_plan(plan, "local")
    assert dict(record) == {
        "method": "local",
        "server-round": 1,
        "iterations": 20,
        "evaluate": False,
        "num-rounds": 0,
    }
    assert read_plan(record) == plan


def test_a_plan_with_neighbours() -> None:
    plan = Plan(
        3, 0, True, (4, 1), {"head.common": (0.5, 0.25, 0.25), "head.audio": (1.0, 0.0, 0.0)}
    )
    record = write_plan(plan, "dpsgd")
    assert record["neighbours"] == [4, 1] and record["weights.head.audio"] == [1.0, 0.0, 0.0]
    back = read_plan(record)
    assert back == plan and isinstance(back.neighbours, tuple)
    assert all(isinstance(weights, tuple) for weights in back.weights.values())


def test_a_plan_with_a_phase_and_recipients() -> None:
    """Written only where there are any: a plan of plain gossip is as long as it ever was."""
    plan = Plan(5, 2, neighbours=(4,), phase="fine-tune", recipients=(4, 0))
    record = write_plan(plan, "idkd")
    assert record["phase"] == "fine-tune" and record["recipients"] == [4, 0]
    back = read_plan(record)
    assert back == plan and isinstance(back.recipients, tuple)
    assert not {"phase", "recipients"} & set(write_plan(Plan(5, 2), "idkd"))


# Payloads


def test_tensors_come_back_as_they_were() -> None:
    tensors = {
        "head.common": torch.tensor([1.5, -2.0, torch.inf, torch.nan]),
        "stats.label-counts": torch.tensor([3.0, 0.0]),
        "optimizer.0.step": torch.tensor(7.0),
        "stats.order": torch.tensor([[2, 1], [0, 5]]),
        "none": torch.empty(0),
        "stats.labels.labels": torch.tensor([[0.5, 0.5]], dtype=torch.float16),
        "memory.own.index": torch.empty(0, dtype=torch.int32),
        "memory.own.labels": torch.empty(0, 10, dtype=torch.float16),
    }
    back = unpack(pack(tensors))
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        assert torch.equal(back[name].nan_to_num(), tensor.nan_to_num())


def test_in_a_process_a_record_is_read_without_making_bytes() -> None:
    tensor = torch.ones(2)
    assert unpack(pack({"head": tensor}))["head"] is tensor


def test_a_shared_tensor_that_somebody_changes_is_refused() -> None:
    record = pack({"head": torch.ones(2)})
    unpack(record)["head"].zero_()
    with pytest.raises(RuntimeError, match=r"float32\[2\] was changed in place"):
        unpack(record)


def test_bytes_from_elsewhere_become_tensors_of_their_own() -> None:
    record = ArrayRecord(
        {"head": pickle.loads(pickle.dumps(pack({"head": torch.ones(2)})["head"]))}
    )
    assert type(record["head"]) is Array
    unpack(record)["head"].zero_()
    assert unpack(record)["head"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "tensor",
    [torch.tensor(3.5), torch.zeros(0), torch.arange(7), torch.ones(300, 400).half(), torch.eye(2)],
)
def test_a_tensor_array_is_to_flower_what_an_array_of_its_numbers_is(tensor: torch.Tensor) -> None:
    ours, theirs = TensorArray(tensor), Array(tensor.numpy())
    assert (ours.dtype, ours.shape, ours.stype) == (theirs.dtype, theirs.shape, theirs.stype)
    assert ours.data == theirs.data and ours.serialised_bytes == len(theirs.data)
    assert ours.object_id == theirs.object_id
    copied = ours.numpy()
    copied[...] = 9
    assert torch.equal(torch.from_numpy(ours.numpy()), tensor)


def test_copied_records_share_tensors_and_nothing_else() -> None:
    content = RecordDict({"p": pack({"head": torch.ones(2)}), "c": ConfigRecord({"list": [1]})})
    content["plain"] = ArrayRecord({"x": Array(np.ones(1))})
    copied = copy_records(content)
    copied.config_records["c"]["list"].append(2)  # type: ignore[union-attr]
    copied.array_records["plain"]["x"].data = b""
    del copied.array_records["p"]["head"]
    assert content.config_records["c"]["list"] == [1]
    assert content.array_records["plain"]["x"].numpy().tolist() == [1]
    tensor = content.array_records["p"]["head"]
    assert copy_records(content).array_records["p"]["head"] is tensor


def array(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array(dtype="float32", shape=(3,), stype=stype, data=data)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "executed")


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    stream = io.BytesIO()
    np.save(stream, np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    data = stream.getvalue()
    np.load(io.BytesIO(data), allow_pickle=True)  # the trap does work
    assert sprung.read_text() == "executed"
    sprung.unlink()

    payload = unpack(ArrayRecord({"head": array(data), "good": Array(np.ones(1, np.float32))}))
    assert not sprung.exists()
    assert payload["head"].shape == (0,) and vector_problem(payload["head"], 3) is not None
    assert payload["good"].tolist() == [1]  # the rest is read all the same


def npy(values: np.ndarray | None = None) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones(3, np.float32) if values is None else values)
    return stream.getvalue()


def npy_with(header: str) -> bytes:
    """Return a .npy file of this header and 12 bytes of data."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(12)


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, head=np.ones(3, np.float32))
    return stream.getvalue()


def empty_zip() -> bytes:
    stream = io.BytesIO()
    zipfile.ZipFile(stream, "w").close()
    return stream.getvalue()


HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}"
BROKEN = {
    "empty": b"",
    "cut in the header": npy()[:40],
    "cut in the data": npy()[:-4],
    "noise": bytes(range(256)),
    "text": npy(np.array(["a", "b", "c"])),
    "dates": npy(np.array(["2024-01-01"], dtype="M8[D]")),
    "another byte order": npy(np.ones(3, ">f4")),
    "named fields": npy(np.zeros(3, [("a", "<f4")])),
    "npz": npz(),
    "empty zip": empty_zip(),
    "negative shape": npy_with(HEADER.format("<f4", "(-3,)")),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_what_cannot_be_read_becomes_an_empty_tensor(data: bytes) -> None:
    payload = unpack(ArrayRecord({"head": array(data), "good": Array(np.ones(1, np.float32))}))
    assert payload["head"].shape == (0,)
    assert payload["good"].tolist() == [1]


WORSE = {
    "broken zip": b"PK\x03\x04" + bytes(50),  # zipfile.BadZipFile
    "petabytes": npy_with(HEADER.format("<f4", "(1000000000000000,)")),  # MemoryError
    "huge shape": npy_with(HEADER.format("<f4", "(99999999999999999999999,)")),  # OverflowError
    "open bracket": npy_with("((("),  # tokenize.TokenError
    "bad type": npy_with(HEADER.format("<,4", "(3,)")),  # SyntaxError
}


@pytest.mark.parametrize("data", WORSE.values(), ids=WORSE.keys())
def test_what_makes_numpy_raise_otherwise_becomes_an_empty_tensor(data: bytes) -> None:
    payload = unpack(ArrayRecord({"head": array(data), "good": Array(np.ones(1, np.float32))}))
    assert payload["head"].shape == (0,)
    assert payload["good"].tolist() == [1]


def test_another_kind_of_serialisation_becomes_an_empty_tensor() -> None:
    payload = unpack(ArrayRecord({"head": array(npy(), stype="torch.tensor")}))
    assert payload["head"].shape == (0,)


def test_inbox_holds_the_neighbours_payloads_only() -> None:
    content = RecordDict(
        {
            PLAN: write_plan(Plan(2, 5, neighbours=(7, 10)), "dpsgd"),
            f"{INBOX}7": pack({"head": torch.ones(2)}),
            f"{INBOX}10": pack({}),
            "initial": pack({"head": torch.zeros(2)}),
        }
    )
    inbox = read_inbox(content)
    assert set(inbox) == {7, 10} and inbox[10] == {}
    assert inbox[7]["head"].tolist() == [1, 1]


# The relay


def make_relay() -> tuple[Relay, dict[int, ArrayRecord]]:
    """Return a relay that holds three payloads; 1 has ears and eyes, 2 only eyes."""
    payloads = {
        0: pack({"head.common": torch.ones(2), "encoder.audio": torch.ones(3)}),
        1: pack(
            {
                "head.common": torch.zeros(2),
                "encoder.audio": torch.zeros(3),
                "encoder.image": torch.zeros(4),
                "stats.label-counts": torch.tensor([5.0, 0.0]),
            }
        ),
        2: pack({"head.common": torch.ones(2), "encoder.image": torch.ones(4)}),
    }
    relay = Relay()
    relay.take(payloads)
    return relay, payloads


PLAN_OF_0 = Plan(
    2,
    5,
    neighbours=(2, 1),
    weights={"head.common": (0.4, 0.3, 0.3), "encoder.audio": (0.5, 0.0, 0.5)},
)


def test_relay_sends_what_is_mixed_and_statistics() -> None:
    """Node 0 has no camera: no image encoder travels. Node 2 has no microphone: weight 0."""
    relay, _ = make_relay()
    inbox = relay.inbox(PLAN_OF_0, 0)
    assert {sender: set(record) for sender, record in inbox.items()} == {
        2: {"head.common"},
        1: {"head.common", "encoder.audio", "stats.label-counts"},
    }
    assert set(relay.sizes) == {0, 1, 2}


def test_relay_passes_on_the_very_bytes_unread() -> None:
    """No value is looked at and none is copied."""
    relay, payloads = make_relay()
    sealed = array(b"nobody can read this")
    payloads[1]["encoder.audio"] = sealed
    inbox = relay.inbox(PLAN_OF_0, 0)
    assert inbox[1]["encoder.audio"].data is sealed.data
    for sender, record in inbox.items():
        for name, sent in record.items():
            assert sent is payloads[sender][name]
    assert set(payloads[1]) >= {"encoder.image"}  # what came in is left as it was


def test_relay_sends_statistics_even_where_nothing_is_mixed() -> None:
    relay, _ = make_relay()
    plan = Plan(2, 5, neighbours=(1,), weights={"encoder.image": (1.0, 0.0)})
    assert set(relay.inbox(plan, 0)[1]) == {"stats.label-counts"}


def test_relay_sends_nothing_to_a_node_without_neighbours() -> None:
    relay, _ = make_relay()
    assert relay.inbox(Plan(2, 5), 0) == {}
    assert Relay().inbox(Plan(1, 5), 0) == {} and Relay().sizes == {}


def addressing_relay() -> Relay:
    """Return a relay in which 1 sends 0 and 2 an edge of their own, and 2 sends all the same."""
    relay = Relay()
    own = {addressed("head.common", k): torch.full((2,), float(k)) for k in (0, 2, 30)}
    relay.take(
        {
            1: pack(own | {"encoder.audio": torch.ones(3), "stats.speeds": torch.ones(2)}),
            2: pack({"head.common": torch.zeros(2)}),
        }
    )
    return relay


def test_relay_gives_each_receiver_what_is_addressed_to_it() -> None:
    """0 does not get what is for 2 or for 30; the rest of the payload is for everybody."""
    relay, weights = addressing_relay(), {"head.common": (0.5, 0.25, 0.25)}
    for receiver in (0, 2, 30):
        plan = Plan(2, 5, neighbours=(1, 2), weights=weights)
        inbox = relay.inbox(plan, receiver)
        assert set(inbox[1]) == {f"head.common@{receiver}", "stats.speeds"}
        assert unpack(inbox[1])[f"head.common@{receiver}"].tolist() == [receiver, receiver]
        assert set(inbox[2]) == {"head.common"}


def test_relay_gives_nothing_of_a_block_to_whom_it_is_not_addressed() -> None:
    """3 gets nothing that is for 30; of a block that is not mixed nothing travels."""
    relay = addressing_relay()
    plan = Plan(2, 5, neighbours=(1,), weights={"head.common": (0.5, 0.5)})
    assert set(relay.inbox(plan, 3)[1]) == {"stats.speeds"}
    plan = Plan(2, 5, neighbours=(1,), weights={"head.common": (1.0, 0.0)})
    assert set(relay.inbox(plan, 0)[1]) == {"stats.speeds"}


def test_sizes_count_every_addressed_entry() -> None:
    """Three edges of 128 + 8 bytes, an encoder of 128 + 12, speeds of 128 + 8."""
    assert addressing_relay().sizes == {1: 4 * 136 + 140, 2: 136}


def test_relay_forgets_the_round_before() -> None:
    relay, payloads = make_relay()
    relay.take({2: payloads[2]})
    assert set(relay.sizes) == {2}
    relay.take({})
    assert relay.sizes == {}


def test_size_in_bytes() -> None:
    """An array travels as a .npy file: a header of 128 bytes and 4 bytes a number."""
    record = pack({"head": torch.zeros(10), "encoder": torch.zeros(1000)})
    assert size_bytes(record) == (128 + 40) + (128 + 4000)
    assert size_bytes(ArrayRecord()) == 0


def test_size_in_bytes_of_what_begins_with_a_prefix() -> None:
    """Labels of two samples of three classes: 128 + 2 * 4 and 128 + 2 * 3 * 2."""
    labels = {
        "stats.labels.index": torch.zeros(2, dtype=torch.int32),
        "stats.labels.labels": torch.zeros(2, 3, dtype=torch.float16),
    }
    others = {"head": torch.zeros(10), "stats.label-counts": torch.zeros(5)}
    assert size_bytes(pack(labels | others), "stats.labels.") == 136 + 140
    assert size_bytes(pack(others), "stats.labels.") == 0


# Several rounds in a message


def test_the_rounds_of_a_message_are_one_record():
    joined = join([{"a": 1.0}, {}, {"a": 3.0, "b:c": 4.0}])
    assert joined == {"a": 1.0, "2:a": 3.0, "2:b:c": 4.0}
    assert parted(joined, 3) == [{"a": 1.0}, {}, {"a": 3.0, "b:c": 4.0}]
    assert parted(joined, 4) == [{"a": 1.0}, {}, {"a": 3.0, "b:c": 4.0}, {}]


@pytest.mark.parametrize("key", ["1:x", "30000000:x", "1000000000:x"])
def test_an_entry_of_no_round_of_the_message_is_refused(key: str):
    """It used to make as many records as its number says, in as much memory."""
    with pytest.raises(ValueError, match=f"of round {int(key[:-2]) + 1} of 1"):
        parted({"a": 1.0, key: 2.0}, 1)
    with pytest.raises(ValueError, match="of 2"):
        parted({"a": 1.0, "2:x": 2.0})


def test_each_round_of_a_message_is_read_as_it_was_written():
    plans = [
        Plan(t, 5, t % 2 == 0, (3,) * (t < 12), {"head": (0.5, 0.5)} if t < 12 else {}, budget_j=t)
        for t in range(1, 14)
    ]
    told = ConfigRecord(join(write_plan(plan, "dpsgd") for plan in plans))
    assert read_plans(RecordDict({PLAN: told})) == plans
    assert told["method"] == "dpsgd"
