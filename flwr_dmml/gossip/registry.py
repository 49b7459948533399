"""The gossip and aggregation rules that can be named in a run config."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

from ..base.options import Group
from ..base.registry import find
from .aggregation.nnm import NNM, with_nnm
from .aggregation.rule import AggregationRule
from .rule import GossipRule

GOSSIP, AGGREGATION = "flwr_dmml.gossip", "flwr_dmml.aggregation"
"""The entry-point groups."""
RuleT = TypeVar("RuleT", GossipRule, AggregationRule)


def find_gossip(extra: Iterable[type[GossipRule]] = ()) -> dict[str, type[GossipRule]]:
    """Return every known gossip rule by name: those installed, and an app's own.

    Raises
    ------
    MethodError
        Two have one name, or an entry point is not a named GossipRule.
    """
    return find("gossip rule", GossipRule, "flwr_dmml.gossip", GOSSIP, extra)


def find_aggregation(
    extra: Iterable[type[AggregationRule]] = (),
) -> dict[str, type[AggregationRule]]:
    """Return every known aggregation rule by name, as :func:`find_gossip` does."""
    kind: type[AggregationRule] = AggregationRule  # type: ignore[type-abstract]
    return find("aggregation rule", kind, "flwr_dmml.gossip.aggregation", AGGREGATION, extra)


def make_aggregation(
    name: str,
    known: Mapping[str, type[AggregationRule]],
    options: Mapping[str, Group],
    assume_liars: float,
) -> AggregationRule | None:
    """Return the aggregation rule of a name, ``nnm+`` before it or not; None where there is none.

    Parameters
    ----------
    name : str
        As in a run config.
    known : mapping of str to type
        See :func:`find_aggregation`.
    options : mapping of str to Group
        Of the rules that have any, by name.
    assume_liars : float
        See :class:`.AggregationRule`.
    """
    plain = name.removeprefix(NNM)
    if plain not in known:
        return None
    rule = known[plain](options.get(plain, Group()), assume_liars)
    return rule if plain == name else with_nnm(rule)
