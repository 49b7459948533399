"""Payload compression: coarser numbers, and only a part of each block.

Entries sent for a block in place of its float32 vector, by their names in a payload:

==========  ===============  =======================================================================
``name``    ``[k]``          the numbers that are sent, in the type of ``exchange.precision``
``…#scale`` float32          int8: what 1 stands for, of every 1024 of them
``…#at``    uint8 or int32   ``exchange.top-k``: their places in the block, ``[length]`` as a bit
                             mask (the first one is a byte's highest bit) or ``[k]`` as indices,
                             whichever is shorter
``…#more``  ``[n]`` float32  what a method sends behind the block's own numbers, as it is
==========  ===============  =======================================================================

Statistics, and what a gossip rule sends of a block besides one vector (``…#1``), are sent as they
are.

References
----------
Error feedback: Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014; Karimireddy et
al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019. The largest
changes since they were last sent: after Dhasade et al., "Get More for Less in Decentralized
Learning Systems" (JWINS), ICDCS 2023, without its wavelets and random shares; this project's
reconstruction.
"""

from collections.abc import Mapping, Sequence
from math import ceil

import torch
from torch import Tensor

from .blocks import COMPANION, STATISTICS, addressed, unaddressed
from .coding import (
    CHUNK,
    DTYPES,
    CompressionError,
    Precision,
    dequantise,
    largest,
    quantise,
    read_places,
    write_places,
)
from .plan import Inbox, Payload

SCALE, AT, MORE = (COMPANION + what for what in ("scale", "at", "more"))
STATE = "compressor."
"""Prefix of what a compressor keeps, in a learner's state."""
_ERROR, _LAST = "error.", "last."


class Compressor:
    """Writes a device's blocks in fewer bytes, and reads those of its neighbours.

    With e, what earlier rounds could not send, 0 at first, and Q, rounding, it sends of a block x::

        Q(x + e)        e <- x + e - Q(x + e)

    so that the mean of what is sent over the rounds tends to that of x, and what rounding does to
    the mean over all devices does not add up. With ``top_k`` it sends those entries of x that are
    furthest from what was last sent of them, and at first from what the device started from: all
    devices start from the same numbers. The first of equals is sent first. The receiver takes its
    own numbers for what is not sent, and so mixes only what is. The mean over the owners of a block
    then is no longer that of before, for one end of a link may send an entry that the other does
    not.

    Parameters
    ----------
    precision : {"float32", "float16", "int8"} (default: "float32")
        Type of the numbers that are sent.
    top_k : float (default: 1.0)
        Share of a block's entries that is sent in a round, in (0, 1]; at least one is.
    """

    def __init__(self, precision: Precision = "float32", top_k: float = 1.0) -> None:
        self.precision, self.top_k = precision, top_k
        self._error: dict[str, Tensor] = {}  # e, by name in the payload
        self._last: dict[str, Tensor] = {}  # what was last sent of every entry

    @property
    def active(self) -> bool:
        """Whether anything is sent in another way than as it is."""
        return self.precision != "float32" or self.top_k < 1

    def state(self) -> dict[str, Tensor]:
        """Return what must survive until the next round."""
        errors = {STATE + _ERROR + name: e for name, e in self._error.items()}
        return errors | {STATE + _LAST + name: x for name, x in self._last.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        self._error, self._last = (
            {k.removeprefix(kind): v.clone() for k, v in state.items() if k.startswith(kind)}
            for kind in (STATE + _ERROR, STATE + _LAST)
        )

    # ---- what is sent -----------------------------------------------------------------------

    def encode(
        self, payload: Payload, lengths: Mapping[str, int], resend: Sequence[int] = ()
    ) -> Payload:
        """Return a payload in fewer bytes.

        Parameters
        ----------
        payload : dict of str to Tensor
            Flat float32 vectors by block, addressed or not; finite. One that is shorter than the
            block, such as the empty one of a block that is not sent, is left as it is.
        lengths : mapping of str to int
            Of the device's own blocks.
        resend : sequence of int
            Recipients that lack something of earlier rounds: here every payload is complete.
        """
        if not self.active:
            return payload
        sent: Payload = {}
        for name, vector in payload.items():
            length = lengths.get(unaddressed(name), 0)
            if _apart(name) or not 0 < length <= len(vector):
                sent[name] = vector
                continue
            sent |= self._encode(name, vector[:length])
            if len(vector) > length:
                sent[name + MORE] = vector[length:]
        return sent

    def _encode(self, name: str, x: Tensor) -> Payload:
        error = self._error.get(name, torch.zeros_like(x))
        at = None if self.top_k == 1 else self._choose(name, x)
        chosen: Tensor | slice = slice(None) if at is None else at
        wanted = (x + error)[chosen]
        values, scale = quantise(wanted, self.precision)
        came = dequantise(values, scale)
        entries = _written(name, values, scale)
        if self.precision != "float32":
            self._error[name] = _replaced(error, chosen, wanted - came)
        if at is not None:
            entries[name + AT] = write_places(at, len(x))
            self._last[name] = _replaced(self._last_of(name), at, came)
        return entries

    def rounded(self, name: str, x: Tensor) -> Payload:
        """Return a whole vector ``[length]`` in the type of ``precision``; nothing is kept of it.

        For what is not the device's own: without error feedback.
        """
        return _written(name, *quantise(x, self.precision))

    def _choose(self, name: str, x: Tensor) -> Tensor:
        return largest((x - self._last_of(name)).abs(), self._count_of(len(x)))

    def _last_of(self, name: str) -> Tensor:
        return self._last[name] if name in self._last else self._last[unaddressed(name)]

    def _count_of(self, length: int) -> int:
        """Return how many entries of a block are sent."""
        return max(1, round(self.top_k * length))

    # ---- what has come ----------------------------------------------------------------------

    def decode(self, inbox: Inbox, own: Payload, recipient: int) -> tuple[Inbox, dict[str, str]]:
        """Read what the neighbours have compressed; to be called before the blocks are mixed.

        A block that cannot be read is left out; so is everything that is neither one of ``blocks``
        nor a statistic.

        Parameters
        ----------
        inbox : dict of int to Payload
            What has come; not trusted.
        own : Payload
            The device's own blocks as it has sent them, flat on the CPU; not changed.
        recipient : int
            Its partition id.

        Returns
        -------
        tuple of Inbox and dict of str to str
            Flat float32 vectors, and what is to be said of what was left out, in place of
            ``"3: block encoder.audio is missing"``.
        """
        if not self.active:
            return inbox, {}
        if self.top_k < 1:
            self._last = {name: x.clone() for name, x in own.items()} | self._last
        opened, why = Inbox(), dict[str, str]()
        for sender, payload in inbox.items():
            read = {name: x for name, x in payload.items() if _apart(name)}
            for block, mine in own.items():
                for name in (block, addressed(block, recipient)):
                    if name not in payload:
                        continue
                    try:
                        read[name] = self._decode(payload, name, mine)
                    except CompressionError as error:
                        said = f"{sender}: block {block}"
                        why[f"{said} is missing"] = f"{said} {error}"
            opened[sender] = read
        return opened, why

    def _decode(self, payload: Payload, name: str, own: Tensor) -> Tensor:
        """Return a received vector, entries that were not sent as they are in the ``own`` one."""
        values = payload[name]
        if not values.numel():
            return values  # a block that its sender does not send in this round
        _check(values, DTYPES[self.precision], "")
        if self.top_k == 1:
            places = None
            if len(values) != len(own):
                raise CompressionError(f"has shape ({len(values)},) instead of ({len(own)},)")
        else:
            places = read_places(_companion(payload, name, AT), len(own))
            if len(places) != len(values):
                raise CompressionError(f"has {len(values)} numbers for {len(places)} places")
        scale = None
        if self.precision == "int8":
            scale = _companion(payload, name, SCALE)
            _check(scale, torch.float32, SCALE)
            if len(scale) != ceil(len(values) / CHUNK):
                raise CompressionError(f"has {len(scale)} scales for {len(values)} numbers")
            if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
                raise CompressionError("has a scale that is negative, infinite or NaN")
        dense = dequantise(values, scale)
        if places is not None:
            dense = _replaced(own, places, dense)
        if name + MORE in payload:
            _check(more := payload[name + MORE], torch.float32, MORE)
            dense = torch.cat([dense, more])
        return dense


def _written(name: str, values: Tensor, scale: Tensor | None) -> Payload:
    """Return the entries of a whole block."""
    return {name: values} if scale is None else {name: values, name + SCALE: scale}


def _apart(name: str) -> bool:
    """Return whether an entry is sent as it is: a statistic, or a rule's further vector."""
    return name.startswith(STATISTICS) or name.partition(COMPANION)[2].isdecimal()


def _replaced(x: Tensor, places: Tensor | slice, values: Tensor) -> Tensor:
    changed = x.clone()
    changed[places] = values
    return changed


def _companion(payload: Payload, name: str, what: str) -> Tensor:
    if name + what not in payload:
        raise CompressionError(f"lacks {name + what}")
    return payload[name + what]


def _check(x: Tensor, dtype: torch.dtype, what: str) -> None:
    where = f" in its {what}" if what else ""
    if x.dtype != dtype:
        raise CompressionError(f"has type {x.dtype} instead of {dtype}{where}")
    if x.ndim != 1:
        raise CompressionError(f"has shape {tuple(x.shape)}{where}: not of one dimension")
