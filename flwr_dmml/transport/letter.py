"""The letter that a device writes to its neighbours: named tensors of a round, as bytes.

All numbers little-endian::

    "DMML"  version u8  header length u32  header (JSON)  tensors  digest (16 bytes)

The header names the run, the sender, the round and every tensor with its type, shape and length in
bytes; the tensors follow in that order without gaps. The digest is BLAKE2b of all before it: it
tells damage, not forgery (who may write where is the transport's business). Nothing in a letter can
run, and nothing is read from it before its lengths have been checked.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

MAGIC, VERSION = b"DMML", 1
FRAME = struct.Struct("<4sBI")  # magic, version, header length
DIGEST_BYTES = 16
MAX_HEADER = 1 << 20
MAX_LETTER = 1 << 30
Dtype = Literal["float32", "float16", "int8", "uint8", "int32", "int64", "bool"]
DTYPES = get_args(Dtype)
"""Types that tensors may have."""
Count = Annotated[int, Field(ge=0, lt=1 << 62)]


class _Header(BaseModel):
    """Header of a letter: run, sender, round, and name, type, shape and bytes of each tensor."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    run: str
    sender: Count
    round: Count
    tensors: list[tuple[str, Dtype, list[Count], Count]]


class LetterError(ValueError):
    """Bytes that are no letter, or not the one expected; the message says why."""


@dataclass(frozen=True)
class Letter:
    """Tensors that one device publishes in one round.

    Attributes
    ----------
    run : str
        Id of the run.
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


def write_letter(letter: Letter) -> bytes:
    """Return a letter as bytes.

    Raises
    ------
    LetterError
        If a tensor is of another type, or all together are too long.
    """
    listed: list[tuple[str, Any, list[int], int]] = []
    chunks: list[bytes] = []
    for name, tensor in letter.tensors.items():
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        if array.dtype.name not in DTYPES:
            raise LetterError(f"'{name}' is {array.dtype.name}; allowed: {', '.join(DTYPES)}")
        chunks.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
        listed.append((name, array.dtype.name, list(tensor.shape), len(chunks[-1])))
    about = _Header(run=letter.run, sender=letter.sender, round=letter.server_round, tensors=listed)
    header = about.model_dump_json().encode()
    body = b"".join([FRAME.pack(MAGIC, VERSION, len(header)), header, *chunks])
    if len(header) > MAX_HEADER or len(body) + DIGEST_BYTES > MAX_LETTER:
        raise LetterError(f"too long: {len(header)} bytes of header, {len(body)} in all")
    return body + _digest(body)


def read_letter(data: bytes, *, limit: int = MAX_LETTER) -> Letter:
    """Read a letter that somebody else wrote.

    Parameters
    ----------
    data : bytes
        All of it.
    limit : int
        Most bytes that it may have.

    Raises
    ------
    LetterError
        If it is cut short, too long, damaged, of another version, or not what its header says.
    """
    if len(data) > limit:
        raise LetterError(f"{len(data)} bytes, allowed are {limit}")
    if len(data) < FRAME.size + DIGEST_BYTES:
        raise LetterError(f"{len(data)} bytes are no letter")
    magic, version, header_length = FRAME.unpack_from(data)
    if magic != MAGIC:
        raise LetterError("does not begin as a letter does")
    if version != VERSION:
        raise LetterError(f"version {version}, this program reads {VERSION}")
    body, start = data[:-DIGEST_BYTES], FRAME.size + header_length
    if header_length > MAX_HEADER or start > len(body):
        raise LetterError(f"cut short, or a header of {header_length} bytes")
    if _digest(body) != data[-DIGEST_BYTES:]:
        raise LetterError("damaged: the digest is another")
    header = _read_header(body[FRAME.size : start])
    tensors: dict[str, Tensor] = {}
    for name, dtype, shape, length in header.tensors:
        kind = np.dtype(dtype).newbyteorder("<")
        if length != prod(shape) * kind.itemsize or start + length > len(body):
            raise LetterError(f"'{name}' has {length} bytes for {dtype} {tuple(shape)}")
        array = np.frombuffer(body, kind, prod(shape), start).reshape(shape)
        tensors[name] = torch.from_numpy(array.astype(np.dtype(dtype)))  # its own memory
        start += length
    if start != len(body):
        raise LetterError(f"{len(body) - start} bytes behind the last tensor")
    return Letter(header.run, header.sender, header.round, tensors)


def _read_header(data: bytes) -> _Header:
    try:
        header = _Header.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise LetterError(f"its header is not that of a letter: {where}: {first['msg']}") from error
    names = [name for name, *_ in header.tensors]
    if len(set(names)) < len(names):
        raise LetterError("its header is not that of a letter: a tensor is there twice")
    return header


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=DIGEST_BYTES).digest()
