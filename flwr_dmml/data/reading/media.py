"""From a file to a tensor: images and sound.

Errors give the reason alone: who reads many files knows which one it was.
"""

import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...base.libraries import needed
from ..options import AudioOptions, ImageOptions
from ..samples import DataError
from .audio import log_mel, unit_variance
from .problems import reason
from .tables import read_table

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "audio_samples",
    "audio_shape",
    "fit_image",
    "fit_wave",
    "image_shape",
    "read_audio",
    "read_image",
    "read_table",
    "read_wave",
    "spectrograms",
]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg"})

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # of images
_UNKNOWN_LENGTH = 0x7FFF0000  # bytes of sound from which a WAV file's header means "to the end"
_UNKNOWN_COUNT = 2**62  # samples: libsndfile's word for a FLAC file that does not say how many
_BLOCK = 65_536  # samples read at once where the end is not known
_CANCELLED = 1e-3  # of the channels' power: a mean of less is what they cancel to
_FULL = 0.9999  # of the largest value
_OGG_PAGE = 65_307  # bytes at most
_RATES_HZ = (100, 1_000_000)  # of files


def image_shape(options: ImageOptions) -> tuple[int, int, int]:
    """Return the shape of what :func:`read_image` returns."""
    return (3 if options.colour else 1, options.side, options.side)


def read_image(file: Path | IO[bytes], options: ImageOptions) -> torch.Tensor:
    """Read an image: upright, its shorter side resized, cropped to the square in the middle.

    Parameters
    ----------
    file : Path or binary file
        PNG, JPEG, BMP or WebP. Transparency is ignored; greys of 16 bit keep their depth.
    options : ImageOptions
        Side of the square and whether there is colour.

    Returns
    -------
    torch.Tensor
        ``[3 or 1, side, side]`` float32 in [0, 1].

    Raises
    ------
    DataError
        If it is not a whole image.
    """
    with needed("PIL"):
        from PIL import Image, UnidentifiedImageError
    try:
        with Image.open(file, formats=_FORMATS) as opened:
            twice = 2 * options.side
            opened.draft(None, (twice, twice))  # photos are decoded no larger than needed
            return fit_image(opened, options)
    except UnidentifiedImageError as error:
        raise DataError(
            f"it is no image that is {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}"
        ) from error
    except Exception as error:  # Pillow has no class of its own for damaged files
        raise DataError(f"the image cannot be read: {reason(error)}") from error


def fit_image(picture: "Image", options: ImageOptions) -> torch.Tensor:
    """Return a picture as :func:`read_image` does, ``[3 or 1, side, side]`` in [0, 1]."""
    from PIL import Image, ImageOps

    channels, side, _ = image_shape(options)
    upright = ImageOps.exif_transpose(picture)
    deep = upright.mode.startswith("I")  # 16 bit
    scale = 65535.0 if deep else 255.0
    mode = "F" if deep else "RGB" if options.colour else "L"
    if upright.mode == "P":
        upright = upright.convert("RGBA")  # the palette may have transparent colours
    small = ImageOps.fit(upright.convert(mode), (side, side), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, dtype=np.float32).reshape(side, side, -1) / scale
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).expand(channels, -1, -1).contiguous()


def audio_shape(options: AudioOptions) -> tuple[int, int, int]:
    """Return the shape of what :func:`read_audio` returns.

    Raises
    ------
    DataError
        If the options give windows that are too short or longer than the sound.
    """
    length, window, hop = audio_samples(options)
    if window < 4 or hop < 1:
        raise DataError(
            f"audio.window-ms = {options.window_ms:g} and audio.hop-ms = {options.hop_ms:g} are "
            f"{window} and {hop} samples at {options.rate_hz} Hz, at least 4 and 1 are needed"
        )
    if length <= window // 2:
        raise DataError(
            f"audio.seconds = {options.seconds:g} must be longer than half of "
            f"audio.window-ms = {options.window_ms:g}"
        )
    return (1, options.mels, length // hop + 1)


def read_audio(file: Path | IO[bytes], options: AudioOptions) -> torch.Tensor:
    """Read sound as a log-mel spectrogram: :func:`read_wave`, then :func:`spectrograms`.

    Returns
    -------
    torch.Tensor
        ``[1, mels, frames]`` float32, of zero mean and unit variance (zeros of silence).

    Raises
    ------
    DataError
        If the file is not whole, or the options cannot be.
    """
    return spectrograms(read_wave(file, options).unsqueeze(0), options)[0]


def spectrograms(waves: torch.Tensor, options: AudioOptions) -> torch.Tensor:
    """Return the log-mel spectrograms ``[n, 1, mels, frames]`` of waves ``[n, T]``.

    See :func:`~flwr_dmml.data.log_mel`; windows and hops are rounded to whole samples.

    Raises
    ------
    DataError
        If the options cannot be.
    """
    audio_shape(options)
    _, window, hop = audio_samples(options)
    return log_mel(waves, options.rate_hz, options.mels, window, hop)


def read_wave(file: Path | IO[bytes], options: AudioOptions) -> torch.Tensor:
    """Read sound as a wave of one channel, the mean of all, at the common rate and length.

    Of channels that cancel out, as where one is the other inverted, the loudest is taken. A FLAC or
    WAV file whose header does not say how long it is, of a recorder that wrote to a pipe or was
    killed, is read to its end.

    What is longer is cropped to its middle; then resampled, of zero mean and unit variance up to
    its last sample that is not zero, and padded with zeros at its end.

    Parameters
    ----------
    file : Path or binary file
        WAV, FLAC, OGG, or whatever else libsndfile reads.
    options : AudioOptions
        Rate and length.

    Returns
    -------
    torch.Tensor
        ``[round(seconds * rate)]`` float32.

    Raises
    ------
    DataError
        If the file is truncated, empty, no sound, or has numbers that are not finite.
    """
    with needed("soundfile"):
        import soundfile
    try:
        with _opened(file) as opened:
            sound = _checked(opened)
            heard, rate = _heard(sound, options.seconds)
    except soundfile.LibsndfileError as error:
        raise DataError(f"the sound cannot be read: {error.error_string}") from error
    except OSError as error:
        raise DataError(f"the sound cannot be read: {reason(error)}") from error
    return fit_wave(torch.from_numpy(heard), rate, options)


def fit_wave(wave: torch.Tensor, rate: int, options: AudioOptions) -> torch.Tensor:
    """Return a wave ``[samples]`` of a rate in Hz as :func:`read_wave` does.

    Raises
    ------
    DataError
        Its numbers are not finite, there are none, or the rate cannot be.
    """
    length = audio_samples(options)[0]
    if not len(wave):
        raise DataError("there is no sound in it")
    if not _RATES_HZ[0] <= rate <= _RATES_HZ[1]:
        raise DataError(f"its rate of {rate} Hz is not from {_RATES_HZ[0]} to {_RATES_HZ[1]}")
    wanted = min(len(wave), _whole(options.seconds, rate))
    start = (len(wave) - wanted) // 2
    middle = wave[start : start + wanted].float()
    wave = _resampled(middle, rate, options.rate_hz)[:length]
    sounding = wave.nonzero()  # zeros at the end are no sound, whoever put them there
    wave = unit_variance(wave[: int(sounding[-1]) + 1 if len(sounding) else 1])
    if not bool(wave.isfinite().all()):
        raise DataError("the sound has numbers that are not finite")
    return torch.nn.functional.pad(wave, (0, length - len(wave)))


@dataclass(frozen=True)
class SoundFacts:
    """What a file of sound holds.

    Attributes
    ----------
    rate_hz, channels : int
        As recorded.
    seconds : float
        Length.
    full_scale : float
        Share of the values that are the largest there can be.
    cancelled : bool
        Whether the channels cancel out.
    """

    rate_hz: int
    channels: int
    seconds: float
    full_scale: float
    cancelled: bool


def sound_facts(file: Path) -> SoundFacts:
    """Read a whole file of sound for what it holds.

    Raises
    ------
    DataError
        See :func:`read_wave`.
    """
    with needed("soundfile"):
        import soundfile
    count, full, mixed, each = 0, 0, 0.0, 0.0
    try:
        with file.open("rb") as opened:
            sound = _checked(opened)
            rate = soundfile.info(sound).samplerate
            for block in _blocks(sound):
                count, channels = count + len(block), block.shape[1]
                full += int((np.abs(block) >= _FULL).sum())
                mixed += float(np.square(block.mean(axis=1), dtype=np.float64).sum())
                each += float(np.square(block, dtype=np.float64).mean(axis=1).sum())
    except soundfile.LibsndfileError as error:
        raise DataError(f"the sound cannot be read: {error.error_string}") from error
    except OSError as error:
        raise DataError(f"the sound cannot be read: {reason(error)}") from error
    if not count:
        raise DataError("there is no sound in it")
    cancelled = mixed < _CANCELLED * each
    return SoundFacts(rate, channels, count / rate, full / (count * channels), cancelled)


def image_size(file: Path) -> tuple[int, int]:
    """Return width and height of an image, in pixels, as they are in the file.

    Raises
    ------
    DataError
        It is no image.
    """
    with needed("PIL"):
        from PIL import Image
    try:
        with Image.open(file, formats=_FORMATS) as opened:
            size: tuple[int, int] = opened.size
    except Exception as error:  # Pillow has no class of its own for damaged files
        raise DataError(f"the image cannot be read: {reason(error)}") from error
    return size


def audio_samples(options: AudioOptions) -> tuple[int, int, int]:
    """Return the length of the wave, of a window and of a hop."""
    per_ms = options.rate_hz / 1000
    length = _whole(options.seconds, options.rate_hz)
    return length, round(options.window_ms * per_ms), round(options.hop_ms * per_ms)


def _whole(seconds: float, rate: int) -> int:
    return max(1, round(seconds * rate))


def _opened(file: Path | IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    return file.open("rb") if isinstance(file, Path) else nullcontext(file)


def _heard(file: IO[bytes], seconds: float) -> tuple[NDArray[np.float32], int]:
    """Return the ``seconds`` in the middle of a file, or all of it if shorter, and its rate."""
    import soundfile

    with soundfile.SoundFile(file) as sound:
        rate, count = sound.samplerate, len(sound)
        if not _RATES_HZ[0] <= rate <= _RATES_HZ[1]:
            raise DataError(f"its rate of {rate} Hz is not from {_RATES_HZ[0]} to {_RATES_HZ[1]}")
        most = _whole(seconds, rate)
        if 0 < count < _UNKNOWN_COUNT:
            wanted = min(count, most)
            heard = _from_middle(sound, count, (count - wanted) // 2, wanted)
            return one_channel(heard), rate
    count = sum(map(len, _blocks(file))) if count else 0
    if not count:
        raise DataError("there is no sound in it")
    wanted = min(count, most)
    first, place, kept = (count - wanted) // 2, 0, list[NDArray[np.float32]]()
    for block in _blocks(file):
        kept.append(block[max(0, first - place) : max(0, first + wanted - place)])
        place += len(block)
    return one_channel(np.concatenate(kept)), rate


def _blocks(file: IO[bytes]) -> Iterator[NDArray[np.float32]]:
    """Yield a file's sound ``[samples, channels]`` in blocks, without a jump."""
    import soundfile

    class Stream(soundfile.SoundFile):  # type: ignore[misc]
        def seekable(self) -> bool:
            return False

    file.seek(0)
    with Stream(file) as sound:
        while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
            yield block


def _from_middle(sound: Any, count: int, first: int, wanted: int) -> NDArray[np.float32]:
    import soundfile

    try:
        sound.seek(count - 1)  # FLAC says how much there should be
        whole = len(sound.read(1)) == 1
        sound.seek(first)
        heard: NDArray[np.float32] = sound.read(wanted, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DataError(f"the sound is truncated: {error.error_string}") from error
    if not whole or len(heard) < wanted:
        raise DataError("the sound is truncated")
    return heard


def one_channel(heard: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of the channels of ``[samples, channels]``, or the loudest if they cancel."""
    mean: NDArray[np.float32] = heard.mean(axis=1)
    powers = np.square(heard, dtype=np.float64).mean(axis=0)
    if np.square(mean, dtype=np.float64).mean() < _CANCELLED * powers.mean():
        mean = heard[:, powers.argmax()]
    return mean


def _resampled(wave: torch.Tensor, rate: int, wanted: int) -> torch.Tensor:
    return wave if rate == wanted else _resampler(rate, wanted)(wave)


@lru_cache(maxsize=8)
def _resampler(rate: int, wanted: int) -> torch.nn.Module:
    """Return the resampler, its ratio of integers up to 1000: its filters grow with both."""
    with needed("torchaudio"):
        import torchaudio
    limit = min(1000, 1000 * rate // wanted)
    near = Fraction(wanted, rate).limit_denominator(max(1, limit))
    resampler: torch.nn.Module = torchaudio.transforms.Resample(near.denominator, near.numerator)
    return resampler


def _checked(file: IO[bytes]) -> IO[bytes]:
    """Return a file to read sound from, from its start.

    WAV and OGG that end before their sound are refused: libsndfile takes them for shorter ones. A
    WAV file whose header does not count the sound behind it is returned with a header that does.
    """
    end = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"OggS":
        file.seek(max(0, end - _OGG_PAGE))
        page = file.read().rpartition(b"OggS\0")[2]  # flags, 20 bytes, segments and their sizes
        is_last, sizes = page[:1] >= b"\4", page[22 : 22 + page[21]] if len(page) > 21 else b""
        if not is_last or not sizes or len(page) < 22 + len(sizes) + sum(sizes):
            raise DataError("the sound is truncated: it has no last page")
    elif head[:4] == b"RIFF" and head[8:] == b"WAVE":
        counted = 8 + int.from_bytes(head[4:8], "little")
        while len(chunk := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", chunk)
            begin = file.tell()
            there = end - begin
            if name == b"data":
                if size == 0 and there > 0 and counted <= begin:
                    file.seek(0)
                    content = bytearray(file.read())
                    struct.pack_into("<I", content, 4, min(end - 8, 0xFFFFFFFF))
                    struct.pack_into("<I", content, begin - 4, min(there, 0xFFFFFFFF))
                    return BytesIO(content)
                if there < size < _UNKNOWN_LENGTH:
                    raise DataError(f"the sound is truncated: {there:,} of {size:,} bytes")
                break
            file.seek(size + size % 2, 1)
    file.seek(0)
    return file
