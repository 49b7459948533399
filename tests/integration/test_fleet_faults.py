"""Devices and a SuperLink that die, and devices that lie: real processes, TLS, node keys."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fleet_helpers import FLEET, cut_parts

from flwr_dmml.fleet.local import LocalFleet

NODES = 4
SETTINGS = {
    "local-iterations": 10,
    "evaluate-every": 1,
    "round-timeout": 60.0,
    "wait-timeout": 60.0,
}


def parts(folder: Path) -> list[Path]:
    cut_parts(folder, NODES)
    return sorted(folder.iterdir())


def lines(fleet: LocalFleet, run: str) -> list[dict[str, Any]]:
    """Return the rounds of a run that are complete."""
    file = fleet.runs / run / "dmml-kd" / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def log_of(fleet: LocalFleet, run: str) -> str:
    file = fleet.runs / run / "log.txt"
    return file.read_text() if file.exists() else ""


def wait_until(
    reached: Callable[[], bool], run: subprocess.Popen[str], fleet: LocalFleet, most_s: float = 240
) -> None:
    """Wait for something in a run that goes on; the test fails if that ends before."""
    deadline = time.monotonic() + most_s
    while not reached():
        if run.poll() is not None or time.monotonic() > deadline:
            run.kill()
            said = {name: fleet.said(name) for name in ("superlink", *fleet.devices)}
            logs = "\n".join(f"---- {name}:\n{text}" for name, text in said.items())
            raise AssertionError(run.communicate()[0][-6000:] + logs)
        time.sleep(0.1)


def accuracy(line: dict[str, Any], nodes: tuple[int, ...]) -> float:
    """Return the mean accuracy of some devices in a round."""
    return sum(line["nodes"][k]["accuracy"] for k in nodes) / len(nodes)


def newest(checkpoints: Path) -> int:
    """Return the round of the last checkpoint; 0 if there is none."""
    return max((int(path.name[-5:]) for path in checkpoints.glob("round-?????")), default=0)


def test_a_killed_device_comes_back_and_a_killed_superlink_is_resumed(tmp_path: Path):
    """``kill -9``: devices 2 and 3 after a checkpoint, then, when 3 is back, the SuperLink.

    The run goes on without device 2, which then comes. A round takes a second or two, and a device
    several to start: there are rounds enough for that.
    """
    rounds, name = 40, "killed"
    settings = {**SETTINGS, "num-server-rounds": rounds, "run-name": name, "checkpoint-every": 2}
    with LocalFleet(tmp_path, parts(tmp_path / "parts")) as fleet:
        run = fleet.submit(FLEET, settings)
        saved = fleet.runs / name / "dmml-kd" / "checkpoints"
        wait_until(lambda: newest(saved) >= 2, run, fleet)
        for device in ("device-3", "device-2"):
            fleet.kill(device)
        for node in (3, 2):
            gone = f"node {node} is left out"
            wait_until(lambda gone=gone: gone in log_of(fleet, name), run, fleet)
        fleet.start("device-3")
        wait_until(lambda: "node 3 goes on from what it" in log_of(fleet, name), run, fleet)
        back = len(lines(fleet, name))
        wait_until(lambda: newest(saved) > back + 1, run, fleet)

        fleet.kill("superlink")
        run.communicate(timeout=60)
        before = lines(fleet, name)
        assert back <= len(before) < rounds, before
        last = newest(saved)
        fleet.start_superlink()
        resumed = fleet.submit(FLEET, {**settings, "resume": name, "wait-timeout": 5})
        without = "The run goes on without devices 2 until they are back"
        wait_until(lambda: without in log_of(fleet, name), resumed, fleet)
        fleet.start("device-2")
        said = resumed.communicate(timeout=240)[0]
    assert f"Resumed after round {last}" in said, said
    assert "Device 2 is back: it takes part again" in said, said
    after = lines(fleet, name)
    assert [line["round"] for line in after] == list(range(1, rounds + 1)), said
    assert after[: last - 1] == before[: last - 1]
    assert any("3" in line["failed"] for line in after[:5]), after[:5]
    assert "2" in after[last]["failed"] and not after[-1]["failed"]
    assert all(node["bytes_sent"] > 0 for node in after[-1]["nodes"])
    assert accuracy(after[-1], (0, 1, 2)) > accuracy(after[0], (0, 1, 2)) + 0.1


LIAR = '''"""A device that lies to its neighbours in the rounds that DMML_TEST_LIES names."""

import os
from dataclasses import replace

import torch
from flwr_dmml.clients import make_client_app
from flwr_dmml.transport.direct import answers, link

app = make_client_app()
write_honestly, send_honestly = link.write_letter, answers.Answers._send


def write(letter):
    nan = {name: x * torch.nan for name, x in letter.tensors.items()}
    if letter.server_round == 2:
        return write_honestly(replace(letter, tensors=nan))
    if letter.server_round == 3:
        return write_honestly(letter)[:-1000]
    if letter.server_round == 4:
        return write_honestly(replace(letter, tensors={"long": torch.zeros(1 << 20)}))
    if letter.server_round == 5:
        return write_honestly(replace(letter, server_round=1))
    return write_honestly(letter)


if os.environ.get("DMML_TEST_LIES"):
    link.write_letter = write
    answers.Answers._send = lambda self, query, question, *letter: send_honestly(
        self, query, replace(question, limit=1 << 30), *letter
    )
'''
LIES = {
    2: "NaN",
    3: "damaged",
    4: "'long' is a block that no two devices of the run have",
    5: "replayed",
}


def test_a_liar_and_a_wrong_certificate_cost_only_themselves(tmp_path: Path):
    """Device to device: 3 sends NaN, a cut, an unknown block, an old letter; 2 has a wrong CA's."""
    pytest.importorskip("zenoh", reason='devices need pip install "flwr-dmml[direct]" for that')
    name = "liar"
    app = shutil.copytree(FLEET, tmp_path / "app")
    (app / "fleet" / "client_app.py").write_text(LIAR)
    lies = {"device-3": {"DMML_TEST_LIES": "1"}}
    fleet = LocalFleet(tmp_path, parts(tmp_path / "parts"), lies)
    LocalFleet(tmp_path / "other", parts(tmp_path / "others-parts"))  # its authority is another
    for file in ("peer.crt", "peer.key"):
        place = Path("fleet") / "devices" / "device-2" / file
        shutil.copy(tmp_path / "other" / place, tmp_path / place)
    settings = {
        **SETTINGS,
        "num-server-rounds": 6,
        "run-name": name,
        "checkpoint-every": 0,
        "topology": "complete",
        "exchange.transport": "direct",
        "exchange.timeout-s": 40.0,  # all of it is waited for the oversized letter
        "round-timeout": 200.0,
        "exchange.precision": "float32",  # it lies in float32
    }
    with fleet:
        said = fleet.submit(app, settings).communicate(timeout=500)[0]
    told = lines(fleet, name)
    assert len(told) == settings["num-server-rounds"], said + fleet.said("device-3")
    for line in told:
        assert "certificate" in line["failed"]["2"], line["failed"]
        lie = LIES.get(line["round"])
        assert ("3" in line["failed"]) == (lie is not None), (line["failed"], line["nodes"])
        if lie:
            assert lie in line["failed"]["3"], line["failed"]
            assert all(line["nodes"][k]["rejected"] for k in (0, 1)), line["nodes"]
        assert not {"0", "1"} & line["failed"].keys(), line["failed"]
    assert accuracy(told[-1], (0, 1)) > accuracy(told[0], (0, 1)) + 0.1, told
