"""Keeper of a run: stores on disk what resuming needs, and what the report shows."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from logging import INFO, WARNING
from math import isqrt
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from numpy.typing import NDArray

from ..base.errors import UserError
from ..base.files import sync_file, write_whole, writing
from ..clients.models import FOLDER, Models
from ..deploy.files import file_stem
from ..engine import SimulationGrid
from ..tracking.checkpoints import (
    CHECKPOINTS,
    Arrays,
    Checkpoint,
    CheckpointError,
    Checkpoints,
    digest,
)
from ..tracking.events import EVENTS, DeviceRound, lines_of
from ..tracking.history import read_record
from ..transport.arrays import NumpyArray, record_of
from .member import Member, members_from_json, members_to_json, unlike
from .peer import PeerStrategy
from .reasons import join_reasons
from .replies import read_state
from .roster import AGAIN_S, patience_s


class RunStoppedError(Exception):
    """The run was asked to stop, and did so after a round; it can be resumed."""


class ResumeError(UserError, ValueError):
    """A run cannot go on: its devices or its files are others than they were."""


class Keeper:
    """Writes who takes part, checkpoints, models, and what is confused at the end of a method.

    Parameters
    ----------
    folder : Path
        The method's, in the run folder.
    every : int
        Rounds from one checkpoint to the next; 0 writes none, but when the run is stopped.
    keep : int
        So many of the last are kept.
    stopping : callable
        Says whether the run has been asked to stop.
    """

    def __init__(
        self, folder: Path, every: int, keep: int, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self.folder, self._every, self._stopping = folder, every, stopping
        self._metrics, self._timing = folder / "metrics.jsonl", folder / "timing.jsonl"
        self._events = folder / EVENTS
        self._written = self._metrics, self._timing, self._events  # line by line
        self._models = folder / FOLDER
        self._checkpoints = Checkpoints(folder / CHECKPOINTS, keep)

    def begun(self, strategy: PeerStrategy) -> None:
        """Write down who takes part, and the graph of the first round (``devices.json``).

        The run begins at round 1: what an earlier start has left of it is removed.
        """
        for path in self._written:
            _cut(path, 0)
        with writing(self._models):
            shutil.rmtree(self._models, ignore_errors=True)
        self._checkpoints.begin()
        members = strategy.roster.members
        about = {
            "topology": type(strategy.topology).__name__,
            "time_varying": strategy.topology.time_varying,
            "classes": max((len(m.class_counts) for m in members.values()), default=0),
            "class_names": max((m.class_names for m in members.values()), key=len, default=()),
            "edges": sorted(sorted(edge) for edge in strategy.planner.graph(1).edges),
            "nodes": [
                {
                    "partition": p,
                    "modalities": list(member.modalities),
                    "num_train": member.num_train,
                    "class_counts": list(member.class_counts),
                }
                for p, member in members.items()
            ],
        }
        _write_json(self.folder / "devices.json", about)

    def models(self, found: Mapping[int, Models]) -> None:
        """Write down the models that devices have handed over (``models/device-003.*``)."""
        if found:
            with writing(self._models):
                self._models.mkdir(exist_ok=True)
        for partition, models in found.items():
            for kept, files in models.items():
                files.write(self._models / file_stem(partition, kept))

    def happened(self, rounds: Sequence[DeviceRound]) -> None:
        """Write down what devices did that do not wait for one another (``events.jsonl``)."""
        with writing(self._events), self._events.open("a", encoding="utf-8") as file:
            file.write(lines_of(rounds))

    def ended(self, strategy: PeerStrategy) -> None:
        """Write down which classes were taken for which at the end (``confusion.json``)."""
        if strategy.exchange.confusion:
            size = isqrt(len(strategy.exchange.confusion))
            matrix = [strategy.exchange.confusion[i * size : (i + 1) * size] for i in range(size)]
            last = strategy.records[-1].round
            _write_json(self.folder / "confusion.json", {"round": last, "matrix": matrix})

    def after_rounds(
        self,
        strategy: PeerStrategy,
        grid: Grid,
        before: int,
        server_round: int,
        *,
        last: bool = False,
    ) -> None:
        """Write a checkpoint if it is time, after the rounds ``before + 1 .. server_round``.

        It always is where this is the ``last`` chance to, and never if the strategy is not
        ``resumable``.

        Raises
        ------
        RunStoppedError
            The run has been asked to stop.
        """
        stopping = self._stopping()
        due = self._every and server_round // self._every > before // self._every
        if strategy.resumable and (stopping or due or last):
            self._save(strategy, grid, server_round)
        if stopping:
            go_on = "real devices without a beat leave no checkpoints: start the run again"
            if strategy.resumable:
                go_on = f"go on with --resume {self.folder.parent}"
            raise RunStoppedError(f"Stopped after round {server_round}; {go_on}")

    def _save(self, strategy: PeerStrategy, grid: Grid, server_round: int) -> None:
        asked = strategy.method, strategy.timeout
        states, absent = strategy.roster.ask(
            grid, "query.state", *asked, lambda _, content: read_state(content)
        )
        for p, (_, lines) in states.items():
            for line in lines:
                log(INFO, "Round %s: node %s %s", server_round, p, line)
        nodes = {p: _arrays(state) for p, (state, _) in states.items()}
        if absent:
            nodes |= self._known_of(absent, server_round)
        payloads = {p: _arrays(record) for p, record in strategy.payloads.items()}
        for path in self._written:
            if path.exists():
                sync_file(path)
        complete = strategy.rounds_done
        there = {path.name: complete for path in (self._metrics, self._timing)}
        there[self._events.name] = _count(self._events)
        about = {
            "complete": complete,
            "lines": there,
            "files": self._files(there),
            "published": {p: list(payload) for p, payload in payloads.items()},
            "members": members_to_json(strategy.roster.members),
            **strategy.state(),
        }
        for p, payload in payloads.items():  # most of it is what the device keeps: once is enough
            own = nodes.get(p, {})
            payloads[p] = {k: v for k, v in payload.items() if not _same(v, own.get(k))}
        path = self._checkpoints.save(Checkpoint(server_round, about, nodes, payloads))
        log(INFO, "[ROUND %s] Checkpoint: %s", server_round, path)

    def _known_of(self, absent: Mapping[int, str], server_round: int) -> dict[int, Arrays]:
        """Return the last known states of devices that cannot be asked."""
        last = self._checkpoints.latest()
        known = {p: last.nodes[p] for p in absent if p in last.nodes} if last else {}
        for p, why in absent.items():
            kept = "its state in the last one" if p in known else "none: it would start afresh"
            text = "Round %s: node %s: %s; the checkpoint holds %s"
            log(WARNING, text, server_round, p, why, kept)
        return known

    def _files(self, lines: Mapping[str, int]) -> dict[str, str]:
        """Return digests of what goes with a checkpoint: settings, and the rounds before it."""
        config = self.folder.parent / "config.json"
        before = {
            path.name: digest(islice(_lines(path), lines[path.name]))
            for path in (self._metrics, self._events)
        }
        return {config.name: digest(_lines(config)), **before}

    def _check(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint that does not go with the run's other files.

        Raises
        ------
        CheckpointError
            Names the file that has changed.
        """
        about = checkpoint.about
        try:
            found = self._files(about["lines"])
            changed = [name for name, value in found.items() if about["files"][name] != value]
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"it does not say what goes with it: {error!r}") from error
        if changed:
            raise CheckpointError(f"{changed[0]} is not what it was when this was written")

    def load(self) -> Checkpoint | None:
        """Return the last checkpoint that can be used; None where the run begins at round 1.

        Raises
        ------
        ResumeError
            There were checkpoints, and none can be used.
        """
        if checkpoint := self._checkpoints.latest(self._check):
            return checkpoint
        done = _count(self._metrics)
        if self._checkpoints.none_yet:
            if done:
                text = "%s rounds are run again: %s was stopped before its first checkpoint"
                log(WARNING, text, done, self.folder)
            return None
        if done or self._checkpoints.there:
            raise ResumeError(
                f"{self.folder} has {done} rounds in {self._metrics.name}, but no checkpoint to go "
                f"on from: put {self._checkpoints.folder} back as it was, or delete {self.folder} "
                "to begin at round 1"
            )
        return None

    def members_of(self, checkpoint: Checkpoint) -> dict[int, Member]:
        """Return the devices of a run, by partition id.

        Raises
        ------
        ResumeError
            The checkpoint is not what this version writes.
        """
        with _as_written(checkpoint):
            return members_from_json(checkpoint.about["members"])

    def restore(
        self, strategy: PeerStrategy, grid: Grid, checkpoint: Checkpoint
    ) -> dict[int, ArrayRecord]:
        """Take a strategy that has met its devices back to a checkpoint.

        A real device that cannot be taken back is asked again, for up to ``wait_timeout`` seconds;
        then it is away. The method's files are cut back to the rounds before the checkpoint.

        Returns
        -------
        dict of int to ArrayRecord
            What those that are away kept, by partition.

        Raises
        ------
        ResumeError
            A device is missing in a simulation, or is another than it was; fewer real ones than
            ``quorum`` are taken back; or the checkpoint is not what this version writes.
        """
        roster = strategy.roster
        _same_devices(self.members_of(checkpoint), roster.members)
        states = {p: _record(arrays) for p, arrays in checkpoint.nodes.items()}
        simulated, timeout = isinstance(grid, SimulationGrid), strategy.timeout
        timeout = timeout if simulated else patience_s(timeout, strategy.wait_timeout)
        absent: dict[int, str] | None = None
        told, deadline = "", time.monotonic() + strategy.wait_timeout
        while True:
            _, absent = roster.ask(
                grid,
                "query.restore",
                strategy.method,
                timeout,
                lambda _, content: None,
                states,
                absent,
            )
            absent = {p: why for p, why in absent.items() if p not in roster.away}
            if not absent or simulated or time.monotonic() > deadline:
                break
            if (why := join_reasons(absent)) != told:
                log(INFO, "Waiting for devices of the run: %s", why)
                told = why
            time.sleep(AGAIN_S)
        there = len(roster.members) - len(roster.away) - len(absent)
        if absent and (simulated or there < strategy.quorum):
            raise ResumeError(f"cannot be taken back to their states: {join_reasons(absent)}")
        roster.leave(absent)
        with _as_written(checkpoint):
            complete = checkpoint.about["complete"]
            before = [
                read_record(json.loads(line)) for line in islice(_lines(self._metrics), complete)
            ]
            payloads = {
                int(p): _record({k: checkpoint.array(int(p), k) for k in names})
                for p, names in checkpoint.about["published"].items()
            }
            strategy.load_state(checkpoint.about, payloads, before)
        again = _count(self._metrics) - checkpoint.server_round
        for path in self._written:
            _cut(path, checkpoint.about["lines"][path.name])
        text = "Resumed after round %s; rounds that were complete and are run again: %s"
        log(INFO, text, checkpoint.server_round, max(0, again))
        if roster.away:
            without = ", ".join(map(str, sorted(roster.away)))
            log(WARNING, "The run goes on without devices %s until they are back", without)
        return {p: states[p] for p in roster.away if p in states}


@contextmanager
def _as_written(checkpoint: Checkpoint) -> Iterator[None]:
    """Have whatever keeps a checkpoint's content from being read say so.

    Raises
    ------
    ResumeError
        Instead of what Python raises where a value is of another kind.
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ResumeError(
            f"the checkpoint of round {checkpoint.server_round} is not what this version writes: "
            f"{type(error).__name__}: {error}"
        ) from error


def _same_devices(before: Mapping[int, Member], members: Mapping[int, Member]) -> None:
    """Refuse devices that are others than before.

    Raises
    ------
    ResumeError
        Names one, and what has changed.
    """
    for p, known in before.items():
        if p not in members:
            raise ResumeError(f"node {p} of the run to resume is not here")
        if changed := unlike(known, members[p]):
            raise ResumeError(f"node {p} is not what it was: it has other {', '.join(changed)}")
    if new := members.keys() - before.keys():
        raise ResumeError(f"node {min(new)} was not part of the run to resume")


def _arrays(record: ArrayRecord) -> Arrays:
    return {name: array.numpy() for name, array in record.items()}


def _same(array: NDArray[Any], other: NDArray[Any] | None) -> bool:
    """Return whether these are the same bytes."""
    if other is None or (array.dtype, array.shape) != (other.dtype, other.shape):
        return False
    return array.tobytes() == other.tobytes()


def _record(arrays: Mapping[str, Any]) -> ArrayRecord:
    return record_of({name: NumpyArray(numbers) for name, numbers in arrays.items()})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(dict(content), allow_nan=False) + "\n")


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file; none where there is no file."""
    if path.exists():
        with path.open("rb") as file:
            yield from file


def _count(path: Path) -> int:
    return sum(1 for _ in _lines(path))


def _cut(path: Path, lines: int) -> None:
    """Keep the first lines of a file, whole or not at all."""
    if path.exists():
        write_whole(path, b"".join(islice(_lines(path), lines)))
