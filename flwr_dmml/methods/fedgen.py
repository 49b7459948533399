"""FedGen: a gossiped generator of features teaches every device what its neighbours know."""

from typing import ClassVar

from pydantic import Field

from ..learning.options import Options
from .dmml_kd import DmmlKdOptions, GeneratorDistillation


class FedGenOptions(DmmlKdOptions):
    """The options of DMML-KD, without its decomposition and with FedGen's generator steps."""

    decomposition: bool = Field(False, description="losses that make features common or specific")
    generator_steps: int = Field(50, ge=1, description="generator steps per round")


class FedGen(GeneratorDistillation):
    """Distillation without data, from a gossiped generator of features.

    :class:`~.dmml_kd.GeneratorDistillation` without its decomposition losses; from round 2 on, with
    B_t = ``guidance * guidance-decay^(t-2)``::

        L = CE(fused, y) + B_t E CE(h(G(y', eps)), y') + B_t mean_m KL(h(G(y, eps)) || h(c^m))

    G is trained against the common heads h of the device and its neighbours, weighted by label
    counts, and mixed like any block; in FedGen the server trains it.

    This project's reading: in FedGen G makes the feature that the whole prediction is read from.
    Here that is the common feature, read by the common head alone: the second and third terms do
    not touch the specific heads, and KL compares each modality's own common logits. The code has
    B_2 = 10 at a fifth of this project's learning rate and without momentum; here it is 1.

    References
    ----------
    Zhu, Hong and Zhou, "Data-Free Knowledge Distillation for Heterogeneous Federated Learning",
    ICML 2021.
    """

    name: ClassVar[str] = "fedgen"
    paper: ClassVar[str] = "Zhu, Hong and Zhou, ICML 2021"
    references: ClassVar[tuple[str, ...]] = ("zhu2021data",)
    options_type: ClassVar[type[Options]] = FedGenOptions
    options: FedGenOptions
