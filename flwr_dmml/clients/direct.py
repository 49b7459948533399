"""Rounds over the direct transport: devices exchange letters themselves, many rounds a message."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from flwr.app import ConfigRecord, Context
from torch import Tensor

from ..base.errors import SettingsError
from ..base.machine import expanded
from ..learning.learner import Learner
from ..methods.soft_labels import LABELS
from ..payload.blocks import STATISTICS, block_of
from ..payload.limits import Limits
from ..payload.options import ExchangeOptions
from ..payload.plan import Outcome, Payload, Plan
from ..transport.direct.tls import Tls
from ..transport.letter import Letter, name_of_run
from ..transport.messages import LABEL_BYTES, LETTER_BYTES, PAYLOAD_BYTES, pack
from ..transport.relay import own_bytes
from ..transport.traffic import Traffic
from .metering import NodeConfig, run_metered

if TYPE_CHECKING:
    from ..transport.direct.link import DirectLink

_WHY_NOT = (
    "whoever reaches its port gets its letters, and nothing proves who wrote those that it reads. "
    "Give it tls-ca, tls-certificate and tls-key"
)
_CLEAR = "flwr-dmml.clear"
SENT = "sent."
"""Prefix of the last letter's tensors, in what a device keeps between messages."""
TLS_KEYS = ("tls-ca", "tls-certificate", "tls-key")
"""In the node config: PEM files of the fleet's authority, of the device's certificate and key."""
TLS_REVOKED = "tls-revoked"
"""Beside them, where there is one: that of the authority's revocation list."""


class Link(Protocol):
    """Carrier of letters, see :class:`~flwr_dmml.transport.direct.link.DirectLink`."""

    def publish(self, letter: Letter, readers: Collection[int] | None = None) -> int:
        """Hold a letter ready for these neighbours, or all; return its bytes."""
        ...

    def collect(
        self, peers: Mapping[int, str], server_round: int, timeout_s: float, spare_s: float
    ) -> tuple[dict[int, Letter], dict[int, str]]:
        """Return the letters of a round, and why those of the others are not there."""
        ...

    @property
    def traffic(self) -> Traffic:
        """What has come and gone so far."""
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
    node_config: NodeConfig | None = None,
    shared: Collection[str] | None = None,
) -> tuple[list[Outcome], Payload]:
    """Run the rounds of a message; return their outcomes, and the last letter's tensors.

    A neighbour whose letter does not come in time is left out of that round's mixing. It is not
    waited for again in this message. Unused waiting time is kept for the message's next rounds, for
    neighbours that are there and late, as they may have waited in vain for one of their own.

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
    node_config : mapping, optional
        Whether to measure the joules of each round, see :func:`~.metering.measures`.
    shared : collection of str, optional
        Blocks that letters hold, see :func:`in_letters`; by default all.
    """
    me, timeout_s = learner.partition.partition_id, learner.settings.exchange.timeout_s
    before = plans[0].server_round - 1
    if sent:
        link.publish(Letter(run, me, before, sent))
    outcomes: list[Outcome] = []
    gone: dict[int, str] = {}
    spare_s = 0.0
    for plan in plans:
        wanted = {n: peers[n] for n in plan.neighbours if n not in gone}
        begun = monotonic()
        letters, problems = link.collect(wanted, plan.server_round - 1, timeout_s, spare_s)
        if plan.neighbours:
            spare_s = max(spare_s + timeout_s - (monotonic() - begun), 0.0)
        gone |= problems
        missing = [n for n in plan.neighbours if n not in letters]
        inbox = {n: dict(letter.tensors) for n, letter in letters.items()}
        outcome = run_metered(learner, plan.without(missing), inbox, node_config or {})
        outcome.rejected.extend(f"{n}: {gone[n]}" for n in missing)
        if outcome.payload:
            sent = publish(outcome, Letter(run, me, plan.server_round, {}), link, shared)
        outcomes.append(outcome)
    last = plans[-1]
    still_there = [n for n in last.neighbours if n not in gone]
    link.linger(still_there, last.server_round - 1, timeout_s)
    return outcomes, sent


def publish(
    outcome: Outcome,
    about: Letter,
    link: Link,
    shared: Collection[str] | None = None,
    readers: Collection[int] | None = None,
) -> Payload:
    """Publish what a round has made as a letter, and note its bytes; return what it holds.

    ``about`` is the letter without its tensors; ``shared`` and ``readers`` are all by default.
    """
    own = outcome.payload if shared is None else in_letters(outcome.payload, shared)
    sent = {name: tensor.cpu() for name, tensor in own.items()}
    outcome.metrics[LETTER_BYTES] = float(link.publish(replace(about, tensors=sent), readers))
    outcome.metrics[LABEL_BYTES] = float(_label_bytes(sent))
    outcome.metrics[PAYLOAD_BYTES] = float(own_bytes(pack(outcome.payload)))
    return sent


def in_letters(payload: Payload, shared: Collection[str]) -> Payload:
    """Return what goes into a letter: statistics, and blocks that at least two devices have.

    Nobody could mix the others, and no neighbour would take them.
    """
    return {
        name: tensor
        for name, tensor in payload.items()
        if name.startswith(STATISTICS) or block_of(name) in shared
    }


def _label_bytes(payload: Mapping[str, Tensor]) -> int:
    return sum(x.nbytes for name, x in payload.items() if name.startswith(LABELS))


def open_link(
    context: Context,
    exchange: ExchangeOptions,
    partition: int,
    limits: Limits,
    *,
    newest: bool = False,
) -> "DirectLink":
    """Return the link of a device, by its node config, for letters within some limits.

    ``newest`` says whether devices do not wait for one another.

    ``direct-address`` ("host:port") is where neighbours reach it; for the certificates see
    :func:`read_tls`.

    Raises
    ------
    SettingsError
        One of them is wrong, or nothing says how neighbours are to be reached.
    """
    from ..transport.direct.link import DirectLink

    listen = str(context.node_config.get("direct-address", ""))
    if not (listen or exchange.router or exchange.multicast):
        raise SettingsError(
            "node config: direct-address is missing; set it to host:port where the neighbours "
            "reach this device, or exchange.router or exchange.multicast in the run config"
        )
    return DirectLink(
        name_of_run(context.run_id),
        partition,
        listen=listen,
        tls=read_tls(context),
        router=exchange.router,
        multicast=exchange.multicast,
        limits=limits,
        newest=newest,
    )


def in_the_clear(context: Context, peers: Collection[int]) -> str:
    """Return what to warn of if letters are not protected; empty where that has been said.

    It is said once of each neighbour of a run, when the device first meets it.
    """
    if read_tls(context) is not None:
        return ""
    record = context.state.config_records.setdefault(_CLEAR, ConfigRecord())
    told = {int(p) for p in record}
    new = sorted({*peers} - told)
    record.update({str(p): True for p in new})
    if not new:
        return ""
    text = f"talks to device {', '.join(map(str, new))} in the clear"
    return f"{text}, too" if told else f"{text}: {_WHY_NOT}"


def read_tls(context: Context) -> Tls | None:
    """Return the files of a device's certificate, None for one that has none.

    ``tls-ca``, ``tls-certificate`` and ``tls-key`` in the node config name them, and
    ``tls-revoked`` the list of those that are refused.

    Raises
    ------
    SettingsError
        One is named, but not all three, or is not there.
    """
    config = {k: str(v) for k, v in context.node_config.items()}
    names = [name for name in (*TLS_KEYS, TLS_REVOKED) if name in config]
    if not names:
        return None
    if not {*TLS_KEYS} <= {*names}:
        raise SettingsError(f"node config: give {', '.join(TLS_KEYS)} together, or none of them")
    files = {name: Path(expanded(config[name])) for name in names}
    for path in files.values():
        if not path.is_file():
            raise SettingsError(f"node config: there is no file {path}")
    ca, certificate, key = (files[name] for name in TLS_KEYS)
    return Tls(ca, certificate, key, files.get(TLS_REVOKED))
