"""Lazy arrays, serialised only when their bytes are asked for."""

import copy
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from math import prod
from typing import Any, Self

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from ..base.tensors import is_plain
from ..base.text import one_line


class LazyArray(Array):
    """An ``Array`` that never changes, and whose ``data`` is made when it is asked for.

    To Flower it is an ``Array`` like any other: one that is written in a message, or pickled, is
    read as a plain one.
    """

    @property
    def serialised_bytes(self) -> int:
        """``len(self.data)``."""
        return len(self.data)

    @property
    def readable(self) -> bool:
        """Whether it is known to hold numbers."""
        return False

    def deflate(self) -> bytes:
        """Return what Flower stores of it beside its data: its class is written there."""
        return self._plain().deflate()

    def _plain(self) -> Array:
        return Array(self.dtype, self.shape, self.stype, self.data)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Array], tuple[str, tuple[int, ...], str, bytes]]:
        return Array, (self.dtype, self.shape, self.stype, self.data)


class NumpyArray(LazyArray):
    """An ``Array`` of numbers that are there to be read, without a file format in between.

    Parameters
    ----------
    numbers : NDArray
        Nobody is to write into them.
    """

    def __init__(self, numbers: NDArray[Any]) -> None:
        self.__dict__["_numbers"] = numbers
        self.dtype, self.shape, self.stype = str(numbers.dtype), numbers.shape, "numpy.ndarray"

    @property
    def numbers(self) -> NDArray[Any]:
        """The numbers themselves."""
        numbers: NDArray[Any] = self.__dict__["_numbers"]
        return numbers

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The numbers in NumPy's file format."""
        buffer = BytesIO()
        np.save(buffer, self.numbers, allow_pickle=False)
        return buffer.getvalue()

    @property
    def readable(self) -> bool:
        """It holds numbers."""
        return True

    @property
    def serialised_bytes(self) -> int:
        """``len(self.data)``, without making the bytes."""
        return _npy_bytes(self.dtype, self.shape)

    def numpy(self) -> NDArray[Any]:
        """Return a copy, as any ``Array`` does."""
        return self.numbers.copy()


class TensorArray(NumpyArray):
    """An ``Array`` of a tensor that is kept as it is: in its process it is read as a tensor.

    Parameters
    ----------
    tensor : Tensor
        On the CPU, without gradient. It is shared by all readers and must not be changed any more.
    """

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.numpy())
        self.__dict__["_tensor"], self.__dict__["_version"] = tensor, tensor._version

    @property
    def tensor(self) -> Tensor:
        """The tensor.

        Raises
        ------
        RuntimeError
            Somebody has changed it in place.
        """
        tensor: Tensor = self.__dict__["_tensor"]
        if tensor._version != self.__dict__["_version"]:
            raise RuntimeError(
                f"a tensor {self.dtype}{list(self.shape)} was changed in place after it had been "
                "published; received payloads and saved states are shared: clone them first"
            )
        return tensor

    @property
    def numbers(self) -> NDArray[Any]:
        """The tensor's numbers."""
        return self.tensor.numpy()


def numbers_in(data: bytes) -> NDArray[Any] | None:
    """Return a read-only view of the numbers in a file of NumPy's, None if it is an unusual one."""
    file = BytesIO(data[:4096])
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            return None
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if fortran or not is_plain(dtype):
            return None
        if len(data) - file.tell() != dtype.itemsize * prod(shape):
            return None
        return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)
    except Exception:  # another's bytes can make the reader raise anything: see array_problem
        return None


def array_problem(array: Array) -> str | None:
    """Say why the numbers of another's array cannot be read, or return None.

    The numbers themselves are not looked at. Only plain files of NumPy's are read, never a pickle.
    """
    if isinstance(array, LazyArray) and array.readable:
        return None
    if array.stype == "numpy.ndarray" and numbers_in(array.data) is not None:
        return None
    try:
        dtype = array.numpy().dtype
    except Exception as error:  # as above
        return f"is no array that can be read ({type(error).__name__})"
    return None if is_plain(dtype) else f"holds {one_line(str(dtype), 40)}, which are no numbers"


def record_of(arrays: Mapping[str, Array]) -> ArrayRecord:
    """Return a record of these very arrays; Flower's constructor would copy their bytes."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record


def copy_records(content: RecordDict) -> RecordDict:
    """Return records that can be changed without changing these; bytes and tensors are shared."""
    copied = RecordDict()
    for name, record in content.items():
        if not isinstance(record, ArrayRecord):
            copied[name] = copy.deepcopy(record)
            continue
        own = copied[name] = record.copy()
        for key, array in record.items():
            if not isinstance(array, LazyArray):  # those never change
                own[key] = copy.copy(array)
    return copied


def serialised_bytes(array: Array) -> int:
    """Return ``len(array.data)``, without making the bytes where they are not there."""
    return array.serialised_bytes if isinstance(array, LazyArray) else len(array.data)


@lru_cache(maxsize=1024)
def _npy_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    buffer, kind = BytesIO(), np.dtype(dtype)
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return len(buffer.getvalue()) + kind.itemsize * prod(shape)
