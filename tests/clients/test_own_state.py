"""What a device keeps on its own disk: its SuperNode was killed, and Flower's memory is gone."""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from helpers_disk import disk
from safetensors.numpy import save

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.base.files import WriteError
from flwr_dmml.clients.own_state import KEPT_RUNS, OwnState, StateLostError
from flwr_dmml.transport.messages import STATE, pack, unpack

WEIGHTS = {
    "encoder.audio": torch.tensor([1.5, -2.0, 3.25]),
    "memory.step": torch.tensor(7),
    "sent.stats.speed": torch.tensor([[0.5]], dtype=torch.float64),
}


def context(folder: Path | None, run: int = 1, node: int = 5) -> Context:
    config: dict[str, Any] = {} if folder is None else {"state-dir": str(folder)}
    return Context(run, node, config, RecordDict(), {})


def begun(folder: Path | None, run: int = 1, node: int = 5, partition: int = 2) -> OwnState:
    own = OwnState(context(folder, run, node), "dpsgd")
    own.begin(partition, lambda: pack({"encoder.audio": torch.zeros(3)}))
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


def test_the_state_is_in_memory_only_while_a_message_is_worked_on(tmp_path: Path):
    """A SuperNode keeps the context of every run until it ends: it would grow run by run."""
    here = context(tmp_path)
    own = OwnState(here, "dpsgd")
    own.begin(2, lambda: pack({"encoder.audio": torch.zeros(3)}))
    for value in (0.0, 1.5):
        assert STATE not in here.state
        assert own.recover() == "", "nothing was lost"
        found = unpack(here.state.array_records[STATE])
        assert float(found["encoder.audio"][0]) == value
        own.keep(pack(WEIGHTS), "after round 1")
        own.release()


def test_without_a_folder_it_stays_in_flowers_memory():
    here = context(None)
    own = OwnState(here, "dpsgd")
    own.begin(2, lambda: pack({"encoder.audio": torch.zeros(3)}))
    assert own.recover() == "" and STATE not in here.state, "it starts from what all start from"
    own.keep(pack(WEIGHTS), "after round 1")
    own.release()
    assert own.recover() == "" and list(unpack(here.state.array_records[STATE])) == list(WEIGHTS)


def test_a_new_process_says_only_once_that_it_goes_on(tmp_path: Path):
    begun(tmp_path).keep(pack(WEIGHTS), "after round 3")
    after = context(tmp_path)
    own = OwnState(after, "dpsgd")
    assert own.recover() == "after round 3"
    own.keep(pack(WEIGHTS), "after round 4")
    own.release()
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
    second.begin(2, lambda: pack({"encoder.audio": torch.ones(3)}))
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


def test_a_second_device_with_the_folder_is_refused_and_told_whose_it_is(tmp_path: Path):
    """What the first one keeps stays as it is; in another run the folder is free."""
    first = begun(tmp_path, node=5, partition=2)
    first.keep(pack(WEIGHTS), "after round 3")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SettingsError) as refused:
        begun(tmp_path, node=6, partition=0)
    assert str(refused.value) == (
        f"partition 0: node config state-dir = {str(tmp_path)!r}: is the folder of device 2 (node "
        "5) in this run: give each device a state-dir of its own"
    )
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    begun(tmp_path, run=2, node=6, partition=0)


def test_the_same_device_may_begin_again(tmp_path: Path):
    """Its second method; and without a key, under a new id. Then that is whose the folder is."""
    begun(tmp_path, node=5, partition=2)
    begun(tmp_path, node=5, partition=2)
    begun(tmp_path, node=9, partition=2).keep(pack(WEIGHTS), "after round 1")
    with pytest.raises(SettingsError, match=r"the folder of device 2 \(node 9\)"):
        begun(tmp_path, node=5, partition=0)
    assert OwnState(context(tmp_path, node=9), "dpsgd").recover() == "after round 1"


def test_a_device_that_comes_back_with_anothers_folder_does_not_take_its_state(tmp_path: Path):
    begun(tmp_path, node=5).keep(pack(WEIGHTS), "after round 1")
    with pytest.raises(StateLostError, match=r"another device's, node 5: give each device"):
        OwnState(context(tmp_path, node=6), "dpsgd").recover()


@pytest.mark.parametrize("content", ["", "[", '{"node": "x", "partition": 2}', '{"node": 5}'])
def test_a_mark_that_says_nothing_is_anothers(content: str, tmp_path: Path):
    begun(tmp_path).mark.write_text(content)
    with pytest.raises(SettingsError, match="is the folder of another device in this run"):
        begun(tmp_path)


def test_a_file_without_what_it_should_say_is_damaged(tmp_path: Path):
    own = begun(tmp_path)
    own.file.write_bytes(save({"0": np.zeros(1)}, metadata={"method": "dpsgd", "0": "a"}))
    with pytest.raises(StateLostError, match=r"run-1\.safetensors is damaged: 'when'"):
        OwnState(context(tmp_path), "dpsgd").recover()


def test_the_last_runs_are_kept_and_only_their_owner_reads_them(tmp_path: Path):
    for run in range(1, KEPT_RUNS + 3):
        file = begun(tmp_path, run).file
        os.utime(file, (run, run))
    names = {path.name for path in tmp_path.iterdir()}
    kept = range(3, KEPT_RUNS + 3)
    assert names == {f"run-{run}.{kind}" for run in kept for kind in ("safetensors", "device")}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_folder_that_cannot_be_is_refused_before_training(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"state-dir = .*must be a folder"):
        begun(tmp_path / "file" / "state")


def test_a_full_disk_keeps_a_device_out_only_while_it_is_full(tmp_path: Path):
    with disk(tmp_path / "disk", kilobytes=64) as folder:
        with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(512))
        with pytest.raises(SettingsError, match=r"run-1\.device cannot be written: No space left"):
            begun(folder)
        (folder / "filler").unlink()
        begun(folder)
        assert OwnState(context(folder), "dpsgd").recover() == "before round 1"


def test_a_state_that_cannot_be_written_stays_in_memory(tmp_path: Path):
    """Its payload may have left, and its privacy ledger counts that: it is not taken back."""
    with disk(tmp_path / "disk", kilobytes=64) as folder:
        here = context(folder)
        own = OwnState(here, "dpsgd")
        own.begin(2, lambda: pack({"encoder.audio": torch.zeros(3)}))
        own.recover()
        with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(512))
        with pytest.raises(WriteError, match="No space left"):
            own.keep(pack(WEIGHTS), "after round 1")
        for message in ("query.state", "train"):
            later = OwnState(here, "dpsgd")
            assert later.recover() == "", message
            assert list(unpack(here.state.array_records[STATE])) == list(WEIGHTS)
            later.release()
        (folder / "filler").unlink()
        later.keep(pack(WEIGHTS), "after round 2")
        later.release()
        assert STATE not in here.state


def test_numbers_do_not_change_on_disk(tmp_path: Path):
    values = np.array([np.float32(1e-45), -0.0, 3.4e38], dtype=np.float32)
    begun(tmp_path).keep(pack({"head": torch.from_numpy(values)}), "after round 1")
    after = context(tmp_path)
    OwnState(after, "dpsgd").recover()
    assert after.state.array_records[STATE]["head"].numpy().tobytes() == values.tobytes()
