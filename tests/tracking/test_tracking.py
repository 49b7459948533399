"""Records, the run folder, tables: figures by hand, and files that a second run cannot touch."""

import json
from collections.abc import Iterator
from io import StringIO
from logging import WARNING, StreamHandler
from pathlib import Path
from typing import Any

import pytest
from flwr.common.logger import FLOWER_LOGGER, log
from rich.console import Console

from flwr_dmml.tracking import (
    NodeResult,
    RoundRecord,
    RunFolder,
    devices_table,
    final_table,
    render,
    verdict,
)
from flwr_dmml.tracking import provenance as made
from flwr_dmml.tracking.history import read_record
from flwr_dmml.tracking.live import LiveTable
from flwr_dmml.tracking.provenance import command
from flwr_dmml.tracking.tables import ONE_SEED
from flwr_dmml.tracking.text import describe


def make_record(accuracies: dict[int, float | None], server_round: int = 4) -> RoundRecord:
    """Return a record of nodes that own audio, or audio and image if their id is odd."""
    record = RoundRecord(server_round)
    for partition, accuracy in accuracies.items():
        node = record.node(partition, ("audio", "image") if partition % 2 else ("audio",))
        node.accuracy = accuracy
    return record


@pytest.fixture
def record() -> RoundRecord:
    """Three nodes, entered out of order; the last one was not evaluated and trained nothing."""
    return RoundRecord(
        round=4,
        by_partition={
            2: NodeResult(2, "image", bytes_sent=500),
            1: NodeResult(
                1,
                "audio+image",
                train_loss=2.0,
                accuracy=0.9,
                accuracy_own_shares=0.75,
                macro_f1=0.8,
                uar=0.75,
                accuracy_by_modality={"image": 0.8, "audio": 0.6},
                validation_accuracy=0.95,
                disagreement=14.0,
                bytes_sent=3000,
                label_bytes_sent=150,
                labels={"auroc": 0.8},
            ),
            0: NodeResult(
                0,
                "audio",
                train_loss=1.0,
                accuracy=0.5,
                macro_f1=0.25,
                uar=0.0,
                accuracy_by_modality={"audio": 0.5},
                disagreement=4.0,
                bytes_sent=1000,
            ),
        },
        failed={2: "no reply", 0: "late"},
        seconds=1.5,
    )


def rows(text: str) -> dict[str, list[str]]:
    """Read a drawn table: first cell -> the other cells."""
    drawn = [line.replace("┃", "│").strip() for line in text.splitlines()]
    lines = [line[1:-1].split("│") for line in drawn if line.startswith("│")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in lines}


# Records


def test_summaries_by_hand(record: RoundRecord) -> None:
    """Means: accuracy (0.5 + 0.9)/2, macro-F1 (0.25 + 0.8)/2, UAR (0 + 0.75)/2, loss (1 + 2)/2,
    audio alone (0.5 + 0.6)/2.

    Bytes (500 + 3000 + 1000)/3 = 1500; consensus distance sqrt((14 + 4)/2) = 3.
    """
    assert record.accuracy == pytest.approx(0.7)
    assert record.min_accuracy == 0.5 and record.max_accuracy == 0.9
    assert record.macro_f1 == pytest.approx(0.525) and record.uar == 0.375
    assert record.accuracy_by_set == {"audio": 0.5, "audio+image": 0.9}
    assert record.accuracy_by_modality == pytest.approx({"audio": 0.55, "image": 0.8})
    assert record.train_loss == 1.5
    assert record.consensus_distance == pytest.approx(3)
    assert record.bytes_sent == 1500
    assert record.label_bytes_sent == 50
    assert record.labels == {"auroc": pytest.approx(0.8)}
    assert [node.partition for node in record.nodes] == [0, 1, 2]


def test_a_round_without_results_is_none_not_zero() -> None:
    for empty in (RoundRecord(1), make_record({0: None, 1: None})):
        assert empty.accuracy is empty.min_accuracy is empty.max_accuracy is None
        assert empty.macro_f1 is empty.uar is None
        assert empty.train_loss is None and empty.consensus_distance is None
        assert empty.accuracy_by_set == {} and empty.accuracy_by_modality == {}
        assert empty.bytes_sent == 0


def test_a_result_of_zero_counts() -> None:
    record = make_record({0: 0.0, 1: 0.5})
    assert record.accuracy == 0.25 and record.min_accuracy == 0.0
    record.by_partition[0].disagreement = 0.0
    assert record.consensus_distance == 0.0


def test_node_is_made_once() -> None:
    record = RoundRecord(1)
    node = record.node(3, ["audio", "image"])
    assert node == NodeResult(3, "audio+image")
    node.bytes_sent = 7
    assert record.node(3, ["audio", "image"]) is node and record.bytes_sent == 7


def test_measured_takes_the_metrics_of_an_evaluation() -> None:
    node = NodeResult(0, "audio+image")
    node.measured(
        {
            "train.loss": 1.0,
            "mix.disagreement": 2.0,
            "test.accuracy": 0.7,
            "test.accuracy.audio": 0.4,
            "test.accuracy.image": 0.6,
            "test.without.audio": 0.6,
            "test.without.image": 0.4,
            "test.missing": 0.65,
            "test.macro_f1": 0.55,
            "test.uar": 0.5,
            "validation.accuracy": 0.8,
        }
    )
    assert node == NodeResult(
        0,
        "audio+image",
        accuracy=0.7,
        macro_f1=0.55,
        uar=0.5,
        accuracy_by_modality={"audio": 0.4, "image": 0.6},
        accuracy_without={"audio": 0.6, "image": 0.4},
        accuracy_missing=0.65,
        validation_accuracy=0.8,
        disagreement=2.0,
    )


def test_measured_without_an_evaluation_leaves_none() -> None:
    node = NodeResult(0, "audio")
    node.measured({"mix.disagreement": 2.0})
    assert node == NodeResult(0, "audio", disagreement=2.0)


def test_json_is_plain_and_has_every_figure(record: RoundRecord) -> None:
    record.by_partition[1].accuracy_without = {"image": 0.6, "audio": 0.8}
    record.by_partition[1].accuracy_missing = 0.75
    record.by_partition[1].own = {"teacher.lead": 0.25}
    line = json.loads(json.dumps(record.to_json(), allow_nan=False))
    nodes = line.pop("nodes")
    assert line == {
        "round": 4,
        "train_loss": 1.5,
        "accuracy": pytest.approx(0.7),
        "accuracy_own_shares": 0.75,
        "min_accuracy": 0.5,
        "max_accuracy": 0.9,
        "macro_f1": pytest.approx(0.525),
        "uar": 0.375,
        "accuracy_by_set": {"audio": 0.5, "audio+image": 0.9},
        "accuracy_by_modality": pytest.approx({"audio": 0.55, "image": 0.8}),
        "accuracy_without": {"audio": 0.8, "image": 0.6},
        "accuracy_missing": 0.75,
        "consensus_distance": pytest.approx(3),
        "bytes_sent_per_node": 1500,
        "label_bytes_sent_per_node": 50,
        "labels": {"auroc": pytest.approx(0.8)},
        "compute_j": 0,
        "radio_j": 0,
        "total_j": 0,
        "battery_quantiles_j": None,
        "updates_by_modality": {},
        "balance": None,
        "network_balance": None,
        "simulated_s": 0,
        "total_simulated_s": 0,
        "total_bits": 0,
        "own": {"teacher.lead": 0.25},
        "noted": {},
        "battery_j": {},
        "failed": {"0": "late", "2": "no reply"},
    }
    assert [node["partition"] for node in nodes] == [0, 1, 2]
    assert nodes[1] == {
        "partition": 1,
        "modalities": "audio+image",
        "train_loss": 2.0,
        "accuracy": 0.9,
        "accuracy_own_shares": 0.75,
        "macro_f1": 0.8,
        "uar": 0.75,
        "accuracy_by_modality": {"audio": 0.6, "image": 0.8},
        "accuracy_without": {"audio": 0.8, "image": 0.6},
        "accuracy_missing": 0.75,
        "validation_accuracy": 0.95,
        "disagreement": 14.0,
        "bytes_sent": 3000,
        "label_bytes_sent": 150,
        "rejected": 0,
        "labels": {"auroc": 0.8},
        "speed": {},
        "updates": {},
        "compute_j": 0.0,
        "radio_j": 0.0,
        "simulated_s": 0.0,
        "balance": None,
        "own": {"teacher.lead": 0.25},
    }
    assert nodes[2]["accuracy"] is None and nodes[2]["disagreement"] is None


def test_json_is_read_back_also_that_of_an_older_version(record: RoundRecord) -> None:
    line = record.to_json()
    assert read_record(line).to_json() == line
    for part in (line, *line["nodes"]):
        del part["macro_f1"], part["uar"]
    older = read_record(line)
    assert older.accuracy == record.accuracy and older.macro_f1 is older.uar is None


def test_json_holds_no_wall_clock(record: RoundRecord) -> None:
    """Two runs of the same seed write the same lines, however long they took."""
    before = record.to_json()
    record.seconds = 99.0
    assert record.to_json() == before


def test_json_of_a_round_that_was_not_evaluated() -> None:
    line = RoundRecord(1).to_json()
    assert line["accuracy"] is line["min_accuracy"] is line["train_loss"] is None
    assert line["consensus_distance"] is None and line["nodes"] == []


def test_text_for_the_log(record: RoundRecord) -> None:
    text = describe(record)
    for figures in (
        "accuracy mean 0.700  min 0.500  max 0.900",
        "devices with audio 0.500  audio+image 0.900",
        "from audio 0.550  image 0.800 alone",
        "consensus distance 3",
        "1.5 kB sent per device",
    ):
        assert figures in text


# Modalities missing


def without(*tables: dict[str, float]) -> RoundRecord:
    """Return a record of evaluated nodes with these accuracies from all but one modality."""
    record = make_record(dict.fromkeys(range(len(tables)), 0.75))
    for node, table in zip(record.nodes, tables, strict=True):
        node.accuracy_without = table
    return record


def test_accuracies_with_modalities_missing_by_hand() -> None:
    """Audio (0.25 + 0.75)/2; with some missing (0.5 + 0)/2: a 0 counts, a None does not."""
    record = without({"image": 0.5, "audio": 0.25}, {"audio": 0.75}, {})
    assert record.accuracy_without == {"audio": 0.5, "image": 0.5}
    assert list(record.accuracy_without) == ["audio", "image"]
    assert record.accuracy_missing is None
    record.by_partition[0].accuracy_missing = 0.5
    record.by_partition[1].accuracy_missing = 0.0
    assert record.accuracy_missing == 0.25
    assert RoundRecord(1).accuracy_without == {} and RoundRecord(1).accuracy_missing is None


TWO = {"audio": 0.25, "image": 0.5}
THREE = {"audio": 0.5, "image": 0.75, "radar": 0.125}


@pytest.mark.parametrize(
    ("tables", "missing", "words"),
    [
        ([TWO, {}], None, None),  # it would repeat what comes from each alone
        ([{}, {}], None, None),
        ([TWO, {}], 0.5, "some inputs missing 0.500 | without audio 0.250  image 0.500"),
        ([TWO, THREE], None, "without audio 0.375  image 0.625  radar 0.125"),
        (
            [THREE],
            0.0,
            "some inputs missing 0.000 | without audio 0.500  image 0.750  radar 0.125",
        ),
        ([{}], 0.5, "some inputs missing 0.500"),
    ],
)
def test_text_with_modalities_missing(
    tables: list[dict[str, float]], missing: float | None, words: str | None
) -> None:
    record = without(*tables)
    record.by_partition[0].accuracy_missing = missing
    begin, _, end = describe(record).partition("alone | ")
    assert begin.endswith("from  ")
    rest = "0.0 kB sent"
    assert end.startswith(rest if words is None else f"{words} | {rest}")


def test_final_table_with_modalities_missing() -> None:
    """Owners of audio: (0.5 + 0.25)/2 without it, against 0.75 where only one has an answer."""
    before, after = without(THREE, TWO), without(THREE | {"audio": 0.75}, {})
    before.by_partition[0].accuracy_missing = 0.5
    table = rows(render(final_table({"dpsgd": before, "dmml-kd": after})))
    assert table["without audio, mean over owners"] == ["0.375", "0.750", "+37.5"]
    assert table["without image, mean over owners"] == ["0.625", "0.750", "+12.5"]
    assert table["without radar, mean over owners"] == ["0.125", "0.125", "+0.0"]
    assert table["all devices, some inputs missing"] == ["0.500", "-", "-"]


def test_final_table_of_two_modalities_has_no_rows_that_repeat_others() -> None:
    record = without(TWO, TWO)
    labels = rows(render(final_table({"dpsgd": record})))
    assert not any(label.startswith("without") or "missing" in label for label in labels)
    record.by_partition[1].accuracy_missing = 0.0
    labels = rows(render(final_table({"dpsgd": record})))
    assert labels["all devices, some inputs missing"] == ["0.000"]
    assert not any(label.startswith("without") for label in labels)


# Energy


@pytest.fixture
def powered() -> RoundRecord:
    """Four devices, the third of which is parked, and a fifth whose battery is flat."""
    return RoundRecord(
        round=3,
        by_partition={
            0: NodeResult(
                0,
                "audio",
                accuracy=0.5,
                accuracy_by_modality={"audio": 0.5},
                speed={"audio": 0.5},
                updates={"audio": 4},
                compute_j=1.0,
                radio_j=0.25,
                simulated_s=2.0,
            ),
            1: NodeResult(
                1,
                "audio+image",
                accuracy=0.75,
                accuracy_by_modality={"audio": 0.25, "image": 0.5},
                bytes_sent=4000,
                speed={"audio": 1.0, "image": 0.25},
                updates={"audio": 2, "image": 6},
                compute_j=2.0,
                radio_j=0.5,
                simulated_s=3.5,
            ),
            2: NodeResult(
                2,
                "audio+image",
                speed={"audio": 1.0, "image": 1.0},
                updates={"audio": 0, "image": 0},
                radio_j=0.25,
                simulated_s=0.5,
            ),
            4: NodeResult(
                4,
                "audio+image",
                speed={"audio": 0.5, "image": 0.25},
                updates={"audio": 1, "image": 4},
                compute_j=0.5,
                radio_j=0.5,
                simulated_s=1.0,
            ),
        },
        failed={3: "its battery holds 0 J, sending takes 0.25 J"},
        battery_j={0: 4.0, 1: 1.0, 2: 0.5, 3: 0.0, 4: 2.0},
        total_j=12.5,
        total_simulated_s=20.0,
        total_bits=3e6,
    )


def test_energy_of_a_round_by_hand(powered: RoundRecord) -> None:
    """1 + 2 + 0 + 0.5 = 3.5 J, 0.25 + 0.5 + 0.25 + 0.5 = 1.5 J; the slowest device takes 3.5 s."""
    assert powered.compute_j == 3.5 and powered.radio_j == 1.5
    assert powered.simulated_s == 3.5
    empty = RoundRecord(1)
    assert empty.compute_j == empty.radio_j == empty.simulated_s == 0


def test_battery_quantiles_by_hand() -> None:
    """Of 0, 0.5, 1, 2 and 4 J each is one, the flat device's 0 included.

    Of 0, 1, 2 and 10 J they are at the places 0, 0.75, 1.5, 2.25, 3: 0, 0.75, 1.5, 2 + 8 / 4, 10.
    """
    record = RoundRecord(1, battery_j={0: 4.0, 1: 1.0, 2: 0.5, 3: 0.0, 4: 2.0})
    assert record.battery_quantiles_j == [0, 0.5, 1, 2, 4]
    record.battery_j = {3: 10.0, 2: 2.0, 1: 1.0, 0: 0.0}
    assert record.battery_quantiles_j == [0, 0.75, 1.5, 4, 10]
    record.battery_j = {7: 0.3}
    assert record.battery_quantiles_j == [0.3] * 5
    assert RoundRecord(1).battery_quantiles_j is None


def test_updates_by_modality_by_hand(powered: RoundRecord) -> None:
    """Audio (4 + 2 + 0 + 1) / 4, image (6 + 0 + 4) / 3: parked devices count, flat ones do not."""
    assert powered.updates_by_modality == pytest.approx({"audio": 1.75, "image": 10 / 3})
    powered.by_partition[9] = NodeResult(9, "image")  # asked for its accuracy only
    assert powered.updates_by_modality == pytest.approx({"audio": 1.75, "image": 10 / 3})
    assert RoundRecord(1).updates_by_modality == {}


def test_balance_by_hand(powered: RoundRecord) -> None:
    """Device 1: 1 x 2 over 0.25 x 6 = 4/3. Device 4: 0.25 x 4 over 0.5 x 1 = 2. Mean 5/3.

    Device 0 has one modality and device 2 is parked: there is nothing to balance.
    """
    assert [n.balance for n in powered.nodes] == [None, pytest.approx(4 / 3), None, 2]
    assert powered.balance == pytest.approx(5 / 3)


@pytest.mark.parametrize(
    ("speed", "updates"),
    [
        ({}, {}),
        ({}, {"audio": 2, "image": 2}),
        ({"audio": 1.0}, {"audio": 2, "image": 2}),
        ({"audio": 1.0, "image": 2.0}, {}),
        ({"audio": 1.0, "image": 2.0}, {"audio": 2, "image": 0}),
        ({"audio": 1.0, "image": 0.0}, {"audio": 2, "image": 2}),
    ],
)
def test_without_progress_of_every_modality_there_is_no_balance(
    speed: dict[str, float], updates: dict[str, int]
) -> None:
    node = NodeResult(0, "audio+image", speed=speed, updates=updates)
    record = RoundRecord(1, by_partition={0: node})
    assert node.balance is record.balance is None
    json.dumps(record.to_json(), allow_nan=False)


def test_network_balance_by_hand(powered: RoundRecord) -> None:
    """Audio: (0.5 x 4 + 1 x 2 + 0 + 0.5 x 1) / 4 = 1.125; image: (1.5 + 0 + 1) / 3 = 5/6.

    1.125 x 6 / 5 = 1.35. A fleet in which each device has one modality has a balance too.
    """
    assert powered.network_balance == pytest.approx(1.35)
    audio = NodeResult(0, "audio", speed={"audio": 2.0}, updates={"audio": 3})
    image = NodeResult(1, "image", speed={"image": 1.0}, updates={"image": 12})
    apart = RoundRecord(1, by_partition={0: audio, 1: image})
    assert apart.network_balance == 2 and apart.balance is None


def test_a_network_of_one_modality_or_without_progress_has_no_balance() -> None:
    audio = NodeResult(0, "audio", speed={"audio": 2.0}, updates={"audio": 3})
    parked = NodeResult(1, "image", speed={"image": 1.0}, updates={"image": 0})
    for nodes in ({}, {0: audio}, {0: audio, 1: parked}):
        assert RoundRecord(1, by_partition=nodes).network_balance is None


def test_trained_takes_loss_and_speeds() -> None:
    node = NodeResult(0, "audio+image")
    metrics = {"train.loss": 1.5, "speed.audio": 0.25, "speed.image": 0.5, "near.audio": 9.0}
    node.trained(metrics)
    expected = NodeResult(0, "audio+image", train_loss=1.5, speed={"audio": 0.25, "image": 0.5})
    assert node == expected
    node.trained({})
    assert node.train_loss is None and node.speed == {}


def test_text_with_batteries_by_hand(powered: RoundRecord) -> None:
    """Mean of 0.5 and 0.75 is 0.625; audio alone (0.5 + 0.25) / 2; 4000 / 4 bytes are 1 kB."""
    assert describe(powered) == (
        "accuracy mean 0.625  min 0.500  max 0.750 | "
        "devices with audio 0.500  audio+image 0.750 | from audio 0.375  image 0.500 alone | "
        "1.0 kB sent per device | "
        "12.5 J (3.5 computing and 1.5 sending in this round), 20 s on the devices | "
        "batteries 0 to 4 J, median 1 | iterations audio 1.8  image 3.3 | balance 1.67"
    )


def test_text_on_mains_by_hand() -> None:
    """No batteries, and nothing to balance on one modality."""
    node = NodeResult(
        0,
        "audio",
        accuracy=0.25,
        accuracy_by_modality={"audio": 0.25},
        speed={"audio": 1.0},
        updates={"audio": 20},
        compute_j=0.12345,
        simulated_s=0.5,
    )
    record = RoundRecord(2, by_partition={0: node}, total_j=0.2469, total_simulated_s=1.0)
    assert describe(record).endswith(
        "| 0.247 J (0.123 computing and 0 sending in this round), 1 s on the devices | "
        "iterations audio 20.0"
    )


def test_json_of_energy_by_hand(powered: RoundRecord) -> None:
    line = json.loads(json.dumps(powered.to_json(), allow_nan=False))
    expected = {
        "compute_j": 3.5,
        "radio_j": 1.5,
        "total_j": 12.5,
        "battery_quantiles_j": [0.0, 0.5, 1.0, 2.0, 4.0],
        "updates_by_modality": pytest.approx({"audio": 1.75, "image": 10 / 3}),
        "balance": pytest.approx(5 / 3),
        "network_balance": pytest.approx(1.35),
        "simulated_s": 3.5,
        "total_simulated_s": 20.0,
        "total_bits": 3e6,
        "failed": {"3": "its battery holds 0 J, sending takes 0.25 J"},
    }
    assert {key: line[key] for key in expected} == expected
    assert line["battery_j"] == {"0": 4.0, "1": 1.0, "2": 0.5, "3": 0.0, "4": 2.0}
    assert [node["balance"] for node in line["nodes"]] == [None, pytest.approx(4 / 3), None, 2.0]
    assert line["nodes"][1]["updates"] == {"audio": 2, "image": 6}
    assert line["nodes"][1]["speed"] == {"audio": 1.0, "image": 0.25}


# The run folder


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_run_folder(tmp_path: Path, record: RoundRecord) -> None:
    """Nothing is written before the devices are ready; then each method has files of its own."""
    config = {"method": "dpsgd", "seed": 3, "alpha": 0.3, "dmml-kd.generator": True}
    folder = RunFolder(tmp_path / "runs", "mine", config)
    assert folder.path == tmp_path / "runs" / "mine"
    assert list(tmp_path.iterdir()) == []

    second = RoundRecord(5, seconds=0.25)
    for method in ("local", "dpsgd"):
        folder.run_started(method, 2, ["audio", "image"])
        folder.round_ended(record)
        folder.round_ended(second)
    assert json.loads((folder.path / "config.json").read_text()) == config
    for method in ("local", "dpsgd"):
        expected = [json.loads(json.dumps(r.to_json())) for r in (record, second)]
        assert read_lines(folder.path / method / "metrics.jsonl") == expected
        assert read_lines(folder.path / method / "timing.jsonl") == [
            {"round": 4, "seconds": 1.5},
            {"round": 5, "seconds": 0.25},
        ]


def test_a_run_that_goes_on_with_other_versions_notes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, though two methods begin; with the same ones nothing is noted."""
    folder = RunFolder(tmp_path, "r", {"method": "dpsgd", "seed": 1})
    folder.run_started("dpsgd", 1, [])
    file = folder.path / "run.json"
    first = file.read_bytes()
    RunFolder.reopen(folder.path).run_started("dpsgd", 1, [])
    assert file.read_bytes() == first
    monkeypatch.setattr(made, "versions", lambda: {"torch": "9.9"})
    again = RunFolder.reopen(folder.path)
    for method in ("dpsgd", "local"):
        again.run_started(method, 1, [])
    about = json.loads(file.read_text())
    (start,) = about.pop("resumed")
    assert about == json.loads(first) and start["versions"] == {"torch": "9.9"}
    file.write_text("[]")  # damaged: no reason to lose the run
    again.run_started("local", 1, [])
    assert file.read_text() == "[]"


def test_run_folder_refuses_an_existing_name(tmp_path: Path) -> None:
    RunFolder(tmp_path, "mine", {"method": "dpsgd"}).run_started("dpsgd", 1, ["audio"])
    with pytest.raises(FileExistsError) as error:
        RunFolder(tmp_path, "mine", {"method": "local"})
    assert "run-name = 'mine'" in str(error.value) and str(tmp_path / "mine") in str(error.value)
    assert json.loads((tmp_path / "mine" / "config.json").read_text()) == {"method": "dpsgd"}


def test_of_two_runs_that_start_with_one_name_the_second_is_refused(tmp_path: Path) -> None:
    """Both were told that the name is free, and wait for their devices; one is ready first."""
    first, second = (RunFolder(tmp_path, "mine", {"method": m}) for m in ("dpsgd", "local"))
    first.run_started("dpsgd", 1, ["audio"])
    with pytest.raises(FileExistsError):
        second.run_started("local", 1, ["audio"])


def test_run_folder_without_a_name_takes_a_new_one_with_the_method(tmp_path: Path) -> None:
    paths = {RunFolder(tmp_path, "", {"method": "dsgdm"}).path for _ in range(3)}
    assert len(paths) == 3
    assert all(path.parent == tmp_path and path.name.endswith("-dsgdm") for path in paths)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/usr/bin/flwr-dmml", "simulate", "--set", "a=x y"], "flwr-dmml simulate --set 'a=x y'"),
        (["/lib/flwr_dmml/cli/__main__.py", "sweep", "g.toml"], "flwr-dmml sweep g.toml"),
        (["/usr/bin/flwr-serverapp", "--token", "secret"], None),
        (["train.py", "--key", "secret"], None),
        ([""], None),
    ],
)
def test_only_commands_of_this_package_are_kept(arguments: list[str], expected: str | None) -> None:
    """Others may hold secrets, as those of Flower's processes do."""
    assert command(arguments) == expected


# Tables


def test_final_table_by_hand() -> None:
    """Mean 0.6 to 0.75 (+15 points), worst 0.5 to 0.6 (+10), best 0.7 to 0.9 (+20).

    What the runs took is written below, without a gain.
    """
    before, after = make_record({0: 0.5, 1: 0.7}), make_record({0: 0.9, 1: 0.6})
    before.by_partition[1].accuracy_by_modality = {"image": 0.35}
    after.by_partition[1].accuracy_by_modality = {"image": 0.3}
    for record, score in ((before, 0.5), (after, 0.7)):
        record.by_partition[0].macro_f1 = score
    before.total_j, before.total_simulated_s, before.total_bits = 12.34567, 600.0, 2.5e6
    after.total_j, after.total_simulated_s, after.total_bits = 1234.567, 0.5, 2.5e9
    text = render(final_table({"dpsgd": before, "dmml-kd": after}))
    assert rows(text) == {
        "": ["dpsgd", "dmml-kd", "gain, points"],
        "all devices, mean": ["0.600", "0.750", "+15.0"],
        "worst device": ["0.500", "0.600", "+10.0"],
        "best device": ["0.700", "0.900", "+20.0"],
        "macro-F1, mean": ["0.500", "0.700", "+20.0"],
        "devices with audio, mean": ["0.500", "0.900", "+40.0"],
        "devices with audio+image, mean": ["0.700", "0.600", "-10.0"],
        "from image alone, mean over owners": ["0.350", "0.300", "-5.0"],
        "joules spent": ["12.35", "1235", ""],
        "seconds on the devices": ["600", "0.5", ""],
        "Mbit on the air": ["2.5", "2500", ""],
    }


def test_final_table_of_one_method_has_no_gain() -> None:
    table = rows(render(final_table({"local": make_record({0: 0.25})})))
    assert table == {
        "": ["local"],
        "all devices, mean": ["0.250"],
        "worst device": ["0.250"],
        "best device": ["0.250"],
        "devices with audio, mean": ["0.250"],
        "joules spent": ["0"],
        "seconds on the devices": ["0"],
        "Mbit on the air": ["0"],
    }


def test_devices_that_one_method_lost_are_in_no_figure() -> None:
    """Device 1 has no result under dmml-kd: only device 0 is compared, 0.5 against 0.9."""
    results = {"dpsgd": make_record({0: 0.5, 1: 0.1}), "dmml-kd": make_record({0: 0.9, 1: None})}
    text = render(final_table(results))
    assert "1 of 2 devices" in text
    assert rows(text)["all devices, mean"] == ["0.500", "0.900", "+40.0"]
    assert "devices with audio+image, mean" not in rows(text)
    assert verdict("dpsgd", "dmml-kd", results) == (
        "dmml-kd against dpsgd after 4 rounds: +40.0 points on the mean over devices, 1 of 1 "
        f"devices score higher. {ONE_SEED}"
    )


def test_methods_without_a_device_in_common_are_not_compared() -> None:
    results = {"dpsgd": make_record({0: 0.5, 1: None}), "dmml-kd": make_record({0: None, 1: 0.8})}
    assert rows(render(final_table(results)))["all devices, mean"] == ["-", "-", "-"]
    assert "no device finished with both" in verdict("dpsgd", "dmml-kd", results)


def test_devices_table_by_hand() -> None:
    results = {"dpsgd": make_record({0: 0.5, 1: None}), "dmml-kd": make_record({0: 0.9, 3: 0.6})}
    assert rows(render(devices_table(results))) == {
        "device": ["sensors", "dpsgd", "dmml-kd"],
        "0": ["audio", "0.500", "0.900"],
        "1": ["audio+image", "-", "-"],
        "3": ["audio+image", "-", "0.600"],
    }


def test_verdict_by_hand() -> None:
    """Device 0 gains, 1 loses, 3 stays (which is not better), 2 is unknown: 1 of 3.

    Means (0.5 + 0.7 + 0.6)/3 = 0.6 and (0.9 + 0.6 + 0.6)/3 = 0.7: +10 points.
    """
    before = make_record({0: 0.5, 1: 0.7, 3: 0.6, 2: None})
    after = make_record({0: 0.9, 1: 0.6, 3: 0.6, 2: None})
    results = {"dpsgd": before, "dmml-kd": after}
    assert verdict("dpsgd", "dmml-kd", results) == (
        "dmml-kd against dpsgd after 4 rounds: +10.0 points on the mean over devices, 1 of 3 "
        f"devices score higher. {ONE_SEED}"
    )
    assert "dpsgd against dmml-kd after 4 rounds: -10.0 points" in verdict(
        "dmml-kd", "dpsgd", results
    )


# The live table


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Point Flower's log where it pointed: the live table moves it, and pytest closes streams."""
    handlers = [h for h in FLOWER_LOGGER.handlers if isinstance(h, StreamHandler)]
    streams = [handler.stream for handler in handlers]
    yield
    for handler, stream in zip(handlers, streams, strict=True):
        handler.setStream(stream)


def show(console: Console, record: RoundRecord) -> None:
    """Go through two methods as an engine and a strategy do."""
    with LiveTable(console) as live:
        live.on_reply(1, 3)  # the handshake, before any round
        for method in ("local", "dpsgd"):
            live.run_started(method, 2, ["audio", "audio+image", "image"])
            live.on_reply(2, 3)
            live.round_ended(RoundRecord(3, seconds=2.0))  # not evaluated: no row
            live.round_ended(record)


def test_live_table_draws_nothing_where_there_is_no_terminal(record: RoundRecord) -> None:
    out = StringIO()
    handlers = list(FLOWER_LOGGER.handlers)
    streams = [getattr(handler, "stream", None) for handler in handlers]
    show(Console(file=out, force_terminal=False, width=120), record)
    assert out.getvalue() == ""
    assert [getattr(handler, "stream", None) for handler in handlers] == streams


def test_live_table_shows_the_figures_of_evaluated_rounds(record: RoundRecord) -> None:
    """Seconds add up over the rounds of a method: 2.0 + 1.5, and start anew with the next."""
    out = StringIO()
    show(Console(file=out, force_terminal=True, color_system=None, width=120), record)
    drawn = rows(out.getvalue()[out.getvalue().rindex("┏") :])  # what stands there at the end
    figures = ["4", "0.700", "0.500", "0.550", "0.800", "3.5", "2"]  # 1500 bytes are 2 kB
    energy = ["-/-", "0.0", "mains", "-", "0.0", "0"]
    assert drawn["method"][:7] == ["round", "mean", "min", "audio", "image", "seconds", "kB sent"]
    assert drawn["local"] == drawn["dpsgd"] == figures + energy
    assert "2 of 3 devices" in out.getvalue()


COLUMNS = {
    "method": "dpsgd",
    "round": "3",
    "mean": "0.625",
    "min": "0.500",
    "audio": "0.375",
    "image": "0.500",
    "seconds": "0.0",
    "kB sent": "1",
    "updates": "1.8/3.3",
    "joules": "12.5",
    "battery": "1.00",  # the median
    "balance": "1.67",
    "device s": "20.0",
    "Mbit": "3",
}


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (140, []),
        (100, []),
        (90, ["device s", "Mbit"]),
        (80, ["balance", "device s", "Mbit"]),
        (60, ["min", "updates", "battery", "balance", "device s", "Mbit"]),
    ],
)
def test_live_table_shows_energy_as_far_as_it_fits(
    powered: RoundRecord, width: int, left_out: list[str]
) -> None:
    """With their lines the columns are 7 + 6 + 6 + 6 + 6 + 6 + 8 + 8 + 8 + 7 + 8 + 8 + 9 + 5 = 98.

    Mbit and device s leave 84, balance 76, updates 68, min 62, battery 54: less than the console.
    """
    out = StringIO()
    with LiveTable(Console(file=out, force_terminal=True, color_system=None, width=width)) as live:
        live.run_started("dpsgd", 1, ["audio", "audio+image"])
        live.round_ended(powered)
    drawn = rows(out.getvalue()[out.getvalue().rindex("┏") :])
    shown = [name for name in COLUMNS if name not in left_out]
    assert drawn["method"] == shown[1:]
    assert drawn["dpsgd"] == [COLUMNS[name] for name in shown[1:]]


def test_live_table_shows_a_dash_for_a_modality_nobody_used_alone() -> None:
    out = StringIO()
    with LiveTable(Console(file=out, force_terminal=True, color_system=None, width=120)) as live:
        live.run_started("local", 1, ["audio", "image"])
        live.round_ended(make_record({0: 0.5}))
    assert rows(out.getvalue())["local"][3:5] == ["-", "-"]


def test_no_name_is_read_as_markup() -> None:
    odd, out = "[/x]", StringIO()
    console = Console(file=out, force_terminal=True, color_system=None, width=120)
    node = NodeResult(0, odd, accuracy=0.5, accuracy_by_modality={odd: 0.5})
    odd_one = RoundRecord(1, {0: node})
    with LiveTable(console) as live:
        live.run_started("local", 1, [odd])
        live.round_ended(odd_one)
    text = render(final_table({"local": odd_one})) + render(devices_table({"local": odd_one}))
    assert odd in out.getvalue() and text.count(odd) == 3


def test_live_table_hands_the_log_back_when_the_run_fails(record: RoundRecord) -> None:
    out = StringIO()
    with (
        pytest.raises(RuntimeError, match="boom"),
        LiveTable(Console(file=out, force_terminal=True, color_system=None, width=120)) as live,
    ):
        live.run_started("local", 2, ["audio"])
        log(WARNING, "a warning on the way")
        live.round_ended(record)
        raise RuntimeError("boom")
    assert "a warning on the way" in out.getvalue()  # above the table, not through it
    assert "0.700" in out.getvalue()
    length = len(out.getvalue())
    log(WARNING, "a warning afterwards")
    assert len(out.getvalue()) == length
