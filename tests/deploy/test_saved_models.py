"""Models that a run leaves behind score what the run reported, and predict from raw inputs."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from helpers import FAST, QUICKSTART
from PIL import Image
from torch import Tensor, nn

from flwr_dmml import load_model, open_run
from flwr_dmml.clients import Learner, find_methods, make_client_app
from flwr_dmml.data import DataError, Modality, Partition, dtmf_tones, load_partition, load_source
from flwr_dmml.data.looks import named_channels
from flwr_dmml.data.options import LoadOptions
from flwr_dmml.deploy.files import ModelError, ModelFiles, read_model
from flwr_dmml.deploy.model import TrainedModel
from flwr_dmml.deploy.runs import find_model
from flwr_dmml.engine import FlowerApp, load_app, run_app
from flwr_dmml.learning.calibration import calibration_error
from flwr_dmml.models.late_fusion import LateFusion
from flwr_dmml.settings import OwnParts, find_parts, parse_settings
from flwr_dmml.strategies import make_server_app

SMALL: dict[str, Any] = {
    **FAST,
    "num-nodes": 3,  # a microphone, a camera, both
    "num-server-rounds": 4,
    "evaluate-every": 2,
    "compare-with": "",
    "run-name": "run",
    "public.samples": 20,
    "modality-mirror.margin": 0.0,
}
METHODS = [m for m, kind in find_methods().items() if kind.__module__.startswith("flwr_dmml.")]


def simulate(
    folder: Path, workers: int = 0, own: type[Learner] | None = None, **settings: Any
) -> Path:
    """Run the quickstart, or a method of one's own, and return the run folder."""
    changed = {k.replace("_", "-"): v for k, v in settings.items()}
    config = {**SMALL, "run-dir": str(folder), **changed}
    app = load_app(QUICKSTART)
    if own is not None:
        client = make_client_app(own)
        app = FlowerApp({}, make_server_app(client_app=client), client)
    run_app(app, config["num-nodes"], config, workers=workers)
    return folder / "run"


def partition_of(run: Path, device: int) -> Partition:
    config = json.loads((run / "config.json").read_text())
    own = OwnParts((Own, OwnScores))
    settings = parse_settings(config, find_parts(own), side="device").settings
    return load_partition(settings.partition_options(), device)


def accuracy(model: TrainedModel, part: Partition, *modalities: str) -> float:
    inputs = {m: part.test.inputs[m] for m in modalities or part.modalities}
    right = model(inputs).argmax(dim=1) == part.test.labels
    return int(right.sum()) / len(right)


def last_line(run: Path, method: str) -> dict[int, Mapping[str, Any]]:
    line = json.loads((run / method / "metrics.jsonl").read_text().splitlines()[-1])
    return {node["partition"]: node for node in line["nodes"]}


def check_models(run: Path, method: str) -> None:
    """Every device's model scores what stands in the last line of ``metrics.jsonl``, exactly."""
    nodes = last_line(run, method)
    files = sorted((run / method / "models").glob("device-???.safetensors"))
    assert [file.stem for file in files] == [f"device-{p:03d}" for p in sorted(nodes)]
    for p, node in nodes.items():
        model, part = load_model(find_model(run, p, method)), partition_of(run, p)
        assert accuracy(model, part) == node["accuracy"] == model.about.metrics["test.accuracy"]
        for m, alone in node["accuracy_by_modality"].items():
            assert accuracy(model, part, m) == alone
        for m, others in node["accuracy_without"].items():
            rest = [other for other in part.modalities if other != m]
            assert accuracy(model, part, *rest) == others


@pytest.mark.parametrize("method", METHODS)
def test_models_of_every_method(method: str, tmp_path: Path):
    topology = {"topology": "line"} if method == "relaysgd" else {}
    check_models(simulate(tmp_path, method=method, **topology), method)


def test_models_are_the_same_with_workers(tmp_path: Path):
    """Bytes of both files, of the last and of the best model."""
    runs = [simulate(tmp_path / str(n), n, method="dmml-kd", keep_best=True) for n in (0, 2)]
    kept = [
        {file.name: file.read_bytes() for file in (run / "dmml-kd" / "models").iterdir()}
        for run in runs
    ]
    assert kept[0] == kept[1] and len(kept[0]) == 12


def test_models_come_with_messages_as_without(tmp_path: Path):
    """A device that is asked by messages, and a row among others."""
    runs = [
        simulate(tmp_path / name, method="fedcmi", keep_best=True, torch_threads=1, **settings)
        for name, settings in (("rows", {}), ("messages", {"energy.meter": "auto"}))
    ]
    rows, messages = ({f.name: f.read_bytes() for f in r.glob("*/models/*.safe*")} for r in runs)
    assert rows == messages and len(rows) == 6


def test_models_after_a_final_merge_and_of_detached_fusion(tmp_path: Path):
    run = simulate(
        tmp_path,
        method="dpsgd",
        final_merge="owners",
        fusion="detached",
        modality_loss=1.0,
        modality_pattern="audio+image",
    )
    check_models(run, "dpsgd")


def test_models_predict_by_the_fusion_they_were_evaluated_with(tmp_path: Path):
    """A microphone, a camera, both; each with its own temperatures, in its file."""
    run = simulate(
        tmp_path,
        method="dpsgd",
        test_fusion="entropy",
        validation_fraction=0.8,
        evaluate_every=1,
        keep_best=True,
    )
    check_models(run, "dpsgd")
    for p, node in last_line(run, "dpsgd").items():
        model = load_model(find_model(run, p))
        fusion = model.about.fusion
        assert fusion is not None and fusion.rule == "entropy"
        assert fusion.temperatures == node["temperature"]
        assert set(fusion.temperatures.values()) != {1.0}
        test = partition_of(run, p).test
        sure, found = model(test.inputs).softmax(dim=1).max(dim=1)
        assert calibration_error(sure, found == test.labels) == pytest.approx(node["ece"], abs=1e-6)
    lines = (run / "dpsgd" / "metrics.jsonl").read_text().splitlines()
    for p in range(3):
        best = load_model(find_model(run, p, best=True)).about
        (node,) = (n for n in json.loads(lines[best.round - 1])["nodes"] if n["partition"] == p)
        assert best.fusion is not None and best.fusion.temperatures == node["temperature"]


def test_a_fusion_that_lacks_a_modality_is_refused_by_name(run: Path, tmp_path: Path):
    file = find_model(run, 0)
    about, network = read_model(file)
    assert about.fusion is None and "fusion" not in json.loads(file.read_bytes())
    for rule, temperatures, problem in (
        ("uniform", {"audio": 1.0}, "fusion: temperatures of audio; needed: of audio, image"),
        ("median", {"audio": 1.0, "image": 1.0}, "does not describe a model: fusion.rule"),
        ("energy", {"audio": 99.0, "image": 1.0}, "does not describe a model: fusion.temperatures"),
    ):
        fusion = LateFusion(rule, temperatures)  # type: ignore[arg-type]
        changed = about.model_copy(update={"fusion": fusion})
        ModelFiles.of(network.state_dict(), changed).write(tmp_path / "odd")
        with pytest.raises(ModelError, match=problem):
            load_model(tmp_path / "odd")


def test_the_best_model_is_that_of_the_best_validated_round(tmp_path: Path):
    run = simulate(tmp_path, method="dpsgd", evaluate_every=1, keep_best=True)
    lines = [
        json.loads(line) for line in (run / "dpsgd" / "metrics.jsonl").read_text().splitlines()
    ]
    for p in range(3):
        rounds = {line["round"]: line["nodes"][p]["validation_accuracy"] for line in lines}
        best = max(rounds, key=lambda t: (rounds[t], t))
        model = load_model(find_model(run, p, best=True))
        assert (model.about.kept, model.about.round) == ("best", best)
        assert model.about.metrics["validation.accuracy"] == rounds[best]
        reported = lines[best - 1]["nodes"][p]["accuracy"]
        assert accuracy(model, partition_of(run, p)) == reported


@pytest.mark.parametrize(("keep", "count"), [(False, 0), (True, 6), ("auto", 6)])
def test_models_are_kept_as_the_settings_say(keep: Any, count: int, tmp_path: Path):
    run = simulate(tmp_path, method="local", num_server_rounds=1, keep_models=keep)
    assert len(list((run / "local").glob("models/*"))) == count


def test_models_that_are_too_large_together_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("flwr_dmml.strategies.peer.MODELS_BYTES", 1000)
    run = simulate(tmp_path, method="local", num_server_rounds=1)
    assert not (run / "local" / "models").exists()
    assert "keep-models = true keeps them" in (run / "log.txt").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned something."""
    settings = {"method": "dpsgd", "samples-per-node": 400, "partition": "iid", "snr-db": 20.0}
    folder = tmp_path_factory.mktemp("run")
    changed = {"local-iterations": 30, "num-server-rounds": 6, "modality-pattern": "audio+image"}
    return simulate(folder, **{"learning-rate": 0.1, **settings, **changed})


@pytest.fixture
def model(run: Path) -> TrainedModel:
    return load_model(find_model(run, 2))


def test_predictions_from_files_and_from_what_is_in_them(model: TrainedModel, tmp_path: Path):
    digits = [7, 3, 1]
    waves = dtmf_tones(torch.tensor(digits), torch.Generator().manual_seed(1), gain_db=(0.0, 0.0))
    test = load_source("digits", LoadOptions()).test
    rows = [int((test.labels == digit).nonzero()[0]) for digit in digits]
    pixels = [(255 * test.inputs["image"][row, 0]).round().byte().numpy() for row in rows]
    sounds, pictures = [], []
    for digit, wave, image in zip(digits, waves, pixels, strict=True):
        sounds.append(str(tmp_path / f"{digit}.wav"))
        soundfile.write(sounds[-1], wave.numpy() / 8, 8000, subtype="FLOAT")
        pictures.append(tmp_path / f"{digit}.png")
        Image.fromarray(image).save(pictures[-1])
    found = model.predict({"audio": sounds, "image": pictures})
    assert found.classes == ["7", "3", "1"]
    assert torch.allclose(found.probabilities.sum(dim=1), torch.ones(3))
    same = [
        {"audio": list(waves), "image": pixels},
        {"audio": [(wave.numpy(), 8000) for wave in waves], "image": pictures},
        {"audio": sounds, "image": [Image.open(path) for path in pictures]},
    ]
    for given in same:
        again = model.predict(given)
        assert torch.allclose(again.probabilities, found.probabilities, atol=2e-3)
    one = model.predict({"image": pictures[0]})
    assert one.probabilities.shape == (1, 10) and one.classes == ["7"]
    alone = model({"image": torch.stack([test.inputs["image"][row] for row in rows])})
    pairs = model.predict({"image": pixels}).probabilities, alone.softmax(dim=1)
    assert torch.allclose(*pairs, atol=2e-2)  # sixteenths become 255ths


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({}, "nothing to predict from"),
        ({"smell": [1]}, "no modality 'smell'; this model has audio, image"),
        ({"audio": [np.zeros(9)] * 2, "image": []}, "2 of audio, 0 of image"),
        ({"audio": "no.wav"}, "no.wav: the sound cannot be read"),
        ({"audio": np.zeros((2, 9))}, "shape (2, 9)"),
        ({"audio": np.zeros(0)}, "no sound in it"),
        ({"audio": (np.ones(99), 3)}, "its rate of 3 Hz"),
        ({"audio": np.full(99, np.nan)}, "not finite"),
        ({"image": np.zeros((8, 8))}, "float64 (8, 8)"),
        ({"image": np.full((8, 8), 256)}, "256, not 0 to 255"),
        ({"image": [[1], [1, 2]]}, "sample 0 of image"),
        ({"image": object()}, "neither a path nor numbers"),
    ],
)
def test_what_cannot_be_predicted_is_named(
    model: TrainedModel, inputs: dict[str, Any], problem: str
):
    with pytest.raises(DataError) as caught:
        model.predict(inputs)
    assert problem in str(caught.value)


def trained_on(folder: Path, pattern: str, **more: Any) -> Path:
    """Run a round on two devices that share out a folder of data."""
    return simulate(
        folder / "runs",
        method="dpsgd",
        dataset="folder",
        data_path=str(folder),
        modality_pattern=pattern,
        partition="iid",
        samples_per_node=0,
        num_nodes=2,
        num_server_rounds=1,
        validation_fraction=0.0,
        **more,
    )


@pytest.mark.parametrize("standardise", ["off", "auto"])
def test_numbers_are_read_as_the_folder_s_tables_are(standardise: str, tmp_path: Path):
    """A vector, a series and a sequence, from ``.npy`` files and from arrays."""
    rng, rows = np.random.default_rng(0), []
    for k in range(12):
        shapes = {"v": (5,), "s": (8, 2), "q": (2 + k % 3, 3)}
        for name, shape in shapes.items():
            numbers = 50 * rng.normal(size=shape) + 100 * (k % 2)
            np.save(tmp_path / f"{name}{k}.npy", numbers.astype(np.float32))
        split = "test" if k > 7 else "train"
        rows.append(f"{'ab'[k % 2]},{split},{','.join(f'{n}{k}.npy' for n in shapes)}")
    (tmp_path / "manifest.csv").write_text("\n".join(["label,split,v,s,q", *rows]))
    (tmp_path / "dataset.toml").write_text("[modalities]\nq = 'sequence'\n")
    run = trained_on(tmp_path, "v+s+q", standardise=standardise)
    model = load_model(find_model(run, 1))
    assert set(model.about.scales) == (set("vsq") if standardise == "auto" else set())
    files = {m: [tmp_path / f"{m}{k}.npy" for k in range(8, 12)] for m in "vsq"}
    found = model.predict(files)
    test = partition_of(run, 1).test
    assert torch.equal(found.probabilities, model(test.inputs).softmax(dim=1))
    arrays = {m: [np.load(path) for path in paths] for m, paths in files.items()}
    assert torch.equal(model.predict(arrays).probabilities, found.probabilities)
    assert set(found.classes) <= {"a", "b"} and model.classes == ("a", "b")
    with pytest.raises(DataError, match=r"input of shape \(4,\), not \(5,\)"):
        model.predict({"v": np.zeros(4)})


@pytest.mark.parametrize(
    "recordings", [False, True], ids=["a step a line", "windows of recordings"]
)
def test_columns_are_read_by_name_as_in_training(recordings: bool, tmp_path: Path):
    """Some of a file's, in another order; and all, in that of the first file."""
    rng, rows, names = np.random.default_rng(0), [], [*"txyz"]
    for k in range(12):
        values = rng.normal(size=(8, 4)) + 2 * (k % 2)
        values[:, 0] = np.arange(8) / 4
        order = [(0, 1, 2, 3), (3, 2, 0, 1)][k % 2]
        head = ",".join(names[c] for c in order)
        np.savetxt(tmp_path / f"{k}.csv", values[:, order], "%.4f", ",", header=head, comments="")
        rows.append(f"{'ab'[k % 2]},{'test' if k > 7 else 'train'},{k}.csv,{k}.csv")
    (tmp_path / "manifest.csv").write_text("\n".join(["label,split,some,whole", *rows]))
    kind = '[recordings]\ntime = "t"\nmax-gap-s = 9\n' if recordings else ""
    (tmp_path / "dataset.toml").write_text(f'{kind}[channels]\nsome = ["z", "y"]\n')
    windows = {"series.window-s": 2.0, "series.rate-hz": 4.0, "series.overlap": 0.0}
    run = trained_on(tmp_path, "some+whole", **windows)
    model = load_model(find_model(run, 1))
    files = [tmp_path / f"{k}.csv" for k in range(8, 12)]
    found = model.read({"some": files, "whole": files})
    test = partition_of(run, 1).test
    for name, x in found.items():
        assert torch.allclose(x, test.inputs[name], atol=1e-6)
    expected = model(test.inputs).softmax(dim=1)
    assert torch.allclose(model.predict({"some": files, "whole": files}).probabilities, expected)
    channels = {m: named_channels(form) for m, form in model.modalities.items()}
    whole = tuple("xyz") if recordings else tuple("txyz")
    assert channels == {"some": ("z", "y"), "whole": whole}
    (tmp_path / "other.csv").write_text("x,y\n1,2\n")
    with pytest.raises(DataError, match=r"there is no column 'z'; there are x, y"):
        model.predict({"some": tmp_path / "other.csv"})


class Sum(nn.Module):
    """Linear layers, a modality each, added up."""

    def __init__(self, modalities: Mapping[str, Modality]) -> None:
        super().__init__()
        layers = {m: nn.Linear(form.shape[-1], 10) for m, form in modalities.items()}
        self.layers = nn.ModuleDict(layers)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        rows = [self.layers[m](x.mean(dim=(1, 2))) for m, x in inputs.items()]
        return torch.stack(rows).sum(dim=0)


class Own(Learner):
    """Cross-entropy with such a network."""

    name = "own"

    def build_model(self) -> nn.Module:  # type: ignore[override]
        return Sum({m: self.partition.source_modalities[m] for m in self.partition.modalities})


class OwnScores(Learner):
    """A network of this package, with a way of its own to predict."""

    name = "own-scores"

    def scores(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]
    ) -> list[Tensor]:
        return [-logits for logits in super().scores(inputs, subsets)]


def test_a_model_of_a_method_of_one_s_own(tmp_path: Path):
    """Its class is not in the file: it is given, and takes the weights."""
    run = simulate(tmp_path, own=Own, method="own", num_server_rounds=1)
    for p, node in last_line(run, "own").items():
        path, part = find_model(run, p), partition_of(run, p)
        with pytest.raises(ModelError, match=rf"of the class {__name__}\.Sum, which is not"):
            load_model(path)
        network = Sum({m: part.source_modalities[m] for m in part.modalities})
        assert accuracy(load_model(path, network), part) == node["accuracy"]
    with pytest.raises(ModelError, match="is missing, and in the network"):
        load_model(find_model(run, 0), Sum({"image": part.source_modalities["image"]}))


def test_a_way_of_one_s_own_to_predict_is_not_mistaken_for_ours(tmp_path: Path):
    run = simulate(tmp_path, own=OwnScores, method="own-scores", num_server_rounds=1)
    with pytest.raises(ModelError, match="give load_model a network"):
        load_model(find_model(run, 0))


def test_a_model_is_refused_if_anything_of_it_has_changed(run: Path, tmp_path: Path):
    source = find_model(run, 0)
    stem = tmp_path / "device-000"
    whole = ModelFiles(source.with_suffix(".safetensors").read_bytes(), source.read_bytes())
    whole.write(stem)
    assert load_model(stem).about == load_model(source).about
    about = json.loads(whole.about)
    changes: dict[str, tuple[bytes, bytes]] = {
        "not written together": (whole.weights[:-1] + b"\x07", whole.about),
        "does not describe a model": (whole.weights, b"{}"),
        "schema: .*1 is of a version of flwr-dmml that reads inputs otherwise; allowed: 2": (
            whole.weights,
            json.dumps(about | {"schema": 1}).encode(),
        ),
        "have changed|has changed": (
            whole.weights,
            json.dumps(about | {"classes": about["classes"][::-1]}).encode(),
        ),
    }
    for problem, files in changes.items():
        ModelFiles(*files).write(stem)
        with pytest.raises(ModelError, match=problem):
            load_model(stem)
    (tmp_path / "device-000.safetensors").unlink()
    with pytest.raises(ModelError, match="No such file"):
        load_model(stem)


def test_weights_of_another_shape_are_named(run: Path, tmp_path: Path):
    about, network = read_model(find_model(run, 0))
    weights = dict(network.state_dict())
    name = next(iter(weights))
    for changed, problem in (
        (weights | {name: torch.zeros(3)}, rf"{name} is \(3,\) float32, and in the network"),
        (weights | {name: weights[name].double()}, "float64"),
        ({k: v for k, v in weights.items() if k != name}, f"{name} is missing"),
        (weights | {"more": torch.zeros(1)}, "in the network missing"),
    ):
        ModelFiles.of(changed, about).write(tmp_path / "odd")
        with pytest.raises(ModelError, match=problem):
            load_model(tmp_path / "odd")


def test_a_model_needs_a_device(run: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="name a device; there are those of 0, 1, 2"):
        find_model(run, None)
    with pytest.raises(ModelError, match="no device-007; there are those of 0, 1, 2"):
        find_model(run, 7)
    with pytest.raises(ModelError, match="no device-000-best; there are those of none"):
        find_model(run, 0, best=True)
    with pytest.raises(ModelError, match="no models of 'kd'; there are those of --method dpsgd"):
        find_model(run, 0, "kd")
    with pytest.raises(ModelError, match=r"has no models: .*, or of real devices, .* pull-models"):
        find_model(tmp_path, 0)


def test_the_model_of_another_method_is_not_taken_silently(run: Path, tmp_path: Path):
    """A run of two methods, of which the second has not ended."""
    shutil.copytree(run, tmp_path / "two")
    config = tmp_path / "two" / "config.json"
    both = {"method": "dmml-kd", "compare-with": "dpsgd"}
    config.write_text(json.dumps(json.loads(config.read_text()) | both))
    with pytest.raises(ModelError, match=r"no models of 'dmml-kd'; .* --method dpsgd"):
        find_model(tmp_path / "two", 0)
    with pytest.raises(ModelError, match="no models of 'dmml-kd'"):
        open_run(tmp_path / "two").model(0)
    assert find_model(tmp_path / "two", 0, "dpsgd").parent.parent.name == "dpsgd"
