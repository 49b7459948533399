"""Comparisons: groups, baseline, blocks, columns, significance, digits, and what papers need."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers_report import Page, invoke, make_round, older, two_methods, words, write_run

from flwr_dmml.report import (
    Comparison,
    Group,
    ReportError,
    compare_runs,
    group_runs,
    read_runs,
    render_page,
)
from flwr_dmml.report.columns import COLUMNS, FAMILIES, decimals, rounded
from flwr_dmml.report.export import NEEDS_CHROME
from flwr_dmml.report.paired import Paired, sign_flip, t_interval
from flwr_dmml.report.parts import Table
from flwr_dmml.strategies.resuming import FREE


def one_round(parent: Path, name: str, accuracy: float, seed: int, method: str = "local",
              **settings: Any) -> Path:  # fmt: skip
    """Write a run whose three devices end a tenth below, at and a tenth above ``accuracy``."""
    accuracies = [accuracy - 0.1, accuracy, accuracy + 0.1]
    rounds = [make_round(1, accuracies), make_round(2, accuracies, joules=2.0 + seed)]
    return write_run(parent, name, {method: rounds}, seed=seed, **settings)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two values of alpha, three seeds."""
    parent = tmp_path_factory.mktemp("sweep")
    for alpha, accuracies in {0.1: (0.40, 0.44, 0.48), 1.0: (0.60, 0.70, 0.62)}.items():
        for seed, accuracy in enumerate(accuracies):
            one_round(parent / f"alpha-{alpha}", f"seed-{seed}", accuracy, seed, alpha=alpha)
    return parent


def groups_of(*paths: Path) -> list[Group]:
    return group_runs(read_runs(paths)[0])[0]


def compared(*paths: Path, **asked: Any) -> Comparison:
    return compare_runs(read_runs(paths)[0], **asked)[0]


def paired(*paths: Path, **asked: Any) -> list[Paired | None]:
    """Return the difference of each group to the baseline."""
    comparison = compared(*paths, **asked)
    return [comparison.difference(group, comparison.metric) for group in comparison.groups]


def cells(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.head, row, strict=True)) for row in table.rows]


def test_runs_are_grouped_by_everything_but_the_seed(sweep: Path) -> None:
    groups = groups_of(sweep)
    assert [group.label for group in groups] == ["local, alpha=0.1", "local, alpha=1.0"]
    assert [sorted(group.runs) for group in groups] == [[0, 1, 2], [0, 1, 2]]


def test_mean_and_standard_deviation_over_seeds(sweep: Path) -> None:
    """0.40, 0.44, 0.48: mean 0.44, deviations -0.04, 0, 0.04, so sqrt(0.0032 / 2) = 0.040.

    0.60, 0.70, 0.62: mean 0.64, deviations -0.04, 0.06, -0.02, so sqrt(0.0056 / 2) = 0.053.
    Standard errors 0.023 and 0.031, so two decimals. Joules after two rounds: 2 (2 + seed) = 4, 6,
    8: mean 6, deviation 2, standard error 1.15, so one decimal.
    """
    rows = cells(compared(sweep).results)
    assert [c["accuracy"] for c in rows] == ["0.44 ± 0.04", "0.64 ± 0.05"]
    assert [c["macro-F1"] for c in rows] == ["0.35 ± 0.03", "0.51 ± 0.04"]  # 0.8 of it
    assert [c["worst device"] for c in rows] == ["0.34 ± 0.04", "0.54 ± 0.05"]
    assert [c["devices with image"] for c in rows] == ["0.44 ± 0.04", "0.64 ± 0.05"]
    assert rows[0]["joules"] == "6.0 ± 2.0" and rows[0]["MB sent"] == "6 ± 0"
    assert rows[0]["seeds"] == "3"


@pytest.mark.parametrize(
    ("errors", "places", "shown"),
    [
        ([0.023, 0.031], 2, "123.46"),
        ([0.0153], 3, "123.456"),  # it begins with a 1, so its second digit counts
        ([0.02], 2, "123.46"),
        ([3.4], 0, "123"),
        ([23.0], -1, "120"),
        ([0.0, 0.4], 1, "123.5"),
        ([0.0], None, ""),
        ([float("nan")], None, ""),
        ([], None, ""),
    ],
)
def test_digits_end_where_noise_begins(errors: list[float], places: int | None, shown: str) -> None:
    assert decimals(errors) == places
    if places is not None:
        assert rounded(123.4562, places) == shown and "-" not in rounded(-1e-9, places)


def test_shares_in_percent(sweep: Path) -> None:
    """Of accuracies, not of joules."""
    table = compared(sweep, percent=True, columns=["accuracy", "joules", "set=audio"]).results
    assert table.head == ["", "accuracy", "joules", "devices with audio"]
    assert "in percent" in table.caption
    assert table.rows[0] == ["local, alpha=0.1", "44 ± 4", "6.0 ± 2.0", "34 ± 4"]


def test_one_seed_has_no_spread_and_the_usual_digits(tmp_path: Path) -> None:
    for name, accuracy in (("a", 0.4), ("b", 0.5)):
        one_round(tmp_path, name, accuracy, 0, alpha=accuracy)
    comparison = compared(tmp_path, columns=["accuracy", "difference"])
    assert [row[1:] for row in comparison.results.rows] == [["0.400", "-"], ["0.500", "+10.0"]]
    assert comparison.results.bold == {(1, 1)}
    assert "One seed cannot tell a difference from chance" in comparison.results.caption
    assert "does not tell from it" not in comparison.results.caption


def test_the_best_is_bold_and_what_is_not_told_from_it(tmp_path: Path) -> None:
    """c is 2 points below b on average, but 2 above once; a is 10 below in every seed.

    Worst devices alike. Joules are the same in all, so none is the best; d spends more.
    """
    for seed in range(3):
        one_round(tmp_path, f"a{seed}", 0.4 + 0.1 * seed, seed, alpha=0.1)
        one_round(tmp_path, f"b{seed}", 0.5 + 0.1 * seed, seed, alpha=0.2)
        one_round(tmp_path, f"c{seed}", (0.52, 0.56, 0.66)[seed], seed, alpha=0.3)
    comparison = compared(tmp_path, columns=["accuracy", "joules"])
    assert comparison.results.bold == {(1, 1), (2, 1)}
    assert "Bold: the best of a column, and what a paired 95 %" in comparison.results.caption
    html = comparison.results.to_html()
    assert html.count("<strong>") == 2 and "<strong>0.60 ± 0.10</strong>" in html
    assert comparison.results.to_latex().count(r"\textbf{") == 2
    assert "| **0.60 ± 0.10** |" in comparison.results.to_markdown()
    more = [make_round(r, [0.1] * 3, joules=9.0) for r in (1, 2)]
    write_run(tmp_path, "d", {"local": more}, seed=0, alpha=0.4)
    bold = compared(tmp_path, columns=["accuracy", "joules"]).results.bold
    assert {i for i, column in bold if column == 2} == {0, 1, 2}  # the least joules


def test_the_significance_of_three_seeds(sweep: Path) -> None:
    """Differences 20, 26, 14: all of one sign, so 2 of 8 flips are as far out: p = 0.25.

    Mean 20, deviation 6; t(0.975, 2) = 4.3027: 20 -+ 4.3027 * 6 / sqrt(3) = 5.10 and 34.90.
    """
    base, pair = paired(sweep)
    assert base is None and pair is not None
    assert pair.mean == pytest.approx(0.2) and pair.p == pair.smallest_p == 0.25
    assert pair.interval == pytest.approx((0.05095, 0.34905), abs=1e-4) and pair.told_apart
    table = compared(sweep).differences
    assert table is not None and "Differences to local, alpha=0.1 in the mean" in table.caption
    assert table.head == ["", "difference", "95 % interval", "p", "seeds", "reading"]
    assert table.rows == [
        [
            "local, alpha=1.0",
            "+20",
            "+5 to +35",
            "0.25",
            "3",
            "too few seeds: p cannot be below 0.25",
        ]
    ]
    row = compared(sweep, columns=["difference"]).results.rows[1]
    assert row == ["local, alpha=1.0", "+20 [+5, +35]"]


@pytest.mark.parametrize(("metric", "share"), [("macro-f1", 0.8), ("uar", 0.9)])
def test_other_metrics_are_tested_on_request(
    sweep: Path, tmp_path: Path, metric: str, share: float
) -> None:
    pair = paired(sweep, metric=metric)[1]
    assert pair is not None and pair.mean == pytest.approx(0.2 * share)
    output = tmp_path / "c.html"
    assert invoke("compare", sweep, "-o", output, "--metric", metric).exit_code == 0
    name = {"macro-f1": "macro-F1", "uar": "unweighted average recall"}[metric]
    page = Page(output.read_text())
    assert page.row("differences", "local, alpha=1.0")[0] == f"+{20 * share:.0f}"
    assert f"Differences of the mean {name} over devices" in words(page.text)


def test_a_metric_that_a_run_does_not_have(tmp_path: Path) -> None:
    one_round(tmp_path, "a", 0.4, 0)
    older(one_round(tmp_path, "b", 0.5, 0, alpha=1.0))
    result = invoke("compare", tmp_path, "-o", tmp_path / "c.html", "--metric", "macro-f1")
    assert result.exit_code == 1 and not (tmp_path / "c.html").exists()
    text = "metric macro-f1: b does not have it (local, alpha=1.0)"
    assert text in words(result.stderr)
    assert invoke("compare", tmp_path, "-o", tmp_path / "c.html").exit_code == 0
    page = Page((tmp_path / "c.html").read_text())
    assert [row[3] for row in page.tables["results"]] == ["macro-F1", "0.320", "-"]
    assert invoke("compare", tmp_path, "--metric", "f1").exit_code == 2


def test_sign_flip_by_hand() -> None:
    """1, 2, -1 sum to 2. Sums of all flips: +-1 +-2 +-1 = 4, 2, 0, -2 | 2, 0, -2, -4.

    |sum| >= 2: 4, 2, -2, 2, -2, -4, so 6 of 8.
    """
    assert sign_flip([1, 2, -1]) == 0.75
    assert sign_flip([0.1, 0.2, -0.1]) == 0.75  # 0.1 + 0.2 - 0.1 is not 0.2 in floating point
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([1.0] * 6) == 2 / 64
    assert sign_flip([1.0] * 20) == pytest.approx(1 / 100_001, abs=3e-5)


def test_the_t_interval_by_hand() -> None:
    """1 and 3: mean 2, deviation sqrt(2), t(0.975, 1) = 12.706: 2 -+ 12.706."""
    assert t_interval([1, 3]) == pytest.approx((-10.706, 14.706), abs=1e-3)


def test_six_seeds_can_tell(tmp_path: Path) -> None:
    for seed in range(6):
        one_round(tmp_path, f"a{seed}", 0.4 + 0.01 * seed, seed)
        one_round(tmp_path, f"b{seed}", 0.5 + 0.02 * seed, seed, alpha=1.0)
    pair = paired(tmp_path)[1]
    assert pair is not None and pair.p == 2 / 64
    assert pair.reading == "unlikely to be chance alone"


def test_seeds_that_do_not_pair(tmp_path: Path) -> None:
    one_round(tmp_path, "a", 0.4, 0)
    one_round(tmp_path, "b", 0.5, 1, alpha=1.0)
    one_round(tmp_path, "c", 0.5, 0, alpha=2.0)
    table = compared(tmp_path).differences
    assert table is not None
    assert [row[1:] for row in table.rows] == [
        ["-", "-", "-", "0", "no seed in common, so nothing can be paired"],
        ["+10.0", "-", "-", "1", "one seed says nothing about chance"],
    ]


def test_methods_are_apart_and_options_of_others_do_not_count(tmp_path: Path) -> None:
    """The baseline is the same in both runs, though an option of the other method differs."""
    two_methods(tmp_path, "a", **{"dmml-kd.guidance": 0.5})
    two_methods(tmp_path, "b", seed=1, **{"dmml-kd.guidance": 0.25})
    groups = groups_of(tmp_path)
    assert [group.label for group in groups] == [
        "dpsgd", "dmml-kd, dmml-kd.guidance=0.5", "dmml-kd, dmml-kd.guidance=0.25",
    ]  # fmt: skip
    assert sorted(groups[0].runs) == [0, 1]


@pytest.mark.parametrize(
    "key", sorted(FREE - {"data-path"} | {"report-classes", "keep-best", "exchange.sealed"})
)
def test_what_results_do_not_depend_on_does_not_count(tmp_path: Path, key: str) -> None:
    run = one_round(tmp_path, "a", 0.4, 0)
    one_round(tmp_path, "b", 0.4, 1)
    config = json.loads((run / "config.json").read_text())
    assert key in config
    (run / "config.json").write_text(json.dumps(config | {key: "another"}))
    assert [sorted(group.runs) for group in groups_of(tmp_path)] == [[0, 1]]


def test_data_of_another_folder_count(tmp_path: Path) -> None:
    one_round(tmp_path, "a", 0.4, 0, data_path=str(tmp_path))
    one_round(tmp_path, "b", 0.4, 1)
    assert len(groups_of(tmp_path)) == 2


def test_a_repeated_run_counts_once(tmp_path: Path) -> None:
    for name, accuracy in (("a", 0.4), ("b", 0.4), ("c", 0.5)):
        one_round(tmp_path, name, accuracy, 0)
    groups, warnings = group_runs(read_runs([tmp_path, tmp_path / "a"])[0])
    assert len(groups) == 1 and groups[0].runs[0][0].name == "a"
    assert len(warnings) == 1 and "a and c have the same settings and seed" in warnings[0]


def test_incomplete_runs_are_left_out_and_named(tmp_path: Path) -> None:
    one_round(tmp_path, "a", 0.4, 0)
    one_round(tmp_path, "b", 0.5, 1)
    path = tmp_path / "b" / "local" / "metrics.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    started = tmp_path / "c"
    started.mkdir()
    (started / "config.json").write_text("{}")
    output = tmp_path / "out" / "comparison.html"
    result = invoke("compare", tmp_path, "-o", output)
    assert result.exit_code == 0, result.output
    page = Page(output.read_text())
    assert page.row("results", "local")[:2] == ["1", "0.400"]
    assert "significance" not in page.ids
    assert page.row("runs", "local") == ["0", "a", "b, 1 of 2 rounds"]
    for text in ("local: b, 1 of 2 rounds; left out of all figures", "c: left out, it has not"):
        assert text in page.text and text in words(result.stderr)


def test_nothing_to_compare(tmp_path: Path) -> None:
    run = one_round(tmp_path, "a", 0.4, 0)
    (tmp_path / "empty").mkdir()
    cases = {
        (run,): "nothing to compare: give two runs or more",
        (run, run): "nothing to compare: give two runs or more",
        (run, tmp_path / "empty"): "neither a run folder nor a folder that holds runs",
        (run, tmp_path / "missing"): "no such folder",
    }
    for paths, reason in cases.items():
        result = invoke("compare", *paths, "-o", tmp_path / "c.html")
        assert result.exit_code == 1 and reason in words(result.stderr)
        assert not (tmp_path / "c.html").exists()


def test_no_complete_run(tmp_path: Path) -> None:
    for name in "ab":
        write_run(tmp_path, name, {"local": [make_round(1, [1, 1, 1])]}, num_server_rounds=2)
    with pytest.raises(ReportError, match="nothing to compare: no complete run of local"):
        groups_of(tmp_path)


def test_a_group_without_a_complete_run_is_left_out(tmp_path: Path) -> None:
    """Whether it has not got far, or has an empty file of a run that was killed at once."""
    one_round(tmp_path, "a", 0.4, 0, "dpsgd")
    one_round(tmp_path, "b", 0.5, 0, "dmml-kd")
    write_run(tmp_path, "c", {"local": [make_round(1, [1, 1, 1])]}, num_server_rounds=2)
    empty = one_round(tmp_path, "d", 0.5, 0, "fedprox")
    (empty / "fedprox" / "metrics.jsonl").write_text("")
    output = tmp_path / "c.html"
    labels = ("--label", "old", "--label", "new", "--label", "alone")
    for given in ((), labels):
        result = invoke("compare", tmp_path, "-o", output, *given)
        assert result.exit_code == 0, result.output
        assert len(Page(output.read_text()).tables["results"]) == 1 + 2
        name = "alone" if given else "local"
        for text in (
            f"{name}: no complete run, so it is not compared",
            "d: left out, it has not finished a round",
        ):
            assert text in words(result.stderr)


def test_only_devices_that_all_runs_of_a_seed_evaluated_count(tmp_path: Path) -> None:
    """dmml-kd loses device 2 with seed 0: 0.3 and 0.4 against 0.5 and 0.6; all with seed 1."""
    for seed in (0, 1):
        one_round(tmp_path, f"a{seed}", 0.4, seed, "dpsgd")
        run = one_round(tmp_path, f"b{seed}", 0.6, seed, "dmml-kd")
        if seed == 0:
            lose_last_device(run / "dmml-kd")
    comparison, warnings = compare_runs(read_runs([tmp_path])[0])
    pair = comparison.difference(comparison.groups[1], COLUMNS["accuracy"])
    assert pair is not None and pair.values == pytest.approx([0.2, 0.2])
    found = [r["values"] for r in comparison.records() if r["column"] == "accuracy"]
    assert found == [pytest.approx({0: 0.35, 1: 0.4}), pytest.approx({0: 0.55, 1: 0.6})]
    assert warnings == [
        "b0: dmml-kd: 2 of 3 devices finished; the last accuracies are theirs. Missing: 2",
        "seed 0: accuracies are those of 2 of 3 devices, which all runs evaluated at the end",
    ]


def lose_last_device(folder: Path) -> None:
    """Take device 2 out of the last round of a method."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["nodes"] = lines[-1]["nodes"][:2]
    lines[-1]["failed"] = {"2": "no reply"}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_runs_of_other_numbers_of_devices_are_not_cut(tmp_path: Path) -> None:
    one_round(tmp_path, "a", 0.4, 0, num_nodes=3)
    more = [make_round(r, [0.5] * 4, devices=4) for r in (1, 2)]
    write_run(tmp_path, "b", {"local": more}, seed=0, num_nodes=4)
    assert group_runs(read_runs([tmp_path])[0])[1] == []


def test_a_seed_without_a_device_in_common_is_left_out(tmp_path: Path) -> None:
    for seed in (0, 1):
        for name, method in (("a", "dpsgd"), ("b", "local")):
            one_round(tmp_path, f"{name}{seed}", 0.4, seed, method)
    for name, method, kept in (("a0", "dpsgd", slice(1)), ("b0", "local", slice(1, None))):
        metrics = tmp_path / name / method / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        lines[-1]["nodes"] = lines[-1]["nodes"][kept]
        metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    groups, warnings = group_runs(read_runs([tmp_path])[0])
    assert [sorted(group.runs) for group in groups] == [[1], [1]]
    assert "seed 0: no device was evaluated in all runs at the end; left out" in warnings


def test_settings_at_their_defaults_are_those_of_all_groups(tmp_path: Path) -> None:
    """Also where the first group has a default that another one has not, or lacks an option."""
    one_round(tmp_path, "a", 0.4, 0, "local", alpha=0.3)
    one_round(tmp_path, "b", 0.4, 0, "dmml-kd", alpha=0.1)
    assert invoke("compare", tmp_path, "-o", tmp_path / "c.html").exit_code == 0
    tables = Page((tmp_path / "c.html").read_text()).tables
    usual = {row[0] for row in tables["defaults"]}
    assert "alpha" not in usual and {"dmml-kd.guidance", "topology"} <= usual
    assert "alpha" in {row[0] for row in tables["settings"]}


def test_different_data_sets_are_warned_of(tmp_path: Path) -> None:
    one_round(tmp_path, "a", 0.4, 0)
    run = one_round(tmp_path, "b", 0.4, 0)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"dataset": "mnist"}))
    warnings = group_runs(read_runs([tmp_path])[0])[1]
    assert warnings == ["different data sets (digits, mnist): accuracies do not compare"]


def test_other_versions_are_warned_of(tmp_path: Path) -> None:
    """Also those with which a run was resumed."""
    about = {}
    for seed in range(3):
        about[seed] = one_round(tmp_path, f"s{seed}", 0.4, seed) / "run.json"
    assert compare_runs(read_runs([tmp_path])[0])[1] == []
    first = json.loads(about[0].read_text())
    about[1].write_text(json.dumps(first | {"git": {"revision": "f00", "dirty": False}}))
    resumed = {"created": "2026-11-22T12:00:00", "versions": {"torch": "2.12.0"}, "git": None}
    about[2].write_text(json.dumps(first | {"resumed": [resumed]}))
    assert compare_runs(read_runs([tmp_path])[0])[1] == [
        "different versions of torch: 2.11.0; 2.11.0 then 2.12.0",
        "different git revisions: abc1234 with uncommitted changes; f00",
    ]


def test_other_samples_under_the_same_settings_are_warned_of(tmp_path: Path) -> None:
    for name, method in (("a", "dpsgd"), ("b", "local"), ("c", "fedprox")):
        one_round(tmp_path, name, 0.4, 0, method, alpha=0.2 if name == "c" else 0.1)
    for name, method in (("b", "local"), ("c", "fedprox")):
        file = tmp_path / name / method / "devices.json"
        devices = json.loads(file.read_text())
        devices["nodes"][1]["class_counts"] = [29, 6, 1]
        file.write_text(json.dumps(devices))
    (warning,) = compare_runs(read_runs([tmp_path])[0])[1]
    assert warning.startswith("a and b: their devices have different training samples, though")


def test_labels(sweep: Path, tmp_path: Path) -> None:
    output = tmp_path / "c.html"
    given = ("--label", "skewed", "--label", "<even>")
    assert invoke("compare", sweep, "-o", output, *given).exit_code == 0
    page = Page(output.read_text())
    assert [row[0] for row in page.tables["results"][1:]] == ["skewed", "<even>"]
    result = invoke("compare", sweep, "-o", output, "--label", "one")
    assert result.exit_code == 1
    assert "1 labels for 2 groups: local, alpha=0.1; local, alpha=1.0" in words(result.stderr)
    result = invoke("compare", sweep, "-o", output, "--label", "x", "--label", "x")
    assert result.exit_code == 1 and "the same label" in words(result.stderr)


def test_the_curves_of_a_comparison(sweep: Path, tmp_path: Path) -> None:
    """Over joules a point stands at the mean over seeds: round 1 at 2, round 2 at 4, 6, 8."""
    output = tmp_path / "c.html"
    assert invoke("compare", sweep, "-o", output).exit_code == 0
    figures = Page(output.read_text()).figures
    band, line = figures["accuracy-joules"]["data"][:2]
    assert line["x"] == [2, 6] and line["y"] == [0.44, 0.44]
    assert band["y"] == [0.4, 0.4, 0.48, 0.48]
    assert {"accuracy-rounds", "accuracy-seconds", "accuracy-bytes", "set-0"} <= set(figures)
    axes = [f["layout"]["yaxis"].get("range") for n, f in figures.items() if n.startswith("set-")]
    assert axes == [[0, 1.02]] * 3


def test_latex_and_markdown(sweep: Path, tmp_path: Path) -> None:
    latex, markdown = tmp_path / "deep" / "t.tex", tmp_path / "t.md"
    labels = ("--label", "100%_a & b", "--label", "x|y<z>*")
    files = ("--latex", latex, "--markdown", markdown)
    assert invoke("compare", sweep, "-o", tmp_path / "c.html", *files, *labels).exit_code == 0
    tex = latex.read_text(encoding="utf-8")
    assert r"100\%\_a \& b & 3 & 0.44 $\pm$ 0.04 &" in tex
    assert r"x\textbar{}y\textless{}z\textgreater{}* & 3 & \textbf{0.64 $\pm$ 0.05} &" in tex
    assert r"\begin{tabular}{lrrrrrrrrrrrr}" in tex and tex.count(r"\\") == 3 + 2
    lines = markdown.read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line[:1] == "|"]
    assert len(table) == 4 + 3 and table[1].startswith("| :-- | --: |")
    assert table[2].startswith(r"| 100%\_a & b | 3 | 0.44 ± 0.04 |")
    assert table[3].startswith(r"| x\|y\<z\>\* | 3 | **0.64 ± 0.05** |")
    assert (
        table[6]
        == r"| x\|y\<z\>\* | +20 | +5 to +35 | 0.25 | 3 | too few seeds: p cannot be below 0.25 |"
    )


# The baseline


@pytest.mark.parametrize(
    ("methods", "first", "why"),
    [
        (("dmml-kd", "dpsgd", "local"), "dpsgd", "the method dpsgd, since no run names one"),
        (("dmml-kd", "local"), "local", "the method local, since no run names one"),
        (("fedprox", "dmml-kd"), "fedprox", "the first one, since no run names one"),
    ],
)
def test_the_usual_baseline(tmp_path: Path, methods: tuple[str, ...], first: str, why: str) -> None:
    """Its row is the first one, and the page says why it is that."""
    for i, method in enumerate(methods):
        one_round(tmp_path, f"{i}-{method}", 0.4, 0, method)
    assert invoke("compare", tmp_path, "-o", tmp_path / "c.html").exit_code == 0
    page = Page((tmp_path / "c.html").read_text())
    assert f"Baseline: {first} ({why}" in page.text
    rows = [row[0] for row in page.tables["results"][1:]]
    assert rows == [first, *(method for method in methods if method != first)]


def test_the_method_that_compare_with_names_is_the_baseline(tmp_path: Path) -> None:
    one_round(tmp_path, "a", 0.4, 0, "dpsgd")
    both = {method: [make_round(r, [0.5] * 3) for r in (1, 2)] for method in ("local", "dmml-kd")}
    write_run(tmp_path, "b", both, compare_with="local")
    comparison = compared(tmp_path)
    assert comparison.baseline == "local" and comparison.rows == ["local", "dpsgd", "dmml-kd"]
    assert comparison.why == "the method that compare-with names"


def test_a_baseline_that_was_asked_for(sweep: Path, tmp_path: Path) -> None:
    """By the name of its row, by its label, or by its method where that is one row."""
    for method in ("dpsgd", "dmml-kd"):
        one_round(tmp_path, method, 0.4, 0, method)
    assert compared(tmp_path, baseline="dmml-kd").baseline == "dmml-kd"
    labelled = compared(tmp_path, labels=["ours", "theirs"], baseline="ours")
    assert labelled.baseline == labelled.rows[0] == "ours"
    assert compared(tmp_path, labels=["ours", "theirs"], baseline="dpsgd").baseline == "theirs"
    (pair,) = [p for p in paired(sweep, baseline="local, alpha=1.0") if p]
    assert pair.mean == pytest.approx(-0.2)
    for wrong, reason in (("local", "is several rows"), ("dsgd", "is no row")):
        with pytest.raises(
            ReportError, match=f"baseline = '{wrong}': {reason}; choose one of local"
        ):
            compared(sweep, baseline=wrong)


def test_groups_of_a_folder_come_in_the_order_in_which_their_runs_were_made(
    tmp_path: Path,
) -> None:
    for day, (name, method) in enumerate((("z", "local"), ("y", "fedprox"), ("x", "ccl"))):
        run = one_round(tmp_path, name, 0.4, 0, method)
        about = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(about | {"created": f"2026-11-0{day + 1}"}))
    assert [group.method for group in groups_of(tmp_path)] == ["local", "fedprox", "ccl"]
    assert [group.method for group in groups_of(tmp_path / "x", tmp_path)] == [
        "ccl",
        "local",
        "fedprox",
    ]


# Blocks


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods on two graphs, three seeds; one graph has an option of its own."""
    parent = tmp_path_factory.mktemp("graphs")
    gains = {"dpsgd": 0.0, "dmml-kd": 0.1}
    for topology, own in (("ring", {}), ("erdos-renyi", {"erdos-renyi.probability": 0.4})):
        for method, gain in gains.items():
            for seed in range(3):
                accuracy = 0.4 + 0.1 * (topology == "ring") + gain * (1 + seed / 10)
                path = one_round(parent, f"{method}-{topology}-{seed}", accuracy, seed, method)
                config = json.loads((path / "config.json").read_text())
                (path / "config.json").write_text(json.dumps(config | {"topology": topology} | own))
    return parent


def test_a_block_for_each_value_of_a_setting(graphs: Path, tmp_path: Path) -> None:
    """Gains 10, 11, 12 points in both: mean 11, deviation 1, standard error 0.58.

    t(0.975, 2) = 4.3027, so 11 -+ 2.48. The option of one graph is no difference of the rows.
    """
    asked = ["--by", "topology", "--columns", "accuracy,difference", "--percent"]
    tex, markdown = tmp_path / "t.tex", tmp_path / "t.md"
    asked += ["--latex", str(tex), "--markdown", str(markdown)]
    done = invoke("compare", graphs, "-o", tmp_path / "c.html", *asked)
    assert done.exit_code == 0 and "Warning" not in done.output
    page = Page((tmp_path / "c.html").read_text())
    over, head, base, ours = page.tables["results"]
    assert over == ["", "topology = erdos-renyi", "topology = ring"]
    assert head == ["", *["accuracy", "difference"] * 2]
    assert base == ["dpsgd", "40.0 ± 0.0", "-", "50.0 ± 0.0", "-"]
    assert ours[0] == "dmml-kd" and ours[2] == ours[4] == "+11.0 [+8.5, +13.5]"
    assert [row[:3] for row in page.tables["differences"][1:]] == [
        ["dmml-kd", "erdos-renyi", "+11.0"],
        ["dmml-kd", "ring", "+11.0"],
    ]
    assert {"ring-accuracy-rounds", "erdos-renyi-accuracy-rounds"} <= set(page.figures)
    names = [line["name"] for line in page.figures["ring-accuracy-rounds"]["data"]]
    assert set(names) == {"dpsgd", "dmml-kd"}
    assert r" & \multicolumn{2}{c}{topology = erdos-renyi} & \multicolumn{2}{c}" in tex.read_text()
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}" in tex.read_text()
    assert "|  | topology = erdos-renyi: accuracy |" in markdown.read_text()


def test_the_best_is_the_best_of_its_block(graphs: Path) -> None:
    """dmml-kd on either graph, though it is worse on one than dpsgd is on the other."""
    assert compared(graphs, by="topology", columns=["accuracy"]).results.bold == {(1, 1), (1, 2)}


def test_what_goes_with_the_blocks_is_warned_of(tmp_path: Path) -> None:
    one_round(tmp_path, "a", 0.4, 0, topology="ring", alpha=0.1)
    one_round(tmp_path, "b", 0.4, 0, topology="complete", alpha=1.0)
    comparison, warnings = compare_runs(read_runs([tmp_path])[0], by="topology")
    assert comparison.rows == ["local"] and comparison.blocks == ["ring", "complete"]
    assert warnings == ["the blocks of topology differ in alpha, too"]


def test_a_block_without_the_baseline(tmp_path: Path) -> None:
    one_round(tmp_path, "a", 0.4, 0, "dpsgd", topology="ring")
    one_round(tmp_path, "b", 0.5, 0, "dmml-kd", topology="ring")
    one_round(tmp_path, "c", 0.5, 0, "dmml-kd", topology="complete")
    comparison, warnings = compare_runs(read_runs([tmp_path])[0], by="topology")
    no_base = "topology = complete: no run of the baseline dpsgd, so nothing is paired there"
    assert warnings == [no_base]
    assert comparison.results.rows[0][1] == "1" and "-" in comparison.results.rows[0]
    assert comparison.differences is not None and len(comparison.differences.rows) == 1


@pytest.mark.parametrize("by", ["topolgy", "seed", "method"])
def test_blocks_by_no_setting(graphs: Path, by: str) -> None:
    with pytest.raises(
        ReportError, match=f"by = '{by}': .* no such setting; .* differ in .*topology"
    ):
        compared(graphs, by=by)


def test_data_sets_as_blocks_are_no_mistake(tmp_path: Path) -> None:
    for name, dataset in (("a", "digits"), ("b", "mnist")):
        run = one_round(tmp_path, name, 0.4, 0)
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"dataset": dataset}))
    assert compare_runs(read_runs([tmp_path])[0], by="dataset")[1] == []


# Columns and files


def test_columns_by_name(sweep: Path) -> None:
    """1 MB a device and round."""
    asked = ["uar", "best", "kb", "mb", "seconds", "modalities", "modality=image"]
    table = compared(sweep, columns=asked).results
    assert table.head[1:] == [
        "UAR", "best device", "kB per device and round", "MB sent", "simulated s",
        "from audio alone", "from image alone", "from image alone",
    ]  # fmt: skip
    assert cells(table)[0]["kB per device and round"] == "1000 ± 0"
    assert cells(table)[1]["best device"] == "0.74 ± 0.05"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("f1", "no column 'f1'; there are seeds, difference, accuracy"),
        ("set=smell", "column 'set=smell': the runs have audio, audio"),
        ("", "no column ''"),
    ],
)
def test_columns_that_there_are_not(sweep: Path, name: str, reason: str) -> None:
    with pytest.raises(ReportError, match=reason):
        compared(sweep, columns=["accuracy", name])


def test_the_help_names_every_column() -> None:
    text = words(invoke("compare", "--help").output)
    named = re.findall(r"[\w-]+", text.partition("Columns")[2].partition("Examples")[0])
    assert {*COLUMNS, *FAMILIES, "seeds", "difference"} <= set(named)


def test_the_records(graphs: Path, tmp_path: Path) -> None:
    """In the table's unit: a difference of accuracies is in percent with ``--percent``."""
    files = {name: tmp_path / name for name in ("t.csv", "t.json")}
    asked = ("--by", "topology", "--columns", "accuracy,joules", "--percent")
    written = ("--csv", files["t.csv"], "--json", files["t.json"])
    assert invoke("compare", graphs, "-o", tmp_path / "c.html", *asked, *written).exit_code == 0
    lines = list(csv.DictReader(files["t.csv"].open(encoding="utf-8")))
    assert [(line["row"], line["topology"], line["column"]) for line in lines] == [
        (row, topology, column)
        for row in ("dpsgd", "dmml-kd")
        for topology in ("erdos-renyi", "ring")
        for column in ("accuracy", "joules")
    ]
    ours = lines[6]
    assert (ours["row"], ours["topology"], ours["unit"]) == ("dmml-kd", "ring", "%")
    assert (ours["seeds"], ours["best"]) == ("3", "True")
    assert [float(ours[k]) for k in ("mean", "std", "difference", "low", "high", "p")] == (
        pytest.approx([61, 1, 11, 8.516, 13.484, 0.25], abs=1e-3)
    )
    assert lines[0]["difference"] == "" and lines[1]["unit"] == ""
    whole = json.loads(files["t.json"].read_text())
    assert whole["baseline"] == "dpsgd" and whole["metric"] == "accuracy"
    assert whole["groups"][0]["runs"] == {str(s): f"dpsgd-erdos-renyi-{s}" for s in range(3)}
    assert whole["groups"][0]["settings"]["topology"] == "erdos-renyi"
    found = whole["results"][6]
    assert found["values"] == {str(s): pytest.approx(60 + s) for s in range(3)}
    assert found["mean"] == pytest.approx(61) and whole["results"][0]["difference"] is None


def test_the_appendix(graphs: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.tex"
    kept = {seed: (graphs / f"dpsgd-ring-{seed}" / "run.json").read_text() for seed in (0, 1)}
    command = "flwr-dmml simulate app --set 'data-path=a b'" + " --set a=b" * 20
    try:
        for seed, asked in ((0, command), (1, None)):
            about = json.loads(kept[seed]) | {"command": asked}
            (graphs / f"dpsgd-ring-{seed}" / "run.json").write_text(json.dumps(about))
        done = invoke("compare", graphs, "-o", tmp_path / "c.html", "--appendix", file)
    finally:
        for seed, text in kept.items():
            (graphs / f"dpsgd-ring-{seed}" / "run.json").write_text(text)
    assert done.exit_code == 0, done.output
    text = file.read_text(encoding="utf-8")
    commands = text.partition(r"\begin{verbatim}")[2].partition(r"\end{verbatim}")[0]
    assert max(map(len, commands.splitlines())) <= 86
    shown = commands.replace("\\\n", " ")
    assert command in " ".join(shown.split())
    assert "# dpsgd-ring-1: not started by flwr-dmml; its settings are below" in commands
    assert r"num-server-rounds & 2 & 30 \\" in text
    assert r"topology & erdos-renyi (dpsgd" in text and r"flwr-dmml & 0.1.0 \\" in text
    assert r"git revision & abc1234 with uncommitted changes \\" in text
    assert r"raspberry-pi-4 & 1.8 & 3.4 & 4 & 0.1 &" in text
    assert r"energy.battery-share & 0.0 &" in text and r"wireless.enabled & false &" in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles(graphs: Path, tmp_path: Path) -> None:
    files = ("--latex", tmp_path / "table.tex", "--appendix", tmp_path / "appendix.tex")
    asked = ("--by", "topology", "--columns", "accuracy,difference,worst", "--percent")
    assert invoke("compare", graphs, "-o", tmp_path / "c.html", *files, *asked).exit_code == 0
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\n\\usepackage{array,booktabs,graphicx,longtable}\n"
        "\\begin{document}\n\\input{table}\n\\appendix\n\\input{appendix}\n\\end{document}\n"
    )
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000
    too_wide = re.findall(r"Overfull .hbox \((\d+)", done.stdout)
    assert not [points for points in map(int, too_wide) if points > 10], too_wide


def test_figures_as_pdf(graphs: Path, tmp_path: Path) -> None:
    """Skipped where there is no Chrome."""
    pytest.importorskip("kaleido")
    folder = tmp_path / "figures"
    done = invoke("compare", graphs, "-o", tmp_path / "c.html", "--figures", folder)
    if done.exit_code != 0:
        assert NEEDS_CHROME in words(done.stderr)
        pytest.skip("no Chrome here")
    names = {path.stem for path in folder.iterdir()}
    assert names == set(Page((tmp_path / "c.html").read_text()).figures)
    assert all(path.read_bytes().startswith(b"%PDF") for path in folder.glob("*.pdf"))


def test_every_special_character_of_latex() -> None:
    table = Table("t", r"a\b", ["", "v"], [["&%$#_{}~^", "1"]])
    tex = table.to_latex()
    assert r"\caption{a\textbackslash{}b}" in tex
    assert r"\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{} & 1 \\" in tex


def test_a_table_is_a_table_in_html() -> None:
    html = Table("t", "<c>", ["", "v"], [["a&b", "<1>"]]).to_html()
    assert Page(html).tables["t"] == [["", "v"], ["a&b", "<1>"]]
    assert "&lt;c&gt;" in html and '<th scope="row">a&amp;b</th>' in html


def test_the_warnings_of_a_page_are_escaped() -> None:
    html = render_page("t", "s", [], ["<script>"])
    assert "<li>&lt;script&gt;</li>" in html
