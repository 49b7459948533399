"""Reports and comparisons: numbers against the files, escaping, broken files, grouping, tables."""

import json
import re
import sys
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from helpers import QUICKSTART
from helpers_report import (
    Page,
    full_config,
    invoke,
    large_run,
    make_round,
    older,
    two_methods,
    words,
    write_run,
)

from flwr_dmml.base.libraries import mend
from flwr_dmml.report import (
    ReportError,
    read_run,
    report_sections,
)
from flwr_dmml.report.export import NEEDS_CHROME
from flwr_dmml.report.maps import _binned
from flwr_dmml.report.parts import Figure, compact, to_script
from flwr_dmml.report.theme import THEMES, resolve
from flwr_dmml.tracking.tables import ONE_SEED


def page_of(run: Path) -> Page:
    result = invoke("report", run)
    assert result.exit_code == 0, result.output
    return Page((run / "report.html").read_text(encoding="utf-8"))


def last_line(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text().splitlines()[-1]))


# The report of one run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_methods(tmp_path_factory.mktemp("runs"), alpha=0.1, seed=3)


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return page_of(run)


def test_final_accuracies_are_those_of_the_metrics_file(page: Page, run: Path) -> None:
    """D-PSGD ends at 0.5, 0.6, 0.7; DMML-KD at 0.6, 0.7, 1: means 0.6 and 2.3 / 3 = 0.767."""
    assert page.tables["final"][0] == ["", "dpsgd", "dmml-kd", "gain, points"]
    assert page.row("final", "all devices, mean") == ["0.600", "0.767", "+16.7"]
    assert page.row("final", "worst device") == ["0.500", "0.600", "+10.0"]
    assert page.row("final", "best device") == ["0.700", "1.000", "+30.0"]
    assert page.row("final", "macro-F1, mean") == ["0.480", "0.613", "+13.3"]  # 0.8 of it
    assert page.row("final", "unweighted average recall, mean") == ["0.540", "0.690", "+15.0"]
    ends = [last_line(run / m / "metrics.jsonl") for m in ("dpsgd", "dmml-kd")]
    for name in ("audio", "image", "audio+image"):
        expected = [f"{end['accuracy_by_set'][name]:.3f}" for end in ends]
        assert page.row("final", f"devices with {name}")[:2] == expected
    for name in ("audio", "image"):
        expected = [f"{end['accuracy_by_modality'][name]:.3f}" for end in ends]
        assert page.row("final", f"from {name} alone")[:2] == expected


def test_headline_numbers(page: Page) -> None:
    """Four rounds of 2 J, 0.5 s and three devices that send 1 MB each."""
    text = words(page.text)
    assert ONE_SEED in text
    assert "joules spent8simulated seconds2MB sent12rounds4 of 4" in text
    assert "mean macro-F10.480mean UAR0.540" in text


def test_the_devices_table(page: Page) -> None:
    """Device 2: 4 rounds of 2/3 J and of 1 MB; battery 50 - 4 + 2."""
    head = ["device", "sensors", "samples", "dpsgd, accuracy", "dmml-kd, accuracy"]
    head += ["dmml-kd, joules", "dmml-kd, MB sent", "dmml-kd, battery J"]
    assert page.tables["devices"][0] == head
    assert page.row("devices", "2") == [
        "audio+image", "36", "0.700", "1.000", "2.667", "4", "48",
    ]  # fmt: skip
    assert len(page.tables["devices"]) == 1 + 3


def test_settings_that_differ_come_first_and_all_are_there(page: Page) -> None:
    changed = {row[0]: row[1:3] for row in page.tables["settings"][1:]}
    assert changed == {
        "alpha": ["0.1", "0.3"],
        "compare-with": ["dpsgd", '""'],
        "num-server-rounds": ["4", "30"],
        "seed": ["3", "0"],
    }
    usual = {row[0] for row in page.tables["defaults"][1:]}
    assert usual | set(changed) == set(full_config())


def test_where_the_run_is_from(page: Page) -> None:
    assert page.row("provenance", "command") == ["flwr-dmml simulate app --set method=dmml-kd"]
    assert page.row("provenance", "torch") == ["2.11.0"]
    assert page.row("provenance", "git revision") == ["abc1234 with uncommitted changes"]
    assert page.row("provenance", "seed") == ["3"]


def test_every_section_is_there_in_order(page: Page) -> None:
    sections = [
        "headline", "accuracy", "classes-alike", "modalities", "training", "balance-section",
        "battery-section", "graph-section", "confusion-section", "per-device", "settings-section",
    ]  # fmt: skip
    assert [name for name in page.ids if name in sections] == sections
    assert "labels-section" not in page.ids  # no public set in this run


def test_accuracy_is_drawn_over_every_cost(page: Page) -> None:
    """Evaluated in rounds 2 and 4: 2 J, 0.5 s and 3 MB a round."""
    expected = {"rounds": [2, 4], "joules": [4, 8], "seconds": [1, 2], "bytes": [6, 12]}
    for cost, x in expected.items():
        low_high, middle, mean = page.figures[f"accuracy-{cost}"]["data"][:3]
        assert mean["name"] == "dpsgd" and mean["x"] == x and mean["y"] == [0.4, 0.6]
        assert low_high["x"] == [*x, *reversed(x)]
        assert low_high["y"] == [0.3, 0.5, 0.7, 0.5]  # lowest there, highest back
        assert middle["y"] == [0.35, 0.55, 0.65, 0.45]  # the quartiles of three values


def test_iterations_batteries_and_confusion(page: Page) -> None:
    """Updates are 10 + device + round; batteries 50 - round + device."""
    heat = page.figures["iterations-dmml-kd-0"]["data"][0]  # audio: devices 0 and 2
    assert heat["y"] == ["0", "2"] and heat["z"] == [[11, 12, 13, 14], [13, 14, 15, 16]]
    scales = {(f["data"][0]["zmin"], f["data"][0]["zmax"]) for n, f in page.figures.items()
              if n.startswith("iterations-")}  # fmt: skip
    assert scales == {(11, 16)}  # both methods, both modalities
    median = page.figures["batteries"]["data"][2]
    assert median["y"] == [50, 49, 48, 47]
    confusion = page.figures["confusion-dmml-kd"]
    assert confusion["data"][0]["z"] == [[0.8, 0.2, 0], [0.1, 0.9, 0], [0.5, 0, 0.5]]
    assert "Mean of the diagonal: 0.733." in page.text  # (0.8 + 0.9 + 0.5) / 3


def test_every_class_alike(page: Page) -> None:
    """Evaluated in rounds 2 and 4, 0.4 and 0.6 on average: 0.8 and 0.9 of that."""
    lines = {line["name"]: line for line in page.figures["macro-f1"]["data"]}
    assert lines["macro-F1, dpsgd"]["x"] == [2, 4]
    assert lines["macro-F1, dpsgd"]["y"] == [0.32, 0.48]
    assert lines["UAR, dpsgd"]["y"] == [0.36, 0.54]
    assert set(lines) == {f"{m}, {n}" for m in ("macro-F1", "UAR") for n in ("dpsgd", "dmml-kd")}


def test_the_recall_of_each_class(page: Page) -> None:
    """8 of 10, 9 of 10, 5 of 10, by the names that the devices told."""
    assert page.tables["recall"] == [
        ["class", "dpsgd", "dmml-kd"],
        ["lie", "0.800", "0.800"],
        ["sit & wait", "0.900", "0.900"],
        ["<b>walk", "0.500", "0.500"],
    ]


def test_classes_have_their_names_in_figures(page: Page) -> None:
    names = ["lie", "sit &amp; wait", "&lt;b&gt;walk"]  # plotly takes <b> for markup
    for figure in ("confusion-dpsgd", "confusion-dmml-kd"):
        assert page.figures[figure]["data"][0]["x"] == page.figures[figure]["data"][0]["y"] == names
    assert page.figures["classes"]["data"][0]["x"] == names


@pytest.mark.parametrize("told", [[], ["a", "b"], ["a", "a", "b"], ["a", "b", "c", "d"]])
def test_classes_without_names_of_their_own_have_numbers(tmp_path: Path, told: list[str]) -> None:
    """Two of a name would be one row in plotly."""
    run = two_methods(tmp_path)
    path = run / "dmml-kd" / "devices.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"class_names": told}))
    page = page_of(run)
    assert page.figures["confusion-dmml-kd"]["data"][0]["x"] == ["0", "1", "2"]
    assert [row[0] for row in page.tables["recall"][1:]] == ["0", "1", "2"]


def test_a_class_without_samples_has_no_recall(tmp_path: Path) -> None:
    run = two_methods(tmp_path)
    confusion = {"round": 4, "matrix": [[1, 1, 0], [0, 0, 0], [0, 2, 0]]}
    (run / "dmml-kd" / "confusion.json").write_text(json.dumps(confusion))
    rows = page_of(run).tables["recall"][1:]
    assert [row[2] for row in rows] == ["0.500", "-", "0.000"]


def test_the_graph(page: Page) -> None:
    links, *sets = page.figures["graph"]["data"]
    assert len(links["x"]) == 3 * 3 and links["x"][2::3] == [None] * 3  # three links, gaps between
    assert [s["name"] for s in sets] == ["audio", "audio+image", "image"]
    assert sets[1]["marker"]["size"] > sets[0]["marker"]["size"]  # 1.0 against 0.6
    assert "dmml-kd: 1.000" in sets[1]["customdata"][0]
    assert "neighbours: 0, 1" in sets[1]["customdata"][0]


@pytest.mark.parametrize(
    ("carried", "lines", "words"),
    [
        ({(0, 1, 2), (2, 1, 0)}, 1, "couriers joined last (1)"),
        ({(1, 1, 0), (1, 1, 2)}, 2, "couriers sent means last (2)"),
    ],
)
def test_what_couriers_carry_is_dashed(
    carried: set[tuple[int, int, int]], lines: int, words: str, tmp_path: Path
) -> None:
    """1 has brought blocks of 0 and 2 to one another, or their mean, in round 1, none in 2."""
    rounds = [make_round(1, None), make_round(2, [0.5, 0.6, 0.7])]
    rounds[0].carried = carried
    (figure,) = (
        part
        for section in report_sections(read_run(write_run(tmp_path, "carried", {"dpsgd": rounds})))
        for part in section.parts
        if isinstance(part, Figure) and part.name == "graph"
    )
    assert figure.data[1]["name"] == "carried" and figure.data[1]["line"]["dash"] == "dash"
    assert len(figure.data[1]["x"]) == 3 * lines and words in figure.caption


def test_every_figure_is_valid_in_plotly(run: Path) -> None:
    """Plotly's own classes refuse unknown properties and wrong values."""
    graph_objects = pytest.importorskip("plotly.graph_objects")
    figures = [p for s in report_sections(read_run(run)) for p in s.parts if isinstance(p, Figure)]
    assert len(figures) == len({figure.name for figure in figures}) >= 15
    for figure in figures:
        for theme in THEMES:
            plain = resolve(figure.to_plotly(), theme)
            assert "@" not in json.dumps(plain)
            assert len(graph_objects.Figure(plain).data) == len(figure.data)


def test_figures_and_places_agree_and_nothing_comes_from_the_network(run: Path, page: Page) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'data-figure="([^"]+)"', html) == list(page.figures)
    shown = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert "//" not in shown and "@import" not in shown and "url(" not in shown


def test_headings_tables_and_figures_have_their_texts(run: Path, page: Page) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    assert page.tags.count("h1") == 1 and page.tags.count("main") == 1
    assert page.tags.count("table") == page.tags.count("caption") == len(page.tables)
    assert page.tags.count("figure") == page.tags.count("figcaption") == len(page.figures)
    assert html.count('role="img" aria-label="') == len(page.figures)
    assert len(page.ids) == len(set(page.ids))
    assert "Figures need JavaScript" in page.text
    assert len(re.findall("<th ", html)) == html.count("<th scope=") > 30 and "<th>" not in html


def test_what_older_folders_lack_is_left_out(tmp_path: Path) -> None:
    run = older(two_methods(tmp_path, described=False))
    page = page_of(run)
    assert not {"graph-section", "confusion-section", "classes-alike"} & set(page.ids)
    assert page.row("final", "macro-F1, mean") == ["-", "-", "-"]
    assert "samples" not in page.tables["devices"][0]
    assert page.row("final", "all devices, mean") == ["0.600", "0.767", "+16.7"]


def test_accuracies_without_a_modality_are_drawn_where_they_say_more(tmp_path: Path) -> None:
    """Of two modalities, without one is the other alone; of three it is not."""
    for names, there in ((("audio", "image"), False), (("audio", "image", "watch"), True)):
        record = make_round(1, [0.5, 0.5, 0.5])
        record.by_partition[2].accuracy_without = dict.fromkeys(names, 0.25)
        page = page_of(write_run(tmp_path, f"run-{len(names)}", {"local": [record]}))
        assert ("accuracy-without" in page.figures) is there


def test_a_topology_named_by_its_class_is_drawn_alike(tmp_path: Path) -> None:
    """Devices of ``Ring`` stand on a circle, as those of ``ring`` do."""
    run = two_methods(tmp_path)
    path = run / "dmml-kd" / "devices.json"
    path.write_text(path.read_text().replace('"ring"', '"OnePeerExponential"'))
    (run / "dpsgd" / "devices.json").unlink()
    page = page_of(run)
    assert "(one-peer-exponential)" in page.text
    for places in page.figures["graph"]["data"][1:]:
        radii = [x * x + y * y for x, y in zip(places["x"], places["y"], strict=True)]
        assert radii == pytest.approx([1.0] * len(radii), abs=1e-3)


def test_soft_labels_have_a_section(tmp_path: Path) -> None:
    rounds = [make_round(r, [0.5, 0.5, 0.5]) for r in (1, 2)]
    for record in rounds:
        for node in record.nodes:
            node.labels = {"used": 0.25 * record.round}
    page = page_of(write_run(tmp_path, "x", {"kd": rounds}, num_server_rounds=20))
    assert page.figures["labels"]["data"][0]["y"] == [0.25, 0.5]


def test_liars_are_ringed_on_the_map_and_have_a_section(tmp_path: Path) -> None:
    """Of three devices, 1 lies; 0 hears it and drops half of what it says, and in round 1 a tenth
    of what 2 says."""
    rounds = [make_round(r, [0.5, 0.9, 0.7]) for r in (1, 2)]
    for record in rounds:
        for node in record.nodes:
            node.lies, node.lying_neighbours = node.partition == 1, int(node.partition == 0)
        record.by_partition[0].dropped = {"1": 0.5}
    rounds[0].by_partition[0].dropped["2"] = 0.1
    folder = write_run(tmp_path, "liars", {"dpsgd": rounds})
    page = page_of(folder)
    traces = {t["name"]: t for t in page.figures["graph"]["data"] if "name" in t}
    assert len(traces["liars"]["x"]) == 1
    assert traces["liars"]["x"] == [traces["image"]["x"][0]]  # device 1
    assert page.row("final", "honest devices, mean") == ["0.600"]
    assert page.row("dropped", "1") == ["dpsgd", "yes", "0.500", "0"]
    assert page.row("dropped", "2") == ["dpsgd", "no", "0.050", "0"]
    lines = {t["name"].split()[-1]: t["y"] for t in page.figures["accuracy-liars"]["data"]}
    assert sorted(lines.values()) == [[0.5] * 2, [0.5] * 2, [0.6] * 2, [0.7] * 2]
    found = [t["y"] for t in page.figures["detection"]["data"]]
    assert found == [pytest.approx([0.5 / 0.6, 1.0], abs=1e-4), [0.5, 0.5]]
    assert page.row("devices", "1")[0] == "image, lies"


def test_calibration_errors_are_shown_where_there_are_any(tmp_path: Path) -> None:
    """Of the second method alone, and a dash for a device that has none."""
    rounds = {m: [make_round(1, [0.5, 0.9, 0.7])] for m in ("dpsgd", "dmml-kd")}
    node = rounds["dmml-kd"][0].by_partition[1]
    node.ece, node.ece_uncalibrated, node.temperature = 0.0625, 0.25, {"image": 1.5}
    folder = write_run(tmp_path, "calibrated", rounds)
    line = last_line(folder / "dmml-kd" / "metrics.jsonl")
    assert (line["ece"], line["ece_uncalibrated"]) == (0.0625, 0.25)
    assert [n.get("temperature") for n in line["nodes"]] == [None, {"image": 1.5}, None]
    assert "ece" not in last_line(folder / "dpsgd" / "metrics.jsonl")
    page = page_of(folder)
    head = page.tables["devices"][0]
    assert [name for name in head if "ECE" in name] == ["dmml-kd, ECE uncalibrated", "dmml-kd, ECE"]
    for device, expected in ((0, ["-", "-"]), (1, ["0.250", "0.062"])):
        row = dict(zip(head[1:], page.row("devices", str(device)), strict=True))
        assert [row[name] for name in head if "ECE" in name] == expected


def test_devices_that_one_method_lost_are_in_no_accuracy(tmp_path: Path) -> None:
    """Device 2 fails in the second method: both means are over devices 0 and 1."""
    last = make_round(1, [0.6, 0.8, 0.0])
    del last.by_partition[2]
    last.failed[2] = "no reply"
    rounds = {"dpsgd": [make_round(1, [0.2, 0.4, 0.9])], "dmml-kd": [last]}
    page = page_of(write_run(tmp_path, "x", rounds))
    assert page.row("final", "all devices, mean") == ["0.300", "0.700", "+40.0"]
    assert "2 of 3 devices; devices that one method lost" in page.text
    assert page.tables["failures"][1:] == [["2", "dmml-kd", "1", "1", "no reply"]]


def test_a_run_that_is_still_going(tmp_path: Path) -> None:
    """The last evaluated round counts; what is missing is said on the page and in the terminal."""
    rounds = [make_round(1, None), make_round(2, [0.1, 0.2, 0.3]), make_round(3, None)]
    run = write_run(tmp_path, "x", {"dpsgd": rounds}, num_server_rounds=30, method="dmml-kd",
                    compare_with="dpsgd")  # fmt: skip
    result = invoke("report", run)
    assert result.exit_code == 0
    for text in ("dpsgd: 3 of 30 rounds", "dmml-kd: it has not finished a round"):
        assert text in words(result.stderr) and text in (run / "report.html").read_text()
    page = Page((run / "report.html").read_text())
    assert "dpsgd round 2" in page.text and page.row("final", "all devices, mean") == ["0.200"]


def test_a_method_that_was_not_evaluated_yet_takes_nothing_from_the_other(tmp_path: Path) -> None:
    rounds = {"dpsgd": [make_round(1, [0.2, 0.4, 0.9])], "dmml-kd": [make_round(1, None)]}
    run = write_run(tmp_path, "x", rounds)
    page = page_of(run)
    assert page.row("final", "all devices, mean") == ["0.500", "-", "-"]
    assert "3 of 3 devices" in page.text and "lost are in none" not in page.text
    assert page.row("final", "devices with image") == ["0.400", "-", "-"]
    rounds = {"dpsgd": [make_round(1, None)], "dmml-kd": [make_round(1, [0.2, 0.4, 0.9])]}
    page = page_of(write_run(tmp_path, "y", rounds))
    assert page.row("final", "all devices, mean") == ["-", "0.500", "-"]


def test_a_run_that_was_not_evaluated_yet(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, "x", {"local": [make_round(1, None)]}))
    assert "local: no round was evaluated yet" in page.text
    assert "accuracy" not in page.ids and "train-loss" in page.figures


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    """A setting, a reason and a sensor that hold markup are shown as they are."""
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    record = make_round(1, [0.5, 0.5, 0.5])
    record.failed[1] = evil
    record.by_partition[0].modalities = evil
    record.by_partition[0].updates = {evil: 3}
    run = write_run(tmp_path, "x", {"local": [record]})
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"data-path": evil, evil: evil}))
    folder = run.rename(tmp_path / "<b>&run")
    result = invoke("report", folder)
    assert result.exit_code == 0, result.output
    html = (folder / "report.html").read_text()
    page = Page(html)
    assert "img" not in page.tags and "b" not in page.tags
    assert page.row("settings", "data-path")[0] == evil
    assert page.tables["failures"][1][-1] == evil
    assert html.count("<script") == 4 and "<title>&lt;b&gt;&amp;run</title>" in html
    names = [trace.get("name", "") for f in page.figures.values() for trace in f["data"]]
    assert any("&lt;img" in name for name in names)
    assert not any("<" in name for name in names)  # plotly would take it for markup


def test_json_inside_a_script_element() -> None:
    value = {"</script>": ["<!--", "\u2028", "&"]}
    text = to_script(value)
    assert not set("<>&\u2028") & set(text) and json.loads(text) == value


def test_numbers_are_short_and_never_nan() -> None:
    assert compact([1 / 3, 2.0, float("nan"), float("inf"), "a", True, None]) == [
        0.33333, 2, None, None, "a", True, None,
    ]  # fmt: skip


def test_a_loss_that_does_not_exist_is_null_and_left_out(tmp_path: Path) -> None:
    """In a file of an older version it is NaN, which is no JSON: that leaves a gap."""
    rounds = [make_round(r, [0.5, 0.5, 0.5]) for r in (1, 2)]
    for node, loss in zip(rounds[0].nodes, (nan, inf, nan), strict=True):
        node.train_loss = loss
    run = write_run(tmp_path, "x", {"local": rounds})
    file = run / "local" / "metrics.jsonl"
    text = file.read_text()
    assert not re.search("NaN|Infinity", text) and text.count('"train_loss": null') == 4
    assert page_of(run).figures["train-loss"]["data"][0]["y"] == [1]
    file.write_text(text.replace('"train_loss": null', '"train_loss": NaN'))
    assert page_of(run).figures["train-loss"]["data"][0]["y"] == [None, 1]


def test_a_hundred_devices_and_two_hundred_rounds_stay_under_six_megabytes(tmp_path: Path) -> None:
    run = large_run(tmp_path)
    page = page_of(run)
    assert (run / "report.html").stat().st_size < 6_000_000
    assert len(page.tables["devices"]) == 101
    heat = page.figures["iterations-dmml-kd-0"]["data"][0]
    assert len(heat["z"]) == 67 and len(heat["z"][0]) == 200  # nothing averaged yet


def test_heat_maps_average_groups_of_neighbours() -> None:
    """Five values to at most three: pairs, and the last one alone; what is missing is left out."""
    import numpy as np

    values = np.array([[1.0, 3.0, np.nan, 5.0, 7.0]])
    binned, size = _binned(values, 3, axis=1)
    assert size == 2 and binned.tolist() == [[2.0, 5.0, 7.0]]


# What cannot be read


def broken(run: Path, line: int, text: str) -> Path:
    path = run / "dmml-kd" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "line, text, reason",
    [
        (2, '{"round": 2, "no', "EOF while parsing"),
        (2, "", "EOF while parsing"),
        (2, '{"round": "x", "nodes": []}', "round: Input should be a valid integer"),
        (4, '{"round": 4}', "nodes: Field required"),
        (3, '{"round": 1, "nodes": []}', "round 1 after round 2"),
        (4, '{"round": 4, "nodes": [{"partition": 0}]}', "nodes.0.modalities: Field required"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: int, text: str, reason: str) -> None:
    run = two_methods(tmp_path)
    path = broken(run, line, text)
    result = invoke("report", run)
    assert result.exit_code == 1 and not (run / "report.html").exists()
    assert words(result.stderr).startswith(f"Error: ReportError: {path}, line {line}: ")
    assert reason in words(result.stderr)


def test_a_last_line_cut_short_is_left_out_with_a_warning(tmp_path: Path) -> None:
    run = two_methods(tmp_path)
    path = broken(run, 4, '{"round": 4, "accur')
    result = invoke("report", run)
    assert result.exit_code == 0
    assert f"Warning: {path}, line 4: cut short, left out" in words(result.stderr)
    page = Page((run / "report.html").read_text())
    assert page.row("final", "all devices, mean") == ["0.600", "0.500", "-10.0"]  # of round 2
    assert "dmml-kd: 3 of 4 rounds" in page.text


def test_folders_that_are_no_run(tmp_path: Path) -> None:
    run = two_methods(tmp_path)
    cases = {
        tmp_path / "missing": "no such folder",
        run / "dpsgd": "not a run folder (it has no config.json)",
        tmp_path: f"not a run folder (it has no config.json); it holds runs: {run}",
    }
    for path, reason in cases.items():
        result = invoke("report", path)
        assert result.exit_code == 1
        assert f"Error: ReportError: {path}: {reason}" in words(result.stderr)


def test_files_that_are_not_json(tmp_path: Path) -> None:
    cases = [
        ("config.json", '{"seed": 0,\n', "line 2 column 1"),
        ("config.json", "[]", "not a JSON object"),
        ("run.json", "{", "Invalid JSON"),
        ("dpsgd/devices.json", '{"nodes": [{"partition": 0}]}', "nodes.0.modalities"),
        ("dpsgd/confusion.json", '{"round": 1, "matrix": [[1, 2]]}', "the matrix is not square"),
    ]
    for i, (name, text, reason) in enumerate(cases):
        run = two_methods(tmp_path, f"run-{i}")
        (run / name).write_text(text)
        result = invoke("report", run)
        assert result.exit_code == 1 and not (run / "report.html").exists()
        assert str(run / name) in words(result.stderr) and reason in words(result.stderr)


ODD: dict[str, tuple[str, Any, str]] = {
    "no class": ("confusion.json", {"round": 1, "matrix": []}, "matrix: List should have at least"),
    "huge count": ("confusion.json", {"round": 1, "matrix": [[1e300]]}, "matrix.0.0: Input should"),
    "negative count": ("confusion.json", {"round": 1, "matrix": [[-1]]}, "greater than or equal"),
    "huge class": (
        "devices.json",
        {"nodes": [{"partition": 0, "modalities": ["a"], "class_counts": [10**400]}]},
        "nodes.0.class_counts.0: Input should be less than",
    ),
    "seed": ("../config.json", {"seed": [1]}, "seed: Input should be a valid integer"),
    "method": ("../config.json", {"method": 3}, "method: Input should be a valid string"),
    "depth": ("../config.json", json.loads("[" * 150 + "]" * 150), "nested more than 100 levels"),
    "half a character": ("../config.json", {"dataset": "\ud800"}, "surrogates not allowed"),
}


@pytest.mark.parametrize("case", ODD)
def test_files_with_values_that_cannot_be(tmp_path: Path, case: str) -> None:
    name, value, reason = ODD[case]
    run = two_methods(tmp_path)
    file = (run / "dpsgd" / name).resolve()
    file.write_text(json.dumps(value))
    result = invoke("report", run)
    assert result.exit_code == 1
    assert f"Error: ReportError: {file}: " in words(result.stderr) and reason in result.stderr


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"disagreement": -1.0}, "nodes.0.disagreement"),  # of which a root is taken
        ({"train_loss": 1.5e308}, "nodes.0.train_loss"),  # a mean of two is too large
        ({"updates": {"audio": 10**400}}, "nodes.0.updates.audio"),
        ({"bytes_sent": -1}, "nodes.0.bytes_sent"),
        ({"accuracy": 1.5}, "nodes.0.accuracy"),
    ],
)
def test_a_round_with_values_that_cannot_be(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    run = two_methods(tmp_path)
    line = json.loads((run / "dmml-kd" / "metrics.jsonl").read_text().splitlines()[1])
    line["nodes"][0] |= change
    file = broken(run, 2, json.dumps(line))
    result = invoke("report", run)
    assert result.exit_code == 1 and f"{file}, line 2: {reason}: " in words(result.stderr)


def test_numbers_of_a_methods_own_that_do_not_exist_are_left_out(tmp_path: Path) -> None:
    rounds = [make_round(r, [0.5, 0.5, 0.5]) for r in (1, 2)]
    rounds[0].nodes[0].own = {"a.b": nan, "a.c": 2.0}
    rounds[1].noted = {"d": inf}
    run = write_run(tmp_path, "x", {"local": rounds})
    assert '"a.b": null' in (run / "local" / "metrics.jsonl").read_text()
    page = page_of(run)
    assert "own-a-c" in page.figures and "own-a-b" not in page.figures


def test_a_large_confusion_table_shows_the_classes_that_were_confused_most(tmp_path: Path) -> None:
    """Classes 3 and 1000 of 2,000 are taken for each other; the rest is right, 10 samples each."""
    run, count = two_methods(tmp_path), 2000
    matrix = [[0] * count for _ in range(count)]
    for c in range(count):
        matrix[c][c] = 10
    matrix[3][3], matrix[3][1000], matrix[3][1500] = 5, 4, 1
    matrix[1000][1000], matrix[1000][3] = 2, 8
    (run / "dpsgd" / "confusion.json").write_text(json.dumps({"round": 4, "matrix": matrix}))
    page = page_of(run)
    assert (run / "report.html").stat().st_size < 4_000_000
    figure = page.figures["confusion-dpsgd"]["data"][0]
    assert len(figure["z"]) == 30 and {len(row) for row in figure["z"]} == {31}
    assert figure["x"] == [*figure["y"], "others"] and {"3", "1000", "1500"} <= {*figure["y"]}
    row, column = figure["y"].index("3"), figure["x"].index("1000")
    assert figure["z"][row][column] == 0.4 and figure["customdata"][row][column] == 4
    assert [row[-1] for row in figure["z"]] == [0] * 30
    assert "the 30 of 2,000 classes that were confused most" in page.text
    assert len(page.tables["recall"]) == 2001


def test_a_run_without_any_round(tmp_path: Path) -> None:
    run = two_methods(tmp_path)
    (run / "dpsgd" / "metrics.jsonl").unlink()
    (run / "dmml-kd" / "metrics.jsonl").write_text("")
    with pytest.raises(ReportError, match="no method has finished a round"):
        read_run(run)


def test_without_plotly(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    for arguments in (["report", run, "-o", tmp_path / "a.html"], ["compare", run, run]):
        result = invoke(*arguments)
        assert result.exit_code == 1 and list(tmp_path.iterdir()) == []
        assert words(result.stderr).startswith("Error: LibraryError: plotly ")
        assert words(result.stderr).endswith(f"To fix it: {mend('plotly')}")


def test_without_kaleido(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    result = invoke("report", run, "-o", tmp_path / "a.html", "--figures", tmp_path / "f")
    assert result.exit_code == 1 and list(tmp_path.iterdir()) == []
    assert words(result.stderr).startswith("Error: LibraryError: kaleido ")
    assert words(result.stderr).endswith(f"To fix it: {mend('kaleido')}")


def test_without_chrome(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kaleido")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "missing"))
    result = invoke("report", run, "-o", tmp_path / "a.html", "--figures", tmp_path / "f")
    assert result.exit_code == 1 and not (tmp_path / "a.html").exists()
    assert words(result.stderr) == f"Error: ReportError: {NEEDS_CHROME}"


def test_no_other_command_imports_plotly() -> None:
    import subprocess

    code = "import sys, flwr_dmml.cli; sys.exit('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_output_and_open(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    path = tmp_path / "new" / "page.html"
    assert invoke("report", run, "--output", path, "--open").exit_code == 0
    assert path.is_file() and opened == [path.as_uri()]
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


# A real run, end to end


def test_report_and_figures_of_a_real_run(tmp_path: Path) -> None:
    """The quickstart for two rounds on three devices; its files against its page."""
    tiny = ["num-server-rounds=2", "local-iterations=1", "samples-per-node=40", "partition=iid"]
    tiny += ["device=cpu", "method=dmml-kd", "compare-with=dpsgd", "dmml-kd.generator-steps=2"]
    tiny += [f"run-dir={tmp_path}", "run-name=real"]
    settings = [part for setting in tiny for part in ("--set", setting)]
    done = invoke("simulate", QUICKSTART, "--nodes", 3, "--workers", 0, *settings)
    assert done.exit_code == 0, done.output
    page = page_of(tmp_path / "real")
    ends = [last_line(tmp_path / "real" / m / "metrics.jsonl") for m in ("dpsgd", "dmml-kd")]
    assert page.row("final", "all devices, mean")[:2] == [f"{end['accuracy']:.3f}" for end in ends]
    for node in ends[1]["nodes"]:
        cells = dict(zip(page.tables["devices"][0][1:],
                         page.row("devices", str(node["partition"])), strict=True))  # fmt: skip
        assert cells["dmml-kd, accuracy"] == f"{node['accuracy']:.3f}"
        assert cells["sensors"] == node["modalities"]
    assert len(page.figures) >= 12


def test_figures_as_files(run: Path, tmp_path: Path) -> None:
    """Skipped where there is no Chrome; then the message says how to get one."""
    pytest.importorskip("kaleido")
    folder = tmp_path / "figures"
    result = invoke("report", run, "-o", tmp_path / "a.html", "--figures", folder)
    if result.exit_code != 0:
        assert NEEDS_CHROME in words(result.stderr)
        pytest.skip("no Chrome here")
    names = {path.stem for path in folder.iterdir()}
    assert names == set(Page((tmp_path / "a.html").read_text()).figures)
    assert all(path.read_text().startswith("<svg") for path in folder.glob("*.svg"))
