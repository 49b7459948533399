"""FedProto: neighbours agree on a prototype of each class, across modalities."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..learning.batch import Batch
from ..learning.optimisers import total
from ..learning.options import Options
from ..payload.plan import Inbox, Plan
from .prototypes import OwnPrototypes, averaged, class_means


class FedProtoOptions(Options):
    """The option of the prototypes."""

    weight: float = Field(0.1, ge=0, description="lambda: weight of the distance to the prototypes")


class FedProto(OwnPrototypes):
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

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Average the prototypes of the neighbourhood."""
        means, counts = averaged(self, inbox, self.settings.common_dim)
        self._has, self._prototypes = (counts > 0).to(self.device), means.to(self.device)

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

    def after_training(self, plan: Plan, inbox: Inbox) -> None:
        """Find the prototypes of the own training samples."""
        self.memory |= class_means(self, self._mean_common)

    def _mean_common(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        common = self.model.encode(inputs).common
        return {"": torch.stack(list(common.values())).mean(dim=0)}
