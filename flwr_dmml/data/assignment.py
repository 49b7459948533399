"""Assignment of modalities to nodes: by a repeated pattern, or by shares of the nodes."""

import math
from collections.abc import Sequence

from ..base.seeding import numpy_generator
from .samples import DataError

ModalitySet = tuple[str, ...]
AUTO = "auto"
"""The pattern by which a node owns what its samples have: here, all modalities there are."""


def assign_modalities(
    num_nodes: int,
    *,
    pattern: str = "",
    shares: str = "",
    available: Sequence[str],
    seed: int,
) -> list[ModalitySet]:
    """Return the modalities of each node, by exactly one of ``pattern`` and ``shares``.

    Parameters
    ----------
    num_nodes : int
        Number of nodes.
    pattern : str
        Modality sets that the nodes take in turn, e.g. ``"audio,image,audio+image"``
        (run-config key ``modality-pattern``), or :data:`AUTO`.
    shares : str
        Modality sets with the share of the nodes that own each, e.g.
        ``"audio=0.5,image=0.3,audio+image=0.2"``, of sum 1 (run-config key ``modality-shares``).
        The node counts are rounded by largest remainder, the order is shuffled.
    available : sequence of str
        The modalities of the data set.
    seed : int
        Seed of the shuffling.

    Returns
    -------
    list of tuple of str
        One tuple a node, each in the order of ``available``.

    Raises
    ------
    DataError
        If both or neither are given, or if a set or a number is not allowed; the message names
        the key, the value and what is allowed.

    Examples
    --------
    >>> assign_modalities(3, pattern="image,image+audio", available=["audio", "image"], seed=0)
    [('image',), ('audio', 'image'), ('image',)]
    """
    if bool(pattern.strip()) == bool(shares.strip()):
        raise DataError(
            "give exactly one of modality-pattern and modality-shares; "
            f"modality-pattern is '{pattern}', modality-shares is '{shares}'"
        )
    if pattern.strip() == AUTO:
        return [tuple(available)] * num_nodes
    if pattern.strip():
        sets = [
            _parse_set(item, "modality-pattern", pattern, available) for item in _items(pattern)
        ]
        return [sets[node % len(sets)] for node in range(num_nodes)]

    parsed = _parse_shares(shares, available)
    counts = _largest_remainder([*parsed.values()], num_nodes)
    nodes = [owned for owned, count in zip(parsed, counts, strict=True) for _ in range(count)]
    order = numpy_generator(seed, "modalities").permutation(num_nodes)
    return [nodes[i] for i in order]


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]


def _error(key: str, value: str, problem: str, available: Sequence[str]) -> DataError:
    example = {
        "modality-pattern": "'auto' and sets separated by commas, e.g. 'a,b,a+b'",
        "modality-shares": "sets with shares of sum 1, e.g. 'a=0.5,b=0.3,a+b=0.2'",
    }[key]
    return DataError(
        f"{key}: '{value}' {problem}; allowed are {example}, of the modalities "
        f"{', '.join(available)}"
    )


def _parse_set(text: str, key: str, value: str, available: Sequence[str]) -> ModalitySet:
    """Read ``"audio+image"``; ``value`` is the whole setting, for the message."""
    names = [name.strip() for name in text.split("+")]
    if "" in names:
        raise _error(key, value, "has an empty item", available)
    for name in names:
        if name not in available:
            raise _error(key, value, f"has the unknown modality '{name}'", available)
        if names.count(name) > 1:
            raise _error(key, value, f"names '{name}' twice in '{text}'", available)
    return tuple(name for name in available if name in names)


def _parse_shares(value: str, available: Sequence[str]) -> dict[ModalitySet, float]:
    """Read ``"audio=0.5,image=0.5"``."""
    key = "modality-shares"
    shares: dict[ModalitySet, float] = {}
    for item in _items(value):
        text, _, number = item.partition("=")
        owned = _parse_set(text, key, value, available)
        if owned in shares:
            raise _error(key, value, f"gives the set '{text.strip()}' twice", available)
        try:
            shares[owned] = float(number)
        except ValueError:
            shares[owned] = math.nan
        if not 0 <= shares[owned] <= 1:
            raise _error(key, value, f"needs a share from 0 to 1 in '{item}'", available)
    total = math.fsum(shares.values())
    if abs(total - 1) > 1e-6:
        raise _error(key, value, f"has shares of sum {total:g}", available)
    return shares


def _largest_remainder(shares: Sequence[float], total: int) -> list[int]:
    """Round ``shares`` (sum 1) of ``total`` to integers of that sum (Hamilton's method)."""
    quotas = [round(share * total, 9) for share in shares]  # 0.7 * 10 must count as 7
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - quotas[i])  # stable
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
