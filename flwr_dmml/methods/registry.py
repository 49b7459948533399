"""The methods that can be named in a run config."""

from collections.abc import Iterable
from importlib.metadata import entry_points

from ..base.errors import MethodError
from ..learning.learner import Learner
from ..learning.options import Options
from ..learning.together import check_batched

GROUP = "flwr_dmml.methods"


def find_methods(extra: Iterable[type[Learner]] = ()) -> dict[str, type[Learner]]:
    """Return every known method by name.

    Parameters
    ----------
    extra : iterable of type[Learner]
        Learners of an app's own, besides those that installed packages register under the
        entry-point group ``flwr_dmml.methods``.

    Raises
    ------
    MethodError
        Two methods share a name, an entry point is not a named Learner, or a method is declared
        batched that cannot be.
    """
    found: dict[str, type[Learner]] = {}
    registered = [(point.name, point.load()) for point in entry_points(group=GROUP)]
    for name, learner in [*registered, *((cls.name, cls) for cls in extra)]:
        if not (isinstance(learner, type) and issubclass(learner, Learner)):
            raise MethodError(f"method '{name}': {learner!r} is not a subclass of Learner")
        if not name or learner.name != name:
            must = (
                f"equal its entry point's name {name!r}" if name else "be set, as in name = 'mine'"
            )
            raise MethodError(f"{learner.__name__}.name must {must}")
        check_batched(learner)
        if found.setdefault(name, learner) is not learner:
            raise MethodError(f"two methods are named '{name}': {found[name]!r} and {learner!r}")
    return dict(sorted(found.items()))


def option_types(methods: dict[str, type[Learner]]) -> dict[str, type[Options]]:
    """Return the options of each method, for :func:`flwr_dmml.settings.parse_settings`."""
    return {name: learner.options_type for name, learner in methods.items()}
