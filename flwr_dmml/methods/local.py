"""Training alone: the floor that every method of communication must beat."""

from typing import ClassVar

from ..learning.learner import Learner


class Local(Learner):
    """Train on one's own data and send nothing; the optimiser is never interrupted."""

    name: ClassVar[str] = "local"
    paper: ClassVar[str] = "baseline"
    communicates: ClassVar[bool] = False
    gossip: ClassVar[str] = "dsgdm"
