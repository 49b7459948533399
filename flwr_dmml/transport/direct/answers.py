"""Answering side of a device: its letters, and queries for letters that are not there yet."""

import logging
import re
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition
from time import monotonic

import zenoh

from ...base.text import one_line
from ..letter import LetterError
from .security import Seal

KEPT_ROUNDS = 3
MAX_HELD = 1024
MAX_HELD_S = 3600.0
MAX_THREADS = 32
MAX_WORDS = 200
REFUSAL = b"dmml:"
"""Prefix of an error that was sent by this side; others are Zenoh's own."""
QUESTION = re.compile(
    r"[^?]*/([0-9]{1,9})\?by=([0-9]{1,5})(?:;ms=([0-9]{1,12});limit=([0-9]{1,12}))?"
)

log = logging.getLogger(__name__)


def read_refusal(said: bytes) -> str:
    """Return the words of a device that refuses a letter, empty if none has written them."""
    if not said.startswith(REFUSAL):
        return ""
    return one_line(said[len(REFUSAL) :][:MAX_WORDS].decode(errors="replace"), MAX_WORDS)


@dataclass(frozen=True)
class Question:
    """What a device asks its neighbour.

    Attributes
    ----------
    server_round : int
        Whose letter it asks for.
    by : int
        Its partition id.
    wait_s : float
        For how long it waits; 0 of one that asks for nothing, but says that the letter has arrived.
    limit : int
        Most bytes that it takes.
    """

    server_round: int
    by: int
    wait_s: float = 0.0
    limit: int = 0

    def at(self, key: str) -> str:
        """Return the question as a selector of Zenoh's, about the letters under a key."""
        wants = f";ms={max(1, int(self.wait_s * 1000))};limit={self.limit}" if self.wait_s else ""
        return f"{key}/{self.server_round}?by={self.by}{wants}"

    @classmethod
    def read(cls, selector: str) -> "Question":
        """Read what :meth:`at` wrote.

        Raises
        ------
        LetterError
            It is no question; a number is negative, or too large to be one.
        """
        if not (found := QUESTION.fullmatch(selector)):
            raise LetterError(f"no question: {one_line(selector, MAX_WORDS)}")
        server_round, by, ms, limit = (int(number or 0) for number in found.groups())
        return cls(server_round, by, min(ms / 1000, MAX_HELD_S), limit)


@dataclass(frozen=True, eq=False)
class _Held:
    query: zenoh.Query
    question: Question
    until: float


class Answers:
    """Letters of the last rounds, and who waits for which.

    Parameters
    ----------
    key : str
        The key under which this device's letters stand.
    seal : Seal, optional
        With it, only questions that a device of the fleet has signed are answered.
    newest : bool (default: False)
        Whether a question for a letter is one for the newest, of that round or a later one: only
        that one is kept.
    """

    def __init__(self, key: str, seal: Seal | None = None, *, newest: bool = False) -> None:
        self._key, self._seal, self._newest = key, seal, newest
        self.sent = Counter[int]()
        self._readers: Collection[int] | None = None
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

    def publish(
        self,
        server_round: int,
        data: bytes,
        seal: bytes,
        readers: Collection[int] | None = None,
    ) -> None:
        """Keep a letter with its signature, and send it to those that wait for it.

        ``readers`` are the only ones that get it, and any letter before it; None for all who ask.
        """
        with self._changed:
            self._letters[server_round], self._readers = (data, seal), readers
            for old in sorted(self._letters)[: -(1 if self._newest else KEPT_ROUNDS)]:
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
        selector = f"{query.key_expr}?{query.parameters}"
        try:
            question = Question.read(selector)
        except LetterError as error:
            log.debug("%s", error)
            query.drop()
            return
        try:
            if self._seal:
                seal = query.attachment.to_bytes() if query.attachment else b""
                self._seal.check(selector.encode(), seal, question.by)
        except LetterError as error:
            log.debug("a question of device %d is refused: %s", question.by, error)
            with self._changed:
                if not self._closed:
                    self._threads.submit(self._refuse, query, f"refuses the question: {error}")
                    return
            query.drop()
            return
        with self._changed:
            if question.wait_s and not self._closed:
                self._note(question.by, question.server_round - 1)
                self._settle(_Held(query, question, monotonic() + question.wait_s))
                return
            self._note(question.by, question.server_round)
        query.drop()

    def _note(self, by: int, server_round: int) -> None:
        if self._fetched.get(by, -1) < server_round:
            self._fetched[by] = server_round
            self._changed.notify_all()

    def _settle(self, one: _Held) -> None:
        """Answer in a thread what can be answered now, hold the rest; the lock is held."""
        last, wanted = max(self._letters, default=-1), one.question.server_round
        if self._newest and wanted < last:
            wanted = last
        if self._readers is not None and one.question.by not in self._readers:
            self._held.append(one)
        elif wanted in self._letters:
            self._threads.submit(self._send, one.query, one.question, *self._letters[wanted])
        elif wanted < last:
            why = f"has no letter of round {wanted}, the last is {last}"
            self._threads.submit(self._refuse, one.query, why)
        else:
            self._held.append(one)
        now = monotonic()
        for old in [held for held in self._held if held.until < now] + self._held[MAX_HELD:]:
            self._held.remove(old)
            self._threads.submit(old.query.drop)

    def _send(self, query: zenoh.Query, question: Question, data: bytes, seal: bytes) -> None:
        if len(data) > question.limit:
            self._refuse(query, f"{len(data)} bytes, allowed are {question.limit}")
            return
        with self._changed:  # before it goes out: who has it may look
            self.sent[question.by] += len(data)
        try:
            with query:
                key = f"{self._key}/{question.server_round}"
                query.reply(key, data, attachment=seal, express=True)
        except zenoh.ZError as error:
            log.debug("a letter could not be sent: %s", error)
            with self._changed:
                self.sent[question.by] -= len(data)

    def _refuse(self, query: zenoh.Query, why: str) -> None:
        try:
            with query:
                query.reply_err(REFUSAL + why.encode())
        except zenoh.ZError as error:
            log.debug("a refusal could not be sent: %s", error)
