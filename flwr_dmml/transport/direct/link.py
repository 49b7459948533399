"""Letters straight from device to device over Eclipse Zenoh, without a server in between.

A device keeps its letters of the last rounds; a neighbour asks for the one of a round and gets it
as soon as it is there. Nothing is sent that nobody asked for. Each neighbour is asked over a
session of its own, so that a slow, dead or malicious one costs only itself.
"""

import atexit
import logging
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from threading import Event, Lock, Thread
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ...base.libraries import require
from ...payload.limits import Limits
from ..letter import Letter, LetterError, guarded, letter_bytes, write_letter
from ..traffic import Traffic
from .listening import Listener
from .tls import Tls

if TYPE_CHECKING:
    from .routes import Route

LATE_S = 0.25
KEEP_S = 0.5
MAX_ROUTES = 64

log = logging.getLogger(__name__)


class DirectLink:
    """A device's link to its neighbours, a context manager.

    With ``tls``, both ends of every connection show a certificate of the fleet, and every letter
    and every question for one is signed with the key of its sender's: a router on the way cannot
    change or forge one, and a device whose certificate is revoked gets none.

    Parameters
    ----------
    run : str
        Id of the run, not empty: devices of other runs are not heard.
    partition : int
        Partition id of this device, at least 0.
    listen : str
        ``host:port`` where neighbours reach this device, ``:port`` for this machine only; empty for
        a device that only connects to others.
    tls : Tls, optional
        Without it, anybody who reaches the port can fetch letters and nothing proves who wrote one.
    router : str
        ``host:port`` of a Zenoh router, for devices that cannot be reached; empty for none.
    multicast : bool
        Whether to look for neighbours in the local network, for those without an address.
    limits : Limits, optional
        What a neighbour's letter may hold; a longer one is not even received. By default as in
        :func:`~..letter.read_letter`.
    newest : bool (default: False)
        Whether devices do not wait for one another: each keeps its newest letter only, and who asks
        for that of a round gets the newest one.

    Raises
    ------
    DirectError
        If a file of ``tls`` does not do, or it cannot listen there.
    LibraryError
        If Zenoh is missing or does not load.
    ValueError
        If an address is none.
    """

    def __init__(
        self,
        run: str,
        partition: int,
        *,
        listen: str = "",
        tls: Tls | None = None,
        router: str = "",
        multicast: bool = False,
        limits: Limits | None = None,
        newest: bool = False,
    ) -> None:
        require("zenoh", "cryptography")
        from .answers import Answers
        from .asking import Asker
        from .network import Network
        from .security import Seal

        if not run or partition < 0:
            raise ValueError(f"run {run!r}, partition {partition}: needs an id, and one from 0")
        self.run, self.partition, self._multicast = run, partition, multicast
        self._seal = Seal(tls, partition) if tls else None
        self._network = Network(run, partition, tls, letter_bytes(limits))
        self._answers = Answers(self._network.key(partition), self._seal, newest=newest)
        self._asker = Asker(self._network, run, limits, tls, self._seal, newest=newest)
        self._listener: Listener | None = None
        self._routes: dict[tuple[int, str], Route] = {}
        self._lock, self._closed = Lock(), Event()
        self._heard, self._waited_s = dict[int, int](), 0.0
        serve = self._answers.serve
        self._router = self._network.router(router, serve) if router else None
        own = listen or multicast
        self._own = self._network.own(listen, multicast, serve) if own else None
        if self._router:
            Thread(target=self._keep_router, args=(self._router,), daemon=True).start()
        atexit.register(self.close)

    def publish(self, letter: Letter, readers: Collection[int] | None = None) -> int:
        """Keep a letter of this device for its neighbours to fetch; return its bytes.

        Those of the last three rounds are kept, or only the newest one. ``readers`` are the only
        neighbours that get letters from now on; None for all.

        Raises
        ------
        LetterError
            If it cannot be written, or is not this device's.
        """
        if (letter.run, letter.sender) != (self.run, self.partition):
            raise LetterError(f"letter of device {letter.sender} of run {letter.run!r}: not ours")
        data = write_letter(letter)
        seal = self._seal.sign(data) if self._seal else b""
        self._answers.publish(letter.server_round, data, seal, readers)
        return len(data)

    def collect(
        self, peers: Mapping[int, str], server_round: int, timeout_s: float, spare_s: float = 0.0
    ) -> tuple[dict[int, Letter], dict[int, str]]:
        """Fetch the neighbours' letters of a round, all at once.

        Parameters
        ----------
        peers : mapping of int to str
            ``host:port`` by partition id, empty for one behind the router or found by multicast.
        server_round : int
            At least 0.
        timeout_s : float
            Seconds after which it returns with what there is.
        spare_s : float
            Seconds more that it waits for those to which there is a link then.

        Returns
        -------
        letters : dict of int to Letter
            By partition id.
        missing : dict of int to str
            For each other peer, why there is none.
        """
        begun = monotonic()
        deadline = begun + timeout_s
        letters: dict[int, Letter] = {}
        missing: dict[int, str] = {}
        routes: dict[int, Route] = {}
        for peer, address in peers.items():
            try:
                routes[peer] = self._route(peer, address)
            except ValueError as error:
                missing[peer] = str(error)
        if not routes:
            return letters, missing
        threads = ThreadPoolExecutor(len(routes), thread_name_prefix="peer")
        ask = partial(self._asker.fetch, server_round=server_round, deadline=deadline)
        fetched: dict[int, Future[Letter]] = {
            peer: threads.submit(guarded, partial(ask, route, peer, spare_s=spare_s))
            for peer, route in routes.items()
        }
        threads.shutdown(wait=False)
        wait(fetched.values(), timeout=max(deadline + spare_s + LATE_S - monotonic(), 0.0))
        for peer, future in fetched.items():
            try:
                letters[peer] = future.result(timeout=0)
            except TimeoutError as error:
                why = str(error)
                missing[peer] = f"no letter within {timeout_s:g} s" + (why and f": {why}")
            except LetterError as error:
                missing[peer] = str(error)
        self._forget_routes(peers)
        self._heard |= dict.fromkeys(letters, server_round + 1)
        self._waited_s += monotonic() - begun
        return letters, missing

    def listen(self, peers: Mapping[int, str], known: Mapping[int, int]) -> dict[int, str]:
        """Fetch the neighbours' newest letters from now on, in the background.

        Parameters
        ----------
        peers : mapping of int to str
            As for :meth:`collect`.
        known : mapping of int to int
            Rounds of the letters that this device has of them already.

        Returns
        -------
        dict of int to str
            For each peer that cannot be asked, why.
        """
        routes: dict[int, Route] = {}
        missing: dict[int, str] = {}
        for peer, address in peers.items():
            try:
                routes[peer] = self._route(peer, address)
            except ValueError as error:
                missing[peer] = str(error)

        def fetch(peer: int, number: int, deadline: float) -> Letter:
            return self._asker.fetch(routes[peer], peer, number, deadline)

        self._listener = Listener(fetch, {peer: known.get(peer, 0) for peer in routes})
        return missing

    def arrived(self) -> tuple[dict[int, Letter], dict[int, str]]:
        """Return the newest letters since the last call, and why others were refused; at once.

        Both by partition id, of those to whom :meth:`listen` listens.
        """
        letters, refused = self._listener.arrived() if self._listener else ({}, {})
        self._heard |= {peer: letter.server_round + 1 for peer, letter in letters.items()}
        return letters, refused

    def linger(self, peers: Collection[int], server_round: int, timeout_s: float) -> set[int]:
        """Wait until these have fetched the letter of a round, or a later one.

        Returns
        -------
        set of int
            Those which have not within ``timeout_s`` seconds.
        """
        begun = monotonic()
        late = self._answers.linger(peers, server_round, timeout_s)
        self._waited_s += monotonic() - begun
        return late

    @property
    def bytes_received(self) -> int:
        """Bytes of all letters that came, refused ones too."""
        return self._asker.received.total()

    @property
    def letters_refused(self) -> int:
        """Letters that came and were not what was asked for."""
        return self._asker.letters_refused

    @property
    def bytes_sent(self) -> int:
        """Bytes of all letters that were sent."""
        return self._answers.sent.total()

    @property
    def traffic(self) -> Traffic:
        """What has come and gone so far."""
        received, sent = Counter(self._asker.received), Counter(self._answers.sent)
        return Traffic(received, sent, dict(self._heard), self._waited_s)

    def close(self) -> None:
        """Close all sessions; may be called again."""
        atexit.unregister(self.close)
        self._closed.set()
        if self._listener:
            self._listener.close()
        self._asker.close()
        self._answers.close()
        with self._lock:
            routes, self._routes = list(self._routes.values()), {}
        for route in (*routes, self._router, self._own):
            if route:
                route.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _route(self, peer: int, address: str) -> "Route":
        if not address:
            route = self._router or (self._own if self._multicast else None)
            if not route:
                raise ValueError("it has no address, and there is neither a router nor multicast")
            return route
        with self._lock:
            if (peer, address) not in self._routes:
                self._routes[peer, address] = self._network.direct(peer, address)
            return self._routes[peer, address]

    def _forget_routes(self, peers: Mapping[int, str]) -> None:
        with self._lock:
            if len(self._routes) <= MAX_ROUTES:
                return
            old = self._routes.keys() - peers.items()
            routes = [self._routes.pop(key) for key in old]
        for route in routes:
            route.close()

    def _keep_router(self, router: "Route") -> None:
        from .routes import Unreachable

        while not self._closed.is_set():
            try:
                router.session()
            except Unreachable as error:
                log.debug("%s", error)
            self._closed.wait(KEEP_S)
