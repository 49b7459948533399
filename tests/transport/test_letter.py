"""Letters between devices: what they hold comes back, and nothing else is taken for one."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_dmml.transport.letter import (
    DIGEST_BYTES,
    FRAME,
    MAGIC,
    VERSION,
    Letter,
    LetterError,
    _digest,
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


def test_a_limit_is_kept():
    read_letter(DATA, limit=len(DATA))
    with pytest.raises(LetterError, match=f"{len(DATA)} bytes, allowed are {len(DATA) - 1}"):
        read_letter(DATA, limit=len(DATA) - 1)
    assert DIGEST_BYTES == 16


def test_types_that_are_not_for_letters():
    with pytest.raises(LetterError, match="'x' is complex64; allowed: float32"):
        write_letter(Letter("r", 0, 1, {"x": torch.zeros(1, dtype=torch.complex64)}))
