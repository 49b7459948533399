"""The learners that a process hosts: each built once, for the method that the server names."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Context, Message

from ..base.errors import SettingsError, UserError
from ..base.overrides import with_overrides
from ..data import DataError, load_partition, load_public, load_source
from ..data.partition import divide
from ..data.sets.parts import PARTS, read_about
from ..learning.learner import Learner
from ..settings import OwnParts, RunConfig, Settings, find_parts, parse_settings
from ..transport.messages import PARTITION, PLAN

LEARNERS = 4096
"""Learners that a process keeps: a worker of the sharded engine hosts a thousand devices."""
OF_A_NODE = ("data-path", "data-cache", "device", "encoder-weights", "torch-threads")
"""Settings that a node config may set for its own device."""
RunConfigItems = tuple[tuple[str, object], ...]
"""A run config that can be a cache key."""


def learner_for(message: Message, context: Context, own_parts: OwnParts) -> Learner:
    """Return this node's learner for the method that the server is running.

    It is built once in a process; its state is that of whoever used it last.

    Raises
    ------
    DataError
        Its data are missing, damaged, or another device's.
    LibraryError
        A library that they need is missing or does not load.
    SettingsError
        Its node config, or the run config, cannot work. All begin with the partition id, where the
        node config has one: Flower's id of a node says little.
    """
    method = str(message.content.config_records[PLAN]["method"])
    return learner_with(method, context.run_config, context.node_config, own_parts)


def learner_with(
    method: str,
    run_config: Mapping[str, object],
    node_config: Mapping[str, object],
    own_parts: OwnParts,
) -> Learner:
    """Return the learner of a node with these configs, see :func:`learner_for`."""
    own = {key: node_config[key] for key in OF_A_NODE if key in node_config}
    try:
        items = tuple(sorted({**with_overrides(run_config), **own}.items()))
        settings = _configure(items, own_parts).settings
        return _build_learner(method, items, own_parts, _partition_id(node_config, settings))
    except UserError as error:
        raise type(error)(of_partition(node_config) + str(error)) from error
    except OSError as error:
        raise DataError(f"{of_partition(node_config)}the data cannot be read: {error}") from error


def of_partition(node_config: Mapping[str, object]) -> str:
    """Return what an error of a device begins with: its partition id, where that is known."""
    partition_id = node_config.get("partition-id")
    return f"{PARTITION} {partition_id}: " if isinstance(partition_id, int) else ""


@lru_cache(maxsize=64)
def _configure(run_config: RunConfigItems, own_parts: OwnParts) -> RunConfig:
    """Find all parts and validate the run config, once per process."""
    return parse_settings(dict(run_config), find_parts(own_parts), side="device")


@lru_cache(maxsize=LEARNERS)
def _build_learner(
    method: str, run_config: RunConfigItems, own_parts: OwnParts, partition_id: int
) -> Learner:
    """Build a learner once per process; its state is loaded anew for every message."""
    config = _configure(run_config, own_parts)
    torch.set_num_threads(config.settings.torch_threads)
    partition = load_partition(config.settings.partition_options(), partition_id)
    return config.learner(method, partition)


def forget() -> None:
    """Forget what this process keeps of earlier runs: their data may have changed since."""
    for kept in (_build_learner, _configure, load_public, divide, load_source):
        kept.cache_clear()


def _partition_id(node_config: Mapping[str, object], settings: Settings) -> int:
    """Return which part of the data this node holds, from its node config or the part itself.

    Raises
    ------
    DataError
        There is no partition id, and the data path is not a part.
    SettingsError
        The node config has no partition id, or does not fit ``num-nodes``.
    """
    partition_id = node_config.get("partition-id")
    if partition_id is None and settings.dataset == PARTS.name:
        partition_id = read_about(Path(settings.data_folder)).part
    expected = node_config.get("num-partitions", settings.num_nodes)
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
