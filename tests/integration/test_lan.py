"""The LAN of namespaces itself: who reaches whom, and what its links do to packets."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import pytest
from lan import Lan, Link, Shape, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
PORT = 7000
LONG_S = 60.0  # a bound that nothing reaches unless it hangs
HEADERS = 28  # bytes, of IP and UDP
NAMESPACES = Path("/run/netns")


@contextmanager
def udp(lan: Lan, *names: str) -> Iterator[list[socket.socket]]:
    """Open a socket for each of these members, at PORT of its address."""
    opened = []
    try:
        for name in names:
            with lan.inside(name):
                opened.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            opened[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            opened[-1].bind((lan.address(name), PORT))
            opened[-1].settimeout(LONG_S)
        yield opened
    finally:
        for one in opened:
            one.close()


def send(lan: Lan, sender: socket.socket, to: str, count: int, size: int = 100) -> None:
    """Send datagrams that begin with their number."""
    for number in range(count):
        sender.sendto(number.to_bytes(4) + bytes(size - 4), (lan.address(to), PORT))


def numbers(receiver: socket.socket, count: int) -> list[int]:
    return [int.from_bytes(receiver.recv(1 << 16)[:4]) for _ in range(count)]


def wait_until(true: Callable[[], bool]) -> None:
    until = monotonic() + LONG_S
    while not true():
        assert monotonic() < until
        sleep(0.01)


def settled(link: Link, count: int) -> bool:
    """Return whether so many packets have arrived or will not."""
    return link.packets + link.lost + link.dropped + link.cut >= count


def test_each_member_reaches_the_others_at_their_own_addresses():
    with Lan(["a", "b", "c"]) as lan, udp(lan, "a", "b", "c") as (a, b, c):
        assert len({lan.address(name) for name in lan.names}) == 3
        send(lan, a, "b", 3)
        assert numbers(b, 3) == [0, 1, 2]
        c.sendto(b"hello", (lan.address("b"), PORT))
        assert b.recvfrom(100) == (b"hello", (lan.address("c"), PORT))
        wait_until(lambda: lan.bytes("a", "b") == 3 * (100 + HEADERS))
        wait_until(lambda: lan.bytes("c", "b") == 5 + HEADERS)  # counted after it was passed on
        assert lan.bytes("b", "a") == lan.bytes("a", "c") == 0


def test_a_program_in_a_namespace_sees_only_it_and_has_loopback():
    text = "import socket; s = socket.create_server(('127.0.0.1', {})); print('listens')"
    with socket.create_server(("127.0.0.1", 0)) as outside, Lan(["a", "b"]) as lan:
        program = [sys.executable, "-c", text.format(outside.getsockname()[1])]
        for name in lan.names:
            done = subprocess.run(lan.command(name, program), capture_output=True, text=True)
            assert done.stdout == "listens\n", done.stderr


def test_megabytes_over_tcp_arrive_whole_in_spite_of_loss():
    """Large packets: the switch is no bottleneck, checksums are right."""
    data = bytes(range(256)) * 8192
    with Lan(["a", "b"], delay_s=0.002, loss=0.02, mtu=16000, seed=3) as lan:
        with lan.inside("b"):
            server = socket.create_server((lan.address("b"), PORT))
        with lan.inside("a"):
            client = socket.create_connection((lan.address("b"), PORT), LONG_S)
        with server, client, server.accept()[0] as end:
            end.settimeout(LONG_S)
            client.settimeout(LONG_S)
            got = bytearray()
            for position in range(0, len(data), 1 << 16):
                client.sendall(data[position : position + (1 << 16)])
                while len(got) < position + (1 << 16):
                    got += end.recv(1 << 20)
        assert bytes(got) == data
        assert lan.bytes("a", "b") > len(data) and lan.link("a", "b").lost > 0


def arrived(seed: int) -> list[int]:
    with Lan(["a", "b"], loss=0.3, seed=seed) as lan, udp(lan, "a", "b") as (a, b):
        link = lan.link("a", "b")
        send(lan, a, "b", 1000)
        wait_until(lambda: settled(link, 1000))
        assert link.packets + link.lost == 1000 and link.cut == link.dropped == 0
        return numbers(b, link.packets)


def test_loss_is_the_share_that_was_said_and_the_same_for_a_seed():
    """The standard deviation is sqrt(1000 * 0.3 * 0.7) = 14.5 packets."""
    first = arrived(1)
    assert 640 < len(first) < 760
    assert first == sorted(set(first))
    assert arrived(1) == first != arrived(2)


def test_nothing_arrives_before_its_delay():
    with Lan(["a", "b"], delay_s=0.2) as lan, udp(lan, "a", "b") as (a, b):
        begin = monotonic()
        send(lan, a, "b", 1)
        assert numbers(b, 1) == [0] and monotonic() - begin >= 0.2
        send(lan, b, "a", 1)
        assert numbers(a, 1) == [0] and monotonic() - begin >= 0.4
        lan.shape("a", "b", Shape(delay_s=0.3))
        begin = monotonic()
        send(lan, a, "b", 1)
        assert numbers(b, 1) == [0] and monotonic() - begin >= 0.3


def test_a_bandwidth_takes_its_time_and_a_full_queue_drops():
    """40 datagrams of 1028 bytes at 102 800 bytes/s take 0.4 s; none waits longer than 0.39 s."""
    with Lan(["a", "b"], bytes_per_s=102_800) as lan, udp(lan, "a", "b") as (a, b):
        begin = monotonic()
        send(lan, a, "b", 40, 1000)
        assert numbers(b, 40) == list(range(40))
        assert monotonic() - begin >= 0.4
        lan.shape("a", "b", Shape(bytes_per_s=1, queue_s=1.0))
        send(lan, a, "b", 5, 1000)
        wait_until(lambda: settled(lan.link("a", "b"), 44))
        assert lan.link("a", "b").dropped == 4 and lan.link("a", "b").packets == 40


def test_a_cut_link_passes_nothing_until_it_is_mended():
    with Lan(["a", "b", "c"]) as lan, udp(lan, "a", "b", "c") as (a, b, c):
        lan.shape("a", "b", Shape(delay_s=2.0))
        there, back = lan.link("a", "b"), lan.link("b", "a")
        send(lan, a, "b", 2)
        wait_until(lambda: there.sent == 2)
        lan.cut("a", "b")
        lan.shape("a", "b", Shape())
        send(lan, a, "b", 3)
        send(lan, b, "a", 1)
        send(lan, a, "c", 1)
        send(lan, c, "b", 2)
        assert numbers(c, 1) == [0] and numbers(b, 2) == [0, 1]
        wait_until(lambda: settled(there, 5) and settled(back, 1))
        assert there.cut == 5 and back.cut == 1
        lan.mend("a", "b")
        send(lan, a, "b", 1)
        assert numbers(b, 1) == [0] and there.packets == 1


def ours() -> list[str]:
    return [path.name for path in NAMESPACES.glob(f"lan-{os.getpid()}-*")]


def test_two_lans_at_once_and_nothing_is_left_of_them_with_programs_in_them():
    with Lan(["a", "b"]) as one, Lan(["a", "b"]) as other:
        sleeping = subprocess.Popen(one.command("a", ["sleep", "1000"]))
        with udp(one, "a", "b") as (a, b), udp(other, "b") as (stranger,):
            send(one, a, "b", 1)
            assert numbers(b, 1) == [0]
            stranger.setblocking(False)
            with pytest.raises(BlockingIOError):
                stranger.recv(1)
        assert len(ours()) == 4
    assert sleeping.wait(LONG_S) == -signal.SIGKILL
    assert not ours()


def test_nothing_is_left_after_a_failure(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ZeroDivisionError), Lan(["a", "b"]):
        assert len(ours()) == 2
        print(1 / 0)
    assert not ours()
    monkeypatch.setattr("lan.TUN", os.devnull)  # where the second step of a member fails
    with pytest.raises(OSError), Lan(["a", "b"]):
        pass
    assert not ours() and "a LAN of namespaces: " in why_not()


@pytest.mark.parametrize(
    "shape", [{"loss": 1.5}, {"delay_s": -1}, {"bytes_per_s": 0}, {"queue_s": -1}, {"mtu": 70000}]
)
def test_a_link_that_cannot_be(shape: dict[str, float]):
    with pytest.raises(ValueError, match=r"a delay is|a bandwidth is|an MTU from"):
        Lan(["a", "b"], **shape)
