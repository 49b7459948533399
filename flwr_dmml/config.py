"""Every setting of a run, typed and validated once, before any work starts.

A run config is what Flower gives an app: a flat mapping from kebab-case keys to numbers, strings
and booleans. The settings below are common to all methods; a method's own options carry its name
as a prefix (``dmml-kd.generator``).
"""

import difflib
from collections.abc import Mapping
from math import cos, pi
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .data import DataError, LoadOptions, PartitionOptions, assign_modalities, find_dataset
from .topology import Topology, TopologyError, make_topology


class SettingsError(ValueError):
    """A run config that cannot work: names each key, its value and what is allowed."""


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Options(BaseModel):
    """Base of everything read from a run config: kebab-case keys, strict types, frozen."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=_kebab,
        populate_by_name=True,
    )


OptionsT = TypeVar("OptionsT", bound=Options)


class Settings(Options):
    """The settings that every method shares."""

    method: str = Field("dmml-kd", description="method to train with (see --list-methods)")
    compare_with: str = Field(
        "", description="run this method first, on the same devices, data and seed, and compare"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of everything random in the run")

    num_nodes: int = Field(12, ge=1, description="devices to wait for before round 1")
    num_server_rounds: int = Field(30, ge=1, description="rounds of mix, train and publish")
    local_iterations: int = Field(20, ge=1, description="mini-batches a device trains a round")
    stagger: float = Field(
        0.0, ge=0, le=1, description="share of joint iterations split into solo ones"
    )
    speed_metric: Literal["conditional", "relative", "cumulative", "cosine", "path"] = Field(
        "conditional", description="how the training speed of a modality is measured"
    )
    evaluate_every: int = Field(5, ge=1, description="evaluate every so many rounds and at the end")
    wait_timeout: float = Field(60.0, gt=0, description="seconds to wait for the devices at start")
    round_timeout: float = Field(600.0, gt=0, description="seconds to wait for a round's replies")

    topology: str = Field("ring", description="graph family, or 'edge-list' with topology-file")
    topology_degree: int = Field(4, ge=1, description="degree (random-regular, watts-strogatz)")
    topology_probability: float = Field(
        0.3, ge=0, le=1, description="edge or rewiring probability (erdos-renyi, watts-strogatz)"
    )
    topology_side_m: float = Field(
        100.0, gt=0, description="side of the square that devices stand in, m (geometric)"
    )
    topology_range_m: float = Field(
        50.0, gt=0, description="devices this near are linked, m (geometric)"
    )
    topology_file: str = Field("", description="file with one edge 'i j' a line (edge-list)")

    dataset: str = Field("digits", description="data set: digits, av-digits, or one of your own")
    data_path: str = Field("", description="folder of the data set, where it needs one")
    snr_db: float = Field(0.0, ge=-40, le=80, description="signal-to-noise ratio of the audio, dB")
    partition: Literal["dirichlet", "iid", "natural"] = Field(
        "dirichlet", description="how samples are dealt to devices"
    )
    alpha: float = Field(0.3, gt=0, description="Dirichlet concentration: small is more non-IID")
    samples_per_node: int = Field(0, ge=0, description="samples of a device; 0 shares out all")
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of a device's samples held out for its validation"
    )
    modality_pattern: str = Field(
        "audio,image,audio+image", description="sensors of devices 0, 1, 2, ..., cycled"
    )
    modality_shares: str = Field(
        "", description="instead of a pattern: 'audio=0.5,image=0.2,audio+image=0.3'"
    )

    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="local optimiser")
    learning_rate: float = Field(0.05, gt=0, description="learning rate of round 1")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum (sgd)")
    weight_decay: float = Field(0.0, ge=0, description="weight decay")
    clip_norm: float = Field(5.0, ge=0, description="clip the gradient norm to this; 0 does not")
    lr_schedule: Literal["constant", "cosine", "step"] = Field(
        "constant", description="over rounds: constant, cosine to 0, or x0.1 at 80 %"
    )
    batch_size: int = Field(32, ge=1, description="samples of a mini-batch")

    common_dim: int = Field(32, ge=1, description="length of the modality-common features")
    specific_dim: int = Field(32, ge=1, description="length of the modality-specific features")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto (a GPU when there is one), cpu, cuda, cuda:1",
    )
    torch_threads: int = Field(1, ge=1, description="torch threads of a device's training")

    run_dir: str = Field("runs", description="folder of the run folders")
    run_name: str = Field(
        "",
        pattern=r"^([\w-][\w.-]*)?$",
        description="name of this run's folder; empty takes date and method",
    )

    def make_topology(self) -> Topology:
        """Return the graph family that the settings name.

        Raises
        ------
        TopologyError
            Unknown family or impossible parameters.
        """
        return make_topology(
            self.topology,
            degree=self.topology_degree,
            probability=self.topology_probability,
            path=str(Path(self.topology_file).expanduser()) if self.topology_file else "",
            side_m=self.topology_side_m,
            range_m=self.topology_range_m,
        )

    @property
    def _data_folder(self) -> str:
        return str(Path(self.data_path).expanduser()) if self.data_path else ""

    def partition_options(self) -> PartitionOptions:
        """Return what the data layer needs to make any device's part of the data."""
        return PartitionOptions(
            dataset=self.dataset,
            load=LoadOptions(path=self._data_folder, snr_db=self.snr_db, seed=self.seed),
            num_nodes=self.num_nodes,
            scheme=self.partition,
            alpha=self.alpha,
            samples_per_node=self.samples_per_node,
            validation_fraction=self.validation_fraction,
            modality_pattern="" if self.modality_shares else self.modality_pattern,
            modality_shares=self.modality_shares,
            seed=self.seed,
        )

    def learning_rate_at(self, server_round: int, num_rounds: int = 0) -> float:
        """Return the learning rate of a round (1-based) under ``lr-schedule``.

        ``num_rounds`` is that of the run; 0 takes ``num-server-rounds``.
        """
        done = (server_round - 1) / (num_rounds or self.num_server_rounds)  # in [0, 1)
        if self.lr_schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + cos(pi * done))
        if self.lr_schedule == "step" and done >= 0.8:
            return self.learning_rate * 0.1
        return self.learning_rate


def parse_settings(
    run_config: Mapping[str, Any],
    methods: Mapping[str, type[Options]],
    *,
    side: Literal["both", "coordinator", "device"] = "both",
) -> tuple[Settings, dict[str, Options]]:
    """Validate a whole run config.

    Parameters
    ----------
    run_config : mapping
        Kebab-case keys to values. A key ``<method>.<option>`` belongs to that method.
    methods : mapping of str to type
        The options of every method that is known, by method name.
    side : {"both", "coordinator", "device"}
        Whose files to look for: the coordinator has the topology's, a device its own data's.

    Returns
    -------
    tuple of Settings and dict
        The common settings, and every method's options (defaults where none are given).

    Raises
    ------
    SettingsError
        One message with a line for each problem: the key, its value and what is allowed.
    """
    problems: list[str] = []
    common: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {name: {} for name in methods}
    for key, value in run_config.items():
        prefix, _, option = key.partition(".")
        if not option:
            common[key] = value
        elif prefix in methods:
            own[prefix][option] = value
        else:
            known = ", ".join(sorted(methods))
            problems.append(f"{key} = {value!r}: no method '{prefix}'; there are {known}")

    settings = _validate(Settings, common, "", problems)
    options = {
        name: _validate(model, own[name], f"{name}.", problems) for name, model in methods.items()
    }
    if settings is not None:
        problems += _conflicts(settings, methods)
        problems += _coordinator_problems(settings) if side != "device" else []
        problems += _device_problems(settings) if side != "coordinator" else []
    if problems or settings is None:
        raise SettingsError("the run config cannot work:\n  " + "\n  ".join(problems))
    return settings, {name: value for name, value in options.items() if value is not None}


def _validate(
    model: type[OptionsT], values: dict[str, Any], prefix: str, problems: list[str]
) -> OptionsT | None:
    """Build ``model`` from ``values``; on failure append to ``problems`` and return None."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        keys = [prefix + _kebab(name) for name in model.model_fields]
        for item in error.errors():
            key = prefix + ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                close = difflib.get_close_matches(key, keys, n=1)
                known = f"there are {', '.join(keys)}" if keys else "this method has no options"
                hint = f"did you mean '{close[0]}'?" if close else known
                problems.append(f"{key} = {item['input']!r}: unknown setting; {hint}")
            elif item["loc"]:
                problems.append(f"{key} = {item['input']!r}: {item['msg']}")
            else:  # a rule between several options of one method
                problems.append(
                    f"{prefix.rstrip('.')}: {item['msg'].removeprefix('Value error, ')}"
                )
        return None


def _conflicts(settings: Settings, methods: Mapping[str, object]) -> list[str]:
    """Return the problems that no single key shows."""
    problems: list[str] = []
    named = {"method": settings.method} | (
        {"compare-with": settings.compare_with} if settings.compare_with else {}
    )
    for key, name in named.items():
        if name not in methods:
            problems.append(f"{key} = {name!r}: there are {', '.join(sorted(methods))}")
    try:
        dataset = find_dataset(settings.dataset)
        if dataset.needs_path and not settings.data_path:
            problems.append(f"data-path = '': the data set '{dataset.name}' needs its folder here")
        if settings.partition == "natural" and not dataset.natural_ids:
            problems.append(
                f"partition = 'natural': the data set '{dataset.name}' has no natural ids; "
                "allowed with it: dirichlet, iid"
            )
        options = settings.partition_options()
        assign_modalities(
            settings.num_nodes,
            pattern=options.modality_pattern,
            shares=options.modality_shares,
            available=dataset.modalities,
            seed=settings.seed,
        )
    except DataError as error:
        problems.append(str(error))
    return problems


def _coordinator_problems(settings: Settings) -> list[str]:
    """Return what is wrong with what only the coordinator needs: the graph and the run folder."""
    problems: list[str] = []
    if (run_dir := Path(settings.run_dir).expanduser()).exists() and not run_dir.is_dir():
        problems.append(f"run-dir = {settings.run_dir!r}: is a file; name a folder, new or not")
    try:
        settings.make_topology().check(settings.num_nodes)
    except TopologyError as error:
        problems.append(
            f"topology = {settings.topology!r} with num-nodes = {settings.num_nodes}: {error}"
        )
    return problems


def _device_problems(settings: Settings) -> list[str]:
    """Return what is wrong with what only a device needs: the folder of its data."""
    if settings.data_path and not Path(settings._data_folder).is_dir():
        return [f"data-path = {settings.data_path!r}: no such folder"]
    return []
