"""Background fetching of letters: the newest of each neighbour, as it comes."""

from collections.abc import Callable, Mapping
from threading import Event, Lock, Thread
from time import monotonic

from ..letter import Letter, LetterError, guarded

ASK_S = 600.0
"""For how long a neighbour holds a question; then it is asked again."""
PAUSE_S = 1.0
"""After what is no letter; the next one may be."""
LEAST_S = 0.02
"""After a letter: a neighbour that writes without end takes no more of this device than that."""

Fetch = Callable[[int, int, float], Letter]
"""(neighbour, number, deadline) -> its newest letter, of this number at least."""


class Listener:
    """A thread for each neighbour that asks for a newer letter than the last, again and again.

    Parameters
    ----------
    fetch : callable
        Waits for a letter; raises LetterError and TimeoutError as :meth:`.Asker.fetch` does.
    known : mapping of int to int
        The numbers of the neighbours' letters that are known already, 0 for none.
    """

    def __init__(self, fetch: Fetch, known: Mapping[int, int]) -> None:
        self._fetch = fetch
        self._lock, self._closed = Lock(), Event()
        self._letters: dict[int, Letter] = {}
        self._refused: dict[int, str] = {}
        for peer, number in known.items():
            Thread(target=self._listen, args=(peer, number), daemon=True).start()

    def arrived(self) -> tuple[dict[int, Letter], dict[int, str]]:
        """Return the newest letters since the last call, and why others were refused."""
        with self._lock:
            letters, self._letters = self._letters, {}
            refused, self._refused = self._refused, {}
        return letters, refused

    def close(self) -> None:
        """Ask nobody any more."""
        self._closed.set()

    def _listen(self, peer: int, number: int) -> None:
        while not self._closed.is_set():
            wanted, deadline = number + 1, monotonic() + ASK_S
            try:
                letter = guarded(lambda: self._fetch(peer, wanted, deadline))  # noqa: B023
            except TimeoutError:
                continue
            except LetterError as error:
                with self._lock:
                    self._refused[peer] = str(error)
                self._closed.wait(PAUSE_S)
                continue
            number = letter.server_round
            with self._lock:
                self._letters[peer] = letter
            self._closed.wait(LEAST_S)
