"""Load a Flower app from its folder and run it in this process."""

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from ..base.errors import SettingsError
from ..base.libraries import LibraryError, require
from ..base.machine import expanded
from ..tracking import Tracker
from .errors import AppError
from .grid import never
from .identity import SERVER_NODE_ID, server_identity
from .inprocess import InProcessGrid
from .project import read_project

if TYPE_CHECKING:
    from .sharded import ShardedGrid


@dataclass(frozen=True)
class FlowerApp:
    """A loaded app: its run config (flat, as Flower gives it) and its two components."""

    run_config: dict[str, Any]
    server_app: ServerApp
    client_app: ClientApp


def load_app(folder: str | Path) -> FlowerApp:
    """Load the app in ``folder``.

    Raises
    ------
    AppError
        No valid ``pyproject.toml`` with ``[tool.flwr.app.components]`` there, or a component that
        cannot be found or is not what it should be.
    """
    path = Path(expanded(str(folder))).resolve()
    components, run_config = read_project(path)
    _make_importable(path, components.values())
    server_app = _load(components["serverapp"], ServerApp)
    client_app = _load(components["clientapp"], ClientApp)
    return FlowerApp(run_config, server_app, client_app)


def check_known(app: FlowerApp, changed: Mapping[str, Any]) -> None:
    """Refuse keys that another package's app does not have; an app of this one checks its own.

    Raises
    ------
    SettingsError
        Names the first such key, and what there is.
    """
    from ..clients.app import PeerClientApp

    if isinstance(app.client_app, PeerClientApp):
        return
    known = {*app.run_config, "num-nodes"}
    for key in changed:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = (
                f"did you mean '{close[0]}'?" if close else f"there are {', '.join(sorted(known))}"
            )
            raise SettingsError(f"{key}: the app has no such key; {hint}")


def _make_importable(path: Path, references: Iterable[str]) -> None:
    """Put the app's folder first on the path, and forget another app's modules of the same name.

    The folder stays there: an app may import its own modules as late as in a round.
    """
    if str(path) in sys.path:
        sys.path.remove(str(path))
    sys.path.insert(0, str(path))
    named = {reference.partition(":")[0].partition(".")[0] for reference in references}
    packages = {p for p in named if (path / p).is_dir() or (path / f"{p}.py").is_file()}
    for name, module in sys.modules.copy().items():  # a thread may be importing Ray
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in packages and file and path not in Path(file).parents:
            del sys.modules[name]
    importlib.invalidate_caches()


def _load(reference: str, kind: type) -> Any:
    module, _, attribute = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise AppError(f"{reference} cannot be loaded: {error}") from error
    if not isinstance(found, kind):
        raise AppError(f"{reference} is not a {kind.__name__}")
    return found


def run_app(
    app: FlowerApp,
    num_nodes: int,
    overrides: Mapping[str, Any] | None = None,
    *,
    workers: int = 0,
    ray_address: str = "",
    trackers: Sequence[Tracker] = (),
    on_reply: Callable[[int, int], None] | None = None,
    stopping: Callable[[], bool] = never,
) -> None:
    """Run an app on an engine of this package; returns when its ServerApp does.

    Data are read anew, whatever runs this process has seen before.

    Parameters
    ----------
    app : FlowerApp
        From :func:`load_app`, or put together by hand.
    num_nodes : int
        Nodes to simulate.
    overrides : mapping, optional
        Settings that replace those of the app's run config.
    workers : int (default: 0)
        Processes of the sharded engine; 0 runs all nodes in this one, without Ray.
    ray_address : str (default: "")
        An existing Ray cluster for them: "auto", or host:port.
    trackers, on_reply
        See :class:`InProcessGrid`.
    stopping : callable
        Asked after every round whether the run is to stop there; it can then be resumed.

    Raises
    ------
    EngineError
        The sharded engine cannot start.
    Exception
        Whatever the ServerApp raises.
    """
    from ..clients.hosting import forget

    forget()
    config = {**app.run_config, **(overrides or {})}
    run_id = 1
    given = app.client_app, num_nodes, config
    told: dict[str, Any] = {"run_id": run_id, "trackers": trackers, "on_reply": on_reply}
    context = Context(
        run_id=run_id,
        node_id=SERVER_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config=config,
    )
    with server_identity(run_id):
        if not workers:
            alone = InProcessGrid(*given, **told)
            alone.stopping = stopping
            app.server_app(alone, context)
            return
        with sharded_grid(*given, workers=workers, address=ray_address, **told) as grid:
            grid.stopping = stopping
            app.server_app(grid, context)


def sharded_grid(
    client_app: ClientApp, num_nodes: int, run_config: Mapping[str, Any], **options: Any
) -> "ShardedGrid":
    """Return a :class:`~flwr_dmml.engine.sharded.ShardedGrid`.

    Raises
    ------
    LibraryError
        Ray is missing or does not load.
    EngineError
        It does not start.
    """
    try:
        require("ray")
    except LibraryError as error:
        raise LibraryError(f"{error}. Or keep all devices in one process: --workers 0") from error
    from .sharded import ShardedGrid

    return ShardedGrid(client_app, num_nodes, run_config, **options)
