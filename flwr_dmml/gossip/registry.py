"""The gossip and aggregation rules that can be named in a run config."""

from collections.abc import Iterable
from typing import TypeVar

from ..base.registry import find
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
