"""DSGDm: plain gossip, with local momentum that lasts."""

from typing import ClassVar, Literal

from .rule import GossipRule


class DSGDmRule(GossipRule):
    """D-PSGD whose local momentum (or the state of Adam) survives mixing.

    References
    ----------
    The baseline of Lin et al., "Quasi-Global Momentum", ICML 2021 (DSGDm).
    """

    name: ClassVar[str] = "dsgdm"
    paper: ClassVar[str] = "Lin et al., ICML 2021 (baseline)"
    references: ClassVar[tuple[str, ...]] = ("lin2021quasi",)
    momentum: ClassVar[Literal["round", "kept", "own"]] = "kept"
    letters: ClassVar[Literal["beat", "newest", "every"]] = "newest"
