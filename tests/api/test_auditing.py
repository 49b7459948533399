"""Audits of runs: who learns what of whom, and what cannot be audited."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_resume import run
from typer.testing import CliRunner

from flwr_dmml.api.auditing import AuditError, alike, audit
from flwr_dmml.base.seeding import numpy_generator
from flwr_dmml.cli import app
from flwr_dmml.data import load_partition
from flwr_dmml.privacy.membership import confidence, success
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.tracking.checkpoints import Checkpoint, Checkpoints
from flwr_dmml.transport.sealed import SEALED

PLAIN: dict[str, Any] = {
    "method": "dpsgd",
    "partition": "iid",
    "energy.battery-share": 0.0,
    "num-server-rounds": 2,
    "samples-per-node": 30,
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four devices on a line: sound, pictures, both, sound."""
    return run(tmp_path_factory.mktemp("audit"), "plain", **PLAIN)


def test_devices_are_attacked_by_who_has_received_most(plain: Path):
    """On the line, of sound, pictures, both and sound, not all neighbours share a sensor."""
    found = audit(plain)
    assert (found.method, found.round) == ("dpsgd", 2)
    config = parse_settings(json.loads((plain / "config.json").read_text()), find_parts())
    owned = {p: load_partition(config.settings.partition_options(), p).modalities for p in range(4)}
    pairs = {(a.by, a.of): a.modalities for a in found.pairs}
    shared = {
        (i, j): tuple(m for m in owned[j] if m in owned[i])
        for i in range(4)
        for j in (i - 1, i + 1)
        if 0 <= j < 4
    }
    assert pairs == {key: both for key, both in shared.items() if both}
    assert [a.of for a in found.devices] == sorted({of for _, of in pairs})
    assert all(0 <= a.threshold.auc.value <= 1 for a in found.pairs)


def test_the_score_is_that_of_the_payload(plain: Path):
    """By hand: the blocks that are in the checkpoint, not the mixed model that the run keeps."""
    found = {(a.by, a.of): a for a in audit(plain, non_members="test").pairs}
    (_, of), attack = next(iter(found.items()))
    config = parse_settings(json.loads((plain / "config.json").read_text()), find_parts())
    partition = load_partition(config.settings.partition_options(), of)
    learner = config.learner("dpsgd", partition)
    checkpoint = Checkpoints(plain / "dpsgd" / "checkpoints", 1).latest()
    assert checkpoint is not None
    learner.load_state(
        {b: torch.from_numpy(checkpoint.array(of, b).copy()) for b in learner.block_names}
    )
    learner.model.eval()
    members, test = partition.train, partition.test
    rng = numpy_generator(config.settings.seed, "audit", of)
    others = test.subset(torch.from_numpy(alike(rng, members.labels.numpy(), test.labels.numpy())))
    subset = attack.modalities
    scores = [
        confidence(learner.scores({m: data.inputs[m] for m in subset}, [subset])[0], data.labels)
        for data in (members, others)
    ]
    assert attack.threshold == success(*scores)


def test_compression_is_audited_as_it_arrives(tmp_path: Path):
    """Sent in int8, the attacked numbers are those that can be decoded."""
    folder = run(tmp_path, "small", **PLAIN, **{"exchange.precision": "int8"})
    assert audit(folder).pairs


def test_a_rule_that_sends_changes_is_audited(tmp_path: Path):
    """The neighbours' copies are in the devices' states, and this round's change in the payload."""
    folder = run(tmp_path, "choco", **PLAIN, gossip="choco")
    assert audit(folder).pairs


def test_others_are_drawn_with_the_class_shares_of_the_members():
    rng = np.random.default_rng(0)
    members = np.array([0] * 6 + [1] * 3 + [5])
    others = np.array([0] * 8 + [1] * 40 + [2] * 9)
    rows = alike(rng, members, others)
    assert np.bincount(others[rows]).tolist() == [8, 4]  # 8 / 6 of each; there is no 5
    assert len(alike(rng, members, np.array([7]))) == 0


def test_the_command(plain: Path):
    done = CliRunner().invoke(app, ["audit", str(plain)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "training samples can be told from validation and test samples, given" in done.output
    done = CliRunner().invoke(app, ["audit", str(plain), "--json"])
    told = json.loads(done.output)
    assert told["over_devices"]["threshold"]["worst"] in {a["of"] for a in told["devices"]}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"checkpoint-every": 0}, "no checkpoint, which holds what devices have sent"),
        ({"method": "local"}, "devices send nothing"),
        ({"final-merge": "owners"}, "of the final merge"),
    ],
)
def test_what_cannot_be_audited_is_said(tmp_path: Path, changed: dict[str, Any], said: str):
    folder = run(tmp_path, "run", **{**PLAIN, **changed})
    with pytest.raises(AuditError, match=said):
        audit(folder)


def test_payloads_that_only_receivers_can_read(plain: Path, monkeypatch: pytest.MonkeyPatch):
    """As the checkpoints of a fleet have them: none, or sealed."""
    for names in ([], [SEALED]):

        def latest(self: Checkpoints, names: list[str] = names) -> Checkpoint:
            return Checkpoint(2, {"published": {"0": names}}, {}, {})

        monkeypatch.setattr(Checkpoints, "latest", latest)
        with pytest.raises(AuditError, match="only the receivers can read its payloads"):
            audit(plain)


def test_what_is_no_run_is_said(tmp_path: Path, plain: Path):
    with pytest.raises(AuditError, match=r"config\.json cannot be read"):
        audit(tmp_path)
    with pytest.raises(AuditError, match="there are dpsgd"):
        audit(plain, method="kd")
