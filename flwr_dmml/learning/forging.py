"""Lies in simulations: what a device hears from liars, in the place of what they have published.

All that an attack knows of its victim is in the victim's inbox and plan: what its honest neighbours
have sent, and its own copy. So the lie is made where it is heard, which is the same on all engines.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..base.seeding import torch_generator
from ..gossip.attacks import ATTACKS, EARLIER, AttackOptions, Scene
from ..payload.blocks import LARGEST, STATISTICS
from ..payload.plan import Inbox, Plan
from .label_shares import REPORT
from .mixing import Mixer

HEARD = "heard."
"""Prefix of what liars have published in earlier rounds, in a device's memory."""
CLAIMED = 1e3
"""Times that a liar's counts and speeds are what they were."""


class Forger:
    """The lies that one device hears.

    Parameters
    ----------
    attack : AttackOptions
        Who lies, and how.
    me, num_nodes, seed : int
        Who hears them, of how many, and the run's seed.
    """

    def __init__(self, attack: AttackOptions, me: int, num_nodes: int, seed: int) -> None:
        self._attack, self._me, self._seed = attack, me, seed
        self.liars = frozenset(attack.liars(num_nodes, seed))
        self._make, strength = ATTACKS[attack.kind]
        self._strength = strength if attack.strength == "auto" else attack.strength
        self.active = attack.in_payloads and me not in self.liars
        """Whether anything that is heard may be another thing than what was published."""

    def forge(
        self,
        plan: Plan,
        inbox: Inbox,
        mixer: Mixer,
        memory: dict[str, Tensor],
    ) -> Inbox:
        """Return an inbox with lies in it.

        Parameters
        ----------
        plan : Plan
            Of the round, which mixes what the round before has published.
        inbox : Inbox
            What was published by the neighbours, and by those whose blocks couriers have brought.
        mixer : Mixer
            Says what the device itself has sent of a block.
        memory : dict of str to Tensor
            The device's, in which it notes what an attack needs later.
        """
        if not self.active:
            return inbox
        lying = self.liars | {there.origin for there in plan.far if there.via in self.liars}
        found = {j: dict(payload) if j in lying else payload for j, payload in inbox.items()}
        begun = plan.server_round > self._attack.start  # of what was published a round ago
        for block, weights in plan.weights.items():
            pairs = zip(plan.sources, weights[1:], strict=True)
            others = {j: weight for j, weight in pairs if weight}
            if lying.isdisjoint(others):
                continue
            for name, mine in mixer.sent(block, inbox).items():
                lies = self._lies(plan, name, weights[0], others, lying, mine, inbox, memory)
                for j, lie in lies.items() if begun else ():
                    rest = inbox[j][name][len(lie) :]  # a number behind the block, as it is
                    found[j][name] = torch.cat([lie, rest])
        if begun and self._attack.payload == "forged":
            for j in self.liars & {*plan.neighbours}:
                found[j] |= {
                    name: falsified(name, x)
                    for name, x in found[j].items()
                    if name.startswith(STATISTICS)
                }
        return found

    def _lies(
        self,
        plan: Plan,
        name: str,
        own_weight: float,
        weights: Mapping[int, float],
        lying: frozenset[int],
        own: Tensor,
        inbox: Inbox,
        memory: dict[str, Tensor],
    ) -> dict[int, Tensor]:
        """Return what liars tell of a vector, by liar."""
        length = len(own)
        sent = {
            j: inbox[j][name][:length]
            for j in weights
            if name in inbox.get(j, {}) and len(inbox[j][name]) >= length
        }
        liars = [j for j in sent if j in lying]
        honest = [j for j in sent if j not in lying]
        if not liars:
            return {}
        true = torch.stack([sent[j] for j in liars])
        scene = Scene(
            own=own,
            near=torch.stack([sent[j] for j in honest]) if honest else own[None],
            lying=true,
            weights=(
                own_weight,
                tuple(weights[j] for j in honest),
                sum(weights[j] for j in liars),
            ),
            neighbours=len(sent),
            random=[
                torch_generator(self._seed, "lie", plan.server_round, j, self._me, name)
                for j in liars
            ],
            earlier=self._earlier(name, liars, true, memory),
        )
        return dict(zip(liars, self._make(scene, self._strength), strict=True))

    def _earlier(
        self, name: str, liars: Sequence[int], true: Tensor, memory: dict[str, Tensor]
    ) -> Tensor:
        """Return what liars have published some rounds ago, and note what they have now."""
        if self._attack.kind != EARLIER:
            return true
        found = list[Tensor]()
        for j, now in zip(liars, true, strict=True):
            key, last = f"{HEARD}{j}.{name}", self._attack.delay + 1
            known = torch.cat([memory.get(key, now[:0].view(0, len(now))), now[None]])[-last:]
            memory[key] = known
            found.append(known[0])
        return torch.stack(found)


def falsified(name: str, x: Tensor) -> Tensor:
    """Return a lie in the place of a statistic, of its type, shape and range.

    What has signs, such as prototypes, is negated. What has none, such as counts and speeds, is
    turned round, so that the last class counts for the first, and a thousand times as much. Soft
    labels are turned round, and stay shares. Whole numbers stay as they are.

    Parameters
    ----------
    name : str
        In a payload.
    x : Tensor
        What was published.
    """
    if not x.is_floating_point() or not x.numel():
        return x
    if x.dtype != torch.float32:
        return x.flip(-1)
    if bool((x < 0).any()):
        return -x
    claimed = (CLAIMED * x.flip(-1)).clamp(max=LARGEST)
    if name == REPORT:  # whose last entry is no count
        claimed = torch.cat([claimed[1:], x[-1:]])
    return claimed
