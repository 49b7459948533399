"""The run folder: resolved settings and metrics as JSON lines."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from logging import CRITICAL, NOTSET, WARNING, FileHandler, Formatter, LogRecord, getLogger
from logging.handlers import MemoryHandler
from math import isfinite
from pathlib import Path
from typing import Any

from ..base.files import WriteError, write_whole, writing
from ..base.formats import parse_json
from ..base.log import log
from ..base.machine import expanded
from .lock import locked
from .provenance import provenance
from .records import RoundRecord

END = "end.json"
"""Of the run: how it ended; of a method, in its folder: what it has left, if it came to its end."""

ENDING_S = 20.0
"""Seconds that a run which goes on waits for the process that had it: an app whose SuperLink was
killed takes a moment to notice."""


def folder_of_runs(run_dir: str | Path) -> Path:
    """Return the folder of all runs that the setting ``run-dir`` names."""
    return Path(expanded(str(run_dir))).resolve()


def new_name(method: str) -> str:
    """Return a name for a run that was given none: date, time and method."""
    return f"{datetime.now():%Y%m%d-%H%M%S-%f}-{method}"


class RunFolder:
    """A new folder for one run, made when its devices are ready.

    ``config.json`` holds the resolved settings, ``run.json`` what it was made with (see
    :func:`~flwr_dmml.tracking.provenance.provenance`), ``resumed`` in it what it went on with if
    that was something else, ``log.txt`` the log of the coordinator (:meth:`in_use`); each method
    that runs writes ``<method>/metrics.jsonl`` (one line a round, see :meth:`RoundRecord.to_json`;
    the same for the same seed on every engine) and ``<method>/timing.jsonl`` (wall-clock seconds a
    round).
    ``end.json`` says how the run ended (:mod:`~flwr_dmml.tracking.ending`).

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
        self.path = folder_of_runs(parent) / (name or new_name(config["method"]))
        self._taken = f"run-name = {name!r}: {self.path} exists already; choose another name"
        if self.path.exists():
            raise FileExistsError(self._taken)
        self._made = self._resumed = False
        self._log: MemoryHandler | None = None
        self._lock: ExitStack | None = None
        self._seed = config.get("seed")
        self._config = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"

    @classmethod
    def reopen(cls, path: Path) -> "RunFolder":
        """Return the folder of a run that goes on."""
        folder = cls.__new__(cls)
        folder.path, folder._made, folder._resumed = path, True, True
        folder._log = folder._lock = None
        return folder

    @property
    def made(self) -> bool:
        """Whether the folder is there, and this run's."""
        return self._made

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep other processes out of the folder while the block runs, and write its log.

        A run that goes on waits ``ENDING_S`` for the process that had it before.

        Flower's log goes to ``log.txt``, from the beginning of the block.

        Raises
        ------
        InUseError
            Another process has the folder.
        WriteError
            Something in it cannot be written; the message says how to go on.
        """
        try:
            with ExitStack() as self._lock:
                if self._made:
                    self._lock.enter_context(locked(self.path, ENDING_S))
                with self._logging():
                    yield
        except WriteError as error:
            if not self._made:
                raise
            raise WriteError(f"{error}; then go on with --resume {self.path}") from error
        finally:
            self._lock = None

    @contextmanager
    def _logging(self) -> Iterator[None]:
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
        with writing(self.path / "log.txt"):
            file = _LogFile(self.path / "log.txt", encoding="utf-8")
        file.setFormatter(Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._log.setTarget(file)
        self._log.flush()
        self._log.flushLevel = NOTSET  # from now on line by line

    def finish(self, method: str, about: Mapping[str, Any]) -> None:
        """Note that a method has run to its end, with what the next one is to know of it.

        :func:`~flwr_dmml.tracking.ending.read_left` reads it.
        """
        write_whole(self.path / method / END, json.dumps(dict(about)))

    def run_started(self, method: str, num_rounds: int, node_modalities: Sequence[str]) -> None:
        """Make the method's folder, and the run's before the first one."""
        if not self._made:
            try:
                self.path.mkdir(parents=True)
            except FileExistsError as error:  # another run took the name while we waited
                raise FileExistsError(self._taken) from error
            if self._lock is not None:
                self._lock.enter_context(locked(self.path))
            write_whole(self.path / "config.json", self._config)
            about = json.dumps(provenance(self._seed), indent=2) + "\n"
            write_whole(self.path / "run.json", about)
            self._made = True
            self._open_log()
        elif self._resumed:
            self._note_versions()
        self._current = self.path / method
        with writing(self._current):
            self._current.mkdir(exist_ok=self._resumed)

    def _note_versions(self) -> None:
        """Add to ``run.json`` with what the run goes on, unless that is as before."""
        file = self.path / "run.json"
        try:
            about = parse_json(file.read_bytes())
            starts = [about, *about.get("resumed", [])]
            before = {key: starts[-1].get(key) for key in ("versions", "git")}
        except (OSError, ValueError, TypeError, AttributeError):
            return  # of an older run, or damaged, as reports say
        now = provenance(None)
        if any(now[key] != value for key, value in before.items()):
            start = {key: now[key] for key in ("created", *before)}
            about["resumed"] = [*starts[1:], start]
            write_whole(file, json.dumps(about, indent=2) + "\n")

    def round_ended(self, record: RoundRecord) -> None:
        """Append the round to the method's files."""
        _append(self._current / "metrics.jsonl", record.to_json())
        timing: dict[str, Any] = {"round": record.round, "seconds": record.seconds}
        if record.phases:
            timing["phases"] = record.phases
        _append(self._current / "timing.jsonl", timing)


class _LogFile(FileHandler):
    """A log that ends where it cannot be written: the run has its numbers to write, too."""

    _ended = False

    def emit(self, record: LogRecord) -> None:
        if not self._ended:
            super().emit(record)

    def handleError(self, record: LogRecord) -> None:
        if not self._ended:
            self._ended = True
            log(WARNING, "%s cannot be written, and ends here", self.baseFilename)

    def close(self) -> None:
        try:
            super().close()
        except OSError:
            if not self._ended:  # else it has been said
                raise


def _append(path: Path, line: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(line, sort_keys=True, allow_nan=False)
    except ValueError:  # NaN or infinite: JSON has neither
        text = json.dumps(_existing(line), sort_keys=True, allow_nan=False)
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def _existing(value: Any) -> Any:
    """Return what is to be written, with null for numbers that do not exist."""
    if isinstance(value, dict):
        return {key: _existing(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_existing(own) for own in value]
    return None if isinstance(value, float) and not isfinite(value) else value
