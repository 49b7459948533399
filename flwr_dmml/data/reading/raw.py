"""From what a sensor gives, or a file, to the input of a model: one sample at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...base.libraries import needed
from ..forms import RawImage, RawNumbers, RawSound
from ..samples import DataError, Modality, upper
from .media import fit_image, fit_wave, read_image, read_wave, spectrograms
from .tables import as_table, masked, read_table, steps_last


def read_raw(given: Any, modality: Modality) -> torch.Tensor:
    """Turn a file, or what would be in it, into an input, as the data set's reader does.

    Parameters
    ----------
    given : str, Path, array, picture or (array, int)
        A path; or of sound a wave ``[samples]`` at the modality's own rate, or a wave and its rate
        in Hz; of an image a Pillow image or whole numbers from 0 to 255, ``[height, width]`` or
        ``[height, width, 3]``; of numbers a vector ``[features]``, or ``[steps, channels]`` of a
        series or a sequence. Of a CSV file the columns are read that have the channels' names, if
        these have any.
    modality : Modality
        What the input is.

    Returns
    -------
    torch.Tensor
        ``[*modality.shape]`` float32.

    Raises
    ------
    DataError
        It cannot be read, or is something else; or the data set does not say what its inputs are
        made of.
    """
    raw = modality.raw
    if raw is None:
        raise DataError(
            "the data set does not say how a file becomes an input; give tensors of shape "
            f"{modality.shape} to the model itself"
        )
    if isinstance(raw, RawSound):
        found = _sound(given, raw)
    elif isinstance(raw, RawImage):
        found = _image(given, raw)
    else:
        found = _numbers(given, modality, raw)
    if found.shape != modality.shape:
        raise DataError(f"it gives an input of shape {tuple(found.shape)}, not {modality.shape}")
    return found


def _sound(given: Any, raw: RawSound) -> torch.Tensor:
    if isinstance(given, str | Path):
        wave = read_wave(Path(given), raw)
    else:
        samples, rate = given if isinstance(given, tuple) else (given, raw.rate_hz)
        heard = _array(samples)
        if heard.ndim != 1 or not isinstance(rate, int) or rate < 1:
            raise DataError(
                f"it is an array of shape {heard.shape}; allowed: the path of a sound file, a wave "
                f"[samples] at {raw.rate_hz} Hz, or (wave, its rate in Hz)"
            )
        wave = fit_wave(torch.from_numpy(heard.astype(np.float32)), rate, raw)
    return spectrograms(wave[None], raw)[0]


def _image(given: Any, raw: RawImage) -> torch.Tensor:
    if isinstance(given, str | Path):
        return upper(read_image(Path(given), raw), raw.visible)
    with needed("PIL"):
        from PIL import Image
    picture = given if isinstance(given, Image.Image) else None
    if picture is None:
        pixels = _array(given)
        grey, colour = pixels.ndim == 2, pixels.ndim == 3 and pixels.shape[-1] == 3
        if not (grey or colour) or pixels.dtype.kind not in "iu" or not pixels.size:
            raise DataError(
                f"it is an array of {pixels.dtype} {pixels.shape}; allowed: the path of an image "
                "file, a Pillow image, or whole numbers from 0 to 255, [height, width] or "
                "[height, width, 3]"
            )
        if pixels.min() < 0 or pixels.max() > 255:
            raise DataError(f"it has numbers from {pixels.min()} to {pixels.max()}, not 0 to 255")
        picture = Image.fromarray(pixels.astype(np.uint8))
    return upper(fit_image(picture, raw), raw.visible)


def _numbers(given: Any, modality: Modality, raw: RawNumbers) -> torch.Tensor:
    kind = modality.kind
    if isinstance(given, str | Path):
        path = Path(given)
        columns = raw.channels if path.suffix.lower() == ".csv" else ()
        table = read_table(path, columns=columns, vector=kind == "vector")
    else:
        table = as_table(_array(given))
    table = steps_last(table, kind)
    if kind == "sequence":
        table = masked(table, modality.shape[-1])
    return torch.from_numpy(np.ascontiguousarray(table))


def _array(given: Any) -> NDArray[Any]:
    """Return numbers as an array.

    Raises
    ------
    DataError
        They are none.
    """
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu().numpy()
    try:
        array = np.asarray(given)
    except ValueError as error:  # rows of unequal lengths
        raise DataError(f"it is no array: {error}") from error
    if array.dtype.kind not in "buif":
        raise DataError(f"it is {type(given).__name__}, neither a path nor numbers")
    return array
