"""Asking side of a device: fetches a neighbour's letter of a round and checks it."""

import logging
from collections import Counter
from threading import Event, Lock
from time import monotonic

import zenoh

from ...payload.limits import Limits
from ..letter import Letter, LetterError, letter_bytes, read_letter
from .answers import Question, read_refusal
from .network import Network, parse_address
from .routes import LinkLost, Route, Unreachable
from .security import Seal, why_refused
from .tls import Tls

AGAIN_S, AGAIN_MOST_S = 0.05, 1.0
ALERT_S = 0.5

log = logging.getLogger(__name__)


class Asker:
    """Fetches letters for one device.

    Parameters
    ----------
    network : Network
        The device's.
    run : str
        Id of its run.
    limits : Limits, optional
        What a letter may hold; by default as in :func:`~..letter.read_letter`.
    tls : Tls, optional
        The device's files.
    seal : Seal, optional
        Made of them: with it, questions are signed, and only signed letters are taken.
    newest : bool (default: False)
        Whether a letter of a later round than was asked for is taken, too.

    Attributes
    ----------
    received : Counter of int
        Bytes of all letters that came, refused ones too, by the device that was asked.
    letters_refused : int
        Letters that came and were not what was asked for.
    """

    def __init__(
        self,
        network: Network,
        run: str,
        limits: Limits | None,
        tls: Tls | None,
        seal: Seal | None,
        *,
        newest: bool = False,
    ) -> None:
        self._network, self._run, self._newest = network, run, newest
        self._limits, self._limit = limits, letter_bytes(limits)
        self._tls, self._seal = tls, seal
        self._lock, self._closed = Lock(), Event()
        self.received, self.letters_refused = Counter[int](), 0

    def fetch(
        self, route: Route, peer: int, server_round: int, deadline: float, spare_s: float = 0.0
    ) -> Letter:
        """Ask a neighbour again and again until it has answered or time is up.

        One that is there then, and has our question, is given ``spare_s`` seconds more.

        Raises
        ------
        LetterError
            If it sent something else, or a certificate was refused.
        TimeoutError
            If no letter came; the message says what was the matter, if that is known.
        """
        why, pause, looked = "", AGAIN_S, False
        while (left := deadline - monotonic()) > 0 and not self._closed.is_set():
            try:
                letter = self._ask(route, peer, server_round, left + spare_s)
                if letter:
                    return letter
                if not looked:
                    self._look(route, peer, 0.0, left)
                why, looked = "", True
            except LinkLost as error:
                why, pause = str(error), min(2 * pause, AGAIN_MOST_S)
            except Unreachable as error:
                why = str(error)
                self._look(route, peer, ALERT_S, left)
                if self._newest:  # nobody waits for it, so that it may be asked less often
                    pause = min(2 * pause, AGAIN_MOST_S)
            self._closed.wait(min(pause, left))
        raise TimeoutError(why or f"it sent nothing, or more than {self._limit} bytes")

    def close(self) -> None:
        """Ask nobody any more."""
        self._closed.set()

    def _ask(self, route: Route, peer: int, server_round: int, left: float) -> Letter | None:
        """Ask once; None if nobody answered, a LetterError if only what is no such letter came."""
        letter, wrong = None, ""
        key, me = self._network.key(peer), self._network.partition
        selector = Question(server_round, me, left, self._limit).at(key)
        for reply in route.ask(selector, self._signed(selector), left):
            try:
                if reply.ok:
                    letter = self._read(reply.ok, peer, server_round)
                    break
                said = reply.err.payload.to_bytes() if reply.err else b""
                wrong = wrong or read_refusal(said)
            except LetterError as error:
                wrong = str(error)
        if letter or wrong:
            arrived = Question(server_round, me).at(key)
            route.tell(arrived, self._signed(arrived))
        if wrong and not letter:
            raise LetterError(wrong)
        return letter

    def _signed(self, selector: str) -> bytes:
        return self._seal.sign(selector.encode()) if self._seal else b""

    def _read(self, sample: zenoh.Sample, peer: int, server_round: int) -> Letter:
        size = len(sample.payload)
        with self._lock:
            self.received[peer] += size
        try:
            if size > self._limit:
                raise LetterError(f"{size} bytes, allowed are {self._limit}")
            data = sample.payload.to_bytes()
            if self._seal:
                seal = sample.attachment.to_bytes() if sample.attachment else b""
                self._seal.check(data, seal, peer)
            letter = read_letter(data, self._limits)
            self._check(letter, peer, server_round)
        except LetterError as error:
            log.debug("letter of device %d refused: %s", peer, error)
            with self._lock:
                self.letters_refused += 1
            raise
        return letter

    def _check(self, letter: Letter, peer: int, server_round: int) -> None:
        if letter.run != self._run:
            raise LetterError(f"letter of run {letter.run!r} instead of {self._run!r}")
        if letter.sender != peer:
            raise LetterError(f"letter of device {letter.sender} under the name of device {peer}")
        later = self._newest and letter.server_round > server_round
        if letter.server_round != server_round and not later:
            raise LetterError(
                f"sent round {letter.server_round} instead of {server_round} (replayed?)"
            )

    def _look(self, route: Route, peer: int, alert_s: float, left: float) -> None:
        """Raise a LetterError if a certificate is why there is no link or no answer."""
        if not self._tls or not route.where:
            return
        device = None if route.shared else peer
        why = why_refused(*parse_address(route.where), self._tls, device, alert_s, left)
        if why:
            raise LetterError(why)
