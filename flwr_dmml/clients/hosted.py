"""Rounds of all devices that a process simulates, without a message for each."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from flwr.app import ArrayRecord, RecordDict
from flwr.app.user_config import UserConfig
from numpy.typing import NDArray
from torch import Tensor

from ..base.errors import UserError
from ..base.heap import keep_freed_memory
from ..base.overrides import with_overrides
from ..learning.crew import Crew
from ..learning.devices import resolve_device
from ..learning.learner import Learner, method_stacks, overrides
from ..learning.rows import Columns, Layout, MakeMatrix, layout_of
from ..methods.registry import find_methods
from ..payload.blocks import is_carried
from ..payload.plan import Outcome, Payload, Plan
from ..settings import OwnParts
from ..transport.arrays import TensorArray
from ..transport.messages import SIMULATED, STATE, pack, unpack
from .hosting import learner_with
from .metering import metered_alone
from .models import Models, models_of
from .state import confusion_of, hold, take_up

PUBLISHED = "published/"


class Node(Protocol):
    """A simulated node."""

    config: UserConfig
    state: RecordDict

    @property
    def partition_id(self) -> int:
        """The partition that it was given."""


@dataclass
class Reply:
    """What a device gives back after a round.

    Attributes
    ----------
    metrics : dict of str to float
        See :class:`~flwr_dmml.payload.plan.Outcome`.
    rejected : list of str
        What was wrong with neighbours' payloads.
    entries : dict of str to int
        Bytes of what it has published, by name in the payload; the same object as in the round
        before, where they are the same; None where it is known elsewhere.
    confusion : list of int
        After the closing message, see :func:`~.state.confusion_of`.
    models : dict of str to ModelFiles
        Those that it hands over, see :func:`~.models.models_of`.
    error : str
        Why it failed; empty if it did not.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)
    entries: dict[str, int] | None = field(default_factory=dict)
    confusion: list[int] = field(default_factory=list)
    models: Models = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Left:
    """What a process that has died has left of its devices, besides their rows.

    Attributes
    ----------
    rounds : int
        That they had done: it says which of two matrices holds their rows.
    kept : dict of str to NDArray
        See :meth:`HostedDevices.kept`.
    closed : bool
        Whether nothing was published in the last of these rounds.
    settled : collection of int
        Devices that have answered a message since: what their nodes keep is newer.
    """

    rounds: int
    kept: dict[str, NDArray[Any]]
    closed: bool
    settled: Collection[int] = ()


class HostedDevices:
    """The devices of a process, for one method at a time.

    Parameters
    ----------
    own : OwnParts
        Parts of the app's own.
    nodes : callable
        Returns the nodes. What they keep is read when a method begins or is restored, and written
        by :meth:`settle`.
    run_config : mapping
        The run config that every node sees.
    """

    def __init__(
        self,
        own: OwnParts,
        nodes: Callable[[], Iterable[Node]],
        run_config: Mapping[str, object],
    ) -> None:
        self._own, self._nodes, self._config = own, nodes, dict(run_config)
        self._method = ""
        self._learners: dict[int, Learner] = {}
        self._rows: tuple[Sequence[Layout] | None, MakeMatrix | None] = (None, None)
        self._crew: Crew | None = None
        self._entries: dict[int, dict[str, int]] = {}
        self._ahead = False  # of what the nodes keep
        self._current = False  # with what they keep, or further

    def takes(self, method: str) -> bool:
        """Return whether a method stacks, and nothing asks for devices one by one.

        A method with a ``run_round`` of its own is asked for it.
        """
        kind = find_methods(self._own.learners).get(method)
        if kind is None or overrides(kind, ("run_round",)) or not method_stacks(kind):
            return False
        one_by_one = self._config.get("exact") is True or metered_alone(self._config)
        return not one_by_one and all(node.config.get(SIMULATED) for node in self._nodes())

    def on_cpu(self) -> bool:
        """Return whether all compute on the CPU, as their ``device`` says."""
        usual = with_overrides(self._config).get("device", "auto")
        names = {str(node.config.get("device", usual)) for node in self._nodes()}
        found = [resolve_device(x) if x == "auto" else torch.device(x) for x in names]
        return all(device.type == "cpu" for device in found)

    def run(
        self,
        method: str,
        plans: Mapping[int, Plan],
        initial: Mapping[int, ArrayRecord],
        told: Callable[[int], None],
    ) -> dict[int, Reply]:
        """Run a round of the devices that have a plan.

        Parameters
        ----------
        method : str
            What they run.
        plans : mapping of int to Plan
            By partition id.
        initial : mapping of int to ArrayRecord
            Blocks that a device starts from, by partition id.
        told : callable
            Called with the number of devices that have just been done.
        """
        crew = self.ready(method)
        for p, record in initial.items():
            crew.learners[p].load_state(unpack(record))
        self._ahead = True
        results = crew.run(plans, told)
        return {p: self._reply(p, plans[p], result) for p, result in results.items()}

    def begin(self, method: str) -> dict[int, tuple[Columns, int]]:
        """Take up the devices' states for a method; return how their rows are laid out."""
        self.settle()
        self._crew, self._method, self._entries = None, method, {}
        for learner in self._learners.values():  # they are cached, and would keep all rows
            learner.flat.move_out()
        self._learners = {}
        for node in self._nodes():
            try:
                learner = learner_with(method, self._config, node.config, self._own)
            except UserError:
                continue  # it has said so when it was greeted, and takes no part
            self._learners[learner.partition.partition_id] = learner
        self._take_up()
        return {p: layout_of(learner) for p, learner in self._learners.items()}

    def enter(
        self,
        every: Sequence[Layout] | None = None,
        make: MakeMatrix | None = None,
        left: Left | None = None,
    ) -> Crew:
        """Give the devices their rows: among those of other processes, or alone.

        ``left`` is what a process that has died has left of them.
        """
        self._rows = every, make
        kept: dict[int, Payload] = {}
        if left is not None:
            for key, numbers in left.kept.items():
                partition, _, name = key.partition("/")
                kept.setdefault(int(partition), {})[name] = torch.from_numpy(numbers.copy())
        before = None if left is None else (left.rounds, left.closed)
        self._crew = Crew(self._learners, every, make, before)
        for p, learner in self._learners.items() if left is not None else ():
            own = kept.get(p, dict[str, Tensor]())
            learner.load_state({k: x for k, x in own.items() if not k.startswith(PUBLISHED)})
            told = {k.removeprefix(PUBLISHED): x for k, x in own.items() if k.startswith(PUBLISHED)}
            carried = {k: x for k, x in told.items() if is_carried(k)}
            entries = {k: x for k, x in told.items() if k not in carried}
            self._crew.hear(p, learner.report(), entries, carried)
        self._ahead = left is not None
        if left is not None and left.settled:
            self.settle(left.settled)
        keep_freed_memory()
        return self._crew

    def ready(self, method: str) -> Crew:
        """Return the devices in the state that their nodes keep, or further."""
        if method != self._method:
            self.begin(method)
        if self._crew is None:
            return self.enter()
        if not self._current:
            self._take_up()
            if not self._crew.stands():
                return self.enter(*self._rows)
            self._crew.rows.measure()
        return self._crew

    def _take_up(self) -> None:
        states = {node.partition_id: node.state for node in self._nodes()}
        for p, learner in self._learners.items():
            take_up(learner, states[p])
        self._current = True

    @property
    def crew(self) -> Crew:
        """The devices; there is a method."""
        assert self._crew is not None
        return self._crew

    def kept(self) -> dict[str, NDArray[Any]]:
        """Return what the devices keep besides their rows, ``<partition id>/<name>``.

        And what else they have published, after :data:`PUBLISHED`.
        """
        found: dict[str, NDArray[Any]] = {}
        for p, learner in self._learners.items():
            told = self.crew.besides(p) | self.crew.carried.get(p, {})
            every = learner.kept_state() | {PUBLISHED + k: x for k, x in told.items()}
            found |= {f"{p}/{name}": value.numpy() for name, value in every.items()}
        return found

    def _reply(self, p: int, plan: Plan, result: Outcome | Exception) -> Reply:
        if isinstance(result, Exception):
            return Reply(error=f"{type(result)}:<'{result}'>")
        assert self._crew is not None
        learner = self._crew.learners[p]
        reply = Reply(result.metrics, result.rejected)
        if plan.iterations:
            known = self._entries.get(p)
            carries = self._crew.carried.get(p, {})
            same = known is not None and carries.keys() == {k for k in known if is_carried(k)}
            if result.payload or not same or plan.merges:
                found = bytes_of((result.payload or self._crew.payload(p)) | carries)
                self._entries[p] = known if known == found and known is not None else found
            reply.entries = self._entries[p]
        elif plan.evaluate:
            reply.confusion = confusion_of(learner)
        if plan.hand_over:
            reply.models = models_of(learner, plan)
        return reply

    def settle(self, besides: Collection[int] = ()) -> None:
        """Write into the nodes' states what the devices keep, before a message asks for it.

        Those ``besides`` have it there already.
        """
        self._current = False  # a message may restore them
        if self._crew is None or not self._ahead:
            return
        for node in self._nodes():
            learner = self._crew.learners.get(node.partition_id)
            if learner is not None and node.partition_id not in besides:
                kept = pack(learner.state())
                node.state[STATE] = kept
                hold(learner, kept)
        self._ahead = False

    def payloads(self) -> dict[int, ArrayRecord]:
        """Return what the devices published in the last round, by partition id.

        Nothing is copied: it must be read before the next round.
        """
        crew = self._crew
        return {p: pack(crew.payload(p)) for p in crew.published} if crew else {}

    def load_payloads(self, method: str, payloads: Mapping[int, ArrayRecord]) -> None:
        """Go on from payloads of an earlier time, when the nodes' states have been restored."""
        self.ready(method).load({p: unpack(record) for p, record in payloads.items()})


def bytes_of(payload: Payload) -> dict[str, int]:
    """Return what each entry of a payload takes as serialised."""
    return {name: _bytes(tensor) for name, tensor in payload.items()}


def _bytes(tensor: Tensor) -> int:
    return TensorArray(tensor).serialised_bytes
