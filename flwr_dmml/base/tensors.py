"""Files of tensors that another device, or an earlier process, has written."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load


class TensorsError(ValueError):
    """Bytes are no safetensors file of numbers; the message says why."""


def read_tensors(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays in the bytes of a safetensors file, by name.

    Raises
    ------
    TensorsError
        They are no such file, or numbers of a kind that not every reader knows (bfloat16).
    """
    try:
        arrays = load(data)
    except (SafetensorError, LookupError, ValueError, TypeError, AttributeError) as error:
        # the last four: numbers of a kind that NumPy lacks
        raise TensorsError(str(error)) from error
    for name, array in arrays.items():
        if not is_plain(array.dtype):  # ml_dtypes, once imported, teaches NumPy more kinds
            raise TensorsError(f"{name!r} holds {array.dtype}, which are no plain numbers")
    return arrays


def is_plain(dtype: np.dtype[Any]) -> bool:
    """Return whether these are booleans, integers or floats that any file format can hold."""
    return dtype.kind in "biuf" and dtype.itemsize <= 8
