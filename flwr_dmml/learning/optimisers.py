"""Local steps of a round: SGD or Adam on the flat vector of a device, or on those of many."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..models.adam import adam_step
from ..payload.flat import Flat, joined

OPTIMIZER = "optimizer."
"""Prefix of the optimiser's entries in a learner's state."""
STEPS = OPTIMIZER + "steps"
"""The steps that each parameter has taken under Adam."""
Direct = Callable[[str, Tensor], Tensor]
"""(block, gradients ``[rows, length]``) to the directions in their place."""


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Take up what :func:`optimizer_tensors` gave; nothing if that is empty."""
    by_index: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        index, key = name.removeprefix(OPTIMIZER).split(".", 1)
        by_index.setdefault(int(index), {})[key] = value
    if by_index:
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": by_index, "param_groups": groups})


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimiser keeps as ``optimizer.<parameter index>.<name>`` tensors."""
    return {
        f"{OPTIMIZER}{index}.{name}": value.detach().cpu().clone()
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
        if isinstance(value, Tensor)
    }


@dataclass(frozen=True)
class StepRule:
    """Settings of a local step.

    Attributes
    ----------
    lr : float
        The learning rate of the round, > 0.
    family : {"sgd", "adam", "adamw"}
        The optimiser.
    momentum : float
        Of SGD, in [0, 1): ``v <- momentum v + g``, as torch has it.
    weight_decay : float
        ``g <- g + weight_decay x``, >= 0; AdamW's acts on the parameters.
    clip_norm : float
        The gradient of all parameters together is scaled down to this norm; 0 does not.
    rates : mapping of str to float
        Factors on the learning rate, by block; 1 where none is given.
    """

    lr: float
    family: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    rates: Mapping[str, float] | None = None


class LocalSteps:
    """Steps on rows ``[rows, length]``; every operation goes over all rows at once.

    A parameter that an iteration does not reach keeps its value, its momentum and its decay.

    Parameters
    ----------
    flat : Flat
        Says where blocks and parameters lie in a row.
    matrix : Tensor
        The rows.
    leaves : sequence of Tensor
        What gradients are taken of, one for each parameter of ``flat``: views of the rows.
    trained : sequence of int
        Which of them are trained.
    how : StepRule
        How a step is taken.
    kept : mapping of str to Tensor, optional
        The state ``[length]`` that a single row goes on with (:meth:`state`); it is not changed.
    direct : callable, optional
        What the gossip rule makes of the gradients of a block.
    optimizer : torch.optim.Optimizer, optional
        One of the method's own, of the leaves; the decay is its own, too.
    """

    def __init__(
        self,
        flat: Flat,
        matrix: Tensor,
        leaves: Sequence[Tensor],
        trained: Sequence[int],
        how: StepRule,
        *,
        kept: Mapping[str, Tensor] | None = None,
        direct: Direct | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.matrix, self.gradient = matrix, torch.zeros_like(matrix)
        self.taken = torch.zeros(len(flat.parameters), dtype=torch.int64)
        kept = dict(kept or {})
        needs = ["first", "second"] if how.family != "sgd" else ["momentum"] * bool(how.momentum)
        self._moments = {
            name: kept[OPTIMIZER + name].to(matrix.device, copy=True)[None]
            if OPTIMIZER + name in kept
            else torch.zeros_like(matrix)
            for name in (needs if optimizer is None else ())
        }
        self._before = kept.get(STEPS, torch.zeros_like(self.taken))  # steps of earlier rounds
        self._flat, self._leaves, self._trained = flat, leaves, list(trained)
        self.how, self._direct, self._optimizer = how, direct, optimizer
        parts = flat.views(self.gradient)
        self._parts = [g.view(x.shape) for g, x in zip(parts, leaves, strict=True)]
        self._runs: dict[tuple[int, ...], _Runs] = {}

    @property
    def trained(self) -> list[Tensor]:
        """The parameters that gradients are needed for."""
        return [self._leaves[i] for i in self._trained]

    def take(self, gradients: Sequence[Tensor | None]) -> None:
        """Take up the gradients of :attr:`trained`, None of what the loss does not reach."""
        self.gradient.zero_()
        there = [(i, g) for i, g in zip(self._trained, gradients, strict=True) if g is not None]
        if there:
            torch._foreach_copy_([self._parts[i] for i, _ in there], [g for _, g in there])
        for i, g in zip(self._trained, gradients, strict=True):
            self._leaves[i].grad = None if g is None else self._parts[i]

    @torch.no_grad()
    def settle(self) -> None:
        """Take up what a method has made of the gradients, and clip them."""
        for i in self._trained:
            grad, part = self._leaves[i].grad, self._parts[i]
            if grad is None:
                part.zero_()
            elif grad is not part:
                part.copy_(grad)
                self._leaves[i].grad = part
        if self.how.clip_norm:
            norm = torch.linalg.vector_norm(self.gradient, dim=1, keepdim=True)  # [rows, 1]
            self.gradient.mul_((self.how.clip_norm / (norm + 1e-6)).clamp_(max=1.0))

    @torch.no_grad()
    def step(self) -> None:
        """Step every parameter that has a gradient."""
        how, g, x = self.how, self.gradient, self.matrix
        used = tuple(i for i in self._trained if self._leaves[i].grad is not None)
        if used not in self._runs:
            self._runs[used] = _Runs.of(self._flat, used, how.rates or {})
        runs = self._runs[used]
        self.taken[list(used)] += 1
        if how.weight_decay and how.family == "sgd" and self._optimizer is None:
            for place, _ in runs.places:
                g[:, place].add_(x[:, place], alpha=how.weight_decay)
        if self._direct is not None:
            for block in runs.blocks:
                place = self._flat.slices[block]
                g[:, place] = self._direct(block, g[:, place])
        if self._optimizer is not None:
            self._optimizer.step()
            return
        if how.family != "sgd":
            self._adam(used)
            return
        for place, rate in runs.places:
            d = g[:, place]
            if "momentum" in self._moments:
                d = self._moments["momentum"][:, place].mul_(how.momentum).add_(d)
            x[:, place].add_(d, alpha=-how.lr * rate)

    def _adam(self, used: Sequence[int]) -> None:
        """Step parameters that have taken as many steps so far together."""
        steps, how = (self._before + self.taken).tolist(), self.how
        first, second = self._moments["first"], self._moments["second"]
        for count in sorted({steps[i] for i in used}):
            alike = tuple(i for i in used if steps[i] == count)
            if alike not in self._runs:
                self._runs[alike] = _Runs.of(self._flat, alike, how.rates or {})
            for place, rate in self._runs[alike].places:
                adam_step(
                    self.matrix[:, place],
                    self.gradient[:, place],
                    first[:, place],
                    second[:, place],
                    count,
                    lr=how.lr * rate,
                    weight_decay=how.weight_decay,
                    decoupled=how.family == "adamw",
                )

    def state(self, row: int) -> dict[str, Tensor]:
        """Return what a row goes on with, ``[length]`` each, or what another optimiser keeps."""
        if self._optimizer is not None:
            return optimizer_tensors(self._optimizer)
        kept = {OPTIMIZER + name: x[row].cpu().clone() for name, x in self._moments.items()}
        return kept | ({STEPS: self._before + self.taken} if "first" in self._moments else {})

    def end(self) -> None:
        """Let go of the gradients: a process may keep a thousand devices."""
        for leaf in self._leaves:
            leaf.grad = None


@dataclass(frozen=True)
class _Runs:
    """Slices that hold the parameters of an iteration, as few as possible."""

    places: list[tuple[slice, float]]  # with the factor on the learning rate
    blocks: list[str]

    @staticmethod
    def of(flat: Flat, used: Sequence[int], rates: Mapping[str, float]) -> "_Runs":
        by_rate: dict[float, list[slice]] = {}
        blocks: list[str] = []
        for name, place in flat.slices.items():
            inside = [p for p in (flat.places[i] for i in used) if _within(p, place)]
            if inside:
                blocks.append(name)
                by_rate.setdefault(rates.get(name, 1.0), []).extend(inside)
        places = [(run, rate) for rate, some in by_rate.items() for run in joined(some)]
        return _Runs(places, blocks)


def _within(inner: slice, outer: slice) -> bool:
    return bool(outer.start <= inner.start and inner.stop <= outer.stop)
