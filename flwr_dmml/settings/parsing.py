"""A run config, validated once, before any work starts.

A run config is what Flower gives an app: a flat mapping from kebab-case keys to numbers, strings
and booleans. The keys of :class:`.Settings` are common to all methods; those of a group carry its
name as a prefix (``energy.battery-share``), and a method's own options that of the method
(``dmml-kd.generator``).
"""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ..base.errors import MethodError, SettingsError
from ..base.options import Group, kebab
from ..data import DataError, assign_modalities, find_dataset
from ..energy.radio import WirelessError
from ..graph.topology import TopologyError
from ..learning.options import Options
from .settings import GROUPS, Settings

GroupT = TypeVar("GroupT", bound=Group)


def every_setting(methods: Mapping[str, type[Options]]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the key of every setting, common, of a group or of a method, and what it is."""
    _check_names(methods)
    models: dict[str, type[Group]] = {"": Settings, **GROUPS, **methods}
    for prefix, model in models.items():
        for name, info in model.model_fields.items():
            if name not in GROUPS:
                yield (f"{prefix}." if prefix else "") + kebab(name), info


def _check_names(methods: Iterable[str]) -> None:
    for name in methods:
        if name in GROUPS:
            raise MethodError(f"a method cannot be named '{name}': that is a group of settings")


def resolved(settings: Settings, options: Mapping[str, Group]) -> dict[str, Any]:
    """Return every setting's value by its key in a run config."""
    flat = settings.model_dump(by_alias=True, exclude=set(GROUPS))
    groups = {name: getattr(settings, name) for name in GROUPS}
    for prefix, values in {**groups, **options}.items():
        flat |= {f"{prefix}.{k}": v for k, v in values.model_dump(by_alias=True).items()}
    return flat


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
        Kebab-case keys to values. ``<group>.<setting>`` belongs to a group, ``<method>.<option>``
        to that method.
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
    _check_names(methods)
    problems: list[str] = []
    common: dict[str, Any] = {}
    prefixed: dict[str, type[Group]] = {**GROUPS, **methods}
    own: dict[str, dict[str, Any]] = {name: {} for name in prefixed}
    for key, value in run_config.items():
        prefix, _, option = key.partition(".")
        if not option and key in GROUPS:
            problems.append(f"{key} = {value!r}: a group of settings; write {key}.<setting>")
        elif not option:
            common[key] = value
        elif prefix in prefixed:
            own[prefix][option] = value
        else:
            known = f"{', '.join(sorted(methods))}, and the groups {', '.join(GROUPS)}"
            problems.append(f"{key} = {value!r}: no method '{prefix}'; there are {known}")

    settings = _validate(Settings, common, "", problems)
    groups = {n: _validate(model, own[n], f"{n}.", problems) for n, model in GROUPS.items()}
    options = {n: _validate(model, own[n], f"{n}.", problems) for n, model in methods.items()}
    if settings is not None:
        sound = {name: group for name, group in groups.items() if group is not None}
        settings = settings.model_copy(update=sound)
        problems += _conflicts(settings, methods)
        names = dict.fromkeys((settings.compare_with, settings.method))
        chosen = {name: needs for name in names if (needs := options.get(name)) is not None}
        for needs in chosen.values():
            problems += needs.problems(settings)
        problems = list(dict.fromkeys(problems))  # two methods may need the same
        problems += _coordinator_problems(settings, chosen) if side != "device" else []
        problems += _device_problems(settings) if side != "coordinator" else []
    if problems or settings is None:
        whose = "this device's settings" if side == "device" else "the run config"
        raise SettingsError(f"{whose} cannot work:\n  " + "\n  ".join(problems))
    return settings, {name: value for name, value in options.items() if value is not None}


def _validate(
    model: type[GroupT], values: dict[str, Any], prefix: str, problems: list[str]
) -> GroupT | None:
    """Build ``model`` from ``values``; on failure append to ``problems`` and return None."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        options = [kebab(name) for name in model.model_fields if name not in GROUPS]
        keys = [prefix + option for option in options]
        for item in error.errors():
            what = item["msg"].removeprefix("Value error, ")
            key = prefix + ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                close = difflib.get_close_matches(str(item["loc"][0]), options, n=1)
                known = f"there are {', '.join(keys)}" if keys else "this method has no options"
                hint = f"did you mean '{prefix}{close[0]}'?" if close else known
                problems.append(f"{key} = {item['input']!r}: unknown setting; {hint}")
            elif item["loc"]:
                problems.append(f"{key} = {item['input']!r}: {what}")
            else:  # a rule between several options of one method
                problems.append(f"{prefix.rstrip('.')}: {what}")
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
        if settings.partition == "natural" and not dataset.natural_ids:
            problems.append(
                f"partition = 'natural': the data set '{dataset.name}' has no natural ids; "
                "allowed with it: dirichlet, iid"
            )
        options = settings.partition_options()
        available = dataset.modalities_of(options.load)
        if available is None:  # only the devices can tell
            return problems
        if unknown := settings.missing.unknown(available):
            problems.append(
                f"missing.modalities = {settings.missing.modalities!r}: the data set "
                f"'{dataset.name}' has no {', '.join(map(repr, unknown))}; allowed: "
                f"{', '.join(available)}, or empty for any"
            )
        assign_modalities(
            settings.num_nodes,
            pattern=options.modality_pattern,
            shares=options.modality_shares,
            available=available,
            seed=settings.seed,
        )
    except DataError as error:
        problems.append(str(error))
    return problems


def _coordinator_problems(settings: Settings, methods: Mapping[str, Options]) -> list[str]:
    """Return what is wrong with what only the coordinator needs: the graph and the run folder."""
    problems: list[str] = []
    if settings.exchange.encrypt and settings.exchange.router:
        problems.append(
            "exchange.encrypt = True: a router of exchange.router could read all letters; allowed: "
            "transport = 'relay', or devices that reach each other"
        )
    if (run_dir := Path(os.path.expanduser(settings.run_dir))).exists() and not run_dir.is_dir():
        problems.append(f"run-dir = {settings.run_dir!r}: is a file; name a folder, new or not")
    if settings.wireless.shared and settings.allocation.rule == "sync-only":
        problems.append(
            "allocation.rule = 'sync-only': not with a shared band (wireless.shared-band-hz)"
        )
    try:
        fleet = settings.energy.fleet(settings.num_nodes, settings.seed)
        radios = settings.wireless.make(settings.topology_side_m, fleet)
        if settings.wireless.enabled:
            radios.locate(settings.num_nodes, seed=settings.seed)
    except WirelessError as error:
        problems.append(f"wireless: {error}")
    given = f"topology = {settings.topology!r} with"
    try:
        topology = settings.make_topology()
        topology.check(settings.num_nodes)
        for name, options in methods.items():
            if problem := options.graph_problem(topology, settings.num_nodes, settings.seed):
                problems.append(f"{given} method {name!r}: {problem}")
    except TopologyError as error:
        problems.append(f"{given} num-nodes = {settings.num_nodes}: {error}")
    return problems


def _folder_problem(path: str) -> str:
    """Return why a folder cannot be read, or nothing."""
    try:
        os.scandir(path).close()
    except FileNotFoundError:
        return "no such folder"
    except NotADirectoryError:
        return "is a file; a folder is needed"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def _device_problems(settings: Settings) -> list[str]:
    """Return what is wrong with what only a device needs: the folder of its data, and weights."""
    try:
        needs_path = find_dataset(settings.dataset).needs_path
    except DataError:  # which is among the problems already
        needs_path = False
    problems: list[str] = []
    if needs_path and not settings.data_path:
        problems.append(
            f"data-path = '': the data set '{settings.dataset}' needs its folder here (in the run "
            "config, or of a single device in its node config)"
        )
    if settings.data_path and (problem := _folder_problem(settings.data_folder)):
        problems.append(f"data-path = {settings.data_path!r}: {problem}")
    if weights := settings.encoder_weights:
        if "resnet18" not in (settings.image_encoder, settings.audio_encoder):
            problems.append(
                f"encoder-weights = {weights!r}: only resnet18 starts from a file; choose it as "
                "image-encoder or audio-encoder"
            )
        if not Path(settings.encoder_choice.weights).is_file():
            problems.append(f"encoder-weights = {weights!r}: no such file")
    return problems
