"""Data sets cut into a folder for each device."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from helpers import FAST, QUICKSTART, run_peers
from typer.testing import CliRunner

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.cli import app
from flwr_dmml.clients.hosting import learner_for
from flwr_dmml.data import DataError, LoadOptions, PartitionOptions, Samples, load_partition
from flwr_dmml.data.options import MissingOptions, PublicOptions
from flwr_dmml.data.public import load_public
from flwr_dmml.data.sets.parts import (
    ABOUT,
    TENSORS,
    TEST,
    load_part,
    part_folder,
    read_about,
    save_part,
)
from flwr_dmml.engine import server_identity
from flwr_dmml.settings import OwnParts
from flwr_dmml.transport.messages import PLAN

CUT = {"num-nodes": 3, "samples-per-node": 40, "missing.train-share": 0.25, "alpha": 1.0}
OPTIONS = PartitionOptions(
    "digits",
    3,
    alpha=1.0,
    samples_per_node=40,
    validation_fraction=0.1,
    modality_pattern="audio,image,audio+image",
    missing=MissingOptions(train_share=0.25),
)


def cut(folder: Path, **settings: Any) -> Any:
    """Run ``flwr-dmml partition`` on the quickstart."""
    sets = [word for k, v in {**CUT, **settings}.items() for word in ("--set", f"{k}={v}")]
    command = ["partition", str(QUICKSTART), "--output", str(folder), *sets]
    return CliRunner().invoke(app, command, env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, cut for three devices."""
    folder = tmp_path_factory.mktemp("cut") / "parts"
    done = cut(folder)
    assert done.exit_code == 0, done.output
    assert "audio+image" in done.output and "data-path=" in done.output
    return folder


@pytest.mark.parametrize("typo", ["nonsense.key", "dmml-kd.guidence", "energy.batery-share"])
def test_a_typo_is_refused(tmp_path: Path, typo: str):
    done = cut(tmp_path / "parts", **{typo: 1})
    assert done.exit_code == 1 and f"{typo} = 1" in done.output and not list(tmp_path.iterdir())


OWN_APP = """
from dataclasses import replace

from flwr_dmml.base.options import Group
from flwr_dmml.clients import make_client_app
from flwr_dmml.data import Dataset
from flwr_dmml.data.registry import find_dataset


class Turned(Group):
    turn: int = 0


def load(options):
    source = find_dataset("digits").load(replace(options, own=None))
    labels = (source.train.labels + options.own.turn) % 10
    return replace(source, train=replace(source.train, labels=labels))


TURNED = Dataset("turned", ("audio", "image"), load=load, options_type=Turned)
app = make_client_app(datasets=[TURNED])
"""


def test_options_of_the_data_set_are_taken_and_noted(tmp_path: Path):
    """Also those of an app's own data set: it turns every label."""
    shutil.copytree(QUICKSTART, tmp_path / "app")
    (client,) = (tmp_path / "app").rglob("client_app.py")
    client.write_text(OWN_APP)
    settings = {**CUT, "dataset": "turned", "partition": "iid", "seed": 3}
    labels = []
    for turn in (0, 4):
        folder = tmp_path / f"parts-{turn}"
        sets = {**settings, "turned.turn": turn}.items()
        words = [word for key, value in sets for word in ("--set", f"{key}={value}")]
        done = CliRunner().invoke(
            app, ["partition", str(tmp_path / "app"), "-o", str(folder), *words]
        )
        assert done.exit_code == 0, done.output
        labels.append(load_partition(of_parts(folder), 0).train.labels)
        assert read_about(part_folder(folder, 0)).settings["turned.turn"] == turn
    assert torch.equal(labels[1], (labels[0] + 4) % 10)


def of_parts(folder: Path, nodes: int = 3) -> PartitionOptions:
    """Return options that read a folder of parts."""
    return PartitionOptions("parts", nodes, load=LoadOptions(path=str(folder)))


def equal(a: Samples, b: Samples) -> bool:
    """Return whether two sets of samples are the same."""
    same = torch.equal(a.labels, b.labels) and list(a.inputs) == list(b.inputs)
    same = same and all(torch.equal(a.inputs[m], b.inputs[m]) for m in a.inputs)
    if a.present is None or b.present is None:
        return same and a.present is b.present
    return same and all(torch.equal(a.present[m], b.present[m]) for m in a.present)


@pytest.mark.parametrize("part", range(3))
def test_a_part_is_what_the_device_would_have_got(parts: Path, part: int):
    whole, own = load_partition(OPTIONS, part), load_partition(of_parts(parts), part)
    for name in ("train", "validation", "test"):
        assert equal(getattr(whole, name), getattr(own, name))
    assert (whole.train.present is None) == (part != 2)  # one sensor is never missing
    assert own.modalities == whole.modalities and own.num_classes == whole.num_classes
    assert own.source_modalities == whole.source_modalities


def test_a_run_on_parts_has_the_numbers_of_a_run_on_the_data_set(parts: Path):
    whole = run_peers({**FAST, **CUT, "method": "dmml-kd"})
    config = {**FAST, "num-nodes": 3, "method": "dmml-kd", "dataset": "parts"}
    own = run_peers({**config, "data-path": str(parts)})
    assert [r.accuracy for r in own.records] == [r.accuracy for r in whole.records]
    assert [r.train_loss for r in own.records] == [r.train_loss for r in whole.records]


def asked(node_config: dict[str, Any]) -> Any:
    """Return the learner of a node with this node config."""
    content = RecordDict({PLAN: ConfigRecord({"method": "dpsgd"})})
    run_config = {"dataset": "parts", "num-nodes": 3, "seed": 1}
    with server_identity(1):
        message = Message(content, dst_node_id=7, message_type="query")
    return learner_for(message, Context(0, 7, node_config, RecordDict(), run_config), OwnParts())


def test_a_device_is_pointed_to_its_part_by_its_node_config(parts: Path):
    """And to nothing else: a seed of its own would be another run."""
    learner = asked({"data-path": str(part_folder(parts, 2)), "torch-threads": 2, "seed": 9})
    assert learner.partition.partition_id == 2
    assert (learner.settings.torch_threads, learner.settings.seed) == (2, 1)
    with pytest.raises(SettingsError, match="data-path = ''"):
        asked({})
    with pytest.raises(DataError, match="has no part"):
        asked({"data-path": str(parts)})
    with pytest.raises(SettingsError, match="partition-id = 3"):
        asked({"data-path": str(part_folder(parts, 2)), "partition-id": 3})


def test_what_parts_say_of_themselves(parts: Path):
    about = read_about(part_folder(parts, 2))
    assert (about.part, about.parts, about.train, about.validation) == (2, 3, 36, 4)
    assert sum(about.class_counts) == 36 and about.modalities == ("audio", "image")
    assert about.settings["alpha"] == 1.0 and about.settings["missing.train-share"] == 0.25
    assert "learning-rate" not in about.settings and "image-encoder" not in about.settings
    assert "part 2 of 3: audio+image, 36 training" in about.line


def test_parts_of_equal_sensors_share_the_test_set(parts: Path, tmp_path: Path):
    """The pattern is audio, image and both; of four parts the last has what the first has."""
    files = [part_folder(parts, k) / TEST for k in range(3)]
    assert len({file.stat().st_ino for file in files}) == 3
    partition = load_part(part_folder(parts, 0))
    for k in range(2):
        like = [part_folder(parts, 0), tmp_path / "0"][k:][:1]
        save_part(tmp_path / f"{k}", partition, 3, {}, like=like)
    inodes = [(tmp_path / f"{k}" / TEST).stat().st_ino for k in range(2)]
    assert inodes == [files[0].stat().st_ino] * 2
    shutil.copytree(tmp_path / "1", tmp_path / "copy")
    assert len(load_part(tmp_path / "copy").test) == len(partition.test)


def copied(parts: Path, tmp_path: Path, part: int = 0) -> Path:
    """Return a copy of a part to damage."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name in (ABOUT, TENSORS, TEST):
        (folder / name).write_bytes((part_folder(parts, part) / name).read_bytes())
    return folder


def shorten(folder: Path) -> None:
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-100])


def shorten_test(folder: Path) -> None:
    (folder / TEST).write_bytes((folder / TEST).read_bytes()[:-100])


def no_about(folder: Path) -> None:
    (folder / ABOUT).unlink()


def no_tensors(folder: Path) -> None:
    (folder / TENSORS).unlink()


def other_count(folder: Path) -> None:
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps({**about, "train": 35}))


def broken_about(folder: Path) -> None:
    (folder / ABOUT).write_text('{"part": -1')


def other_kind(folder: Path) -> None:
    about = json.loads((folder / ABOUT).read_text())
    about["source_modalities"]["audio"][1] = [1, 32, 17]
    (folder / ABOUT).write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shorten, "not the file that part.json was written for"),
        (shorten_test, "test.safetensors' is not the file that part.json was written for"),
        (no_about, "flwr-dmml partition has made"),
        (no_tensors, "cannot be read"),
        (other_count, "36 train samples, 35 expected"),
        (broken_about, "part.json' is damaged"),
        (other_kind, "audio has shape"),
    ],
)
def test_a_damaged_part_is_refused(
    parts: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
):
    folder = copied(parts, tmp_path)
    load_partition(of_parts(folder), 0)
    damage(folder)
    with pytest.raises(DataError, match=message):
        load_partition(of_parts(folder), 0)


def test_parts_of_others_and_of_other_fleets_are_refused(parts: Path):
    with pytest.raises(DataError, match="is part 1, this is device 0; leave partition-id out"):
        load_partition(of_parts(part_folder(parts, 1)), 0)
    with pytest.raises(DataError, match="is one of 3 parts; num-nodes is 4"):
        load_partition(of_parts(parts, nodes=4), 0)


def test_there_is_no_public_set_in_parts(parts: Path):
    with pytest.raises(DataError, match="there is no set that all have"):
        load_public(PublicOptions(), of_parts(parts))


def test_the_command_writes_all_or_nothing(tmp_path: Path):
    folder = tmp_path / "parts"
    done = cut(folder, **{"samples-per-node": 4000})
    assert done.exit_code == 1 and "samples-per-node" in done.output
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()
    assert cut(folder).exit_code == 0  # an empty folder will do
    before = sorted(path.name for path in folder.rglob("*"))
    done = cut(folder)
    assert done.exit_code == 1 and "not empty" in done.output
    assert sorted(path.name for path in folder.rglob("*")) == before
    done = cut(tmp_path / "again", dataset="parts", **{"data-path": str(folder)})
    assert done.exit_code == 1 and "is cut already" in done.output
    assert cut(tmp_path / "bad", nonsense=1).exit_code == 1
