"""A device whose data cannot be used is left out and named, with the reason; the others go on."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any

import pytest
from helpers import QUICKSTART
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.clients import make_client_app
from flwr_dmml.data import Samples
from flwr_dmml.data.forms import RawNumbers
from flwr_dmml.data.sets.parts import load_part, save_part
from flwr_dmml.energy.costs import Work
from flwr_dmml.engine import InProcessGrid, server_identity
from flwr_dmml.graph.topology import Ring
from flwr_dmml.strategies import PeerStrategy
from flwr_dmml.strategies.admission import odd_ones
from flwr_dmml.strategies.member import Member
from flwr_dmml.strategies.roster import NoDevicesError

NODES = 3
NOBODY = 65534


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cut") / "parts"
    command = ["partition", str(QUICKSTART), "-n", str(NODES), "-o", str(folder)]
    done = CliRunner().invoke(app, [*command, "--set", "samples-per-node=30"])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def parts(cut: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    """A copy of the parts, at a path of its own: learners are kept by their paths."""
    caplog.set_level("WARNING", logger="flwr")
    getLogger("flwr").propagate = True
    return Path(shutil.copytree(cut, tmp_path / "parts"))


def run(
    parts: Path, *, report_classes: bool = False, state_dirs: Sequence[str] = (), **paths: str
) -> PeerStrategy:
    """Run a round; ``paths`` are data paths by node, "" for none."""
    config = {"dataset": "parts", "num-nodes": NODES, "report-classes": report_classes}
    grid = InProcessGrid(make_client_app(), NODES, {**config, "method": "dpsgd", "batch-size": 16})
    for k, node in enumerate(grid._nodes.values()):
        if path := paths.get(f"node{k}", str(parts / f"part-{k:03d}")):
            node.config["data-path"] = path
    for node, folder in zip(grid._nodes.values(), state_dirs, strict=False):
        node.config["state-dir"] = folder
    peers = PeerStrategy(Ring(), num_nodes=NODES, method="dpsgd", local_iterations=1)
    with server_identity(1):
        peers.start(grid, num_rounds=1, timeout=60)
    return peers


def left_out(caplog: pytest.LogCaptureFixture) -> str:
    (said,) = [r.getMessage() for r in caplog.records if "Left out" in r.getMessage()]
    return said.removeprefix("Left out of the run: node 1001 (partition 1): ")


def gone(part: Path) -> None:
    shutil.rmtree(part)


def emptied(part: Path) -> None:
    shutil.rmtree(part)
    part.mkdir()


def a_file(part: Path) -> None:
    shutil.rmtree(part)
    part.touch()


def truncated(part: Path) -> None:
    file = part / "samples.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def flipped(part: Path) -> None:
    file = part / "samples.safetensors"
    content = bytearray(file.read_bytes())
    content[-50] ^= 1
    file.write_bytes(content)


def without_tensors(part: Path) -> None:
    (part / "samples.safetensors").unlink()


def without_words(part: Path) -> None:
    (part / "part.json").write_text('{"part": 1')


def of_another(part: Path) -> None:
    shutil.rmtree(part)
    shutil.copytree(part.with_name("part-002"), part)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            gone,
            "SettingsError: this device's settings cannot work: data-path = '{}': no such fo",
        ),
        (
            a_file,
            "SettingsError: this device's settings cannot work: data-path = '{}': is a file",
        ),
        (
            emptied,
            "DataError: data-path: '{}' holds no data of device 1: there is neither part.json",
        ),
        (
            truncated,
            "DataError: data-path: '{}/samples.safetensors' is not the file that part.json",
        ),
        (flipped, "DataError: data-path: '{}/samples.safetensors' is not the file that part.json"),
        (without_tensors, "DataError: data-path: '{}/samples.safetensors' cannot be read: No such"),
        (without_words, "DataError: data-path: '{}/part.json' is damaged: all of it: Invalid JSON"),
        (of_another, "DataError: data-path: '{}' is part 2, this is device 1; leave partition-id"),
    ],
)
def test_the_others_go_on(
    parts: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], reason: str
):
    spoil(parts / "part-001")
    peers = run(parts)
    assert set(peers.roster.members) == {0, 2}
    assert left_out(caplog).startswith(reason.format(parts / "part-001"))
    assert "Traceback" not in caplog.text


def test_without_a_data_path(parts: Path, caplog: pytest.LogCaptureFixture):
    assert set(run(parts, node1="").roster.members) == {0, 2}
    assert "data-path = '': the data set 'parts' needs its folder here" in left_out(caplog)


def test_a_folder_that_may_not_be_read(
    parts: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Modes do not hinder root, who therefore opens folders as somebody else."""
    path = parts / "part-001"
    above = [*parts.glob("part-*"), parts, *parts.parents]
    modes = {f: mode for f in above if ~(mode := f.stat().st_mode) & 0o055}
    for folder, mode in modes.items():
        folder.chmod(mode | 0o055)
    really = os.scandir

    def as_nobody(folder: str) -> Any:
        os.seteuid(NOBODY)
        try:
            return really(folder)
        finally:
            os.seteuid(0)

    if os.geteuid() == 0:
        monkeypatch.setattr(os, "scandir", as_nobody)
    path.chmod(0)
    try:
        peers = run(parts)
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)
    assert set(peers.roster.members) == {0, 2}
    assert left_out(caplog).endswith(f"data-path = '{path}': cannot be read: Permission denied")


def test_nobody_is_left(parts: Path):
    for k in range(NODES):
        truncated(parts / f"part-{k:03d}")
    with pytest.raises(NoDevicesError) as caught:
        run(parts)
    said = str(caught.value)
    for k in range(NODES):
        named = f"node {1000 + k} (partition {k}): DataError: data-path: '{parts}/part-{k:03d}/"
        assert named in said
    with pytest.raises(NoDevicesError, match=r"1000 \(partition 0\), 1001 \(partition 1\), 1002"):
        run(parts, node0="", node1="", node2="")


# Data of another kind


def rewritten(part: Path, **changes: object) -> None:
    held = load_part(part)
    shutil.rmtree(part)
    save_part(part, replace(held, **changes), NODES, {})  # type: ignore[arg-type]


def test_other_classes(parts: Path, caplog: pytest.LogCaptureFixture):
    part = parts / "part-001"
    rewritten(part, num_classes=12, class_names=())
    assert set(run(parts).roster.members) == {0, 2}
    said = left_out(caplog)
    assert "number of classes 12, not 10; all need the same classes (its data: " in said
    assert f"'{part}', 12 classes" in said
    assert "rejects" not in caplog.text and "does not start equal" not in caplog.text


def test_classes_in_another_order(parts: Path, caplog: pytest.LogCaptureFixture):
    """Noticed where devices tell their classes; a 3 would be learned as a 6."""
    names = load_part(parts / "part-000").class_names or tuple("0123456789")
    for k in range(NODES):
        mixed = names[::-1] if k == 1 else names
        rewritten(parts / f"part-{k:03d}", class_names=mixed)
    assert set(run(parts, report_classes=True).roster.members) == {0, 2}
    assert "all need the same classes in the same order" in left_out(caplog)


def test_channels_in_another_order(parts: Path, caplog: pytest.LogCaptureFixture):
    """As of devices whose first files name them so; one that does not name them takes part."""
    for k, names in ((0, "xyz"), (2, "zyx")):
        part = parts / f"part-{k:03d}"
        raw = RawNumbers(channels=tuple(names))
        forms = load_part(part).source_modalities
        rewritten(part, source_modalities={m: replace(f, raw=raw) for m, f in forms.items()})
    assert set(run(parts).roster.members) == {0, 1}
    said = left_out(caplog)
    assert "z, y, x, not x, y, z; all need the same channels in the same order ([channels]" in said


def test_images_of_another_size_train_where_the_model_takes_them(parts: Path):
    """Blocks of these encoders are as long for any size: such devices can learn together."""
    part = parts / "part-001"
    held = load_part(part)

    def narrower(samples: Samples) -> Samples:
        return replace(samples, inputs={m: x[..., :6] for m, x in samples.inputs.items()})

    forms = held.source_modalities
    rewritten(
        part,
        train=narrower(held.train),
        validation=narrower(held.validation),
        test=narrower(held.test),
        source_modalities={m: replace(f, shape=(*f.shape[:-1], 6)) for m, f in forms.items()},
    )
    assert set(run(parts).roster.members) == {0, 1, 2}


def member(partition: int, blocks: dict[str, int], classes: int = 3) -> Member:
    work = Work(joint=1.0, solo={}, per_round=0.0)
    return Member(
        node_id=partition, partition_id=partition, modalities=(), blocks=blocks, payload_bytes=0,
        block_bytes={}, digests={}, num_train=1, work=work, num_classes=classes,
        data=f"'/d{partition}'",
    )  # fmt: skip


def test_what_most_have_is_right():
    one, other = {"head": 4, "encoder": 7}, {"head": 4, "encoder": 8}
    assert odd_ones({0: member(0, one), 1: member(1, other)}).keys() == {1}
    assert odd_ones({0: member(0, one), 1: member(1, other), 2: member(2, other)}) == {
        0: "its data are of another kind than those of most devices: numbers in the block encoder "
        "7, not 8; all need samples of the same shapes (its data: '/d0')"
    }
    assert odd_ones({0: member(0, one), 1: member(1, {"sound": 5})}) == {}
    assert odd_ones({0: member(0, one, classes=0), 1: member(1, one)}) == {}


def test_who_is_out_does_not_vote():
    """Two with other classes and a block of 9 are out; of the three left, two have one of 4."""
    few, many = {"head": 4}, {"head": 9}
    members = {0: member(0, few), 1: member(1, many, 5), 2: member(2, many, 5)}
    members |= {3: member(3, many), 4: member(4, few)}
    odd = odd_ones(members)
    assert odd.keys() == {1, 2, 3}
    assert "number of classes 5, not 3" in odd[1] and "numbers in the block head 9" in odd[3]


# ---- a device's own folder ------------------------------------------------------------------


def test_of_two_devices_with_one_state_dir_the_second_is_left_out(
    parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """It would swap its state with the first one's, round by round. The others go on."""
    folder = tmp_path / "state"
    peers = run(parts, state_dirs=[str(folder), str(folder), ""])
    assert peers.roster.members.keys() == {0, 2} and peers.records[-1].accuracy is not None
    assert left_out(caplog) == (
        f"SettingsError: node config state-dir = {str(folder)!r}: is the folder of device 0 (node "
        "1000) in this run: give each device a state-dir of its own"
    )
