"""Exported programs give what the model gives, on every batch size, or nothing is written."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.data import Modality
from flwr_dmml.data.forms import Raw, RawImage, RawNumbers, RawSound
from flwr_dmml.data.reading.media import fit_wave, spectrograms
from flwr_dmml.data.reading.raw import read_raw
from flwr_dmml.deploy import export as exporting
from flwr_dmml.deploy.export import ABOUT, export_model
from flwr_dmml.deploy.files import About, Input, ModelError, ModelFiles
from flwr_dmml.deploy.front import LogMel, Pixels, Program
from flwr_dmml.deploy.model import TrainedModel, load_model
from flwr_dmml.models import (
    DecomposedClassifier,
    ExpertsClassifier,
    ModalityModel,
    ModalityNetworks,
    SlicedClassifier,
    SlotClassifier,
    TwoProjectorClassifier,
    architecture_of,
)
from flwr_dmml.models.late_fusion import LateFusion, LateRule

FORMS: dict[str, tuple[Any, tuple[int, ...], Raw]] = {
    "mic-1": ("audio", (1, 16, 16), RawSound(rate_hz=8000, seconds=0.25, mels=16)),
    "eye": ("image", (3, 8, 8), RawImage(side=8, visible=0.75)),
    "belt": ("series", (2, 8), RawNumbers(rate_hz=50.0, unit="g")),
}
CLASSES = ("bee", "cat", "dog")


def make_model(kind: type[ModalityModel], *names: str, **options: Any) -> ModalityModel:
    forms = {m: Modality(*FORMS[m]) for m in names or FORMS}
    given: tuple[Any, ...] = (forms, len(CLASSES))
    if kind in (TwoProjectorClassifier, ModalityNetworks, SlotClassifier):
        given = (forms, tuple(FORMS), len(CLASSES))
    return kind(*given, **options)


def make_input(kind: Any, shape: tuple[int, ...], raw: Raw) -> Input:
    return Input(kind=kind, shape=shape, raw=raw)


def save(model: ModalityModel, stem: Path, fusion: LateFusion | None = None) -> Path:
    names = list(model.encoders)
    about = About.model_validate(
        {
            "method": "made",
            "dataset": "made",
            "device": 0,
            "round": 1,
            "kept": "last",
            "classes": CLASSES,
            "modalities": {m: make_input(*FORMS[m]) for m in names},
            "architecture": architecture_of(model),
            "network": type(model).__name__,
            "fusion": fusion,
            "metrics": {},
            "settings": {},
            "versions": {},
        }
    )  # fmt: skip
    ModelFiles.of(model.state_dict(), about).write(stem)
    return stem


def with_the_fusion() -> ModalityNetworks:
    model = make_model(ModalityNetworks)
    assert isinstance(model, ModalityNetworks)
    model.predicts_fused = True
    return model


def with_prototypes() -> ModalityModel:
    """Return a model that has no camera, and fills its slot."""
    model = make_model(SlotClassifier, "mic-1", "belt")
    assert isinstance(model, SlotClassifier)
    model.prototypes.put("eye", torch.randn(len(CLASSES), 64), torch.tensor([1.0, 0, 1]))
    return model


MODELS = {
    "additive": lambda: make_model(DecomposedClassifier),
    "detached": lambda: make_model(DecomposedClassifier, fusion="detached"),
    "one modality": lambda: make_model(DecomposedClassifier, "eye"),
    "two projectors": lambda: make_model(TwoProjectorClassifier, "mic-1", "belt"),
    "experts": lambda: make_model(ExpertsClassifier),
    "one head": lambda: make_model(ExpertsClassifier, own=False, fused=False, weighing="entropy"),
    "slices": lambda: make_model(SlicedClassifier, summed=True),
    "slots": with_prototypes,
    "softmaxes": lambda: make_model(ModalityNetworks),
    "fusion": with_the_fusion,
}


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_is_read_as_it_was_written(name: str, tmp_path: Path):
    model = MODELS[name]().eval()
    found = load_model(save(model, tmp_path / "model"))
    draw = torch.Generator().manual_seed(0)
    x = {m: torch.randn(4, *form.shape, generator=draw) for m, form in found.modalities.items()}
    subsets = [(m,) for m in x] + [tuple(x)]
    for subset, logits in zip(subsets, model.logits(x, subsets), strict=True):
        assert torch.equal(found({m: x[m] for m in subset}), logits)
    assert {m: form.raw for m, form in found.modalities.items()} == {m: FORMS[m][2] for m in x}


@pytest.mark.parametrize("rule", ["uniform", "entropy", "certainty", "energy", "static"])
def test_modalities_that_are_combined_late_are_exported_so(rule: LateRule, tmp_path: Path):
    fusion = LateFusion(rule, {"eye": 0.5, "belt": 3.0}, {"eye": 1.0, "belt": 2.0})
    network = make_model(DecomposedClassifier, "eye", "belt")
    model = load_model(save(network, tmp_path / "model", fusion))
    x = {m: torch.randn(4, *form.shape) for m, form in model.modalities.items()}
    eye, belt = network.eval().logits(x, [("eye",), ("belt",)])
    assert torch.equal(model(x), fusion({"eye": eye, "belt": belt}))
    assert torch.equal(model({"eye": x["eye"]}), (eye / 0.5).log_softmax(dim=1))
    told = export_model(model, tmp_path / "model.pt2", "torch-export")
    assert told.difference <= exporting.TOLERANCE


# ---- front ends -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        RawSound(),
        RawSound(rate_hz=8000, seconds=0.25),
        RawSound(rate_hz=22_050, mels=64, window_ms=25.0, hop_ms=10.0),
    ],
)
def test_a_spectrogram_by_convolution_is_the_reader_s(raw: RawSound):
    """Of noise at three volumes, of a tone, of silence; each whole, and much shorter."""
    front = LogMel(raw)
    draw = torch.Generator().manual_seed(0)
    waves = torch.randn(5, front.samples, generator=draw) + 0.5
    waves *= torch.tensor([1.0, 1e-3, 1e4, 1.0, 0.0])[:, None]
    waves[3] = torch.sin(0.3 * torch.arange(front.samples))
    short = waves[:, : front.samples // 3]
    for given in (waves, short):
        padded = F.pad(given, (0, front.samples - given.shape[1]))
        found = front(padded)
        for wave in (given, padded):  # whoever puts the zeros there
            fitted = torch.stack([fit_wave(one, raw.rate_hz, raw) for one in wave])
            assert torch.allclose(found, spectrograms(fitted, raw), atol=2e-4)


@pytest.mark.parametrize("raw", [RawImage(side=8, visible=0.75), RawImage(side=5, colour=False)])
def test_pixels_become_what_the_reader_makes_of_them(raw: RawImage):
    channels = 3 if raw.colour else 1
    shape = (4, raw.side, raw.side, channels)
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    form = Modality("image", (channels, raw.side, raw.side), raw)
    read = torch.stack([read_raw(one.squeeze(-1).numpy(), form) for one in pixels])
    assert torch.allclose(Pixels(raw)(pixels.byte()), read, atol=1e-6)


# ---- programs -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of all three modalities."""
    return save(make_model(DecomposedClassifier), tmp_path_factory.mktemp("made") / "model")


def test_a_program_of_torch_export(made: Path, tmp_path: Path):
    file = tmp_path / "model.pt2"
    told = export_model(load_model(made), file, "torch-export", modalities=["belt", "eye"])
    assert told.inputs == {"eye": "float32 [batch, 3, 8, 8]", "belt": "float32 [batch, 2, 8]"}
    assert told.difference < 1e-6
    extra = {ABOUT: ""}
    program = torch.export.load(str(file), extra_files=extra).module()
    x = torch.rand(5, 3, 8, 8), torch.rand(5, 2, 8)
    expected = load_model(made)({"eye": x[0], "belt": x[1]}).softmax(dim=1)
    assert torch.allclose(program(*x), expected, atol=1e-6)
    assert json.loads(extra[ABOUT])["classes"] == list(CLASSES)


def test_a_program_of_onnx_that_is_given_sound_and_pixels(made: Path, tmp_path: Path):
    """Beside numbers; it knows its classes, and a name that is no word is one there."""
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
    file, model = tmp_path / "app.onnx", load_model(made)
    told = export_model(model, file, "onnx", raw=True)
    assert told.difference < 1e-5
    assert told.inputs == {
        "mic_1": "float32 [batch, 2000]",
        "eye": "uint8 [batch, 8, 8, 3]",
        "belt": "float32 [batch, 2, 8]",
    }
    session = runtime.InferenceSession(file)
    rng = np.random.default_rng(0)
    wave, steps = rng.normal(size=2000).astype(np.float32), rng.normal(size=(8, 2))
    pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    belt = steps.T.astype(np.float32)[None]
    (given,) = session.run(None, {"mic_1": wave[None], "eye": pixels[None], "belt": belt})
    read = model.predict({"mic-1": wave, "eye": pixels, "belt": steps})
    assert np.abs(given - read.probabilities.numpy()).max() < 1e-5
    about = json.loads(session.get_modelmeta().custom_metadata_map[ABOUT])
    assert about["classes"] == list(CLASSES) and about["inputs"]["mic_1"]["raw"]["mels"] == 16


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.25, 0.4])
def test_sound_of_any_length_gives_a_program_what_it_gives_the_model(
    made: Path, tmp_path: Path, seconds: float
):
    """The model reads a file; the program gets its samples, and zeros behind a short one."""
    model, length = load_model(made), 2000
    wave = np.random.default_rng(0).normal(0.1, 0.02, round(8000 * seconds)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
    expected = model.predict({"mic-1": tmp_path / "a.wav"}).probabilities
    program = Program(model, ["mic-1"], raw=True)
    start = max(0, len(wave) - length) // 2
    wave = wave[start : start + length]
    given = torch.from_numpy(np.pad(wave, (0, length - len(wave))))[None]
    for x in (given, *program.read({"mic-1": [tmp_path / "a.wav"]}).values()):
        assert torch.allclose(program(x), expected, atol=1e-4)


def test_a_program_is_checked_against_what_the_model_makes_of_a_file(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A front end that takes the zeros behind a short sound for sound."""
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 300), 8000)
    heard, program = LogMel.forward, Program(load_model(made), ["mic-1"], raw=True)
    monkeypatch.setattr(
        LogMel, "forward", lambda self, x: heard(self, torch.where(x == 0, 1e-20, x))
    )
    samples = exporting.samples_of_files(program, {"mic-1": [tmp_path / "a.wav"]})
    options: dict[str, Any] = {"modalities": ["mic-1"], "raw": True}
    with pytest.raises(ModelError, match=r"differs from the model by .* on 1 samples given"):
        export_model(program.model, tmp_path / "m.pt2", "torch-export", **options, samples=samples)
    with pytest.raises(ModelError, match="on 32 random inputs"):
        export_model(program.model, tmp_path / "m.pt2", "torch-export", **options)


@pytest.mark.skipif(find_spec("executorch") is None, reason="needs the extra 'executorch'")
def test_a_program_of_executorch_that_is_given_sound_and_pixels(made: Path, tmp_path: Path):
    """The whole model, with both front ends."""
    told = export_model(load_model(made), tmp_path / "app.pte", "executorch", raw=True)
    assert [*told.inputs] == ["mic_1", "eye", "belt"]
    assert told.difference < 1e-5 and (tmp_path / "app.pte").stat().st_size > 10_000


class Odd(nn.Module):
    """A network that cannot be traced: what it does depends on its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        (x,) = inputs.values()
        rows = x.flatten(1)[:, :3] * self.weight
        return rows if float(x.detach().sum()) > 0 else -rows


def test_what_cannot_be_exported_says_so_and_leaves_no_file(made: Path, tmp_path: Path):
    model = load_model(made)
    with pytest.raises(ModelError, match="no modality 'nose'; this model has mic-1, eye, belt"):
        export_model(model, tmp_path / "x.pt2", "torch-export", modalities=["nose"])
    odd = TrainedModel(model.about, Odd())
    with pytest.raises(ModelError, match="cannot be exported to torch-export: "):
        export_model(odd, tmp_path / "x.pt2", "torch-export", modalities=["belt"])
    assert not list(tmp_path.iterdir())


def test_a_program_that_gives_something_else_is_not_written(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its weights are changed behind its back, as a wrong compiler would."""
    model, write = load_model(made), exporting._write_torch

    def wrong(program: Any, file: Path) -> None:
        with torch.no_grad():
            head = program.model.network.head_common.bias
            head[0] += 0.1
            write(program, file)
            head[0] -= 0.1

    changed = {"torch-export": (wrong, exporting._load_torch)}
    monkeypatch.setattr(exporting, "_FORMATS", changed)
    with pytest.raises(ModelError, match=r"differs from the model by .* on 32 random inputs"):
        export_model(model, tmp_path / "x.pt2", "torch-export", modalities=["belt"])
    assert not list(tmp_path.iterdir())


# ---- commands -------------------------------------------------------------------------------


def call(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "200"})
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of one sample."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    soundfile.write(folder / "a.wav", rng.normal(size=4000) / 9, 8000, subtype="FLOAT")
    Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)).save(folder / "a.png")
    np.save(folder / "a.npy", rng.normal(size=(8, 2)))
    return folder


def test_predict_prints_a_line_for_each_sample(made: Path, files: Path, tmp_path: Path):
    pair = f"mic-1={files / 'a.wav'},belt={files / 'a.npy'}"
    status, text = call("predict", made, files / "a.png", files / "a.npy", pair)
    whose, header, *lines = text.splitlines()  # the first one on standard error
    assert (
        status == 0
        and whose == "Model of device 0, made, round 1"
        and header == "sample,class,probability,bee,cat,dog"
        and len(lines) == 3
    )
    model = load_model(made)
    both = model.predict({"mic-1": files / "a.wav", "belt": files / "a.npy"})
    shares = [f"{p:.6f}" for p in both.probabilities[0].tolist()]
    assert lines[2] == ",".join([f'"{pair}"', both.classes[0], max(shares), *shares])
    status, text = call("predict", made, pair, "--json", "-o", tmp_path / "found.json")
    (row,) = json.loads((tmp_path / "found.json").read_text())
    assert status == 0 and "1 predictions" in text and row["class"] == both.classes[0]
    assert list(row["probabilities"].values()) == both.probabilities[0].tolist()


@pytest.mark.parametrize(
    ("sample", "problem"),
    [
        ("a.txt", "a.txt is none of the model's modalities, by its type; write NAME=a.txt"),
        ("none.wav", "none.wav: the sound cannot be read: No such file"),
        ("eye=none.png", "none.png: the image cannot be read"),
    ],
)
def test_predict_says_what_is_wrong(made: Path, sample: str, problem: str):
    status, text = call("predict", made, sample)
    assert status == 1 and problem in text


def test_export_checks_on_the_samples_that_it_is_given(made: Path, files: Path, tmp_path: Path):
    sample = f"mic-1={files / 'a.wav'},eye={files / 'a.png'}"
    words = ["--modalities", "mic-1,eye", "--raw", "-o", tmp_path / "m.pt2", "--sample", sample]
    status, text = call("export", made, "-f", "torch-export", *words)
    assert status == 0 and "checked on 1 samples given" in text
    assert (
        "input mic_1: float32 [batch, 2000]" in text and "input eye: uint8 [batch, 8, 8, 3]" in text
    )
    status, text = call("export", made, "-f", "torch-export", *words[:-1], f"eye={files / 'a.png'}")
    assert status == 1 and "it needs a file of each of mic-1, eye" in text


def test_export_without_the_run_is_checked_on_noise_and_says_so(made: Path, tmp_path: Path):
    words = ["--modalities", "belt", "-o", tmp_path / "m.pt2"]
    status, text = call("export", made, "-f", "torch-export", *words)
    assert status == 0 and "no test samples, so it is checked on noise: " in text
    assert "checked on 32 random inputs" in text
