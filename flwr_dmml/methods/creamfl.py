"""CreamFL: neighbours exchange features of public pairs, and learn from their ensemble."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ..data import public_problems
from ..gossip.aggregation.median import median_of_those
from ..learning.batch import BATCH, Batch
from ..learning.optimisers import total
from ..learning.options import Options
from ..learning.settings import DeviceSettings
from ..losses import alignment_loss, unit
from ..payload.blocks import STATISTICS
from ..payload.plan import Inbox, Plan
from ..payload.received import received
from .moon import contrastive_loss
from .prototypes import whole
from .statistics_only import StatisticsOnly, StatisticsOnlyOptions
from .with_public import WithPublic

FEATURES = "public-features."


class CreamFlOptions(StatisticsOnlyOptions):
    """Options of the contrastive ensemble."""

    weight: float = Field(0.5, ge=0, description="weight of both contrasts on public samples")
    temperature: float = Field(0.5, gt=0, description="their temperature")
    distil: float = Field(0.3, ge=0, description="weight of the distance to the ensemble")
    pairs: int = Field(500, ge=2, description="public samples used, at most")

    def problems(self, settings: DeviceSettings) -> list[str]:
        """Refuse a run without a fit public set."""
        public = public_problems(settings.public, settings.partition_options())
        return super().problems(settings) + public


class CreamFl(StatisticsOnly, WithPublic):
    """Plain gossip with a contrastive representation ensemble on public pairs.

    After mixing, a device finds its features f^m(i), of unit length, of each modality m of the
    public samples i, and publishes them. From its own and those that its neighbours found in the
    round before it makes an ensemble of each modality, with b^m their plain mean and b that of the
    other modalities' b^n::

        w_k = softmax_k( log softmax_j(f_k^m(i) . b(j))[i] )        g^m(i) = sum_k w_k f_k^m(i)

    In each iteration it takes a mini-batch of public samples as well, and adds for each modality m
    that the iteration trains, with z = f^m of the model as it is, g the mean of the other
    modalities' ensembles, and f_old what it published last::

        weight (-log softmax_j(cos(z_i, g(j))/T)[i] - log softmax(a_i, b_i)[0])
        + distil mean (z_i - g^m(i))^2
        a_i = cos(z_i, g^m(i))/T      b_i = cos(z_i, f_old(i))/T

    This project's reading: neighbours take the place of the server, which has a larger model of its
    own there, and its ensemble is distilled into the device's model; the first contrast is over the
    mini-batch; a feature is its common and its specific half. With more than two modalities the
    other one is the mean of the others (ours). A device that hears of no other modality, such as
    one with one sensor among its like, takes its own in its place. Under robust aggregation g^m is
    a median. With ``blocks = false`` devices exchange features alone; the paper's clients do. With
    both weights 0 this is ``dpsgd``.

    References
    ----------
    Yu et al., "Multimodal Federated Learning via Contrastive Representation Ensemble", ICLR 2023;
    formulas as in its released code.
    """

    name: ClassVar[str] = "creamfl"
    paper: ClassVar[str] = "Yu et al., ICLR 2023"
    references: ClassVar[tuple[str, ...]] = ("yu2023multimodal",)
    options_type: ClassVar[type[Options]] = CreamFlOptions
    stacks: ClassVar[bool] = True
    unaccounted: ClassVar[str] = "mini-batches of own samples together with public ones"
    options: CreamFlOptions

    @property
    def shape(self) -> tuple[int, int]:
        """Public samples and features of each."""
        length = self.settings.common_dim + self.settings.specific_dim
        return min(self.options.pairs, len(self.public_set)), length

    def statistics(self) -> dict[str, Tensor]:
        """Return the own features ``[pairs, length]`` by modality."""
        return {k: x for k, x in self.memory.items() if k.startswith(FEATURES)}

    def statistics_bytes(self) -> int:
        """Return those of all modalities' features, beside the usual."""
        pairs, length = self.shape
        return super().statistics_bytes() + 4 * pairs * length * len(self.public_set.modalities)

    @torch.no_grad()
    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Find the own features, and the ensembles of the neighbourhood."""
        self._goals: dict[str, Tensor] = {}
        if not (self.options.weight or self.options.distil):
            return
        self._rng, self._rows = self.rng("public"), torch.arange(self.shape[0])
        old, own = self.statistics(), self._find()
        given: dict[str, list[Tensor]] = {}
        for m in self.public_set.modalities:
            key = STATISTICS + FEATURES + m
            sent = received(inbox, key, self.shape, optional=True, lowest=-1.1, highest=1.1)
            self.rejected += sent[1]
            mine = [own[m]] if m in own else []
            if found := mine + [unit(x) for _, x in sorted(sent[0].items())]:
                given[m] = found
        plain = {m: torch.stack(found).mean(dim=0) for m, found in given.items()}
        robust = self.aggregation.robust
        near = {m: ensemble(x, others(plain, m), robust=robust) for m, x in given.items()}
        for m, x in own.items():
            goals = {"own": near[m], "other": others(near, m), "old": old.get(FEATURES + m, x)}
            self._goals |= {f"{kind}.{m}": goal.to(self.device) for kind, goal in goals.items()}
        self.memory |= {FEATURES + m: x for m, x in own.items()}

    def _find(self) -> dict[str, Tensor]:
        self.model.eval()
        parts = [self.public.subset(rows).inputs for rows in torch.split(self._rows, BATCH)]
        each = [whole(self.model.encode(inputs)) for inputs in parts]
        return {m: unit(torch.cat([z[m] for z in each])).cpu() for m in each[0]}

    def draw(self, batch: Batch) -> dict[str, Tensor]:
        """Draw public samples, and return what the loss compares them with, by modality."""
        owned = [m for m in batch.inputs if f"own.{m}" in self._goals]
        if not owned:
            return {}
        size = self.settings.batch_size
        rows = torch.randint(self.shape[0], (size,), generator=self._rng)
        given = {f"public.{m}": self.public.subset(rows).inputs[m] for m in owned}
        at = rows.to(self.device)
        return given | {k: x[at] for k, x in self._goals.items() if k.partition(".")[2] in owned}

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the class docstring."""
        loss, given = self.task_loss(self.model.encode(batch.inputs), batch.labels), batch.given
        public = {m: given[f"public.{m}"] for m in batch.inputs if f"public.{m}" in given}
        if not public:
            return loss
        o, z = self.options, whole(self.model.encode(public))
        for m, x in z.items():
            own, other, old = (given[f"{kind}.{m}"] for kind in ("own", "other", "old"))
            apart = alignment_loss(x, other, o.temperature)
            apart = apart + contrastive_loss(x, own, old, o.temperature)
            far = (unit(x) - own).square().flatten(-2).mean(dim=-1)
            loss = loss + o.weight * apart + o.distil * far
        return loss


def others(features: Mapping[str, Tensor], modality: str) -> Tensor:
    """Return the mean of the other modalities' features; a modality's own if there is no other."""
    rest = [x for m, x in features.items() if m != modality]
    return total(rest) / len(rest) if rest else features[modality]


def ensemble(each: list[Tensor], other: Tensor, *, robust: bool = False) -> Tensor:
    """Return the ensemble of devices' features ``[pairs, length]``, see :class:`CreamFl`.

    Parameters
    ----------
    each : list of Tensor
        Those of every device, ``[pairs, length]``, of unit length.
    other : Tensor
        b ``[pairs, length]``, of the other modalities.
    robust : bool
        The median of each number instead.
    """
    stack = torch.stack(each)  # [devices, pairs, length]
    if robust:
        return median_of_those(stack, torch.ones(1, dtype=torch.bool))
    right = [F.log_softmax(f @ other.T, dim=1).diagonal() for f in each]
    return (torch.stack(right).softmax(dim=0)[..., None] * stack).sum(dim=0)
