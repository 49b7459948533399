"""The files of data sets of one's own: whatever is in them, a DataError names the place."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fuzzing import UNCHANGED, fuzz, of_file, of_values
from PIL import Image

from flwr_dmml.data import DataError, LoadOptions, Modality, Partition, Samples, find_dataset
from flwr_dmml.data.options import AudioOptions, ImageOptions, SeriesOptions
from flwr_dmml.data.reading.cells import read_numbers
from flwr_dmml.data.reading.manifest import read_description
from flwr_dmml.data.reading.media import read_audio, read_image
from flwr_dmml.data.reading.rows import read_activities, read_rows, read_whole
from flwr_dmml.data.reading.tables import read_table
from flwr_dmml.data.sets import parts
from flwr_dmml.data.sets.sp_sw_har import read_recording

AUDIO = AudioOptions(rate_hz=2000, seconds=0.1, mels=4)
IMAGE = ImageOptions(side=8)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "flwr")


def load(name: str, root: Path) -> object:
    return find_dataset(name).load(LoadOptions(path=str(root), audio=AUDIO, image=IMAGE))


def picture(form: str) -> bytes:
    file = io.BytesIO()
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (12, 10, 3), np.uint8)).save(file, form)
    return file.getvalue()


def sound(form: str, channels: int = 1) -> bytes:
    file = io.BytesIO()
    wave = 0.3 * np.sin(np.arange(400))[:, None].repeat(channels, 1)
    soundfile.write(file, wave, 4000, format=form)
    return file.getvalue()


def array(x: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(x))
    return file.getvalue()


DESCRIPTION = b"""name = "birds"
classes = ["robin", "wren"]
ignore = ["remark"]
[columns]
label = "species"
[modalities]
photo = "image"
song = "audio"
steps = "sequence"
"""
RECORDINGS = b"""standardise = "auto"
[recordings]
label = "what"
time = "ms"
unit = "ms"
leave-out = ["c"]
[channels]
imu = ["y", "x"]
[splits]
dev = "out"
"""
MANIFEST = b"""id,species,split,node,photo,song,v,steps,remark
1,robin,train,a,a.png,a.wav,v.csv,s.npy,"fine, large"
2,wren,train,b,a.png,,v.csv,s.csv,
3,wren,test,,,a.wav,v.csv,s.npy,
4,robin,test,,a.png,a.wav,,,
"""


@pytest.fixture
def birds(memory: Path) -> Path:
    files = {
        "dataset.toml": DESCRIPTION,
        "manifest.csv": MANIFEST,
        "a.png": picture("PNG"),
        "a.wav": sound("WAV"),
        "v.csv": b"a,b\n1,-2.5e3\n",
        "s.npy": array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        "s.csv": b"1,2\n3,4\n",
    }
    for name, content in files.items():
        (memory / name).write_bytes(content)
    return memory


def test_dataset_toml(birds: Path, pytestconfig: pytest.Config) -> None:
    file = birds / "dataset.toml"
    parse = of_file(file, lambda: read_description(birds), DataError)
    examples = [DESCRIPTION, b'name = 1\n[modalities]\na = "series"\n', RECORDINGS]
    fuzz(parse, (DataError,), examples, pytestconfig)


PLAIN = [
    b"a,b\n1,-2.5e3\n",
    b"0,1\n0.5,1.5\n",
    b",x,y\n0,1,2\n1,3,4\n",
    b"0\n1\n0\n",
]
CHOSEN = [b"\xef\xbb\xbft,who,x\n1,ann,NaN\n2,bob,0.5\n"]


@pytest.mark.parametrize(
    ("examples", "how"),
    [(PLAIN, {}), (CHOSEN, {"columns": ("t", "x"), "text": "who", "gaps": True})],
)
def test_numbers_of_csv_files(
    memory: Path, examples: list[bytes], how: dict[str, Any], pytestconfig: pytest.Config
) -> None:
    def parse(data: bytes) -> object:
        (memory / "a.csv").write_bytes(data)
        return read_numbers(memory / "a.csv", **how)

    fuzz(parse, (DataError,), examples, pytestconfig)


def test_recordings(memory: Path, pytestconfig: pytest.Config) -> None:
    rows = "".join(f"{k * 20},{k},{k % 7},{'ab'[k > 30]}\n" for k in range(60)).encode()
    (memory / "manifest.csv").write_bytes(b"imu,split,node\na.csv,train,x\nb.csv,test,\n")
    (memory / "dataset.toml").write_bytes(RECORDINGS)
    (memory / "b.csv").write_bytes(b"ms,x,y,what\n" + rows)
    series = SeriesOptions(window_s=0.2)

    def read() -> object:
        return find_dataset("folder").load(LoadOptions(path=str(memory), series=series))

    file = memory / "a.csv"
    parse = of_file(file, read, DataError, str(memory), "series.window-s")
    fuzz(parse, (DataError,), [b"ms,x,y,what\n" + rows], pytestconfig, memory_mb=1000, inputs=100)


@pytest.mark.parametrize("name", ["dataset.toml", "manifest.csv"])
def test_a_folder_by_its_manifest(birds: Path, name: str, pytestconfig: pytest.Config) -> None:
    file = birds / name
    parse = of_file(file, lambda: load("folder", birds), DataError, str(birds))
    examples = [file.read_bytes()]  # 1 MB of rows name 120,000 files: each is read
    fuzz(parse, (DataError,), examples, pytestconfig, memory_mb=1000, inputs=150, cpu_s=120.0)


MEDIA = {
    "a.png": [picture("PNG"), picture("JPEG"), picture("BMP"), picture("WEBP")],
    "a.wav": [sound("WAV"), sound("FLAC"), sound("OGG"), sound("WAV", 3), sound("AIFF")],
    "v.csv": [b"a,b\n1,-2.5e3\n", b"1,2\n", b"\xef\xbb\xbf1\n2\n"],
    "s.npy": [
        array([[1.0, 2.0], [3.0, 4.0]]),
        array(np.ones((3, 2), np.int16)),
        array(np.asfortranarray(np.ones((3, 2), ">f8"))),
    ],
}


@pytest.mark.parametrize("name", MEDIA)
def test_a_folder_s_files(birds: Path, name: str, pytestconfig: pytest.Config) -> None:
    file = birds / name
    other = "s.csv"  # of two files that are unlike, either may be named
    parse = of_file(file, lambda: load("folder", birds), DataError, name, other)
    fuzz(parse, (DataError,), MEDIA[name], pytestconfig, memory_mb=1000, inputs=50)


def test_images(pytestconfig: pytest.Config) -> None:
    def parse(data: bytes) -> object:
        return read_image(io.BytesIO(data), IMAGE)

    fuzz(parse, (DataError,), MEDIA["a.png"], pytestconfig, memory_mb=1000)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of libsndfile
def test_sound(pytestconfig: pytest.Config) -> None:
    def parse(data: bytes) -> object:
        return read_audio(io.BytesIO(data), AUDIO)

    fuzz(parse, (DataError,), MEDIA["a.wav"], pytestconfig, memory_mb=1000)


def test_a_manifest_in_parquet(memory: Path, pytestconfig: pytest.Config) -> None:
    pa = pytest.importorskip("pyarrow", reason="Parquet needs the extra 'simulation'")
    import pyarrow.parquet

    table = pa.table(
        {
            "label": ["a", "b", "a"],
            "split": ["train", "train", "test"],
            "v": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
            "s": [[[1, 2]], [[3, 4], [5, 6]], None],
            "photo": [picture("PNG")] * 3,
        }
    )
    (memory / "dataset.toml").write_text('[modalities]\nphoto = "image"\ns = "sequence"\n')
    file = memory / "manifest.parquet"
    examples = []
    for compression in ("none", "snappy"):
        pyarrow.parquet.write_table(table, file, compression=compression)
        examples.append(file.read_bytes())
    parse = of_file(file, lambda: load("folder", memory), DataError, str(memory))
    fuzz(parse, (DataError,), examples, pytestconfig, memory_mb=2000, inputs=200)


HF_FILES = ("dataset_dict.json", "train/state.json", "train/dataset_info.json", "test/data.arrow")


@pytest.mark.parametrize("name", HF_FILES)
def test_what_hugging_face_saved(memory: Path, name: str, pytestconfig: pytest.Config) -> None:
    pa = pytest.importorskip("pyarrow", reason="Arrow needs the extra 'simulation'")
    table = pa.table({"label": [0, 1, 0], "v": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]})
    label = {"names": ["a", "b"], "_type": "ClassLabel"}
    value = {"feature": {"dtype": "float64", "_type": "Value"}, "_type": "Sequence"}
    (memory / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    for split in ("train", "test"):
        folder = memory / split
        folder.mkdir()
        state = {"_data_files": [{"filename": "data.arrow"}], "_split": split}
        (folder / "state.json").write_text(json.dumps(state))
        about = {"features": {"label": label, "v": value}}
        (folder / "dataset_info.json").write_text(json.dumps(about))
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        (folder / "data.arrow").write_bytes(stream.getvalue())
    file = memory / name
    before = file.read_bytes()

    def read() -> object:
        return load("folder", memory)

    parse = of_file(file, read, DataError, str(memory))
    fuzz(parse, (DataError,), [before], pytestconfig, memory_mb=1000, inputs=100)
    if file.suffix == ".json":
        file.write_bytes(before)
        parse = of_values(file, read, DataError, str(memory))
        fuzz(parse, (DataError,), [UNCHANGED], pytestconfig, memory_mb=1000, inputs=100)


TABLES = {
    "labels.csv": b"id,label,split,speaker\nu1,1,train,x\nu2,2,train,y\nu3,1,test,x\n",
    "audio.csv": b"id,f0,f1\nu2,2,-2\nu1,1,-1\nu3,4.5,-4e0\nu3,1,2\n",
    "text.npy": array(np.ones((3, 2, 2), np.float32)),
}


@pytest.mark.parametrize("name", TABLES)
def test_feature_tables(memory: Path, name: str, pytestconfig: pytest.Config) -> None:
    for other, content in TABLES.items():
        (memory / other).write_bytes(content)
    file = memory / name
    parse = of_file(file, lambda: load("feature-table", memory), DataError)
    fuzz(parse, (DataError,), [TABLES[name]], pytestconfig)


ROWS = {
    "numbers": (lambda path: read_rows(path, 3), b"1 2 3\n 4.5e0 -5 6\n"),
    "whole": (lambda path: read_whole(path, 2), b"1 2\n3 4\n"),
    "activities": (read_activities, b"1 WALKING\n2 SITTING\n"),
    "recording": (
        read_recording,
        b"x_acc,y_acc,z_acc,x_gyro,y_gyro,z_gyro,timestamp,label\n1,2,3,4,5,6,1665,SEATED\n",
    ),
    "table.csv": (read_table, b"a,b\n1,2\n3,4\n"),
    "table.npy": (read_table, array([[1.0, 2.0]])),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_numbers(memory: Path, name: str, pytestconfig: pytest.Config) -> None:
    read, example = ROWS[name]
    file = memory / name
    parse = of_file(file, lambda: read(file), DataError, "")  # who reads many files names it
    fuzz(parse, (DataError,), [example], pytestconfig)


@pytest.fixture
def part(memory: Path) -> Path:
    """A folder with a device's part."""
    x, labels = torch.arange(8.0).reshape(4, 2), torch.arange(4) % 2
    has = {"v": torch.tensor([True, True, False, True])}
    whole = Samples({"v": x}, labels, groups=labels, present=has)
    forms = {"v": Modality("vector", (2,)), "w": Modality("image", (1, 2, 2))}
    part = Partition(1, ("v",), whole, whole, forms, 2, whole, has, ("a", "b"))
    parts.save_part(memory, part, 3, {"alpha": 0.3})
    return memory


@pytest.mark.parametrize("name", [parts.ABOUT, parts.TENSORS, parts.TEST])
def test_a_part(part: Path, name: str, pytestconfig: pytest.Config) -> None:
    file = part / name
    names = parts.ABOUT, parts.TENSORS, parts.TEST, part.name
    parse = of_file(file, lambda: parts.load_part(part), DataError, *names)
    fuzz(parse, (DataError,), [file.read_bytes()], pytestconfig)


def test_a_part_of_odd_values(part: Path, pytestconfig: pytest.Config) -> None:
    names = parts.ABOUT, parts.TENSORS, parts.TEST, part.name
    parse = of_values(part / parts.ABOUT, lambda: parts.load_part(part), DataError, *names)
    fuzz(parse, (DataError,), [UNCHANGED], pytestconfig)


def test_a_part_whose_digest_agrees(part: Path, pytestconfig: pytest.Config) -> None:
    def read() -> object:
        about = json.loads((part / parts.ABOUT).read_text())
        about["digest"] = parts._digest(part / parts.TENSORS)
        (part / parts.ABOUT).write_text(json.dumps(about))
        return parts.load_part(part)

    file = part / parts.TENSORS
    fuzz(of_file(file, read, DataError), (DataError,), [file.read_bytes()], pytestconfig)
