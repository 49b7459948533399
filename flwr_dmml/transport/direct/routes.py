"""A Zenoh session that is kept open, and queries over it that end when its link is lost."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Lock
from time import monotonic

import zenoh

OPEN_S = 5.0  # for a connection and its handshake
LOOK_S = 0.25  # how often it is looked whether a link is still there
MAX_WAITING = 4


class Unreachable(ConnectionError):
    """Nobody answers at an address; the message says where."""


class LinkLost(Unreachable):
    """A link broke while an answer was awaited."""


class Route:
    """A Zenoh session that is opened when it is needed, and anew when its link was lost.

    Parameters
    ----------
    settings : mapping of str to object
        Of Zenoh, by path.
    where : str
        The address that it connects to, empty if it connects to none of its own.
    opened : callable, optional
        Called with every session that was opened; what it returns is kept as long.

    Attributes
    ----------
    where : str
        The address.
    shared : bool
        Whether others than one neighbour answer over it.
    """

    def __init__(
        self,
        settings: Mapping[str, object],
        where: str = "",
        opened: Callable[[zenoh.Session], object] = lambda session: None,
        shared: bool = True,
    ) -> None:
        self.where, self.shared = where, shared
        self._settings, self._opened = settings, opened
        self._session: zenoh.Session | None = None
        self._declared: object = None  # lives as long as its session
        self._lock, self._closed = Lock(), False

    def session(self, timeout_s: float = OPEN_S) -> zenoh.Session:
        """Return a session with a link, or one that waits for links if it connects to no address.

        Raises
        ------
        Unreachable
            If there is none now.
        """
        if not self._lock.acquire(timeout=timeout_s):
            raise Unreachable(f"{self.where} does not answer")
        try:
            if self._session and self.where and not links(self._session):
                self._session.close()
                self._session = None
            if not self._session and not self._closed:
                self._session = self._open()
            if self._closed or not self._session:
                self.close()
                raise Unreachable("this device has left")
            return self._session
        finally:
            self._lock.release()

    def _open(self) -> zenoh.Session:
        config = zenoh.Config()
        for path, value in self._settings.items():
            config.insert_json5(path, json.dumps(value))
        try:
            session = zenoh.open(config)
        except zenoh.ZError as error:
            raise Unreachable(f"nobody answers at {self.where}") from error
        self._declared = self._opened(session)
        return session

    def ask(self, selector: str, seal: bytes, timeout_s: float) -> Iterator[zenoh.Reply]:
        """Yield the replies to a query until all have come, the link is lost, or time is up.

        ``seal`` is its signature, empty for none.

        Raises
        ------
        Unreachable
            If there is no link.
        LinkLost
            If it was lost before all had come.
        """
        deadline = monotonic() + timeout_s
        session = self.session(timeout_s)
        linked = links(session)
        if self.where and not linked:
            raise LinkLost(f"the link to {self.where} broke")
        replies: SimpleQueue[zenoh.Reply | None] = SimpleQueue()

        def take(reply: zenoh.Reply) -> None:  # more than that nobody sends in good faith
            if replies.qsize() < MAX_WAITING:
                replies.put(reply)

        send(session, selector, seal, timeout_s, take, lambda: replies.put(None))
        while (left := deadline - monotonic()) > 0:
            try:
                reply = replies.get(timeout=min(left, LOOK_S))
            except Empty:
                if not linked <= links(session):
                    break
                continue
            if reply is None:
                break
            yield reply
        if not linked <= links(session):
            raise LinkLost(f"the link to {self.where or 'a neighbour'} broke")

    def tell(self, selector: str, seal: bytes) -> None:
        """Send a query whose replies are of no interest, if there is a link."""
        session = self._session
        if session:
            with suppress(LinkLost):
                send(session, selector, seal, LOOK_S, lambda reply: None, lambda: None)

    def close(self) -> None:
        """Close the session; none is opened any more."""
        self._closed = True
        session, self._session = self._session, None
        if session:
            session.close()


def send(
    session: zenoh.Session,
    selector: str,
    seal: bytes,
    timeout_s: float,
    take: Callable[[zenoh.Reply], object],
    done: Callable[[], object],
) -> None:
    """Send a query to everybody whom it concerns.

    Raises
    ------
    LinkLost
        If the session was closed.
    """
    try:
        session.get(
            selector,
            zenoh.handlers.Callback(take, done, indirect=False),
            target=zenoh.QueryTarget.ALL,
            consolidation=zenoh.ConsolidationMode.NONE,
            congestion_control=zenoh.CongestionControl.BLOCK,
            timeout=timeout_s,
            attachment=seal,
        )
    except zenoh.ZError as error:
        raise LinkLost("the session was closed") from error


def links(session: zenoh.Session) -> frozenset[str]:
    """Return the ids of the nodes to which a session is connected."""
    if session.is_closed():
        return frozenset()
    return frozenset(map(str, [*session.info.routers_zid(), *session.info.peers_zid()]))
