"""Runs with liars: what survives, what is recorded of it, what is said before, and where not."""

import logging
from dataclasses import replace
from typing import Any

import networkx as nx
import pytest
from helpers import FAST, run_peers
from helpers_engines import on_both_engines
from typer.testing import CliRunner

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.cli import app
from flwr_dmml.engine import InProcessGrid, load_app
from flwr_dmml.settings import Settings, find_parts, parse_settings
from flwr_dmml.strategies import PeerStrategy
from flwr_dmml.strategies.app import check_attack
from flwr_dmml.strategies.breakdown import held, told
from flwr_dmml.tracking.history import read_record
from flwr_dmml.tracking.records import NodeResult, RoundRecord
from flwr_dmml.tracking.tables import devices_table, final_table, render

SIX: dict[str, Any] = {
    **FAST,
    "num-nodes": 6,
    "topology": "complete",
    "modality-pattern": "audio+image",
    "samples-per-node": 100,
    "local-iterations": 10,
    "alpha": 100.0,
    "attack.devices": "4",
}


def run(rounds: int = 6, **changed: Any) -> PeerStrategy:
    return run_peers({**SIX, **changed}, num_rounds=rounds)


def test_a_robust_rule_survives_what_breaks_the_mean() -> None:
    """One of six flips the sign of every neighbourhood's mean."""
    lie = {"attack.kind": "sign-flip"}
    plain, broken = run(), run(**lie)
    saved = run(**lie, aggregation="robust")
    a, b, c = (strategy.records[-1].accuracy for strategy in (plain, broken, saved))
    assert a is not None and b is not None and c is not None
    assert a > 0.75 and b < a - 0.2 and c > a - 0.05
    liars = saved.records[-1].liars
    assert liars is not None and liars.devices == [4]
    assert liars.precision > 0.99 and liars.recall == pytest.approx(1)
    assert all(node.dropped["4"] == 1.0 for node in saved.records[-1].honest)
    assert liars.accuracy_near == c and liars.accuracy_far is None  # all are next to the liar


def test_without_liars_a_robust_rule_costs_little() -> None:
    """What honest devices drop of each other is said; without liars nothing else is recorded."""
    given = {"attack.devices": "", "alpha": 0.3}
    mean, robust = run(3, **given), run(3, **given, aggregation="robust")
    a, b = mean.records[-1].accuracy, robust.records[-1].accuracy
    assert a is not None and b is not None and b > a - 0.03
    assert sum(sum(n.dropped.values()) for n in robust.records[-1].nodes) < 0.1 * 6 * 5
    line = mean.records[-1].to_json()
    assert "liars" not in line and not {"lies", "dropped"} & line["nodes"][0].keys()


def test_liars_count_in_no_mean() -> None:
    """By hand: two honest devices, of which one hears the liar, which is best at everything."""
    nodes = [
        NodeResult(0, "audio", accuracy=0.5, train_loss=1.0, lies=False, lying_neighbours=1),
        NodeResult(1, "audio", accuracy=0.7, train_loss=2.0, lies=False, lying_neighbours=0),
        NodeResult(2, "image", accuracy=1.0, train_loss=9.0, lies=True, bytes_sent=30),
    ]
    nodes[0].dropped = {"2": 0.5, "1": 0.25}
    record = RoundRecord(3, {n.partition: n for n in nodes})
    assert record.accuracy == 0.6 and record.max_accuracy == 0.7 and record.train_loss == 1.5
    assert record.accuracy_by_set == {"audio": 0.6} and record.bytes_sent == 10
    liars = record.liars
    assert liars is not None and liars.devices == [2]
    assert (liars.accuracy_near, liars.accuracy_far) == (0.5, 0.7)
    assert liars.precision == pytest.approx(0.5 / 0.75) and liars.recall == 0.5
    line = record.to_json()
    assert line["liars"]["recall"] == 0.5 and line["nodes"][2]["lies"] is True
    assert read_record(line) == record
    table = render(final_table({"a": record}))
    assert "honest devices, mean" in table and "near a liar, mean" in table
    assert "image, lies" in render(devices_table({"a": record}))
    quiet = replace(record, by_partition={0: replace(nodes[0], dropped={}), 2: nodes[2]}).liars
    assert quiet is not None and quiet.precision is None and quiet.recall is None


MIXED: dict[str, Any] = {
    **SIX,
    "method": "dpsgd",
    "modality-pattern": "audio+image,audio+image,audio",
    "samples-per-node": 40,
    "local-iterations": 2,
}


@pytest.mark.parametrize(
    "changed",
    [
        {"method": "dmml-kd", "attack.kind": "alie", "aggregation": "ios"},
        {"attack.kind": "sign-flip", "aggregation": "robust", "loss-rate": 0.3},
        {"attack.kind": "scale", "aggregation": "nnm+median", "gossip": "decentlam"},
        {"attack.kind": "ipm", "aggregation": "monna", "topology": "epidemic"},
        {"attack.kind": "zero", "gossip": "choco", "exchange.top-k": 0.5},
        {"attack.kind": "dissensus", "gossip": "k-gt"},
        {"attack.kind": "isolation", "gossip": "sgp", "loss-rate": 0.2},
        {"attack.kind": "sign-flip", "final-merge": "owners"},
        {"attack.kind": "gaussian", "gossip": "k-gt", "final-merge": "owners"},
        {"attack.kind": "mimic", "aggregation": "multi-krum"},
        {"attack.kind": "hidden-sign-flip", "aggregation": "rtc"},
        {"attack.kind": "zero", "aggregation": "robust", "gossip": "leaky-d2"},
    ],
    ids=lambda x: " ".join(map(str, x.values())),
)
def test_messages_and_rows_write_the_same_records(changed: dict[str, Any]) -> None:
    """Liars beside gossip rules, graphs, losses and a final merge: alike on both engines."""
    config = {**MIXED, "attack.payload": "forged", **changed}
    lied = on_both_engines(config).records
    assert (found := lied[-1].liars) is not None and found.devices == [4]
    given = {k: v for k, v in config.items() if k not in ("attack.kind", "attack.payload")}
    honest = run_peers(given, num_rounds=3, evaluate_every=2).records
    last = len(lied) - 1
    assert last == len(honest) - 1 and (last > 2) == ("final-merge" in changed)
    assert lied[last].by_partition[0].disagreement != honest[last].by_partition[0].disagreement


def test_a_liar_lies_in_the_final_merge_too() -> None:
    """From round 4 on, when all have trained: of a mean only the lie is left."""
    config = {**MIXED, "final-merge": "owners", "attack.kind": "sign-flip", "attack.start": 4}
    honest = run_peers({**config, "attack.kind": "none"}, num_rounds=3).records
    lied = run_peers(config, num_rounds=3).records
    assert lied[2].to_json() == honest[2].to_json()
    assert lied[-1].accuracy is not None and honest[-1].accuracy is not None
    assert lied[-1].accuracy < honest[-1].accuracy


# ---- before a run -------------------------------------------------------------------------------


def test_what_a_graph_can_hold() -> None:
    """A star of four with one more link; sound is on 0, 1, 2 only, which all hear each other."""
    graph = nx.star_graph(4)
    graph.add_edge(1, 2)
    blocks = {k: ["head", *(["sound"] if k < 3 else [])] for k in range(5)}
    rule = parse_settings({"aggregation": "ios", "assume-liars": 1}, find_parts()).aggregation
    assert rule is not None
    head, sound = held(graph, blocks, rule)
    assert head.liars == {0: 1, 1: 0, 2: 0, 3: 0, 4: 0} and sound.liars == {0: 0, 1: 0, 2: 0}
    lines = told([head, sound], rule, lying=[1])
    assert lines[0].endswith(
        "head: 1 on 1 device, 0 on 4 devices, of 1 to 4 neighbours that own it"
    )
    assert lines[1].endswith("sound: 0 on 3 devices, of 2 neighbours that own it")
    assert lines[2] == "More liars than that are next to 0, 2"
    assert "is the weighted mean here" in told([sound], rule)[1]
    robust = parse_settings({"aggregation": "robust"}, find_parts()).aggregation
    assert robust is not None
    pair = held(nx.path_graph(2), {0: ["head"], 1: ["head"]}, robust)
    assert "robust only drops what is out of reach here" in told(pair, robust)[1]
    assert held(graph, blocks, robust)[1].liars == {0: 1, 1: 1, 2: 1}  # half of two
    mean = parse_settings({}, find_parts()).aggregation
    assert mean is not None and told(held(graph, blocks, mean), mean) == []


def test_it_is_said_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "flwr"):
        run(1, aggregation="robust", **{"attack.kind": "zero"})
    said = [record.message for record in caplog.records]
    assert any(line.startswith("Liars that robust tolerates next to a device: ") for line in said)
    assert "Liars of this simulation: 4" in said
    assert not any("More liars" in line for line in said)


def test_describe_says_it(tmp_path: Any) -> None:
    words = ["simulate", "examples/quickstart", "--describe", "--set", "aggregation=nnm+ios"]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "nnm+ios is the weighted mean here: no device has enough neighbours" in done.output


# ---- never on real devices ----------------------------------------------------------------------


class Fleet:
    """A grid of real SuperNodes, as far as it is asked."""


@pytest.mark.parametrize("attack", [{"attack.kind": "alie"}, {"attack.payload": "forged"}, {}])
def test_attacks_are_refused_on_real_devices(attack: dict[str, str]) -> None:
    config = {"attack.devices": "1", **attack}
    settings = parse_settings(config, find_parts()).settings
    with pytest.raises(SettingsError, match="attacks are for simulations, and these devices are"):
        check_attack(settings, Fleet())  # type: ignore[arg-type]
    check_attack(Settings(), Fleet())  # type: ignore[arg-type]
    grid = InProcessGrid(load_app("examples/quickstart").client_app, 2, {})
    check_attack(settings, grid)
