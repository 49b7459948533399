"""Letters between devices: what they hold comes back, and nothing else is taken for one."""

import json
import tracemalloc
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_dmml.payload.limits import Limits
from flwr_dmml.transport.letter import (
    DIGEST_BYTES,
    FRAME,
    MAGIC,
    VERSION,
    Letter,
    LetterError,
    _digest,
    guarded,
    letter_bytes,
    name_of_run,
    read_letter,
    write_letter,
)

TENSORS = {
    "encoder.audio": torch.linspace(-1, 1, 7),
    "half": torch.tensor([[0.5, 2.0]], dtype=torch.float16),
    "q": torch.tensor([-128, 127], dtype=torch.int8),
    "stats.counts": torch.tensor([3, 2**40]),
    "none": torch.empty(0),
    "one": torch.tensor(1.5),
    "has": torch.tensor([True, False]),
}
LETTER = Letter("run-7", 3, 12, TENSORS)
DATA = write_letter(LETTER)


def test_equal_runs_send_equal_bytes() -> None:
    """Flower draws a run's id: how many digits it has makes no letter longer."""
    sizes = {
        len(write_letter(replace(LETTER, run=name_of_run(run_id)))) for run_id in (0, 7, 2**64 - 1)
    }
    assert len(sizes) == 1


def forged(header: bytes, body: bytes = b"", version: int = VERSION, magic: bytes = MAGIC) -> bytes:
    """Return bytes with a right digest, whatever they say."""
    data = FRAME.pack(magic, version, len(header)) + header + body
    return data + _digest(data)


def about(**changes: object) -> bytes:
    whole = {"run": "r", "sender": 0, "round": 1, "tensors": [["x", "float32", [2], 8]]}
    return json.dumps({**whole, **changes}).encode()


def test_what_is_written_is_read():
    found = read_letter(DATA)
    assert (found.run, found.sender, found.server_round) == ("run-7", 3, 12)
    assert list(found.tensors) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert (
            torch.equal(found.tensors[name], tensor) and found.tensors[name].shape == tensor.shape
        )
    found.tensors["one"].add_(1)  # its own memory: may be written into
    assert write_letter(read_letter(DATA)) == DATA


def test_bytes_are_those_of_the_tensors_and_little_more():
    million = write_letter(Letter("r", 0, 1, {"x": torch.zeros(1_000_000)}))
    assert 4_000_000 < len(million) < 4_000_200


@pytest.mark.parametrize("cut", [0, 5, 20, len(DATA) // 2, len(DATA) - 1])
def test_a_letter_cut_short_is_refused(cut: int):
    with pytest.raises(LetterError):
        read_letter(DATA[:cut])


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_a_changed_byte_is_found(position: int, change: int):
    data = bytearray(DATA)
    data[position] ^= change
    with pytest.raises(LetterError):
        read_letter(bytes(data))


@given(st.binary(max_size=300))
def test_rubbish_is_refused(data: bytes):
    with pytest.raises(LetterError):
        read_letter(data)
    with pytest.raises(LetterError):
        read_letter(forged(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (forged(about(), bytes(8), version=2), "version 2, this program reads 1"),
        (forged(about(), bytes(8), magic=b"GIF8"), "does not begin as a letter does"),
        (forged(about(), bytes(7)), "'x' has 8 bytes for float32"),
        (forged(about(), bytes(9)), "1 bytes behind the last tensor"),
        (forged(about(tensors=[["x", "float32", [3], 8]]), bytes(8)), "8 bytes for float32"),
        (forged(about(tensors=[["x", "object", [2], 16]]), bytes(16)), "not that of a letter"),
        (forged(about(tensors=[["x", "float32", [-2], -8]]), b""), "not that of a letter"),
        (forged(about(tensors=[["x", "float32", [True], 4]]), bytes(4)), "not that of a letter"),
        (forged(about(tensors=[["x", "float32", [2]]]), bytes(8)), "not that of a letter"),
        (forged(about(tensors=2), bytes(8)), "not that of a letter"),
        (forged(about(tensors=[["x", "int8", [1], 1]] * 2), bytes(2)), "not that of a letter"),
        (forged(about(sender=-1), bytes(8)), "not that of a letter"),
        (forged(about(run=3), bytes(8)), "not that of a letter"),
        (forged(about(extra=1), bytes(8)), "not that of a letter"),
        (forged(b"[" * 100_000), "not that of a letter"),
        (forged(b"\xff\xfe"), "not that of a letter"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, reason: str):
    with pytest.raises(LetterError, match=reason):
        read_letter(data)


def test_a_header_may_not_say_more_than_there_is():
    data = FRAME.pack(MAGIC, VERSION, 1 << 31) + bytes(50)
    with pytest.raises(LetterError, match="cut short, or a header of 2147483648 bytes"):
        read_letter(data + _digest(data))
    huge = [["x", "float32", [1 << 61], 1 << 63]]
    with pytest.raises(LetterError):
        read_letter(forged(about(tensors=huge), bytes(8)))


def test_what_a_letter_may_hold_follows_from_the_blocks_of_the_run():
    """A block of 7 numbers: 64 more may stand behind them, so 284 bytes are allowed."""
    limits = Limits({"encoder.audio": 7, "head": 3}, statistics=40)
    for name, length in (
        ("encoder.audio", 71), ("encoder.audio@2", 7), ("encoder.audio<3#scale", 1),
        ("head#1", 3), ("stats.speed", 10),
    ):  # fmt: skip
        letter = Letter("r", 0, 1, {name: torch.ones(length)})
        assert read_letter(write_letter(letter), limits).tensors.keys() == {name}
    for name, length, reason in (
        ("encoder.audio", 72, "'encoder.audio' has 288 bytes, allowed are 284: the block has 7"),
        ("encoder.audio<3", 72, "'encoder.audio<3' has 288 bytes"),
        ("encoder.image", 1, "'encoder.image' is a block that no two devices of the run have"),
        ("", 1, "'' is a block that no two devices of the run have"),
        ("stats.speed", 11, "'stats.speed' has 44 bytes, allowed are 40: statistics"),
    ):
        with pytest.raises(LetterError, match=reason):
            read_letter(write_letter(Letter("r", 0, 1, {name: torch.ones(length)})), limits)


def test_a_limit_is_kept():
    """Two entries of each copy of 4 (L + 64) bytes, and a header of a MiB in all."""
    limits = Limits({"x": 1 << 20}, statistics=40, copies=3, entries=2)
    assert limits.payload_bytes == 3 * 2 * 4 * ((1 << 20) + 64) + 40
    assert letter_bytes(limits) == limits.payload_bytes + (1 << 20) + FRAME.size + DIGEST_BYTES
    assert letter_bytes(None) == letter_bytes(Limits({"x": 1 << 40})) == 1 << 30
    data = bytes(letter_bytes(limits) + 1)
    with pytest.raises(LetterError, match=f"{len(data)} bytes, allowed are {len(data) - 1}"):
        read_letter(data, limits)
    assert DIGEST_BYTES == 16


@pytest.mark.parametrize(
    ("shape", "num_bytes"),
    [
        ([1] * 9, 4),
        ([1] * 40_000, 4),
        ([1 << 30] * 40_000, 4),
        ([1 << 61, 8], 0),
        ([0, 1 << 30, 1 << 30, 1 << 30], 0),
        ([1 << 30] * 7 + [0], 0),
    ],
    ids=str,
)
def test_a_shape_is_small_and_does_not_overflow(shape: list[int], num_bytes: int):
    data = forged(about(tensors=[["x", "float32", shape, num_bytes]]), bytes(num_bytes))
    with pytest.raises(LetterError, match=r"not that of a letter: tensors.0.|'x' has 0 bytes for"):
        read_letter(data)


def test_nothing_is_taken_from_a_letter_of_unknown_blocks():
    """250 MiB: only a view of what has come is held, and no tensor made."""
    letter = Letter("r", 0, 1, {f"block{i}": torch.zeros(1 << 16) for i in range(1000)})
    data = write_letter(letter)
    tracemalloc.start()
    with pytest.raises(LetterError, match="'block0' is a block that no two devices"):
        read_letter(data, Limits({"x": 1 << 26}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data) > 250 << 20 and peak < 2 << 20


def test_names_cannot_forge_a_log():
    """Neither a tensor's, nor that of an entry that a header should not have."""
    for header in (
        about(tensors=[["x\n[ROUND 4/4] accuracy 0.999", "int8", [0], 0]]),
        about(tensors=[["x" * 201, "int8", [0], 0]]),
        about(**{"\x1b[31m\nx" * 100: 1}),
        about(run="\x1b[2J"),
    ):
        with pytest.raises(LetterError, match="not that of a letter") as error:
            read_letter(forged(header))
        assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_any_byte_but_0_is_true():
    data = forged(about(tensors=[["x", "bool", [3], 3]]), b"\x00\x02\xff")
    assert read_letter(data).tensors["x"].tolist() == [False, True, True]
    assert read_letter(data).tensors["x"].sum() == 2


def test_whatever_a_reader_raises_costs_the_sender_alone(caplog: pytest.LogCaptureFixture):
    def fails() -> None:
        raise KeyError("x\ny")

    with pytest.raises(LetterError, match=r"^cannot be read: KeyError: 'x\\ny'$"):
        guarded(fails)
    assert "what a neighbour has sent cannot be read" in caplog.text and "KeyError" in caplog.text
    with pytest.raises(LetterError, match="'x' has 8 bytes"):
        guarded(lambda: read_letter(forged(about(), bytes(7))))


def test_types_that_are_not_for_letters():
    with pytest.raises(LetterError, match="'x' is complex64; allowed: float32"):
        write_letter(Letter("r", 0, 1, {"x": torch.zeros(1, dtype=torch.complex64)}))
