"""Settings: defaults that work, and one message that names all that does not."""

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from pydantic import ValidationError

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.data import LoadOptions, PartitionOptions
from flwr_dmml.data.options import MissingOptions
from flwr_dmml.engine import flatten_config
from flwr_dmml.graph.topology import TOPOLOGIES, EdgeList, ErdosRenyi, Ring, Torus
from flwr_dmml.learning.options import Options
from flwr_dmml.methods.dmml_kd import DmmlKdOptions
from flwr_dmml.settings import Settings, every_setting, find_parts, parse_settings

QUICKSTART = ROOT / "examples" / "quickstart" / "pyproject.toml"

KNOWN = f"there are {', '.join(find_parts().methods)}"
PREFIXES = f"there are {', '.join(sorted({*find_parts().methods, *find_parts().rules}))}"


def parse(**run_config: Any) -> tuple[Settings, Mapping[str, Options]]:
    """Parse a run config whose keys have ``_`` for ``-`` and ``__`` for the dot."""
    keys = {key.replace("__", ".").replace("_", "-"): value for key, value in run_config.items()}
    parsed = parse_settings(keys, find_parts())
    return parsed.settings, parsed.options


def problems_of(run_config: dict[str, Any]) -> list[str]:
    """Return the lines of the one error that a run config gives."""
    with pytest.raises(SettingsError) as error:
        parse_settings(run_config, find_parts())
    head, *lines = str(error.value).splitlines()
    assert head == "the run config cannot work:"
    return [line.strip() for line in lines]


# What works


def test_defaults_are_valid() -> None:
    settings, options = parse()
    assert settings == Settings()
    assert options == {name: model() for name, model in find_parts().options.items()}


def test_settings_and_options_are_read() -> None:
    settings, options = parse(
        method="dpsgd", num_nodes=5, alpha=1, topology="line", dmml_kd__guidance=2.5
    )
    assert (settings.method, settings.num_nodes, settings.topology) == ("dpsgd", 5, "line")
    assert settings.alpha == 1.0 and isinstance(settings.alpha, float)  # a whole number will do
    assert options["dmml-kd"] == DmmlKdOptions(guidance=2.5)
    assert options["dpsgd"] == Options()


def test_settings_are_values_that_cannot_change() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.seed = 3  # type: ignore[misc]
    assert hash(Settings(seed=1)) == hash(Settings(seed=1))


def test_every_key_is_kebab_case_and_described() -> None:
    for key, info in every_setting(find_parts()):
        assert key.rpartition(".")[2] == info.alias and "_" not in key
        assert info.description, key


def test_boundaries_that_are_allowed() -> None:
    settings, _ = parse(
        num_nodes=2,
        momentum=0.0,
        clip_norm=0.0,
        validation_fraction=0.0,
        alpha=1e-9,
        seed=2**63 - 1,
    )
    assert settings.num_nodes == 2 and settings.seed == 2**63 - 1


def test_missing_modalities_are_read() -> None:
    settings, _ = parse(
        missing__train_share=0, missing__test_share=1, missing__modalities="image, audio"
    )
    assert settings.missing == MissingOptions(test_share=1.0, modalities="image, audio")
    assert settings.missing.among(("audio", "image", "radar")) == ("audio", "image")
    assert settings.missing.unknown(("audio", "radar")) == ["image"]
    assert MissingOptions().among(("audio", "image")) == ("audio", "image")
    assert MissingOptions().unknown(("audio",)) == []
    parse(missing__train_share=0.999, missing__modalities="image")


def test_a_compare_with_of_another_method_and_shares_instead_of_a_pattern() -> None:
    shares = "audio=0.5,image=0.5"
    settings, _ = parse(method="dsgdm", compare_with="local", modality_shares=shares)
    assert settings.compare_with == "local"
    assert settings.partition_options().modality_shares == shares


def test_a_compare_with_of_the_method_itself_is_allowed() -> None:
    """It then runs once: the quickstart names a compare-with, and --set method may hit it."""
    settings, _ = parse(method="dpsgd", compare_with="dpsgd")
    assert settings.compare_with == settings.method


def test_a_data_set_in_a_folder(tmp_path: Path) -> None:
    """Only that the folder exists is looked at here; loading says what it lacks."""
    settings, _ = parse(dataset="av-digits", data_path=str(tmp_path), partition="natural")
    assert settings.partition_options().load.path == str(tmp_path)


# What does not


@pytest.mark.parametrize(
    "key, value, words",
    [
        # Unknown keys: the nearest one, or all of them
        ("num-node", 3, "unknown setting; did you mean 'num-nodes'?"),
        ("learning_rates", 0.1, "unknown setting; did you mean 'learning-rate'?"),
        ("qqq", 3, "unknown setting; there are method, gossip, aggregation, assume-liars,"),
        ("dmml-kd.generatr", True, "unknown setting; did you mean 'dmml-kd.generator'?"),
        ("dmml-kd.qqq", 1, "unknown setting; there are dmml-kd.decomposition, dmml-kd.generator,"),
        ("dpsgd.guidance", 1.0, "unknown setting"),
        # Wrong types
        ("num-nodes", "12", "Input should be a valid integer"),
        ("num-nodes", True, "Input should be a valid integer"),
        ("num-nodes", 12.0, "Input should be a valid integer"),
        ("num-nodes", 12.5, "Input should be a valid integer"),
        ("alpha", "0.3", "Input should be a valid number"),
        ("alpha", True, "Input should be a valid number"),
        ("method", 3, "Input should be a valid string"),
        ("dmml-kd.generator", 1, "Input should be a valid boolean"),
        ("dmml-kd.generator", "false", "Input should be a valid boolean"),
        ("dmml-kd.generator-steps", 5.0, "Input should be a valid integer"),
        # Out of range
        ("alpha", 0, "Input should be greater than 0"),
        ("alpha", -1, "Input should be greater than 0"),
        ("alpha", float("nan"), "Input should be a finite number"),
        ("momentum", 1.0, "Input should be less than 1"),
        ("validation-fraction", 1.0, "Input should be less than 1"),
        ("num-nodes", 0, "Input should be greater than or equal to 1"),
        ("num-server-rounds", 0, "Input should be greater than or equal to 1"),
        ("evaluate-every", 0, "Input should be greater than or equal to 1"),
        ("seed", -1, "Input should be greater than or equal to 0"),
        ("seed", 2**63, "Input should be less than"),
        ("snr-db", 81.0, "Input should be less than or equal to 80"),
        ("learning-rate", 0.0, "Input should be greater than 0"),
        ("topology-probability", 1.5, "Input should be less than or equal to 1"),
        ("missing.train-share", 1.0, "Input should be less than 1"),
        ("missing.train-share", -0.1, "Input should be greater than or equal to 0"),
        ("missing.test-share", 1.5, "Input should be less than or equal to 1"),
        ("missing.test-share", -0.1, "Input should be greater than or equal to 0"),
        ("missing.test-share", "0.5", "Input should be a valid number"),
        ("missing.share", 0.5, "unknown setting; did you mean 'missing.t"),
        ("missing.modalities", "lidar", "'digits' has no 'lidar'; allowed: audio, image, or empty"),
        ("missing.modalities", "image,Audio", "has no 'Audio'; allowed: audio, image"),
        ("missing.modalities", "image,", "has no ''; allowed: audio, image"),
        ("missing.modalities", "radar, lidar", "has no 'radar', 'lidar'; allowed: audio, image"),
        ("missing.modalities", "image+audio", "has no 'image+audio'; allowed: audio, image"),
        ("dmml-kd.guidance", -0.5, "Input should be greater than or equal to 0"),
        ("dmml-kd.guidance-decay", 1.5, "Input should be less than or equal to 1"),
        # Unknown names
        ("method", "fedavg", KNOWN),
        (
            "compare-with",
            "fedavg",
            KNOWN,
        ),
        (
            "partition",
            "sorted",
            "Input should be 'dirichlet', 'iid', 'natural', 'natural-dirichlet' or 'own'",
        ),
        ("optimizer", "lion", "Input should be 'sgd', 'adam' or 'adamw'"),
        ("lr-schedule", "linear", "Input should be 'constant', 'cosine' or 'step'"),
        ("lr-milestones", "0.6;0.8", "give shares of the rounds, e.g. '0.6,0.8'"),
        ("lr-milestones", "0.6,1.2", "holds a number that is not between 0 and 1"),
        ("device", "gpu", "auto|cpu|cuda"),
        ("topology", "donut", f"allowed: {', '.join(TOPOLOGIES)}"),
        # Conflicts with other settings
        ("topology", "dyck", "with num-nodes = 12: dyck: this graph has exactly 32 nodes, not 12"),
        ("partition", "natural", "'digits' has no natural ids; allowed with it: dirichlet, iid"),
        ("data-path", "/no/such/folder", "no such folder"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(key: str, value: Any, words: str) -> None:
    (problem,) = problems_of({key: value})
    assert problem.startswith(f"{key} = {value!r}")
    assert words in problem


@pytest.mark.parametrize(
    "run_config, words",
    [
        (
            {"topology": "torus", "num-nodes": 13},
            ["topology = 'torus' with num-nodes = 13", "nearest allowed: 12 and 14"],
        ),
        (
            {"topology": "random-regular", "topology-degree": 3, "num-nodes": 5},
            ["topology = 'random-regular' with num-nodes = 5", "degree 3", "degree x nodes even"],
        ),
        (
            {"topology": "edge-list", "topology-file": "/no/such/file"},
            ["topology = 'edge-list'", "/no/such/file", "must name a text file of links"],
        ),
        (
            {"dataset": "cifar"},
            [
                "dataset: there is no data set 'cifar'",
                "allowed: av-digits, cifar10, crema-d, digits, ",
            ],
        ),
        (
            {"dataset": "av-digits"},
            ["data-path = ''", "the data set 'av-digits' needs its folder here"],
        ),
        (
            {"dataset": "av-digits", "data-path": "/no/such/folder"},
            ["data-path = '/no/such/folder'", "no such folder"],
        ),
        (
            {"modality-pattern": "audio,lidar"},
            ["modality-pattern: 'audio,lidar'", "unknown modality 'lidar'", "audio, image"],
        ),
        (
            {"modality-shares": "audio=0.5,image=0.4"},
            ["modality-shares: 'audio=0.5,image=0.4'", "shares of sum 0.9", "sum 1"],
        ),
        (
            {"modality-shares": "audio=half,image=0.5"},
            ["modality-shares: 'audio=half,image=0.5'", "a share from 0 to 1 in 'audio=half'"],
        ),
        (
            {"modality-pattern": ""},
            ["exactly one of modality-pattern and modality-shares", "modality-pattern is ''"],
        ),
        (
            {"dmml-kd.generator": False},
            ["dmml-kd: distillation = true needs generator = true", "set both to false"],
        ),
        (
            {"fedavg.momentum": 0.5},
            [
                "fedavg.momentum",
                "no method or rule 'fedavg'",
                PREFIXES,
            ],
        ),
    ],
)
def test_settings_that_do_not_fit_together(run_config: dict[str, Any], words: list[str]) -> None:
    (problem,) = problems_of(run_config)
    for word in words:
        assert word in problem


def test_a_table_of_an_unknown_method_is_one_line_a_key() -> None:
    problems = problems_of({"fedavg.a": 1, "fedavg.b": 2})
    assert [problem.split(":")[0] for problem in problems] == ["fedavg.a = 1", "fedavg.b = 2"]


def test_generator_and_distillation_may_both_be_off() -> None:
    _, options = parse(dmml_kd__generator=False, dmml_kd__distillation=False)
    assert options["dmml-kd"] == DmmlKdOptions(generator=False, distillation=False)


def test_all_wrong_values_are_in_one_message() -> None:
    problems = problems_of(
        {
            "num-node": 3,
            "alpha": 0,
            "momentum": 1.0,
            "seed": "1",
            "fedavg.lr": 0.1,
            "dmml-kd.guidance": -1.0,
            "dmml-kd.generatr": False,
        }
    )
    keys = {problem.split(" = ")[0].split(":")[0] for problem in problems}
    assert len(problems) == 7
    assert keys == {
        "num-node",
        "alpha",
        "momentum",
        "seed",
        "fedavg.lr",
        "dmml-kd.guidance",
        "dmml-kd.generatr",
    }


def test_all_conflicts_are_in_one_message() -> None:
    problems = problems_of(
        {
            "method": "fedavg",
            "compare-with": "scaffold",
            "topology": "torus",
            "num-nodes": 13,
            "partition": "natural",
            "data-path": "/no/such/folder",
            "modality-pattern": "lidar",
        }
    )
    starts = ["method", "compare-with", "partition", "modality-pattern", "topology", "data-path"]
    assert len(problems) == len(starts)
    for problem, start in zip(problems, starts, strict=True):
        assert problem.startswith(start)


def test_an_empty_method_is_refused() -> None:
    (problem,) = problems_of({"method": "", "compare-with": "dpsgd"})
    assert problem == f"method = '': {KNOWN}"


@pytest.mark.parametrize("key", ["learning-rate", "alpha", "dmml-kd.generator-lr"])
def test_infinity_is_refused(key: str) -> None:
    (problem,) = problems_of({key: float("inf")})
    assert problem.startswith(f"{key} = inf")


# What is derived


def test_learning_rate_by_hand() -> None:
    """Cosine over 4 rounds: 1/2 (1 + cos 0), cos(pi/4), cos(pi/2), cos(3 pi/4).

    Step over 10 rounds: rounds 1 to 8 have 0 to 70 % behind them, 9 and 10 have 80 and 90 %.
    Warm-up over half of 4 rounds: 1/3 and 2/3 of the way, then all of it.
    """

    def rates(schedule: Any, rounds: int, **more: Any) -> list[float]:
        settings = Settings(
            learning_rate=0.08, lr_schedule=schedule, num_server_rounds=rounds, **more
        )
        return [settings.learning_rate_at(t) for t in range(1, rounds + 1)]

    half = sqrt(2) / 2
    assert rates("constant", 3) == [0.08] * 3
    assert rates("cosine", 4) == pytest.approx([0.08, 0.04 * (1 + half), 0.04, 0.04 * (1 - half)])
    assert rates("step", 10) == pytest.approx([0.08] * 8 + [0.008] * 2)
    assert rates("step", 1) == rates("cosine", 1) == [0.08]
    twice = [0.08] * 6 + [0.008] * 2 + [0.0008] * 2
    assert rates("step", 10, lr_milestones="0.6, 0.8") == pytest.approx(twice)
    assert rates("constant", 4, lr_warm_up=0.5) == pytest.approx([0.08 / 3, 0.16 / 3, 0.08, 0.08])


def test_make_topology_takes_its_parameters() -> None:
    assert Settings().make_topology() == Ring()
    assert Settings(topology="torus").make_topology() == Torus()
    random = Settings(topology="erdos-renyi", topology_probability=0.7)
    assert random.make_topology() == ErdosRenyi(0.7)
    assert Settings(topology="edge-list", topology_file="x").make_topology() == EdgeList("x")


def test_partition_options_map_every_field() -> None:
    """All values differ from the defaults, so that a field which is not passed on shows."""
    given: dict[str, Any] = {
        "dataset": "av-digits",
        "data_path": "/data",
        "snr_db": 7.0,
        "seed": 11,
        "num_nodes": 6,
        "partition": "iid",
        "alpha": 0.9,
        "samples_per_node": 40,
        "validation_fraction": 0.2,
        "modality_pattern": "image",
        "missing": MissingOptions(train_share=0.5),
    }
    common = {
        "dataset": "av-digits",
        "num_nodes": 6,
        "load": LoadOptions(path="/data", snr_db=7.0, seed=11),
        "scheme": "iid",
        "alpha": 0.9,
        "samples_per_node": 40,
        "validation_fraction": 0.2,
        "missing": MissingOptions(train_share=0.5),
        "seed": 11,
    }
    by_pattern = Settings(**given).partition_options()
    assert by_pattern == PartitionOptions(**common, modality_pattern="image")
    by_shares = Settings(**given, modality_shares="image=1").partition_options()
    assert by_shares == PartitionOptions(**common, modality_shares="image=1")
    plain = PartitionOptions(dataset="digits", num_nodes=12)
    passed_on = {
        field.name
        for field in fields(PartitionOptions)
        for options in (by_pattern, by_shares)
        if getattr(options, field.name) != getattr(plain, field.name)
    }
    assert passed_on == {field.name for field in fields(PartitionOptions)}


# The quickstart app lists every setting

INTENDED = {
    "compare-with": ("dpsgd", ""),  # the quickstart shows a comparison,
    "energy.battery-share": (0.5, 0.0),  # on batteries that bind,
    "wireless.enabled": (True, False),  # over radio
}
"""Keys of the quickstart whose value is not the code's default: (there, default)."""


def defaults() -> dict[str, Any]:
    """Return the code's default of every key, the methods' own included."""
    return {key: info.default for key, info in every_setting(find_parts())}


def test_quickstart_lists_every_setting_with_its_default() -> None:
    config = tomllib.loads(QUICKSTART.read_text())["tool"]["flwr"]["app"]["config"]
    listed, expected = flatten_config(config), defaults()
    assert set(listed) == set(expected)
    assert {key: type(value) for key, value in listed.items()} == {
        key: type(value) for key, value in expected.items()
    }
    different = {k: (listed[k], expected[k]) for k in listed if listed[k] != expected[k]}
    assert different == INTENDED
    parse_settings(listed, find_parts())  # and it works


def test_each_side_looks_for_its_own_files_only(tmp_path: Path) -> None:
    """A device has no topology file, the coordinator no data folder."""
    parts = find_parts()
    missing = str(tmp_path / "missing")
    edges = {"topology": "edge-list", "topology-file": missing}
    parse_settings({"data-path": missing}, parts, side="coordinator")
    parse_settings(edges, parts, side="device")
    with pytest.raises(SettingsError, match="topology"):
        parse_settings(edges, parts, side="coordinator")
    with pytest.raises(SettingsError, match="data-path"):
        parse_settings({"data-path": missing}, parts, side="device")


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/x", "a/b", ".hidden"])
def test_a_run_name_is_a_plain_folder_name(name: str) -> None:
    (problem,) = problems_of({"run-name": name})
    assert problem.startswith(f"run-name = {name!r}")
