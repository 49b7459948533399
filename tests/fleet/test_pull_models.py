"""Models of devices, fetched by an ssh that stays here: whole ones, and nothing else."""

import io
import tarfile
from pathlib import Path

import pytest
import torch
from helpers_fleet import ssh_here
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.deploy.files import About, ModelFiles, file_stem
from flwr_dmml.fleet import pull_models, read_fleet

FILE = """name = "lab"
device-dir = "{folder}/{{name}}"
[superlink]
host = "10.0.0.1"
[[device]]
name = "a"
address = "10.0.0.11"
data-path = "/data"
[[device]]
name = "b"
address = "10.0.0.12"
data-path = "/data"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a fleet of two devices; the first keeps two models."""
    kept = tmp_path / "a" / "state" / "models" / "run-77" / "dpsgd"
    kept.mkdir(parents=True)
    for what in ("last", "best"):
        about = About.model_validate(
            {
                "method": "dpsgd",
                "dataset": "made",
                "device": 0,
                "round": 1,
                "kept": what,
                "classes": ("a",),
                "modalities": {"v": {"kind": "vector", "shape": (2,), "raw": None}},
                "architecture": None,
                "network": "x",
                "metrics": {},
                "settings": {},
                "versions": {},
            }
        )
        ModelFiles.of({"w": torch.zeros(2)}, about).write(kept / file_stem(0, what))
    (tmp_path / "a" / "state" / "models" / "peer.key").write_text("secret")
    ssh_here(tmp_path)
    file = tmp_path / "fleet.toml"
    file.write_text(FILE.format(folder=tmp_path))
    return file


def test_whole_models_come_and_the_rest_is_named(file: Path, tmp_path: Path):
    words = ["fleet", "pull-models", str(file), "-o", str(tmp_path / "lab"), "--user", "pi"]
    done = CliRunner().invoke(app, [*words, "--ssh", str(tmp_path / "ssh")], env={"COLUMNS": "200"})
    assert done.exit_code == 1 and "a: 2 models" in done.output and "b: 0 models" in done.output
    assert "not all models are here" in done.output and "b: tar: " in done.output
    assert (tmp_path / "asked").read_text().split() == ["pi@10.0.0.11", "pi@10.0.0.12"]
    here = {path.name for path in (tmp_path / "lab").rglob("*.*")}
    stems = ("device-000", "device-000-best")
    assert here == {f"{stem}{suffix}" for stem in stems for suffix in (".json", ".safetensors")}


def test_a_device_cannot_write_elsewhere_or_pass_off_damaged_models(file: Path, tmp_path: Path):
    weights = tmp_path / "a/state/models/run-77/dpsgd/device-000.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")

    def send(device: object, command: str, into: io.BufferedIOBase) -> str:
        with tarfile.open(fileobj=into, mode="w") as archive:
            archive.add(tmp_path / "a/state/models", ".")
            for name in ("../../../evil.json", "/tmp/evil.json", "run-1/../../device-000.json"):
                archive.addfile(tarfile.TarInfo(name), io.BytesIO())
            link = tarfile.TarInfo("run-1/x/device-000.json")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        return ""

    first, _ = pull_models(read_fleet(file), tmp_path / "lab", send)  # type: ignore[arg-type]
    assert [path.stem for path in first.models] == ["device-000-best"]
    assert "device-000.json were not written together" in first.problem
    assert not list(tmp_path.rglob("evil.json")) and not list((tmp_path / "lab").rglob("run-1"))

    def babble(device: object, command: str, into: io.BufferedIOBase) -> str:
        into.write(b"x" * 999)
        return ""

    broken, _ = pull_models(read_fleet(file), tmp_path / "lab", babble)  # type: ignore[arg-type]
    assert broken.problem.startswith("what it sends is no tar")
