"""A process's share of a round whose devices are spread over several: orders in, reports out."""

import os
import resource
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from ..base.errors import UserError
from ..base.files import writing
from ..base.machine import boot_id
from ..learning.crew import Crew
from ..learning.rows import Columns, Layout
from ..payload.plan import Payload, Plan
from ..transport.arrays import NumpyArray, record_of
from .hosted import HostedDevices, Left, Reply

Numbers = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Publication:
    """What another process's device has published, besides its row.

    Attributes
    ----------
    report : list of float
        See :meth:`.Learner.report`.
    entries : dict of str to NDArray
        The rest of its payload, or all of it where rows are not mixed as they are.
    carried : dict of str to NDArray
        What it has published for others, as a courier.
    row : NDArray or None
        Its row ``[width]``, for devices on another machine.
    """

    report: list[float]
    entries: Numbers
    carried: Numbers = field(default_factory=dict)
    row: NDArray[Any] | None = None


Publications = dict[int, Publication]
"""By partition id."""


@dataclass(frozen=True)
class Order:
    """A round for the devices of one process.

    Attributes
    ----------
    method : str
        What they run.
    plans : dict of int to Plan
        By partition id; without weights where these are as in the round before.
    initial : dict of int to dict
        Blocks that a device starts from.
    sound : bool
        Whether all that other processes' devices have published is in range.
    """

    method: str
    plans: dict[int, Plan]
    initial: dict[int, Numbers]
    sound: bool


@dataclass(frozen=True)
class Report:
    """What comes of an order.

    Attributes
    ----------
    replies : dict of int to Reply
        By partition id; ``entries`` is None where they are as in the round before.
    sound : bool
        Whether all that its devices have published is in range.
    seconds, peak_bytes
        What it took, and the most memory that the process has had.
    abroad_bytes : int
        Of the rows that go to other machines.
    """

    replies: dict[int, Reply]
    sound: bool
    seconds: float
    peak_bytes: int
    abroad_bytes: int


MACHINE = "FLWR_DMML_MACHINE"
SAME: Mapping[str, tuple[float, ...]] = {"": ()}
"""Stands in an order for weights that are those of the round before."""


class RowsLostError(UserError):
    """What a process that has died should have left in shared memory is not there."""


class Share:
    """The devices of one process among several.

    Parameters
    ----------
    devices : HostedDevices
        Its own.
    folder : Path
        Shared memory of the processes of this machine.
    """

    def __init__(self, devices: HostedDevices, folder: Path) -> None:
        self.devices, self._folder = devices, folder / blake2b(machine().encode()).hexdigest()[:16]
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._plans: dict[int, Plan] = {}
        self._entries: dict[int, dict[str, int]] = {}
        self._abroad: frozenset[int] = frozenset()

    def begin(self, method: str) -> tuple[str, dict[int, tuple[Columns, int]]]:
        """See :meth:`.HostedDevices.begin`; also return which machine this is."""
        self._plans, self._entries = {}, {}
        return machine(), self.devices.begin(method)

    def enter(
        self,
        number: int,
        every: Sequence[Layout],
        abroad: frozenset[int] = frozenset(),
        left: Left | None = None,
    ) -> None:
        """Give the devices their rows in shared memory.

        Parameters
        ----------
        number : int
            Of this division of the devices among processes.
        every, left
            See :meth:`.HostedDevices.enter`.
        abroad : frozenset of int
            Devices on other machines: their rows come with what they publish.

        Raises
        ------
        RowsLostError
            There are no rows where ``left`` says so.
        """
        self._abroad = abroad
        for old in self._folder.glob("rows-*"):  # of a method before: whoever has it keeps it
            if not old.name.startswith(f"rows-{number}-"):
                old.unlink(missing_ok=True)

        def make(kind: int, layout: Layout) -> tuple[Tensor, Tensor]:
            names = (self._folder / f"rows-{number}-{kind}-{half}" for half in "ab")
            there = left is not None
            return _mapped(next(names), layout, there), _mapped(next(names), layout, there)

        self.devices.enter(every, make, left)

    def run(
        self, order: Order, *come: Publications
    ) -> tuple[Report, Publications, dict[str, NDArray[Any]]]:
        """Run a round.

        Parameters
        ----------
        order : Order
            What is to be done.
        *come : dict of int to Publication
            What the other processes' devices have published.

        Returns
        -------
        tuple of Report, dict and dict
            What came of it, what the other processes need of it, and what this one's devices keep.
        """
        begun, crew = time.perf_counter(), self.devices.ready(order.method)
        crew.foreign_sound = order.sound
        for publications in come:
            self._take(crew, publications)
        plans: dict[int, Plan] = {}
        for p, plan in order.plans.items():
            if plan.weights is SAME or plan.weights == SAME:
                plan = replace(plan, weights=self._plans[p].weights)
            plans[p] = plan
        self._plans = plans
        initial = {p: _record(numbers) for p, numbers in order.initial.items()}
        replies = self.devices.run(order.method, plans, initial, lambda done: None)
        told = {p: self._short(p, reply) for p, reply in replies.items()}
        training = any(plan.iterations for plan in plans.values())
        published = self._publications(crew, plans) if training else {}
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = time.perf_counter() - begun
        sent = sum(0 if x.row is None else x.row.nbytes for x in published.values())
        report = Report(told, self.devices.crew.sound, seconds, kilobytes * 1024, sent)
        return report, published, self.devices.kept()

    def _short(self, p: int, reply: Reply) -> Reply:
        """Return a reply without entries that are known."""
        if reply.entries and self._entries.get(p) is reply.entries:
            return replace(reply, entries=None)
        if reply.entries:
            self._entries[p] = reply.entries
        return reply

    def _publications(self, crew: Crew, plans: Mapping[int, Plan]) -> Publications:
        """Return what devices of other processes get."""
        found: Publications = {}
        for p in crew.published:
            others = [n for n in plans[p].recipients if n not in crew.learners]
            if others:
                found[p] = self._publication(crew, p, any(n in self._abroad for n in others))
        return found

    def _publication(self, crew: Crew, p: int, abroad: bool) -> Publication:
        row = crew.rows.published(p).numpy().copy() if abroad and crew.learners[p].plain else None
        carried = {name: value.numpy() for name, value in crew.carried.get(p, {}).items()}
        entries = {name: value.numpy() for name, value in crew.besides(p).items()}
        return Publication(crew.reports[p], entries, carried, row)

    def _take(self, crew: Crew, publications: Publications) -> None:
        """Take up what devices of other processes have published."""
        for p, publication in publications.items():
            if publication.row is not None and p in self._abroad:
                # Another process of this machine may write the same numbers there.
                crew.rows.published(p).numpy()[:] = publication.row
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*not writable")  # nobody writes there
                entries: Payload = {k: torch.from_numpy(v) for k, v in publication.entries.items()}
                carried: Payload = {k: torch.from_numpy(v) for k, v in publication.carried.items()}
            crew.hear(p, publication.report, entries, carried)

    def load(self, method: str, payloads: Mapping[int, Numbers]) -> Publications:
        """Go on from payloads of an earlier time; return what the other processes need of them."""
        self.devices.load_payloads(method, {p: _record(own) for p, own in payloads.items()})
        crew = self.devices.crew
        abroad = bool(self._abroad)
        return {p: self._publication(crew, p, abroad) for p in crew.published}

    def payloads(self) -> dict[int, Numbers]:
        """Return what the own devices have published."""
        crew = self.devices.crew
        own = [p for p in crew.published if p in crew.learners]
        return {p: {k: v.numpy() for k, v in crew.payload(p).items()} for p in own}


def machine() -> str:
    """Return what tells this machine from others: its processes share memory.

    The environment variable :data:`MACHINE` says otherwise, for a trial of several on one.
    """
    return os.environ.get(MACHINE, "") + boot_id()


def _record(numbers: Numbers) -> ArrayRecord:
    return record_of({name: NumpyArray(value) for name, value in numbers.items()})


def _mapped(path: Path, layout: Layout, there: bool) -> Tensor:
    """Return a matrix in shared memory, made by whoever asks first if it should not be ``there``.

    Raises
    ------
    RowsLostError
        It should be.
    WriteError
        There is no room for it. Without asking first, the system would kill whoever writes there.
    """
    count = len(layout.partitions) * layout.width
    if there and not (path.exists() and path.stat().st_size == 4 * count):
        raise RowsLostError(f"{path} is not there, or not whole")
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size < 4 * count:
                os.posix_fallocate(descriptor, 0, 4 * count)
        finally:
            os.close(descriptor)
    matrix = torch.from_file(str(path), shared=True, size=count)
    return matrix.view(len(layout.partitions), layout.width)
