"""Real files, made here: images, sound and tables become tensors, or an error that says why not."""

import io
import math
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flwr_dmml.data import DataError
from flwr_dmml.data.options import AudioOptions, ImageOptions
from flwr_dmml.data.reading.media import (
    audio_shape,
    image_shape,
    read_audio,
    read_image,
    read_table,
    read_wave,
    spectrograms,
)
from flwr_dmml.data.reading.problems import Problems

SMALL = ImageOptions(side=4)
GREY = ImageOptions(side=4, colour=False)
SOUND = AudioOptions()


def picture(folder: Path, pixels: np.ndarray, name: str = "a.png", **how: object) -> Path:
    path = folder / name
    Image.fromarray(pixels).save(path, **how)
    return path


def tone(hz: float, rate: int, seconds: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)


# ------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.webp"])
def test_an_image_of_the_right_size_is_its_pixels(tmp_path, name):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    how = {"lossless": True} if name.endswith("webp") else {}
    image = read_image(picture(tmp_path, pixels, name, **how), SMALL)
    assert image.dtype == torch.float32 and image.shape == image_shape(SMALL) == (3, 4, 4)
    assert torch.equal(image, torch.from_numpy(pixels.transpose(2, 0, 1).copy()) / 255)


def test_a_wide_image_is_cropped_in_the_middle(tmp_path):
    pixels = np.zeros((4, 12, 3), dtype=np.uint8)
    pixels[:, 4:8] = 255
    assert (read_image(picture(tmp_path, pixels), SMALL) == 1).all()
    assert (read_image(picture(tmp_path, pixels.transpose(1, 0, 2)), SMALL) == 1).all()


def test_a_large_image_is_averaged(tmp_path):
    """A board of black and white squares of one pixel is grey."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    image = read_image(picture(tmp_path, board), GREY)
    assert image.shape == image_shape(GREY) == (1, 4, 4)
    assert torch.allclose(image, torch.full((1, 4, 4), 0.5), atol=0.01)


def test_a_photo_is_turned_upright(tmp_path):
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    pixels[:32] = 255
    upright = read_image(picture(tmp_path, pixels, "a.jpg"), SMALL)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    on_its_side = picture(tmp_path, np.rot90(pixels).copy(), "b.jpg", exif=exif)
    assert torch.allclose(read_image(on_its_side, SMALL), upright, atol=0.02)
    assert upright[:, 0].min() > 0.9 and upright[:, -1].max() < 0.1


def test_a_huge_photo_is_read_as_a_small_one(tmp_path):
    """JPEG is decoded at a fraction of its size; that must not show."""
    x = np.linspace(0, 255, 2048)
    pixels = np.repeat(np.add.outer(x, x)[..., None] / 2, 3, axis=2).astype(np.uint8)
    jpeg = read_image(picture(tmp_path, pixels, "a.jpg", quality=95), SMALL)
    assert torch.allclose(jpeg, read_image(picture(tmp_path, pixels), SMALL), atol=0.01)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "I;16"])
@pytest.mark.parametrize("options", [SMALL, GREY])
def test_every_kind_of_pixel_is_read(tmp_path, mode, options):
    """A white image stays white, without a warning."""
    white = Image.new("L", (8, 6), 255)
    if mode == "I;16":
        white = Image.fromarray(np.full((6, 8), 65535, dtype=np.uint16))
    else:
        white = white.convert("RGB").convert(mode if mode != "PA" else "P")
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    how = {"transparency": bytes([0] * 256)} if mode == "PA" else {}
    white.save(path, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(path, options)
    assert image.shape == image_shape(options) and image.min() > 0.99 and image.max() <= 1


def test_sixteen_bits_keep_their_depth(tmp_path):
    deep = np.full((4, 4), 300, dtype=np.uint16)
    image = read_image(picture(tmp_path, deep), SMALL)
    assert torch.allclose(image, torch.full((3, 4, 4), 300 / 65535))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.webp"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.98])
def test_a_truncated_image_is_an_error(tmp_path, name, part):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = picture(tmp_path, pixels, name)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DataError) as error:
        read_image(path, SMALL)
    assert "image" in str(error.value) and str(tmp_path) not in str(error.value)


def test_what_is_no_image_is_an_error(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(DataError, match="no image that is PNG, JPEG, BMP or WEBP"):
        read_image(tmp_path / "a.png", SMALL)
    with pytest.raises(DataError, match=r"No such file or directory$"):
        read_image(tmp_path / "b.png", SMALL)
    with pytest.raises(DataError, match="directory"):
        read_image(tmp_path, SMALL)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_image_is_read_or_refused(data):
    file = io.BytesIO()
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "BMP", "WEBP"]))
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(file, kind)
    content = bytearray(file.getvalue())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=5)):
        content[at] = data.draw(st.integers(0, 255))
    try:
        image = read_image(io.BytesIO(bytes(content)), SMALL)
    except DataError:
        return
    assert image.shape == (3, 4, 4) and image.min() >= 0 and image.max() <= 1


# -------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 44_099])
def test_a_tone_keeps_its_pitch(tmp_path, name, rate):
    soundfile.write(tmp_path / name, tone(1000, rate, 1.0), rate)
    wave = read_wave(tmp_path / name, SOUND)
    assert wave.shape == (16_000,) and wave.dtype == torch.float32
    assert int(torch.fft.rfft(wave).abs().argmax()) == 1000  # Hz, as there is a second
    assert math.isclose(wave.std(correction=0), 1, abs_tol=1e-3)


def test_the_middle_is_kept_and_the_end_is_padded(tmp_path):
    path, rate = tmp_path / "a.wav", 16_000
    parts = [np.zeros(rate), tone(1000, rate, 1.0), np.zeros(rate)]
    soundfile.write(path, np.concatenate(parts), rate)
    assert torch.fft.rfft(read_wave(path, SOUND)).abs()[1000] > 0.99 * 16_000 / math.sqrt(2)

    soundfile.write(path, tone(1000, rate, 0.25), rate)
    short = read_wave(path, SOUND)
    assert (short[4000:] == 0).all() and math.isclose(short[:4000].std(), 1, abs_tol=1e-3)


def test_channels_are_averaged(tmp_path):
    left, right = tone(500, 16_000, 1.0), tone(2000, 16_000, 1.0)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    both = torch.from_numpy(left + right).float()
    expected = (both - both.mean()) / both.std(correction=0)
    assert torch.allclose(read_wave(tmp_path / "a.wav", SOUND), expected, atol=1e-4)


def test_a_tone_is_a_line_of_the_spectrogram(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1000, 16_000, 1.0), 16_000)
    sound = read_audio(tmp_path / "a.wav", SOUND)
    assert sound.shape == audio_shape(SOUND) == (1, 32, 63)  # 16,000 / 256 + 1 frames
    assert abs(sound.mean()) < 1e-5 and math.isclose(sound.std(correction=0), 1, abs_tol=1e-3)
    # 32 mel bands from 0 to 8 kHz: 1 kHz is 1000 mel of 2840, band 1000 / 2840 x 33 - 1 = 10.6
    assert sound[0].mean(dim=1).argmax() in (10, 11)


def test_silence_and_a_single_sample_are_finite(tmp_path):
    for count in (1, 100, 16_000):
        soundfile.write(tmp_path / "a.wav", np.zeros(count), 16_000)
        assert (read_audio(tmp_path / "a.wav", SOUND) == 0).all()


@pytest.mark.parametrize(
    "options",
    [
        AudioOptions(rate_hz=8000, seconds=0.5, mels=8, window_ms=16, hop_ms=8),
        AudioOptions(rate_hz=22_050, seconds=0.3, mels=16, window_ms=25, hop_ms=10),
    ],
)
def test_the_shape_is_what_the_options_say(tmp_path, options):
    soundfile.write(tmp_path / "a.wav", tone(440, 16_000, 1.0), 16_000)
    assert read_audio(tmp_path / "a.wav", options).shape == audio_shape(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (AudioOptions(seconds=0.01), r"audio.seconds = 0.01 .* audio.window-ms = 32"),
        (AudioOptions(window_ms=0.1), "audio.window-ms = 0.1 .* 2 and 256 samples at 16000 Hz"),
        (AudioOptions(hop_ms=0.01), "at least 4 and 1"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(DataError, match=message):
        audio_shape(options)
    with pytest.raises(DataError, match=message):
        spectrograms(torch.zeros(1, 16_000), options)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["WAV", "FLAC", "OGG"]), st.integers(1, 9000), st.floats(0, 0.999))
def test_truncated_sound_is_an_error(kind, count, part):
    """libsndfile alone takes cut WAV and OGG files for shorter recordings."""
    file = io.BytesIO()
    noise = np.random.default_rng(count).normal(scale=0.1, size=count)
    soundfile.write(file, noise, 8000, format=kind)
    content = file.getvalue()
    assert read_wave(io.BytesIO(content), SOUND).isfinite().all()
    with pytest.raises(DataError, match="sound"):
        read_wave(io.BytesIO(content[: int(part * len(content))]), SOUND)


def test_sound_written_to_a_pipe_is_whole(tmp_path):
    """Programs that cannot go back leave the largest number as the length."""
    file = io.BytesIO()
    soundfile.write(file, tone(1000, 16_000, 1.0), 16_000, format="WAV")
    content = bytearray(file.getvalue())
    content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    assert torch.equal(
        read_wave(io.BytesIO(bytes(content)), SOUND), read_wave(io.BytesIO(file.getvalue()), SOUND)
    )


@pytest.mark.parametrize("kind", ["FLAC", "WAV"])
def test_sound_of_unknown_length_is_read_to_its_end(kind):
    """FLAC from a pipe says 0 samples, WAV of a recorder that was killed 0 bytes of sound."""
    file = io.BytesIO()
    wave = np.concatenate([np.zeros(40_000), tone(1000, 16_000, 2.0), np.zeros(200_000)])[:180_000]
    soundfile.write(file, wave, 16_000, format=kind)
    content = bytearray(file.getvalue())
    if kind == "FLAC":  # STREAMINFO: "fLaC", 4 bytes of header, the last 36 bits before the MD5
        content[21] &= 0xF0
        content[22:26] = bytes(4)
    else:
        content[4:8] = content[40:44] = bytes(4)
    for options in (SOUND, AudioOptions(seconds=20)):
        found = read_wave(io.BytesIO(bytes(content)), options)
        assert torch.equal(found, read_wave(io.BytesIO(file.getvalue()), options))
    with pytest.raises(DataError, match="no sound in it"):
        read_wave(io.BytesIO(bytes(content[:44]) if kind == "WAV" else _empty(file)), SOUND)


def _empty(file: io.BytesIO) -> bytes:
    """Return a FLAC file without a frame that does not say how many samples it has."""
    content = file.getvalue()
    head = bytearray(content[: content.index(b"\xff\xf8", 42)])
    head[21] &= 0xF0
    head[22:26] = bytes(4)
    return bytes(head)


def test_of_channels_that_cancel_out_the_loudest_is_heard(tmp_path):
    left = tone(1000, 16_000, 1.0)
    for right in (-left, -0.99 * left):
        soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
        soundfile.write(tmp_path / "b.wav", left, 16_000, subtype="FLOAT")
        heard, alone = (read_wave(tmp_path / name, SOUND) for name in ("a.wav", "b.wav"))
        assert torch.allclose(heard, alone, atol=1e-5)
    soundfile.write(tmp_path / "a.wav", np.zeros((100, 2)), 16_000)
    assert not read_wave(tmp_path / "a.wav", SOUND).any()


def test_bad_sound(tmp_path):
    path = tmp_path / "a.wav"
    with pytest.raises(DataError, match=r"No such file or directory$"):
        read_wave(path, SOUND)
    path.write_text("hello")
    with pytest.raises(DataError, match="sound cannot be read") as error:
        read_wave(path, SOUND)
    assert str(tmp_path) not in str(error.value)
    soundfile.write(path, np.zeros(0), 16_000)
    with pytest.raises(DataError, match="no sound in it"):
        read_wave(path, SOUND)
    soundfile.write(path, np.zeros(100), 10)
    with pytest.raises(DataError, match="rate of 10 Hz"):
        read_wave(path, SOUND)
    for wrong in (np.nan, np.inf, 1e300):
        wave = np.zeros(100)
        wave[3] = wrong
        soundfile.write(path, wave, 16_000, subtype="DOUBLE")
        with pytest.raises(DataError, match="not finite"):
            read_wave(path, SOUND)


# ------------------------------------------------------------------------------------- tables


def test_tables(tmp_path):
    path = tmp_path / "a.csv"
    for text, expected in {
        "1,2,3\n": [1, 2, 3],
        "x,y\n1,2\n": [1, 2],
        "x,y\n1,2\n3,4\n": [[1, 2], [3, 4]],
        "\ufeffx\r\n1\r\n-2e3\r\n\r\n": [[1], [-2000]],
        " 1 , 2.5\n": [1, 2.5],
    }.items():
        path.write_text(text, encoding="utf-8")
        table = read_table(path)
        assert table.dtype == np.float32 and table.tolist() == expected
    for array in (np.arange(3), np.ones((2, 3), dtype=bool), np.zeros((1, 2), dtype=np.float16)):
        np.save(tmp_path / "a.npy", array)
        table = read_table(tmp_path / "a.npy")
        assert table.dtype == np.float32 and table.tolist() == array.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"shape \(0,\)"),
        ("x,y\n", r"shape \(0,\)"),
        ("x,y\n1,2\n\n3,nan\n", r"line 4, column 2 \(y\): 'nan' is a missing value"),
        ("1,2\n1e39,0\n", "line 2, column 1: 1e.39 is not a finite number"),
        ("x,y\n1,\n", r"line 2, column 2 \(y\): a value is missing"),
        ("1,two\n", "line 1, column 2: 'two' is not a number"),
        ("x,y\n1,2,3\n", "line 2 has 3 columns, not 2"),
        ("x\n\0\n", "line"),
    ],
)
def test_a_bad_csv(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "a.csv")


def test_a_single_line_is_a_vector_or_a_step(tmp_path):
    (tmp_path / "a.csv").write_text("1,2\n")
    assert read_table(tmp_path / "a.csv").shape == (2,)
    assert read_table(tmp_path / "a.csv", vector=False).shape == (1, 2)


def test_a_csv_in_another_encoding(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe1\x002")
    with pytest.raises(DataError, match="not in UTF-8"):
        read_table(tmp_path / "a.csv")


def test_a_bad_npy(tmp_path):
    path = tmp_path / "a.npy"
    for array, message in (
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\)"),
        (np.zeros(0), r"shape \(0,\)"),
        (np.array(1.0), r"shape \(\)"),
        (np.array(["a"]), "holds <U1"),
        (np.array([1j]), "holds complex128"),
        (np.array([[0, 1], [np.inf, 0]]), r"index \[1, 0\]: inf is not a finite number"),
        (np.array([{"a": 1}], dtype=object), "Object arrays cannot be loaded"),
    ):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(DataError, match=message):
            read_table(path)
    np.save(path, np.zeros(100))
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    with pytest.raises(DataError, match=r"not a whole .npy file"):
        read_table(path)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_damaged_npy_is_read_or_refused(tmp_path_factory, data):
    file = io.BytesIO()
    np.save(file, np.arange(6.0).reshape(2, 3))
    content = bytearray(file.getvalue())
    for at in data.draw(st.lists(st.integers(0, 127), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    path.write_bytes(bytes(content))
    try:
        table = read_table(path)
    except DataError:
        return
    assert table.ndim in (1, 2) and np.isfinite(table).all()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_a_vector_comes_back_as_it_was(tmp_path_factory, vector):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_text(",".join(map(repr, vector)) + "\n")
    assert read_table(path).tolist() == vector


# ----------------------------------------------------------------------------------- problems


def test_all_problems_are_told_at_once():
    problems = Problems("data-path: 'x' cannot be used")
    problems.check()
    with problems.at("row 2"):
        raise DataError("no such file")
    problems.add("", "no rows")
    with pytest.raises(DataError) as error:
        problems.check()
    assert str(error.value).splitlines() == [
        "data-path: 'x' cannot be used:",
        "  row 2: no such file",
        "  no rows",
    ]
    for row in range(1018):
        problems.add(f"row {row}", "is wrong")
    assert len(problems) == 1020
    with pytest.raises(DataError) as error:
        problems.check()
    lines = str(error.value).splitlines()
    assert len(lines) == 22 and lines[-1] == "  and 1,000 more"
