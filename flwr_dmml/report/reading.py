"""Read run folders: settings, metrics and what is known of the devices, checked at the border."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ..base.errors import UserError
from ..base.formats import first_problem, parse_json
from ..base.options import kebab
from ..tracking.ending import Ending, MethodEnd, absence, failures_of
from ..tracking.events import EVENTS, DeviceRound, EventsError, read_events
from ..tracking.history import read_line
from ..tracking.records import Count, RoundRecord
from ..tracking.run_folder import END
from .lines import Confusion, Devices, RunInfo


class ReportError(UserError, ValueError):
    """A report that cannot be made; the message names the file (and line) and what is wrong."""


class NoRoundError(ReportError):
    """A run in which no method has finished a round yet."""


@dataclass
class MethodRun:
    """Results of one method in a run folder; it has at least one round."""

    name: str
    rounds: list[RoundRecord]
    devices: Devices | None = None
    confusion: Confusion | None = None
    noted: MethodEnd | None = None
    events: list[DeviceRound] = field(default_factory=list)  # of devices that do not wait
    compared: RoundRecord | None = None  # the last round, with the devices that are compared alone

    @cached_property
    def end(self) -> MethodEnd:
        """How far it came; of a run that goes on, or was killed, as its rounds tell."""
        if self.noted:
            return self.noted
        nodes = {node.partition for line in self.rounds for node in line.nodes}
        begun = nodes | {node.partition for node in self.devices.nodes} if self.devices else nodes
        last = self.rounds[-1]
        finished = sorted(begun - last.failed.keys())
        return MethodEnd(
            rounds=last.round,
            of=last.round,
            begun=sorted(begun),
            finished=finished,
            failures=failures_of(self.rounds),
        )

    @cached_property
    def evaluated(self) -> list[RoundRecord]:
        """The rounds in which devices were evaluated."""
        return [line for line in self.rounds if line.evaluated]

    @property
    def last(self) -> RoundRecord:
        """The last evaluated round; the last round where none was evaluated."""
        if self.compared:
            return self.compared
        return self.evaluated[-1] if self.evaluated else self.rounds[-1]

    def labels(self, count: int) -> list[str]:
        """Return the names of ``count`` classes, or their numbers."""
        return (self.devices or Devices(nodes=[])).labels(count)

    @cached_property
    def megabytes(self) -> dict[int, float]:
        """MB that all devices have sent by the end of each round, by round."""
        total, by_round = 0.0, {}
        for line in self.rounds:
            total += line.all_bytes_sent
            by_round[line.round] = total / 1e6
        return by_round


@dataclass
class Run:
    """A run folder as it was read.

    ``warnings`` says what was odd about it and could be passed over: a last line cut short, a
    method that has not begun.
    """

    path: Path
    config: dict[str, Any]
    methods: list[MethodRun]
    info: RunInfo | None = None
    ending: Ending | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def num_rounds(self) -> int | None:
        """Number of rounds that the settings asked for."""
        value = self.config.get("num-server-rounds")
        return value if isinstance(value, int) else None

    def complete(self, method: MethodRun) -> bool:
        """Return whether a method has run to its end, which may be before its last round."""
        ended = (self.path / method.name / END).exists()
        return ended or self.num_rounds is None or method.rounds[-1].round >= self.num_rounds

    @property
    def unfinished(self) -> list[str]:
        """Missing results of each method, in words."""
        texts = []
        if self.ending and self.ending.reason:
            texts.append(f"the run {self.ending.ended}: {self.ending.reason}")
        for method in self.methods:
            if not self.complete(method):
                done = method.rounds[-1].round
                texts.append(f"{method.name}: {done} of {self.num_rounds} rounds")
            if not method.evaluated:
                texts.append(f"{method.name}: no round was evaluated yet")
            if lacking := absence(method.name, method.end.begun, method.end.missing):
                texts.append(lacking)
        return texts


def find_runs(path: Path) -> list[Path]:
    """Return the run folders at or below ``path``, by name; none inside another one."""
    if (path / "config.json").is_file():
        return [path]
    children = sorted(child for child in path.iterdir() if child.is_dir())
    return [run for child in children for run in find_runs(child)]


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises
    ------
    NoRoundError
        No method in it has finished a round.
    ReportError
        ``path`` is no run folder, or a file in it is broken. The last line of ``metrics.jsonl``
        alone may be cut short, as a killed run leaves it.
    """
    if not path.is_dir():
        raise ReportError(f"{path}: no such folder")
    if not (path / "config.json").is_file():
        inside = f"; it holds runs: {find_runs(path)[0]} ..." if find_runs(path) else ""
        raise ReportError(f"{path}: not a run folder (it has no config.json){inside}")
    config = _object(path / "config.json")
    asked = _asked(path / "config.json", config)
    info, ending = _optional(path / "run.json", RunInfo), _optional(path / END, Ending)
    run = Run(path.resolve(), config, [], info, ending)
    there = {child.parent.name for child in path.glob("*/metrics.jsonl")}
    for name in dict.fromkeys([*filter(None, (asked.compare_with, asked.method)), *sorted(there)]):
        if name in there and (method := _read_method(path / name, run.warnings)):
            method.noted = ending.methods.get(name) if ending else None
            run.methods.append(method)
        else:
            run.warnings.append(f"{name}: it has not finished a round")
    if not run.methods:
        raise NoRoundError(f"{path}: no method has finished a round (no line in a metrics.jsonl)")
    return run


def _read_method(folder: Path, warnings: list[str]) -> MethodRun | None:
    rounds = _rounds(folder / "metrics.jsonl", warnings)
    if not rounds:
        return None
    devices = _optional(folder / "devices.json", Devices)
    confusion = _optional(folder / "confusion.json", Confusion)
    method = MethodRun(folder.name, rounds, devices, confusion)
    if (folder / EVENTS).exists():
        try:
            method.events = read_events(folder / EVENTS)
        except EventsError as error:
            raise ReportError(str(error)) from error
    return method


def _rounds(path: Path, warnings: list[str]) -> list[RoundRecord]:
    lines = _text(path).rstrip("\n").split("\n")
    if lines == [""]:
        return []
    rounds: list[RoundRecord] = []
    for number, text in enumerate(lines, start=1):
        try:
            line = read_line(text)
        except ValidationError as error:
            if error.errors()[0]["type"] == "json_invalid" and number == len(lines) > 1:
                warnings.append(f"{path}, line {number}: cut short, left out")
                break
            raise ReportError(f"{path}, line {number}: {first_problem(error)}") from error
        if rounds and line.round <= rounds[-1].round:
            reason = f"round {line.round} after round {rounds[-1].round}"
            raise ReportError(f"{path}, line {number}: {reason}")
        rounds.append(line)
    return rounds


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: not UTF-8 text") from error


def _object(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(_text(path))
    except ValueError as error:
        raise ReportError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ReportError(f"{path}: not a JSON object")
    return value


class _Asked(BaseModel):
    """Settings that reports go by."""

    model_config = ConfigDict(extra="ignore", strict=True, alias_generator=kebab)

    method: str = ""
    compare_with: str = ""
    seed: Count = 0
    num_server_rounds: Count | None = None


def _asked(path: Path, config: Mapping[str, Any]) -> _Asked:
    try:
        return _Asked.model_validate(config)
    except ValidationError as error:
        raise ReportError(f"{path}: {first_problem(error)}") from error


_Model = TypeVar("_Model", bound=BaseModel)


def _optional(path: Path, model: type[_Model]) -> _Model | None:
    """Read a file that older run folders do not have."""
    if not path.is_file():
        return None
    try:
        return model.model_validate_json(_text(path))
    except ValidationError as error:
        raise ReportError(f"{path}: {first_problem(error)}") from error


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Read run folders and folders that hold many, each run once.

    Those of one folder come in the order in which they were made, as a sweep has it.

    Returns
    -------
    tuple of list of Run and list of str
        The runs, and which ones were left out because they have not finished a round.

    Raises
    ------
    ReportError
        As :func:`read_run`; a folder without any run.
    """
    runs: dict[Path, Run] = {}
    skipped: list[str] = []
    for path in paths:
        if not path.is_dir():
            raise ReportError(f"{path}: no such folder")
        found = find_runs(path)
        if not found:
            raise ReportError(f"{path}: neither a run folder nor a folder that holds runs")
        inside: list[Run] = []
        for folder in found:
            if folder.resolve() in runs:
                continue
            try:
                inside.append(read_run(folder))
            except NoRoundError:
                if folder == path:
                    raise
                skipped.append(f"{folder.name}: left out, it has not finished a round")
        inside.sort(key=lambda run: run.info.created if run.info else "")
        runs |= {run.path: run for run in inside}
    return list(runs.values()), skipped
