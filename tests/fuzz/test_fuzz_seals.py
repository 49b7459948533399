"""Whatever a neighbour sends as its key, its certificate, or an encrypted payload."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from fuzzing import fuzz
from helpers_certificates import content_of_a_certificate, seal_with, signed
from test_fuzz_letters import LIMITS, framed, unframed

from flwr_dmml.fleet.certificates import PEER, Authority, Wanted
from flwr_dmml.transport.direct.security import Seal
from flwr_dmml.transport.direct.tls import DirectError, Tls
from flwr_dmml.transport.letter import Letter, LetterError, write_letter
from flwr_dmml.transport.sealed import (
    KEY,
    LENGTH,
    SEALED,
    Identity,
    _digest,
    lock,
    open_apart,
    open_letter,
    part_of,
    seal_letter,
)

TENSORS = {"head": torch.ones(3), "encoder.audio": torch.ones(20), "head@1": torch.ones(3)}
ABOUT = "7", 0, 4
BETWEEN = b"|key|"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    authority = Authority(tmp_path_factory.mktemp("ca"))
    authority.make("lab")
    return authority


@pytest.fixture(scope="module")
def files(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> list[Tls]:
    folder = tmp_path_factory.mktemp("devices")
    made = []
    for k in range(2):
        certificate, key = folder / f"{k}.crt", folder / f"{k}.key"
        authority.issue(Wanted(f"device-{k}", ("127.0.0.1",), PEER), key, certificate)
        listed = authority.revoked_file
        made.append(Tls(authority.certificate_file, certificate, key, listed))
    return made


@pytest.fixture(scope="module")
def devices(files: list[Tls]) -> list[Identity]:
    return [Identity(tls, k) for k, tls in enumerate(files)]


def test_announced_keys(devices: list[Identity], pytestconfig: pytest.Config) -> None:
    check = partial(devices[1].check, device=0)
    fuzz(check, (LetterError,), [devices[0].announcement()], pytestconfig)


def test_signatures(files: list[Tls], pytestconfig: pytest.Config) -> None:
    one, other = Seal(files[0], 0), Seal(files[1], 1)

    def check(data: bytes) -> None:
        seal, letter = data[:-6], data[-6:]
        other.check(letter, seal, 0)

    fuzz(check, (LetterError,), [one.sign(b"letter") + b"letter"], pytestconfig)


def test_certificates_that_the_authority_has_signed(
    authority: Authority, files: list[Tls], pytestconfig: pytest.Config
) -> None:
    """All fields are read, as the signature is right; that of the letter is not."""
    seal = Seal(files[1], 1)

    def check(data: bytes) -> None:
        try:
            seal.check(b"letter", seal_with(signed(data, authority)), 0)
        except LetterError as error:
            if "signature is not that of" not in str(error):
                raise

    content = content_of_a_certificate("device-0", authority)
    fuzz(check, (LetterError,), [content], pytestconfig, inputs=500)


def test_revocation_lists(files: list[Tls], tmp_path: Path, pytestconfig: pytest.Config) -> None:
    assert files[0].revoked

    def read(data: bytes) -> None:
        (tmp_path / "list").write_bytes(data)
        ca, certificate, key = files[0].ca, files[0].certificate, files[0].key
        Seal(Tls(ca, certificate, key, tmp_path / "list"), 0)

    fuzz(read, (DirectError,), [files[0].revoked.read_bytes()], pytestconfig)


def test_encrypted_payloads(devices: list[Identity], pytestconfig: pytest.Config) -> None:
    """Bytes of all parts, in JSON with their names."""
    me, by = devices[1], devices[0]
    parts = seal_letter(Letter(*ABOUT, TENSORS), by, {1: me.public})

    def read(data: bytes) -> None:
        try:
            found = json.loads(data)
            given = {name: bytes.fromhex(part) for name, part in found.items()}
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise LetterError("not what is tested here") from None
        open_letter(given, me, *ABOUT, by.public, LIMITS)

    example = json.dumps({name: part.hex() for name, part in parts.items()}).encode()
    fuzz(read, (LetterError,), [example], pytestconfig)


def test_payloads_that_a_neighbour_really_has_encrypted(
    devices: list[Identity], pytestconfig: pytest.Config
) -> None:
    """Any header and tensors, in a letter with a right frame, under the right keys."""
    me, by = devices[1], devices[0]

    def read(data: bytes) -> None:
        secret = bytes(32)
        sealed = lock(secret, framed(data), SEALED, *ABOUT)
        context = (*ABOUT, 1, by.public.hex(), me.public.hex(), _digest(sealed))
        key = lock(by.shared(me.public), secret, KEY, *context)
        open_letter({SEALED: sealed, "key@1": key}, me, *ABOUT, by.public, LIMITS)

    examples = [unframed(write_letter(Letter(*ABOUT, TENSORS)))]
    fuzz(read, (LetterError,), examples, pytestconfig, memory_mb=50)


def test_parts_that_couriers_carry(devices: list[Identity], pytestconfig: pytest.Config) -> None:
    """Bytes of a part, and the table of its keys with a right length before it."""
    me, by = devices[1], devices[0]
    apart = {("encoder.audio",): {1: me.public}}
    part = seal_letter(Letter(*ABOUT, TENSORS), by, {}, apart)[part_of(["encoder.audio"])]
    (length,) = LENGTH.unpack(part[: LENGTH.size])
    keys, rest = part[LENGTH.size : LENGTH.size + length], part[LENGTH.size + length :]

    def read(data: bytes) -> None:
        if BETWEEN in data:
            table, _, sealed = data.partition(BETWEEN)
            data = LENGTH.pack(len(table)) + table + sealed
        open_apart(data, me, *ABOUT, by.public, LIMITS)

    fuzz(read, (LetterError,), [part, keys + BETWEEN + rest], pytestconfig)
