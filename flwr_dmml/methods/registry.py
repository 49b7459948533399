"""The methods that can be named in a run config."""

from collections.abc import Iterable

from ..base.registry import find
from ..learning.learner import Learner

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
        Two methods share a name, or an entry point is not a named Learner.
    """
    return find("method", Learner, "flwr_dmml.methods", GROUP, extra)
