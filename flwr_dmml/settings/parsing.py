"""A run config, validated once, before any work starts.

A run config is what Flower gives an app: a flat mapping from kebab-case keys to numbers, strings
and booleans. The keys of :class:`.Settings` are common to all methods; those of a group carry its
name as a prefix (``energy.battery-share``), and a method's own options that of the method
(``dmml-kd.generator``).
"""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError, create_model
from pydantic.fields import FieldInfo

from ..base.errors import MethodError, SettingsError
from ..base.machine import expanded
from ..base.options import Group, kebab
from ..base.overrides import with_overrides
from ..data import DataError, assign_modalities, find_dataset
from ..energy.radio import WirelessError
from ..gossip.aggregation.mean import Mean
from ..gossip.aggregation.nnm import NNM
from ..gossip.coupling import CouplingRule
from ..graph.topology import TopologyError, find_topology, own_fields
from ..learning.learner import Learner, overrides, unaccounted
from ..learning.options import Options
from .parts import Parts, RunConfig, no_couriers, no_couriers_over
from .rounds import no_beat_problems
from .settings import GROUPS, Settings

GroupT = TypeVar("GroupT", bound=Group)


def every_setting(parts: Parts) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the key of every setting, common, of a group, a method or a rule, and what it is."""
    models: dict[str, type[Group]] = {"": Settings, **parts.prefixes}
    for prefix, model in models.items():
        for name, info in model.model_fields.items():
            if name not in GROUPS:
                yield (f"{prefix}." if prefix else "") + kebab(name), info


def parse_settings(
    run_config: Mapping[str, Any],
    parts: Parts,
    *,
    side: Literal["both", "coordinator", "device"] = "both",
) -> RunConfig:
    """Validate a whole run config.

    Parameters
    ----------
    run_config : mapping
        Kebab-case keys to values. ``<group>.<setting>`` belongs to a group, ``<method>.<option>``
        to that method, ``<rule>.<option>`` to that gossip or aggregation rule.
    parts : Parts
        What can be named.
    side : {"both", "coordinator", "device"}
        Whose files to look for: the coordinator has the topology's, a device its own data's.

    Returns
    -------
    RunConfig
        The common settings, and the options of every method and rule (defaults where none are
        given).

    Raises
    ------
    SettingsError
        One message with a line for each problem: the key, its value and what is allowed.
    """
    problems: list[str] = []
    common: dict[str, Any] = {}
    run_config = with_overrides(run_config)
    named = _of_named(run_config, parts)
    if taken := named.keys() & parts.prefixes.keys():
        raise MethodError(f"the data set or topology {min(taken)!r} has the name of another prefix")
    prefixes = parts.prefixes | named
    own: dict[str, dict[str, Any]] = {name: {} for name in prefixes}
    for key, value in run_config.items():
        prefix, _, option = key.partition(".")
        if not option and key in GROUPS:
            problems.append(f"{key} = {value!r}: a group of settings; write {key}.<setting>")
        elif not option:
            common[key] = value
        elif prefix in prefixes:
            own[prefix][option] = value
        else:
            known = sorted(prefixes.keys() - GROUPS.keys())
            problems.append(
                f"{key} = {value!r}: no method or rule '{prefix}'; there are {', '.join(known)}, "
                f"and the groups {', '.join(GROUPS)}"
            )

    settings = _validate(Settings, common, "", problems)
    made = {n: _validate(model, own[n], f"{n}.", problems) for n, model in prefixes.items()}
    sound = {name: group for name, group in made.items() if group is not None}
    if settings is not None:
        groups = {name: group for name, group in sound.items() if name in GROUPS}
        settings = settings.model_copy(update=groups)
        options = {
            name: sound[name] if prefixes[name] is kind else kind()
            for name, kind in parts.options.items()
            if name in sound
        }
        rules = {name: sound[name] for name in parts.rules if name in sound}
        own_options = {name: sound[name] for name in named if name in sound}
        settings = settings.with_dataset(own_options.get(settings.dataset))
        settings = settings.with_topology(own_options.get(settings.topology))
        config = RunConfig(parts, settings, options, rules, own_options)  # type: ignore[arg-type]
        problems += _conflicts(settings, parts)
        if config.aggregation is None and not problems:
            problems.append(
                f"aggregation = {settings.aggregation!r}: nothing can be mixed before "
                f"{settings.aggregation.removeprefix(NNM)!r}; leave {NNM} out, or take another rule"
            )
        names = dict.fromkeys((settings.compare_with, settings.method))
        chosen = {name: needs for name in names if (needs := config.options.get(name)) is not None}
        for name, needs in chosen.items():
            problems += needs.problems(settings)
            problems += _mismatches(name, config)
            problems += no_beat_problems(name, config)
            problems += _unaccounted(name, config) if settings.privacy.on else []
            problems += _not_unicast(name, config) if settings.privacy.unicast else []
        problems = list(dict.fromkeys(problems))  # two methods may need the same
        problems += _coordinator_problems(config, chosen) if side != "device" else []
        problems += _device_problems(settings) if side != "coordinator" else []
    if problems or settings is None:
        whose = "this device's settings" if side == "device" else "the run config"
        raise SettingsError(f"{whose} cannot work:\n  " + "\n  ".join(problems))
    return config


def _of_named(run_config: Mapping[str, Any], parts: Parts) -> dict[str, type[Group]]:
    """Return the options of the data sets and topologies that a run config names.

    Those of which it sets an option are among them, whether they are chosen or not.
    """
    found: dict[str, type[Group]] = {}
    prefixes = dict.fromkeys(key.partition(".")[0] for key in run_config if "." in key)
    others = [prefix for prefix in prefixes if prefix not in parts.prefixes]
    for name in (str(run_config.get("dataset", Settings().dataset)), *others):
        with suppress(DataError):  # an unknown one is among the problems later
            if (options := find_dataset(name).options_type) is not None:
                found[name] = options
    for name in (str(run_config.get("topology", Settings().topology)), *others):
        with suppress(TopologyError):
            if given := own_fields(find_topology(name)):
                found[name] = create_model(f"{name}Options", __base__=Group, **given)  # type: ignore[call-overload]
    return found


def _uncoupled(learner: type[Learner], rule: CouplingRule, settings: Settings) -> list[str]:
    """Return why a method cannot be run with a rule by which some blocks stay on their devices."""
    problems, asked = list[str](), f"gossip = {settings.gossip!r}"
    if any(name.startswith(rule.coupled) for name in learner.reads):
        problems.append(
            f"{asked}: the method {learner.name!r} reads its neighbours' blocks '{rule.coupled}…', "
            "which stay with them; choose another rule"
        )
    if settings.aggregation != Mean.name:
        problems.append(
            f"aggregation = {settings.aggregation!r}: it does not see what the gossip rule "
            f"{rule.name!r} couples, so a liar could pull the heads; allowed with it: mean"
        )
    return problems


def _mismatches(method: str, config: RunConfig) -> list[str]:
    """Return why a method cannot be run with the gossip rule, the aggregation and the exchange."""
    settings, learner = config.settings, config.parts.methods[method]
    if settings.gossip not in ("auto", *config.parts.gossip):
        return []  # which is among the problems already
    rule, aggregation = config.gossip_of(method), config.aggregation
    if aggregation is None:
        return []
    asked, problems = f"gossip = {settings.gossip!r}", list[str]()
    if settings.gossip not in ("auto", learner.gossip):
        alone = not learner.communicates and method == settings.method  # not as the one to compare
        if alone or learner.own_format:
            why = "sends nothing" if alone else "writes blocks in a format of its own"
            problems.append(f"{asked}: the method {method!r} {why}; allowed: auto")
    if (rule.static or rule.linear) and learner.own_weights:
        needs = "weights that stay the same" if rule.static else "the graph's own weights"
        problems.append(
            f"{asked}: the method {method!r} chooses in every round whom it mixes with, and the "
            f"rule {rule.name!r} needs {needs}; choose another rule"
        )
    if settings.optimizer != "sgd" and (rule.sgd or rule.momentum == "own"):
        what = "momentum" if rule.momentum == "own" else "correction"
        problems.append(
            f"optimizer = '{settings.optimizer}': the {what} of the gossip rule {rule.name!r} "
            "goes with sgd only"
        )
    if rule.sgd and learner.make_optimizer is not Learner.make_optimizer:
        problems.append(
            f"{asked}: the method {method!r} has an optimiser of its own, and the correction of "
            f"the rule {rule.name!r} goes with sgd only; choose another rule"
        )
    if rule.linear and not aggregation.linear:
        problems.append(
            f"aggregation = {settings.aggregation!r}: the gossip rule {rule.name!r} keeps a sum "
            "over all devices; allowed with it: mean"
        )
    if isinstance(rule, CouplingRule):
        problems += _uncoupled(learner, rule, settings)
    if learner.own_format and settings.attack.in_payloads:
        problems.append(
            f"attack.kind = {settings.attack.kind!r}, attack.payload = {settings.attack.payload!r}:"
            f" the method {method!r} writes blocks in a format of its own, in which nothing can be "
            "forged; allowed: none or label-flip, with honest payloads"
        )
    if settings.final_merge != "off" and not aggregation.linear:
        problems.append(
            f"final-merge = {settings.final_merge!r}: its rounds are to average, which aggregation "
            f"= {settings.aggregation!r} does not; allowed with it: off"
        )
    exchange, how = settings.exchange, settings.couriers
    if rule.coded and exchange.transport == "direct":
        problems.append(
            f"exchange.transport = 'direct': the gossip rule {rule.name!r} sends what has changed, "
            "and from device to device nobody knows who has missed it; allowed: relay"
        )
    if how != "auto" and (why := no_couriers(how, learner, rule, config)):
        problems.append(f"couriers = {how!r}: {why}")
    of_method = settings.of_method(learner)
    if of_method.fusion == "detached" and not of_method.modality_weight:
        problems.append(
            "modality-loss = 0 with fusion = 'detached': encoders learn from each modality's own "
            "loss there; allowed: above 0"
        )
    if rule.whole and exchange.top_k < 1:
        problems.append(
            f"exchange.top-k = {exchange.top_k:g}: the gossip rule {rule.name!r} needs a block "
            "whole; allowed: 1"
        )
    asked_for = exchange.precision not in ("auto", "float32") or exchange.top_k < 1
    if learner.own_format and asked_for:
        problems.append(
            f"exchange.precision = {exchange.precision!r}, exchange.top-k = {exchange.top_k:g}: "
            f"the method {method!r} writes blocks in a format of its own; allowed: float32 and 1"
        )
    return problems


def _unaccounted(method: str, config: RunConfig) -> list[str]:
    """Return what a method or a setting takes from samples that ``privacy.dp`` does not account."""
    settings, methods = config.settings, config.parts.methods
    asked, problems = f"privacy.dp = {settings.privacy.dp!r}", list[str]()
    of_device = settings.privacy.dp == "device"
    passing = ", ".join(
        name
        for name, kind in methods.items()
        if not (unaccounted(kind) or (of_device and _not_all_noisy(kind)))
    )
    if what := unaccounted(methods[method]):
        problems.append(
            f"{asked}: the method {method!r} takes more from training samples than clipped "
            f"gradients: {what}; allowed: {passing}"
        )
    elif of_device and _not_all_noisy(methods[method]):
        problems.append(
            f"{asked}: the method {method!r} trains blocks that it does not always send, or mixes "
            f"with weights of its own, and only blocks that are sent get noise; allowed: {passing}"
        )
    known = settings.gossip in ("auto", *config.parts.gossip)
    if of_device and known and isinstance(rule := config.gossip_of(method), CouplingRule):
        problems.append(
            f"{asked}: the gossip rule {rule.name!r} tells neighbours of blocks that stay on their "
            "devices, and only blocks that are sent get noise; choose another rule"
        )
    if settings.label_correction not in ("auto", "off"):
        problems.append(
            f"{asked} with label-correction = {settings.label_correction!r}: it goes by the counts "
            "of own labels; allowed: auto, off"
        )
    if settings.noise:
        problems.append(
            f"{asked} with input-noise = {settings.noise:g}: it goes by the deviation of own "
            "samples; allowed: auto, 0"
        )
    if settings.standardise != "off":
        problems.append(
            f"{asked} with standardise = {settings.standardise!r}: it goes by the mean and the "
            "deviation of training samples; allowed: off"
        )
    if settings.privacy.dp == "device" and settings.test_fusion != "trained":
        problems.append(
            f"{asked} with test-fusion = {settings.test_fusion!r}: temperatures of own samples are "
            "sent; allowed: trained"
        )
    if settings.exchange.transport == "direct":
        problems.append(
            f"{asked} with exchange.transport = 'direct': letters leave a device before its ledger "
            "is kept; allowed: relay"
        )
    return problems


def _not_all_noisy(method: type[Learner]) -> bool:
    """Return whether a round of a method goes by more than the blocks that get noise in it."""
    return method.own_weights or overrides(method, ("private_blocks", "sends"))


def _not_unicast(method: str, config: RunConfig) -> list[str]:
    """Return where noise or masks for each neighbour would not cancel, or not be on all models."""
    settings, learner = config.settings, config.parts.methods[method]
    if not learner.communicates or settings.gossip not in ("auto", *config.parts.gossip):
        return []
    sums, noise = settings.privacy.secure_sums, settings.privacy.zip_noise
    asked = "privacy.secure-sums = true" if sums else f"privacy.zip-noise = {noise:g}"
    problems = list[str]()
    rule, aggregation = config.gossip_of(method), config.aggregation
    if not rule.sends_models():
        fit = ", ".join(name for name, kind in config.parts.gossip.items() if kind.sends_models())
        problems.append(
            f"{asked}: the gossip rule {rule.name!r} does not just mix the models that are sent; "
            f"allowed: {fit}"
        )
    if learner.own_weights or learner.own_format or overrides(learner, ("mix",)):
        problems.append(
            f"{asked}: the method {method!r} mixes in a way of its own; choose another method"
        )
    if learner.reads or (sums and learner.compares):
        problems.append(
            f"{asked}: the method {method!r} looks at the models of single neighbours; choose "
            "another method"
        )
    if aggregation is not None and not aggregation.linear:
        problems.append(
            f"{asked}: aggregation = {settings.aggregation!r} needs the models of single "
            "neighbours as they are; allowed with it: mean"
        )
    if settings.exchange.top_k < 1:
        problems.append(
            f"{asked} with exchange.top-k = {settings.exchange.top_k:g}: neighbours get other "
            "places, where nothing cancels; allowed: 1"
        )
    if settings.final_merge != "off":
        problems.append(
            f"{asked} with final-merge = {settings.final_merge!r}: it sends models as they are; "
            "allowed: off"
        )
    return problems + (_no_sums(method, config) if sums else [])


def _no_sums(method: str, config: RunConfig) -> list[str]:
    """Return what else keeps neighbours from adding up parts (``privacy.secure-sums``)."""
    settings, learner = config.settings, config.parts.methods[method]
    asked, problems = "privacy.secure-sums = true", list[str]()
    if settings.num_nodes < 3:
        problems.append(f"{asked} with num-nodes = {settings.num_nodes}: a sum needs 3 devices")
    precision = settings.of_method(learner).exchange.precision
    if precision != "float32":
        problems.append(
            f"{asked}: exchange.precision = {precision!r} would round masks; allowed: float32"
        )
    if settings.exchange.transport == "direct":
        problems.append(
            f"{asked} with exchange.transport = 'direct': not known to work; allowed: relay"
        )
    if settings.attack.in_payloads:
        problems.append(
            f"{asked} with attack.kind = {settings.attack.kind!r}: a lie is made of single models; "
            "allowed: none, label-flip"
        )
    return problems


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
                spelling = _spelling(key, item["type"], item["input"])
                problems.append(f"{key} = {item['input']!r}: {what}{spelling}")
            else:  # a rule between several options of one method
                problems.append(f"{prefix.rstrip('.')}: {what}")
        return None


def _spelling(key: str, wrong: str, value: object) -> str:
    """Return how a value is written that has another type than the setting, if that can be told."""
    if wrong == "string_type" and isinstance(value, bool | int | float):
        text = str(value).lower() if isinstance(value, bool) else str(value)
        return f'; a text needs quotes: {key} = "{text}", or --set {key}=\'"{text}"\''
    if wrong.startswith("bool") and str(value).lower() in ("true", "false"):
        return f"; write {key} = {str(value).lower()}"
    return ""


def _conflicts(settings: Settings, parts: Parts) -> list[str]:
    """Return the problems that no single key shows."""
    problems: list[str] = []
    named: list[tuple[str, str, Iterable[str]]] = [
        ("method", settings.method, parts.methods),
        ("compare-with", settings.compare_with, ["", *parts.methods]),
        ("gossip", settings.gossip, ["auto", *parts.gossip]),
        ("aggregation", settings.aggregation, parts.aggregation),
    ]
    for key, name, known in named:
        if (name.removeprefix(NNM) if key == "aggregation" else name) not in known:
            problems.append(f"{key} = {name!r}: there are {', '.join(filter(None, known))}")
    if problem := settings.attack.problem(settings.num_nodes):
        problems.append(problem)
    if settings.keep_best and settings.validation_fraction == 0:
        problems.append(
            "keep-best = True: the best model is found on samples that a device holds out; set "
            "validation-fraction above 0"
        )
    if settings.serve != "mixed" and settings.final_merge != "off":
        problems.append(
            f"serve = '{settings.serve}': the rounds of final-merge = '{settings.final_merge}' "
            "train no model of a device's own; allowed with it: mixed"
        )
    if settings.serve != "mixed" and settings.privacy.dp == "device":
        problems.append(
            f"serve = '{settings.serve}' with privacy.dp = 'device': metrics of the own model tell "
            "of a round's change before it has noise; allowed: mixed"
        )
    if settings.serve == "auto" and settings.validation_fraction == 0:
        problems.append(
            "serve = 'auto': the model is chosen by validation samples, and validation-fraction = "
            "0 holds none out; set it above 0"
        )
    if settings.test_fusion == "static" and settings.validation_fraction == 0:
        problems.append(
            "test-fusion = 'static': modalities are weighed by what they find of the samples that "
            "a device holds out; set validation-fraction above 0"
        )
    if settings.quorum > settings.num_nodes:
        problems.append(
            f"min-devices = {settings.min_devices}: there are num-nodes = {settings.num_nodes}"
        )
    try:
        dataset = find_dataset(settings.dataset)
        if settings.partition.startswith("natural") and not dataset.natural_ids:
            problems.append(
                f"partition = '{settings.partition}': the data set '{dataset.name}' has no natural "
                "ids; allowed with it: dirichlet, iid"
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


def _coordinator_problems(config: RunConfig, methods: Mapping[str, Options]) -> list[str]:
    """Return what is wrong with what only the coordinator needs: the graph and the run folder."""
    problems, settings = list[str](), config.settings
    if settings.exchange.sealed and settings.exchange.router:
        problems.append(
            "exchange.sealed = True: a router of exchange.router could read all letters; allowed: "
            "transport = 'relay', or devices that reach each other"
        )
    if (run_dir := Path(expanded(settings.run_dir))).exists() and not run_dir.is_dir():
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
        over = topology, settings.num_nodes, settings.seed
        if settings.couriers in ("forward", "average") and (why := no_couriers_over(*over)):
            problems.append(f"{given} couriers = {settings.couriers!r}: {why}; allowed: off")
        if topology.directed and settings.privacy.unicast:
            problems.append(
                f"{given} privacy.zip-noise or privacy.secure-sums: its links go one way, and "
                "both ends of a link must give it the same weight"
            )
        for name, options in methods.items():
            if problem := options.graph_problem(*over):
                problems.append(f"{given} method {name!r}: {problem}")
            if settings.gossip in ("auto", *config.parts.gossip):
                rule = config.gossip_of(name)
                if problem := rule.graph_problem(*over):
                    problems.append(f"{given} gossip rule {rule.name!r}: {problem}")
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
