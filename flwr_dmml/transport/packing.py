"""Messages of few objects: Flower makes several requests for every record and every array.

All records of a message travel as one ConfigRecord, with a safetensors file in the place of each
ArrayRecord. It has, for the record at each position, ``"0"``: its kind and its name; ``"0:key"``:
an entry. A file that is too large for that goes as one flat array of bytes, which Flower cuts into
chunks.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray
from safetensors.numpy import save

from ..base.tensors import TensorsError, read_tensors
from ..base.text import one_line
from .arrays import NumpyArray, numbers_in, record_of

PACKED = "packed"
"""Name of the record; a file apart is the only array of ``packed.0``, by the record's position."""
TOGETHER_BYTES = 4_000_000
"""Bytes of files, in all, that go into the one record."""
_NAMES, _FILE = "names", "file"
_ARRAYS, _METRICS, _CONFIG = "array", "metric", "config"


class PackingError(ValueError):
    """A packed message that cannot be read; the message names the record, and what is wrong."""


def is_packed(content: RecordDict) -> bool:
    """Return whether these are records that :func:`packed` has written."""
    return PACKED in content.config_records


def packed(content: RecordDict) -> RecordDict:
    """Return all records as few objects; :func:`unpacked` gives them back, in their order."""
    together, apart = ConfigRecord(), RecordDict()
    room = TOGETHER_BYTES
    for position, (name, record) in enumerate(content.items()):
        if not isinstance(record, ArrayRecord):
            kind = _METRICS if isinstance(record, MetricRecord) else _CONFIG
            together[f"{position}"] = f"{kind} {name}"
            for key, value in record.items():
                together[f"{position}:{key}"] = value
            continue
        together[f"{position}"] = f"{_ARRAYS} {name}"
        if not record:
            continue
        together[f"{position}:{_NAMES}"] = list(record)
        file = save({str(k): _numbers(array) for k, array in enumerate(record.values())})
        if len(file) <= room:
            together[f"{position}:{_FILE}"] = file
            room -= len(file)
        else:
            flat = NumpyArray(np.frombuffer(file, np.uint8))
            apart[f"{PACKED}.{position}"] = record_of({_FILE: flat})
    return RecordDict({PACKED: together, **apart})


def unpacked(content: RecordDict) -> RecordDict:
    """Return the records that :func:`packed` has packed; others are returned as they are.

    The arrays hold numbers, never a pickle; what these are worth is for the reader to check.

    Raises
    ------
    PackingError
        It is not what :func:`packed` writes, or a file in it is damaged.
    """
    if not is_packed(content):
        return content
    described: dict[int, str] = {}
    entries: dict[int, dict[str, Any]] = {}
    for key, value in content.config_records[PACKED].items():
        number, colon, name = key.partition(":")
        if not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise PackingError(f"a packed message has an entry {one_line(key, 60)!r}")
        if colon:
            entries.setdefault(int(number), {})[name] = value
        else:
            described[int(number)] = str(value)
    found = RecordDict()
    for position, told in sorted(described.items()):
        kind, _, name = told.partition(" ")
        own = entries.get(position, {})
        try:
            if kind == _METRICS:
                found[name] = MetricRecord(own)
            elif kind == _CONFIG:
                found[name] = ConfigRecord(own)
            elif kind == _ARRAYS:
                apart = content.array_records.get(f"{PACKED}.{position}", ArrayRecord())
                found[name] = _read_arrays(own, apart)
            else:
                raise PackingError("is of an unknown kind")
        except (PackingError, TypeError, ValueError) as error:
            what = one_line(str(error), 200)
            raise PackingError(f"the packed record {one_line(name, 60)!r}: {what}") from error
    return found


def _numbers(array: Array) -> NDArray[Any]:
    numbers = array.numbers if isinstance(array, NumpyArray) else array.numpy()
    return np.asarray(numbers, order="C")


def _read_arrays(entries: Mapping[str, Any], apart: ArrayRecord) -> ArrayRecord:
    """Return the arrays of a record, from its file in the packed record or beside it."""
    names = entries.get(_NAMES, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PackingError("its names are no list of names")
    if not names:
        return ArrayRecord()
    file = entries.get(_FILE)
    if file is None and _FILE in apart:
        flat = numbers_in(apart[_FILE].data)
        file = flat.tobytes() if flat is not None and flat.dtype == np.uint8 else None
    if not isinstance(file, bytes):
        raise PackingError("its file is missing")
    try:
        tensors = read_tensors(file)
    except TensorsError as error:
        raise PackingError(f"its file is damaged: {error}") from error
    if tensors.keys() != set(map(str, range(len(names)))):
        raise PackingError(f"its file holds {len(tensors)} arrays for {len(names)} names")
    if len(set(names)) < len(names):
        raise PackingError("a name is there twice")
    return record_of({name: NumpyArray(tensors[str(k)]) for k, name in enumerate(names)})
