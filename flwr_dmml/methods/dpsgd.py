"""D-PSGD: plain gossip."""

from typing import ClassVar

from ..learning.learner import Learner


class DPSGD(Learner):
    """Mix every block with the neighbours that own it, then train on cross-entropy.

    The form with several local iterations between two rounds of gossip. The run's ``momentum`` acts
    within a round and starts from zero in the next, so that it never refers to a model that mixing
    has replaced; ``dsgdm`` keeps it.

    References
    ----------
    Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017.
    """

    name: ClassVar[str] = "dpsgd"
    paper: ClassVar[str] = "Lian et al., NeurIPS 2017"
    batched: ClassVar[bool] = True
