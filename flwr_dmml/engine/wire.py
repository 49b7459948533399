"""Messages between the processes of the sharded engine: the contents of arrays stay in place.

A worker exports the arrays of its replies and of its nodes' states as one *chunk* in Ray's object
store, and sends the rest with a :class:`RemoteArray` in the place of each. Where a message carries
one back, a node of the same worker gets the array itself, and another's a view of shared memory.

The pickles are written and read by the processes of one run; none comes from a device or a file.
"""

import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import Array
from numpy.typing import NDArray

from ..transport.arrays import LazyArray, NumpyArray, TensorArray, numbers_in, serialised_bytes

Buffers = list[NDArray[Any]]
"""The arrays of a chunk: the numbers, or the bytes of one of another kind."""


@dataclass(frozen=True)
class Description:
    """Metadata of an array, known without reading it, and its position in a chunk."""

    chunk: int
    position: int
    kind: Literal["tensor", "numbers", "bytes"]
    dtype: str
    shape: tuple[int, ...]
    stype: str
    size: int  # bytes, serialised

    def read(self, buffers: Buffers) -> Array:
        """Return the array."""
        buffer = buffers[self.position]
        if self.kind == "bytes":
            return Array(self.dtype, self.shape, self.stype, buffer.tobytes())
        if self.kind == "numbers":
            return NumpyArray(buffer)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")  # TensorArrays are not
            return TensorArray(torch.from_numpy(buffer))


class Chunk:
    """A chunk as long as somebody may ask for its arrays.

    Parameters
    ----------
    number : int
        Names it; no other has the same.
    ref : ray.ObjectRef
        Of its :data:`Buffers`.
    on_unused : callable
        Called with the number when nobody can ask any more.
    """

    def __init__(self, number: int, ref: Any, on_unused: Callable[[int], None]) -> None:
        self.number, self.ref, self._on_unused = number, ref, on_unused

    @cached_property
    def buffers(self) -> Buffers:
        """The chunk's arrays, views of shared memory; a strategy that reads all fetches it once."""
        import ray

        buffers: Buffers = ray.get(self.ref)
        return buffers

    def __del__(self) -> None:
        self._on_unused(self.number)


class RemoteArray(LazyArray):
    """An ``Array`` that lies in a chunk; its bytes are fetched when somebody asks for them."""

    def __init__(self, description: Description, chunk: Chunk) -> None:
        self.__dict__["_description"], self.__dict__["_chunk"] = description, chunk
        self.dtype, self.shape = description.dtype, description.shape
        self.stype = description.stype

    @property
    def description(self) -> Description:
        """Metadata of the array."""
        description: Description = self.__dict__["_description"]
        return description

    @property
    def chunk(self) -> Chunk:
        """The chunk that it lies in."""
        chunk: Chunk = self.__dict__["_chunk"]
        return chunk

    @property
    def serialised_bytes(self) -> int:
        """``len(self.data)``."""
        return self.description.size

    @property
    def readable(self) -> bool:
        """Whether its worker has read it as numbers."""
        return self.description.kind != "bytes"

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The array as serialised."""
        return self._fetched().data

    def numpy(self) -> NDArray[Any]:
        """Return a copy of the numbers."""
        return self._fetched().numpy()

    def _fetched(self) -> Array:
        return self.description.read(self.chunk.buffers)


@dataclass
class Export:
    """The arrays that go into a new chunk."""

    number: int
    arrays: list[Array] = field(default_factory=list)
    _described: dict[int, Description] = field(default_factory=dict)
    _given: list[Array] = field(default_factory=list)  # kept: their ids are no others'

    def describe(self, array: Array) -> Description:
        """Add an array, once, and return its description."""
        if id(array) not in self._described:
            kept = _read_once(array)
            self._described[id(array)] = Description(
                chunk=self.number,
                position=len(self.arrays),
                kind=_KINDS.get(type(kept), "bytes"),
                dtype=array.dtype,
                shape=array.shape,
                stype=array.stype,
                size=serialised_bytes(array),
            )
            self.arrays.append(kept)
            self._given.append(array)
        return self._described[id(array)]

    def buffers(self) -> Buffers:
        """Return what the chunk holds."""
        return [_buffer(array) for array in self.arrays]


_KINDS: dict[type[Array], Literal["tensor", "numbers", "bytes"]] = {
    TensorArray: "tensor",
    NumpyArray: "numbers",
}


def _read_once(array: Array) -> Array:
    """Return an array that does not read its bytes again each time, if it is of NumPy's kind."""
    if isinstance(array, LazyArray) or array.stype != "numpy.ndarray":
        return array
    numbers = numbers_in(array.data)
    return array if numbers is None else NumpyArray(numbers)


def _buffer(array: Array) -> NDArray[Any]:
    return array.numbers if isinstance(array, NumpyArray) else np.frombuffer(array.data, np.uint8)


def write(content: object, describe: Callable[[Array], Description | None]) -> bytes:
    """Pickle ``content`` with descriptions in the place of arrays; None leaves an array in."""
    file = BytesIO()
    _Writer(file, describe).dump(content)
    return file.getvalue()


def read(text: bytes, find: Callable[[Description], Array]) -> Any:
    """Return what :func:`write` wrote, with the arrays that ``find`` gives."""
    return _Reader(BytesIO(text), find).load()


class _Writer(pickle.Pickler):
    def __init__(self, file: BytesIO, describe: Callable[[Array], Description | None]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._describe = describe

    def persistent_id(self, obj: object) -> Description | None:
        return self._describe(obj) if isinstance(obj, Array) else None


class _Reader(pickle.Unpickler):
    def __init__(self, file: BytesIO, find: Callable[[Description], Array]) -> None:
        super().__init__(file)
        self._find = find
        self._found: dict[tuple[int, int], Array] = {}

    def persistent_load(self, pid: Description) -> Array:
        key = pid.chunk, pid.position
        if key not in self._found:
            self._found[key] = self._find(pid)
        return self._found[key]


def find_in(
    chunks: Mapping[int, list[Array]], fetch: Callable[[int], Buffers]
) -> Callable[[Description], Array]:
    """Return a finder of arrays: those of ``chunks`` themselves, others in what is fetched."""

    def find(description: Description) -> Array:
        if description.chunk in chunks:
            return chunks[description.chunk][description.position]
        return description.read(fetch(description.chunk))

    return find
