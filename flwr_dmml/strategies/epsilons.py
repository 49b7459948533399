"""Epsilons of a run with ``privacy.dp``, as its devices tell them."""

from collections.abc import Iterable, Sequence
from statistics import median

from ..learning.spending import EPSILON, SPENT
from ..privacy.options import PrivacyOptions
from ..tracking.records import NodeResult, RoundRecord


def spent_in(nodes: Iterable[NodeResult]) -> set[int]:
    """Return the devices whose budget does not allow another round of training."""
    return {node.partition for node in nodes if node.own.get(SPENT)}


def last_of(records: Iterable[RoundRecord], name: str) -> dict[int, float]:
    """Return the last number that each device has told under a name, by partition id."""
    nodes = (node for record in records for node in record.nodes)
    return {node.partition: node.own[name] for node in nodes if name in node.own}


def epsilon_lines(
    method: str, records: Sequence[RoundRecord], privacy: PrivacyOptions
) -> list[str]:
    """Return what a method has cost, in lines for the log; nothing without ``privacy.dp``."""
    if not (found := sorted(last_of(records, EPSILON).values())):
        return []
    span = f"{found[0]:.3g} to {found[-1]:.3g} (median {median(found):.3g})"
    unit = f"{privacy.unit}, against all who see what its device sends"
    told = f"differential privacy of {unit}: epsilon {span} at delta {privacy.delta_told}"
    lines = [f"{method}: {told}"]
    before_the_end = [node for record in records[:-1] for node in record.nodes]
    if out := sorted(spent_in(before_the_end)):
        lines.append(f"{method}: budget spent before the end: node {', '.join(map(str, out))}")
    return lines
