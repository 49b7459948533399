"""Encryption on the device (``exchange.sealed``): only its neighbours can read its payloads.

Its state, which goes into the run's checkpoints, can only be read by the device itself.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from logging import WARNING
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.common.logger import log
from safetensors.numpy import save

from ..base.errors import SettingsError
from ..base.overrides import with_overrides
from ..base.tensors import read_tensors
from ..learning.learner import Learner
from ..methods.soft_labels import LABELS
from ..payload.blocks import COMPANION, carried, is_carried
from ..payload.limits import Limits
from ..payload.plan import Carried, Inbox, Outcome, Payload, Plan
from ..payload.routing import correspondents, cut, wanted
from ..transport.arrays import NumpyArray, record_of
from ..transport.direct.tls import Tls
from ..transport.letter import Letter, LetterError, guarded
from ..transport.messages import (
    LABEL_BYTES,
    PAYLOAD_BYTES,
    SIMULATED,
    pack,
    read_blocks,
    read_inbox,
)
from ..transport.relay import own_bytes, size_bytes
from .direct import TLS_KEYS, in_letters, read_tls
from .limits import limits_of
from .metering import run_metered

if TYPE_CHECKING:
    from ..transport.sealed import Identity

LOCKED_STATE = "locked-state"
"""The only array in the record of a state that its device has encrypted."""


def seals(context: Context) -> bool:
    """Return whether nothing but numbers may leave this device in clear.

    Devices that an engine of this package simulates are all in one place: nothing is encrypted.
    """
    asked = with_overrides(context.run_config).get("exchange.sealed") is True
    return asked and not context.node_config.get(SIMULATED)


def announcement(context: Context, partition: int) -> bytes:
    """Return the device's public key with its proof, for the neighbours.

    Raises
    ------
    SettingsError
        The node config names no certificate.
    DirectError
        The certificate is not accepted.
    """
    from ..transport.sealed import Identity

    return Identity(_tls(context), partition).announcement()


def run_sealed(
    learner: Learner, plan: Plan, content: RecordDict, context: Context
) -> tuple[Outcome, ArrayRecord]:
    """Run a round whose payloads are sealed; return its outcome, and what is published.

    A neighbour whose payload cannot be opened, or whose key is refused, is left out of mixing and
    named among what is rejected.

    Raises
    ------
    SettingsError
        The message came without keys.
    """
    from ..transport.sealed import KEYS, SESSION, Identity, check_size, seal_letter

    if KEYS not in content.config_records:
        raise SettingsError("exchange.sealed = true, but the coordinator does not seal")
    keys, me = content.config_records[KEYS], learner.partition.partition_id
    identity, run = Identity(_tls(context), me), str(keys[SESSION])
    shared = read_blocks(content)
    limits = limits_of(learner, shared)
    public: dict[int, bytes] = {}
    problems: dict[int, str] = {}
    for other in sorted(correspondents(plan)):
        try:
            public[other] = guarded(partial(identity.check, _announced(keys, other), other))
        except LetterError as error:
            problems[other] = f"its key is refused: {error}"
    inbox: Inbox = {}
    received: dict[int, dict[str, bytes]] = {}
    for sender, payload in read_inbox(content).items():
        try:
            check_size(sum(x.nbytes for x in payload.values()), limits)
            received[sender] = {k: x.numpy().tobytes() for k, x in payload.items()}
        except LetterError as error:
            problems.setdefault(sender, str(error))
    for position, sender in enumerate(plan.neighbours, start=1):
        if sender in problems:
            continue
        parts = received.get(sender, {})
        given = parts, identity, run, sender, plan, public[sender], limits
        try:
            tensors = guarded(partial(_opened, *given))
        except LetterError as error:
            problems[sender] = str(error)
            continue
        inbox[sender] = cut(tensors, wanted(plan, position, me, tensors))
        brought = [there for there in plan.far if there.via == sender]
        inbox[sender] |= _brought(brought, parts, identity, run, plan, public, problems, limits)
    for other, why in problems.items():
        log(WARNING, "Round %s: device %s: %s", plan.server_round, other, why)
    outcome = run_metered(learner, plan.without(problems), inbox, context.node_config)
    lost = [n for n in problems if n in plan.neighbours or n in plan.recipients]
    outcome.rejected.extend(f"{other}: {problems[other]}" for other in lost)
    if not outcome.payload:
        return outcome, ArrayRecord()
    plain = pack(outcome.payload)
    outcome.metrics[PAYLOAD_BYTES] = float(own_bytes(plain))
    outcome.metrics[LABEL_BYTES] = float(size_bytes(plain, LABELS))
    letter = Letter(run, me, plan.server_round, in_letters(outcome.payload, shared))
    recipients = {k: public[k] for k in plan.recipients if k in public}
    apart = {own.blocks: {k: public[k] for k in own.readers if k in public} for own in plan.apart}
    sealed = seal_letter(letter, identity, recipients, apart)
    return outcome, _record(sealed | _carried(plan.carries, received))


def _opened(
    parts: Mapping[str, bytes],
    identity: "Identity",
    run: str,
    sender: int,
    plan: Plan,
    public: bytes,
    limits: Limits,
) -> Payload:
    """Return a neighbour's tensors, of all its parts that are for this device."""
    from ..transport.sealed import SEALED, open_apart, open_letter

    when = plan.server_round - 1
    tensors = open_letter(parts, identity, run, sender, when, public, limits)
    for name, part in parts.items():
        if name.startswith(f"{SEALED}:") and not is_carried(name) and not _unread(name, plan):
            tensors |= open_apart(part, identity, run, sender, when, public, limits)
    return tensors


def _unread(name: str, plan: Plan) -> bool:
    """Return whether a courier takes this part of a neighbour's payload, for others."""
    from ..transport.sealed import part_of

    return any(
        there.via == there.origin and part_of(there.blocks) == name for there in plan.carries
    )


def _brought(
    far: Iterable[Carried],
    parts: Mapping[str, bytes],
    identity: "Identity",
    run: str,
    plan: Plan,
    public: Mapping[int, bytes],
    problems: dict[int, str],
    limits: Limits,
) -> Payload:
    """Return what a courier has brought, under the names that it has in a payload in clear."""
    from ..transport.sealed import open_apart, part_of

    found: Payload = {}
    for there in far:
        name = carried(part_of(there.blocks), there.origin)
        if name not in parts or there.origin not in public:
            continue
        when = plan.server_round - 1 - there.couriers
        given = parts[name], identity, run, there.origin, when, public[there.origin], limits
        try:
            own = guarded(partial(open_apart, *given))
        except LetterError as error:
            problems[there.origin] = f"carried by device {there.via}: {error}"
            continue
        for key, tensor in own.items():
            block, mark, companion = key.partition(COMPANION)
            found[carried(block, there.origin) + mark + companion] = tensor
    return found


def _carried(
    carries: Iterable[Carried], received: Mapping[int, Mapping[str, bytes]]
) -> dict[str, bytes]:
    """Return what a courier publishes for others, as it has received it."""
    from ..transport.sealed import part_of

    found: dict[str, bytes] = {}
    for there in carries:
        part = part_of(there.blocks)
        name = part if there.via == there.origin else carried(part, there.origin)
        parts = received.get(there.via, {})
        if name in parts:
            found[carried(part, there.origin)] = parts[name]
    return found


def lock_state(context: Context, state: ArrayRecord) -> ArrayRecord:
    """Return a device's state; under encryption it is sealed, so that nobody else can read it."""
    if not (seals(context) and state):
        return state
    from ..transport.sealed import lock, own_secret

    data = save({name: np.array(array.numpy(), order="C") for name, array in state.items()})
    secret = own_secret(_tls(context).key, "states")
    return _record({LOCKED_STATE: lock(secret, data, LOCKED_STATE)})


def unlock_state(context: Context, state: ArrayRecord) -> ArrayRecord:
    """Return the state from what :func:`lock_state` returned.

    Raises
    ------
    SettingsError
        It is encrypted and the run is not, or the other way round.
    LetterError
        It was not encrypted by this device.
    """
    if not state:
        return state
    locked = LOCKED_STATE in state
    if locked != seals(context):
        kind = "encrypted" if locked else "not encrypted"
        raise SettingsError(f"exchange.sealed has changed: the state to go on from is {kind}")
    if not locked:
        return state
    from ..transport.sealed import own_secret, unlock

    secret = own_secret(_tls(context).key, "states")
    data = unlock(secret, state[LOCKED_STATE].numpy().tobytes(), LOCKED_STATE)
    return record_of({name: NumpyArray(numbers) for name, numbers in read_tensors(data).items()})


def _tls(context: Context) -> Tls:
    if tls := read_tls(context):
        return tls
    raise SettingsError(
        f"node config: exchange.sealed needs {', '.join(TLS_KEYS)} (flwr-dmml fleet init writes "
        "them)"
    )


def _announced(keys: ConfigRecord, device: int) -> bytes:
    found = keys.get(str(device))
    return found if isinstance(found, bytes) else b""


def _record(parts: dict[str, bytes]) -> ArrayRecord:
    arrays = {name: NumpyArray(np.frombuffer(data, np.uint8)) for name, data in parts.items()}
    return record_of(arrays)
