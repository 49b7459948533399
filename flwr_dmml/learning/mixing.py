"""Gossip on one device: received blocks go through the gossip rule and the aggregation rule."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..gossip.aggregation.mean import weighted_mean
from ..gossip.aggregation.rule import AggregationRule
from ..gossip.aggregation.weighing import Weighing
from ..gossip.rule import (
    LARGEST_SCALE,
    Aggregate,
    GossipRule,
    Mix,
    State,
    Steps,
    nothing_taken,
    weight_of,
)
from ..payload.blocks import COMPANION, addressed
from ..payload.flat import Flat
from ..payload.plan import Inbox, Payload, Plan
from ..payload.received import received
from .optimisers import Direct

GOSSIP = "gossip."
"""Prefix of what a gossip rule keeps, in a learner's state."""
_SENT = "sent."
_MIXED = "last mixed"
SLOWLY = 0.1
"""Weight of a round in the slow mean of what mixing has made: it is of about ten rounds."""
DROPPED = "dropped."
"""Prefix of the shares of a neighbour's numbers that were dropped, in a learner's metrics."""


@dataclass(frozen=True)
class Taken:
    """The local steps of a round.

    Attributes
    ----------
    lr, momentum : float
        Of the round.
    by_parameter : Tensor
        Steps of each parameter of the flat vector, ``[parameters]`` int64.
    rates : mapping of str to float
        Factors on the learning rate, by block; 1 where none is given.
    planned : mapping of str to tuple of float
        By block, the steps that the plan gives this device, and the mean over those that train it.
    """

    lr: float
    momentum: float
    by_parameter: Tensor
    rates: Mapping[str, float] = field(default_factory=dict)
    planned: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def of(self, flat: Flat, block: str, restarted: float, *, scales: bool) -> Steps | None:
        """Return the steps of a block's parameters; None of one that has taken none.

        Parameters
        ----------
        flat : Flat
            Where its parameters lie.
        block : str
            Its name.
        restarted : float
            The momentum that starts from 0 in every round.
        scales : bool
            Whether its progress is scaled to what devices make on average.
        """
        place = flat.slices[block]
        inside = [i for i, p in enumerate(flat.places) if place.start <= p.start < place.stop]
        counts = self.by_parameter[inside]
        if not counts.any():
            return None
        if bool((counts == counts[0]).all()):
            taken = counts[:1].float()
        else:
            lengths = torch.tensor([flat.parameters[i].numel() for i in inside])
            taken = torch.repeat_interleave(counts, lengths).float()
        most = float(counts.max())  # fewer than planned where only joint iterations train it
        own, mean = self.planned.get(block, (most, most))
        scale = weight_of(mean, restarted) / weight_of(own, restarted) if scales else 1.0
        return Steps(
            self.lr * self.rates.get(block, 1.0),
            self.momentum,
            taken[None].to(flat.vector.device),
            mean * most / own,
            min(LARGEST_SCALE, scale),
            restarted,
        )


def hooks(
    mixers: Sequence["Mixer"], lr: float, momentum: float
) -> tuple[Direct | None, Direct | None]:
    """Return what devices' gossip rule makes of the gradients of a block, and of the momentum.

    None where it leaves them as they are.
    """
    rule = mixers[0].rule
    steps = Steps(lr, momentum, torch.zeros(1, 1))
    states: dict[str, State] = {}

    def by(make: Callable[[Tensor, State, Steps], Tensor]) -> Direct:
        def of(block: str, values: Tensor, rows: Tensor | None) -> Tensor:
            if block not in states:
                each = [mixer.state_of(block) for mixer in mixers]
                states[block] = {key: torch.cat([own[key] for own in each]) for key in each[0]}
            chosen = states[block]
            if rows is not None:
                chosen = {key: value[rows] for key, value in chosen.items()}
            return make(values, chosen, replace(steps, taken=nothing_taken(values)))

        return of

    kind = type(rule)
    return (
        None if kind.direction is GossipRule.direction else by(rule.direction),
        None if kind.step is GossipRule.step else by(rule.step),
    )


class Mixer:
    """A device's mixing of its blocks, by a gossip rule and an aggregation rule.

    Parameters
    ----------
    rule : GossipRule
        How blocks move between their owners.
    aggregation : AggregationRule
        What becomes of the neighbours' copies.
    flat : Flat
        The device's blocks; those for which a plan has weights are mixed.
    partition_id, num_nodes : int
        Who the device is, and how many there are.
    momentum : float (default: 0)
        Of its optimiser, where that is one with momentum.
    normalises : bool (default: False)
        Whether the progress of a round is scaled to what devices make on average.
    kept : float (default: 1)
        The share of a vector's numbers that are sent in a round.
    unicast : bool (default: False)
        Whether every neighbour gets another copy of a block, whatever the rule.
    """

    def __init__(
        self,
        rule: GossipRule,
        aggregation: AggregationRule,
        flat: Flat,
        partition_id: int,
        num_nodes: int,
        *,
        momentum: float = 0.0,
        normalises: bool = False,
        kept: float = 1.0,
        unicast: bool = False,
    ) -> None:
        self._unicast = unicast or rule.addressed
        self.rule, self._aggregation, self._flat = rule, aggregation, flat
        self._me, self._num_nodes = partition_id, num_nodes
        self._restarted = momentum if rule.momentum == "round" else 0.0
        self._normalises, self._kept = normalises and rule.normalised, kept
        self._states: dict[str, State] = {}
        self._sent: dict[str, tuple[Tensor, ...]] = {}  # where that is not the model
        self._begun: dict[str, Tensor] = {}
        self.mixed: dict[str, Tensor] = {}
        """What :meth:`note_mixed` remembers of each block, for an aggregation rule that looks at
        it."""
        self._publishes = type(rule).publish is not GossipRule.publish
        self._slots: list[int] = []
        self.shares: dict[str, dict[int, float]] = {}
        """Weights that the aggregation rule gave in the last mixing, by block and by neighbour: of
        those who had one, and of a rule that weighs copies."""

    @torch.no_grad()
    def mix(
        self,
        weights: Mapping[str, tuple[float, ...]],
        neighbours: Sequence[int],
        inbox: Inbox,
        recipients: Sequence[int] = (),
        *,
        anew: Collection[str] = (),
        late: Mapping[int, int] | None = None,
        measure: bool = True,
        progress: float = 0.0,
    ) -> tuple[float, list[str]]:
        """Bring every block to where the round's training begins, in place.

        ``weights[block]`` holds the own weight, then that of each of ``neighbours`` (those whose
        blocks a courier has brought among them); they sum to 1. A block without weights meets
        nobody. What cannot be mixed is left out and its weight given
        to the own copy, which keeps the weights of all others doubly stochastic. The rule starts
        anew with what it has made of the blocks in ``anew``. ``late`` says by how many rounds some
        neighbours' blocks are older than the others'. ``progress`` is the share of the run's rounds
        that are over.

        Returns
        -------
        tuple of float and list of str
            The :func:`disagreement` over all that is mixed, 0 if that is not to be measured, and
            what was wrong with neighbours' blocks (``"3: block head.audio is
            missing"``).
        """
        apart, rejected = 0.0, list[str]()
        self.shares, aggregation = {}, self._aggregation.at(progress)
        self._slots = sorted({*neighbours, *recipients}) if self.rule.addressed else []
        for block, place in self._flat.slices.items():
            x = self._flat.rows[:, place]
            row = weights.get(block, (1.0,))
            pairs = zip(neighbours, row[1:], strict=True) if block in weights else ()
            others = {j: weight for j, weight in pairs if weight}
            found, wrong = self._arrived(block, others, inbox, x)
            rejected += wrong
            own_weight = row[0] + sum(w for j, w in others.items() if j not in found)
            copies = inbox.get(self._me, {})
            mix = self._mix(block, x, own_weight, found, copies, aggregation, late or {})
            state = self._states.get(block)
            if measure and len(mix.near[0][0]):
                own, near = self.rule.model_of(mix.own), self.rule.model_of(mix.near)
                apart += disagreement(own, near, mix.weights[:, 1:])
            mixed, state = self.rule.mixed(mix, self.rule.start(x) if state is None else state)
            self._states[block] = self.rule.start(mixed) if block in anew else state
            x.copy_(mixed)
            if self.remembers:
                self.note_mixed(block, x[0])
            if self._publishes:
                self._begun[block] = mixed if mixed is not x else x.clone()
        return apart, rejected

    def note_mixed(self, block: str, vector: Tensor) -> None:
        """Remember what mixing has made of a block ``[length]``, and maybe a slow mean of that.

        As ``[1, length]`` or ``[2, length]``, as much as the aggregation rule remembers.
        """
        rows = [vector]
        if self.remembers > 1:
            before = self.mixed.get(block)
            rows.append(vector if before is None else before[1].lerp(vector, SLOWLY))
        self.mixed[block] = torch.stack(rows)

    @property
    def remembers(self) -> int:
        """As much as the aggregation rule: :attr:`.AggregationRule.remembers`."""
        return self._aggregation.remembers

    def models(self, block: str, plan: Plan, inbox: Inbox) -> dict[int, Tensor]:
        """Return the models in what neighbours have sent of a block, ``[length]`` by neighbour.

        Of those alone who own it, and whose vectors are as they should be. Under robust aggregation
        of those that got a weight in the last mixing, so of nobody where a rule weighs no copies.
        Where a gossip rule sends something that a model is made of, it is that.
        """
        place = self._flat.slices[block]
        row = plan.weights.get(block, (1.0,))
        others = {j: w for j, w in zip(plan.neighbours, row[1:], strict=False) if w}
        if self._aggregation.robust:
            given = self.shares.get(block, {})
            others = {j: w for j, w in others.items() if given.get(j)}
        found, _ = self._arrived(block, others, inbox, self._flat.rows[:, place])
        return {j: self.rule.model_of(vectors) for j, (_, vectors) in found.items()}

    def _arrived(
        self, block: str, weights: Mapping[int, float], inbox: Inbox, x: Tensor
    ) -> tuple[dict[int, tuple[float, list[Tensor]]], list[str]]:
        """Return the valid vectors from neighbours, with their weights, and what was rejected."""
        wanted, names = list(weights), self._names(block)
        length, numbers = x.shape[1], self.rule.sends.count("number")
        good: dict[int, tuple[float, list[Tensor]]] = {}
        wrong = list[str]()
        columns = dict[int, dict[int, Tensor]]()
        for i, key in names.items():
            more = 0 if i else numbers
            columns[i], problems = received(
                inbox, key, length + more, of=wanted, called=f"block {block}"
            )
            wrong += problems
        for neighbour in wanted:
            if any(neighbour not in column for column in columns.values()):
                continue
            vectors, at = list[Tensor](), length
            for i, kind in enumerate(self.rule.sends):
                if kind == "block":
                    vectors.append(columns[i][neighbour][:length])
                else:
                    vectors.append(columns[0][neighbour][at : at + 1])
                    at += 1
            if problem := self.rule.problem(vectors, self._num_nodes):
                wrong.append(f"{neighbour}: block {block} {problem}")
            else:
                good[neighbour] = weights[neighbour], vectors
        return good, wrong

    def _mix(
        self,
        block: str,
        x: Tensor,
        own_weight: float,
        found: Mapping[int, tuple[float, list[Tensor]]],
        copies: Payload,
        aggregation: AggregationRule,
        late: Mapping[int, int],
    ) -> Mix:
        own = self._own(block, x, copies)
        lengths = [vector.shape[-1] for vector in own]
        slots = self._slots if self.rule.addressed else list(found)
        near = tuple(_near(found, slots, i, x.new_zeros(1, 0, n)) for i, n in enumerate(lengths))
        others = [found[j][0] if j in found else 0.0 for j in slots]
        row = x.new_tensor([[own_weight, *others]])
        aggregate: Aggregate = aggregation
        if isinstance(aggregation, Weighing):
            aggregate = self._noting(aggregation, block, slots)
        rounds = [late.get(j, 0) for j in slots]
        age = torch.tensor([rounds], device=x.device) if any(rounds) else None
        weights = self.rule.weigh(row, near)
        return Mix(own, near, weights, aggregate, trained=x, kept=self._kept, late=age)

    def _own(self, block: str, x: Tensor, copies: Payload) -> tuple[Tensor, ...]:
        """Return the vectors that the device has sent of a block, as its neighbours have them."""
        sent = self._sent.get(block, ())
        lengths = [x.shape[1] if kind == "block" else 1 for kind in self.rule.sends]
        own = tuple(
            sent[i] if i < len(sent) else (x.new_zeros(1, n) if i else x)
            for i, n in enumerate(lengths)
        )
        if self.rule.coded and block in copies:
            keys = (f"{block}{COMPANION}{i}" if i else block for i in range(len(own)))
            own = tuple(
                copies[key].to(x)[None] if key in copies else vector
                for key, vector in zip(keys, own, strict=True)
            )
        return own

    def sent(self, block: str, inbox: Inbox) -> dict[str, Tensor]:
        """Return copies of the vectors that the device has sent of a block, ``[length]`` each.

        The model, and zeros, where it has sent nothing else; by their names in a payload for it.
        """
        x = self._flat.rows[:, self._flat.slices[block]]
        own = self._own(block, x, inbox.get(self._me, {}))
        names = self._names(block)
        return {names[i]: own[i][0].to("cpu", copy=True) for i in names}

    def published(self, block: str) -> Tensor:
        """Return what the device has sent of a block in the model's place, ``[length]`` on the CPU.

        The model, where it has sent nothing else, or changes only.
        """
        x = self._flat.rows[:, self._flat.slices[block]]
        return (x if self.rule.coded else self._own(block, x, {})[0])[0].cpu()

    def _names(self, block: str) -> dict[int, str]:
        """Return the names in a payload for this device of a block's vectors, by place."""
        name = addressed(block, self._me) if self._unicast else block
        kinds = enumerate(self.rule.sends)
        return {i: f"{name}{COMPANION}{i}" if i else name for i, k in kinds if k == "block"}

    def _noting(self, rule: Weighing, block: str, sources: Sequence[int]) -> Aggregate:
        """Return an aggregation rule that notes how it weighs the models of a block."""

        def aggregate(own: Tensor, near: Tensor, weights: Tensor) -> Tensor:
            shares = rule.weigh(own, near, weights, [self.mixed.get(block)])
            self.shares.setdefault(block, noted(sources, weights[0], shares[0]))
            return weighted_mean(own, near, shares)

        return aggregate

    def dropped(self) -> dict[str, float]:
        """Return which share of each neighbour's numbers was dropped in the last mixing.

        As metrics, ``dropped.<partition id>``; of those of whom anything was.
        """
        lost, all_of = dict[int, int](), dict[int, int]()
        for block, shares in self.shares.items():
            place = self._flat.slices[block]
            for j, share in shares.items():
                all_of[j] = all_of.get(j, 0) + place.stop - place.start
                lost[j] = lost.get(j, 0) + (0 if share else place.stop - place.start)
        return {f"{DROPPED}{j}": n / all_of[j] for j, n in sorted(lost.items()) if n}

    def kept(self) -> "Kept":
        """Return what is kept from round to round, to :meth:`take_back`."""
        return dict(self._states), dict(self._sent), dict(self.mixed)

    def take_back(self, kept: "Kept") -> None:
        """Go back to what was :meth:`kept`."""
        self._states, self._sent, self.mixed = (dict(own) for own in kept)  # type: ignore[assignment]
        self._begun = {}

    def state_of(self, block: str) -> State:
        """Return what the rule keeps of a block, a row of each."""
        return self._states[block]

    def start_over(self) -> None:
        """Let the rule start anew with what there is."""
        for block, place in self._flat.slices.items():
            self._states[block] = self.rule.start(self._flat.rows[:, place])

    def begin(self, blocks: Collection[str]) -> None:
        """Remember where training begins, if the progress of these blocks may be scaled."""
        if self._normalises and not self._publishes:  # else mixing has
            slices, rows = self._flat.slices, self._flat.rows
            self._begun = {block: rows[:, slices[block]].clone() for block in blocks}

    @torch.no_grad()
    def normalise(self, taken: Taken, blocks: Collection[str]) -> None:
        """Scale a round's progress on these blocks, ``z <- x + scale (z - x)``, after training."""
        for block in self._begun.keys() & set(blocks) if self._normalises else ():
            steps = self._steps(taken, block)
            if steps is not None and steps.scale != 1:
                z = self._flat.rows[:, self._flat.slices[block]]
                z.sub_(self._begun[block]).mul_(steps.scale).add_(self._begun[block])
        if not self._publishes:
            self._begun = {}

    def _steps(self, taken: Taken | None, block: str) -> Steps | None:
        if taken is None:
            return None
        return taken.of(self._flat, block, self._restarted, scales=self._normalises)

    @torch.no_grad()
    def publish(
        self,
        snapshot: Payload,
        blocks: Collection[str],
        sends: Collection[str],
        taken: Taken | None,
        recipients: Sequence[int],
    ) -> Payload:
        """Return what is published of the blocks, after training.

        Parameters
        ----------
        snapshot : Payload
            Copies of the trained blocks, ``[length]`` on the CPU.
        blocks : collection of str
            Those that are published; the others are the device's own.
        sends : collection of str
            Those that are sent in this round; an empty vector is sent for the others.
        taken : Taken or None
            The local steps; None of a device that rests.
        recipients : sequence of int
            Whom the payload is for.
        """
        payload: Payload = {}
        for block, place in self._flat.slices.items():
            if block in blocks and block not in sends:  # it begins anew when it is sent again
                payload[block] = snapshot[block][:0]
                self._states.pop(block, None)
                self._sent.pop(block, None)
                continue
            if not self._publishes:
                if block in blocks:
                    payload[block] = snapshot[block]
                continue
            z = self._flat.rows[:, place]
            steps = self._steps(taken, block)
            begun = self._begun.get(block, z)
            sent, self._states[block] = self.rule.publish(begun, z, self._states[block], steps)
            plain = len(sent) == 1 and sent[0] is z
            self._sent.pop(block, None)
            if self.rule.coded and block in blocks and "number" in self.rule.sends:
                kinds = zip(self.rule.sends, sent, strict=True)
                self._sent[block] = tuple(  # vectors are kept as copies
                    vector[:, :0] if kind == "block" else vector for kind, vector in kinds
                )
            elif not (plain or self.rule.coded or self.rule.addressed):
                self._sent[block] = sent
            if block not in blocks:
                continue
            if plain or (self.rule.addressed and not recipients):
                # Nobody gets it, but a payload that lacks a block counts as a failure.
                payload[block] = snapshot[block]
            elif self.rule.addressed:
                for b in recipients:
                    mine = tuple(vector[:, self._slots.index(b)] for vector in sent)
                    payload |= self._written(addressed(block, b), mine)
            else:
                payload |= self._written(block, sent)
        self._begun = {}
        return payload

    def keep_sent(self, block: str, vector: Tensor | None) -> None:
        """Have the own copy of a block be another ``[length]`` than the trained one; None: that."""
        self._sent.pop(block, None)
        if vector is not None:
            self._sent[block] = (vector.to(self._flat.vector.device)[None],)

    def _written(self, name: str, sent: Sequence[Tensor]) -> Payload:
        pairs = list(zip(self.rule.sends, sent, strict=True))
        numbers = [vector[0] for kind, vector in pairs if kind == "number"]
        written = {name: torch.cat([sent[0][0], *numbers]).cpu()}
        for i, (kind, vector) in enumerate(pairs):
            if i and kind == "block":
                written[f"{name}{COMPANION}{i}"] = vector[0].cpu()
        return written

    def state(self) -> dict[str, Tensor]:
        """Return what must survive until the next round; see :meth:`load_state`."""
        kept = {
            f"{GOSSIP}{block}{COMPANION}{key}": value
            for block, state in self._states.items()
            for key, value in state.items()
        }
        for block, sent in self._sent.items():
            kept |= {f"{GOSSIP}{block}{COMPANION}{_SENT}{i}": v for i, v in enumerate(sent)}
        kept |= {f"{GOSSIP}{block}{COMPANION}{_MIXED}": v[None] for block, v in self.mixed.items()}
        return {name: value[0].detach().cpu().clone() for name, value in kept.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave: ``gossip.<block>#<key>``, a row each."""
        self._states, self._sent, self._begun, self.mixed = {}, {}, {}, {}
        device = self._flat.vector.device
        sent: dict[str, dict[int, Tensor]] = {}
        for name, value in state.items():
            if not name.startswith(GOSSIP):
                continue
            block, _, key = name.removeprefix(GOSSIP).partition(COMPANION)
            row = value.to(device, copy=True)[None]
            if key == _MIXED:
                self.mixed[block] = row[0]
            elif key.startswith(_SENT):
                sent.setdefault(block, {})[int(key.removeprefix(_SENT))] = row
            else:
                self._states.setdefault(block, {})[key] = row
        self._sent = {b: tuple(rows[i] for i in sorted(rows)) for b, rows in sent.items()}


Kept = tuple[dict[str, State], dict[str, tuple[Tensor, ...]], dict[str, Tensor]]
"""What :meth:`Mixer.kept` gives: the rule's states, what was sent, what mixing has made."""


def noted(sources: Sequence[int], weights: Tensor, shares: Tensor) -> dict[int, float]:
    """Return the shares ``[1 + neighbours]`` of those neighbours who had a weight."""
    rows = zip(sources, weights[1:].tolist(), shares[1:].tolist(), strict=True)
    return {j: share for j, weight, share in rows if weight}


def disagreement(own: Tensor, near: Tensor, weights: Tensor) -> float:
    """Return ``sum_j w_j ||x - x_j||^2``: 0 at consensus (this project's measure).

    Parameters
    ----------
    own : Tensor
        ``[1, length]``.
    near : Tensor
        ``[1, neighbours, length]``.
    weights : Tensor
        Of the neighbours, ``[1, neighbours]``.
    """
    squares = (near - own[:, None]).square().sum(dim=2)
    return float((weights * squares).sum())


def _near(
    found: Mapping[int, tuple[float, list[Tensor]]], slots: Sequence[int], i: int, none: Tensor
) -> Tensor:
    """Return the i-th vectors of neighbours, ``[1, slots, length]``; 0 where none has arrived.

    ``none`` is what there is without a neighbour, ``[1, 0, length]``.
    """
    if not slots:
        return none
    length = none.shape[2]
    rows = [found[j][1][i] if j in found else torch.zeros(length) for j in slots]
    return torch.stack(rows).to(none)[None]
