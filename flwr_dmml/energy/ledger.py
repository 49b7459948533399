"""Energy and time of training, energy budgets of rounds, and the ledger of batteries."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Kind = Literal["compute", "radio"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Kinds of energy use."""

ROUNDING_J = 1e-9
"""A battery that is short of a charge by no more than this pays with all it has; above 1e6 J by no
more than 8 times the last place of what it has had."""


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, np.float64)


# Cost of an iteration


def iteration_energy_j(
    cycles_per_sample: ArrayLike, batch_size: ArrayLike, frequency_hz: ArrayLike, kappa: ArrayLike
) -> Floats:
    """Return ``e = kappa c b f^2`` [J], the dynamic energy of one training iteration.

    Arguments broadcast: cycles ``c`` [cycles/sample], batch ``b`` [samples], clock ``f`` [Hz],
    ``kappa`` [J s^2 / cycle^3], all >= 0. Source: the usual mobile-edge model.
    """
    work = _floats(cycles_per_sample) * _floats(batch_size)  # [cycles]
    return _floats(kappa) * work * _floats(frequency_hz) ** 2


def iteration_time_s(
    cycles_per_sample: ArrayLike, batch_size: ArrayLike, frequency_hz: ArrayLike
) -> Floats:
    """Return ``T = c b / f`` [s], how long one training iteration takes; ``f`` above 0.

    Arguments and source are those of :func:`iteration_energy_j`.
    """
    return _floats(cycles_per_sample) * _floats(batch_size) / _floats(frequency_hz)


# Budgets of a round


def pacing(
    remaining_j: ArrayLike,
    radio_j: ArrayLike,
    rounds_left: int,
    *,
    expected_radio_j: ArrayLike | None = None,
    training_rounds: int | None = None,
) -> Floats:
    """Return ``max(0, E_rem - E_com - (R - 1) E_later) / R_train`` [J]: an even share of the rest.

    Parameters
    ----------
    remaining_j, radio_j : ArrayLike, shape ``[node]``
        What the battery holds, and what the sending of this round costs; >= 0.
    rounds_left : int
        R, rounds to come including this one, >= 1.
    expected_radio_j : ArrayLike, shape ``[node]``, optional
        What sending is to cost in each later round; by default as much as in this one.
    training_rounds : int, optional
        How many of the rounds train, >= 1; by default all of them.

    Raises
    ------
    ValueError
        No round is left.

    References
    ----------
    This project (the paper's budget is not published).
    """
    training_rounds = rounds_left if training_rounds is None else training_rounds
    if (least := min(rounds_left, training_rounds)) < 1:
        raise ValueError(f"pacing needs at least 1 round left, not {least}")
    later_j = _floats(radio_j if expected_radio_j is None else expected_radio_j)
    left_j = _floats(remaining_j) - _floats(radio_j) - (rounds_left - 1) * later_j  # [node]
    return np.maximum(0.0, left_j / training_rounds)


def greedy(remaining_j: ArrayLike, radio_j: ArrayLike) -> Floats:
    """Return ``max(0, E_rem - E_com)`` [J]: all that is left once this round is sent.

    Shapes and source are those of :func:`pacing`.
    """
    return np.maximum(0.0, _floats(remaining_j) - _floats(radio_j))


# Batteries


class LedgerError(ValueError):
    """A booking that cannot be, or numbers that make no ledger; the message names the node."""


class Ledger:
    """The batteries of a fleet: what they held, gained and spent, and on what.

    ``spent + remaining = initial + harvested`` at every node, to 1e-9 J for batteries up to 1e6 J,
    and nothing is ever negative: a charge that one battery cannot pay changes nothing. A shortfall
    of up to :data:`ROUNDING_J` is rounding (a budget that ends at exactly 0) and is forgiven.

    Parameters
    ----------
    initial_j : ArrayLike, shape ``[node]``
        Energy at the start, finite and >= 0.
    capacity_j : ArrayLike, shape ``[node]`` or a number, optional
        What each battery can hold, >= ``initial_j``, may be infinite. By default batteries start
        full.

    Raises
    ------
    LedgerError
        If a number is out of its range or a shape is not ``[node]``.
    """

    def __init__(self, initial_j: ArrayLike, capacity_j: ArrayLike | None = None) -> None:
        self._initial_j = _floats(initial_j)
        if self._initial_j.ndim != 1:
            raise LedgerError(f"initial_j must be one number a node, not {initial_j!r}")
        self._initial_j = self._joules("initial_j", initial_j)
        self._harvested_j = np.zeros_like(self._initial_j)  # [node]
        self._spent_j = {kind: np.zeros_like(self._initial_j) for kind in KINDS}  # each [node]
        self._capacity_j = self._per_node(
            "capacity_j", self._initial_j if capacity_j is None else capacity_j
        )
        self._refuse(~(self._capacity_j >= self._initial_j), "has a capacity below its initial_j")

    @property
    def initial_j(self) -> Floats:
        """Energy of each battery at the start, ``[node]``."""
        return self._initial_j.copy()

    @property
    def harvested_j(self) -> Floats:
        """Energy that each battery has harvested since, ``[node]``."""
        return self._harvested_j.copy()

    @property
    def remaining_j(self) -> Floats:
        """Energy left in each battery, ``[node]``, >= 0."""
        return np.maximum(0.0, self._initial_j + self._harvested_j - self.spent_j())

    def spent_j(self, kind: Kind | None = None) -> Floats:
        """Return what each node has spent, ``[node]``: on ``kind``, or on everything."""
        if kind is None:
            return np.sum([self._spent_j[k] for k in KINDS], axis=0)  # type: ignore[no-any-return]
        return self._spent_j[kind].copy()

    def totals_j(self) -> dict[str, float]:
        """Return what the fleet has spent on each kind."""
        return {kind: float(spent.sum()) for kind, spent in self._spent_j.items()}

    def can_afford(self, joules: ArrayLike) -> NDArray[np.bool_]:
        """Return which nodes hold at least ``joules`` (``[node]`` or one number), ``[node]``."""
        return np.asarray(self._joules("joules", joules) <= self.remaining_j + self._rounding_j)

    def charge(self, kind: Kind, joules: ArrayLike) -> None:
        """Book what each node spent on ``kind``: ``[node]`` or one number for all, >= 0.

        Books nothing and raises :class:`LedgerError` if one node cannot afford it.
        """
        if kind not in KINDS:
            raise LedgerError(f"unknown kind {kind!r}; allowed: {', '.join(KINDS)}")
        spent = self._joules("joules", joules)
        left = self.remaining_j
        for i in np.flatnonzero(spent > left + self._rounding_j):
            raise LedgerError(f"node {i} holds {left[i]} J and cannot spend {spent[i]} J on {kind}")
        self._spent_j[kind] = self._spent_j[kind] + np.minimum(spent, left)

    def correct(self, kind: Kind, joules: ArrayLike) -> Floats:
        """Correct an earlier charge for ``kind``: it was too low by ``joules``, or too high if < 0.

        Parameters
        ----------
        kind : str
            One of :data:`KINDS`.
        joules : ArrayLike, shape ``[node]`` or one number
            Finite.

        Returns
        -------
        NDArray[np.float64], shape ``[node]``
            What was booked: at most what a battery holds; a refund is at most what was spent on
            this kind, and what fits in.
        """
        extra, left = self._per_node("joules", joules), self.remaining_j
        self._refuse(~np.isfinite(extra), "has an impossible correction")
        room = np.minimum(self._spent_j[kind], np.maximum(0.0, self._capacity_j - left))
        booked: Floats = np.clip(extra, -room, left)
        self._spent_j[kind] = self._spent_j[kind] + booked
        return booked

    def harvest(self, joules: ArrayLike) -> Floats:
        """Store what each node gathered (``harvesting_w`` times the seconds), as far as it fits.

        Returns
        -------
        NDArray[np.float64], shape ``[node]``
            What was stored: ``min(joules, capacity - remaining)``.
        """
        room = np.maximum(0.0, self._capacity_j - self.remaining_j)
        stored = np.minimum(self._joules("joules", joules), room)
        self._harvested_j = self._harvested_j + stored
        return stored

    def state(self) -> dict[str, Floats]:
        """Return everything as arrays ``[node]``, for a checkpoint."""
        spent = {f"{kind}_j": self.spent_j(kind) for kind in KINDS}
        own = {"initial_j": self.initial_j, "capacity_j": self._capacity_j.copy()}
        return {**own, "harvested_j": self.harvested_j, **spent}

    @classmethod
    def from_state(cls, state: Mapping[str, ArrayLike]) -> "Ledger":
        """Return the ledger of a :meth:`state`, bit-identical; LedgerError if it is invalid."""
        names = ("initial_j", "capacity_j", "harvested_j", *(f"{kind}_j" for kind in KINDS))
        if missing := [name for name in names if name not in state]:
            raise LedgerError(f"a ledger's state has {', '.join(names)}; missing: {missing[0]}")
        ledger = cls(state["initial_j"], state["capacity_j"])
        ledger._harvested_j = ledger._joules("harvested_j", state["harvested_j"])
        ledger._spent_j = {k: ledger._joules(f"{k}_j", state[f"{k}_j"]) for k in KINDS}
        gained = ledger._initial_j + ledger._harvested_j
        ledger._refuse(ledger.spent_j() > gained + ledger._rounding_j, "has spent more than it had")
        return ledger

    @property
    def _rounding_j(self) -> Floats:
        had_j: Floats = self._initial_j + self._harvested_j
        return np.maximum(ROUNDING_J, _floats(8 * np.spacing(had_j)))

    def _per_node(self, what: str, values: ArrayLike) -> Floats:
        array = _floats(values)
        if array.shape not in ((), self._initial_j.shape):
            raise LedgerError(f"{what} must be one number or {len(self._initial_j)}, one a node")
        return np.broadcast_to(array, self._initial_j.shape).copy()

    def _joules(self, what: str, values: ArrayLike) -> Floats:
        array = self._per_node(what, values)
        self._refuse(~(np.isfinite(array) & (array >= 0)), f"has an impossible {what}")
        return array

    @staticmethod
    def _refuse(wrong: NDArray[np.bool_], reason: str) -> None:
        for node in np.flatnonzero(wrong):
            raise LedgerError(f"node {node} {reason}")
