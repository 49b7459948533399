"""Which part of a payload goes to whom."""

from collections.abc import Collection, Mapping
from typing import TypeVar

from .blocks import STATISTICS, addressed, without_companion
from .plan import Plan

T = TypeVar("T")


def wanted(plan: Plan, position: int, recipient: int, published: Collection[str]) -> frozenset[str]:
    """Return which blocks of a payload with these names the recipient of a plan is to get.

    The payload is that of its n-th neighbour, from 1.
    """
    names = {name for name, weights in plan.weights.items() if weights[position] > 0}
    return frozenset(names | {addressed(name, recipient) for name in names - set(published)})


def cut(payload: Mapping[str, T], names: Collection[str]) -> dict[str, T]:
    """Return a payload's blocks of these names, with what belongs to them, and its statistics."""
    return {
        name: value
        for name, value in payload.items()
        if without_companion(name) in names or name.startswith(STATISTICS)
    }
