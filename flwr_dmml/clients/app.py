"""The ClientApp of every method: keeps a learner's state in Flower's context, runs its rounds."""

from functools import lru_cache
from weakref import WeakKeyDictionary

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ..blocks import digest
from ..config import SettingsError, parse_settings
from ..data import load_partition
from ..options import Options
from ..plan import Payload
from ..settings import Settings
from ..transport.messages import (
    ABOUT,
    FLOPS_IN,
    INITIAL,
    METRICS,
    PAYLOAD,
    PLAN,
    REPORT,
    pack,
    read_inbox,
    read_plan,
    unpack,
)
from .learner import Learner
from .registry import find_methods, option_types
from .work import measure_work

STATE = "flwr-dmml.state"
_held: WeakKeyDictionary[Learner, ArrayRecord] = WeakKeyDictionary()
"""The state that a learner of this process has been left with: it is not loaded again."""
LEARNERS = 4096
"""Learners that a process keeps: a worker of the sharded engine hosts a thousand devices."""
RunConfig = tuple[tuple[str, object], ...]
"""A run config that can be a cache key."""


def make_client_app(*learners: type[Learner]) -> ClientApp:
    """Return a ClientApp that trains with whatever method the server names.

    Parameters
    ----------
    *learners : type[Learner]
        Methods of your own, besides the registered ones. Give the same to ``make_server_app``.

    Examples
    --------
    >>> app = make_client_app()  # in client_app.py
    """
    app = ClientApp()  # its functions travel to other processes: they only call those below

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        return _hello(message, context, learners)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _round(message, context, learners)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _round(message, context, learners)

    return app


def _hello(message: Message, context: Context, learners: tuple[type[Learner], ...]) -> Message:
    """Start afresh, and say who this device is and what its work costs."""
    learner = _learner_for(message, context, learners)
    _held.pop(learner, None)
    work = measure_work(learner)
    learner.reset()
    context.state = RecordDict()
    lengths = learner.block_lengths()
    about = ConfigRecord(
        {
            "partition-id": learner.partition.partition_id,
            "modalities": list(learner.partition.modalities),
            "block-names": list(lengths),
            "block-lengths": list(lengths.values()),
            "block-digests": [digest(module) for module in learner.blocks().values()],
            "num-train": len(learner.train_data),
            "flops-joint": work.joint,
            "flops-solo": list(work.solo.values()),
            "flops-per-round": work.per_round,
            **{FLOPS_IN + phase: flops for phase, flops in work.in_phase.items()},
        }
    )
    return Message(RecordDict({ABOUT: about}), reply_to=message)


def _round(message: Message, context: Context, learners: tuple[type[Learner], ...]) -> Message:
    """Take up the state, run the round, put the state back."""
    learner = _learner_for(message, context, learners)
    torch.set_num_threads(learner.settings.torch_threads)
    held = _held.pop(learner, None)  # a round that fails leaves a learner that holds no known state
    if STATE not in context.state.array_records:
        learner.reset()
    elif not _is(context.state.array_records[STATE], held):
        learner.load_state(unpack(context.state.array_records[STATE]))
    if INITIAL in message.content.array_records:
        learner.load_state(unpack(message.content.array_records[INITIAL]))

    plan = read_plan(message.content.config_records[PLAN])
    outcome = learner.run_round(plan, read_inbox(message.content))

    state = learner.state()
    context.state[STATE] = _held[learner] = pack(_shared(state, outcome.payload))
    reply = RecordDict({METRICS: MetricRecord(dict(outcome.metrics))})
    if outcome.payload:
        reply[PAYLOAD] = pack(outcome.payload)
    if outcome.rejected:
        reply[REPORT] = ConfigRecord({"rejected": outcome.rejected})
    return Message(reply, reply_to=message)


def _is(record: ArrayRecord, held: ArrayRecord | None) -> bool:
    """Return whether these are the very arrays of the state that a learner still holds."""
    if held is None or record.keys() != held.keys():
        return False
    return all(array is held[name] for name, array in record.items())


def _shared(state: Payload, payload: Payload) -> Payload:
    """Return a state that shares with the payload what is equal, for one copy of it to be kept."""
    return {
        name: payload[name] if name in payload and torch.equal(value, payload[name]) else value
        for name, value in state.items()
    }


def _learner_for(
    message: Message, context: Context, learners: tuple[type[Learner], ...]
) -> Learner:
    """Return this node's learner for the method that the server is running."""
    run_config = tuple(sorted(context.run_config.items()))
    _, settings, _ = _configure(run_config, learners)
    method = str(message.content.config_records[PLAN]["method"])
    return _build_learner(method, run_config, learners, _partition_id(context, settings))


@lru_cache(maxsize=8)
def _configure(
    run_config: RunConfig, learners: tuple[type[Learner], ...]
) -> tuple[dict[str, type[Learner]], Settings, dict[str, Options]]:
    """Find the methods and validate the run config, once per process."""
    methods = find_methods(learners)
    return methods, *parse_settings(dict(run_config), option_types(methods), side="device")


@lru_cache(maxsize=LEARNERS)
def _build_learner(
    method: str, run_config: RunConfig, learners: tuple[type[Learner], ...], partition_id: int
) -> Learner:
    """Build a learner once per process; its state is loaded anew for every message."""
    methods, settings, options = _configure(run_config, learners)
    partition = load_partition(settings.partition_options(), partition_id)
    return methods[method](partition, settings, options[method])


def _partition_id(context: Context, settings: Settings) -> int:
    """Return which part of the data this node holds, from its node config.

    Raises
    ------
    SettingsError
        The node config has no partition id, or does not fit ``num-nodes``.
    """
    partition_id = context.node_config.get("partition-id")
    expected = context.node_config.get("num-partitions", settings.num_nodes)
    if not isinstance(partition_id, int) or not 0 <= partition_id < settings.num_nodes:
        raise SettingsError(
            f"node config partition-id = {partition_id!r}: must be a whole number from 0 to "
            f"{settings.num_nodes - 1} (num-nodes = {settings.num_nodes} in the run config)"
        )
    if expected != settings.num_nodes:
        raise SettingsError(
            f"num-nodes = {settings.num_nodes} in the run config, but there are {expected} nodes: "
            "make them equal (num-supernodes of the simulation, or num-nodes)"
        )
    return partition_id
