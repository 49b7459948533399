"""Gossip rules stepped on rows, without devices: for tests, benchmarks, and a rule of one's own."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..base.options import Group
from .aggregation.mean import Mean
from .rule import LARGEST_SCALE, Aggregate, GossipRule, Mix, State, Steps, weight_of


class Trial:
    """Devices as rows of one block, which minimise a function each by a gossip rule.

    Parameters
    ----------
    rule : GossipRule
        The rule.
    x : Tensor
        Where they start, ``[devices, length]``.
    gradient : callable
        Gradients of the devices' functions at a point each, ``[devices, length]`` to the same.
    lr : float
        The learning rate.
    momentum : float (default: 0)
        The run's ``momentum``.
    normalises : bool (default: False)
        The setting ``gossip-normalise``.
    aggregate : callable, optional
        The aggregation rule; the weighted mean by default.
    code : callable, optional
        What arrives of a change ``[devices, length]``, for rules that mix copies; all by default.
    kept : float (default: 1)
        The share of numbers that it keeps.

    Attributes
    ----------
    x : Tensor
        The models: mixed after :meth:`mix`, trained after :meth:`train`, ``[devices, length]``.
    """

    def __init__(
        self,
        rule: GossipRule,
        x: Tensor,
        gradient: Callable[[Tensor], Tensor],
        *,
        lr: float,
        momentum: float = 0.0,
        normalises: bool = False,
        aggregate: Aggregate | None = None,
        code: Callable[[Tensor], Tensor] | None = None,
        kept: float = 1.0,
    ) -> None:
        self.rule, self.x, self.lr, self.momentum = rule, x, lr, momentum
        self._gradient, self._aggregate = gradient, aggregate or Mean(Group())
        self._normalises = normalises and rule.normalised
        self._restarted = momentum if rule.momentum == "round" else 0.0
        self._state: State = rule.start(x)
        self._sent: tuple[Tensor, ...] = ()
        self._code, self._kept = code or (lambda change: change), kept
        self._copies = (x, *(self._nothing(kind) for kind in rule.sends[1:]))
        self._v = torch.zeros_like(x)

    def round(self, weights: Tensor, tau: Tensor, *, anew: bool = False) -> None:
        """Mix what the last round has published, train, and publish; see both."""
        self.mix(weights, anew=anew)
        self.train(tau)

    def mix(self, weights: Tensor, *, anew: bool = False) -> None:
        """Mix what has been published.

        Parameters
        ----------
        weights : Tensor
            ``[devices, devices]``; rows sum to 1.
        anew : bool
            Whether the rule starts anew afterwards.
        """
        near, row = _lists(weights)
        own = self._sent or (self.x, *(self._nothing(kind) for kind in self.rule.sends[1:]))
        if not self._sent:  # nobody has published yet
            row = torch.zeros_like(row)
            row[:, 0] = 1
        there = (row[:, 1:] > 0)[:, :, None]
        came = tuple(_received(sent, near) * there for sent in own)
        if self.rule.addressed:  # nothing is sent to oneself
            own = (self.x, *(self._nothing(kind) for kind in self.rule.sends[1:]))
        weights = self.rule.weigh(row, came)
        mix = Mix(own, came, weights, self._aggregate, trained=self.x, kept=self._kept)
        self.x, self._state = self.rule.mixed(mix, self._state)
        if anew:
            self._state = self.rule.start(self.x)

    def train(self, tau: Tensor) -> None:
        """Take local steps, and publish.

        Parameters
        ----------
        tau : Tensor
            How many each device takes, ``[devices]``; one with 0 rests.
        """
        taken = tau[:, None].to(self.x.dtype)
        works = taken > 0
        mean = float(taken.sum() / works.sum())
        if self.rule.momentum != "kept":
            self._v = torch.zeros_like(self.x)
        x, z, nothing = self.x, self.x, torch.zeros_like(taken)
        steps = Steps(self.lr, self.momentum, nothing, mean, 1.0, self._restarted)
        for k in range(int(tau.max())):
            d, now = self.rule.direction(self._gradient(z), self._state, steps), k < taken
            if self.rule.momentum != "own":
                d = self.momentum * self._v + d
                self._v = torch.where(now, d, self._v)
            z = torch.where(now, z - self.lr * self.rule.step(d, self._state, steps), z)
        scale = torch.ones_like(taken)
        if self._normalises:
            of = weight_of(taken.clamp(min=1), self._restarted)
            scale = (weight_of(mean, self._restarted) / of).clamp(max=LARGEST_SCALE)
            z = x + scale * (z - x)
        steps = Steps(self.lr, self.momentum, taken, mean, scale, self._restarted)
        self._sent, trained = self.rule.publish(x, z, self._state, steps)
        if not works.all():
            rest, resting = self.rule.publish(x, z, self._state, None)
            pairs = zip(self._sent, rest, strict=True)
            self._sent = tuple(torch.where(_like(a, works), a, b) for a, b in pairs)
            trained = {k: torch.where(_like(a, works), a, resting[k]) for k, a in trained.items()}
        self._state, self.x = trained, z
        if self.rule.coded:
            every = zip(self.rule.sends, self._sent, self._copies, strict=True)
            self._sent = self._copies = tuple(
                copy + self._code(v - copy) if kind == "block" else v for kind, v, copy in every
            )

    def _nothing(self, kind: str) -> Tensor:
        return torch.zeros_like(self.x if kind == "block" else self.x[:, :1])


def _like(x: Tensor, rows: Tensor) -> Tensor:
    """Return ``[devices, 1]`` with as many dimensions as x."""
    return rows.view(-1, *[1] * (x.dim() - 1))


def _lists(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return who is near each device, itself in the place of nobody, and the weights.

    ``[devices, neighbours]`` and ``[devices, 1 + neighbours]``.
    """
    linked = ((weights != 0) | (weights.T != 0)).fill_diagonal_(False)
    width = max(1, int(linked.sum(dim=1).max()))
    there, near = (x[:, :width] for x in linked.sort(dim=1, descending=True, stable=True))
    me = torch.arange(len(weights))[:, None]
    row = torch.cat([weights.diagonal()[:, None], weights.gather(1, near) * there], dim=1)
    return torch.where(there, near, me), row


def _received(sent: Tensor, near: Tensor) -> Tensor:
    """Return what neighbours have sent, ``[devices, neighbours, length]``.

    What is sent to each neighbour apart, ``[devices, neighbours, length]``, is in the order of that
    device's own list.
    """
    if sent.dim() == 2:
        return sent[near]
    me = torch.arange(len(near))[:, None, None]
    place = (near[near] == me).int().argmax(dim=2)  # where I am in the list of each of mine
    return sent[near, place]
