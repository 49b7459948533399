"""Letters from device to device: real sessions and real processes on the loopback interface."""

import ipaddress
import json
import multiprocessing
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Timer
from time import monotonic, sleep

import pytest
import torch

from flwr_dmml.base.libraries import LibraryError
from flwr_dmml.payload.limits import Limits
from flwr_dmml.transport.direct.link import DirectLink
from flwr_dmml.transport.direct.tls import DirectError, Tls
from flwr_dmml.transport.letter import Letter, LetterError, letter_bytes, read_letter, write_letter

zenoh = pytest.importorskip("zenoh", reason='letters between devices: "flwr-dmml[direct]"')

from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: E402
from cryptography.hazmat.primitives.hashes import SHA256  # noqa: E402
from cryptography.hazmat.primitives.serialization import (  # noqa: E402
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from flwr_dmml.transport.direct.answers import Question  # noqa: E402

LONG_S = 60.0  # a bound that nothing reaches unless it hangs
SHORT_S = 0.5


def address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def letter(sender: int, server_round: int, length: int = 100, run: str = "run") -> Letter:
    return Letter(run, sender, server_round, {"x": torch.full((length,), sender + server_round)})


def config(**settings: object) -> "zenoh.Config":
    made = zenoh.Config()
    for path, value in settings.items():
        made.insert_json5(path.replace("__", "/"), json.dumps(value))
    made.insert_json5("scouting/multicast/enabled", "false")
    made.insert_json5("scouting/gossip/enabled", "false")
    return made


def tls_settings(tls: Tls | None) -> dict[str, object]:
    if not tls:
        return {}
    paths = {"root_ca_certificate": tls.ca}
    for side in ("listen", "connect"):
        paths |= {f"{side}_certificate": tls.certificate, f"{side}_private_key": tls.key}
    return {"enable_mtls": True, **{name: str(path) for name, path in paths.items()}}


@contextmanager
def rogue(key, data, *, tls=None, seal=b"", **where):
    """Answer every query under a key with these bytes; follows no rule of ours."""
    settings = {"mode": "peer", "listen__endpoints": [], **where}
    if tls:
        settings["transport__link__tls"] = tls_settings(tls)

    def answer(query):
        with query:
            if query.parameters.get("ms"):
                query.reply(str(query.key_expr), data, attachment=seal)

    with zenoh.open(config(**settings)) as session:
        declared = session.declare_queryable(
            key, zenoh.handlers.Callback(answer, None, indirect=False)
        )
        yield session
        del declared


@contextmanager
def router(where, tls=None):
    scheme = "tls" if tls else "tcp"
    settings = {"transport__link__tls": tls_settings(tls)} if tls else {}
    endpoints = [f"{scheme}/{where}"]
    with zenoh.open(config(mode="router", listen__endpoints=endpoints, **settings)) as session:
        yield session


def why(peers, server_round=1, timeout_s=SHORT_S, **link):
    """Return why nothing came of the only peer."""
    with DirectLink("run", 0, **link) as asker:
        letters, missing = asker.collect(peers, server_round, timeout_s)
        assert not letters
        return missing[next(iter(peers))], asker


def ring_device(partition, addresses, rounds, results):
    peers = {p: a for p, a in enumerate(addresses) if p != partition}
    heard = []
    with DirectLink("ring", partition, listen=addresses[partition]) as link:
        for server_round in range(1, rounds + 1):
            link.publish(letter(partition, server_round, 5000, "ring"))
            letters, missing = link.collect(peers, server_round, LONG_S)
            heard.append((missing, {p: float(one.tensors["x"][-1]) for p, one in letters.items()}))
        left = link.linger(peers, rounds, LONG_S)
        results.put((partition, heard, left, link.bytes_sent, link.bytes_received))


def lone_device(partition, listen, server_round, ready):
    with DirectLink("run", partition, listen=listen) as link:
        link.publish(letter(partition, server_round))
        ready.set()
        sleep(LONG_S)


@contextmanager
def process(target, *args):
    child = multiprocessing.get_context("spawn").Process(target=target, args=args, daemon=True)
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()


def test_three_devices_in_a_ring_for_twenty_rounds():
    addresses, rounds = [address() for _ in range(3)], 20
    results = multiprocessing.get_context("spawn").Queue()
    found = {}
    with (
        process(ring_device, 0, addresses, rounds, results),
        process(ring_device, 1, addresses, rounds, results),
        process(ring_device, 2, addresses, rounds, results),
    ):
        for _ in range(3):
            partition, heard, left, *counted = results.get(timeout=2 * LONG_S)
            found[partition] = heard, left, counted
    size = len(write_letter(letter(0, 1, 5000, "ring")))
    for partition, (heard, left, counted) in found.items():
        assert not left
        for server_round, (missing, numbers) in enumerate(heard, start=1):
            assert not missing
            assert numbers == {p: p + server_round for p in range(3) if p != partition}
        for bytes_counted in counted:  # a round with more digits makes a longer header
            assert 2 * rounds * size <= bytes_counted <= 2 * rounds * (size + 5)


def test_a_query_waits_for_its_letter():
    where = address()
    with DirectLink("run", 1, listen=where) as other, DirectLink("run", 0) as link:
        late = Timer(0.3, other.publish, [letter(1, 1)])
        late.start()
        letters, missing = link.collect({1: where}, 1, LONG_S)
        assert set(letters) == {1} and not missing
        assert torch.equal(letters[1].tensors["x"], torch.full((100,), 2))
        assert link.bytes_received == other.bytes_sent == len(write_letter(letter(1, 1)))
        assert not other.linger({0}, 1, LONG_S)
        assert other.linger({0, 2}, 1, 0.05) == {2}
        assert other.linger({0}, 2, 0.05) == {0}


def test_a_device_may_come_late():
    where, others = address(), []

    def start():
        others.append(DirectLink("run", 1, listen=where))
        others[0].publish(letter(1, 1))

    with DirectLink("run", 0) as link:
        Timer(0.3, start).start()
        letters, _ = link.collect({1: where}, 1, LONG_S)
    others[0].close()
    assert set(letters) == {1}


def test_only_the_last_rounds_are_kept():
    where = address()
    with DirectLink("run", 1, listen=where) as other:
        for server_round in range(1, 6):
            other.publish(letter(1, server_round))
        with DirectLink("run", 0) as link:
            assert set(link.collect({1: where}, 3, LONG_S)[0]) == {1}
        said, _ = why({1: where}, 2, LONG_S)
        assert said == "has no letter of round 2, the last is 5"


def test_dead_and_silent_peers_cost_only_themselves():
    where = address()
    with (
        DirectLink("run", 1, listen=where) as other,
        DirectLink("run", 0) as link,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        other.publish(letter(1, 1))
        nobody, mute = address(), f"127.0.0.1:{silent.getsockname()[1]}"
        peers = {1: where, 2: nobody, 3: mute, 4: "", 5: "x:0"}
        letters, missing = link.collect(peers, 1, SHORT_S)
        assert set(letters) == {1}
        assert missing[2] == f"no letter within 0.5 s: nobody answers at {nobody}"
        assert missing[3].startswith("no letter within 0.5 s")
        assert "no address" in missing[4] and "'x:0' is no address" in missing[5]
        other.publish(letter(1, 2))
        assert set(link.collect({1: where, 3: mute}, 2, SHORT_S)[0]) == {1}
        assert link.collect({}, 1, SHORT_S) == ({}, {})


def test_spare_time_is_for_those_that_are_there():
    """Device 1 has the question and writes late; nobody is at the other address."""
    where, nobody = address(), address()
    with DirectLink("run", 1, listen=where) as other, DirectLink("run", 0) as link:
        Timer(2 * SHORT_S, other.publish, [letter(1, 1)]).start()
        letters, missing = link.collect({1: where, 2: nobody}, 1, SHORT_S, LONG_S)
        assert set(letters) == {1}
        assert missing == {2: f"no letter within 0.5 s: nobody answers at {nobody}"}
        before = monotonic()
        assert set(link.collect({2: nobody}, 1, SHORT_S, LONG_S)[1]) == {2}
        assert monotonic() - before < LONG_S


def test_a_device_that_was_killed_is_found_again():
    where, started = address(), multiprocessing.get_context("spawn").Event()
    with DirectLink("run", 0) as link:
        with process(lone_device, 1, where, 1, started) as child:
            assert set(link.collect({1: where}, 1, LONG_S)[0]) == {1}
            Timer(0.3, child.kill).start()
            before = monotonic()
            _, missing = link.collect({1: where}, 2, 2.0)  # held, then lost
            assert "no letter within 2 s" in missing[1] and monotonic() - before < LONG_S
        with process(lone_device, 1, where, 3, started):
            assert set(link.collect({1: where}, 3, LONG_S)[0]) == {1}


@pytest.mark.parametrize("end", ["", "link.close()", "import os, signal; os.kill(os.getpid(), 9)"])
def test_a_process_ends(end):
    code = (
        "import sys; from flwr_dmml.transport.direct.link import DirectLink\n"
        f"link = DirectLink('run', 1, listen={address()!r}, router={address()!r})\n"
        "neighbour = DirectLink('run', 0)\n"
        f"neighbour.collect({{1: {address()!r}}}, 1, 0.1)\n{end}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=2 * LONG_S)
    assert done.returncode == (-9 if "kill" in end else 0)
    assert not done.stdout and not done.stderr


WHOLE = write_letter(letter(1, 1))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"rubbish" * 10, "does not begin as a letter does"),
        (b"", "0 bytes are no letter"),
        (WHOLE[:-1], "damaged"),
        (WHOLE[:100] + bytes([WHOLE[100] ^ 1]) + WHOLE[101:], "damaged"),
        (write_letter(letter(1, 3)), "sent round 3 instead of 1 (replayed?)"),
        (write_letter(letter(2, 1)), "letter of device 2 under the name of device 1"),
        (write_letter(letter(1, 1, run="old")), "letter of run 'old' instead of 'run'"),
    ],
)
def test_what_is_no_such_letter_is_named_and_dropped(data, said):
    where = address()
    with rogue("dmml/run/1/*", data, listen__endpoints=[f"tcp/{where}"]):
        found, link = why({1: where}, timeout_s=LONG_S)
    assert said in found
    assert (link.letters_refused, link.bytes_received) == (1, len(data))


def test_letters_over_the_limit_do_not_come():
    """A letter may have 1 MiB more than what it may hold: its header."""
    where, some = address(), Limits({"x": 100})
    long = letter(1, 1, 1 << 20)
    size, limit = len(write_letter(long)), letter_bytes(some)
    with DirectLink("run", 1, listen=where) as other:
        other.publish(long)
        said, _ = why({1: where}, timeout_s=LONG_S, limits=some)
        assert said == f"{size} bytes, allowed are {limit}" and not other.bytes_sent
        with DirectLink("run", 0, limits=Limits({"x": 2 << 20})) as link:
            assert set(link.collect({1: where}, 1, LONG_S)[0]) == {1}
    with rogue("dmml/run/1/*", bytes(2 << 20), listen__endpoints=[f"tcp/{where}"]):
        said, link = why({1: where}, limits=some)
        assert said.startswith("no letter within") and not link.bytes_received
        assert said.endswith(f"it sent nothing, or more than {limit} bytes")
    with rogue("dmml/run/1/*", WHOLE, listen__endpoints=[f"tcp/{where}"]):
        said, _ = why({1: where}, timeout_s=LONG_S, limits=Limits({"y": 100}))
        assert said == "'x' is a block that no two devices of the run have"


def test_a_fault_in_a_reader_costs_its_sender_alone(monkeypatch):
    """An error that nobody has thought of: the letter of 2 is read, that of 1 named."""
    from flwr_dmml.transport.direct import asking

    def reads(data, limits):
        if b'"sender":1' in data:
            raise RuntimeError("not thought of")
        return read_letter(data, limits)

    monkeypatch.setattr(asking, "read_letter", reads)
    first, second = address(), address()
    with DirectLink("run", 1, listen=first) as one, DirectLink("run", 2, listen=second) as two:
        one.publish(letter(1, 1))
        two.publish(letter(2, 1))
        with DirectLink("run", 0) as link:
            letters, missing = link.collect({1: first, 2: second}, 1, LONG_S)
    assert set(letters) == {2}
    assert missing == {1: "cannot be read: RuntimeError: not thought of"}


@pytest.mark.parametrize(
    "question",
    [Question(3, 0), Question(7, 2, 0.5, 100), Question(1, 99999, 3600.0, 1 << 30)],
    ids=str,
)
def test_questions_are_read_as_they_were_asked(question):
    assert Question.read(question.at("dmml/run/1")) == question


@pytest.mark.parametrize(
    "selector",
    [
        "dmml/run/1/*?by=2", "dmml/run/1/x?by=2;ms=1;limit=1", "dmml/run/1/1", "dmml/run/1/1?by=",
        "dmml/run/1/1?by=-2", "dmml/run/1/1?by=2;ms=-1;limit=5", "dmml/run/1/1?by=1000000",
        f"dmml/run/1/1?by=2;ms={'9' * 400};limit=5", "dmml/run/1/1?by=2;ms=1;limit=1e9",
        "dmml/run/1/1?by=\u0662;ms=1;limit=1", "dmml/run/1/1?by=2;limit=5;ms=1", "",
    ],
)  # fmt: skip
def test_what_is_no_question(selector):
    with pytest.raises(LetterError, match=r"^no question: "):
        Question.read(selector)


def test_nobody_waits_for_longer_than_an_hour():
    assert Question.read("a/1?by=2;ms=999999999999;limit=5").wait_s == 3600.0


def test_queries_that_are_none_do_no_harm():
    where = address()
    with DirectLink("run", 1, listen=where) as other:
        other.publish(letter(1, 1))
        with zenoh.open(config(mode="client", connect__endpoints=[f"tcp/{where}"])) as session:
            for selector in (
                "dmml/run/1/*", "dmml/run/1/x?by=2", "dmml/run/1/1?by=x;ms=1;limit=999",
                f"dmml/run/1/1?by=2;ms={'9' * 400};limit=999",
                "dmml/run/1/1?by=2;ms=-5;limit=999",
            ):  # fmt: skip
                assert not list(session.get(selector, timeout=5))
            session.put("dmml/run/1/1", b"mine now")
            assert not list(session.get("dmml/run/**", timeout=5))
        with DirectLink("run", 0) as link:
            assert set(link.collect({1: where}, 1, LONG_S)[0]) == {1}


def test_what_cannot_be_is_refused_at_once():
    where = address()
    with DirectLink("run", 1, listen=where) as other:
        with pytest.raises(DirectError, match="cannot listen"):
            DirectLink("run", 2, listen=where)
        with pytest.raises(LetterError, match="not ours"):
            other.publish(letter(2, 1))
    with pytest.raises(ValueError, match="no address"):
        DirectLink("run", 1, listen="somewhere")
    with pytest.raises(ValueError, match="no address"):
        DirectLink("run", 1, router="tcp/1.2.3.4:5#iface=x")
    with pytest.raises(ValueError, match="needs an id"):
        DirectLink("", 1)


def test_without_zenoh_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "zenoh", None)
    with pytest.raises(LibraryError, match=r"^eclipse-zenoh .* To fix it: pip install "):
        DirectLink("run", 1)


def test_runs_with_odd_names_and_ports_of_this_machine():
    where = address()
    run = "a/b *$#?;ü"
    with DirectLink(run, 1, listen=where.removeprefix("127.0.0.1")) as other:
        other.publish(letter(1, 1, run=run))
        with DirectLink(run, 0) as link:
            assert set(link.collect({1: where}, 1, LONG_S)[0]) == {1}


def test_devices_behind_a_router():
    where = address()
    with DirectLink("run", 1, router=where) as other, DirectLink("run", 0, router=where) as link:
        other.publish(letter(1, 1))
        assert "nobody answers" in link.collect({1: ""}, 1, SHORT_S)[1][1]
        for server_round in (1, 2):  # the router is started, and started anew
            other.publish(letter(1, server_round))
            with router(where):
                assert set(link.collect({1: ""}, server_round, LONG_S)[0]) == {1}
                assert not other.linger({0}, server_round, LONG_S)


def test_devices_that_find_each_other_by_multicast():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("no network")
        where = f"{probe.getsockname()[0]}:{address().partition(':')[2]}"
    with DirectLink("run", 1, listen=where, multicast=True) as other:
        other.publish(letter(1, 1))
        with zenoh.scout(what="peer") as found:
            sleep(SHORT_S)
            if not any(where in str(one.locators) for one in iter(found.try_recv, None)):
                pytest.skip("no multicast here")
        with DirectLink("run", 0, multicast=True) as link:
            assert set(link.collect({1: ""}, 1, LONG_S)[0]) == {1}
            assert not other.linger({0}, 1, LONG_S)


KEYS = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ec": lambda: ec.generate_private_key(ec.SECP256R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
}


class Fleet:
    """Makes certificates."""

    def __init__(self, folder, kind="ec"):
        folder.mkdir(exist_ok=True)
        self.folder, self.kind, self.key = folder, kind, KEYS[kind]()
        self.name = self._name("fleet")
        self.ca = folder / "ca.pem"
        basic = x509.BasicConstraints(ca=True, path_length=0)
        self._write(self.ca, self._sign(self.name, self.key, basic))

    def device(self, common_name, days=1):
        key = KEYS[self.kind]()
        addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        names = x509.SubjectAlternativeName(addresses)
        path = self.folder / common_name
        self._write(path.with_suffix(".pem"), self._sign(self._name(common_name), key, names, days))
        path.with_suffix(".key").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        return Tls(self.ca, path.with_suffix(".pem"), path.with_suffix(".key"))

    def revoke(self, *devices):
        """Return the list of these devices' certificates; other ones may follow."""
        now = datetime.now(UTC)
        listed = x509.CertificateRevocationListBuilder(
            self.name, now - timedelta(days=1), now + timedelta(days=1)
        )
        for tls in devices:
            serial = x509.load_pem_x509_certificate(tls.certificate.read_bytes()).serial_number
            one = x509.RevokedCertificateBuilder(serial, now).build()
            listed = listed.add_revoked_certificate(one)
        path = self.folder / "revoked.crl"
        path.write_bytes(listed.sign(self.key, SHA256()).public_bytes(Encoding.PEM))
        return path

    def _name(self, text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def _sign(self, subject, key, extension, days=1):
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder(self.name, subject, key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=10))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(extension, critical=False)
        )
        return made.sign(self.key, None if self.kind == "ed25519" else SHA256())

    def _write(self, path, certificate):
        path.write_bytes(certificate.public_bytes(Encoding.PEM))


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path / "fleet")


@pytest.mark.parametrize("kind", ["ed25519", "ec", "rsa"])
def test_devices_with_certificates(tmp_path, kind):
    fleet, where = Fleet(tmp_path / "fleet", kind), address()
    with (
        DirectLink("run", 1, listen=where, tls=fleet.device("device-1")) as other,
        DirectLink("run", 0, tls=fleet.device("device-0")) as link,
    ):
        other.publish(letter(1, 1))
        assert link.collect({1: where}, 1, LONG_S)[1] == {}
        assert not other.linger({0}, 1, LONG_S)
    said, _ = why({1: where})
    assert "no letter" in said


def test_a_device_of_another_authority_is_refused(fleet, tmp_path):
    ours, strange = address(), address()
    tls, other_tls = fleet.device("device-1"), Fleet(tmp_path / "other").device("device-0")
    with DirectLink("run", 1, listen=ours, tls=tls) as other:
        other.publish(letter(1, 1))
        said, _ = why({1: ours}, timeout_s=LONG_S, tls=other_tls)
        assert said.startswith("certificate refused")
        mixed = Tls(fleet.ca, other_tls.certificate, other_tls.key)
        with pytest.raises(DirectError, match="not issued by the fleet"):
            DirectLink("run", 0, tls=mixed)
        settings = tls_settings(mixed)
        with pytest.raises(zenoh.ZError):
            zenoh.open(
                config(
                    mode="client",
                    connect__endpoints=[f"tls/{ours}"],
                    connect__timeout_ms=0,
                    transport__link__tls=settings,
                )
            )
        assert not other.bytes_sent
    with rogue("dmml/run/1/*", WHOLE, tls=other_tls, listen__endpoints=[f"tls/{strange}"]):
        said, link = why({1: strange}, timeout_s=LONG_S, tls=fleet.device("device-0"))
    assert said.startswith("certificate refused") and not link.bytes_received


def test_without_a_certificate_nobody_is_heard(fleet):
    where = address()
    with DirectLink("run", 1, listen=where, tls=fleet.device("device-1")) as other:
        other.publish(letter(1, 1))
        assert "no letter" in why({1: where})[0]
        assert not other.bytes_sent
    with DirectLink("run", 1, listen=where) as other:
        other.publish(letter(1, 1))
        assert "no letter" in why({1: where}, tls=fleet.device("device-0"))[0]


def test_a_device_under_the_name_of_another_is_refused(fleet):
    where, thief = address(), fleet.device("device-3")
    with rogue("dmml/run/1/*", WHOLE, tls=thief, listen__endpoints=[f"tls/{where}"]):
        said, link = why({1: where}, timeout_s=LONG_S, tls=fleet.device("device-0"))
    assert said == "certificate refused: of ['device-3'], not 'device-1'"
    assert not link.bytes_received  # Zenoh's access control has let nothing through


def test_certificates_that_do_not_do_are_named(fleet, tmp_path):
    good = fleet.device("device-1")
    for tls, said in (
        (Tls(tmp_path / "none", good.certificate, good.key), "none"),
        (Tls(good.ca, good.certificate, fleet.device("device-2").key), "is not the key of"),
        (fleet.device("device-7"), r"of \['device-7'\], not 'device-1'"),
        (fleet.device("device-1", days=-1), "not valid today"),
    ):
        with pytest.raises(DirectError, match=said):
            DirectLink("run", 1, tls=tls)


def test_signatures_hold_through_a_router(fleet):
    from flwr_dmml.transport.direct.security import Seal

    where, tls = address(), fleet.device("device-0")
    one, three = fleet.device("device-1"), fleet.device("device-3")
    connected = {"mode": "client", "connect__endpoints": [f"tls/{where}"]}
    with router(where, fleet.device("router")):
        with DirectLink("run", 1, router=where, tls=one) as other:
            other.publish(letter(1, 1))
            with (  # who answers first does not win
                rogue("dmml/run/1/*", WHOLE, tls=three, **connected),
                DirectLink("run", 0, router=where, tls=tls) as link,
            ):
                assert set(link.collect({1: ""}, 1, LONG_S)[0]) == {1}
        own, stolen = Seal(three, 3), Seal(one, 1).sign(write_letter(letter(1, 2)))
        for seal, said in (
            (own.sign(WHOLE), "certificate refused: of ['device-3'], not 'device-1'"),
            (stolen, "the signature is not that of the letter"),
            (b"", "certificate refused: it is not signed"),
            (b"\x01\x00xyz", "certificate refused: it cannot be read"),
        ):
            with rogue("dmml/run/1/*", WHOLE, tls=three, seal=seal, **connected):
                found, link = why({1: ""}, timeout_s=LONG_S, router=where, tls=tls)
            assert found == said and link.letters_refused == 1


def test_a_revoked_device_neither_gets_letters_nor_is_heard(fleet, tmp_path):
    """Its certificate is the fleet's, so that TLS lets it in: its question is refused."""
    where, theirs = address(), address()
    gone, good = fleet.device("device-2"), fleet.device("device-0")
    listed = fleet.revoke(gone)
    one, zero = (replace(tls, revoked=listed) for tls in (fleet.device("device-1"), good))
    with (
        DirectLink("run", 1, listen=where, tls=one) as other,
        DirectLink("run", 2, listen=theirs, tls=gone) as revoked,
        DirectLink("run", 0, tls=zero) as link,
    ):
        other.publish(letter(1, 1))
        revoked.publish(letter(2, 1))
        letters, missing = link.collect({1: where, 2: theirs}, 1, LONG_S)
        assert set(letters) == {1} and missing == {2: "certificate refused: it is revoked"}
        letters, missing = revoked.collect({1: where}, 1, LONG_S)
        assert not letters
        assert missing == {1: "refuses the question: certificate refused: it is revoked"}
        assert other.linger({2}, 1, SHORT_S) == {2}
    with pytest.raises(DirectError, match=r"device-2.pem: certificate refused: it is revoked"):
        DirectLink("run", 2, tls=replace(gone, revoked=listed))
    strange = Fleet(tmp_path / "other").revoke(gone)
    for file, said in ((strange, "is not signed by the fleet's authority"), (gone.key, "TLS: ")):
        with pytest.raises(DirectError, match=said):
            DirectLink("run", 0, tls=replace(good, revoked=file))


def test_a_question_in_the_name_of_another_is_refused(fleet):
    """Device 3 asks as device 0, over a connection of its own; and without any signature."""
    from flwr_dmml.transport.direct.security import Seal

    where, thief = address(), fleet.device("device-3")
    with DirectLink("run", 1, listen=where, tls=fleet.device("device-1")) as other:
        other.publish(letter(1, 1))
        settings = {"mode": "client", "connect__endpoints": [f"tls/{where}"]}
        with zenoh.open(config(**settings, transport__link__tls=tls_settings(thief))) as session:
            for question in (Question(1, 0, 5.0, 10_000), Question(1, 0)):
                selector = question.at("dmml/run/1")
                for seal in (b"", Seal(thief, 3).sign(selector.encode())):
                    replies = list(session.get(selector, timeout=5, attachment=seal))
                    assert all(not reply.ok for reply in replies)
            asked = Question(1, 3, 5.0, 10_000).at("dmml/run/1")
            seal = Seal(thief, 3).sign(asked.encode())
            (reply,) = session.get(asked, timeout=5, attachment=seal)
            assert reply.ok
        assert other.linger({0}, 1, SHORT_S) == {0}  # nobody has said that 0 has it


# Where nobody waits


def heard(link, peers):
    """Return the rounds of the letters that come next from these, each at least once."""
    found, until = {}, monotonic() + LONG_S
    while found.keys() != peers and monotonic() < until:
        letters, refused = link.arrived()
        assert not refused
        found |= {p: one.server_round for p, one in letters.items()}
        sleep(0.01)
    return found


def test_only_the_newest_letter_is_fetched_and_each_once():
    where = address()
    with DirectLink("run", 1, listen=where, newest=True) as one:
        for server_round in (1, 2, 3):
            one.publish(letter(1, server_round))
        with DirectLink("run", 0, newest=True, listen=address()) as other:
            assert other.listen({1: where, 2: ""}, {}).keys() == {2}
            assert heard(other, {1}) == {1: 3}
            one.publish(letter(1, 7))
            assert heard(other, {1}) == {1: 7}
            assert other.arrived() == ({}, {})
            assert one.bytes_sent == other.bytes_received
        with DirectLink("run", 2, newest=True, listen=address()) as third:
            third.listen({1: where}, {1: 7})
            one.publish(letter(1, 8))
            assert heard(third, {1}) == {1: 8}
            got, missing = third.collect({1: where}, 1, LONG_S)
            assert got[1].server_round == 8 and not missing


def test_a_letter_is_for_its_readers():
    where = address()
    with DirectLink("run", 1, listen=where, newest=True) as one:
        one.publish(letter(1, 1), readers=[2])
        with DirectLink("run", 0, newest=True, listen=address()) as other:
            _, missing = other.collect({1: where}, 1, SHORT_S)
            assert "no letter within" in missing[1]
            with DirectLink("run", 2, newest=True, listen=address()) as reader:
                assert reader.collect({1: where}, 1, LONG_S)[0][1].server_round == 1
            other.listen({1: where}, {})
            one.publish(letter(1, 2), readers=[0])
            assert heard(other, {1}) == {1: 2}


def test_a_neighbour_that_comes_back_is_heard_again():
    where = address()
    with DirectLink("run", 0, newest=True, listen=address()) as asker:
        asker.listen({1: where}, {})
        for server_round in (1, 2):
            with DirectLink("run", 1, listen=where, newest=True) as one:
                one.publish(letter(1, server_round))
                assert heard(asker, {1}) == {1: server_round}


def test_what_is_no_letter_is_named_and_the_next_one_taken():
    where = address()
    bad = write_letter(letter(1, 3, run="another"))
    with DirectLink("run", 0, newest=True, listen=address()) as asker:
        with rogue("dmml/run/1/*", bad, listen__endpoints=[f"tcp/{where}"]):
            asker.listen({1: where}, {})
            until = monotonic() + LONG_S
            refused = {}
            while not refused and monotonic() < until:
                letters, refused = asker.arrived()
                assert not letters
                sleep(0.01)
            assert "another" in refused[1]
        with DirectLink("run", 1, listen=where, newest=True) as one:
            one.publish(letter(1, 4))
            asker.arrived()
            found = {}
            while not found and monotonic() < until:
                found, _ = asker.arrived()
                sleep(0.01)
            assert found[1].server_round == 4
