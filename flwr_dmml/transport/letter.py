"""The letter that a device writes to its neighbours: named tensors of a round, as bytes.

All numbers little-endian::

    "DMML"  version u8  header length u32  header (JSON)  tensors  digest (16 bytes)

The header names the run, the sender, the round and every tensor with its type, shape and length in
bytes; the tensors follow in that order without gaps. The digest is BLAKE2b of all before it: it
tells damage, not forgery (who may write where is the transport's business). Nothing in a letter can
run, and nothing is read from it before its names and lengths have been checked.
"""

import logging
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from typing import Annotated, Any, Literal, TypeVar, get_args

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..base.formats import first_problem
from ..base.text import one_line
from ..payload.limits import Limits

MAGIC, VERSION = b"DMML", 1
FRAME = struct.Struct("<4sBI")  # magic, version, header length
DIGEST_BYTES = 16
MAX_HEADER = 1 << 20
MAX_LETTER = 1 << 30
Dtype = Literal["float32", "float16", "int8", "uint8", "int32", "int64", "bool"]
DTYPES = get_args(Dtype)
"""Types that tensors may have."""
MAX_NAME, MAX_TENSORS, MAX_DIMENSIONS = 200, 10_000, 8
T = TypeVar("T")

log = logging.getLogger(__name__)


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("a name has only characters that print")
    return name


Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Length = Annotated[int, Field(ge=0, le=MAX_LETTER)]
Name = Annotated[str, Field(max_length=MAX_NAME), AfterValidator(_printable)]


class _Header(BaseModel):
    """Header of a letter: run, sender, round, and name, type, shape and bytes of each tensor."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    run: Name
    sender: Count
    round: Count
    tensors: Annotated[
        list[tuple[Name, Dtype, Annotated[list[Length], Field(max_length=MAX_DIMENSIONS)], Length]],
        Field(max_length=MAX_TENSORS),
    ]


class LetterError(ValueError):
    """Bytes that are no letter, or not the one expected; the message says why."""


@dataclass(frozen=True)
class Letter:
    """Tensors that one device publishes in one round.

    Attributes
    ----------
    run : str
        See :func:`name_of_run`.
    sender : int
        Partition id, at least 0.
    server_round : int
        The round after whose training it was written, at least 0.
    tensors : mapping of str to Tensor
        By name, on the CPU; of the types :data:`DTYPES`.
    """

    run: str
    sender: int
    server_round: int
    tensors: Mapping[str, Tensor]


def name_of_run(run_id: int) -> str:
    """Return what letters call a run: as long for every id, so that equal runs send equal bytes."""
    return f"{run_id:016x}"


def write_letter(letter: Letter) -> bytes:
    """Return a letter as bytes.

    Raises
    ------
    LetterError
        If a tensor is of another type, has more than 8 dimensions or a name that is too long, or
        all together are too long.
    """
    listed: list[tuple[str, Any, list[int], int]] = []
    chunks: list[bytes] = []
    for name, tensor in letter.tensors.items():
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        if array.dtype.name not in DTYPES:
            raise LetterError(f"'{name}' is {array.dtype.name}; allowed: {', '.join(DTYPES)}")
        chunks.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        listed.append((name, array.dtype.name, list(tensor.shape), len(chunks[-1])))
    run, sender, when = letter.run, letter.sender, letter.server_round
    about = _header(lambda: _Header(run=run, sender=sender, round=when, tensors=listed))
    header = about.model_dump_json().encode()
    body = b"".join([FRAME.pack(MAGIC, VERSION, len(header)), header, *chunks])
    if len(header) > MAX_HEADER or len(body) + DIGEST_BYTES > MAX_LETTER:
        raise LetterError(f"too long: {len(header)} bytes of header, {len(body)} in all")
    return body + _digest(body)


def read_letter(data: bytes, limits: Limits | None = None) -> Letter:
    """Read a letter that somebody else wrote.

    Parameters
    ----------
    data : bytes
        All of it.
    limits : Limits, optional
        What it may hold; by default tensors of any name, :data:`MAX_LETTER` bytes in all.

    Raises
    ------
    LetterError
        If it is cut short, too long, damaged, of another version, not what its header says, or
        holds something that it may not. No memory has been taken for its tensors then.
    """
    limit = letter_bytes(limits)
    if len(data) > limit:
        raise LetterError(f"{len(data)} bytes, allowed are {limit}")
    if len(data) < FRAME.size + DIGEST_BYTES:
        raise LetterError(f"{len(data)} bytes are no letter")
    magic, version, header_length = FRAME.unpack_from(data)
    if magic != MAGIC:
        raise LetterError("does not begin as a letter does")
    if version != VERSION:
        raise LetterError(f"version {version}, this program reads {VERSION}")
    body, start = memoryview(data)[:-DIGEST_BYTES], FRAME.size + header_length
    if header_length > MAX_HEADER or start > len(body):
        raise LetterError(f"cut short, or a header of {header_length} bytes")
    if _digest(body) != data[-DIGEST_BYTES:]:
        raise LetterError("damaged: the digest is another")
    header = _read_header(bytes(body[FRAME.size : start]))
    _check_lengths(header, len(body) - start, limits)
    tensors: dict[str, Tensor] = {}
    for name, dtype, shape, length in header.tensors:
        stored = "uint8" if dtype == "bool" else dtype  # any byte but 0 is true
        array = np.frombuffer(body[start : start + length], np.dtype(stored).newbyteorder("<"))
        tensors[name] = torch.from_numpy(array.astype(np.dtype(dtype))).reshape(shape)  # a copy
        start += length
    return Letter(header.run, header.sender, header.round, tensors)


def letter_bytes(limits: Limits | None) -> int:
    """Return the most bytes of a letter with such a payload."""
    if limits is None:
        return MAX_LETTER
    return min(limits.payload_bytes + MAX_HEADER + FRAME.size + DIGEST_BYTES, MAX_LETTER)


def guarded(read: Callable[[], T]) -> T:
    """Return what a reader of another device's bytes returns.

    Raises
    ------
    LetterError, TimeoutError
        The reader's own. Any other error that these bytes make it raise stands in the log, and
        becomes a LetterError: a fault of the reader must not cost more than the sender.
    """
    try:
        return read()
    except (LetterError, TimeoutError):
        raise
    except Exception as error:
        log.warning("what a neighbour has sent cannot be read", exc_info=True)
        what = one_line(f"{type(error).__name__}: {error}", MAX_NAME)
        raise LetterError(f"cannot be read: {what}") from error


def _check_lengths(header: _Header, there: int, limits: Limits | None) -> None:
    """Refuse tensors that are not as long as they should be, in all or one by one."""
    for name, dtype, shape, length in header.tensors:
        numbers = prod(max(n, 1) for n in shape)  # none of no shape is too large to be written down
        right = numbers <= MAX_LETTER and prod(shape) * np.dtype(dtype).itemsize == length
        if not right or length > there:
            raise LetterError(f"'{name}' has {length} bytes for {dtype} {tuple(shape)}")
        if limits and (problem := limits.problem(name, length)):
            raise LetterError(f"'{name}' {problem}")
        there -= length
    if there:
        raise LetterError(f"{there} bytes behind the last tensor")


def _read_header(data: bytes) -> _Header:
    header = _header(lambda: _Header.model_validate_json(data))
    names = [name for name, *_ in header.tensors]
    if len(set(names)) < len(names):
        raise LetterError("its header is not that of a letter: a tensor is there twice")
    return header


def _header(make: Callable[[], _Header]) -> _Header:
    try:
        return make()
    except ValidationError as error:
        what = one_line(first_problem(error), 2 * MAX_NAME)
        raise LetterError(f"its header is not that of a letter: {what}") from error


def _digest(data: bytes | memoryview) -> bytes:
    return blake2b(data, digest_size=DIGEST_BYTES).digest()
