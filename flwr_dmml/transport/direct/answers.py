"""Answering side of a device: its letters, and queries for letters that are not there yet."""

import logging
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition
from time import monotonic

import zenoh

KEPT_ROUNDS = 3
MAX_HELD = 1024
MAX_HELD_S = 3600.0
MAX_THREADS = 32
MAX_WORDS = 200
REFUSAL = b"dmml:"
"""Prefix of an error that was sent by this side; others are Zenoh's own."""

log = logging.getLogger(__name__)


def refusal_in(reply: zenoh.Reply) -> str:
    """Return the words of a device that refuses a letter, empty if none has written them."""
    said = reply.err.payload.to_bytes() if reply.err else b""
    if not said.startswith(REFUSAL):
        return ""
    text = said[len(REFUSAL) :][:MAX_WORDS].decode(errors="replace")
    return "".join(c if c.isprintable() else "?" for c in text)


@dataclass(frozen=True, eq=False)
class _Held:
    query: zenoh.Query
    server_round: int
    limit: int
    until: float


class Answers:
    """Letters of the last rounds, and who waits for which.

    A query says in its parameters who asks (``by``), for how long (``ms``), and for at most how
    many bytes (``limit``); one that asks for no time says that the letter has arrived.

    Parameters
    ----------
    key : str
        The key under which this device's letters stand.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self.bytes_sent = 0
        self._letters: dict[int, tuple[bytes, bytes]] = {}
        self._held: list[_Held] = []
        self._fetched: dict[int, int] = {}
        self._changed = Condition()
        self._closed = False
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="peer-answers")

    def serve(self, session: zenoh.Session) -> object:
        """Answer the queries that come over a session."""
        # In a Python thread of Zenoh's it would keep a process from ending that was not closed.
        answer = zenoh.handlers.Callback(self._asked, None, indirect=False)
        return session.declare_queryable(f"{self._key}/*", answer)

    def publish(self, server_round: int, data: bytes, seal: bytes) -> None:
        """Keep a letter with its signature, and send it to those that wait for it."""
        with self._changed:
            self._letters[server_round] = data, seal
            for old in sorted(self._letters)[:-KEPT_ROUNDS]:
                del self._letters[old]
            held, self._held = self._held, []
            for one in held:
                self._settle(one)

    def linger(self, peers: Collection[int], server_round: int, timeout_s: float) -> set[int]:
        """Wait until these have fetched the letter of a round or a later one; return the others."""

        def missing() -> set[int]:
            return {peer for peer in peers if self._fetched.get(peer, -1) < server_round}

        with self._changed:
            self._changed.wait_for(lambda: self._closed or not missing(), timeout_s)
            return missing()

    def close(self) -> None:
        """Answer nobody any more."""
        with self._changed:
            self._closed = True
            held, self._held = self._held, []
            self._changed.notify_all()
        for one in held:
            one.query.drop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _asked(self, query: zenoh.Query) -> None:
        try:
            server_round = int(str(query.key_expr).rpartition("/")[2])
            by, ms, limit = (int(query.parameters.get(n, "0") or 0) for n in ("by", "ms", "limit"))
        except ValueError:
            log.debug("a query that is none: %s", query.selector)
            query.drop()
            return
        with self._changed:
            if ms and not self._closed:
                until = monotonic() + min(ms / 1000, MAX_HELD_S)
                self._note(by, server_round - 1)
                self._settle(_Held(query, server_round, limit, until))
                return
            self._note(by, server_round)
        query.drop()

    def _note(self, by: int, server_round: int) -> None:
        if self._fetched.get(by, -1) < server_round:
            self._fetched[by] = server_round
            self._changed.notify_all()

    def _settle(self, one: _Held) -> None:
        """Answer in a thread what can be answered now, hold the rest; the lock is held."""
        last = max(self._letters, default=-1)
        if one.server_round in self._letters:
            self._threads.submit(self._send, one, *self._letters[one.server_round])
        elif one.server_round < last:
            why = f"has no letter of round {one.server_round}, the last is {last}"
            self._threads.submit(self._refuse, one, why)
        else:
            self._held.append(one)
        now = monotonic()
        for old in [held for held in self._held if held.until < now] + self._held[MAX_HELD:]:
            self._held.remove(old)
            self._threads.submit(old.query.drop)

    def _send(self, one: _Held, data: bytes, seal: bytes) -> None:
        if len(data) > one.limit:
            self._refuse(one, f"{len(data)} bytes, allowed are {one.limit}")
            return
        with self._changed:  # before it goes out: who has it may look
            self.bytes_sent += len(data)
        try:
            with one.query as query:
                key = f"{self._key}/{one.server_round}"
                query.reply(key, data, attachment=seal, express=True)
        except zenoh.ZError as error:
            log.debug("a letter could not be sent: %s", error)
            with self._changed:
                self.bytes_sent -= len(data)

    def _refuse(self, one: _Held, why: str) -> None:
        try:
            with one.query as query:
                query.reply_err(REFUSAL + why.encode())
        except zenoh.ZError as error:
            log.debug("a refusal could not be sent: %s", error)
