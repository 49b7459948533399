"""Payloads as changes: neighbours keep copies of what a device sends, and get what is new in it.

Entries besides those of :mod:`~.compression`, which here hold the change of a vector, of each
further vector (``block#1``) as well:

=================  ===========  ====================================================================
``block#count``    ``[1]``      int32: how many changes of the block have been sent, with this one
``block@3``        ``[n]``      float32: for device 3, which lacks a change, the copy as it is now
                                and what is sent behind it; ``block@3#1`` and ``block@3#count`` go
                                with it
=================  ===========  ====================================================================

References
----------
Koloskova, Stich and Jaggi, "Decentralized Stochastic Optimization and Gossip Algorithms with
Compressed Communication", ICML 2019 (CHOCO-SGD): the copies.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .blocks import COMPANION, STATISTICS, addressed, unaddressed, vector_problem, without_companion
from .coding import CompressionError, dequantise, largest, quantise, write_places
from .compression import AT, MORE, SCALE, STATE, Compressor
from .plan import Inbox, Payload

COUNT = COMPANION + "count"
_START, _OWN, _COUNT, _OF = "start.", "own.", "count.", "of."


class Copies(Compressor):
    """Writes how a device's vectors have changed, and brings its neighbours' copies up to date.

    With H, what all know of a vector x, it sends C(x - H), of which every receiver makes
    ``H <- H + C(x - H)``, and so does the device itself. C takes the largest ``top_k`` of the
    changes in the run's ``precision``. What C leaves out is in the next change. H starts from what
    the device starts from, or 0 for a further vector: all devices start from the same numbers.

    Who has missed a change, or starts from others, has to be told what H is (``resend``). A change
    that does not follow on the one before is refused.
    """

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._start: dict[str, Tensor] = {}
        self._own: dict[str, Tensor] = {}  # H, by name in the payload
        self._count: dict[str, int] = {}  # by block
        self._of: dict[int, dict[str, Tensor]] = {}  # those of neighbours
        self._counts: dict[int, dict[str, int]] = {}

    @property
    def active(self) -> bool:
        """True."""
        return True

    def state(self) -> dict[str, Tensor]:
        """Return what must survive until the next round."""
        found = {STATE + _START + name: x for name, x in self._start.items()}
        found |= {STATE + _OWN + name: x for name, x in self._own.items()}
        found |= {STATE + _COUNT + name: torch.tensor([n]) for name, n in self._count.items()}
        for sender, own in self._of.items():
            found |= {f"{STATE}{_OF}{sender}.{name}": x for name, x in own.items()}
            counts = self._counts[sender].items()
            found |= {
                f"{STATE}{_OF}{sender}.{name}{COUNT}": torch.tensor([n]) for name, n in counts
            }
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        self._start, self._own, counts = (
            {
                k.removeprefix(STATE + kind): x
                for k, x in state.items()
                if k.startswith(STATE + kind)
            }
            for kind in (_START, _OWN, _COUNT)
        )
        self._count = {name: int(n) for name, n in counts.items()}
        self._of, self._counts = {}, {}
        for key, x in state.items():
            if key.startswith(STATE + _OF):
                sender, _, name = key.removeprefix(STATE + _OF).partition(".")
                self._of.setdefault(int(sender), {})
                self._counts.setdefault(int(sender), {})
                if name.endswith(COUNT):
                    self._counts[int(sender)][name.removesuffix(COUNT)] = int(x)
                else:
                    self._of[int(sender)][name] = x

    # ---- what is sent -----------------------------------------------------------------------

    def encode(
        self, payload: Payload, lengths: Mapping[str, int], resend: Sequence[int] = ()
    ) -> Payload:
        """Return the changes of a payload, and copies for those who lack one.

        Parameters
        ----------
        payload, lengths
            See :meth:`.Compressor.encode`.
        resend : sequence of int
            The recipients that are to get copies.
        """
        sent: Payload = {}
        for name, vector in payload.items():
            block, length = unaddressed(name), lengths.get(unaddressed(name), 0)
            if name.startswith(STATISTICS) or not 0 < length <= len(vector):
                sent[name] = vector
                continue
            change, came = self._change(name, vector[:length] - self._copy(self._own, name, length))
            sent |= change
            more = vector[length:]
            if len(more):
                sent[name + MORE] = more
            self._own[name] = self._copy(self._own, name, length) + came
            for r in resend:
                there = addressed(block, r) + name.removeprefix(block)
                sent[there] = torch.cat([self._own[name], more])
            if name == block:
                self._count[block] = self._count.get(block, 0) + 1
                count = torch.tensor([self._count[block]], dtype=torch.int32)
                sent |= {where + COUNT: count for where in (block, *_to(block, resend))}
        return sent

    def _change(self, name: str, change: Tensor) -> tuple[Payload, Tensor]:
        """Return the entries of a change, and what arrives of it."""
        at = None if self.top_k == 1 else largest(change.abs(), self._count_of(len(change)))
        chosen: Tensor | slice = slice(None) if at is None else at
        values, scale = quantise(change[chosen], self.precision)
        entries = {name: values}
        if scale is not None:
            entries[name + SCALE] = scale
        if at is not None:
            entries[name + AT] = write_places(at, len(change))
        came = torch.zeros_like(change)
        came[chosen] = dequantise(values, scale)
        return entries, came

    def _copy(self, of: Mapping[str, Tensor], name: str, length: int) -> Tensor:
        """Return a copy, or what it starts from."""
        return of[name] if name in of else self._start.get(name, torch.zeros(length))

    # ---- what has come ----------------------------------------------------------------------

    def decode(self, inbox: Inbox, own: Payload, recipient: int) -> tuple[Inbox, dict[str, str]]:
        """Bring the copies up to date; return them, and the device's own ones as its own payload.

        See :meth:`.Compressor.decode`. A copy that cannot be brought up to date stays as it is and
        is left out.
        """
        self._start = {name: x.clone() for name, x in own.items()} | self._start
        opened, why = Inbox(), dict[str, str]()
        for sender, payload in inbox.items():
            read = {name: x for name, x in payload.items() if name.startswith(STATISTICS)}
            for block, mine in own.items():
                there = addressed(block, recipient)
                name = there if there in payload else block
                if name not in payload:
                    continue
                if not payload[name].numel():  # not sent in this round
                    read[block] = payload[name]
                    continue
                try:
                    read |= self._read(sender, payload, name, block, len(mine))
                except CompressionError as error:
                    said = f"{sender}: block {block}"
                    why[f"{said} is missing"] = f"{said} {error}"
            opened[sender] = read
        opened[recipient] = {
            name: self._copy(self._own, name, len(own[block]))
            for name in {*own, *self._own}
            if (block := without_companion(name)) in own
        }
        return opened, why

    def _read(self, sender: int, payload: Payload, name: str, block: str, length: int) -> Payload:
        """Return a neighbour's vectors of a block, once its copies are up to date."""
        count = payload.get(name + COUNT, torch.zeros(0))
        if count.dtype != torch.int32 or count.shape != (1,):
            raise CompressionError("does not say how many changes there were")
        known = self._counts.get(sender, {}).get(block, 0)
        if name == block and int(count) != known + 1:
            raise CompressionError(
                f"is change {int(count)}, which does not follow on {known}: one has not come"
            )
        before, vectors = self._of.get(sender, {}), dict[str, Tensor]()
        # of this block what the letter has, and no more: what it has is limited
        copies = {key: x for key, x in before.items() if without_companion(key) != block}
        for key in sorted(payload):
            further = key.removeprefix(name)
            if key != name and not _is_further(key, name):
                continue
            here = block + further
            if name == block:
                change = self._decode(payload, key, torch.zeros(length))
                copy = self._copy(before, here, length)
                vector = torch.cat([copy + change[:length], change[length:]])
            else:
                vector = payload[key]
            if problem := vector_problem(vector, (max(length, len(vector)),)):
                raise CompressionError(problem)
            copies[here], vectors[here] = vector[:length], vector
        self._of[sender] = copies
        self._counts[sender] = self._counts.get(sender, {}) | {block: int(count)}
        return vectors


def _is_further(key: str, name: str) -> bool:
    """Return whether an entry of a payload is a further vector of a block."""
    return key.startswith(name + COMPANION) and key.removeprefix(name + COMPANION).isdecimal()


def _to(block: str, recipients: Sequence[int]) -> list[str]:
    return [addressed(block, r) for r in recipients]
