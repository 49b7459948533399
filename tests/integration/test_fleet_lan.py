"""A fleet on a LAN: each device in a namespace; links with a delay, loss and a bandwidth."""

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_helpers import FLEET, NODES, SETTINGS, cut_parts, learned
from lan import Lan, why_not
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.fleet.local import LocalFleet

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
pytest.importorskip("zenoh", reason='devices need pip install "flwr-dmml[direct]" for that')

DEVICES = [f"device-{number}" for number in range(NODES)]
PAIRS = list(itertools.permutations(DEVICES, 2))
SHAPE = {"delay_s": 0.01, "loss": 0.005, "bytes_per_s": 10e6}
DIRECT = {
    **SETTINGS,
    "checkpoint-every": 0,
    "exchange.transport": "direct",
    "exchange.precision": "float32",  # much goes from device to device
}
TIMEOUT_S = 20.0  # far longer than one device may begin after another
Metrics = list[dict[str, Any]]


class Fleet:
    """A running fleet."""

    def __init__(self, lan: Lan, local: LocalFleet) -> None:
        self.lan, self._local = lan, local

    def run(self, name: str, meanwhile: Callable[[Path], None], **settings: Any) -> str:
        """Run the app, and something beside it that is told the metrics file; return the log."""
        process = self._local.submit(FLEET, {**DIRECT, "run-name": name, **settings})
        meanwhile(self.metrics(name))
        log = process.communicate(timeout=400)[0]
        assert self.metrics(name).exists(), log + self.logs()
        return log

    def metrics(self, name: str) -> Path:
        return self._local.runs / name / "dmml-kd" / "metrics.jsonl"

    def logs(self) -> str:
        return "\n".join(self._local.said(name) for name in ("superlink", *DEVICES))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cut") / "parts"
    cut_parts(folder)
    return folder


@pytest.fixture(scope="module")
def fleet(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet with TLS by its own scripts, each member at its own address."""
    with (
        Lan(["superlink", *DEVICES], **SHAPE) as lan,
        LocalFleet(tmp_path_factory.mktemp("lan"), sorted(parts.iterdir()), network=lan) as local,
    ):
        yield Fleet(lan, local)


def read(metrics: Path) -> Metrics:
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def test_a_lan_gives_the_numbers_of_a_simulation(fleet: Fleet, parts: Path, tmp_path: Path):
    """Delay, loss and a bandwidth cost time only; letters go from device to device."""
    rounds = {"num-server-rounds": 3}
    lan = fleet.lan
    before = {pair: lan.bytes(*pair) for pair in itertools.permutations(lan.names, 2)}
    fleet.run("whole", lambda metrics: None, **rounds, **{"exchange.rounds-per-message": 2})
    sent = {pair: lan.bytes(*pair) - count for pair, count in before.items()}

    same = {"exchange.precision": DIRECT["exchange.precision"]}
    sets = {
        **SETTINGS,
        **same,
        **rounds,
        "run-dir": tmp_path,
        "run-name": "here",
        "data-path": parts,
    }
    command = ["simulate", str(FLEET), "--workers", "0"]
    command += [part for k, v in sets.items() for part in ("--set", f"{k}={v}")]
    assert CliRunner().invoke(app, command).exit_code == 0
    simulated = (tmp_path / "here" / "dmml-kd" / "metrics.jsonl").read_bytes()
    assert learned(fleet.metrics("whole").read_bytes()) == learned(simulated)

    lines = read(fleet.metrics("whole"))
    assert not any(line["failed"] for line in lines), fleet.logs()
    letters = [sum(line["nodes"][k]["bytes_sent"] for line in lines) / 2 for k in range(NODES)]
    for a, b in PAIRS:
        assert sent[a, b] >= letters[DEVICES.index(a)] > 0, (sent, letters)
    assert any(lan.link(*pair).lost for pair in PAIRS)
    between = sum(sent[pair] for pair in PAIRS)
    passed = sum(sent.values()) - between
    told = f"{passed} bytes from and to the SuperLink, {between} between devices"
    assert passed < between / 2, told
    print(told)


def test_a_cut_link_costs_the_two_at_its_ends_only_and_heals(fleet: Fleet):
    """The link is cut from the start until the first message (rounds 1 to 3) is over.

    Letters of rounds 1 and 2 do not pass it: the two wait for the first of them, once, and so are
    late with their next. The third device waits for that, and blames nobody. Those of round 3 are
    exchanged in the closing message.
    """
    lan, (one, other, _) = fleet.lan, DEVICES
    lan.cut(one, other)

    def mend(metrics: Path) -> None:
        until = time.monotonic() + 300
        while not metrics.exists() or not metrics.read_text().count("\n"):
            assert time.monotonic() < until, fleet.logs()
            time.sleep(0.1)
        lan.mend(one, other)

    settings = {"num-server-rounds": 3, "exchange.rounds-per-message": 3}
    log = fleet.run("cut", mend, **settings, **{"exchange.timeout-s": TIMEOUT_S})
    lines = read(fleet.metrics("cut"))
    why = f"no letter within {TIMEOUT_S:g} s"
    assert not any(line["failed"] for line in lines), "each has reached the third device" + log
    for line in lines[:2]:
        told = [node.get("claims", {}) for node in line["nodes"]]
        assert [list(claims) for claims in told] == [["1"], ["0"], []], told
        assert why in told[0]["1"] and why in told[1]["0"], told
    blamed = re.findall(r"Round (\d): node (\d) rejects from node (\d): (.*)", log)
    pairs = [("1", "0", "1"), ("1", "1", "0"), ("2", "0", "1"), ("2", "1", "0")]
    assert sorted(who for *who, _ in blamed) == sorted(map(list, pairs)), log
    assert all(text.startswith(why) for *_, text in blamed), blamed
