"""Local steps of a round: SGD or Adam on the rows of devices, each parameter of all at once."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from ..models.adam import adam_step
from ..payload.flat import Flat

OPTIMIZER = "optimizer."
"""Prefix of the optimiser's entries in a learner's state."""
STEPS = OPTIMIZER + "steps"
"""The steps that each parameter has taken under Adam."""
Direct = Callable[[str, Tensor, Tensor | None], Tensor]
"""(block, gradients ``[rows, length]``, which devices these are: None for all) to what the gossip
rule puts in their place."""


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


@dataclass
class Run:
    """Gradients of parameters that follow one another in a row, of one block.

    Attributes
    ----------
    parameters : tuple of int
        Their positions.
    place : slice
        Where they lie in a row.
    values : Tensor
        ``[rows, length]``.
    """

    parameters: tuple[int, ...]
    place: slice
    values: Tensor


@dataclass
class Iteration:
    """One local iteration of some devices.

    Attributes
    ----------
    x : Tensor
        Their parameters, ``[rows, length]``.
    leaves : sequence of Tensor
        What gradients are taken of, one for each parameter of the flat vector: views of ``x``.
    rows : Tensor or None
        Which of all devices these are, ``[rows]`` int64; None for all, in their order.
    gradients : dict of int to Tensor
        ``[rows, *shape]`` by parameter, of those that the loss reaches.
    runs : list of Run
        The same, once they are gathered (:meth:`gather`).
    """

    x: Tensor
    leaves: Sequence[Tensor]
    rows: Tensor | None = None
    gradients: dict[int, Tensor] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    def gather(self, flat: Flat) -> None:
        """Bring the gradients together that are to be stepped as one."""
        self.runs = []
        for own in flat.runs(tuple(self.gradients)):
            values = [self.gradients[i].reshape(len(self.x), -1) for i in own]
            place = slice(flat.places[own[0]].start, flat.places[own[-1]].stop)
            whole = torch.cat(values, dim=1) if len(own) > 1 else values[0]
            self.runs.append(Run(own, place, whole))

    def of(self, values: Tensor) -> Tensor:
        """Return what these devices have of ``values`` ``[device, ...]``."""
        return values if self.rows is None else values[self.rows]

    def add(self, values: Tensor, more: Tensor) -> None:
        """Add ``more`` ``[rows, ...]`` to what these devices have of ``values``, in place."""
        if self.rows is None:
            values += more
        else:
            values.index_add_(0, self.rows, more)

    def put(self, values: Tensor, new: Tensor) -> None:
        """Replace what these devices have of ``values``, where it was copied out."""
        if self.rows is not None:
            values[self.rows] = new

    def apart(self, resting: Mapping[int, Tensor]) -> Iterator["Iteration"]:
        """Yield the iteration, cut into devices that step the same parameters.

        Parameters
        ----------
        resting : mapping of int to Tensor
            Who does not step a parameter, ``[rows]`` bool.
        """
        if not resting:
            yield self
            return
        table = torch.stack(list(resting.values()), dim=1)  # [rows, parameter]
        patterns = torch.unique(table, dim=0)
        for pattern in patterns:
            rest = {i for i, rests in zip(resting, pattern.tolist(), strict=True) if rests}
            stepped = [run for run in self.runs if run.parameters[0] not in rest]
            if len(patterns) == 1:
                yield replace(self, runs=stepped)
                return
            own = torch.nonzero((table == pattern).all(dim=1)).flatten()
            rows = own if self.rows is None else self.rows[own]
            runs = [replace(run, values=run.values[own]) for run in stepped]
            yield (part := Iteration(self.x[own], [], rows, runs=runs))
            self.x[own] = part.x


class LocalSteps:
    """Steps on the rows of devices with one layout.

    A parameter that an iteration does not reach keeps its value, its momentum and its decay.

    Parameters
    ----------
    flat : Flat
        Says where blocks and parameters lie in a row.
    matrix : Tensor
        The rows, ``[device, length]``.
    trained : sequence of int
        Which parameters are trained.
    how : StepRule
        How a step is taken.
    kept : sequence of mapping of str to Tensor, optional
        Each device's state ``[length]`` to go on with (:meth:`state`); it is not changed.
    direct, follow : callable, optional
        What the gossip rule makes of the gradients of a block, and of SGD's momentum.
    optimizer : torch.optim.Optimizer, optional
        One of the method's own, of the parameters of a single device; the decay is its own, too.
    """

    def __init__(
        self,
        flat: Flat,
        matrix: Tensor,
        trained: Sequence[int],
        how: StepRule,
        *,
        kept: Sequence[Mapping[str, Tensor]] = (),
        direct: Direct | None = None,
        follow: Direct | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.how, self.trained, self._flat, self._matrix = how, list(trained), flat, matrix
        self._direct, self._follow, self._optimizer = direct, follow, optimizer
        kept = kept or [{}] * len(matrix)
        self.taken = torch.zeros(
            len(matrix), len(flat.parameters), dtype=torch.int64, device=matrix.device
        )
        """Steps of each parameter in this round, ``[device, parameter]``."""
        none = self.taken[0]
        self._before = torch.stack([k.get(STEPS, none).to(matrix.device) for k in kept])
        needs = ["first", "second"] if how.family != "sgd" else ["momentum"] * bool(how.momentum)
        self._moments: dict[str, Tensor] = {}
        for name in needs if optimizer is None else ():
            moments = self._moments[name] = torch.zeros_like(matrix)
            for row, own in enumerate(kept):  # one that has not trained yet has none
                if OPTIMIZER + name in own:
                    moments[row] = own[OPTIMIZER + name]
        rates = how.rates or {}
        self._rates = [rates.get(flat.block_of(i), 1.0) for i in range(len(flat.parameters))]

    def take(self, iteration: Iteration, gradients: Sequence[Tensor | None]) -> None:
        """Take up the gradients of :attr:`trained`, None of what the loss does not reach."""
        iteration.gradients = {
            i: g for i, g in zip(self.trained, gradients, strict=True) if g is not None
        }

    def gather(self, iteration: Iteration) -> None:
        """See :meth:`Iteration.gather`."""
        iteration.gather(self._flat)

    @torch.no_grad()
    def clip(self, iteration: Iteration) -> None:
        """Scale the gradients of a device down to :attr:`StepRule.clip_norm`."""
        if not self.how.clip_norm or not iteration.runs:
            return
        norm = total(square_norms(run.values) for run in iteration.runs).sqrt()  # [rows]
        factor = (self.how.clip_norm / (norm + 1e-6)).clamp_(max=1.0)
        for run in iteration.runs:
            run.values = run.values * factor[:, None]

    @torch.no_grad()
    def step(self, iteration: Iteration) -> None:
        """Step every parameter that has a gradient."""
        how, runs = self.how, iteration.runs
        x = [iteration.x[:, run.place] for run in runs]
        g = [run.values for run in runs]
        if how.weight_decay and how.family == "sgd" and self._optimizer is None:
            g = [a + how.weight_decay * b for a, b in zip(g, x, strict=True)]
        if self._direct is not None:
            g = self._by_rule(self._direct, iteration, g)
        chosen = torch.zeros(self.taken.shape[1], dtype=torch.int64, device=self.taken.device)
        chosen[[i for run in runs for i in run.parameters]] = 1
        iteration.add(self.taken, chosen.expand(len(iteration.x), -1))
        if self._optimizer is not None:
            self._by_its_own(iteration, g)
        elif how.family != "sgd":
            self._adam(iteration, g)
        else:
            if "momentum" in self._moments:
                moments = iteration.of(self._moments["momentum"])
                places = [moments[:, run.place] for run in runs]
                for v, d in zip(places, g, strict=True):
                    v.mul_(how.momentum).add_(d)
                g = places
                iteration.put(self._moments["momentum"], moments)
            if self._follow is not None:
                g = self._by_rule(self._follow, iteration, g)
            for run, v, d in zip(runs, x, g, strict=True):
                v.add_(d, alpha=-how.lr * self._rates[run.parameters[0]])
        iteration.put(self._matrix, iteration.x)

    def _by_rule(
        self, make: Direct, iteration: Iteration, gradients: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return what the gossip rule makes of the runs' values, block by block."""
        whole, runs = torch.zeros_like(iteration.x), iteration.runs
        for run, g in zip(runs, gradients, strict=True):
            whole[:, run.place] = g
        for block in self._flat.blocks_of(run.parameters[0] for run in runs):
            place = whole[:, self._flat.slices[block]]
            place.copy_(make(block, place.clone(), iteration.rows))
        return [whole[:, run.place] for run in runs]

    def _by_its_own(self, iteration: Iteration, gradients: Sequence[Tensor]) -> None:
        """Let the method's own optimiser step the parameters of a single device."""
        assert self._optimizer is not None
        used = [i for run in iteration.runs for i in run.parameters]
        whole = torch.empty_like(iteration.x)
        for run, g in zip(iteration.runs, gradients, strict=True):
            whole[:, run.place] = g
        for i, gradient in zip(used, self._flat.views_of(whole, used), strict=True):
            iteration.leaves[i].grad = gradient[0]
        self._optimizer.step()
        for i in used:
            iteration.leaves[i].grad = None

    def _adam(self, iteration: Iteration, gradients: Sequence[Tensor]) -> None:
        """Step what has taken as many steps so far together."""
        how = self.how
        moments = {name: iteration.of(m) for name, m in self._moments.items()}
        counts = iteration.of(self._before + self.taken)
        for run, gradient in zip(iteration.runs, gradients, strict=True):
            for own, count, place, g in self._as_often(run, gradient, counts):
                some = [m[own, place] for m in (iteration.x, moments["first"], moments["second"])]
                adam_step(
                    some[0],
                    g[own],
                    some[1],
                    some[2],
                    count,
                    lr=how.lr * self._rates[run.parameters[0]],
                    weight_decay=how.weight_decay,
                    decoupled=how.family == "adamw",
                )
                if isinstance(own, Tensor):  # these were copies
                    pairs = zip(
                        (iteration.x, moments["first"], moments["second"]), some, strict=True
                    )
                    for m, new in pairs:
                        m[own, place] = new
        for name, new in moments.items():
            iteration.put(self._moments[name], new)

    def _as_often(
        self, run: Run, gradient: Tensor, counts: Tensor
    ) -> Iterator[tuple[slice | Tensor, int, slice, Tensor]]:
        """Yield who has stepped a part of a run how often: rows, count, place and gradients."""
        of_run = counts[:, list(run.parameters)]
        places = [run.place]
        if bool((of_run != of_run[:, :1]).any()):  # its parameters were not always stepped together
            places = [self._flat.places[i] for i in run.parameters]
        for k, place in enumerate(places):
            g = gradient[:, place.start - run.place.start : place.stop - run.place.start]
            found = sorted(set(of_run[:, k].tolist()))
            for count in found:
                alike = of_run[:, k] == count
                yield (slice(None) if len(found) == 1 else alike), count, place, g

    def state(self, row: int) -> dict[str, Tensor]:
        """Return what a row goes on with, ``[length]`` each, or what another optimiser keeps."""
        if self._optimizer is not None:
            return optimizer_tensors(self._optimizer)
        kept = {OPTIMIZER + name: x[row].cpu().clone() for name, x in self._moments.items()}
        steps = self._before[row] + self.taken[row]
        return kept | ({STEPS: steps} if "first" in self._moments else {})


def square_norms(values: Tensor) -> Tensor:
    """Return the sum of squares of each row of ``values`` ``[rows, ...]``: ``[rows]``."""
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return norms.square()


def total(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape, added up in their order, whatever that shape."""
    return reduce(torch.add, terms)
