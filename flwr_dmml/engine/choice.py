"""Choice of how many processes a simulation is spread over, before anything is loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from typing import Any

from ..base.libraries import LibraryError, require
from ..base.machine import cores
from ..base.overrides import with_overrides

SMALL_S = 120.0
"""Seconds of training on one core up to which all devices run in one process: Ray takes about five
to start, each worker loads torch, data and models anew, and every round waits for the slowest."""
BATCH_S = {"resnet20": 0.15, "resnet18": 0.2, "gru": 0.06}
"""Seconds that one core takes for a mini-batch of 32 in an encoder, with all that goes with it.

Orders of magnitude, measured on one x86 core (this project)."""
SMALL_BATCH_S = 0.004
"""... in any other encoder."""
DEFAULTS = {"num-nodes": 12, "num-server-rounds": 30, "local-iterations": 20, "batch-size": 32}
"""Defaults of the settings that decide, which are those of ``flwr_dmml.settings`` (a test)."""
ENCODERS = ("image-encoder", "audio-encoder", "series-encoder", "vector-encoder")


@dataclass(frozen=True)
class Choice:
    """A number of worker processes, and the reason; no reason where the user's settings say it.

    0 workers: all devices run in this process.
    """

    workers: int
    reason: str = ""


def choose(asked: int | None, config: Mapping[str, Any], *, cores: int, ray: bool) -> Choice:
    """Return how many worker processes to start.

    What is asked for counts, then the setting ``workers``. With a Ray cluster or ``engine =
    "sharded"`` there is one a core. Else devices share this process where the run is small, and
    otherwise the cores.

    Parameters
    ----------
    asked : int, optional
        The option ``--workers``.
    config : mapping
        The run config; what is no valid setting counts as its default.
    cores : int
        Cores that this process may use.
    ray : bool
        Whether Ray is installed.
    """
    if asked is not None:
        return Choice(asked)
    config = with_overrides(config)
    written = config.get("workers", "auto")
    if isinstance(written, int) and written > 0:
        return Choice(written)
    if config.get("ray-address") or config.get("engine") == "sharded":
        return Choice(cores)
    if written == 0:
        return Choice(0)
    if cores == 1:
        return Choice(0, "there is one core")
    if not ray:
        return Choice(0, "Ray is not installed")
    seconds = training_s(config)
    reason = f"about {_rounded(seconds)} of training on one core"
    return Choice(0 if seconds <= SMALL_S else min(cores, devices(config)), reason)


def processes(asked: int | None, config: Mapping[str, Any], warn: Callable[[str], None]) -> Choice:
    """Return how many worker processes to start on this machine, see :func:`choose`.

    None where Ray does not load and nobody asked for them: ``warn`` is told.
    """
    chosen = choose(asked, config, cores=cores(), ray=find_spec("ray") is not None)
    if not chosen.workers or not chosen.reason:
        return chosen
    try:
        require("ray")
    except LibraryError as error:
        warn(f"all devices run in this process: {error}")
        return Choice(0)
    return chosen


def devices(config: Mapping[str, Any]) -> int:
    """Return how many devices a run config simulates."""
    config = with_overrides(config)
    return _whole(config, "num-nodes")


def training_s(config: Mapping[str, Any]) -> float:
    """Return about how many seconds of one core the training of a run takes, before data are read.

    Devices x rounds x iterations x seconds of a mini-batch, in the heaviest encoder that is named;
    twice, where another method runs before.
    """
    batch_s = max(BATCH_S.get(str(config.get(key)), SMALL_BATCH_S) for key in ENCODERS)
    mini_batches = devices(config)
    mini_batches *= _whole(config, "num-server-rounds") * _whole(config, "local-iterations")
    methods = 2 if config.get("compare-with") else 1
    return methods * mini_batches * batch_s * max(_whole(config, "batch-size") / 32, 0.25)


def _whole(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key, DEFAULTS[key])
    valid = isinstance(value, int) and value > 0
    return value if valid else DEFAULTS[key]


def _rounded(seconds: float) -> str:
    return f"{max(seconds, 1):.0f} s" if seconds <= SMALL_S else f"{ceil(seconds / 60)} min"
