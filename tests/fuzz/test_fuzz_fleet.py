"""A fleet's file, and what devices say of themselves to ``flwr-dmml fleet status``."""

import json
from pathlib import Path

import pytest
from fuzzing import fuzz
from helpers_fleet import TWO

from flwr_dmml.fleet import FleetError, read_fleet
from flwr_dmml.fleet.answers import Heard, cells, problems_of
from flwr_dmml.fleet.asking import read_answer
from flwr_dmml.fleet.scripts import device_config, device_files, superlink_files
from flwr_dmml.fleet.status_app.client_app import describe

WHOLE = """
device-dir = "/srv/{name}"
venv = "/opt/flwr-dmml"
user = "flwr-dmml"
"""


def test_fleets(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """What can be read can be written into scripts, too."""
    file = tmp_path / "fleet.toml"

    def read(data: bytes) -> None:
        file.write_bytes(data)
        fleet = read_fleet(file)
        superlink_files(fleet, "/srv/superlink")
        for device in fleet.devices:
            device_files(fleet, device)

    third = 'battery-j = 5\ndirect-port = 1\nruntime-port = 2\nmeter = "none"\npartition-id = 1\n'
    examples = [TWO, WHOLE + TWO + third + "require-sealed = true\n"]
    fuzz(read, (FleetError,), [text.encode() for text in examples], pytestconfig)


def test_status_answers(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    (tmp_path / "fleet.toml").write_text(TWO)
    fleet = read_fleet(tmp_path / "fleet.toml")
    answer = describe(device_config(fleet, fleet.devices[0]), {})
    form = {"classes": 10, "modalities": {"image": ["image", "(1, 8, 8)"]}}
    answer["data"] = {"summary": "part 0 of 2", "part": 0, "parts": 2, "form": form}
    answer["peers"] = {"pi-2": "no route"}
    example = json.dumps(answer).encode()
    other = Heard(read_answer(example.decode()), 1e9, 1e9 + 5)

    def read(data: bytes) -> None:
        heard = Heard(read_answer(data.decode("utf-8", errors="surrogateescape")), 1e9, 1e9 + 5)
        shown = [*cells(heard).values(), *problems_of(fleet, {"pi-1": heard, "pi-2": other})]
        assert all(text.isprintable() for text in shown), shown

    fuzz(read, (FleetError,), [example], pytestconfig)
