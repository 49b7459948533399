"""What runs and devices keep on disk to go on from: damaged, it is refused, and never another."""

import logging
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from fuzzing import UNCHANGED, fuzz, of_file, of_values
from safetensors.numpy import save
from safetensors.torch import save as save_torch

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients.own_state import OwnState, StateLostError
from flwr_dmml.data import DataError
from flwr_dmml.data.known import read_known
from flwr_dmml.tracking.checkpoints import DIGESTS, Checkpoint, Checkpoints, digest
from flwr_dmml.transport.messages import STATE, pack, unpack

WEIGHTS = {"encoder.audio": torch.tensor([1.5, -2.0, 3.25]), "memory.step": torch.tensor(7)}
ARRAYS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(1.5)}
SIGNED = "nodes.safetensors", "payloads.safetensors", "state.json"


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "flwr")


@pytest.fixture
def saved(memory: Path) -> Path:
    """The folder of a checkpoint of round 7."""
    about = {"third": 1 / 3, "members": {"0": {"modalities": ["audio"]}}, "none": None}
    checkpoint = Checkpoint(7, about, nodes={3: ARRAYS, 0: {}}, payloads={3: {"x": np.ones(4)}})
    return Checkpoints(memory, keep=2).save(checkpoint)


def told(checkpoint: Checkpoint | None) -> object:
    """Return all of a checkpoint as what can be compared."""
    if checkpoint is None:
        return None
    groups = [
        {p: {k: (x.dtype, x.shape, x.tobytes()) for k, x in own.items()} for p, own in each.items()}
        for each in (checkpoint.nodes, checkpoint.payloads)
    ]
    return checkpoint.server_round, checkpoint.about, groups


def sign(place: Path) -> None:
    lines = [f"{digest([(place / name).read_bytes()])}  {name}\n" for name in SIGNED]
    (place / DIGESTS).write_text("".join(lines))


@pytest.mark.parametrize("name", [*SIGNED, DIGESTS])
def test_a_damaged_checkpoint(saved: Path, name: str, pytestconfig: pytest.Config) -> None:
    file, checkpoints = saved / name, Checkpoints(saved.parent, keep=2)
    right, example = told(checkpoints.latest()), file.read_bytes()

    def parse(data: bytes) -> None:
        file.write_bytes(data)
        assert told(checkpoints.latest()) == (right if data == example else None)

    fuzz(parse, (), [example], pytestconfig)


@pytest.mark.parametrize("name", SIGNED)
def test_a_forged_checkpoint(saved: Path, name: str, pytestconfig: pytest.Config) -> None:
    """Its digests agree with whatever the file holds: it is read, or passed over."""

    def latest() -> None:
        sign(saved)
        Checkpoints(saved.parent, keep=2).latest()

    parse, example = of_file(saved / name, latest, ValueError), (saved / name).read_bytes()
    fuzz(parse, (), [example], pytestconfig)


def test_a_checkpoint_of_odd_values(saved: Path, pytestconfig: pytest.Config) -> None:
    def latest() -> None:
        sign(saved)
        Checkpoints(saved.parent, keep=2).latest()

    fuzz(of_values(saved / "state.json", latest, ValueError), (), [UNCHANGED], pytestconfig)


def context(folder: Path) -> Context:
    return Context(1, 5, {"state-dir": str(folder)}, RecordDict(), {})


@pytest.fixture
def own(memory: Path) -> OwnState:
    own = OwnState(context(memory), "dpsgd")
    own.begin(2, lambda: pack(WEIGHTS))
    own.keep(pack(WEIGHTS), "after round 3")
    return own


def test_a_device_s_state(memory: Path, own: OwnState, pytestconfig: pytest.Config) -> None:
    about = {"method": "dpsgd", "when": "after round 3", "node": "5", "0": "x"}
    examples = [own.file.read_bytes(), save({"0": np.ones((2, 2), np.int8)}, metadata=about)]

    def recover() -> None:
        after = context(memory)
        OwnState(after, "dpsgd").recover()
        unpack(after.state.array_records[STATE])

    fuzz(of_file(own.file, recover, StateLostError), (StateLostError,), examples, pytestconfig)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float8_e5m2])
def test_numbers_of_a_kind_that_numpy_lacks(
    memory: Path, own: OwnState, saved: Path, kind: torch.dtype
) -> None:
    import_module("ml_dtypes")  # with it NumPy knows them: it makes no difference
    odd = torch.ones(2).to(kind)
    about = {"method": "dpsgd", "when": "after round 3", "node": "5", "0": "x"}
    own.file.write_bytes(save_torch({"0": odd}, metadata=about))
    with pytest.raises(StateLostError, match=r"run-1\.safetensors is damaged"):
        OwnState(context(memory), "dpsgd").recover()
    (saved / "payloads.safetensors").write_bytes(save_torch({"3/0": odd}))
    sign(saved)
    assert Checkpoints(memory, keep=2).latest() is None
    (memory / "x.files").write_bytes(save_torch({"known": odd, "digests": odd.clone()}))
    with pytest.raises(DataError, match=r"x\.files' is damaged"):
        read_known(memory / "x.files", 1)


def test_whose_a_state_is(memory: Path, own: OwnState, pytestconfig: pytest.Config) -> None:
    def begin() -> None:
        OwnState(context(memory), "dpsgd").begin(2, lambda: pack(WEIGHTS))

    parse = of_file(own.mark, begin, SettingsError, str(memory))
    fuzz(parse, (SettingsError,), [own.mark.read_bytes()], pytestconfig)
