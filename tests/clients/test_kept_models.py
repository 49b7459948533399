"""A real device keeps its models beside its state; nothing of them is in its replies."""

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from flwr.app import Message
from helpers import FAST, run_peers
from helpers_engines import ByMessages

from flwr_dmml import load_model
from flwr_dmml.clients.models import HANDED_OVER

CONFIG: dict[str, Any] = {**FAST, "method": "dpsgd", "num-nodes": 3, "keep-best": True}


class OnDisk(ByMessages):
    """Gives each device a folder of its own, as a fleet does, and looks at all replies."""

    folder: ClassVar[Path | None] = None
    notes: ClassVar[list[str]] = []

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        for node in self._nodes.values() if self.folder else ():
            node.config["state-dir"] = str(self.folder / str(node.partition_id))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = super().pull_messages(message_ids)
        for reply in found:
            assert HANDED_OVER not in reply.content
            notes = reply.content.config_records.get("notes", {}).get("notes", [])
            self.notes.extend(map(str, notes if isinstance(notes, list) else []))
        return found


def run(folder: Path | None, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[str]:
    monkeypatch.setattr(OnDisk, "folder", folder)
    monkeypatch.setattr(OnDisk, "notes", [])
    peers = run_peers({**CONFIG, **settings}, grid=OnDisk, num_rounds=2, evaluate_every=1)
    assert not any(record.failed for record in peers.records)
    if folder and (files := sorted(folder.glob("*/models/run-1/dpsgd/*-???.safetensors"))):
        for file, node in zip(files, peers.records[-1].nodes, strict=True):
            assert load_model(file).about.metrics["test.accuracy"] == node.accuracy
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    return OnDisk.notes


def test_a_device_keeps_its_last_and_its_best_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert run(tmp_path, monkeypatch) == []
    for p in range(3):
        kept = {file.name for file in (tmp_path / f"{p}/models/run-1/dpsgd").iterdir()}
        stems = (f"device-00{p}", f"device-00{p}-best")
        assert kept == {f"{stem}{end}" for stem in stems for end in (".json", ".safetensors")}


def test_a_device_keeps_what_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    off = {"keep-models": False, "keep-best": False}
    assert run(tmp_path, monkeypatch, **off) == []
    assert not list(tmp_path.glob("*/models"))


def test_a_device_without_a_folder_says_so(monkeypatch: pytest.MonkeyPatch):
    notes = run(None, monkeypatch, **{"keep-models": True, "keep-best": False})
    assert notes == ["keeps no model: there is no state-dir in its node config"] * 3


def test_a_device_that_cannot_write_its_model_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for p in range(3):
        (tmp_path / str(p)).mkdir()
        (tmp_path / str(p) / "models").write_text("in the way")
    notes = run(tmp_path, monkeypatch, **{"keep-best": False})
    assert len(notes) == 3 and all("cannot keep its model: " in note for note in notes)
