"""Rounds in which a device exchanges letters with its neighbours itself, several in a message."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from flwr.app import Context
from torch import Tensor

from ..config import SettingsError
from ..options import ExchangeOptions
from ..plan import Outcome, Payload, Plan
from ..soft_labels import LABELS
from ..transport.letter import Letter
from ..transport.messages import LABEL_BYTES, LETTER_BYTES
from .learner import Learner

SENT = "sent."
"""Prefix of the last letter's tensors, in what a device keeps between messages."""


class Link(Protocol):
    """What carries letters, see :class:`~flwr_dmml.transport.peer.PeerLink`."""

    def publish(self, letter: Letter) -> int:
        """Hold a letter ready for the neighbours; return its bytes."""
        ...

    def collect(
        self, peers: Mapping[int, str], server_round: int, timeout_s: float
    ) -> tuple[dict[int, Letter], dict[int, str]]:
        """Return the letters of a round, and why those of the others are not there."""
        ...

    def linger(self, peers: Sequence[int], server_round: int, timeout_s: float) -> set[int]:
        """Wait until these have fetched the letter of a round; return who has not."""
        ...


def run_directly(
    learner: Learner,
    plans: Sequence[Plan],
    peers: Mapping[int, str],
    link: Link,
    run: str,
    sent: Payload,
) -> tuple[list[Outcome], Payload]:
    """Run the rounds of a message; return their outcomes, and the last letter's tensors.

    A neighbour whose letter does not come in time is mixed without in that round, and not waited
    for again in this message.

    Parameters
    ----------
    learner : Learner
        With the state of the round before.
    plans : sequence of Plan
        Of consecutive rounds.
    peers : mapping of int to str
        Addresses of the neighbours, by partition id.
    link : Link
        Open.
    run : str
        Id of the run.
    sent : Payload
        The letter of the round before, which neighbours have still to fetch; empty in round 1.
    """
    me, timeout_s = learner.partition.partition_id, learner.settings.exchange.timeout_s
    before = plans[0].server_round - 1
    if sent:
        link.publish(Letter(run, me, before, sent))
    outcomes: list[Outcome] = []
    gone: dict[int, str] = {}
    for plan in plans:
        wanted = {n: peers[n] for n in plan.neighbours if n not in gone}
        letters, problems = link.collect(wanted, plan.server_round - 1, timeout_s)
        gone |= problems
        missing = [n for n in plan.neighbours if n not in letters]
        inbox = {n: dict(letter.tensors) for n, letter in letters.items()}
        outcome = learner.run_round(plan.without(missing), inbox)
        outcome.rejected.extend(f"{n}: {gone[n]}" for n in missing)
        if outcome.payload:
            sent = {name: tensor.cpu() for name, tensor in outcome.payload.items()}
            outcome.metrics[LETTER_BYTES] = float(
                link.publish(Letter(run, me, plan.server_round, sent))
            )
            outcome.metrics[LABEL_BYTES] = float(_label_bytes(sent))
        outcomes.append(outcome)
    last = plans[-1]
    still_there = [n for n in last.neighbours if n not in gone]
    link.linger(still_there, last.server_round - 1, timeout_s)
    return outcomes, sent


def _label_bytes(payload: Mapping[str, Tensor]) -> int:
    return sum(x.nbytes for name, x in payload.items() if name.startswith(LABELS))


def open_link(
    context: Context, exchange: ExchangeOptions, partition: int
) -> AbstractContextManager[Link]:
    """Return the link of a device, by its node config.

    ``peer-address`` ("host:port") is where neighbours reach it; ``tls-ca``, ``tls-certificate`` and
    ``tls-key`` name files, all three or none.

    Raises
    ------
    SettingsError
        One of them is wrong, or nothing says how neighbours are to be reached.
    """
    from ..transport.peer import PeerLink, Tls

    config = {k: str(v) for k, v in context.node_config.items()}
    listen = config.get("peer-address", "")
    if not (listen or exchange.router or exchange.multicast):
        raise SettingsError(
            "node config: peer-address is missing; set it to host:port where the neighbours reach "
            "this device, or exchange.router or exchange.multicast in the run config"
        )
    names = ("tls-ca", "tls-certificate", "tls-key")
    given = [Path(config[name]).expanduser() for name in names if name in config]
    if len(given) not in (0, len(names)):
        raise SettingsError(f"node config: give {', '.join(names)} together, or none of them")
    for path in given:
        if not path.is_file():
            raise SettingsError(f"node config: there is no file {path}")
    return PeerLink(
        str(context.run_id),
        partition,
        listen=listen,
        tls=Tls(*given) if given else None,
        router=exchange.router,
        multicast=exchange.multicast,
    )
