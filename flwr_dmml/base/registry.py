"""Registry of the parts that a run config can name: installed ones, and an app's own."""

from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from .errors import MethodError

PartT = TypeVar("PartT")


def find(
    kind: str, base: type[PartT], group: str, extra: Iterable[type[PartT]] = ()
) -> dict[str, type[PartT]]:
    """Return every known class of a kind by its ``name``, sorted.

    Parameters
    ----------
    kind : str
        What it is, for messages: "method".
    base : type
        What each is a subclass of; it has a class attribute ``name``.
    group : str
        The entry-point group under which installed packages register theirs.
    extra : iterable of type
        An app's own.

    Raises
    ------
    MethodError
        Two share a name, or one is not a named subclass of ``base``.
    """
    found: dict[str, Any] = {}
    registered = [(point.name, point.load()) for point in entry_points(group=group)]
    for name, part in [*registered, *((getattr(cls, "name", ""), cls) for cls in extra)]:
        if not (isinstance(part, type) and issubclass(part, base)):
            raise MethodError(f"{kind} '{name}': {part!r} is not a subclass of {base.__name__}")
        own = getattr(part, "name", "")
        if not name or own != name:
            must = (
                f"equal its entry point's name {name!r}" if name else "be set, as in name = 'mine'"
            )
            raise MethodError(f"{part.__name__}.name must {must}")
        if found.setdefault(name, part) is not part:
            raise MethodError(f"two {kind}s are named '{name}': {found[name]!r} and {part!r}")
    return dict(sorted(found.items()))
