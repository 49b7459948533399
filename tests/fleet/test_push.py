"""A new version for devices: real folders, pip and processes; an ssh that stays on this machine."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from helpers_fleet import program, ssh_here, stub_wheel, write_wheel
from typer.testing import CliRunner

from flwr_dmml.cli import app
from flwr_dmml.fleet import Device, FleetError, prepare, read_fleet, update
from flwr_dmml.fleet import push as pushing
from flwr_dmml.fleet.config import Fleet
from flwr_dmml.fleet.local import AGAIN, free_port
from flwr_dmml.fleet.push import find_version, write_bundle
from flwr_dmml.fleet.update import Board, UpdateError

FILE = """name = "lab"
device-dir = "{folder}/lab/devices/{{name}}"
venv = "{folder}/venv"
[superlink]
host = "127.0.0.1"
port = {link}
"""
DEVICE = """[[device]]
name = "{name}"
address = "127.0.0.1"
data-path = "/data"
direct-port = {direct}
runtime-port = {port}
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Fleet]:
    """A prepared fleet of three devices; its virtual environment holds a version 1 that starts."""
    programs, venv = tmp_path / "programs", tmp_path / "venv" / "bin"
    for folder in (programs, venv):
        folder.mkdir(parents=True)
    old = f"PYTHONPATH={stub_wheel(tmp_path / 'old', '1')}"
    ssh_here(programs)
    program(venv / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    run = f'{old} exec {sys.executable} -m flwr_dmml.cli "$@"'
    program(venv / "flwr-dmml", f"#!/bin/sh\n{run}\n")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    rows = [
        DEVICE.format(name=name, direct=free_port(), port=free_port()) for name in ("a", "b", "c")
    ]
    file = tmp_path / "fleet.toml"
    file.write_text(FILE.format(folder=tmp_path, link=free_port()) + "".join(rows))
    prepare(read_fleet(file), tmp_path / "lab")
    return file, read_fleet(file)


def push(file: Path, *words: object) -> tuple[int, str]:
    command = ["fleet", "push", str(file), "-o", str(file.parent / "lab"), *map(str, words)]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "250"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def versions(fleet: Fleet, name: str) -> list[str]:
    """Return the versions that a device keeps, without their digests, and what the links name."""
    folder = Path(fleet.device_dir.replace("{name}", name)) / "versions"
    kept = sorted(p.name[:-9] for p in folder.iterdir() if p.is_dir() and not p.is_symlink())
    links = [folder / link for link in ("current", "previous")]
    return [*kept, *(os.readlink(link)[:-9] if link.is_symlink() else "-" for link in links)]


def test_each_device_keeps_two_versions_and_goes_back(lab: tuple[Path, Fleet], tmp_path: Path):
    """Devices that do not run: nothing has to come back."""
    file, fleet = lab
    for version, kept in (
        ("2.0", ["2.0", "2.0", "-"]),
        ("3.0", ["2.0", "3.0", "3.0", "2.0"]),
        ("4.0", ["3.0", "4.0", "4.0", "3.0"]),
    ):
        code, said = push(file, stub_wheel(tmp_path / "wheels", version), "--only", "a")
        assert code == 0 and "does not run: start it" in said, said
        assert versions(fleet, "a") == kept
    assert (tmp_path / "programs" / "asked").read_text() == "root@127.0.0.1\n" * 3
    code, said = push(file, tmp_path / "wheels" / "flwr_dmml-4.0-py3-none-any.whl", "--only", "a")
    assert code == 0 and "does not run: start it" in said and versions(fleet, "a") == kept
    assert push(file, "--rollback", "--only", "a")[0] == 0
    assert versions(fleet, "a") == ["3.0", "3.0", "3.0"]
    for name in ("a", "b"):
        code, said = push(file, "--rollback", "--only", name)
        assert code == 1 and "there is no version to go back to" in said
    assert versions(fleet, "a") == ["3.0", "3.0", "3.0"], "it is not gone forward again"


def test_only_what_got_a_version_goes_back_from_it(lab: tuple[Path, Fleet], tmp_path: Path):
    """A push that stopped half way: the others would go back to what they ran before theirs."""
    file, fleet = lab
    for version, names in (("1.5", "abc"), ("2.0", "abc"), ("3.0", "a")):
        wheel = stub_wheel(tmp_path / "wheels", version)
        assert push(file, wheel, "--at-once", 3, *(f"--only={name}" for name in names))[0] == 0
    code, said = push(file, "--rollback")
    assert code == 1 and "devices run different versions (a: 3.0-" in said, said
    assert "name one with --leaving" in said and versions(fleet, "a")[-2:] == ["3.0", "2.0"]
    code, said = push(file, "--rollback", "--leaving", find_version(str(wheel), tmp_path).label)
    assert code == 1 and said.count("there is nothing to take back") == 2, said
    assert [versions(fleet, name)[-2:] for name in "abc"] == [["2.0"] * 2, *[["2.0", "1.5"]] * 2]


def test_a_canary_that_is_not_known_to_run_stops_the_push(lab: tuple[Path, Fleet], tmp_path: Path):
    """It does not run at all: nothing has been tried."""
    file, fleet = lab
    code, said = push(file, stub_wheel(tmp_path / "wheels", "2.0"), "--canary", 1)
    assert code == 1 and said.count("left out") == 2 and "does not run: start it" in said
    assert not (Path(fleet.device_dir.replace("{name}", "b")) / "versions").exists()


BROKEN = {
    "an import": ({"dry": "import no_such_module"}, "the dry round fails: ModuleNotFoundError"),
    "doctor": ({"doctor": "error"}, "doctor: disk: no room"),
    "requirement": ({"requires": ["no-such-package-at-all>=7"]}, "cannot be installed: ERROR"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_version_is_found_before_the_switch_and_stops_at_the_canary(
    lab: tuple[Path, Fleet], tmp_path: Path, what: str
):
    file, fleet = lab
    good = stub_wheel(tmp_path / "good", "2.0")
    assert push(file, good, "--only", "a", "--only", "b", "--at-once", 2)[0] == 0
    options, why = BROKEN[what]
    wheels = stub_wheel(tmp_path / "bad", "3.0", **options).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        code, said = push(file, wheels, "--canary", 1)
    assert code == 1 and said.count(why) == 1, said
    assert said.count("left out") == said.count("not all known to run it") == 2
    assert all(versions(fleet, name) == ["2.0", "2.0", "-"] for name in ("a", "b"))


def test_what_a_version_requires_is_installed_if_it_is_not_there(
    lab: tuple[Path, Fleet], tmp_path: Path
):
    """From the folder of wheels; what the environment has is not installed again."""
    file, fleet = lab
    requires = ["numpy>=1", "made-up-one>=2; python_version > '3'", "made-up-two; extra == 'x'"]
    wheels = stub_wheel(tmp_path / "wheels", "2.0", dry="import made_up_one", requires=requires)
    write_wheel(wheels.parent, "2.1", name="made-up-one", files={"made_up_one.py": ""})
    code, said = push(file, wheels.parent, "--only", "a")
    assert code == 0, said
    (kept,) = Path(fleet.folder_of(fleet.devices[0])).glob("versions/2.0-*")
    there = {path.name for path in kept.iterdir()}
    assert "made_up_one.py" in there and "bin" in there and "numpy" not in there


def test_a_bundle_does_the_same_by_hand(lab: tuple[Path, Fleet], tmp_path: Path):
    file, fleet = lab
    wheel, place = stub_wheel(tmp_path / "wheels", "2.0"), tmp_path / "bundle"
    code, said = push(file, wheel, "--bundle", place)
    assert code == 0 and f"a: {fleet.venv}/bin/python /root/update/update.py" in said
    assert not (tmp_path / "programs" / "asked").exists()
    command = [f"{fleet.venv}/bin/python", str(place / "update.py"), str(place / "b.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["done"] and versions(fleet, "b") == ["2.0", "2.0", "-"]
    code, said = push(file, wheel, "--bundle", place)
    assert code == 1 and "is not empty" in said


def test_what_cannot_be_pushed_is_said(lab: tuple[Path, Fleet], tmp_path: Path):
    file, fleet = lab
    good = stub_wheel(tmp_path / "wheels", "2.0")
    code, said = push(file, good, "--only", "pi-9")
    assert code == 1 and "pi-9: there are a, b, c" in said
    assert push(file)[0] == push(file, good, "--rollback")[0] == 2
    other = write_wheel(tmp_path / "other", "1.0", name="other", files={})
    with pytest.raises(FleetError, match="must hold one wheel of flwr-dmml; there is none"):
        find_version(str(other), tmp_path)
    stub_wheel(tmp_path / "wheels", "2.1")
    with pytest.raises(FleetError, match=r"there is flwr_dmml-2\.0.*, flwr_dmml-2\.1"):
        find_version(str(good.parent), tmp_path)
    with pytest.raises(FleetError, match=r"pip makes none: .*does not exist"):
        find_version("/no/such/folder", tmp_path)
    (tmp_path / "flwr_dmml-9-py3-none-any.whl").write_text("")
    with pytest.raises(FleetError, match="is missing, or is no wheel"):
        find_version(str(tmp_path / "flwr_dmml-9-py3-none-any.whl"), tmp_path)
    (Path(fleet.folder_of(fleet.devices[0])) / "environment").write_text("PATH=/bin\n")
    code, said = push(file, good, "--only", "a")
    assert code == 1 and "knows no versions: run flwr-dmml fleet init again" in said
    (tmp_path / "programs" / "ssh").write_text("#!/bin/sh\necho 'no route' >&2; exit 255\n")
    code, said = push(file, good, "--only", "a")
    assert code == 1 and "not reached" in said and "no route" in said


def test_a_device_that_the_superlink_does_not_see_goes_back(
    lab: tuple[Path, Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The device says that all is well; what the SuperLink says is made up."""
    fleet, commands = lab[1], list[str]()
    seen: dict[str, str] = {"b-node": "online"}

    def remote(device: Device, command: str, *, given: IO[bytes], into: IO[bytes]) -> str:
        commands.append(f"{device.name}{' --rollback' * ('--rollback' in command)}")
        versions = {"was": "1", "now": "1" if "--rollback" in command else "2"}
        into.write(json.dumps({**versions, "done": True, "up": True, "why": ""}).encode())
        return ""

    def nodes(fleet: Fleet, folder: Path) -> dict[str, str]:
        if "gone" in seen:
            raise FleetError("no answer")
        return seen

    monkeypatch.setattr(pushing, "ONLINE_S", 0.0)
    monkeypatch.setattr(pushing, "_POLL_S", 0.0)
    monkeypatch.setattr(pushing, "handshake", lambda *given: "")
    monkeypatch.setattr(pushing, "list_nodes", nodes)
    monkeypatch.setattr(pushing, "node_of", lambda folder, device: f"{device.name}-node")
    version = find_version(str(stub_wheel(tmp_path / "wheels", "2")), tmp_path)
    place = lab[0].parent / "lab"
    a, b, c = pushing.push(fleet, place, fleet.devices, version, remote)
    assert commands == ["a", "a --rollback", "b", "c", "c --rollback"]
    assert (a.result, b.result, c.result) == ("not changed", "updated", "not changed")
    assert a.why == "the SuperLink does not see it after 0 s; 1 runs again" and a.now == "1"
    commands.clear()
    a, b, c = pushing.push(fleet, place, fleet.devices, None, remote, leaving="2-x")
    assert commands == ["a --rollback", "b --rollback", "c --rollback"], "nobody goes forward again"
    assert all(one.result == "rolled back" for one in (a, b, c)) and b.up and not a.up
    assert a.why == "the SuperLink does not see it after 0 s"
    seen["gone"] = ""
    a, b, _ = pushing.push(fleet, place, fleet.devices, version, remote, canary=1)
    assert a.done and a.why == "the SuperLink cannot be asked: no answer"
    assert b.result == "left out"


@pytest.fixture
def board(
    lab: tuple[Path, Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Board, Path]]:
    """The first device, running, and started again whenever it ends."""
    fleet = lab[1]
    for name, value in {"SETTLE_S": 0.5, "READY_S": 6.0}.items():
        monkeypatch.setattr(update, name, value)
    folder = Path(fleet.folder_of(fleet.devices[0]))
    write_bundle(fleet, fleet.devices[:1], tmp_path / "bundle", None)
    about = json.loads((tmp_path / "bundle" / "a.json").read_text())
    (folder / "versions").mkdir()
    loop = ["sh", "-c", AGAIN.replace("sleep 5", "sleep 0.1"), str(folder / "start.sh")]
    process = subprocess.Popen(loop, start_new_session=True)
    board = Board(about, tmp_path / "wheels")
    while not board._listens():
        time.sleep(0.05)
    yield board, folder
    os.killpg(process.pid, 9)
    process.wait()


def started(folder: Path) -> list[str]:
    return (folder / "started").read_text().split()


SYSTEMCTL = """#!/bin/sh
echo "$@" >> {folder}/systemctl-asked
[ "$1" = cat ] || kill "$(cat {folder}/state/pid)" || true
"""


@pytest.mark.parametrize("systemd", [False, True])
def test_a_running_device_is_switched_and_stays(
    board: tuple[Board, Path], tmp_path: Path, systemd: bool
):
    one, folder = board
    if systemd:
        program(tmp_path / "programs" / "systemctl", SYSTEMCTL.format(folder=folder))
    stub_wheel(tmp_path / "wheels", "2.0")
    before = one._noted()
    assert one.update("2.0-x") == "" and one._noted() != before
    assert started(folder) == ["1", "2.0"]
    assert one.roll_back("2.0-x") == "" and started(folder) == ["1", "2.0", "1"]
    assert (one.linked("current"), one.linked("previous")) == ("", "")
    with pytest.raises(UpdateError, match=r"it runs .* \(venv\): there is nothing to take back"):
        one.roll_back("2.0-x")
    if systemd:
        asked = (folder / "systemctl-asked").read_text().splitlines()
        assert asked.count("restart flwr-dmml-a.service") == 2


UNWELL = {
    "start": ("sys.exit(3)", "it ended 3 times"),
    "then": ("time.sleep(0.2); sys.exit(3)", "it is not up after 6 s"),
}


@pytest.mark.parametrize("when", UNWELL)
def test_a_version_that_does_not_stay_is_taken_back(
    board: tuple[Board, Path], tmp_path: Path, when: str
):
    one, folder = board
    statement, why = UNWELL[when]
    stub_wheel(tmp_path / "wheels", "2.0", **{when: statement})
    with pytest.raises(UpdateError, match=rf"{why}.*; .* \(venv\) runs again"):
        one.update("2.0-x")
    assert started(folder)[-1] == "1" and one._listens()
    assert one.linked("current") == one.linked("previous") == ""
    assert not (folder / "versions" / "2.0-x").exists()


def test_a_version_that_was_switched_to_and_never_ran_is_tried_again(
    board: tuple[Board, Path], tmp_path: Path
):
    """The board lost its power between the switch and the check."""
    one, folder = board
    program(tmp_path / "programs" / "systemctl", SYSTEMCTL.format(folder=folder))
    stub_wheel(tmp_path / "wheels", "2.0", start="sys.exit(3)")
    one._install("2.0-x")
    one._link("current", "2.0-x")
    os.kill(one._noted(), 9)
    while one._listens():
        time.sleep(0.05)
    with pytest.raises(UpdateError, match=r"it ended 3 times.*\(venv\) runs again"):
        one.update("2.0-x")
    assert one.is_up and one.linked("current") == ""
    stub_wheel(tmp_path / "wheels", "2.0")
    one._install("2.0-y")
    one._link("current", "2.0-y")
    os.kill(one._noted(), 9)
    while started(folder)[-1] != "2.0" or not one.is_up:
        time.sleep(0.05)
    assert one.update("2.0-y") == "is there already" and one.linked("current") == "2.0-y"
