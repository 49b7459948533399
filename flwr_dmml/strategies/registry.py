"""The round plans of methods that need more than plain gossip."""

from collections.abc import Mapping
from importlib.metadata import entry_points

from .peer import PeerStrategy

GROUP = "flwr_dmml.strategies"


def find_strategies(
    extra: Mapping[str, type[PeerStrategy]] | None = None,
) -> dict[str, type[PeerStrategy]]:
    """Return the strategy of each method that has one of its own, by the method's name.

    Parameters
    ----------
    extra : mapping of str to type[PeerStrategy], optional
        Those of an app's own, besides those that installed packages register under the entry-point
        group ``flwr_dmml.strategies``.

    Raises
    ------
    ValueError
        An entry is not a PeerStrategy, or a method has two.
    """
    found: dict[str, type[PeerStrategy]] = {}
    registered = [(point.name, point.load()) for point in entry_points(group=GROUP)]
    for name, strategy in [*registered, *(extra or {}).items()]:
        if not (isinstance(strategy, type) and issubclass(strategy, PeerStrategy)):
            raise ValueError(f"method '{name}': {strategy!r} is not a subclass of PeerStrategy")
        if found.setdefault(name, strategy) is not strategy:
            raise ValueError(f"method '{name}' has two strategies: {found[name]!r}, {strategy!r}")
    return found
