"""Nearest-neighbour mixing, before another rule (``nnm+…``)."""

from typing import ClassVar

import torch
from torch import Tensor

from ...base.options import Group
from .coordinates import Coordinates
from .mean import weighted_mean
from .rule import AggregationRule
from .weighing import Around, Weighing, product

NNM = "nnm+"
"""Prefix of a rule's name that asks for it."""


class Nnm(Weighing):
    """Replace every copy by the mean of those nearest to it, then apply a rule that weighs copies.

    Of m copies, the own among them, the ``m - b`` nearest are averaged, the copy itself included; b
    is how many liars are assumed. A mean has the weight of the copy that it stands for.

    Parameters
    ----------
    rule : Weighing
        What is applied to the means.

    References
    ----------
    Allouah et al., "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity",
    AISTATS 2023.
    """

    paper: ClassVar[str] = "Allouah et al., AISTATS 2023"
    references: ClassVar[tuple[str, ...]] = ("allouah2023fixing",)

    def __init__(self, rule: Weighing) -> None:
        super().__init__(Group(), rule.assume_liars)
        self.rule = rule

    @property
    def remembers(self) -> int:
        """As much as the rule."""
        return self.rule.remembers

    def __str__(self) -> str:
        """Return the name in a run config."""
        return f"{NNM}{self.rule}"

    def at(self, progress: float) -> "Nnm":
        """Return the same with the rule for a time of the run."""
        return Nnm(self.rule.at(progress))

    def most(self, neighbours: int) -> int:
        """Return how many may lie: as many as the rule can bear."""
        return self.rule.most(neighbours)

    def shares(self, around: Around) -> Tensor:
        """Return what the rule's weights of the means are of the copies, ``[rows, m]``."""
        to = company(around)
        return product(self.rule.shares(around.moved(to))[:, None], to).squeeze(1)


class NnmCoordinates(AggregationRule):
    """The same before a rule that looks at every number by itself.

    Parameters
    ----------
    rule : Coordinates
        What is applied to the means.

    References
    ----------
    As :class:`Nnm`.
    """

    paper: ClassVar[str] = Nnm.paper
    references: ClassVar[tuple[str, ...]] = Nnm.references
    robust: ClassVar[bool] = True

    def __init__(self, rule: Coordinates) -> None:
        super().__init__(Group(), rule.assume_liars)
        self.rule = rule

    def __str__(self) -> str:
        """Return the name in a run config."""
        return f"{NNM}{self.rule}"

    def most(self, neighbours: int) -> int:
        """Return how many may lie: as many as the rule can bear."""
        return self.rule.most(neighbours)

    def __call__(self, own: Tensor, near: Tensor, weights: Tensor) -> Tensor:
        """Return the rule's aggregate of the means ``[rows, length]``."""
        around = Around.of(self, own, near, weights)
        if around is None:
            return self.rule(own, near, weights)
        alone = torch.eye(near.shape[1] + 1, dtype=torch.float64)
        to = torch.where(around.liars[:, None, None] > 0, company(around), alone).to(own)
        near = torch.where(around.there[:, 1:, None].to(near.device), near, 0.0)
        means = torch.stack([weighted_mean(own, near, row) for row in to.unbind(1)], dim=1)
        given = means[:, 0], means[:, 1:], around.weights.to(weights)
        return self.rule.by_rows(*given, around.there[:, 1:], around.liars.tolist())


def with_nnm(rule: AggregationRule) -> AggregationRule | None:
    """Return a rule with nearest-neighbour mixing before it; None where it goes with none."""
    if isinstance(rule, Weighing):
        return Nnm(rule)
    return NnmCoordinates(rule) if isinstance(rule, Coordinates) else None


def company(around: Around) -> Tensor:
    """Return the weights of the means that stand for the copies, ``[rows, m, m]``."""
    apart = around.apart.masked_fill(~around.there[:, None], torch.inf)
    apart.diagonal(dim1=1, dim2=2).fill_(-1.0)  # a copy is its own nearest, whoever equals it
    order = apart.argsort(dim=2, stable=True).argsort(dim=2)
    near = order < (around.count - around.liars)[:, None, None]
    return near.double() / near.sum(dim=2, keepdim=True)
