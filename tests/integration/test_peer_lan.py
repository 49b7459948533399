"""Letters on a LAN with a delay and loss, over links that are cut while somebody waits."""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from lan import Lan, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
pytest.importorskip("zenoh", reason='letters between devices: "flwr-dmml[direct]"')

DEVICE = Path(__file__).with_name("lan_device.py")
NAMES = ["device-0", "device-1", "device-2"]
PORT = 7447
LENGTH = 125_000  # 0.5 MB
LONG_S = 60.0
SPARE_S = 240.0  # a bound that nothing reaches unless it hangs


class Device:
    """A device in a namespace; a call is written at once, what came of it is read when wanted."""

    def __init__(self, lan: Lan, number: int, stack: ExitStack) -> None:
        self.number, name = number, NAMES[number]
        self.address = f"{lan.address(name)}:{PORT}"
        command = [sys.executable, str(DEVICE), str(number), self.address]
        self._process = subprocess.Popen(
            lan.command(name, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.callback(self._process.wait)
        stack.callback(self._process.kill)

    def begin(self, *call: Any) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()

    def end(self) -> Any:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())

    def collect(self, others: "list[Device]", *call: Any) -> None:
        self.begin("collect", {other.number: other.address for other in others}, *call)


@pytest.fixture(scope="module")
def lan() -> Iterator[Lan]:
    with Lan(NAMES, delay_s=0.01, loss=0.005, bytes_per_s=20e6) as lan:
        yield lan


@pytest.fixture(scope="module")
def devices(lan: Lan) -> Iterator[list[Device]]:
    with ExitStack() as stack:
        devices = [Device(lan, number, stack) for number in range(len(NAMES))]
        assert [device.end() for device in devices] == ["ready"] * len(NAMES)
        yield devices


def publish(devices: list[Device], server_round: int) -> int:
    for device in devices:
        device.begin("publish", server_round, LENGTH)
    return min(device.end() for device in devices)


def collect_all(devices: list[Device], server_round: int) -> None:
    for device in devices:
        device.collect([other for other in devices if other is not device], server_round, LONG_S)


def whole(server_round: int) -> float:
    """Return the sum of a letter's numbers; whole numbers, so that nothing is rounded."""
    return LENGTH * (LENGTH - 1) / 2 + LENGTH * server_round


def test_letters_arrive_whole_and_weigh_what_they_weigh(lan: Lan, devices: list[Device]):
    for server_round in (1, 2, 3):
        size = publish(devices, server_round)
        collect_all(devices, server_round)
        for device in devices:
            letters, missing = device.end()
            assert not missing and len(letters) == 2
            assert set(letters.values()) == {whole(server_round)}
    for pair in itertools.permutations(NAMES, 2):
        assert lan.bytes(*pair) > 3 * size > 12 * LENGTH
        assert lan.link(*pair).lost > 0


def test_a_link_that_is_cut_while_one_waits_costs_nobody_else(lan: Lan, devices: list[Device]):
    """Device 0 has a question at device 1 when no packet passes any more: its spare time is not
    waited, as Zenoh finds the link broken. Device 2 writes late, and is given it.
    """
    first, cut_off, late = devices
    publish([first], 4)
    begun = monotonic()
    first.collect([cut_off, late], 4, 3.0, SPARE_S)
    lan.cut(NAMES[0], NAMES[1])
    publish([cut_off], 4)
    cut_off.collect([first, late], 4, 3.0)
    letters, missing = cut_off.end()
    assert not letters and missing["0"].startswith("no letter within 3 s")
    assert missing["2"].startswith("no letter within 3 s")
    publish([late], 4)
    letters, missing = first.end()
    assert letters == {"2": whole(4)}
    assert missing.keys() == {"1"} and missing["1"].startswith("no letter within 3 s")
    assert monotonic() - begun < SPARE_S

    lan.mend(NAMES[0], NAMES[1])
    publish(devices, 5)
    collect_all(devices, 5)
    for device in devices:
        letters, missing = device.end()
        assert not missing and len(letters) == 2
        assert set(letters.values()) == {whole(5)}
