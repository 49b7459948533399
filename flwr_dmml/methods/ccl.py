"""CCL: features agree with those of the neighbours' models, and with what these see of a class."""

import copy
from collections.abc import Hashable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ..gossip.aggregation.median import median_of_those
from ..gossip.qg_dsgdm import QgDsgdmNRule
from ..learning.batch import BATCH, Batch, batch_of
from ..learning.learner import Learner
from ..learning.options import Options
from ..models.stacked import encode
from ..payload.blocks import STATISTICS, load_flat
from ..payload.plan import Inbox, Plan
from ..payload.received import received

MEANS, COUNTS = "ccl-means.", "ccl-counts."


class CclOptions(Options):
    """Weights of the cross-features."""

    model_weight: float = Field(
        0.1, ge=0, description="lambda_m: weight of the distance to features of neighbours' models"
    )
    data_weight: float = Field(
        0.1, ge=0, description="lambda_d: weight of the distance to a class's features elsewhere"
    )


class Ccl(Learner):
    """Gossip with a loss on cross-features: of other models, and on other devices' data.

    phi_i(x) are the features of a sample in the model of device i. Neighbours' models stand still
    for a round, and no gradient goes through them::

        CE + lambda_m sum_j mse(phi_i(x), phi_j(x)) + lambda_d mse(phi_i(x), P_y)

    P_y is the mean of phi_i over samples of class y, the own and those of the neighbours: device j
    finds the means of phi_i, i's model as j has it, over j's samples of each class, and sends them
    back with their numbers. A class that nobody has adds 0.

    This project's reading: features are an encoder's, common and specific ones, for each modality
    that both devices have; the mean is over the modalities of an iteration. Means are over all
    training samples instead of those of a mini-batch, and reach their device a round later. Several
    local iterations share them. Under robust aggregation models that were dropped do not teach, and
    P_y is the median of each number, over those who have the class. With both weights 0 it is
    plain cross-entropy on its gossip rule.

    References
    ----------
    Aketi and Roy, "Cross-feature Contrastive Loss for Decentralized Deep Learning on Heterogeneous
    Data", WACV 2024.
    """

    name: ClassVar[str] = "ccl"
    paper: ClassVar[str] = "Aketi and Roy, WACV 2024"
    references: ClassVar[tuple[str, ...]] = ("aketi2024cross",)
    options_type: ClassVar[type[Options]] = CclOptions
    unaccounted: ClassVar[str] = "class means of own samples' features"
    compares: ClassVar[bool] = True
    gossip: ClassVar[str] = QgDsgdmNRule.name
    stacks: ClassVar[bool] = True
    options: CclOptions

    def statistics(self) -> dict[str, Tensor]:
        """Return the means ``[classes, width]`` of each neighbour's features, and the counts."""
        return {k: x for k, x in self.memory.items() if k.startswith((MEANS, COUNTS))}

    def statistics_bytes(self) -> int:
        """Return those of means of all other devices' features, beside the usual."""
        width = self.settings.common_dim + self.settings.specific_dim
        one = 4 * self.partition.num_classes * (width + 1)
        models = self.settings.num_nodes * len(self.partition.source_modalities)
        return super().statistics_bytes() + one * models

    @torch.no_grad()
    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Take up the neighbours' models, what they say of the own one, and tell them of theirs."""
        me, self._near = self.partition.partition_id, dict[str, list[nn.Module]]()
        self._goal, self._has = dict[str, Tensor](), dict[str, Tensor]()
        self.memory = {}
        for m, encoder in self.encoders().items():
            models = self.mixer.models(f"encoder.{m}", plan, inbox)
            near = {j: _frozen(encoder, vector) for j, vector in models.items()}
            self._near[m] = [*near.values()] if self.options.model_weight else []
            if not self.options.data_weight:
                continue
            means, counts = self._means(m, encoder.eval())
            told = [(means, counts), *self._heard(f"{m}.{me}", inbox, means)]
            goal, total = self._together(told)
            self._goal[m], self._has[m] = goal.to(self.device), (total > 0).to(self.device)
            for j, module in near.items():
                theirs, number = self._means(m, module)
                self.memory |= {f"{MEANS}{m}.{j}": theirs, f"{COUNTS}{m}.{j}": number}

    def _heard(self, whose: str, inbox: Inbox, like: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return what neighbours have found of the own model: means and numbers of samples."""
        keys = STATISTICS + MEANS + whose, STATISTICS + COUNTS + whose
        told = [n for n, payload in inbox.items() if any(key in payload for key in keys)]
        means, wrong = received(inbox, keys[0], tuple(like.shape), of=told, called="ccl-means")
        counts, more = received(inbox, keys[1], len(like), of=told, called="ccl-counts", lowest=0)
        self.rejected += wrong + more
        return [(means[n], counts[n]) for n in sorted(means.keys() & counts.keys())]

    def _together(self, told: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return each class's features ``[classes, width]`` and number, of what devices tell."""
        total = torch.stack([counts for _, counts in told]).sum(dim=0)  # whole numbers
        if self.aggregation.robust:
            means = torch.stack([means for means, _ in told])
            known = torch.stack([counts for _, counts in told]) > 0
            return median_of_those(means, known[:, :, None]), total
        sums = told[0][0] * told[0][1][:, None]
        for means, counts in told[1:]:
            sums = sums + means * counts[:, None]
        return sums / total.clamp(min=1)[:, None], total

    def _means(self, modality: str, encoder: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the mean feature ``[classes, width]`` and the number ``[classes]`` of samples."""
        classes, data = self.partition.num_classes, self.train_data
        width = self.settings.common_dim + self.settings.specific_dim
        sums, counts = torch.zeros(classes, width), torch.zeros(classes)
        for rows in torch.split(torch.arange(len(data)), BATCH):
            for part in batch_of(data.subset(rows)).parts:
                if modality in part.inputs:
                    labels = part.labels.cpu()
                    sums.index_add_(0, labels, encode(encoder, part.inputs[modality]).cpu())
                    counts += torch.bincount(labels, minlength=classes)
        return sums / counts.clamp(min=1)[:, None], counts

    def stack_key(self) -> Hashable:
        """Return how many models of each modality there are."""
        return tuple((m, len(near)) for m, near in self._near.items())

    def frozen(self) -> dict[str, nn.Module]:
        """Return the neighbours' encoders."""
        return {f"{m}.{n}": x for m, near in self._near.items() for n, x in enumerate(near)}

    def fixed(self) -> dict[str, Tensor]:
        """Return the classes' features ``[classes, width]``, and which of them there are."""
        goals = {f"goal.{m}": goal for m, goal in self._goal.items()}
        return goals | {f"has.{m}": has for m, has in self._has.items()}

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the class docstring."""
        features, y, options = self.model.encode(batch.inputs), batch.labels, self.options
        loss = self.task_loss(features, y)
        for m, x in batch.inputs.items():
            z = torch.cat([features.common[m], features.specific[m]], dim=-1)
            for module in self._near[m]:
                with torch.no_grad():
                    other = encode(module, x)
                away = (z - other).square().mean(dim=(-2, -1))
                loss = loss + options.model_weight / len(batch.inputs) * away
            if options.data_weight:
                goal = batch.given[f"goal.{m}"].take_along_dim(y.unsqueeze(-1), dim=-2)
                has = batch.given[f"has.{m}"].take_along_dim(y, dim=-1)
                away = ((z - goal).square().mean(dim=-1) * has).mean(dim=-1)
                loss = loss + options.data_weight / len(batch.inputs) * away
        return loss


def _frozen(encoder: nn.Module, vector: Tensor) -> nn.Module:
    """Return an encoder with other numbers, that is not trained."""
    module = copy.deepcopy(encoder).eval().requires_grad_(False)
    load_flat(module, vector)
    return module
