"""The round by which a device tries a version of this package."""

import tempfile
from pathlib import Path

import pytest
from helpers import QUICKSTART
from typer.testing import CliRunner

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.cli import app
from flwr_dmml.fleet.dry_round import DryRoundError, dry_round


def test_a_device_tries_its_data_and_a_round_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cut = ["partition", str(QUICKSTART), "-n", "2", "-o", str(tmp_path / "parts")]
    assert CliRunner().invoke(app, [*cut, "--set", "samples-per-node=30"]).exit_code == 0
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path / "own")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "own"))
    config: dict[str, str | int] = {
        "data-path": str(tmp_path / "parts" / "part-001"),
        "partition-id": 1,
        "torch-threads": 1,
        "direct-address": "10.0.0.1:7447",
    }
    dry_round(config)
    assert not list((tmp_path / "own").iterdir())
    with pytest.raises(SettingsError, match="device = 'gpu'"):
        dry_round({**config, "device": "gpu"})
    with pytest.raises(DryRoundError, match="'/no/such' cannot be read: No such file"):
        dry_round({**config, "data-path": "/no/such"})
