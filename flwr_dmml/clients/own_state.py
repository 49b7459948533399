"""A device's state on its own disk: a SuperNode that was killed and started again goes on from it.

Flower keeps what a device knows from round to round in the SuperNode's memory only.
"""

from collections.abc import Callable
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..base.errors import SettingsError
from ..base.machine import expanded
from ..tracking.files import write_bytes_whole
from ..transport.arrays import NumpyArray, record_of
from ..transport.messages import STATE

NODE_KEY = "state-dir"
"""In the node config: the folder for it."""
KEPT_RUNS = 3
_MET = "flwr-dmml.met"


class StateLostError(RuntimeError):
    """A device has lost its state of the run that it takes part in; the message says why."""


class OwnState:
    """A device's state of a run: in Flower's context, and on disk if ``state-dir`` is set.

    A file ``run-<id>.safetensors`` for each of the last three runs, written whole or not at all.

    Parameters
    ----------
    context : Context
        Of the device in this run.
    method : str
        What it runs now: one method's state is nothing to another.
    """

    def __init__(self, context: Context, method: str) -> None:
        self._context, self._method = context, method
        folder = str(context.node_config.get(NODE_KEY, ""))
        self.file = Path(expanded(folder)) / f"run-{context.run_id}.safetensors"
        self._on_disk = bool(folder)

    def begin(self, initial: Callable[[], ArrayRecord]) -> None:
        """Forget what was there of this run: the device starts afresh, from ``initial()``.

        Raises
        ------
        SettingsError
            ``state-dir`` cannot be written.
        """
        if self._on_disk:
            try:
                self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._write(initial(), "before round 1")
            except OSError as error:
                raise SettingsError(
                    f"node config {NODE_KEY} = {str(self.file.parent)!r}: must be a folder that "
                    f"this device can write: {error.strerror}"
                ) from error
            for old in sorted(self.file.parent.glob("run-*.safetensors"), key=_age)[KEPT_RUNS:]:
                old.unlink(missing_ok=True)
        self._context.state = RecordDict({_MET: ConfigRecord({"method": self._method})})

    def recover(self) -> str:
        """Load the state on disk if the context has none; return when it was kept, or nothing.

        Raises
        ------
        StateLostError
            The device has been part of this run, and there is no state to go on from.
        """
        state = self._context.state
        if STATE in state or _MET in state:
            return ""
        if not self._on_disk:
            raise StateLostError(
                "its SuperNode was started anew, and what it knew of this run is gone: set "
                f"{NODE_KEY} in its node config, so that it keeps it on disk"
            )
        try:
            with safe_open(self.file, framework="numpy") as file:
                about = file.metadata() or {}
                arrays = {about[key]: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except FileNotFoundError as error:
            raise StateLostError(f"{self.file} is gone, with what it knew of this run") from error
        except (SafetensorError, KeyError) as error:
            raise StateLostError(f"{self.file} is damaged: {error}") from error
        if about.get("method") != self._method:
            raise StateLostError(f"{self.file} is of the method {about.get('method')!r}")
        state[STATE] = record_of({name: NumpyArray(array) for name, array in arrays.items()})
        return str(about["when"])

    def keep(self, record: ArrayRecord, when: str) -> None:
        """Keep a state for the next message; ``when`` says when that is ("after round 3")."""
        self._context.state[STATE] = record
        if self._on_disk:
            self._write(record, when)

    def _write(self, record: ArrayRecord, when: str) -> None:
        names = {str(k): name for k, name in enumerate(record)}
        about = {"method": self._method, "when": when, **names}
        data = save({k: record[name].numpy() for k, name in names.items()}, metadata=about)
        write_bytes_whole(self.file, data, 0o600)


def _age(file: Path) -> float:
    return -file.stat().st_mtime
