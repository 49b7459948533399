"""What a device lets its neighbours send it."""

from collections.abc import Mapping

from ..learning.learner import Learner
from ..payload.limits import Limits

OWN_FORMAT = 4
"""Numbers that may stand for one of a block, where a method has a format of its own."""


def limits_of(learner: Learner, lengths: Mapping[str, int]) -> Limits:
    """Return what a neighbour's payload may hold.

    Parameters
    ----------
    learner : Learner
        The device's own: it knows the lengths of its blocks, and what is sent of each.
    lengths : mapping of str to int
        Of all blocks that two devices have, as the coordinator says; of the device's own, it knows
        them itself.
    """
    chosen = learner.settings.couriers
    couriers = learner.couriers if chosen == "auto" else chosen
    unicast = learner.rule.addressed or learner.settings.privacy.unicast
    several = unicast or learner.rule.coded or couriers != "off"
    return Limits(
        blocks=dict(lengths) | learner.block_lengths(),
        copies=learner.settings.num_nodes if several else 1,
        entries=2 * len(learner.rule.sends),
        statistics=learner.statistics_bytes(),
        width=OWN_FORMAT if learner.own_format else 1,
    )
