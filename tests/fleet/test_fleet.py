import configparser
import json
import os
import pwd
import shlex
import shutil
import socket
import ssl
import stat
import subprocess
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store
from flwr.cli.flower_config import parse_superlink_connection
from flwr.cli.supernode.register import try_load_public_key
from flwr.common.config import parse_config_args
from helpers import QUICKSTART
from helpers_fleet import TWO
from typer.testing import CliRunner

from flwr_dmml.cli import app as cli
from flwr_dmml.cli import fleet as cli_fleet
from flwr_dmml.cli.fleet import COPY_AGAIN, fleet_app
from flwr_dmml.fleet import (
    Device,
    Fleet,
    FleetError,
    ask_devices,
    asking,
    certificates,
    examine,
    prepare,
    read_fleet,
    register_devices,
    rotate,
    status,
    superlink,
)
from flwr_dmml.fleet.quoting import node_config, unit_path, unit_word
from flwr_dmml.fleet.scripts import device_config, device_files
from flwr_dmml.fleet.status_app import client_app
from flwr_dmml.transport.direct.security import Seal
from flwr_dmml.transport.direct.tls import DirectError, Tls
from flwr_dmml.transport.letter import LetterError

THIRD = '[[device]]\nname = "pi-3"\naddress = "fd00::3"\ndata-path = "/data/part-002"\n'
AWKWARD = ["/a b", "/it's", '/say "x"', """/it's "x" \\n = y=1""", "/$HOME `id` %h %% ;&|", "/é'\""]


def write(folder: Path, text: str = TWO) -> Path:
    file = folder / "fleet.toml"
    file.write_text(text, encoding="utf-8")
    return file


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(fleet_app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture
def lab(tmp_path: Path) -> tuple[Fleet, Path]:
    """The fleet of two devices, prepared."""
    fleet = read_fleet(write(tmp_path))
    prepare(fleet, tmp_path / "lab")
    return fleet, tmp_path / "lab"


def certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def is_secret(name: str) -> bool:
    return name.endswith((".key", "node-key"))


# Certificates and keys


def test_the_chain_verifies(lab: tuple[Fleet, Path]):
    folder = lab[1]
    builder = PolicyBuilder().store(Store([certificate(folder / "ca" / "ca.crt")]))
    server = certificate(folder / "superlink" / "server.crt")
    one = certificate(folder / "devices" / "pi-1" / "peer.crt")
    two = certificate(folder / "devices" / "pi-2" / "peer.crt")
    for leaf, subject in (
        (server, x509.IPAddress(ip_address("10.0.0.1"))),
        (one, x509.IPAddress(ip_address("10.0.0.11"))),
        (two, x509.DNSName("pi-2.example.org")),
    ):
        builder.build_server_verifier(subject).verify(leaf, [])
    for leaf in (one, two):
        builder.build_client_verifier().verify(leaf, [])
    with pytest.raises(x509.verification.VerificationError):
        builder.build_client_verifier().verify(server, [])


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("10.0.0.1", ["10.0.0.1"]),
        ("link.example.org", ["link.example.org"]),
        ("127.0.0.1", ["127.0.0.1", "localhost"]),
        ("localhost", ["localhost", "127.0.0.1"]),
        ("::1", ["::1", "127.0.0.1", "localhost"]),
    ],
)
def test_names_and_usages(tmp_path: Path, host: str, expected: list[str]):
    fleet = read_fleet(write(tmp_path, TWO.replace('10.0.0.1"', f'{host}"')))
    prepare(fleet, tmp_path / "lab")

    def about(file: str) -> tuple[str, list[str], set[x509.ObjectIdentifier], bool]:
        one = certificate(tmp_path / "lab" / file)
        extensions = one.extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        assert usage.digital_signature and not usage.key_cert_sign
        common = one.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        basic = extensions.get_extension_for_class(x509.BasicConstraints).value
        return str(common), [str(name.value) for name in names], set(usages), basic.ca

    both = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert about("superlink/server.crt") == (
        "superlink", expected, {ExtendedKeyUsageOID.SERVER_AUTH}, False,
    )  # fmt: skip
    assert about("devices/pi-1/peer.crt") == ("device-0", ["10.0.0.11"], both, False)
    assert about("devices/pi-2/peer.crt") == ("device-1", ["pi-2.example.org"], both, False)
    ca = certificate(tmp_path / "lab" / "ca" / "ca.crt")
    basic = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical and basic.value.ca and basic.value.path_length == 0
    assert ca.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    lasts = [(c.not_valid_after_utc - datetime.now(UTC)).days for c in (
        ca, certificate(tmp_path / "lab" / "superlink" / "server.crt"))]  # fmt: skip
    assert lasts == [3649, 729]


def test_two_devices_trust_each_other(tmp_path: Path):
    """A real handshake, both sides with certificates; a device of another fleet is refused."""
    text = TWO.replace("10.0.0.11", "127.0.0.1").replace("pi-2.example.org", "localhost")
    fleet = read_fleet(write(tmp_path, text))
    prepare(fleet, tmp_path / "lab")
    prepare(fleet, tmp_path / "other")

    def context(folder: str, purpose: ssl.Purpose) -> ssl.SSLContext:
        own = tmp_path / folder
        made = ssl.create_default_context(purpose, cafile=str(own / "ca.crt"))
        made.load_cert_chain(own / "peer.crt", own / "peer.key")
        made.verify_mode = ssl.CERT_REQUIRED
        return made

    with tls_server(context("lab/devices/pi-2", ssl.Purpose.CLIENT_AUTH)) as (port, seen):
        for folder in ("lab", "other"):
            client = context(f"{folder}/devices/pi-1", ssl.Purpose.SERVER_AUTH)
            client.load_verify_locations(tmp_path / "lab" / "ca" / "ca.crt")
            with socket.create_connection(("127.0.0.1", port)) as raw:
                try:
                    with client.wrap_socket(raw, server_hostname="localhost") as secured:
                        secured.recv(1)
                except OSError:
                    assert folder == "other"
    assert seen[0] == "device-0" and "certificate verify failed" in seen[1].lower()


def test_files_and_modes(lab: tuple[Fleet, Path]):
    folder = lab[1]
    device = {"ca.crt", "peer.crt", "peer.key", "node-key", "node-key.pub", "start.sh"}
    device |= {"environment", "flwr-dmml-device.service", "install.sh", "revoked.crl"}
    link = {"ca.crt", "server.crt", "server.key", "start.sh", "install.sh", "environment"}
    link |= {"flwr-dmml-superlink.service"}
    expected = {f"devices/pi-{n}/{name}" for n in (1, 2) for name in device}
    expected |= {f"superlink/{name}" for name in link}
    expected |= {"ca/ca.crt", "ca/ca.key", "ca/revoked.crl", "flwr/config.toml"}
    assert contents(folder).keys() == expected
    for path in [folder, *folder.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == 0o700, path
        elif is_secret(path.name):
            assert mode == 0o600, path
        else:
            assert mode in (0o600, 0o644, 0o700), path


def test_a_node_key_is_what_flower_and_openssh_take(lab: tuple[Fleet, Path]):
    file = lab[1] / "devices" / "pi-1" / "node-key"
    key = serialization.load_ssh_private_key(file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp384r1"
    assert try_load_public_key(file.with_suffix(".pub"))
    assert file.with_suffix(".pub").read_text().endswith(" pi-1.lab\n")
    if shutil.which("ssh-keygen"):
        command = ["ssh-keygen", "-y", "-f", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split()[:2] == file.with_suffix(".pub").read_text().split()[:2]


def test_no_key_is_printed(tmp_path: Path):
    code, said = run("init", write(tmp_path), "-o", tmp_path / "lab")
    assert code == 0 and "made: ca, superlink, pi-1, pi-2" in said and "730 days" in said
    secrets = [c.decode() for n, c in contents(tmp_path / "lab").items() if is_secret(n)]
    assert len(secrets) == 6
    for secret in secrets:
        assert not any(line in said for line in secret.splitlines())


# Once more


def test_again_keeps_everything(lab: tuple[Fleet, Path]):
    fleet, folder = lab
    before = contents(folder)
    done = prepare(fleet, folder)
    assert contents(folder) == before
    assert (done.made, done.renewed, done.changed) == ([], [], [])
    assert done.kept == ["superlink", "pi-1", "pi-2"]


def test_a_new_device_is_added(tmp_path: Path):
    folder = tmp_path / "lab"
    run("init", write(tmp_path), "-o", folder)
    before = contents(folder)
    code, said = run("init", write(tmp_path, TWO + THIRD), "-o", folder)
    assert code == 0 and "made: pi-3\n" in said and "kept: superlink, pi-1, pi-2" in said
    assert f"{COPY_AGAIN}: pi-1, pi-2\n" in said  # num-partitions
    after = contents(folder)
    same = {n: c for n, c in before.items() if not n.endswith("start.sh")}
    assert {n: after[n] for n in same} == same
    assert b"num-partitions=3" in after["devices/pi-1/start.sh"]
    code, said = run("init", write(tmp_path), "-o", folder)
    assert code == 0 and "no longer in the file, left as they are: pi-3" in said
    assert (folder / "devices" / "pi-3" / "node-key").exists()


def test_renewal_keeps_keys(lab: tuple[Fleet, Path]):
    fleet, folder = lab
    before = contents(folder)
    done = prepare(fleet, folder, ["pi-1", "superlink"])
    assert done.renewed == ["superlink", "pi-1"]
    after = contents(folder)
    assert len([name for name in after if name.startswith("ca/replaced/")]) == 2
    changed = {name for name, content in before.items() if after[name] != content}
    assert changed == {"superlink/server.crt", "devices/pi-1/peer.crt"}
    with pytest.raises(FleetError, match=r"--renew pi-9: there are superlink, pi-1, pi-2"):
        prepare(fleet, folder, ["pi-9"])


def test_what_no_longer_fits_is_refused(lab: tuple[Fleet, Path], tmp_path: Path):
    folder = lab[1]
    before = contents(folder)
    moved = TWO.replace("10.0.0.11", "10.0.0.99").replace(
        'name = "pi-2"', 'name = "pi-2"\npartition-id = 1'
    )
    code, said = run("init", write(tmp_path, moved), "-o", folder)
    assert code == 1 and contents(folder) == before
    assert "the certificate of pi-1 is for 10.0.0.11, not for 10.0.0.99" in said
    assert "to issue new ones: --renew pi-1\n" in said
    code, said = run("init", write(tmp_path, moved), "-o", folder, "--renew", "pi-1")
    assert code == 0 and "new certificate: pi-1" in said
    parts = moved.replace("partition-id = 1", "partition-id = 0").replace(
        'name = "pi-1"', 'name = "pi-1"\npartition-id = 1'
    )
    with pytest.raises(FleetError, match="pi-1 is that of device-0, not of device-1"):
        prepare(read_fleet(write(tmp_path, parts)), folder)


def test_a_lost_file_is_noticed(lab: tuple[Fleet, Path]):
    fleet, folder = lab
    one = folder / "devices" / "pi-1"
    (one / "node-key.pub").unlink()
    assert prepare(fleet, folder).changed == []
    assert (one / "node-key.pub").exists()
    (one / "peer.key").unlink()
    with pytest.raises(FleetError, match=r"certificate of pi-1 has lost its key, peer.key"):
        prepare(fleet, folder)
    prepare(fleet, folder, ["pi-1"])
    shutil.copy(folder / "devices" / "pi-2" / "peer.key", one / "peer.key")
    with pytest.raises(FleetError, match=r"certificate of pi-1 does not belong to peer.key"):
        prepare(fleet, folder)
    (one / "peer.key").write_text("nonsense")
    with pytest.raises(FleetError, match=r"peer.key holds no private key"):
        prepare(fleet, folder, ["pi-1"])
    assert (one / "peer.key").read_text() == "nonsense"


def test_without_the_authority(lab: tuple[Fleet, Path], tmp_path: Path):
    """Its key may be kept elsewhere: it is needed for what is new only."""
    fleet, folder = lab
    kept = (folder / "ca" / "ca.key").rename(tmp_path / "ca.key")
    assert prepare(fleet, folder).kept == ["superlink", "pi-1", "pi-2"]
    with pytest.raises(FleetError, match=r"ca.key is missing: without it nothing can be issued"):
        prepare(fleet, folder, ["pi-1"])
    kept.rename(folder / "ca" / "ca.key")
    shutil.rmtree(folder / "ca")
    with pytest.raises(FleetError, match=r"certificate of pi-1 .*ca.crt"):
        prepare(fleet, folder)
    assert not (folder / "ca").exists()


# What is started


@pytest.mark.parametrize("path", AWKWARD)
def test_quoting_comes_back(tmp_path: Path, path: str):
    """Through the shell's words and Flower's own reading of a node config."""
    text = TWO.replace('"/data/part-000"', json.dumps(path))
    text = f"device-dir = {json.dumps(path + '/{name}')}\n{text}"
    fleet = read_fleet(write(tmp_path, text))
    prepare(fleet, tmp_path / "lab")
    script = (tmp_path / "lab" / "devices" / "pi-1" / "start.sh").read_text()
    words = shlex.split(script.partition("\nexec ")[2].replace(" \\\n", " "))
    assert words[:4] == ["flwr-dmml", "fleet", "device", "--"]
    options = dict(zip(words[4::2], words[5::2], strict=True))
    assert options["--auth-supernode-private-key"] == f"{path}/pi-1/node-key"
    config = parse_config_args([options["--node-config"]])
    assert config == device_config(fleet, fleet.devices[0])
    assert config == {
        "data-path": path,
        "partition-id": 0,
        "num-partitions": 2,
        "direct-address": "10.0.0.11:7447",
        "tls-ca": f"{path}/pi-1/ca.crt",
        "tls-certificate": f"{path}/pi-1/peer.crt",
        "tls-key": f"{path}/pi-1/peer.key",
        "tls-revoked": f"{path}/pi-1/revoked.crl",
        "require-tls": True,
        "state-dir": f"{path}/pi-1/state",
        "profile": "raspberry-pi-4",
    }


@pytest.mark.parametrize("text", [*AWKWARD, "", "\t\n\x7f", "\\", "a.toml", "x=1 y='2'"])
def test_any_text_survives_flowers_node_config(text: str):
    values: dict[str, str | int] = {"a": text, "b": 3, "c": f"{text}'"}
    assert parse_config_args([node_config(values)]) == values


@pytest.mark.parametrize("name", ["plain", "it's a $HOME"])
def test_scripts_start_what_they_say(tmp_path: Path, name: str):
    """Run with programs that write down how they were called."""
    venv, folder = tmp_path / f"{name} venv", tmp_path / name
    (venv / "bin").mkdir(parents=True)
    for program in ("flower-superlink", "flwr-dmml"):
        file = venv / "bin" / program
        file.write_text('#!/bin/sh\npwd; echo "$FLWR_HOME"; for w in "$@"; do echo "$w"; done\n')
        file.chmod(0o755)
    text = f"venv = {json.dumps(str(venv))}\n{TWO}"
    file = write(tmp_path, text)
    where = str(folder / "devices" / "{name}")
    assert run("init", file, "-o", folder, "--device-dir", where)[0] == 0
    fleet = read_fleet(file, where)

    def words(script: Path) -> list[str]:
        done = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    link, device = folder / "superlink", folder / "devices" / "pi-2"
    assert words(link / "start.sh") == [
        str(link), f"{link}/flwr", "--host", "10.0.0.1", "--port", "8000",
        "--ssl-ca-certfile", f"{link}/ca.crt", "--ssl-certfile", f"{link}/server.crt",
        "--ssl-keyfile", f"{link}/server.key", "--enable-supernode-auth",
        "--disable-runtime-dependency-installation", "--database", f"{link}/state/superlink.db",
    ]  # fmt: skip
    assert words(device / "start.sh") == [
        str(device), f"{device}/flwr", "fleet", "device", "--", "--superlink", "10.0.0.1:8000",
        "--root-certificates", f"{device}/ca.crt",
        "--auth-supernode-private-key", f"{device}/node-key", "--port", "9094",
        "--node-config", node_config(device_config(fleet, fleet.devices[1])),
    ]  # fmt: skip
    assert device_config(fleet, fleet.devices[1])["device"] == "cuda"
    assert device_config(fleet, fleet.devices[1])["torch-threads"] == 3


def test_units(tmp_path: Path):
    text = f"device-dir = '/srv/a b/%h$x'\nuser = 'pi'\n{TWO}"
    text = text.replace("[superlink]", "[superlink]\ndir = '/srv/link/'")
    prepare(read_fleet(write(tmp_path, text)), tmp_path / "lab")
    units = {}
    for file in ("superlink/flwr-dmml-superlink.service", "devices/pi-1/flwr-dmml-device.service"):
        reader = configparser.RawConfigParser()
        reader.optionxform = str
        reader.read(tmp_path / "lab" / file)
        units[file[:7]] = {name: dict(reader[name]) for name in reader.sections()}
    link, device = units["superli"]["Service"], units["devices"]["Service"]
    assert link["ExecStart"] == '/bin/sh "/srv/link/start.sh"'
    own = [f'"/srv/link/{one}"' for one in ("state", "flwr", "cache", "runs")]
    assert link["ReadWritePaths"].split() == own
    assert device["ExecStart"] == '/bin/sh "/srv/a b/%%h$$x/start.sh"'
    written = device["ReadWritePaths"]
    assert written == " ".join(
        f'"/srv/a b/%%h$x/{one}"' for one in ("state", "flwr", "cache", "run")
    )
    for service in (link, device):
        assert service["User"] == "pi" and service["Restart"] == "always"
        assert service["ProtectSystem"] == "strict" and service["NoNewPrivileges"] == "yes"
    assert units["devices"]["Unit"]["Description"] == "Device pi-1 of the fleet lab."
    assert units["devices"]["Install"]["WantedBy"] == "multi-user.target"
    assert unit_word('a"\\') == '"a\\"\\\\"' == unit_path('a"\\')
    if shutil.which("systemd-analyze"):
        for unit in (tmp_path / "lab").rglob("*.service"):
            command = ["systemd-analyze", "verify", str(unit)]
            said = subprocess.run(command, capture_output=True, text=True).stderr
            assert unit.name not in said, said


ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can install a unit")
SYSTEMCTL = '#!/bin/sh\necho "$@" >> "{log}"\n'


def installed(folder: Path, units: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run install.sh with a systemctl that only writes down what it was told."""
    programs = units.parent / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "systemctl").write_text(SYSTEMCTL.format(log=units.parent / "told"))
    (programs / "systemctl").chmod(0o755)
    variables = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
    script = (folder / "install.sh").read_text()
    command = ["sh", "-s", str(units)]
    return subprocess.run(
        command, input=script, env=variables, capture_output=True, text=True, **options
    )


def nobody_may(use: Callable[[Path], object], path: Path) -> bool:
    """Try it in a process of the user nobody."""
    child = os.fork()
    if not child:
        who = pwd.getpwnam("nobody")
        os.setgroups([])
        os.setgid(who.pw_gid)
        os.setuid(who.pw_uid)
        code = 2
        try:
            use(path)
            code = 0
        except PermissionError:
            code = 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1), path
    return code == 0


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter: those of pytest are closed again by its next session."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def append(path: Path) -> None:
    path.open("ab").close()


@ROOT
@pytest.mark.parametrize("name", ["plain", "it's a $HOME"])
def test_the_service_owns_neither_its_unit_nor_its_scripts(public: Path, name: str):
    """Installed for real, for the user nobody; then nobody tries to write and to read."""
    where = public / name / "{name}"
    text = f"device-dir = {json.dumps(str(where))}\nuser = 'nobody'\n{TWO}"
    prepare(read_fleet(write(public, text)), public / "lab")
    own, units = public / name / "pi-1", public / "units"
    shutil.copytree(public / "lab" / "devices" / "pi-1", own)
    own.parent.chmod(0o755)
    units.mkdir()
    refused = installed(own, units, user="nobody")
    assert refused.returncode == 1 and refused.stderr == "install.sh: run it as root\n"
    assert not list(units.iterdir())
    for _ in range(2):  # again after a new copy
        done = installed(own, units)
        assert done.returncode == 0, done.stderr
    unit = units / "flwr-dmml-pi-1.service"
    assert (public / "told").read_text().splitlines()[-3:] == [
        "daemon-reload", f"enable {unit.name}", f"restart {unit.name}",
    ]  # fmt: skip
    assert (unit.stat().st_uid, stat.S_IMODE(unit.stat().st_mode)) == (0, 0o644)
    files = [unit, *(file for file in own.iterdir() if file.is_file())]
    assert len(files) == 11
    for file in files:
        assert nobody_may(Path.read_bytes, file)
        assert not nobody_may(append, file) and not nobody_may(Path.unlink, file)
    assert not nobody_may(append, own / "new")
    assert not nobody_may(lambda path: path.rename(own / "away"), own / "state")
    for folder in ("state", "flwr", "cache", "run"):
        assert nobody_may(append, own / folder / "new")
    (own / "state" / "new").unlink()
    (own / "state").rmdir()
    (own / "state").symlink_to("/etc")
    done = installed(own, units)
    assert done.returncode == 1 and done.stderr == "install.sh: state is a link\n"
    assert Path("/etc").stat().st_uid == 0


@ROOT
@pytest.mark.parametrize("name", [".", "flwr-dmml-device.service", "peer.crt"])
def test_nothing_is_installed_from_a_folder_that_was_another_s(tmp_path: Path, name: str):
    """Such as one that older versions gave to the service's user: its unit may be changed."""
    text = f"device-dir = {json.dumps(str(tmp_path / 'own'))}\nuser = 'nobody'\n{TWO}"
    prepare(read_fleet(write(tmp_path, text)), tmp_path / "lab")
    own, units = tmp_path / "own", tmp_path / "units"
    shutil.copytree(tmp_path / "lab" / "devices" / "pi-1", own)
    units.mkdir()
    nobody = pwd.getpwnam("nobody").pw_uid
    if name == "peer.crt":
        target = tmp_path / "shadow"
        target.write_text("root's")
        before = stat.S_IMODE(target.stat().st_mode)
        (own / name).unlink()
        (own / name).symlink_to(target)
    else:
        os.chown(own / name, nobody, -1)
    done = installed(own, units)
    assert done.returncode == 1 and not list(units.iterdir()) and not (tmp_path / "told").exists()
    assert done.stderr == (
        f"install.sh: {name} is not root's: remove this folder, and copy it again as root\n"
    )
    if name == "peer.crt":
        assert stat.S_IMODE(target.stat().st_mode) == before


def test_units_of_several_devices_on_one_machine_have_their_own_names(lab: tuple[Fleet, Path]):
    fleet, _ = lab
    several = fleet.model_copy(update={"device_dir": "/srv/{name}"})
    for each, names in ((fleet, ["device", "device"]), (several, ["pi-1", "pi-2"])):
        found = [name for d in each.devices for name in device_files(each, d) if "service" in name]
        assert found == [f"flwr-dmml-{name}.service" for name in names]


def test_a_device_that_insists_on_sealed_payloads(tmp_path: Path):
    text = TWO.replace("torch-threads = 3", "require-sealed = true")
    fleet = read_fleet(write(tmp_path, text))
    one, two = (device_config(fleet, device) for device in fleet.devices)
    assert "require-sealed" not in one and two["require-sealed"] is True
    assert parse_config_args([node_config(two)]) == two
    with pytest.raises(FleetError, match="device pi-2: require-sealed = 1: Input should be a vali"):
        read_fleet(write(tmp_path, text.replace("true", "1")))


def test_the_connection_is_flowers(lab: tuple[Fleet, Path]):
    folder = lab[1]
    content = tomllib.loads((folder / "flwr" / "config.toml").read_text())
    assert content["superlink"]["default"] == "lab"
    connection = parse_superlink_connection(content["superlink"]["lab"], "lab")
    assert connection.address == "10.0.0.1:8000" and not connection.insecure
    assert connection.root_certificates == str(folder / "ca" / "ca.crt")


# The file


def test_defaults_and_choices(tmp_path: Path):
    fleet = read_fleet(write(tmp_path, TWO + THIRD))
    assert fleet.superlink.address == "10.0.0.1:8000"
    assert [d.partition_id for d in fleet.devices] == [0, 1, 2]
    assert fleet.devices[2].direct_address == "[fd00::3]:7447"
    assert fleet.folder_of(fleet.devices[2]) == "/etc/flwr-dmml"
    other = read_fleet(write(tmp_path), "/srv/{name}/")
    assert other.folder_of(other.devices[1]) == "/srv/pi-2"


MISTAKES = [
    ('"lab"', '"my lab"', "name = 'my lab': up to 32 letters"),
    ('"lab"', '"default"', "name = 'default': up to 32 letters"),
    ('"lab"', "1", "name = 1: Input should be a valid string"),
    ('name = "lab"', "", "name: is missing"),
    ('name = "lab"', 'name = "lab"\nuser = "A b"', "user = 'A b': the name of a system user"),
    ('name = "lab"', 'name = "lab"\nvenv = "env"', "venv = 'env': the whole path"),
    ('name = "lab"', 'name = "lab"\nvenvs = "/env"', "venvs: unknown key; did you mean venv?"),
    ('host = "10.0.0.1"', "", "[superlink] host: is missing"),
    ("10.0.0.1\"", '0.0.0.0"', "[superlink] host = '0.0.0.0': an IP address that others reach"),
    ("10.0.0.1\"", '::"', "[superlink] host = '::': an IP address"),
    ("10.0.0.1\"", 'fe80::1%eth0"', "[superlink] host = 'fe80::1%eth0': an IP address"),
    ("[superlink]", "[superlink]\nport = 0", "[superlink] port = 0: Input should be greater"),
    ("[superlink]", "[superlink]\nport = true", "[superlink] port = True: Input should be a valid"),
    ("[superlink]", "[superlink]\nx = 1", "[superlink] x: unknown key; there are host, port, dir"),
    ('"pi-1"', '"../pi"', "device ../pi: name = '../pi': up to 63 letters"),
    ('"pi-1"', '"superlink"', "device superlink: name = 'superlink': up to 63 letters"),
    ('name = "pi-1"', "", "device 1: name: is missing"),
    ('"pi-2"', '"PI-1"', "device 2: its name is that of device 1; each needs its own"),
    ("10.0.0.11", "10.0.0.11:80", "device pi-1: address = '10.0.0.11:80': an IP address"),
    ("10.0.0.11", "10.0.0.311", "device pi-1: address = '10.0.0.311': an IP address"),
    ("10.0.0.11", "*.org", "device pi-1: address = '*.org': an IP address"),
    ("/data/part-000", "part", "device pi-1: data-path = 'part': the whole path, beginning with /"),
    ("/data/part-000", "/a\\nb", "device pi-1: data-path = '/a\\nb': the whole path"),
    ("raspberry-pi-4", "pi-4", "device pi-1: profile = 'pi-4': there are raspberry-pi-3, rasp"),
    ('"cuda"', '"gpu"', "device pi-2: device = 'gpu': auto, cpu, cuda, or cuda:1"),
    ("= 3", "= 0", "device pi-2: torch-threads = 0: Input should be greater than or equal to 1"),
    ("= 3", '= "3"', "device pi-2: torch-threads = '3': Input should be a valid integer"),
    ("torch-threads", "torch_threads", "device pi-2: torch_threads: unknown key; did you mean to"),
    ("torch-threads = 3", "partition-id = 0", "device pi-2: partition-id 0 is that of device pi-1"),
    ("torch-threads = 3", "partition-id = 2", "device pi-2: partition-id = 2: there are 2 devices"),
    ("pi-2.example.org", "10.0.0.11", "device pi-2: direct-port 7447 of 10.0.0.11 is that of dev"),
    ("pi-2.example.org", "10.0.0.11", "device pi-1 and device pi-2 are both on 10.0.0.11: devic"),
    ("torch-threads = 3", "runtime-port = 7447", "runtime-port 7447 of pi-2.example.org is that"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "problem"), MISTAKES)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, problem: str):
    assert old in TWO
    with pytest.raises(FleetError) as caught:
        read_fleet(write(tmp_path, TWO.replace(old, new, 1)))
    assert f"\n  {problem}" in str(caught.value) or problem in str(caught.value).split("\n  ")[1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = [", "cannot be read: "),
        ("name = 'a'\nsuperlink = 3\ndevice = [1]", "superlink: must be a table"),
        ("name = 'a'\nsuperlink = 3\ndevice = [1]", "device 1: must be a table, [[device]]"),
        ("name = 'a'\ndevice = []\n[superlink]\nhost = 'a.b'", "there must be one [[device]]"),
        ("name = 'a'\n[superlink]\nhost = 'a.b'\n[device]", "there must be one [[device]]"),
        (TWO.replace("10.0.0.11", "10.0.0.1") + "direct-port = 8000", "both"),
    ],
)
def test_a_file_of_another_form(tmp_path: Path, text: str, problem: str):
    if problem == "both":
        text = text.replace('"10.0.0.1"\ndata', '"10.0.0.1"\ndirect-port = 8000\ndata')
        problem = "device pi-1: direct-port 8000 of 10.0.0.1 is that of the SuperLink"
    with pytest.raises(FleetError) as caught:
        read_fleet(write(tmp_path, text))
    assert problem in str(caught.value)


def test_all_mistakes_at_once(tmp_path: Path):
    text = TWO
    for old, new in (('"lab"', '"my lab"'), ("10.0.0.11", "x y"), ('"pi-2"', '"pi-1"')):
        text = text.replace(old, new)
    code, said = run("init", write(tmp_path, text + "direct-port = 99999"), "-o", tmp_path / "lab")
    assert code == 1 and not (tmp_path / "lab").exists()
    assert said.count("\n  ") == 4 and "Error: FleetError" in said
    assert run("init", tmp_path / "none.toml", "-o", tmp_path / "lab")[0] == 1


# A fleet that runs


@contextmanager
def tls_server(context: ssl.SSLContext | None) -> Iterator[tuple[int, list[str]]]:
    """Listen on this machine; gather the names of clients, or why they were refused."""
    seen: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    raw = listener.accept()[0]
                except OSError:
                    return
                with raw:
                    if context is None:
                        raw.sendall(b"220 this is no TLS at all\r\n")
                        continue
                    try:
                        with context.wrap_socket(raw, server_side=True) as secured:
                            shown = secured.getpeercert()
                            names = [n[0][1] for n in shown["subject"]] if shown else [""]
                            seen.extend(names)
                            secured.sendall(b"x")
                    except OSError as error:
                        seen.append(str(error))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], seen
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


class FakeFlower:
    """``flwr supernode register``, ``unregister`` and ``list``, as Flower 1.41 answers."""

    def __init__(self) -> None:
        self.nodes: dict[str, str] = {}
        self.keys: set[str] = set()
        self.silent: set[str] = set()
        self.edit: Callable[[str, dict[str, Any]], object] = lambda name, answer: None

    def run_to_end(
        self, fleet: Fleet, folder: Path, app: Path, config: str, timeout_s: float
    ) -> str:
        """What the app prints, with the devices' own words."""
        given = parse_config_args([config])
        devices = json.loads(str(given["devices"]))
        assert (app / "pyproject.toml").exists() and given["timeout-s"] == timeout_s - 30
        by_name = {device.name: device for device in fleet.devices}
        log = "Successfully installed fleet-status\n"
        for node, (name, *_) in devices.items():
            if name in self.silent:
                continue
            peers = {other: [host, port] for other, host, port in devices.values() if other != name}
            started = device_config(fleet, by_name[name])
            answer = client_app.describe(started, peers)
            self.edit(name, answer)
            sent, received = time.time() - 4, time.time() + 6
            line = {"node": node, "sent": sent, "received": received}
            log += f"flwr-dmml-status {json.dumps(line | {'answer': json.dumps(answer)})}\n"
        return log + 'flwr-dmml-status "end"\n'

    def __call__(self, fleet: Fleet, folder: Path, arguments: list[str]) -> dict[str, object]:
        if arguments[1] == "list":
            rows = [{"node-id": node, "status": status} for node, status in self.nodes.items()]
            return {"success": True, "nodes": rows}
        if arguments[1] == "unregister":
            self.nodes[arguments[2]] = "unregistered"
            return {"success": True, "node-id": int(arguments[2])}
        key = Path(arguments[2]).read_text()
        if key in self.keys:
            said = "[code: 23] Public key already in use."
            return {"success": False, "error-message": said}
        self.keys.add(key)
        node = str(1000 + len(self.keys))
        self.nodes[node] = "registered"
        return {"success": True, "node-id": int(node)}


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> FakeFlower:
    fake = FakeFlower()
    monkeypatch.setattr(superlink, "flower", fake)
    monkeypatch.setattr(asking, "run_to_end", fake.run_to_end)
    return fake


def test_registering_again_changes_nothing(lab: tuple[Fleet, Path], flower: FakeFlower):
    fleet, folder = lab
    first = register_devices(fleet, folder)
    assert [(one.node_id, one.said) for one in first] == [
        ("1001", "registered"),
        ("1002", "registered"),
    ]
    kept = (folder / "nodes.json").read_text()
    again = register_devices(fleet, folder)
    assert [(one.node_id, one.said) for one in again] == [
        ("1001", "was registered"),
        ("1002", "was registered"),
    ]
    assert (folder / "nodes.json").read_text() == kept and not any(one.failed for one in again)


def test_a_superlink_that_has_forgotten(lab: tuple[Fleet, Path], flower: FakeFlower):
    fleet, folder = lab
    register_devices(fleet, folder)
    flower.nodes.clear()
    flower.keys.clear()
    assert [one.said for one in register_devices(fleet, folder)] == ["registered"] * 2


def test_what_cannot_be_registered_is_said(tmp_path: Path, flower: FakeFlower):
    file, folder = write(tmp_path), tmp_path / "lab"
    fleet = read_fleet(file)
    with pytest.raises(FleetError, match=r"node-key.pub is missing: run flwr-dmml fleet init"):
        register_devices(fleet, folder)
    prepare(fleet, folder)
    assert run("register", file, "-o", folder)[0] == 0
    flower.nodes["1001"] = "unregistered"
    code, said = run("register", file, "-o", folder)
    assert code == 1 and "pi-1: was unregistered, and Flower takes no key twice" in said
    assert "not registered: pi-1\n" in said and "pi-2: was registered, node 1002" in said
    (folder / "nodes.json").unlink()
    code, said = run("register", file, "-o", folder)
    assert code == 1 and "its key is registered, but not from this folder" in said
    (folder / "nodes.json").write_text("[]")
    code, said = run("register", file, "-o", folder)
    assert code == 1 and "nodes.json is damaged" in said


# Taken back


def serial(file: Path) -> int:
    return certificate(file).serial_number


def revoked(folder: Path, device: str) -> set[int]:
    """The serial numbers in a device's list, which the authority has signed."""
    listed = x509.load_pem_x509_crl((folder / "devices" / device / "revoked.crl").read_bytes())
    key = certificate(folder / "ca" / "ca.crt").public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey) and listed.is_signature_valid(key)
    return {one.serial_number for one in listed}


def neighbours(folder: Path) -> dict[str, Seal]:
    """What the devices check signatures with."""
    found = {}
    for k, name in enumerate(("pi-1", "pi-2")):
        own = folder / "devices" / name
        files = Tls(own / "ca.crt", own / "peer.crt", own / "peer.key", own / "revoked.crl")
        found[name] = Seal(files, k)
    return found


def test_a_revoked_device_is_refused_by_its_neighbours_and_the_superlink(
    tmp_path: Path, flower: FakeFlower
):
    file, folder = write(tmp_path), tmp_path / "lab"
    assert run("init", file, "-o", folder)[0] == 0
    assert run("register", file, "-o", folder)[0] == 0
    before = neighbours(folder)
    signed = before["pi-1"].sign(b"letter")
    before["pi-2"].check(b"letter", signed, 0)
    code, said = run("revoke", file, "pi-1", "-o", folder)
    assert code == 0 and said.splitlines() == [
        "revoked: pi-1", f"{COPY_AGAIN}: pi-2",
        "unregistered at the SuperLink: pi-1",
    ]  # fmt: skip
    assert flower.nodes == {"1001": "unregistered", "1002": "registered"}
    assert revoked(folder, "pi-2") == {serial(folder / "devices" / "pi-1" / "peer.crt")}
    own = folder / "devices" / "pi-2"
    files = Tls(own / "ca.crt", own / "peer.crt", own / "peer.key", own / "revoked.crl")
    with pytest.raises(LetterError, match="certificate refused: it is revoked"):
        Seal(files, 1).check(b"letter", signed, 0)
    assert run("revoke", file, "pi-1", "-o", folder)[0] == 0  # again: nothing is left to do
    assert len(revoked(folder, "pi-2")) == 1
    code, said = run("init", file, "-o", folder)
    assert code == 0 and "revoked: pi-1\n" in said  # and its list tells the device itself
    with pytest.raises(DirectError, match=r"peer.crt: certificate refused: it is revoked"):
        neighbours(folder)
    with pytest.raises(FleetError, match="--renew pi-1: it is revoked, and this keeps its key"):
        prepare(read_fleet(file), folder, ["pi-1"])
    code, said = run("register", file, "-o", folder)
    assert code == 1 and "fleet rotate ... pi-1" in said
    code, said = run("revoke", file, "pi-9", "-o", folder)
    assert code == 1 and "pi-9: there are pi-1, pi-2" in said


@pytest.mark.parametrize("command", ["revoke", "rotate"])
def test_a_certificate_that_was_renewed_is_revoked_with_its_successor(
    tmp_path: Path, flower: FakeFlower, command: str
):
    """It has the same key, and was good for two years."""
    file, folder = write(tmp_path), tmp_path / "lab"
    for step in ("init", "register"):
        assert run(step, file, "-o", folder)[0] == 0
    stolen = serial(folder / "devices" / "pi-1" / "peer.crt")
    for _ in range(2):
        assert run("init", file, "-o", folder, "--renew", "pi-1")[0] == 0
    renewed = serial(folder / "devices" / "pi-1" / "peer.crt")
    assert run("init", file, "-o", folder, "--renew", "pi-2")[0] == 0
    assert run(command, file, "pi-1", "-o", folder)[0] == 0
    found = revoked(folder, "pi-2")
    assert {stolen, renewed} < found and len(found) == 3, "and none of pi-2"


def test_without_the_superlink_a_device_is_revoked_all_the_same(
    tmp_path: Path, flower: FakeFlower, monkeypatch: pytest.MonkeyPatch
):
    file, folder = write(tmp_path), tmp_path / "lab"
    run("init", file, "-o", folder)
    run("register", file, "-o", folder)
    with monkeypatch.context() as patch:
        patch.setattr(superlink, "flower", lambda *_: {"error-message": "unavailable"})
        code, said = run("revoke", file, "pi-1", "-o", folder)
        assert code == 1 and "the SuperLink lists no nodes: unavailable" in said
        assert len(revoked(folder, "pi-2")) == 1
        kept = contents(folder)
        code, said = run("rotate", file, "pi-2", "-o", folder)  # of that, nothing is done
        assert code == 1 and contents(folder) == kept
    assert run("revoke", file, "pi-1", "-o", folder)[0] == 0
    assert flower.nodes["1001"] == "unregistered"


def test_a_device_that_was_dropped_can_be_revoked(tmp_path: Path, flower: FakeFlower):
    file, folder = write(tmp_path, TWO + THIRD), tmp_path / "lab"
    run("init", file, "-o", folder)
    write(tmp_path, TWO)
    assert run("revoke", file, "pi-3", "-o", folder)[0] == 0
    assert revoked(folder, "pi-1") == {serial(folder / "devices" / "pi-3" / "peer.crt")}


def test_rotation_of_a_device(tmp_path: Path, flower: FakeFlower):
    """New keys and a new certificate; the old ones are refused, those of others stay."""
    file, folder = write(tmp_path), tmp_path / "lab"
    run("init", file, "-o", folder)
    run("register", file, "-o", folder)
    old, before = contents(folder), neighbours(folder)
    signed = before["pi-1"].sign(b"letter")
    code, said = run("rotate", file, "pi-1", "-o", folder)
    assert code == 0 and "new keys and certificates: pi-1\n" in said
    assert f"{COPY_AGAIN}: pi-1, pi-2\n" in said
    assert "then register the new keys" in said
    changed = {name for name, content in contents(folder).items() if old.get(name) != content}
    own = {f"devices/pi-1/{f}" for f in ("peer.crt", "peer.key", "node-key", "node-key.pub")}
    lists = {"ca/revoked.crl", "devices/pi-1/revoked.crl", "devices/pi-2/revoked.crl"}
    assert changed == own | lists
    after = neighbours(folder)
    with pytest.raises(LetterError, match="it is revoked"):
        after["pi-2"].check(b"letter", signed, 0)
    after["pi-2"].check(b"letter", after["pi-1"].sign(b"letter"), 0)
    assert flower.nodes == {"1001": "unregistered", "1002": "registered"}
    code, said = run("register", file, "-o", folder)
    assert code == 0 and "pi-1: registered, node 1003" in said
    run("revoke", file, "pi-1", "-o", folder)
    assert run("rotate", file, "pi-1", "-o", folder)[0] == 0  # back again
    assert neighbours(folder) and "revoked" not in run("init", file, "-o", folder)[1]


def test_rotation_of_everything(tmp_path: Path, flower: FakeFlower):
    """The authority, too: what the old one has issued counts nowhere."""
    file, folder = write(tmp_path), tmp_path / "lab"
    run("init", file, "-o", folder)
    run("register", file, "-o", folder)
    old = contents(folder)
    signed = neighbours(folder)["pi-1"].sign(b"letter")
    code, said = run("rotate", file, "-o", folder)
    assert code == 0 and "new keys and certificates: superlink, pi-1, pi-2\n" in said
    kept = {name for name, content in contents(folder).items() if old[name] == content}
    assert all(name.endswith((".sh", ".service", "environment", ".toml", ".json")) for name in kept)
    with pytest.raises(LetterError, match="not issued by the fleet's authority"):
        neighbours(folder)["pi-2"].check(b"letter", signed, 0)
    assert set(flower.nodes.values()) == {"unregistered"}
    assert run("register", file, "-o", folder)[0] == 0
    with pytest.raises(FleetError, match="pi-9: there are superlink, pi-1, pi-2"):
        rotate(read_fleet(file), folder, ["pi-9"])
    with pytest.raises(FleetError, match="has no certificates to replace"):
        rotate(read_fleet(file), tmp_path / "none")
    (folder / "ca" / "ca.key").unlink()
    before = contents(folder)
    with pytest.raises(FleetError, match=r"ca.key is missing: .* be issued or revoked"):
        rotate(read_fleet(file), folder, ["pi-1"], lambda names: pytest.fail("too early"))
    assert contents(folder) == before


@pytest.fixture
def running(
    tmp_path: Path, flower: FakeFlower, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, Path]]:
    """A fleet with a server that has the SuperLink's certificate; peer ports are closed."""
    monkeypatch.setattr(status, "TIMEOUT_S", 1.0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tls_server(context) as (port, _):
        text = TWO.replace('host = "10.0.0.1"', f'host = "127.0.0.1"\nport = {port}')
        text = text.replace("10.0.0.11", "127.0.0.1").replace("pi-2.example.org", "localhost")
        for part in ("part-000", "part-001"):
            (tmp_path / part).mkdir()
            (tmp_path / part / "images.npz").touch()
            text = text.replace(f"/data/{part}", str(tmp_path / part))
        file, folder = write(tmp_path, text), tmp_path / "lab"
        fleet = read_fleet(file)
        prepare(fleet, folder)
        link = folder / "superlink"
        context.load_cert_chain(link / "server.crt", link / "server.key")
        register_devices(fleet, folder)
        flower.nodes = dict.fromkeys(flower.nodes, "online")
        yield file, folder


def test_a_fleet_that_is_well(running: tuple[Path, Path]):
    code, said = run("status", running[0], "-o", running[1])
    assert code == 0 and "all is well" in said, said
    assert said.count("online") == 2 and "closed" not in said
    code, said = run("status", running[0], "-o", running[1], "--details")
    assert code == 0 and said.count("closed") == 2
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        text = running[0].read_text() + f"direct-port = {port}\n"
        file = write(running[0].parent, text)
        code, said = run("status", file, "-o", running[1], "--details")
        assert code == 0 and "open" in said, said


def spoil_offline(flower: FakeFlower, file: Path, folder: Path) -> None:
    flower.nodes["1001"] = "offline"


def spoil_never(flower: FakeFlower, file: Path, folder: Path) -> None:
    flower.nodes["1001"] = "registered"


def spoil_gone(flower: FakeFlower, file: Path, folder: Path) -> None:
    flower.nodes["1001"] = "unregistered"


def spoil_unknown(flower: FakeFlower, file: Path, folder: Path) -> None:
    (folder / "nodes.json").unlink()


def spoil_stranger(flower: FakeFlower, file: Path, folder: Path) -> None:
    flower.nodes["77"] = "online"


def spoil_renewed(flower: FakeFlower, file: Path, folder: Path) -> None:
    prepare(read_fleet(file), folder, ["superlink"])


def spoil_authority(flower: FakeFlower, file: Path, folder: Path) -> None:
    for name in ("ca", "superlink"):
        shutil.rmtree(folder / name)
    prepare(read_fleet(file), folder, ["pi-1", "pi-2"])


def spoil_nothing_there(flower: FakeFlower, file: Path, folder: Path) -> None:
    port = str(read_fleet(file).superlink.port)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        file.write_text(file.read_text().replace(port, str(probe.getsockname()[1])))


def spoil_no_such_host(flower: FakeFlower, file: Path, folder: Path) -> None:
    file.write_text(file.read_text().replace('"localhost"', '"no-such-host.invalid"'))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (spoil_offline, "pi-1 is offline"),
        (spoil_never, "pi-1 is registered and was never there"),
        (spoil_gone, "pi-1 was unregistered and is refused"),
        (spoil_unknown, "pi-1 is not registered and is refused: flwr-dmml fleet register"),
        (spoil_stranger, "node 77 (online) is no device of this fleet"),
        (spoil_renewed, "has another certificate than this folder"),
        (spoil_authority, "shows a certificate that is not to be trusted"),
        (spoil_nothing_there, "cannot be reached: nothing listens there"),
        (spoil_no_such_host, "pi-2: no-such-host.invalid:7447 cannot be reached from here: no"),
    ],
)
def test_what_is_wrong_is_said(
    running: tuple[Path, Path],
    flower: FakeFlower,
    spoil: Callable[[FakeFlower, Path, Path], None],
    problem: str,
):
    file, folder = running
    spoil(flower, file, folder)
    code, said = run("status", file, "-o", folder)
    assert code == 1 and f"{problem}" in said, said
    assert "all is well" not in said


def test_a_server_without_tls(lab: tuple[Fleet, Path], flower: FakeFlower):
    fleet, folder = lab
    with tls_server(None) as (port, _):
        link = fleet.superlink.model_copy(update={"host": "127.0.0.1", "port": port})
        there = fleet.model_copy(update={"superlink": link})
        said = superlink.handshake(there, folder)
    assert "answers, but not in TLS" in said


def test_a_port_that_does_not_answer(lab: tuple[Fleet, Path], monkeypatch: pytest.MonkeyPatch):
    def no_answer(place: tuple[str, int], timeout: float) -> socket.socket:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", no_answer)
    report = examine(*lab)
    assert "pi-1: 10.0.0.11:7447 cannot be reached from here: no answer in 5 s" in report.problems
    assert "the SuperLink at 10.0.0.1:8000 cannot be reached: no answer in 5 s" in report.problems
    assert [state.node for state in report.devices] == ["unknown", "unknown"]


@pytest.mark.parametrize(("days", "says"), [(20, "expires in 19 days"), (0, "has expired")])
def test_certificates_that_end(
    running: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, days: int, says: str
):
    file, folder = running
    monkeypatch.setattr(certificates, "CERTIFICATE_DAYS", days)
    prepare(read_fleet(file), folder, ["pi-2"])
    code, said = run("status", file, "-o", folder)
    assert code == 1 and f"pi-2: its certificate {says}" in said and "--renew pi-2" in said
    assert said.count("- ") == 1


# What devices say of themselves


def test_devices_are_asked(running: tuple[Path, Path], flower: FakeFlower):
    code, said = run("status", running[0], "-o", running[1])
    assert code == 0 and said.count("1 of 1 reached") == said.count(version("flwr-dmml")) == 2
    code, said = run("status", running[0], "-o", running[1], "--details")
    assert code == 0 and said.count("1 of 1 reached") == 4 and said.count("within 6 s") == 2, said
    assert said.count(f"torch {version('torch')}") == 2 and said.count("1 files and folders") == 2
    flower.nodes["1002"] = "offline"
    code, said = run("status", running[0], "-o", running[1])
    assert said.count("0 of 0 reached") == 1 and "did not answer" not in said
    code, said = run("status", running[0], "-o", running[1], "--no-ask")
    assert code == 1 and "reached" not in said


def test_a_report_for_programs(running: tuple[Path, Path], flower: FakeFlower):
    flower.silent = {"pi-2"}
    code, said = run("status", running[0], "-o", running[1], "--json", "--timeout", 20)
    report = json.loads(said)
    one, two = report["devices"]
    assert code == 1 and report["superlink"]["state"] == "well" and two["answer"] is None
    assert one["answer"]["config"]["partition-id"] == 0 and one["answer"]["disk_bytes"] > 0
    low, high = one["clock-ahead-s"]
    assert high - low == pytest.approx(10) and low < 0 < high
    late = "did not answer in 20 s: busy with another run, or silent"
    assert report["problems"] == [f"pi-2 {late}"]


def other_version(answer: dict[str, Any]) -> None:
    answer["versions"]["flwr-dmml"] = "9.9"


def no_data(answer: dict[str, Any]) -> None:
    answer["data"] = client_app.describe_data({"data-path": "/no/such/folder"})


def data_unset(answer: dict[str, Any]) -> None:
    answer["data"] = client_app.describe_data({})


def stale(answer: dict[str, Any]) -> None:
    answer["config"]["partition-id"] = 1


def other_part(answer: dict[str, Any]) -> None:
    answer["data"] |= {"part": 1, "parts": 3}


def behind(answer: dict[str, Any]) -> None:
    answer["time_s"] -= 4 + 12.1


def ahead(answer: dict[str, Any]) -> None:
    answer["time_s"] += 6 + 60.1


def days_behind(answer: dict[str, Any]) -> None:
    answer["time_s"] -= 90000


def cut_off(answer: dict[str, Any]) -> None:
    answer["peers"]["pi-2"] = "timed out"


def of_another_form(answer: dict[str, Any]) -> None:
    del answer["time_s"]


def no_clock(answer: dict[str, Any]) -> None:
    answer["time_s"] = float("nan")


def owing_memory(answer: dict[str, Any]) -> None:
    answer["memory_bytes"] = -1


def of_no_form(answer: dict[str, Any]) -> None:
    answer["data"]["form"] = {"classes": 3, "modalities": ["audio"]}


EVIL = "\x1b]0;owned\x07\nall is well\u202e"


def hostile(answer: dict[str, Any]) -> None:
    answer["data"]["problem"] = answer["data"]["summary"] = answer["platform"] = EVIL
    answer["versions"]["flwr-dmml"] = answer["config"]["data-path"] = EVIL
    answer["peers"] = {EVIL: EVIL, "pi-2": EVIL}


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (
            other_version,
            f"versions of flwr-dmml: {version('flwr-dmml')} on this machine, pi-2; 9.9",
        ),
        (no_data, "pi-1: data-path: '/no/such/folder' cannot be read: No such file or directory"),
        (data_unset, "pi-1: its node config has no data-path"),
        (
            stale,
            "pi-1 was started with another fleet.toml (partition-id 1, not 0): copy its folder",
        ),
        (other_part, "pi-1 holds part 1, its partition-id is 0"),
        (other_part, "pi-1 holds one of 3 parts, the fleet has 2 devices"),
        (behind, "pi-1: its clock is at least 12 s behind; the SuperLink refuses devices that are"),
        (ahead, "pi-1: its clock is at least 60 s ahead"),
        (days_behind, "5 min behind, and new certificates are not valid for it yet"),
        (cut_off, "pi-1 does not reach pi-2 (localhost:7447): timed out"),
        (of_another_form, "pi-1 gives an answer of another form: time_s: Field required"),
        (no_clock, "pi-1 gives an answer of another form: time_s: Input should be a finite number"),
        (owing_memory, "pi-1 gives an answer of another form: memory_bytes: Input should be"),
        (of_no_form, "pi-1 gives an answer of another form: data.form.modalities: Input should be"),
        (hostile, r"pi-1: \x1b]0;owned\x07 all is well\u202e"),
    ],
)
def test_what_devices_say_is_judged(
    running: tuple[Path, Path],
    flower: FakeFlower,
    edit: Callable[[dict[str, Any]], None],
    problem: str,
):
    flower.edit = lambda name, answer: edit(answer) if name == "pi-1" else None
    code, said = run("status", running[0], "-o", running[1])
    assert code == 1 and problem in said, said
    assert all(c.isprintable() or c == "\n" for c in said) and "\nall is well" not in said


def test_parts_of_different_data_sets(running: tuple[Path, Path], flower: FakeFlower):
    forms = {"pi-1": 10, "pi-2": 12}

    def edit(name: str, answer: dict[str, Any]) -> None:
        kind = ["image", "(1, 8, 8)"]
        answer["data"]["form"] = {"classes": forms[name], "modalities": {"image": kind}}

    flower.edit = edit
    code, said = run("status", running[0], "-o", running[1])
    one, two = (f"{name}: {n} classes, image (image (1, 8, 8))" for name, n in forms.items())
    assert code == 1 and f"the parts are of different data sets: {one}; {two}" in said, said
    forms["pi-2"] = 10
    assert run("status", running[0], "-o", running[1])[0] == 0


def test_a_small_lateness_is_no_fault(running: tuple[Path, Path], flower: FakeFlower):
    """Certain are 4 s of the 14 that it is behind the time of the question and the answer."""

    def edit(name: str, answer: dict[str, Any]) -> None:
        answer["time_s"] -= 4 + 4.1

    flower.edit = edit
    code, said = run("status", running[0], "-o", running[1], "--details")
    assert code == 0 and said.count("at least 4 s behind") == 2, said


def test_the_last_round_and_its_error_are_shown(running: tuple[Path, Path], flower: FakeFlower):
    last = {"round": 7, "rounds": 30, "error": f"ValueError: {EVIL}"}

    def edit(name: str, answer: dict[str, Any]) -> None:
        answer |= {"last": last, "battery": 0.425} if name == "pi-1" else {}

    flower.edit = edit
    code, said = run("status", running[0], "-o", running[1])
    (line,) = [line for line in said.splitlines() if "pi-1" in line]
    assert code == 0 and "7 of 30" in line and "42%" in line and r"ValueError: \x1b]0" in line, said
    answer = json.loads(run("status", running[0], "-o", running[1], "--json")[1])["devices"]
    assert answer[0]["answer"]["battery"] == 0.425 and answer[1]["answer"]["last"] is None
    last["round"] = -1
    assert "answer of another form: last.round" in run("status", running[0], "-o", running[1])[1]


def test_it_is_watched_until_it_is_ended(
    running: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(cli_fleet.time, "sleep", pause)
    done = CliRunner().invoke(
        fleet_app, ["status", str(running[0]), "-o", str(running[1]), "--no-ask", "--watch", "5"]
    )
    assert done.exit_code == 130 and done.output.count("all is well") == len(pauses) == 3


def test_what_a_device_reaches():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert client_app.reach("127.0.0.1", port) == "open"
    assert client_app.reach("127.0.0.1", port) == "closed"
    assert client_app.reach("no-such-host.invalid", port) == "no such host name"


def test_what_a_device_says_of_its_data(tmp_path: Path):
    def said(path: Path, partition: int = 0) -> dict[str, Any]:
        return client_app.describe_data({"data-path": str(path), "partition-id": partition})

    assert said(tmp_path)["problem"] == f"data-path: '{tmp_path}' is an empty folder"
    parts, app = tmp_path / "parts", QUICKSTART
    cut = ["partition", str(app), "-n", "2", "-o", str(parts), "--set", "samples-per-node=30"]
    assert CliRunner().invoke(cli, cut).exit_code == 0
    whole, own = said(parts, 1), said(parts / "part-001", 1)
    assert whole == own and own["part"] == 1 and own["parts"] == 2
    assert own["summary"] == "part 1 of 2, image, 30 training, 360 test samples"
    assert own["form"] == said(parts)["form"] and own["form"]["classes"] == 10
    file = parts / "part-001" / "samples.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert f"data-path: '{file}' cannot be read: " in said(parts, 1)["problem"]
    (parts / "part-001" / "part.json").write_text("{}")
    assert "part.json' is damaged: part: Field required" in said(parts, 1)["problem"]
    (parts / "manifest.csv").write_text("sound,label,split\na.wav,x,train\nb.wav,y,test\n")
    assert said(parts, 7) == {"summary": "sound, 2 samples"}


FLWR = """#!/bin/sh
case "$1" in
  run) echo '{"success": true, "run-id": "5"}' ;;
  stop) echo stopped > "$FLWR_HOME/stopped"; echo '{"success": true}' ;;
  log) %s ;;
esac
"""


@pytest.mark.parametrize(
    ("log", "problem"),
    [
        ("echo 'Exit Code: 700'", "has not come to its end: Exit Code: 700; without an answer: pi"),
        ("echo waits; exec sleep 60", "has not come to its end: waits; without an answer: pi-1"),
        ("echo 'flwr-dmml-status \"end\"'", "pi-1 did not answer in 1 s: busy with another run"),
    ],
)
def test_a_run_that_asks_and_fails(
    lab: tuple[Fleet, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: str,
    problem: str,
):
    (tmp_path / "flwr").write_text(FLWR % log)
    (tmp_path / "flwr").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setattr(asking, "START_S", 1.0)
    asked = ask_devices(*lab, lab[0].devices[:1], 1.0)
    assert not asked.heard and len(asked.problems) == 1 and problem in asked.problems[0]
    assert (lab[1] / "flwr" / "stopped").exists() == ("sleep" in log)


def test_a_run_that_does_not_start(
    lab: tuple[Fleet, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "flwr").write_text('#!/bin/sh\necho \'{"error-message": "no  room"}\'\n')
    (tmp_path / "flwr").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(FleetError, match="devices cannot be asked: no room"):
        ask_devices(*lab, lab[0].devices, 1.0)


def test_that_nobody_can_be_asked_is_a_problem(running: tuple[Path, Path]):
    def ask(fleet: Fleet, folder: Path, devices: Sequence[Device]) -> NoReturn:
        raise FleetError(f"not {[device.name for device in devices]}")

    report = examine(read_fleet(running[0]), running[1], ask)
    assert report.problems == ["not ['pi-1', 'pi-2']"]


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("echo no >&2; exit 3", "flwr supernode list: no"),
        ("exit 3", "flwr supernode list: nothing, exit status 3"),
        ('echo \'{"error-message": "x  y"}\'', "lists no nodes: x y"),
    ],
)
def test_what_flower_says_instead(
    lab: tuple[Fleet, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    problem: str,
):
    (tmp_path / "flwr").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "flwr").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(FleetError, match=problem):
        superlink.list_nodes(*lab)


def test_without_flower_or_folder(
    lab: tuple[Fleet, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(FleetError, match=r"config.toml is missing: run flwr-dmml fleet init"):
        superlink.list_nodes(lab[0], tmp_path)
    with pytest.raises(FleetError, match=r"ca.crt is missing: run flwr-dmml fleet init"):
        examine(lab[0], tmp_path)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    with pytest.raises(FleetError, match="the command flwr is not there"):
        superlink.list_nodes(*lab)


def test_help_is_worth_reading():
    for command, words in (
        ([], ["fleet.toml", "[superlink]", "[[device]]", "init", "register", "status"]),
        (["init"], ["--renew", "--device-dir", "two years", "Exit status", "Examples"]),
        (["register"], ["nodes.json", "Exit status", "Example"]),
        (["status"], ["30 days", "--no-ask", "--json", "Exit status", "Example"]),
    ):
        code, said = run(*command, "--help")
        assert code == 0 and all(word in said for word in words), said
