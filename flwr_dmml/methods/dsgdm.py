"""DSGDm: gossip with local momentum."""

from typing import ClassVar

from ..learning.learner import Learner


class DSGDm(Learner):
    """D-PSGD whose local momentum buffers survive mixing.

    References
    ----------
    The baseline of Lin et al., "Quasi-Global Momentum", ICML 2021 (DSGDm).
    """

    name: ClassVar[str] = "dsgdm"
    paper: ClassVar[str] = "Lin et al., ICML 2021 (baseline)"
    keeps_optimizer: ClassVar[bool] = True
