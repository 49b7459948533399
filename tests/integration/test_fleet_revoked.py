"""A device that is revoked while it is there: a real SuperLink and SuperNode, with TLS and keys."""

import time
from pathlib import Path

from fleet_helpers import NODES, cut_parts
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.fleet import read_fleet
from flwr_dmml.fleet.local import LocalFleet
from flwr_dmml.fleet.superlink import list_nodes

LONG_S = 120.0  # a bound that nothing reaches unless it hangs


def test_a_revoked_device_is_sent_away_and_comes_back_with_new_keys_only(tmp_path: Path):
    cut_parts(tmp_path / "parts", NODES)
    fleet = LocalFleet(tmp_path, [tmp_path / "parts" / "part-000"])

    def command(name: str, *more: str) -> str:
        arguments = ["fleet", name, str(fleet.file), *more, "-o", str(fleet.folder)]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output + fleet.said("superlink")
        return done.output

    def nodes() -> list[str]:
        return sorted(list_nodes(read_fleet(fleet.file), fleet.folder).values())

    def wait(*wanted: str) -> None:
        deadline = time.monotonic() + LONG_S
        while nodes() != [*wanted] and time.monotonic() < deadline:
            time.sleep(0.5)
        assert nodes() == [*wanted], fleet.said("device-0")

    with fleet:
        wait("online")
        assert "unregistered at the SuperLink: device-0" in command("revoke", "device-0")
        assert nodes() == ["unregistered"]
        fleet.wait("device-0", LONG_S)  # its SuperNode ends by itself
        fleet.start("device-0")
        assert fleet.wait("device-0", LONG_S) != 0
        assert "Failed to activate SuperNode" in fleet.said("device-0")
        assert "new keys and certificates: device-0" in command("rotate", "device-0")
        assert "device-0: registered" in command("register")
        fleet.start("device-0")
        wait("online", "unregistered")
