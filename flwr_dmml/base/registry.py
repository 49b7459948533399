"""Registry of the parts that a run config can name: installed ones, and an app's own."""

import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from typing import Any, TypeVar

from .errors import MethodError

PartT = TypeVar("PartT")


def installed(group: str) -> dict[str, EntryPoint]:
    """Return what installed packages register under an entry-point group, by name.

    They are looked for once in a process: that takes 20 ms.
    """
    return _installed(group, tuple(sys.path))


@lru_cache(maxsize=64)
def _installed(group: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def built_in(base: type[PartT], package: str) -> list[type[PartT]]:
    """Return the classes of a package's modules that give themselves a ``name``."""
    folder = import_module(package)
    found: list[type[PartT]] = []
    for info in iter_modules(folder.__path__, f"{package}."):
        if info.ispkg:
            continue
        module = import_module(info.name)
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == info.name
            if own and issubclass(value, base) and vars(value).get("name"):
                found.append(value)
    return found


def find(
    kind: str, base: type[PartT], package: str, group: str, extra: Iterable[type[PartT]] = ()
) -> dict[str, type[PartT]]:
    """Return every known class of a kind by its ``name``, sorted.

    Parameters
    ----------
    kind : str
        What it is, for messages: "method".
    base : type
        What each is a subclass of; it has a class attribute ``name``.
    package : str
        Where the built-in ones are: every class in its modules that has a ``name``.
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
    named: list[tuple[str, Any]] = [
        *((vars(cls)["name"], cls) for cls in built_in(base, package)),
        *((name, point.load()) for name, point in installed(group).items()),
        *((getattr(cls, "name", ""), cls) for cls in extra),
    ]
    for name, part in named:
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
