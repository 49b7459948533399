"""When KD and IDKD exchange labels, and the run configs that they refuse."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import IdkdOptions, KdOptions
from flwr_dmml.graph.topology import Ring
from flwr_dmml.learning.options import Options
from flwr_dmml.settings import Settings, find_parts, parse_settings
from flwr_dmml.strategies import PeerStrategy


def phases(start: float, exchange_every: int, num_rounds: int) -> str:
    """Return the phase of every round by its first letter: t, l or f."""
    options = KdOptions(start=start, exchange_every=exchange_every)
    found = options.phases(num_rounds)
    assert set(found) <= {"train", "label", "fine-tune"}
    return "".join(phase[0] for phase in found)


@pytest.mark.parametrize(
    ("start", "exchange_every", "num_rounds", "expected"),
    [
        (0.4, 2, 6, "ttlflf"),  # 2.4, so 2 rounds of training
        (0.4, 8, 30, "t" * 12 + "lfffffff" * 2 + "lf"),  # the defaults: 13, 21, 29
        (0.4, 0, 6, "ttlfff"),
        (0.4, 8, 6, "ttlfff"),
        (0.0, 1, 4, "lllf"),
        (0.0, 0, 4, "lfff"),
        (0.0, 3, 4, "lfff"),  # 4 is the last round: it labels no more
        (0.0, 2, 4, "lflf"),
        (0.5, 1, 5, "ttllf"),  # 2.5, to the even 2
        (0.5, 1, 7, "ttttllf"),  # 3.5, to the even 4
        (0.9, 1, 10, "t" * 10),  # 9, so the first would be the last: none is left
        (0.8, 1, 10, "t" * 8 + "lf"),
        (0.0, 0, 2, "lf"),
        (0.0, 0, 1, "t"),
    ],
)
def test_phases_by_hand(start: float, exchange_every: int, num_rounds: int, expected: str):
    assert phases(start, exchange_every, num_rounds) == expected


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 12), st.integers(1, 40))
def test_whatever_the_options_labels_are_of_use(start: float, every: int, num_rounds: int):
    """Training before the first labels, fine-tuning between; never labels in the last round."""
    found = phases(start, every, num_rounds)
    assert len(found) == num_rounds and found[-1] != "l"
    assert found == "".join(sorted(found, key="tlf".index)) or "lf" in found.lstrip("t")
    before, after = round(start * num_rounds), found.lstrip("t")
    if not after:
        assert before >= num_rounds - 1
        return
    assert len(found) - len(after) == before
    labels = [t for t, phase in enumerate(found, start=1) if phase == "l"]
    assert labels[0] == before + 1
    assert (len(labels) == 1) if every == 0 else labels == list(range(labels[0], num_rounds, every))


def test_the_number_of_rounds_is_that_of_the_run():
    options = KdOptions(start=0.5, exchange_every=0)
    assert [options.phase(3, n) for n in (4, 6, 20)] == ["label", "train", "train"]


def test_the_defaults():
    assert KdOptions() == KdOptions(start=0.4, exchange_every=8)
    assert KdOptions().phase(13, 30) == "label"


def test_plain_gossip_has_no_phases():
    assert PeerStrategy(Ring(), num_nodes=2).options.phases(3) == [""] * 3


# What is refused


IDKD: dict[str, Any] = {"method": "idkd", "samples-per-node": 40}


def parse(run_config: dict[str, Any]) -> tuple[Settings, Mapping[str, Options]]:
    parsed = parse_settings(run_config, find_parts())
    return parsed.settings, parsed.options


def problems_of(run_config: dict[str, Any]) -> list[str]:
    """Return the lines of the one error."""
    with pytest.raises(SettingsError) as error:
        parse(run_config)
    first, *lines = str(error.value).splitlines()
    assert first == "the run config cannot work:"
    return [line.strip() for line in lines]


def test_options_and_their_defaults():
    _, options = parse({**IDKD, "idkd.score": "energy", "kd.start": 0.5})
    assert options["idkd"] == IdkdOptions(start=0.4, exchange_every=8, score="energy")
    assert options["kd"] == KdOptions(start=0.5, exchange_every=8)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("idkd.start", 1.0, "less than 1"),
        ("idkd.start", -0.1, "greater than or equal to 0"),
        ("idkd.exchange-every", -1, "greater than or equal to 0"),
        ("idkd.score", "odin", "'msp' or 'energy'"),
        ("kd.score", "msp", "unknown setting"),
    ],
)
def test_an_option_that_cannot_be_is_named(key: str, value: Any, words: str):
    (problem,) = problems_of({**IDKD, key: value})
    assert problem.startswith(f"{key} = {value!r}: ") and words in problem


@pytest.mark.parametrize(
    ("start", "rounds", "fits"),
    [(0.4, 1, False), (0.4, 2, False), (0.2, 2, True), (0.9, 10, False), (0.9, 20, True)],
)
def test_a_run_that_is_too_short_for_labels(start: float, rounds: int, fits: bool):
    """Of 2 rounds 0.8 -> 1 is for training: the other one is the last. Of 20, 18 are: 19 labels."""
    config = {**IDKD, "num-server-rounds": rounds, "idkd.start": start}
    if fits:
        parse(config)
        return
    (problem,) = problems_of(config)
    assert problem.startswith(f"num-server-rounds = {rounds}: ") and f"{start:g}" in problem


def test_idkd_needs_samples_to_calibrate_on_and_kd_does_not():
    (problem,) = problems_of({**IDKD, "validation-fraction": 0.0})
    assert problem.startswith("validation-fraction = 0: ") and "above 0" in problem
    parse({**IDKD, "method": "kd", "validation-fraction": 0.0})


@pytest.mark.parametrize("method", ["kd", "idkd"])
def test_rounds_without_training_are_refused_and_a_problem_of_two_methods_is_said_once(method: str):
    config = {**IDKD, "method": method, "compare-with": "kd", "allocation.rule": "sync-only"}
    (problem,) = problems_of(config)
    assert problem.startswith("allocation.rule = 'sync-only': ")


@pytest.mark.parametrize("method", ["kd", "idkd"])
def test_a_public_set_that_cannot_be(method: str):
    config = {**IDKD, "method": method}
    (problem,) = problems_of({**config, "public.dataset": "imagenet"})
    assert problem.startswith("public.dataset = 'imagenet': ")
    (problem,) = problems_of({**config, "public.outside": "digits"})
    assert problem.startswith("public.outside = 'digits': ")


def test_all_that_is_wrong_comes_in_one_error():
    """Also with what is wrong with the settings and the options themselves."""
    config = {
        **IDKD,
        "num-server-rounds": 1,
        "validation-fraction": 0.0,
        "optimizer": "adam",
        "public.dataset": "imagenet",
        "topology": "dyck",
        "dmml-kd.guidance": -1.0,
    }
    keys = [problem.split(" = ")[0] for problem in problems_of(config)]
    assert sorted(keys) == sorted(
        ["num-server-rounds", "validation-fraction", "optimizer", "public.dataset", "topology",
         "dmml-kd.guidance"]
    )  # fmt: skip


SHORT = {"num-server-rounds": 1, "samples-per-node": 40}


def test_only_methods_that_are_to_run_are_asked():
    """A run of one round is fine for D-PSGD, whatever IDKD would say."""
    parse({**SHORT, "method": "dpsgd"})
    parse({**SHORT, "method": "dpsgd", "compare-with": "local"})
    for config in (
        {**SHORT, "method": "idkd", "compare-with": "dpsgd"},
        {**SHORT, "method": "dpsgd", "compare-with": "idkd"},
        {**SHORT, "method": "idkd", "compare-with": "idkd"},
    ):
        (problem,) = problems_of(config)
        assert problem.startswith("num-server-rounds = 1: ")


def test_both_methods_of_a_comparison_are_asked():
    """Each by its own options: KD would start early enough here, IDKD too late."""
    config = {**IDKD, "compare-with": "kd", "num-server-rounds": 4, "kd.start": 0.25}
    parse(config)
    (problem,) = problems_of({**config, "idkd.start": 0.8})
    assert "0.8" in problem
    assert len(problems_of({**config, "idkd.start": 0.8, "kd.start": 0.9})) == 2


def test_a_method_whose_own_options_are_wrong_is_not_asked():
    (problem,) = problems_of({**SHORT, "method": "idkd", "idkd.start": 2.0})
    assert problem.startswith("idkd.start = 2.0")


def test_methods_ask_for_what_they_need_and_the_others_for_nothing():
    settings = Settings(num_server_rounds=1, validation_fraction=0.0)
    for name, options in find_parts().options.items():
        expected = {"kd": 1, "idkd": 2, "harmony": 1, "modality-mirror": 2}.get(name, 0)
        assert len(options().problems(settings)) == expected, name
