"""D-PSGD: plain gossip of models."""

from typing import ClassVar, Literal

from .rule import GossipRule


class DPSGDRule(GossipRule):
    """Send the trained model, and mix it with the neighbours'.

    The form with several local iterations between two rounds of gossip. The run's ``momentum`` acts
    within a round and starts from zero in the next, so that it never refers to a model that mixing
    has replaced; ``dsgdm`` keeps it.

    References
    ----------
    Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017.
    """

    name: ClassVar[str] = "dpsgd"
    paper: ClassVar[str] = "Lian et al., NeurIPS 2017"
    references: ClassVar[tuple[str, ...]] = ("lian2017can",)
    letters: ClassVar[Literal["beat", "newest", "every"]] = "newest"
