"""What a device keeps on its own disk: its SuperNode was killed, and Flower's memory is gone."""

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients.own_state import KEPT_RUNS, OwnState, StateLostError
from flwr_dmml.transport.messages import STATE, pack, unpack

WEIGHTS = {
    "encoder.audio": torch.tensor([1.5, -2.0, 3.25]),
    "memory.step": torch.tensor(7),
    "sent.stats.speed": torch.tensor([[0.5]], dtype=torch.float64),
}


def context(folder: Path | None, run: int = 1) -> Context:
    config: dict[str, Any] = {} if folder is None else {"state-dir": str(folder)}
    return Context(run, 5, config, RecordDict(), {})


def begun(folder: Path | None, run: int = 1) -> OwnState:
    own = OwnState(context(folder, run), "dpsgd")
    own.begin(lambda: pack({"encoder.audio": torch.zeros(3)}))
    return own


def test_a_new_process_goes_on_from_the_last_state(tmp_path: Path):
    begun(tmp_path / "state").keep(pack(WEIGHTS), "after round 3")
    after = context(tmp_path / "state")
    assert OwnState(after, "dpsgd").recover() == "after round 3"
    found = unpack(after.state.array_records[STATE])
    assert list(found) == list(WEIGHTS)
    for name, value in WEIGHTS.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)


def test_killed_before_its_first_round_it_begins_as_it_began(tmp_path: Path):
    begun(tmp_path)
    after = context(tmp_path)
    assert OwnState(after, "dpsgd").recover() == "before round 1"
    assert torch.equal(unpack(after.state.array_records[STATE])["encoder.audio"], torch.zeros(3))


def test_what_flower_still_has_is_not_read_from_disk(tmp_path: Path):
    own = begun(tmp_path)
    assert own.recover() == ""  # it has answered, and not trained yet
    own.keep(pack(WEIGHTS), "after round 1")
    own.file.unlink()
    assert own.recover() == ""


def test_without_a_folder_a_restarted_device_says_what_to_do():
    begun(None)
    with pytest.raises(StateLostError, match="state-dir in its node config"):
        OwnState(context(None), "dpsgd").recover()


def test_a_new_run_forgets_nothing_of_another(tmp_path: Path):
    begun(tmp_path, run=1).keep(pack(WEIGHTS), "after round 1")
    begun(tmp_path, run=2)
    assert OwnState(context(tmp_path, run=1), "dpsgd").recover() == "after round 1"


def test_a_second_method_of_the_run_starts_afresh(tmp_path: Path):
    begun(tmp_path).keep(pack(WEIGHTS), "after round 9")
    with pytest.raises(StateLostError, match="of the method 'dpsgd'"):
        OwnState(context(tmp_path), "dmml-kd").recover()
    second = OwnState(context(tmp_path), "dmml-kd")
    second.begin(lambda: pack({"encoder.audio": torch.ones(3)}))
    assert OwnState(context(tmp_path), "dmml-kd").recover() == "before round 1"


def test_a_damaged_file_is_named_and_not_read(tmp_path: Path):
    own = begun(tmp_path)
    own.keep(pack(WEIGHTS), "after round 2")
    own.file.write_bytes(own.file.read_bytes()[:-5])
    with pytest.raises(StateLostError, match=r"run-1\.safetensors is damaged"):
        OwnState(context(tmp_path), "dpsgd").recover()
    own.file.unlink()
    with pytest.raises(StateLostError, match=r"run-1\.safetensors is gone"):
        OwnState(context(tmp_path), "dpsgd").recover()


def test_the_last_runs_are_kept_and_only_their_owner_reads_them(tmp_path: Path):
    for run in range(1, KEPT_RUNS + 3):
        file = begun(tmp_path, run).file
        os.utime(file, (run, run))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"run-{run}.safetensors" for run in range(3, KEPT_RUNS + 3)}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_folder_that_cannot_be_is_refused_before_training(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"state-dir = .*must be a folder"):
        begun(tmp_path / "file" / "state")


def test_numbers_do_not_change_on_disk(tmp_path: Path):
    values = np.array([np.float32(1e-45), -0.0, 3.4e38], dtype=np.float32)
    begun(tmp_path).keep(pack({"head": torch.from_numpy(values)}), "after round 1")
    after = context(tmp_path)
    OwnState(after, "dpsgd").recover()
    assert after.state.array_records[STATE]["head"].numpy().tobytes() == values.tobytes()
