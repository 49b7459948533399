"""A small LAN on this machine: each member is a network namespace with an address of its own.

Every member has a TUN device; one thread reads the IP packets of all of them and hands each on to
the member with its destination address: late, at a bandwidth, or not at all, as the link's shape
says. Linux only, as root, with iproute2's ``ip``; nothing of it is seen outside the namespaces.
"""

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import math
import os
import random
import secrets
import selectors
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Thread
from time import monotonic
from types import TracebackType
from typing import Self

TUN = "/dev/net/tun"
TUNSETIFF, IFF_TUN, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000
SUBNET = "10.77.0"
MOST = 250
MAX_PACKET = 1 << 16
QUEUE = 10_000
BURST = 64


@dataclass(frozen=True)
class Shape:
    """What a link does to packets, in one direction.

    Attributes
    ----------
    delay_s : float
        Seconds that each is on its way, besides those that it takes at the bandwidth.
    loss : float
        Share that is lost, in [0, 1].
    bytes_per_s : float
        Bandwidth, over 0.
    queue_s : float
        A packet that would have to wait longer before it is sent is dropped, as a router does.
    """

    delay_s: float = 0.0
    loss: float = 0.0
    bytes_per_s: float = math.inf
    queue_s: float = 1.0

    def __post_init__(self) -> None:
        if not (self.delay_s >= 0 and 0 <= self.loss <= 1):
            raise ValueError(f"{self}: a delay is at least 0, a loss from 0 to 1")
        if not (self.bytes_per_s > 0 and self.queue_s >= 0):
            raise ValueError(f"{self}: a bandwidth is over 0, a queue at least 0")


@dataclass
class Link:
    """A link in one direction, and what became of its packets.

    Attributes
    ----------
    shape : Shape
        As it is now.
    up : bool
        Whether anything passes.
    sent : int
        Packets that the sender has handed over.
    packets, bytes : int
        That arrived; bytes with the headers of IP and TCP or UDP.
    lost, dropped, cut : int
        Packets that did not: by the share of loss, in the queue, while the link was cut.
    """

    shape: Shape
    random: random.Random
    up: bool = True
    busy_until: float = 0.0
    sent: int = 0
    packets: int = 0
    bytes: int = 0
    lost: int = 0
    dropped: int = 0
    cut: int = 0


class Lan:
    """Members in namespaces of their own, a context manager; all links begin with one shape.

    Parameters
    ----------
    names : sequence of str
        The members, at most 250.
    delay_s, loss, bytes_per_s, queue_s : float
        See :class:`Shape`; in each direction.
    mtu : int
        Most bytes of a packet, from 576 to 65535. Large ones are faster; loss is by the packet.
    seed : int
        Of the loss: the nth packet of a link is lost or not, whenever it comes.

    Raises
    ------
    OSError, subprocess.CalledProcessError
        If it cannot be here, see :func:`why_not`; nothing is left behind.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        delay_s: float = 0.0,
        loss: float = 0.0,
        bytes_per_s: float = math.inf,
        queue_s: float = 1.0,
        mtu: int = 1500,
        seed: int = 0,
    ) -> None:
        if not 0 < len(set(names)) == len(names) <= MOST or not 576 <= mtu < MAX_PACKET:
            raise ValueError(f"up to {MOST} members, each once; an MTU from 576 to 65535")
        shape = Shape(delay_s, loss, bytes_per_s, queue_s)
        self.names, self._mtu = list(names), mtu
        unique = f"lan-{os.getpid()}-{secrets.token_hex(3)}"
        self._spaces = {name: f"{unique}-{k}" for k, name in enumerate(names)}
        self._links = {
            (a, b): Link(shape, random.Random(f"{seed} {a} {b}"))
            for a, b in itertools.permutations(names, 2)
        }
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            tuns = {name: self._member(name, stack) for name in self.names}
            hosts = {name: socket.inet_aton(self.address(name)) for name in self.names}
            ways = {
                tuns[a]: {hosts[b]: (tuns[b], self._links[a, b]) for b in self.names if b != a}
                for a in self.names
            }
            stack.enter_context(_Switch(ways))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def address(self, name: str) -> str:
        """Return a member's IP address."""
        return f"{SUBNET}.{self.names.index(name) + 1}"

    def command(self, name: str, argv: Sequence[str]) -> list[str]:
        """Return what runs a program in a member's namespace, in the same process."""
        return ["ip", "netns", "exec", self._spaces[name], *argv]

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Give this thread a member's network: sockets, threads and programs that it begins."""
        with open("/proc/thread-self/ns/net") as before:
            with open(f"/run/netns/{self._spaces[name]}") as space:
                _set_network(space.fileno())
            try:
                yield
            finally:
                _set_network(before.fileno())

    def link(self, a: str, b: str) -> Link:
        """Return the link from one member to another, with its counters."""
        return self._links[a, b]

    def bytes(self, a: str, b: str) -> int:
        """Return the bytes that have arrived at ``b`` from ``a``, with all headers."""
        return self._links[a, b].bytes

    def shape(self, a: str, b: str, shape: Shape) -> None:
        """Change what the links between two members do, in both directions."""
        self._links[a, b].shape = self._links[b, a].shape = shape

    def cut(self, a: str, b: str) -> None:
        """Let nothing pass between two members any more, nor what is on its way."""
        self._links[a, b].up = self._links[b, a].up = False

    def mend(self, a: str, b: str) -> None:
        """Let packets pass again."""
        self._links[a, b].up = self._links[b, a].up = True

    def _member(self, name: str, stack: contextlib.ExitStack) -> int:
        """Make a member's namespace, with loopback and its TUN; return the TUN's descriptor."""
        space, address = self._spaces[name], self.address(name)
        _ip("netns", "add", space)
        stack.callback(_ip, "netns", "delete", space)
        stack.callback(_end_all, space)
        tun = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
        stack.callback(os.close, tun)
        made = fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"lan%d", IFF_TUN | IFF_NO_PI))
        device = made[:16].rstrip(b"\0").decode()
        _ip("link", "set", device, "netns", space)
        inside = ("-n", space)
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "address", "add", f"{address}/24", "dev", device)
        _ip(*inside, "link", "set", device, "mtu", str(self._mtu), "txqueuelen", str(QUEUE), "up")
        return tun


class _Switch:
    """The thread that hands packets on, a context manager; its failure is raised on leaving.

    Parameters
    ----------
    ways : dict
        By the descriptor that is read from and the destination address: the descriptor that is
        written to, and the link.
    """

    def __init__(self, ways: dict[int, dict[bytes, tuple[int, Link]]]) -> None:
        self._ways = ways
        self._heap: list[tuple[float, int, int, Link, bytes]] = []
        self._count = itertools.count()
        self._stop, self._stopped = os.pipe()
        self._thread = Thread(target=self._run, name="lan", daemon=True)
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        if self._error:
            raise self._error

    def _run(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                for descriptor in (self._stop, *self._ways):
                    selector.register(descriptor, selectors.EVENT_READ)
                while True:
                    left = self._heap[0][0] - monotonic() if self._heap else None
                    for key, _ in selector.select(left):
                        if key.fd == self._stop:
                            return
                        self._take(key.fd)
                    self._deliver()
        except OSError as error:
            self._error = error

    def _take(self, descriptor: int) -> None:
        """Read what a member sends, and see when it will arrive, if it does."""
        ways = self._ways[descriptor]
        for _ in range(BURST):
            try:
                packet = os.read(descriptor, MAX_PACKET)
            except BlockingIOError:
                return
            if packet[0] >> 4 != 4 or packet[16:20] not in ways:
                continue
            to, link = ways[packet[16:20]]
            link.sent += 1
            shape, now = link.shape, monotonic()
            lost = link.random.random() < shape.loss
            begin = max(now, link.busy_until)
            if not link.up:
                link.cut += 1
            elif begin - now > shape.queue_s:
                link.dropped += 1
            else:
                link.busy_until = begin + len(packet) / shape.bytes_per_s
                if lost:
                    link.lost += 1
                else:
                    due = link.busy_until + shape.delay_s
                    heapq.heappush(self._heap, (due, next(self._count), to, link, packet))

    def _deliver(self) -> None:
        now = monotonic()
        while self._heap and self._heap[0][0] <= now:
            _, _, to, link, packet = heapq.heappop(self._heap)
            if link.up:
                link.packets += 1
                link.bytes += os.write(to, packet)
            else:
                link.cut += 1


def why_not() -> str:
    """Return why there can be no such LAN here, empty if there can."""
    if not os.path.exists(TUN):
        return f"a LAN of namespaces needs Linux and {TUN}"
    if os.geteuid() != 0 or not shutil.which("ip"):
        return "a LAN of namespaces needs root, and iproute2's ip"
    try:
        with Lan(["one"]):
            return ""
    except subprocess.CalledProcessError as error:
        return f"a LAN of namespaces: {error.stderr.strip()}"
    except OSError as error:
        return f"a LAN of namespaces: {error}"


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def _end_all(space: str) -> None:
    for number in _ip("netns", "pids", space).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(number), signal.SIGKILL)


def _set_network(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
