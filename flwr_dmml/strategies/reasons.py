"""Reasons of failed devices, in words."""

import re
from collections.abc import Mapping

from flwr.app import Error

from ..transport.messages import PARTITION

OWN = rf"{PARTITION} (\d+): "


def join_reasons(reasons: Mapping[int, str], partitions: Mapping[int, int] | None = None) -> str:
    """Write reasons by node, those with the same reason together."""
    nodes: dict[str, list[str]] = {}
    for node, reason in sorted(reasons.items()):
        known = f" (partition {partitions[node]})" if partitions and node in partitions else ""
        nodes.setdefault(reason, []).append(f"{node}{known}")

    def some(who: list[str]) -> str:
        return ", ".join(who[:5]) + (f" and {len(who) - 5} more" if len(who) > 5 else "")

    return "; ".join(f"node {some(who)}: {reason}" for reason, who in nodes.items())


def reason_of(error: Error) -> str:
    """Return why a node failed; Flower writes exceptions as ``<class 'a.B'>:<'text'>``."""
    text = str(error.reason)
    match = re.fullmatch(rf"<class '(?:.*\.)?(\w+)'>:<'({OWN})?(.*)'>", text, flags=re.DOTALL)
    return f"{match[1]}: {match[4]}" if match else text


def partition_of(error: Error) -> int | None:
    """Return the partition of a node that failed, where its reason begins with it."""
    match = re.match(rf"<class '[^']*'>:<'{OWN}", str(error.reason))
    return int(match[1]) if match else None
