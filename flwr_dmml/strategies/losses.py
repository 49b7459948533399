"""Lost messages: which ones, by a draw that every engine makes alike, and what becomes of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ..base.seeding import derive_seed
from ..payload.plan import Plan

Loss = Literal["own", "pair", "sender"]
"""What becomes of a lost message. ``own``: its weight goes to the receiver's own copy. ``pair``: so
it does, and that of the message the other way, which is not used either, to the sender's.
``sender``: the sender keeps the share that it has dealt out."""
WORDS: dict[Loss, str] = {
    "own": "its weight goes to the receiver's own copy",
    "pair": "the message in the other direction is dropped too, and both keep their own",
    "sender": "the sender keeps its share",
}


@dataclass(frozen=True)
class Losses:
    """The messages that a run loses.

    Parameters
    ----------
    rate : float
        Probability that a message is lost, in [0, 1): each of every sender, receiver and round by
        itself.
    seed : int
        Of the run.
    loss : {"own", "pair", "sender"}
        What the gossip rule makes of it.
    """

    rate: float
    seed: int
    loss: Loss = "own"

    def summary(self) -> list[str]:
        """Return a line for the log; none where nothing is lost."""
        lost = f"Lost messages: {self.rate:g} of all; if one is lost, {WORDS[self.loss]}"
        return [lost] if self.rate else []

    def lost(self, plans: Mapping[int, Plan]) -> dict[int, list[int]]:
        """Return whose messages do not count, by receiver, of what these plans begin with mixing.

        Parameters
        ----------
        plans : mapping of int to Plan
            Of all devices, for the round after that in which the messages were sent.
        """
        if not self.rate:
            return {}
        gone = {
            (sender, p)
            for p, plan in plans.items()
            for sender in plan.neighbours
            if self.loses(plan.server_round - 1, sender, p)
        }
        if self.loss == "pair":
            gone |= {(receiver, sender) for sender, receiver in gone}
        found: dict[int, list[int]] = {}
        for sender, receiver in sorted(gone):
            found.setdefault(receiver, []).append(sender)
        return found

    def loses(self, server_round: int, sender: int, receiver: int) -> bool:
        """Return whether a sender's message of a round does not reach a receiver."""
        draw = derive_seed(self.seed, "loss", server_round, sender, receiver) / 2**63  # in [0, 1)
        return draw < self.rate

    def left(self, plans: Mapping[int, Plan], lost: Mapping[int, list[int]]) -> dict[int, Plan]:
        """Return the plans with what arrives; what was sent is in :attr:`.Plan.sent`."""
        if not lost:
            return dict(plans)
        found = {
            p: replace(plan.without(lost[p], kept=self.loss != "sender"), sent=plan)
            if p in lost
            else plan
            for p, plan in plans.items()
        }
        if self.loss == "sender":
            for receiver, senders in lost.items():
                for sender in senders:
                    if sender in found:
                        found[sender] = _returned(found[sender], plans[receiver], sender)
        return found


def _returned(plan: Plan, receiver: Plan, sender: int) -> Plan:
    """Return a sender's plan with the share that a receiver has not got of it."""
    at = 1 + receiver.neighbours.index(sender)
    weights = dict(plan.weights)
    for block, theirs in receiver.weights.items():
        if theirs[at] and block in weights:
            own, *others = weights[block]
            weights[block] = (own + theirs[at], *others)
    return replace(plan, weights=weights, sent=plan.sent or plan)
