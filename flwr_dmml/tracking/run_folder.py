"""The run folder: resolved settings and metrics as JSON lines."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from logging import CRITICAL, NOTSET, FileHandler, Formatter, getLogger
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from ..base.machine import expanded
from .files import write_whole
from .history import read_metrics_file, read_record
from .provenance import provenance
from .records import RoundRecord

END = "end.json"


class RunFolder:
    """A new folder for one run, made when its devices are ready.

    ``config.json`` holds the resolved settings, ``run.json`` what it was made with (see
    :func:`~flwr_dmml.tracking.provenance.provenance`), ``log.txt`` the log of the coordinator
    (:meth:`logging`); each method that runs writes
    ``<method>/metrics.jsonl`` (one line a round, see :meth:`RoundRecord.to_json`; the same for the
    same seed on every engine) and ``<method>/timing.jsonl`` (wall-clock seconds a round).

    Parameters
    ----------
    parent : str or Path
        Folder of all runs; made if need be.
    name : str
        Name of the new folder; empty takes date, time and method.
    config : mapping
        The resolved run config, written down as it is.

    Raises
    ------
    FileExistsError
        A folder of that name exists (by now, or when it is to be made): no run is overwritten.
    """

    def __init__(self, parent: str | Path, name: str, config: Mapping[str, Any]) -> None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        self.path = Path(expanded(str(parent))).resolve() / (name or f"{stamp}-{config['method']}")
        self._taken = f"run-name = {name!r}: {self.path} exists already; choose another name"
        if self.path.exists():
            raise FileExistsError(self._taken)
        self._made = self._resumed = False
        self._log: MemoryHandler | None = None
        self._seed = config.get("seed")
        self._config = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"

    @classmethod
    def reopen(cls, path: Path) -> "RunFolder":
        """Return the folder of a run that goes on."""
        folder = cls.__new__(cls)
        folder.path, folder._made, folder._resumed = path, True, True
        folder._log = None
        return folder

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Write Flower's log to ``log.txt`` while the block runs, from its beginning."""
        logger = getLogger("flwr")
        self._log = MemoryHandler(10_000, flushLevel=CRITICAL + 1)  # until there is a folder
        logger.addHandler(self._log)
        try:
            if self._made:
                self._open_log()
            yield
        finally:
            logger.removeHandler(self._log)
            file = self._log.target
            self._log.close()
            if file is not None:
                file.close()
            self._log = None

    def _open_log(self) -> None:
        if self._log is None or self._log.target is not None:
            return
        file = FileHandler(self.path / "log.txt", encoding="utf-8")
        file.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._log.setTarget(file)
        self._log.flush()
        self._log.flushLevel = NOTSET  # from now on line by line

    def finish(self, method: str, about: Mapping[str, Any]) -> None:
        """Note that a method has run to its end, with what the next one is to know of it."""
        write_whole(self.path / method / END, json.dumps(dict(about)))

    def finished(self, method: str) -> tuple[RoundRecord, dict[str, Any]] | None:
        """Return the last round of a method and what :meth:`finish` noted, None if it has not."""
        end = self.path / method / END
        if not end.exists():
            return None
        lines = read_metrics_file(end.with_name("metrics.jsonl"))
        return read_record(lines[-1]), json.loads(end.read_text(encoding="utf-8"))

    def run_started(self, method: str, num_rounds: int, node_modalities: Sequence[str]) -> None:
        """Make the method's folder, and the run's before the first one."""
        if not self._made:
            try:
                self.path.mkdir(parents=True)
            except FileExistsError as error:  # another run took the name while we waited
                raise FileExistsError(self._taken) from error
            write_whole(self.path / "config.json", self._config)
            about = json.dumps(provenance(self._seed), indent=2) + "\n"
            write_whole(self.path / "run.json", about)
            self._made = True
            self._open_log()
        self._current = self.path / method
        self._current.mkdir(exist_ok=self._resumed)

    def round_ended(self, record: RoundRecord) -> None:
        """Append the round to the method's files."""
        _append(self._current / "metrics.jsonl", record.to_json())
        _append(self._current / "timing.jsonl", {"round": record.round, "seconds": record.seconds})


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")
