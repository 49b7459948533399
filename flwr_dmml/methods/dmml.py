"""DMML: what makes networks of unequal devices learn together, without distillation."""

from typing import ClassVar

from ..gossip.leaky_d2 import LeakyD2Rule
from ..learning.hooks import CourierChoice
from ..learning.label_shares import Correction
from ..learning.learner import Learner
from ..learning.settings import FusionChoice
from ..payload.coding import Precision


class Dmml(Learner):
    """Cross-entropy with the choices that benchmarks found best, each a setting of any method.

    Gradients corrected by how they differ from the network's; half of the joint iterations split
    into solo ones, and a loss of each modality; as many iterations of each as its speed asks for;
    losses corrected for label skew; couriers between owners of a sensor that no link joins, and
    blocks in a quarter of the bytes. On vectors: noise in training, and fused heads that do not
    train the encoders.
    """

    name: ClassVar[str] = "dmml"
    paper: ClassVar[str] = "this project"
    gossip: ClassVar[str] = LeakyD2Rule.name
    stagger: ClassVar[float] = 0.5
    modality_loss: ClassVar[float] = 1.0
    fusion: ClassVar[FusionChoice] = "auto"
    input_noise: ClassVar[float] = 1.0
    allocation: ClassVar[str] = "max-min"
    label_correction: ClassVar[Correction] = "network"
    couriers: ClassVar[CourierChoice] = "forward"
    exchange_precision: ClassVar[Precision] = "int8"
