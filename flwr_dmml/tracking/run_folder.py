"""The run folder: resolved settings and metrics as JSON lines."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from .records import RoundRecord


class RunFolder:
    """A new folder for one run, made when its devices are ready.

    ``config.json`` holds the resolved settings; each method that runs writes
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
        self.path = Path(os.path.expanduser(parent)).resolve() / (
            name or f"{stamp}-{config['method']}"
        )
        self._taken = f"run-name = {name!r}: {self.path} exists already; choose another name"
        if self.path.exists():
            raise FileExistsError(self._taken)
        self._made = False
        self._config = json.dumps(dict(config), indent=2, sort_keys=True) + "\n"

    def run_started(self, method: str, num_rounds: int, node_modalities: Sequence[str]) -> None:
        """Make the method's folder, and the run's before the first one."""
        if not self._made:
            try:
                self.path.mkdir(parents=True)
            except FileExistsError as error:  # another run took the name while we waited
                raise FileExistsError(self._taken) from error
            (self.path / "config.json").write_text(self._config, encoding="utf-8")
            self._made = True
        self._current = self.path / method
        self._current.mkdir()

    def round_ended(self, record: RoundRecord) -> None:
        """Append the round to the method's files."""
        _append(self._current / "metrics.jsonl", record.to_json())
        _append(self._current / "timing.jsonl", {"round": record.round, "seconds": record.seconds})


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")
