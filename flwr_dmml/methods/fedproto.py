"""FedProto: neighbours agree on a prototype of each class, across modalities."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..gossip.aggregation.median import median_of_those
from ..learning.batch import BATCH, Batch, batch_of
from ..learning.learner import Learner
from ..learning.optimisers import total
from ..learning.options import Options
from ..payload.blocks import STATISTICS
from ..payload.plan import Inbox, Plan
from ..payload.received import received

PROTOTYPES, COUNTS = "prototypes", "prototype-counts"
FAR = 10.0
"""A neighbour's prototypes are refused if they are so many times as large as the own ones."""


class FedProtoOptions(Options):
    """The option of the prototypes."""

    weight: float = Field(0.1, ge=0, description="lambda: weight of the distance to the prototypes")


class FedProto(Learner):
    """Plain gossip with prototypes of the classes.

    After training a device k publishes the mean common feature ``p_k(y)`` of its n_k(y) own samples
    of each class y. In the next round it averages its own and its neighbours', and minimises::

        P_y = sum_k n_k(y) p_k(y) / sum_k n_k(y)
        CE(fused, y) + lambda mean_i mean_m ||c_i^m - P_(y_i)||^2

    over samples i and modalities m; a class without a prototype adds 0. Prototypes of a neighbour
    with a value that is more than 10 times the largest own one, and more than 10, are refused: they
    would make the receiver diverge. Under robust aggregation P_y is the median of each number, over
    those who have the class.

    This project's reading: features are the model's common ones, so that a device with a microphone
    hears of those with a camera; a sample's is the mean over its modalities. FedProto exchanges
    prototypes alone, here the blocks are mixed as well. Its code takes the mean square over the
    length of a feature, the sum here is ``common-dim`` times as much. With lambda = 0 this is
    ``dpsgd``.

    References
    ----------
    Tan et al., "FedProto: Federated Prototype Learning across Heterogeneous Clients", AAAI 2022.
    """

    name: ClassVar[str] = "fedproto"
    paper: ClassVar[str] = "Tan et al., AAAI 2022"
    references: ClassVar[tuple[str, ...]] = ("tan2022fedproto",)
    options_type: ClassVar[type[Options]] = FedProtoOptions
    unaccounted: ClassVar[str] = "prototypes of own samples"
    stacks: ClassVar[bool] = True
    options: FedProtoOptions

    def statistics(self) -> dict[str, Tensor]:
        """Return the prototypes ``[classes, common_dim]`` and their samples ``[classes]``."""
        return {key: self.memory[key] for key in (PROTOTYPES, COUNTS) if key in self.memory}

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Average the prototypes of the neighbourhood."""
        classes = self.partition.num_classes
        sums, counts = torch.zeros(classes, self.settings.common_dim), torch.zeros(classes)
        keys = [STATISTICS + PROTOTYPES, STATISTICS + COUNTS]
        trained = [n for n, payload in inbox.items() if any(key in payload for key in keys)]
        own = self.memory.get(PROTOTYPES, sums)
        most = FAR * max(1.0, float(own.abs().max()))
        prototypes, wrong = received(
            inbox,
            keys[0],
            sums.shape,
            of=trained,
            lowest=-most,
            highest=most,
            called=PROTOTYPES,
        )
        numbers, more = received(inbox, keys[1], classes, of=trained, called=COUNTS, lowest=0)
        self.rejected += wrong + more
        me = self.partition.partition_id
        if COUNTS in self.memory:
            prototypes[me], numbers[me] = self.memory[PROTOTYPES], self.memory[COUNTS]
        senders = sorted(prototypes.keys() & numbers.keys())
        for sender in senders:
            sums += numbers[sender][:, None] * prototypes[sender]
            counts += numbers[sender]
        self._has = (counts > 0).to(self.device)  # [classes]
        averaged = torch.where(counts[:, None] > 0, sums / counts[:, None], 0.0)
        if self.aggregation.robust and senders:
            every = torch.stack([prototypes[s] for s in senders])  # [senders, classes, common_dim]
            known = torch.stack([numbers[s] for s in senders]) > 0
            averaged = median_of_those(every, known[:, :, None])
        self._prototypes = averaged.to(self.device)

    def fixed(self) -> dict[str, Tensor]:
        """Return the prototypes ``[classes, common_dim]``, and which of them there are."""
        return {"prototypes": self._prototypes, "has": self._has}

    def local_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the class docstring."""
        features, y, given = self.model.encode(batch.inputs), batch.labels, batch.given
        goal = given["prototypes"].take_along_dim(y.unsqueeze(-1), dim=-2)  # [..., batch, common]
        terms = [(c - goal).square().sum(dim=-1) for c in features.common.values()]
        distance = total(terms) / len(terms) * given["has"].take_along_dim(y, dim=-1)
        return self.task_loss(features, y) + self.options.weight * distance.mean(dim=-1)

    @torch.no_grad()
    def after_training(self, plan: Plan, inbox: Inbox) -> None:
        """Find the prototypes of the own training samples."""
        self.model.eval()
        classes, data = self.partition.num_classes, self.train_data
        sums, counts = torch.zeros(classes, self.settings.common_dim), torch.zeros(classes)
        for rows in torch.split(torch.arange(len(data)), BATCH):
            for part in batch_of(data.subset(rows)).parts:
                common = self.model.encode(part.inputs).common
                mean = torch.stack(list(common.values())).mean(dim=0)
                sums.index_add_(0, part.labels.cpu(), mean.cpu())
                counts += torch.bincount(part.labels.cpu(), minlength=classes)
        self.memory |= {PROTOTYPES: sums / counts.clamp_min(1)[:, None], COUNTS: counts}
