"""What the SuperLink cannot read: sealed payloads and states, of real parties with certificates."""

import json
from collections.abc import Callable, Iterable
from logging import getLogger
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from helpers import FAST, Recording
from helpers_certificates import content_of_a_certificate, of_an_unknown_key, seal_with, signed

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import make_client_app
from flwr_dmml.clients.sealing import LOCKED_STATE, lock_state, seals, unlock_state
from flwr_dmml.engine import InProcessGrid, server_identity
from flwr_dmml.fleet.certificates import PEER, Authority, Wanted
from flwr_dmml.graph.topology import make_topology
from flwr_dmml.payload.limits import Limits
from flwr_dmml.payload.plan import Inbox, Outcome, Payload, Plan
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.strategies import PeerStrategy, RunStoppedError
from flwr_dmml.strategies.app import exchange_of
from flwr_dmml.strategies.direct import DirectExchange
from flwr_dmml.strategies.exchange import Exchange
from flwr_dmml.strategies.keeper import Keeper
from flwr_dmml.strategies.roster import NoDevicesError
from flwr_dmml.strategies.sealed import SealedExchange
from flwr_dmml.tracking import RunFolder
from flwr_dmml.transport import sealed
from flwr_dmml.transport.arrays import NumpyArray
from flwr_dmml.transport.direct.tls import DirectError, Tls
from flwr_dmml.transport.letter import Letter, LetterError, read_letter, write_letter
from flwr_dmml.transport.messages import BLOCKS, INBOX, PAYLOAD, SIMULATED, pack, unpack
from flwr_dmml.transport.relay import own_bytes
from flwr_dmml.transport.sealed import (
    KEYS,
    SEALED,
    SESSION,
    Identity,
    lock,
    open_apart,
    open_letter,
    own_secret,
    seal_letter,
    unlock,
)

NODES = 3


def issue(folder: Path, authority: Authority, common_name: str, file: str) -> Tls:
    certificate, key = folder / f"{file}.crt", folder / f"{file}.key"
    authority.issue(Wanted(common_name, ("127.0.0.1",), PEER), key, certificate)
    return Tls(authority.certificate_file, certificate, key)


def make_authority(folder: Path) -> Authority:
    authority = Authority(folder)
    authority.make("lab")
    return authority


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def files(folder: Path) -> list[Tls]:
    authority = make_authority(folder / "ca")
    return [issue(folder, authority, f"device-{k}", f"{k}") for k in range(NODES)]


@pytest.fixture(scope="module")
def devices(files: list[Tls]) -> list[Identity]:
    return [Identity(tls, k) for k, tls in enumerate(files)]


# ---- the cryptography -----------------------------------------------------------------------

TENSORS = {
    "head.common": torch.arange(1000, dtype=torch.float32) / 7,
    "encoder.audio@1": torch.full((50,), 1 / 3),
    "encoder.audio@2": torch.full((50,), 1 / 7),
    "encoder.audio@2#scale": torch.full((5,), 1 / 11),
    "encoder.audio@12": torch.full((50,), 1 / 9),
    "stats.labels.index@": torch.arange(5, dtype=torch.int32),
    "stats.empty": torch.zeros(0, 3, dtype=torch.float16),
}
Parts = dict[str, bytes]


@pytest.fixture(scope="module")
def parts(devices: list[Identity]) -> Parts:
    """What device 0 seals in round 4 for 1 and 2."""
    public = {k: devices[k].public for k in (1, 2)}
    return seal_letter(Letter("s", 0, 4, TENSORS), devices[0], public)


def opened(parts: Parts, me: Identity, by: Identity, **other: Any) -> Payload:
    about = {"run": "s", "sender": 0, "server_round": 4, "public": by.public, **other}
    return open_letter(parts, me, **about)


def test_each_recipient_reads_what_is_for_it(parts: Parts, devices: list[Identity]):
    """What is addressed to 1 is not in what 2 can open; nor is what nobody here is called."""
    assert parts.keys() == {SEALED, "key@1", "key@2", "own@1", "own@2"}
    for k in (1, 2):
        found = opened(parts, devices[k], devices[0])
        to_all = {"head.common", "stats.labels.index@", "stats.empty"}
        to_one = {f"encoder.audio@{k}", *(["encoder.audio@2#scale"] if k == 2 else [])}
        assert found.keys() == to_all | to_one
        for name, tensor in found.items():
            assert tensor.dtype == TENSORS[name].dtype and torch.equal(tensor, TENSORS[name])


def test_nothing_readable_is_in_it(parts: Parts):
    """No 16 bytes of a tensor, no name; the letters themselves hold both."""
    whole, plain = b"".join(parts.values()), write_letter(Letter("s", 0, 4, TENSORS))
    for name, tensor in TENSORS.items():
        data = tensor.numpy().tobytes()
        assert name.encode() in plain and name.encode() not in whole
        for start in range(0, len(data) - 16, 16):
            assert data[start : start + 16] in plain
            assert data[start : start + 16] not in whole


def test_sizes_by_hand(parts: Parts):
    """A salt of 32 and a tag of 16 bytes around each letter, and around each key of 32 bytes."""
    to_all = {k: x for k, x in TENSORS.items() if "audio" not in k}
    assert len(parts[SEALED]) == len(write_letter(Letter("s", 0, 4, to_all))) + 48
    assert len(parts["key@1"]) == len(parts["key@2"]) == 80


def cut_one(parts: Parts, name: str) -> Parts:
    return parts | {name: parts[name][:-1]}


def empty_one(parts: Parts, name: str) -> Parts:
    return parts | {name: b""}


def flip_one(parts: Parts, name: str) -> Parts:
    data = bytearray(parts[name])
    data[len(data) // 2] ^= 1
    return parts | {name: bytes(data)}


def flip_salt(parts: Parts, name: str) -> Parts:
    return parts | {name: bytes([parts[name][0] ^ 128]) + parts[name][1:]}


@pytest.mark.parametrize("name", [SEALED, "key@1", "own@1"])
@pytest.mark.parametrize("damage", [cut_one, empty_one, flip_one, flip_salt])
def test_damage_is_noticed(
    damage: Callable[[Parts, str], Parts], name: str, parts: Parts, devices: list[Identity]
):
    with pytest.raises(LetterError, match="cannot be opened: damaged"):
        opened(damage(parts, name), devices[1], devices[0])


@pytest.mark.parametrize("other", [{"run": "t"}, {"sender": 2}, {"server_round": 3}], ids=str)
def test_a_payload_of_another_run_round_or_sender_is_refused(
    other: dict[str, Any], parts: Parts, devices: list[Identity]
):
    with pytest.raises(LetterError, match="of another run, round, sender"):
        opened(parts, devices[1], devices[0], **other)


def test_another_recipients_key_opens_nothing(parts: Parts, devices: list[Identity]):
    stolen = parts | {"key@1": parts["key@2"], "own@1": parts["own@2"]}
    with pytest.raises(LetterError, match="or recipient"):
        opened(stolen, devices[1], devices[0])
    with pytest.raises(LetterError, match="not encrypted for this device"):
        opened({k: v for k, v in parts.items() if k != "key@1"}, devices[1], devices[0])
    with pytest.raises(LetterError, match="or recipient"):  # 2 is told that 1 has written it
        opened(parts, devices[2], devices[1])


def test_a_recipient_cannot_write_in_the_senders_name(parts: Parts, devices: list[Identity]):
    """Device 1 knows the key of the ciphertext: with it, another text for 2 is still refused."""
    context = "s", 0, 4, 1, devices[0].public.hex(), devices[1].public.hex()
    from flwr_dmml.transport.sealed import _digest

    shared = devices[1].shared(devices[0].public)
    secret = unlock(shared, parts["key@1"], "key", *context, _digest(parts[SEALED]))
    assert read_letter(unlock(secret, parts[SEALED], SEALED, "s", 0, 4)).sender == 0
    forged = lock(secret, write_letter(Letter("s", 0, 4, {})), SEALED, "s", 0, 4)
    with pytest.raises(LetterError, match="cannot be opened"):
        opened({**parts, SEALED: forged}, devices[2], devices[0])


def test_no_key_is_used_twice(parts: Parts, devices: list[Identity]):
    """The same letter once more: every part begins with another salt and is another."""
    public = {k: devices[k].public for k in (1, 2)}
    again = seal_letter(Letter("s", 0, 4, TENSORS), devices[0], public)
    salts = [data[:32] for both in (parts, again) for data in both.values()]
    assert len(set(salts)) == len(salts) == 10
    assert not {data[32:] for data in again.values()} & {data[32:] for data in parts.values()}


def test_a_devices_keys_follow_from_its_tls_key(files: list[Tls], devices: list[Identity]):
    """The same after a restart, others for other purposes and devices, and none is the TLS key."""
    assert Identity(files[0], 0).public == devices[0].public
    secrets = [own_secret(tls.key, purpose) for tls in files for purpose in ("payloads", "states")]
    assert len({*secrets, *(device.public for device in devices)}) == 3 * NODES
    assert own_secret(files[0].key, "payloads") == secrets[0] and len(secrets[0]) == 32
    with pytest.raises(DirectError, match="TLS: "):
        own_secret(files[0].ca, "payloads")


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_other_kinds_of_tls_keys(kind: str, tmp_path: Path):
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    made = (
        ed25519.Ed25519PrivateKey.generate()
        if kind == "ed25519"
        else rsa.generate_private_key(65537, 2048)
    )
    file = tmp_path / "key"
    file.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert len(own_secret(file, "states")) == 32
    assert own_secret(file, "states") == own_secret(file, "states") != own_secret(file, "x")


def test_a_public_key_is_its_owners_or_refused(
    folder: Path, devices: list[Identity], tmp_path: Path
):
    announced = [device.announcement() for device in devices]
    assert [devices[0].check(a, k) for k, a in enumerate(announced)] == [d.public for d in devices]
    with pytest.raises(LetterError, match="of \\['device-2'\\], not 'device-1'"):
        devices[0].check(announced[2], 1)
    with pytest.raises(LetterError, match="signature is not that"):
        devices[0].check(devices[2].public + announced[1][32:], 1)
    with pytest.raises(LetterError, match="not signed"):
        devices[0].check(b"", 1)
    stranger = issue(tmp_path, make_authority(tmp_path / "ca"), "device-1", "stranger")
    with pytest.raises(LetterError, match="not issued by the fleet's authority"):
        devices[0].check(Identity(stranger, 1).announcement(), 1)
    for useless in (bytes(32), b"short"):
        with pytest.raises(LetterError, match="its public key cannot be used"):
            devices[0].shared(useless)
    with pytest.raises(LetterError, match="its public key cannot be used"):
        devices[0].check(announced_as(bytes(32), devices[1]), 1)


def announced_as(public: bytes, device: Identity) -> bytes:
    """Return an announcement of bytes of this device's own making, with its true signature."""
    return public + device._seal.sign(sealed._announced(public, device.partition))


@pytest.mark.parametrize("ours", [True, False])
def test_a_certificate_of_an_unknown_key_type_is_refused(
    ours: bool, folder: Path, devices: list[Identity], tmp_path: Path
):
    """One that the fleet's authority has signed, and one of somebody else's."""
    authority = Authority(folder / "ca") if ours else make_authority(tmp_path / "ca")
    seal = seal_with(of_an_unknown_key("device-1", authority))
    with pytest.raises(LetterError) as refused:
        devices[0].check(devices[1].public + seal, 1)
    assert str(refused.value) == "certificate refused: " + (
        "Unknown key type: 1.3.101.121" if ours else "not issued by the fleet's authority"
    )


def test_a_certificate_of_an_unknown_version_is_refused(folder: Path, devices: list[Identity]):
    authority = Authority(folder / "ca")
    version_3, version_62 = bytes.fromhex("a003020102"), bytes.fromhex("a00302013d")
    content = content_of_a_certificate("device-1", authority)
    assert content.count(version_3) == 1
    seal = seal_with(signed(content.replace(version_3, version_62), authority))
    with pytest.raises(LetterError, match=r"^certificate refused: it cannot be read$"):
        devices[0].check(devices[1].public + seal, 1)


def test_what_is_too_long_or_unknown_is_not_opened(devices: list[Identity], parts: Parts):
    """Nobody else has the blocks of this letter; its ciphertext is not even decrypted."""
    limits = Limits({"head.common": 1000, "encoder.audio": 50}, copies=3, statistics=100)
    assert opened(parts, devices[1], devices[0], limits=limits)
    with pytest.raises(
        LetterError, match=r"'head.common' is a block that no two devices of the run"
    ):
        opened(parts, devices[1], devices[0], limits=Limits({"encoder.audio": 50}))
    long = {SEALED: bytes((2 << 20) + limits.payload_bytes + 100)}
    with pytest.raises(LetterError, match="bytes, allowed are"):
        opened(long, devices[1], devices[0], limits=limits)
    with pytest.raises(LetterError, match="bytes, allowed are"):
        part = long[SEALED], devices[1], "s", 0, 4, devices[0].public
        open_apart(*part, limits)


# ---- whole runs -----------------------------------------------------------------------------


def named(tls: Tls) -> dict[str, str]:
    """Return a node config of these files."""
    files = {"tls-ca": tls.ca, "tls-certificate": tls.certificate, "tls-key": tls.key}
    return {name: str(path) for name, path in files.items()}


class Lab(InProcessGrid):
    """Devices with certificates, as on real SuperNodes; keeps every message, and may tamper."""

    def __init__(
        self,
        files: list[Tls],
        config: dict[str, Any],
        *learners: Any,
        tamper: Callable[[int, RecordDict], None] = lambda partition, content: None,
        run_id: int = 1,
    ) -> None:
        super().__init__(make_client_app(*learners), len(files), config, run_id=run_id)
        self.messages: list[tuple[int, RecordDict]] = []
        self.answers: list[RecordDict] = []
        self._tamper = tamper
        for node, tls in zip(self._nodes.values(), files, strict=True):
            del node.config[SIMULATED]
            node.config |= named(tls)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        listed = list(messages)
        for message in listed:
            partition = self._nodes[message.metadata.dst_node_id].partition_id
            self._tamper(partition, message.content)
            self.messages.append((partition, message.content))
        return super().push_messages(listed)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        self.answers += [reply.content for reply in replies if reply.has_content()]
        return replies

    def all_bytes(self) -> bytes:
        """Everything that the coordinator has sent or got."""
        contents = [content for _, content in self.messages] + self.answers
        found: list[bytes] = []
        for content in contents:
            for record in content.array_records.values():
                found += [name.encode() + array.data for name, array in record.items()]
            for config in content.config_records.values():
                found.append(repr(dict(config)).encode())
        return b"".join(found)


class Published(Recording):
    """Keeps what its devices have published, by device and round, and what they keep."""

    name = "published"
    payloads: ClassVar[dict[tuple[int, int], Payload]] = {}
    inboxes: ClassVar[dict[tuple[int, int], Inbox]] = {}

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        key = self.partition.partition_id, plan.server_round
        self.inboxes[key] = inbox
        outcome = super().run_round(plan, inbox)
        self.payloads[key] = dict(outcome.payload)
        return outcome


def settings(**config: Any) -> dict[str, Any]:
    return {**FAST, "num-nodes": NODES, "method": "dpsgd", "exchange.sealed": True, **config}


def run(grid: Lab, config: dict[str, Any], rounds: int = 3, **strategy: Any) -> PeerStrategy:
    parts = find_parts(grid._client_app.own)  # type: ignore[attr-defined]
    parsed = parse_settings(config, parts)
    method = parts.methods[config["method"]]
    peers = PeerStrategy(
        make_topology(config.get("topology", "ring")),
        num_nodes=NODES,
        method=method.name,
        communicates=method.communicates,
        local_iterations=2,
        evaluate_every=1,
        options=parsed.options[method.name],
        gossip=parsed.gossip_of(method.name),
        exchange=SealedExchange if config["exchange.sealed"] else Exchange,
        **strategy,
    )
    with server_identity(grid.run.run_id):
        peers.start(grid, num_rounds=rounds, timeout=60.0)
    return peers


def learned(peers: PeerStrategy) -> list[dict[str, Any]]:
    """Return the lines of the metrics file without what was sent."""
    lines: list[dict[str, Any]] = [record.to_json() for record in peers.records]
    for table in (*lines, *(node for line in lines for node in line["nodes"])):
        for key in [key for key in table if "bytes" in key]:
            del table[key]
    return lines


PUBLIC = {"kd.exchange-every": 1, "kd.start": 0.2, "public.samples": 20}


@pytest.mark.parametrize(
    "config",
    [
        {"method": "dmml-kd"},
        {"method": "relaysgd", "topology": "line"},
        {"method": "relaysgd", "topology": "line", "exchange.precision": "int8"},
        {"method": "kd", **PUBLIC},
        {"method": "dmml-kd", "modality-pattern": "audio,image,audio+image"},
        {"modality-pattern": "audio,image,image"},
    ],
    ids=str,
)
def test_numbers_are_those_without_encryption(config: dict[str, Any], files: list[Tls]):
    """Blocks that only some own, blocks addressed to one neighbour, soft labels; to the bit."""
    found = []
    for encrypt in (False, True):
        given = settings(**config) | {"exchange.sealed": encrypt}
        found.append(run(Lab(files, given), given))
    plain, sealed = found
    assert learned(sealed) == learned(plain)
    assert plain.records[-1].accuracy is not None and not plain.records[-1].failed
    for one, other in zip(plain.records, sealed.records, strict=True):
        for node, same in zip(one.nodes, other.nodes, strict=True):
            assert same.label_bytes_sent == node.label_bytes_sent
            assert same.bytes_sent > 0 and node.bytes_sent > 0


CARRIED = {"topology": "line", "modality-pattern": "audio,image,audio", "couriers": "forward"}
"""Device 1 has images only, and carries what 0 and 2 have of audio."""


@pytest.mark.parametrize(
    "more", [{}, {"exchange.precision": "int8"}, {"method": "dmml-kd"}], ids=str
)
def test_a_courier_carries_what_it_cannot_read(more: dict[str, Any], files: list[Tls]):
    """Numbers are those without encryption, and the courier has nothing of the encoders."""
    found = []
    for encrypt in (False, True):
        given = settings(**{**CARRIED, **more}) | {"exchange.sealed": encrypt}
        found.append(run(Lab(files, given), given, rounds=4, couriers="forward", sealed=encrypt))
    plain, sealed = found
    assert learned(sealed) == learned(plain)
    assert sealed.records[2].carried == {(0, 1, 2), (2, 1, 0)} == plain.records[2].carried
    assert not any(node.rejected for record in sealed.records for node in record.nodes)


def test_a_courier_has_no_key_to_what_it_carries(files: list[Tls], devices: list[Identity]):
    Published.inboxes.clear()
    given = settings(**CARRIED, method="published")
    grid = Lab(files, given, Published)
    run(grid, given, rounds=4, couriers="forward", sealed=True)
    assert set(Published.inboxes[1, 3]) == {0, 2}
    for payload in Published.inboxes[1, 3].values():
        assert not any("audio" in name for name in payload)
    assert any("encoder.audio<2" in payload for payload in Published.inboxes[0, 4].values())
    contents = [c for p, c in grid.messages if p == 1 and plan_round(c) == 3]
    part = contents[0].array_records[f"{INBOX}0"]["sealed:encoder.audio"].numpy().tobytes()
    run_id = str(contents[0].config_records[KEYS]["session"])
    about = {"run": run_id, "sender": 0, "server_round": 2, "public": devices[0].public}
    assert "encoder.audio" in open_apart(part, devices[2], **about)
    with pytest.raises(LetterError, match="not encrypted for this device"):
        open_apart(part, devices[1], **about)
    for cut in (part[:3], part[:20], b"", b"\xff" * 40):
        with pytest.raises(LetterError):
            open_apart(cut, devices[2], **about)
    with pytest.raises(LetterError, match="cannot be opened"):
        open_apart(part[:-1] + bytes([part[-1] ^ 1]), devices[2], **about)
    with pytest.raises(LetterError, match="cannot be opened"):
        open_apart(part, devices[2], **{**about, "server_round": 1})


def test_a_courier_that_changes_what_it_carries_is_named(
    files: list[Tls], caplog: pytest.LogCaptureFixture
):
    def change(partition: int, content: RecordDict) -> None:
        if partition == 2 and plan_round(content) == 4:
            record = content.array_records[f"{INBOX}1"].copy()
            numbers = record["sealed:encoder.audio<0"].numpy()
            numbers[-1] ^= 1
            record["sealed:encoder.audio<0"] = NumpyArray(numbers)
            content[f"{INBOX}1"] = record

    given = settings(**CARRIED)
    with caplog.at_level("WARNING"):
        peers = run(
            Lab(files, given, tamper=change), given, rounds=4, couriers="forward", sealed=True
        )
    assert "device 0: carried by device 1: cannot be opened: damaged" in caplog.text
    assert "node 2 rejects from node 1: block encoder.audio of device 0 is missing" in caplog.text
    assert peers.records[-1].accuracy is not None and not peers.records[3].failed


def test_the_coordinator_gets_nothing_that_it_could_read(files: list[Tls]):
    """Nor does it find a neighbour's block in its checkpoint; unencrypted, it has all of them."""
    for encrypt in (True, False):
        Published.payloads.clear()
        given = settings(method="published") | {"exchange.sealed": encrypt}
        grid = Lab(files, given, Published)
        run(grid, given)
        data = grid.all_bytes()
        assert len(Published.payloads) == NODES * 4
        for (_, server_round), payload in Published.payloads.items():
            assert bool(payload) == (server_round < 4)
            for tensor in payload.values():
                piece = tensor.numpy().tobytes()[:32]
                assert (piece in data) != encrypt, tensor.shape
                assert len(piece) >= 8


def test_all_recipients_get_the_same_ciphertext_and_keys_of_their_own(files: list[Tls]):
    given = settings()
    grid = Lab(files, given)
    run(grid, given)
    per_round: dict[tuple[str, str], list[tuple[int, Any]]] = {}
    for partition, content in grid.messages:
        for name, record in content.array_records.items():
            if name.startswith(INBOX):
                assert record.keys() == {SEALED, f"key@{partition}"}
                group = str(content.config_records["plan"].get("server-round"))
                per_round.setdefault((name, group), []).append((partition, record))
    assert len(per_round) == NODES * 3
    for received in per_round.values():
        (_, one), (_, other) = received
        assert one[SEALED] is other[SEALED]
    ciphertexts = {id(received[0][1][SEALED]) for received in per_round.values()}
    assert len(ciphertexts) == NODES * 3


def test_a_block_that_only_one_device_has_stays_there(files: list[Tls]):
    """So that what a device announces alone lets nobody send more; it is billed all the same."""
    Published.payloads.clear()
    given = settings(method="published", **{"modality-pattern": "audio,image,image"})
    grid = Lab(files, given, Published)
    peers = run(grid, given, rounds=2)
    payload = Published.payloads[0, 1]
    shared = {name: x for name, x in payload.items() if not name.endswith(".audio")}
    assert payload.keys() - shared.keys() == {"encoder.audio", "head.audio"}
    told = [c.config_records[BLOCKS] for _, c in grid.messages if BLOCKS in c]
    assert all(blocks.keys() == {"head.common", "encoder.image", "head.image"} for blocks in told)
    session = str(grid.messages[-1][1].config_records[KEYS][SESSION])
    letter = write_letter(Letter(session, 0, 1, shared))
    (first, *_) = [answer.array_records[PAYLOAD] for answer in grid.answers if PAYLOAD in answer]
    assert first[SEALED].numpy().nbytes == len(letter) + 48
    assert peers.exchange.sizes[0] == own_bytes(pack(payload))


def test_bytes_sent_are_those_of_the_ciphertext(files: list[Tls]):
    """To each of two neighbours: both arrays, each with NumPy's header of 128 bytes."""
    given = settings()
    grid = Lab(files, given)
    peers = run(grid, given, rounds=2)
    payloads = [answer.array_records[PAYLOAD] for answer in grid.answers if PAYLOAD in answer]
    for partition, payload in enumerate(payloads[:NODES]):
        one = len(payload[SEALED].data) + 128 + 80
        assert peers.records[0].by_partition[partition].bytes_sent == 2 * one


def plan_round(content: RecordDict) -> int:
    return int(content.config_records["plan"].get("server-round", 0))  # type: ignore[arg-type]


def flip(partition: int, content: RecordDict) -> None:
    if partition == 1 and plan_round(content) == 2:
        record = content.array_records[f"{INBOX}0"].copy()
        numbers = record[SEALED].numpy()
        numbers[-1] ^= 1
        record[SEALED] = NumpyArray(numbers)
        content[f"{INBOX}0"] = record


class Replay:
    """Gives device 1 what device 0 has sealed in round 1 once more in round 3."""

    def __init__(self) -> None:
        self.kept: Any = None

    def __call__(self, partition: int, content: RecordDict) -> None:
        if partition == 1 and plan_round(content) == 2:
            self.kept = content.array_records[f"{INBOX}0"]
        if partition == 1 and plan_round(content) == 3:
            content[f"{INBOX}0"] = self.kept


class Swap:
    """Tells device 1 that a key of the coordinator's own is device 0's."""

    def __init__(self, announced: bytes) -> None:
        self.announced = announced

    def __call__(self, partition: int, content: RecordDict) -> None:
        if partition == 1 and plan_round(content) == 2:
            content.config_records[KEYS]["0"] = self.announced


def lose(partition: int, content: RecordDict) -> None:
    if partition == 1 and plan_round(content) == 2:
        del content[f"{INBOX}0"]


@pytest.fixture
def attacks(
    tmp_path: Path, folder: Path, devices: list[Identity]
) -> dict[str, tuple[Any, int, str]]:
    """Who tampers, in which round device 1 notices, and the words of it."""
    stranger = issue(tmp_path, make_authority(tmp_path / "ca"), "device-0", "stranger")
    swap = Swap(Identity(stranger, 0).announcement())
    unknown = seal_with(of_an_unknown_key("device-0", Authority(folder / "ca")))
    return {
        "unknown": (Swap(bytes(32) + unknown), 1, "its key is refused: certificate refused: Unk"),
        "useless": (Swap(announced_as(bytes(32), devices[0])), 1, "its public key cannot be used"),
        "flip": (flip, 1, "cannot be opened: damaged"),
        "replay": (Replay(), 2, "of another run, round"),
        "swap": (swap, 1, "its key is refused: certificate refused: not issued by the fleet's"),
        "lose": (lose, 1, "not encrypted for this device"),
    }


@pytest.mark.parametrize("attack", ["flip", "replay", "swap", "lose", "unknown", "useless"])
def test_what_is_tampered_with_costs_only_itself_and_is_named(
    attack: str,
    attacks: dict[str, tuple[Any, int, str]],
    files: list[Tls],
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level("WARNING", logger="flwr")
    getLogger("flwr").propagate = True
    tamper, noticed, words = attacks[attack]
    given = settings(method="published")
    Published.inboxes.clear()
    peers = run(Lab(files, given, Published, tamper=tamper), given)
    assert not any(record.failed for record in peers.records), "one device's word: 2 can read it"
    told = {(r.round, n.partition): n.claims for r in peers.records for n in r.nodes if n.claims}
    assert words in told.pop((noticed, 1))[0]
    assert f"Round {noticed}: node 1 rejects from node 0: " in caplog.text
    senders = {key: sorted(inbox) for key, inbox in Published.inboxes.items() if key[1] > 1}
    assert senders.pop((1, noticed + 1)) == [2]
    if attack in ("swap", "unknown", "useless"):
        # device 1 did not encrypt for whom it could not know
        assert "not encrypted for this device" in told.pop((2, 0))[1]
        assert senders.pop((0, 3)) == [2]
    assert all(len(inbox) == NODES - 1 for inbox in senders.values()) and not told


def test_a_device_does_not_encrypt_to_a_key_that_it_refuses(
    files: list[Tls], attacks: dict[str, tuple[Any, int, str]]
):
    """Device 1 writes no key for 0 in round 2, and does again when it is told the right one."""
    given = settings()
    grid = Lab(files, given, tamper=attacks["swap"][0])
    run(grid, given)
    published = [answer.array_records[PAYLOAD] for answer in grid.answers if PAYLOAD in answer]
    assert [set(p) for p in published[NODES : 2 * NODES]] == [
        {SEALED, "key@1", "key@2"}, {SEALED, "key@2"}, {SEALED, "key@0", "key@1"},
    ]  # fmt: skip


def test_a_coordinator_that_does_not_encrypt_gets_nothing(files: list[Tls]):
    """The run config says encrypt, the messages come without keys."""
    given = settings()
    with pytest.raises(NoDevicesError, match="the coordinator does not seal"):
        run(Lab(files, given), given | {"exchange.sealed": False})


def test_a_device_without_a_certificate_is_left_out_with_one_clear_error(files: list[Tls]):
    given = settings()
    grid = Lab(files, given)
    for node in grid._nodes.values():
        del node.config["tls-ca"], node.config["tls-certificate"], node.config["tls-key"]
    with pytest.raises(NoDevicesError, match="sealed needs tls-ca, tls-certificate"):
        run(grid, given)


def test_a_device_that_insists_on_encryption_is_left_out_of_a_run_without(
    files: list[Tls], caplog: pytest.LogCaptureFixture
):
    caplog.set_level("WARNING", logger="flwr")
    getLogger("flwr").propagate = True
    given = settings() | {"exchange.sealed": False}
    grid = Lab(files, given)
    for node in grid._nodes.values():
        if node.partition_id == 1:
            node.config["require-sealed"] = True
    peers = run(grid, given, rounds=1, min_nodes=2)
    assert "(partition 1): SettingsError: node config: require-sealed = true, and" in caplog.text
    assert {node.partition for node in peers.records[-1].nodes} == {0, 2}


def test_a_certificate_of_another_device_is_refused(
    files: list[Tls], caplog: pytest.LogCaptureFixture
):
    caplog.set_level("WARNING", logger="flwr")
    getLogger("flwr").propagate = True
    given = settings()
    grid = Lab([files[0], files[2], files[2]], given)
    peers = run(grid, given)
    assert peers.roster.members.keys() == {0, 2}
    assert "Left out of the run: node 1001: DirectError" in caplog.text
    assert "not 'device-1'" in caplog.text


# ---- states and checkpoints -----------------------------------------------------------------


def context(tls: Tls, encrypt: bool = True) -> Context:
    return Context(1, 2, dict(named(tls)), RecordDict(), {"exchange.sealed": encrypt})


def test_a_state_is_read_by_its_device_only(files: list[Tls]):
    state = pack({"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor(1.5).double()})
    locked = lock_state(context(files[0]), state)
    assert list(locked) == [LOCKED_STATE] and unpack(state)["a"][0].numpy().tobytes() not in (
        locked[LOCKED_STATE].data
    )
    found = unpack(unlock_state(context(files[0]), locked))
    for name, tensor in unpack(state).items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    with pytest.raises(LetterError, match="cannot be opened"):
        unlock_state(context(files[1]), locked)
    with pytest.raises(SettingsError, match="the state to go on from is encrypted"):
        unlock_state(context(files[0], encrypt=False), locked)
    with pytest.raises(SettingsError, match="is not encrypted"):
        unlock_state(context(files[0]), state)
    assert lock_state(context(files[0], encrypt=False), state) is state


def kept(
    run_folder: RunFolder, files: list[Tls], given: dict[str, Any], run_id: int, stop_after: int = 0
) -> None:
    """Run four rounds with a checkpoint after each, or stop after some."""
    asked = iter(range(1, 9))
    keeper = Keeper(
        run_folder.path / given["method"], 1, 9, stopping=lambda: next(asked) == stop_after
    )
    run(Lab(files, given, run_id=run_id), given, 4, keeper=keeper, trackers=[run_folder])


@pytest.mark.parametrize("method", ["dmml-kd", "relaysgd"])
def test_a_resumed_run_opens_what_its_checkpoint_holds(
    method: str, files: list[Tls], tmp_path: Path
):
    """Stopped after round 2 of 4; Flower's id of the run is another when it goes on."""
    given = settings(method=method, topology="line")
    kept(RunFolder(tmp_path, "whole", given), files, given, run_id=1)
    stopped = RunFolder(tmp_path, "stopped", given)
    with pytest.raises(RunStoppedError, match="after round 2"):
        kept(stopped, files, given, run_id=2, stop_after=2)

    place = stopped.path / method / "checkpoints" / "round-00002"
    about = json.loads((place / "state.json").read_text())
    assert {tuple(names) for names in about["nodes"]["names"].values()} == {(LOCKED_STATE,)}
    held = {name for names in about["payloads"]["names"].values() for name in names}
    assert {name.partition("@")[0] for name in held} <= {SEALED, "key", "own"}
    again = RunFolder.reopen(stopped.path)
    with pytest.raises(NoDevicesError, match="the state to go on from is encrypted"):
        kept(again, files, given | {"exchange.sealed": False}, run_id=3)

    kept(RunFolder.reopen(stopped.path), files, given, run_id=4)
    found = [tmp_path / name / method / "metrics.jsonl" for name in ("stopped", "whole")]
    assert found[0].read_bytes() == found[1].read_bytes()
    lines = [json.loads(line) for line in found[0].read_text().splitlines()]
    assert len(lines) == 4 and not any(line["failed"] for line in lines)


# ---- settings -------------------------------------------------------------------------------


def test_where_nothing_is_encrypted(files: list[Tls], caplog: pytest.LogCaptureFixture):
    """An engine of this package hosts devices in one place: a plain relay, and the log says so."""
    caplog.set_level("INFO", logger="flwr")
    getLogger("flwr").propagate = True
    parts = find_parts()
    given = parse_settings(settings(), parts).settings
    here = InProcessGrid(make_client_app(), NODES, settings())
    assert exchange_of(given, here) is Exchange
    assert "nothing is sealed between devices simulated here" in caplog.text
    elsewhere = object()
    assert exchange_of(given, elsewhere) is SealedExchange  # type: ignore[arg-type]
    direct = parse_settings(settings(**{"exchange.transport": "direct"}), parts).settings
    made = exchange_of(direct, elsewhere)  # type: ignore[arg-type]
    assert made.func is DirectExchange  # type: ignore[attr-defined]
    with pytest.raises(SettingsError, match=r"a router of exchange\.router could read"):
        parse_settings(settings(**{"exchange.router": "10.0.0.1:7447"}), parts)
    simulated = Context(1, 2, {SIMULATED: True}, RecordDict(), {"exchange.sealed": True})
    assert not seals(simulated) and seals(context(files[0]))
    assert not seals(context(files[0], encrypt=False))
