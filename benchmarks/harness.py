"""Run arms (settings) over seeds in parallel processes, tabulate, write JSON, judge bars."""

import logging
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from rich.console import Console
from rich.progress import Progress

from flwr_dmml.clients import make_client_app
from flwr_dmml.data import load_partition
from flwr_dmml.deploy.model import load_model
from flwr_dmml.engine import FlowerApp, run_app
from flwr_dmml.learning.dropped import RATES, accuracy_by_rate, area
from flwr_dmml.methods.staged import Staged
from flwr_dmml.methods.teaching import share_right
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.strategies import make_server_app
from flwr_dmml.tracking import RoundRecord
from flwr_dmml.transport.messages import STATE, unpack

Settings = Mapping[str, Any]
Result = dict[str, Any]
"""A last RoundRecord's JSON, and what :func:`run_arm` adds of the run as a whole."""
Runs = Mapping[tuple[str, str], Mapping[int, Result]]
"""(scenario, arm) -> seed -> result."""
CONSOLE = Console(width=None if sys.stdout.isatty() else 150)


@dataclass(frozen=True)
class Bar:
    """What ``method`` must gain over ``baseline`` in a scenario: points for each measure.

    ``read`` is the baseline's measure, where it is another one.
    """

    method: str
    baseline: str
    points: Mapping[str, float]
    scenario: str = ""
    read: str = ""


@dataclass(frozen=True)
class Limit:
    """What a measure of an arm must not fall below, or not exceed, as the mean over seeds."""

    arm: str
    measure: str
    at_least: float = -inf
    at_most: float = inf
    scenario: str = ""


@dataclass(frozen=True)
class Case:
    """A comparison: every arm in every scenario, what to show and what to judge.

    ``data`` is the data set by default, ``full`` are scenarios for who has more time, and
    ``only`` names the arms of scenarios that are not for all of them. ``ahead`` is an arm whose
    differences to all others are shown, seed by seed.
    """

    arms: Mapping[str, Settings]
    bars: Sequence[Bar]
    measures: Sequence[str]
    scenarios: Mapping[str, Settings] = field(default_factory=lambda: {"": {}})
    full: Mapping[str, Settings] = field(default_factory=dict)
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    limits: Sequence[Limit] = ()
    data: str = "av-digits"
    ahead: str = ""


class _Devices:
    """A ClientApp that keeps each device's last state here."""

    def __init__(self, app: ClientApp) -> None:
        self._app = app
        self.states: dict[int, RecordDict] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        reply = self._app(message, context)
        self.states[int(context.node_config["partition-id"])] = context.state
        return reply


class _History:
    """A tracker that keeps every round."""

    def run_started(self, method: str, num_rounds: int, node_modalities: Sequence[str]) -> None:
        self.records: list[RoundRecord] = []

    def round_ended(self, record: RoundRecord) -> None:
        self.records.append(record)


OF_MODELS = {**{f"dropped {rate:g}": f"{rate:g}" for rate in RATES}, "area": "area"}
"""Measures that :func:`run_arm` takes from the models that devices keep; their keys in it."""
OF_STATES = {"averaged model", "audio, image zeroed"}
"""Measures that :func:`run_arm` takes from the devices' states."""


class FailedDevicesError(RuntimeError):
    """Devices have failed, or have diverged."""


def made(settings: Settings) -> dict[str, Any]:
    """Return settings with the values of those that have to be made first, such as data."""
    return {key: value() if callable(value) else value for key, value in settings.items()}


def run_arm(settings: Settings, *, states: bool = False, models: bool = False) -> Result:
    """Run one arm on the in-process engine and return its result.

    With ``states`` devices get messages, as on Flower's own engine, so that their states can be
    read at the end: the same numbers, in up to twice the time. With ``models`` the models that
    devices keep are tested with modalities missing.
    """
    if settings["method"] == "pooled":
        from pooled import run_pooled

        return run_pooled(settings)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    client_app, history = make_client_app(), _History()
    devices = _Devices(client_app) if states else None
    app = FlowerApp({}, make_server_app(), devices or client_app)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        given = {**settings, "run-dir": folder}
        run_app(app, settings["num-nodes"], given, trackers=[history])
        by_rate = dropped(settings, Path(folder)) if models else {}
    result = history.records[-1].to_json()
    if result["failed"] or len(result["nodes"]) != settings["num-nodes"]:
        raise FailedDevicesError(f"the figures would be of the survivors: {result['failed']}")
    if models:
        result["dropped"] = by_rate
    result["updates"] = {
        m: sum(n.updates.get(m, 0) for r in history.records for n in r.nodes)
        for m in result["accuracy_by_modality"]
    }
    balances = [r.balance for r in history.records if r.balance is not None]
    result["mean_balance"] = fmean(balances) if balances else 1.0
    if devices:
        result["averaged_accuracy"] = averaged_accuracy(settings, devices.states)
        result["fused_alone"] = fused_alone(settings, devices.states)
    names = dict.fromkeys(name for r in history.records for name in r.labels)
    result["labels"] = {
        name: [r.labels[name] for r in history.records if name in r.labels] for name in names
    }
    labels = sum(r.label_bytes_sent for r in history.records)
    models = sum(r.bytes_sent - r.label_bytes_sent for r in history.records)
    result["bytes_a_round"] = fmean(r.bytes_sent for r in history.records)
    if labels:
        result["label_share"] = labels / models
    return result


def averaged_accuracy(settings: Settings, states: Mapping[int, RecordDict]) -> float:
    """Return the accuracy of the model averaged block by block over its owners.

    No device ever holds it. Mean over devices, each with the modalities it owns.
    """
    config = parse_settings(settings, find_parts())
    parsed, of_set = config.settings, dict[tuple[str, ...], float]()
    blocks = {k: unpack(state.array_records[STATE]) for k, state in states.items()}
    accuracies: list[float] = []
    for k in sorted(states):
        partition = load_partition(parsed.partition_options(), k)
        if partition.modalities not in of_set:
            learner = config.learner(parsed.method, partition)
            learner.load_state(
                {
                    name: torch.stack([b[name] for b in blocks.values() if name in b]).mean(dim=0)
                    for name in learner.blocks()
                }
            )
            of_set[partition.modalities] = learner.evaluate()["test.accuracy"]
        accuracies.append(of_set[partition.modalities])
    return fmean(accuracies)


def fused_alone(settings: Settings, states: Mapping[int, RecordDict]) -> dict[str, float]:
    """Return the accuracy of fusion networks that see one modality, the others' features zero.

    Mean over the devices that have one, by modality; empty where the method has none. The methods
    themselves read a modality alone by its own network, which is better.
    """
    config = parse_settings(settings, find_parts())
    parsed = config.settings
    found: dict[str, list[float]] = {}
    method = config.parts.methods[parsed.method]
    for k, state in states.items() if issubclass(method, Staged) else ():
        partition = load_partition(parsed.partition_options(), k)
        if len(partition.modalities) == 1:
            continue
        learner = config.learner(parsed.method, partition)
        learner.load_state(unpack(state.array_records[STATE]))
        learner.model.eval()
        for m in partition.modalities:
            share = share_right(learner.model.fused, learner.test_data.restrict([m]))
            found.setdefault(m, []).append(share)
    return {m: fmean(shares) for m, shares in found.items()}


def dropped(settings: Settings, folder: Path) -> dict[str, float]:
    """Return the accuracy by the rate at which each modality is missing, and the area under it.

    Means over the devices with several modalities, by the models that they keep in a run folder.
    """
    options = parse_settings(settings, find_parts()).settings.partition_options()
    each: list[dict[float, float]] = []
    for file in sorted(folder.glob("*/*/models/device-???.json")):
        model = load_model(file)
        if len(model.modalities) > 1:
            partition = load_partition(options, model.about.device)
            each.append(accuracy_by_rate(model.scores, partition, options.seed))
    if not each:
        return {}
    by_rate = {rate: fmean(found[rate] for found in each) for rate in RATES}
    return {f"{rate:g}": share for rate, share in by_rate.items()} | {"area": area(by_rate)}


def run_all(
    arms: Mapping[tuple[str, str], Settings],
    seeds: Sequence[int],
    workers: int,
    *,
    states: bool = False,
    models: bool = False,
) -> dict[tuple[str, str], dict[int, Result]]:
    """Run every arm with every seed, ``workers`` at a time, each in a process of its own."""
    results: dict[tuple[str, str], dict[int, Result]] = {name: {} for name in arms}
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, mp_context=context) as pool,
        Progress(console=CONSOLE) as progress,
    ):
        task = progress.add_task("runs", total=len(arms) * len(seeds))
        jobs = {
            pool.submit(run_arm, {**settings, "seed": seed}, states=states, models=models): (
                name,
                seed,
            )
            for seed in seeds
            for name, settings in arms.items()
        }
        for job in as_completed(jobs):
            name, seed = jobs[job]
            results[name][seed] = job.result()
            progress.advance(task)
            shown = " | ".join(part for part in name if part)
            line = f"{shown}, seed {seed}: {job.result()['accuracy']:.3f}"
            progress.console.print(line, highlight=False)
    return results


def data_folder() -> str:
    """Return ``$FLWR_DMML_DATA``.

    Raises
    ------
    SystemExit
        The variable is not set.
    """
    folder = os.environ.get("FLWR_DMML_DATA", "")
    if not folder:
        raise SystemExit("set FLWR_DMML_DATA to the folder that holds mnist/ and fsdd/")
    return str(Path(folder).resolve())
