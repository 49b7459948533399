"""Prototypes of the classes: mean features that devices publish and average with neighbours'."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..gossip.aggregation.median import median_of_those
from ..learning.batch import BATCH, batch_of
from ..learning.learner import Learner
from ..losses import cross_entropies, unit
from ..models import Features
from ..payload.blocks import STATISTICS
from ..payload.plan import Inbox, Plan
from ..payload.received import received

PROTOTYPES, COUNTS = "prototypes", "prototype-counts"
FAR = 10.0
"""A neighbour's prototypes are refused if they are so many times as large as the own ones."""
Featured = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Inputs by modality to features ``[batch, length]``, by the end of their prototypes' names."""


@torch.no_grad()
def class_means(learner: Learner, features: Featured) -> dict[str, Tensor]:
    """Return the prototypes of a device's own training samples, as they are published.

    ``prototypes<of>`` ``[classes, length]`` and ``prototype-counts<of>`` ``[classes]``, by what
    ``features`` names. The model predicts meanwhile: it does not train.
    """
    learner.model.eval()
    classes, data = learner.partition.num_classes, learner.train_data
    sums, counts = dict[str, Tensor](), dict[str, Tensor]()
    for rows in torch.split(torch.arange(len(data)), BATCH):
        for part in batch_of(data.subset(rows)).parts:
            labels = part.labels.cpu()
            for of, z in features(part.inputs).items():
                sums.setdefault(of, torch.zeros(classes, z.shape[1])).index_add_(0, labels, z.cpu())
                own = counts.setdefault(of, torch.zeros(classes))
                own += torch.bincount(labels, minlength=classes)
    means = {PROTOTYPES + of: s / counts[of].clamp_min(1)[:, None] for of, s in sums.items()}
    return means | {COUNTS + of: n for of, n in counts.items()}


def averaged(learner: Learner, inbox: Inbox, length: int, of: str = "") -> tuple[Tensor, Tensor]:
    """Average a device's prototypes, in its memory, with those of its neighbours.

    By the samples that each has; under robust aggregation it is the median of each number, over
    those who have the class. A neighbour's with a value that is more than :data:`FAR` times the
    largest own one, and more than :data:`FAR`, are refused: they would make the receiver diverge.

    Returns
    -------
    tuple of Tensor
        ``[classes, length]``, 0 where nobody has the class, and who has it: samples ``[classes]``.
    """
    classes = learner.partition.num_classes
    sums, counts = torch.zeros(classes, length), torch.zeros(classes)
    keys = [STATISTICS + PROTOTYPES + of, STATISTICS + COUNTS + of]
    sent = [n for n, payload in inbox.items() if any(key in payload for key in keys)]
    own = learner.memory.get(PROTOTYPES + of, sums)
    most = FAR * max(1.0, float(own.abs().max()))
    prototypes, wrong = received(
        inbox,
        keys[0],
        sums.shape,
        of=sent,
        lowest=-most,
        highest=most,
        called=PROTOTYPES + of,
    )
    numbers, more = received(inbox, keys[1], classes, of=sent, called=COUNTS + of, lowest=0)
    learner.rejected += wrong + more
    me = learner.partition.partition_id
    if COUNTS + of in learner.memory:
        prototypes[me] = learner.memory[PROTOTYPES + of]
        numbers[me] = learner.memory[COUNTS + of]
    senders = sorted(prototypes.keys() & numbers.keys())
    for sender in senders:
        sums += numbers[sender][:, None] * prototypes[sender]
        counts += numbers[sender]
    means = torch.where(counts[:, None] > 0, sums / counts[:, None], 0.0)
    if learner.aggregation.robust and senders:
        every = torch.stack([prototypes[s] for s in senders])  # [senders, classes, length]
        known = torch.stack([numbers[s] for s in senders]) > 0
        means = median_of_those(every, known[:, :, None])
    return means, counts


class OwnPrototypes(Learner):
    """Base of methods that send prototypes of own samples, in the round that has found them.

    A device that rests sends none.
    """

    def after_mixing(self, plan: Plan, inbox: Inbox) -> None:
        """Let a device that rests forget its own."""
        if plan.iterations and not self.trains(plan):
            self.forget_prototypes()

    def forget_prototypes(self) -> None:
        """Forget the own prototypes, which have been sent."""
        own = self.statistics()
        self.memory = {k: v for k, v in self.memory.items() if k not in own}

    def statistics(self) -> dict[str, Tensor]:
        """Return the own prototypes and their samples."""
        return {k: v for k, v in self.memory.items() if k.startswith((PROTOTYPES, COUNTS))}


class Prototyped(OwnPrototypes):
    """Base of methods with prototypes of each modality's features.

    After mixing, and before it trains, a device finds the mean features of its own samples of each
    class by modality, with the mixed encoders, and averages them with those that its neighbours
    found in the round before. It publishes its own at the end of the round. Encoders that have just
    been mixed are near each other: means of trained ones would lie in spaces of their own.

    In ``batch.given`` are ``prototypes.<m>`` ``[classes, length]`` of every modality m that is
    known there, the own and others', and which of them there are, ``has.<m>`` ``[classes]`` bool.
    """

    stacks: ClassVar[bool] = True

    def features(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the features ``[..., batch, length]`` of each modality that prototypes are of."""
        return whole(self.model.encode(inputs))

    def length(self) -> int:
        """Return the length of a feature."""
        return self.settings.common_dim + self.settings.specific_dim

    def before_training(self, plan: Plan, inbox: Inbox) -> None:
        """Find the own prototypes, and average those of the neighbourhood."""
        self.find_prototypes()
        self.prototypes: dict[str, Tensor] = {}
        for m in self.modalities:
            means, counts = averaged(self, inbox, self.length(), f".{m}")
            self.prototypes[f"prototypes.{m}"] = means.to(self.device)
            self.prototypes[f"has.{m}"] = (counts > 0).to(self.device)

    def find_prototypes(self) -> None:
        """Find the mean features of the own samples."""
        named = lambda x: {f".{m}": z for m, z in self.features(x).items()}  # noqa: E731
        self.memory |= class_means(self, named)

    def fixed(self) -> dict[str, Tensor]:
        """Return the prototypes, and which of them there are."""
        return self.prototypes


def whole(features: Features) -> dict[str, Tensor]:
    """Return the common and the specific half of each modality's feature together."""
    return {m: torch.cat([c, features.specific[m]], dim=-1) for m, c in features.common.items()}


def contrast(
    z: Tensor, prototypes: Tensor, has: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """Return ``mean_i -log softmax_c( cos(z_i, p_c) / T )[y_i]``, ``[...]``.

    Parameters
    ----------
    z, labels : Tensor
        Features ``[..., batch, length]`` and classes ``[..., batch]``.
    prototypes, has : Tensor
        p ``[..., classes, length]``, and which of them there are, ``[..., classes]``: not 0. A
        sample of a class without one adds 0.
    temperature : float
        T > 0.
    """
    cosines = (unit(z)[..., :, None, :] * unit(prototypes)[..., None, :, :]).sum(dim=-1)
    near = cosines.masked_fill((has == 0)[..., None, :], -1e4) / temperature
    there = (has != 0).take_along_dim(labels, dim=-1)
    return (cross_entropies(near, labels) * there).mean(dim=-1)
