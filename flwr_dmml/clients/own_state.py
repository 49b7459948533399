"""A device's state on its own disk: a SuperNode that was killed and started again goes on from it.

Flower keeps what a device knows from round to round in the SuperNode's memory: of every run, until
the SuperNode ends.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from pydantic import BaseModel, ValidationError
from safetensors import safe_open
from safetensors.numpy import save

from ..base.errors import SettingsError
from ..base.files import WriteError, write_whole, writing
from ..base.machine import expanded
from ..base.tensors import read_tensors
from ..transport.arrays import NumpyArray, record_of
from ..transport.messages import PARTITION, STATE

NODE_KEY = "state-dir"
"""In the node config: the folder for it."""
KEPT_RUNS, KEPT_S = 3, 3600.0
"""States of so many runs are kept, and all that were written in the last hour."""
_MET = "flwr-dmml.met"


_APART = f"give each device a {NODE_KEY} of its own"


class _Mark(BaseModel):
    """Whose a state is."""

    node: int
    partition: int


def state_folder(context: Context) -> Path | None:
    """Return the folder in which a device keeps its states; None where it has none."""
    folder = str(context.node_config.get(NODE_KEY, ""))
    return Path(expanded(folder)) if folder else None


class StateLostError(RuntimeError):
    """A device has lost its state of the run that it takes part in; the message says why."""


class OwnState:
    """A device's state of a run: on disk if ``state-dir`` is set, else in Flower's context.

    A file ``run-<id>.safetensors`` for each run, written whole or not at all, and beside it
    ``run-<id>.device``, which says whose it is: a folder of two devices would swap their states.
    Flower's context then holds the state while a message is worked on, and between messages only
    that the device is part of the run; but a state that could not be written stays there.

    Parameters
    ----------
    context : Context
        Of the device in this run.
    method : str
        What it runs now: one method's state is nothing to another.
    """

    def __init__(self, context: Context, method: str) -> None:
        self._context, self._method = context, method
        folder = state_folder(context)
        self.file = (folder or Path()) / f"run-{context.run_id}.safetensors"
        self.mark = self.file.with_suffix(".device")
        self._on_disk = folder is not None
        self._spare = False  # whether what the context holds is on disk, too

    def begin(self, partition: int, initial: Callable[[], ArrayRecord]) -> None:
        """Forget what was there of this run: the device starts afresh, from ``initial()``.

        Parameters
        ----------
        partition : int
            The device's partition id.
        initial : callable
            Returns the state that it starts from.

        Raises
        ------
        SettingsError
            ``state-dir`` cannot be written, or is another device's.
        """
        if self._on_disk:
            try:
                with writing(self.file.parent):
                    self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._claim(partition)
                self._write(initial(), "before round 1")
            except WriteError as error:
                said = f"must be a folder that this device can write: {error}"
                raise self._wrong(partition, said) from error
            for old in sorted(self.file.parent.glob("run-*.safetensors"), key=_age)[KEPT_RUNS:]:
                if _age(old) > KEPT_S:
                    old.unlink(missing_ok=True)
                    old.with_suffix(self.mark.suffix).unlink(missing_ok=True)
        self._context.state = RecordDict()
        self._meet()

    def _meet(self) -> None:
        """Note in the context that the device is part of the run."""
        self._context.state[_MET] = ConfigRecord({"method": self._method})

    def _claim(self, partition: int) -> None:
        """Note that the state of this run is this device's.

        Raises
        ------
        SettingsError
            It is another's: of another node and another partition. A node without a key has a new
            id whenever it is started.
        """
        own = _Mark(node=self._context.node_id, partition=partition)
        with writing(self.mark):
            try:
                with self.mark.open("x", encoding="utf-8") as file:
                    self._sign(file, own)
                return
            except FileExistsError:
                found = self.mark.read_text(encoding="utf-8", errors="replace")
        try:
            other = _Mark.model_validate_json(found)
        except ValidationError:
            other = None
        if other is None or (other.node != own.node and other.partition != own.partition):
            whose = f"device {other.partition} (node {other.node})" if other else "another device"
            raise self._wrong(partition, f"is the folder of {whose} in this run: {_APART}")
        write_whole(self.mark, own.model_dump_json())

    def _sign(self, file: TextIO, own: _Mark) -> None:
        """Write whose it is; a mark that says nothing would be another's, once the disk is free."""
        try:
            file.write(own.model_dump_json())
            file.flush()
        except OSError:
            self.mark.unlink()
            raise

    def _wrong(self, partition: int, said: str) -> SettingsError:
        where = f"node config {NODE_KEY} = {str(self.file.parent)!r}"
        return SettingsError(f"{PARTITION} {partition}: {where}: {said}")

    def recover(self) -> str:
        """Put the state on disk into the context, until :meth:`release`, unless it has a newer one.

        Returns when it was kept, if this is the first that a new SuperNode hears of the run; else
        nothing.

        Raises
        ------
        StateLostError
            The device has been part of this run, and there is no state to go on from.
        """
        state = self._context.state
        if STATE in state or (_MET in state and not self._on_disk):
            return ""
        known = _MET in state
        if not self._on_disk:
            raise StateLostError(
                "its SuperNode was started anew, and what it knew of this run is gone: set "
                f"{NODE_KEY} in its node config, so that it keeps it on disk"
            )
        try:
            tensors = read_tensors(self.file.read_bytes())
            with safe_open(self.file, framework="numpy") as file:
                about = file.metadata() or {}
            arrays = {about[key]: tensors[key] for key in sorted(tensors, key=int)}
            method, when, node = about["method"], about["when"], about["node"]
        except FileNotFoundError as error:
            raise StateLostError(f"{self.file} is gone, with what it knew of this run") from error
        except (ValueError, KeyError, OSError) as error:
            raise StateLostError(f"{self.file} is damaged: {error}") from error
        if method != self._method:
            raise StateLostError(f"{self.file} is of the method {method!r}")
        if node != str(self._context.node_id):
            raise StateLostError(f"{self.file} is another device's, node {node}: {_APART}")
        state[STATE] = record_of({name: NumpyArray(array) for name, array in arrays.items()})
        self._meet()
        self._spare = True
        return "" if known else str(when)

    def release(self) -> None:
        """Take the state out of the context if it is on disk: it need not be in memory."""
        if self._spare:
            self._context.state.pop(STATE, None)

    def keep(self, record: ArrayRecord, when: str) -> None:
        """Keep a state for the next message; ``when`` says when that is ("after round 3").

        Raises
        ------
        WriteError
            It cannot be written: the context holds it, and it is what the device goes on from.
        """
        self._context.state[STATE], self._spare = record, False
        if self._on_disk:
            self._write(record, when)
            self._spare = True

    def _write(self, record: ArrayRecord, when: str) -> None:
        names = {str(k): name for k, name in enumerate(record)}
        about = {"method": self._method, "when": when, "node": str(self._context.node_id), **names}
        data = save({k: record[name].numpy() for k, name in names.items()}, metadata=about)
        write_whole(self.file, data, 0o600)


def _age(file: Path) -> float:
    """Return how many seconds ago a file was written."""
    return time.time() - file.stat().st_mtime
