"""A fleet's file, and what devices say of themselves to ``flwr-dmml fleet status``."""

import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzzing import fuzz, of_file
from helpers_certificates import content_of_a_certificate, signed
from helpers_fleet import TWO

from flwr_dmml.fleet import FleetError, prepare, read_fleet
from flwr_dmml.fleet.answers import Heard, cells, problems_of
from flwr_dmml.fleet.asking import read_answer
from flwr_dmml.fleet.certificates import Authority, make_node_key, own_key
from flwr_dmml.fleet.folder import Holder, authority, holders
from flwr_dmml.fleet.scripts import device_config, device_files, superlink_files
from flwr_dmml.fleet.status import certificate_problem
from flwr_dmml.fleet.status_app.client_app import describe
from flwr_dmml.fleet.superlink import NODES, key_digest, known_nodes

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


@pytest.fixture
def holder(memory: Path) -> Holder:
    """The first device of a fleet, with its files; the authority's are in ``memory / "ca"``."""
    (memory / "fleet.toml").write_text(TWO)
    fleet = read_fleet(memory / "fleet.toml")
    prepare(fleet, memory)
    (memory / NODES).write_text(json.dumps({"ab" * 32: "1001", "cd" * 32: "1002"}))
    return next(holder for holder in holders(fleet, memory) if holder.is_device)


def examine(issuer: Authority, holder: Holder) -> None:
    """Read a certificate as ``fleet init`` and ``fleet status`` do; both name what is wrong."""
    issuer.objection(holder.wanted, holder.key, holder.certificate)
    issuer.has_revoked(holder.certificate)
    certificate_problem(holder.name, holder.certificate, 30)


@pytest.mark.parametrize("name", ["ca.crt", "revoked.crl", "peer.crt", "peer.key"])
def test_certificates_of_a_folder(
    holder: Holder, memory: Path, name: str, pytestconfig: pytest.Config
) -> None:
    issuer = authority(memory)
    own = holder.folder if name.startswith("peer") else memory / "ca"
    parse = of_file(own / name, lambda: examine(issuer, holder), FleetError)
    fuzz(parse, (FleetError,), [(own / name).read_bytes()], pytestconfig)


def test_a_certificate_that_the_authority_has_really_signed(
    holder: Holder, memory: Path, pytestconfig: pytest.Config
) -> None:
    issuer = authority(memory)

    def parse(data: bytes) -> None:
        text = b64encode(signed(data, issuer)).decode()
        pem = f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"
        holder.certificate.write_text(pem)
        examine(issuer, holder)

    fuzz(parse, (FleetError,), [content_of_a_certificate("device-0", issuer)], pytestconfig)


FILES: dict[str, Callable[[Path], object]] = {
    "peer.key": own_key,
    "node-key": lambda file: make_node_key(file, "pi-1.lab"),
    "node-key.pub": key_digest,
}


@pytest.mark.parametrize("name", FILES)
def test_keys(holder: Holder, name: str, pytestconfig: pytest.Config) -> None:
    file, public = holder.folder / name, holder.folder / "node-key.pub"

    def read() -> object:
        if name == "node-key":
            public.unlink(missing_ok=True)  # it is made of the key
        return FILES[name](file)

    fuzz(of_file(file, read, FleetError), (FleetError,), [file.read_bytes()], pytestconfig)


def test_nodes_that_are_known(holder: Holder, memory: Path, pytestconfig: pytest.Config) -> None:
    file = memory / NODES
    parse = of_file(file, lambda: known_nodes(memory), FleetError)
    fuzz(parse, (FleetError,), [file.read_bytes()], pytestconfig)
