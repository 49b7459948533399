"""Records of a run folder that reports read besides the rounds: devices, confusion, run info."""

import shlex
from typing import Any, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from ..tracking.records import Amount, Count


class DeviceLine(BaseModel):
    """One device of ``devices.json``."""

    partition: Count
    modalities: list[str]
    num_train: Count = 0
    class_counts: list[Count] = []


class Devices(BaseModel):
    """``devices.json``: the graph, and what data each device has."""

    topology: str = ""
    time_varying: bool = False
    classes: Count = 0
    class_names: list[str] = []
    edges: list[tuple[Count, Count]] = []
    nodes: list[DeviceLine]

    def labels(self, count: int) -> list[str]:
        """Return the names of ``count`` classes; their numbers, where there are no such names."""
        named = len(self.class_names) == len(set(self.class_names)) == count
        return self.class_names if named else [str(c) for c in range(count)]


class Confusion(BaseModel):
    """``confusion.json``: rows are true classes, columns predicted ones, summed over devices."""

    round: Count
    matrix: list[list[Amount]] = Field(min_length=1)

    @model_validator(mode="after")
    def _square(self) -> Self:
        if any(len(row) != len(self.matrix) for row in self.matrix):
            raise ValueError("the matrix is not square")
        return self

    @property
    def recall(self) -> list[float | None]:
        """The share of each class's samples that were found, in [0, 1]; None without samples."""
        totals = [sum(row) for row in self.matrix]
        return [row[c] / totals[c] if totals[c] else None for c, row in enumerate(self.matrix)]


REVISION = "git revision"


class Start(BaseModel):
    """A start of a run: when, with which versions and from which revision."""

    created: str = ""
    versions: dict[str, str] = {}
    git: dict[str, Any] | None = None

    @property
    def made_with(self) -> dict[str, str]:
        """The versions by name, with that of the source."""
        if not self.git:
            return self.versions
        dirty = " with uncommitted changes" if self.git.get("dirty") else ""
        return self.versions | {REVISION: f"{self.git.get('revision', '-')}{dirty}"}


class RunInfo(Start):
    """``run.json``: how a run was made, and ``resumed`` with other versions."""

    command: str | None = None
    platform: str = ""
    resumed: list[Start] = []

    @property
    def made_with(self) -> dict[str, str]:
        """The versions of all starts, one after the other where they differ."""
        found: dict[str, dict[str, None]] = {}
        for made in (super().made_with, *(start.made_with for start in self.resumed)):
            for name, text in made.items():
                found.setdefault(name, {})[text] = None
        return {name: " then ".join(texts) for name, texts in found.items()}

    @field_validator("command")
    @classmethod
    def _for_a_shell(cls, command: str | None) -> str | None:
        """Refuse what no shell could run: it is shown in lines, an option with its value."""
        if command and not shlex.split(command):
            raise ValueError("a command without a word")
        return command
