"""PARSE: features in three slices, of which devices share those that mean the same to both."""

from itertools import combinations
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from ..learning.batch import Batch
from ..learning.learner import Learner
from ..learning.optimisers import total
from ..learning.options import Options
from ..losses import alignment_loss, orthogonality_loss
from ..models.sliced import SlicedClassifier

SYNERGISTIC = "synergistic."


class ParseOptions(Options):
    """What is shared, and the weights of the terms, this project's."""

    share: Literal["slices", "heads", "encoders", "both"] = Field(
        "slices", description="what neighbours mix: alignable slices, or a baseline's parts"
    )
    contrast: float = Field(0.1, ge=0, description="weight of the redundant slices' contrast")
    temperature: float = Field(0.1, gt=0, description="its temperature")
    apart: float = Field(0.3, ge=0, description="weight of redundant against unique slices")


class Parse(Learner):
    """Plain gossip with partial alignment of slices.

    Each encoder's output is cut in three slices [r; u; s] of equal length, redundant, unique and
    synergistic, with a head for each kind (:class:`~flwr_dmml.models.sliced.SlicedClassifier`). A
    device minimises, a term of several modalities only where they are there::

        CE(h_R(mean_m r^m), y) + mean_m CE(h_U^m(u^m), y) + CE(sum_m S^m s^m, y)
          + contrast mean_(m<n) NCE(r^m, r^n) + apart mean_m diff(r^m, u^m)
        NCE(r, q) = mean_i -log exp(cos(r_i, q_i)/T) / sum_j exp(cos(r_i, q_j)/T)

    diff is :func:`~flwr_dmml.losses.orthogonality_loss`. The prediction is the mean of the three
    heads, of h_U^m over m. What neighbours mix, by ``share``:

    - "slices": encoder m and h_U^m with those who own m, h_R with all, the S with those who have
      the same modalities;
    - "heads": all heads, the S^m with all who own m and another modality; encoders stay local;
    - "encoders": encoder m with those who own m; heads stay local;
    - "both": encoders and heads, as in the two before.

    The last three are the paper's baselines DSGD-Task, DSGD-Modality and DSGD-Hybrid on the same
    model. They know no slices: they add up the three heads, as one head on all of a feature, and
    minimise the cross-entropy of that, nothing else.

    The slices, their heads and who shares them are the paper's; the losses and their weights are
    this project's reconstruction. The slice is a third of ``common-dim + specific-dim``. A device
    with one sensor has h_R and its h_U. ``fusion`` and ``modality-loss`` have no effect.

    References
    ----------
    Shi et al., "PID-Guided Partial Alignment for Multimodal Decentralized Federated Learning",
    arXiv 2601.10012, 2026.
    """

    name: ClassVar[str] = "parse"
    paper: ClassVar[str] = "Shi et al., arXiv 2601.10012, 2026 (reconstruction)"
    references: ClassVar[tuple[str, ...]] = ("shi2026pid",)
    options_type: ClassVar[type[Options]] = ParseOptions
    stacks: ClassVar[bool] = True
    unaccounted: ClassVar[str] = "a loss that compares samples of a mini-batch"
    options: ParseOptions
    model: SlicedClassifier  # type: ignore[assignment]

    def build_model(self) -> SlicedClassifier:  # type: ignore[override]
        """Return the encoders of this device's modalities, and the heads of their slices."""
        s = self.settings
        return SlicedClassifier(
            {m: self.partition.source_modalities[m] for m in self.partition.modalities},
            self.partition.num_classes,
            width=max(1, (s.common_dim + s.specific_dim) // 3),
            summed=self.options.share != "slices",
            choice=s.encoder_choice,
            seed=s.seed,
        )

    def blocks(self) -> dict[str, nn.Module]:
        """Return what is shared; the name of a block says with whom."""
        shared = {k: block for k, block in self.model.blocks().items() if self._mixes(k)}
        if self.options.share != "slices":
            return shared
        aligned = f"{SYNERGISTIC}{'+'.join(self.partition.modalities)}."
        names = {
            k: aligned + k.removeprefix(SYNERGISTIC) for k in shared if k.startswith(SYNERGISTIC)
        }
        return {names.get(k, k): block for k, block in shared.items()}

    def private_blocks(self) -> dict[str, nn.Module]:
        """Return what stays local."""
        return {k: block for k, block in self.model.blocks().items() if not self._mixes(k)}

    def _mixes(self, block: str) -> bool:
        encodes = block.startswith("encoder.")
        return self.options.share not in (("heads",) if encodes else ("encoders",))

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the class docstring."""
        o, y, z = self.options, batch.labels, self.model.encode(batch.inputs)
        if o.share != "slices":
            return self.cross_entropy(self.model.fuse(z), y)
        redundant, unique, synergistic = self.model.heads(z)
        loss = self.cross_entropy(redundant, y)
        loss = loss + total(self.cross_entropy(logits, y) for logits in unique) / len(unique)
        for logits in synergistic:
            loss = loss + self.cross_entropy(logits, y)
        pairs = list(combinations(z.redundant.values(), 2)) if o.contrast else []
        if pairs:
            near = total(alignment_loss(a, b, o.temperature) for a, b in pairs)
            loss = loss + o.contrast * near / len(pairs)
        if o.apart:
            alike = [orthogonality_loss(r, z.unique[m]) for m, r in z.redundant.items()]
            loss = loss + o.apart * total(alike) / len(alike)
        return loss
