"""``simulate``: a run on this machine, from Python."""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import TYPE_CHECKING, Any

from ..base.errors import MethodError, SettingsError
from ..base.log import log
from ..base.options import kebab
from ..base.overrides import with_overrides
from ..base.stopping import stop_requests
from ..engine import FlowerApp, check_known, load_app, run_app
from ..engine.choice import devices, processes
from ..graph.topology import TOPOLOGIES, Topology, own_fields
from ..learning.learner import Learner
from ..settings import Settings
from ..settings.settings import OF_TOPOLOGY
from ..strategies import resumed_settings
from ..tracking.run_folder import folder_of_runs, new_name
from .own_data import Pair, read_data
from .progress import progress_of
from .run import Run

if TYPE_CHECKING:
    from ..data import Dataset
    from ..data.samples import Source


def simulate(
    app: "str | Path | FlowerApp | type[Learner] | None" = None,
    /,
    *,
    data: "Dataset | Source | Pair | Sequence[Pair] | None" = None,
    test: Pair | None = None,
    topology: str | Topology | None = None,
    workers: int | None = None,
    progress: bool | None = None,
    verbose: bool = False,
    **settings: Any,
) -> Run:
    """Run a simulation on this machine and return it; the numbers are those of the command.

    Parameters
    ----------
    app : path, FlowerApp or type[Learner], optional
        A Flower app's folder, or a method of your own. By default the installed methods, of which
        ``method=`` names one.
    data : Dataset, Source, pair or sequence of pairs, optional
        Data in memory, see :func:`~flwr_dmml.api.own_data.read_data`: ``(inputs, labels)`` to
        divide, or a list with a pair for each device. By default the setting ``dataset``.
    test : pair, optional
        Test samples of such pairs.
    topology : str or Topology, optional
        The setting, or a topology object, which may be of a class of your own.
    workers : int, optional
        Processes to spread the devices over; 0: all in this one. By default the size of the run
        decides.
    progress : bool, optional
        Whether to show a progress bar. By default in notebooks and on terminals.
    verbose : bool (default: False)
        Whether to print the log, which is in the run folder's ``log.txt`` in any case.
    **settings
        Any settings of the run config, with ``_`` for ``-``: ``num_nodes=12``; those of a group as
        ``**{"energy.battery-share": 0.0}``. ``run_name`` is a wish: where a folder of that name
        is there, ``-2`` or the next free number is added. ``resume`` names a run to go on with.

    Returns
    -------
    Run

    Raises
    ------
    SettingsError
        A setting is unknown or cannot work; the message names it, and what is allowed.
    DataError
        ``data`` cannot be used.
    RunStoppedError
        Ctrl-C (or the interrupt of a notebook) or SIGTERM stopped it after a round, with a
        checkpoint; a second one raises KeyboardInterrupt at once.

    Examples
    --------
    >>> from flwr_dmml import simulate
    >>> run = simulate(method="dmml-kd", num_nodes=12, num_server_rounds=30)
    >>> run.rounds[["round", "accuracy"]]
    """
    given = _given(settings)
    parts: dict[str, Any] = {}
    if data is not None:
        own = read_data(data, test)
        for key, value in own.settings.items():
            if key in ("dataset", "num-nodes") and given.setdefault(key, value) != value:
                raise SettingsError(f"{key} = {given[key]!r}: the data given say {value!r}")
            given.setdefault(key, value)
        parts["datasets"] = [own.dataset]
    elif test is not None:
        raise SettingsError("test: goes with data, pairs of inputs and labels")
    if isinstance(topology, Topology):
        parts |= _own_family(topology)
        given = _settings_of(topology) | given
    elif topology is not None:
        given["topology"] = topology
    loaded = _app(app, parts, given)
    check_known(loaded, given)
    config = {**loaded.run_config, **given}
    if given.get("resume"):
        given = resumed_settings(str(given["resume"]), config, given)
        folder = Path(given["resume"])
    else:
        folder = _new_folder(config)
        given |= {"run-name": folder.name}
    config = {**loaded.run_config, **given}
    if workers == 0 and config.get("ray-address"):
        raise SettingsError("workers = 0 and ray-address: one process needs no cluster")
    shown = progress_of(progress)
    with _log(verbose), shown as bar, stop_requests(_said, SIGINT, SIGTERM) as stopping:
        run_app(
            loaded,
            devices(config),
            given,
            workers=processes(workers, config, _warn).workers,
            ray_address=str(config.get("ray-address", "")),
            trackers=[bar] if bar else [],
            on_reply=bar.on_reply if bar else None,
            stopping=stopping,
        )
    return Run(folder)


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by their keys in a run config."""
    given: dict[str, Any] = {}
    for name, value in settings.items():
        key = kebab(name)
        if key in given:
            raise SettingsError(f"{key}: given twice, as {key} and as {key.replace('-', '_')}")
        given[key] = str(value) if isinstance(value, Path) else value
    return given


def _app(
    app: "str | Path | FlowerApp | type[Learner] | None",
    parts: dict[str, Any],
    given: dict[str, Any],
) -> FlowerApp:
    """Return the app to run: the one given, or one made of what is installed and given."""
    from ..clients.app import make_client_app
    from ..strategies.app import make_server_app

    if isinstance(app, str | Path | FlowerApp):
        if parts:
            raise SettingsError(
                f"{' and '.join(parts)} of your own: an app brings its own parts along; name them "
                "in its make_client_app, or give no app"
            )
        found = app if isinstance(app, FlowerApp) else load_app(app)
        return replace(found, run_config=dict(with_overrides(found.run_config)))
    learners: list[type[Learner]] = []
    if app is not None:
        if not (isinstance(app, type) and issubclass(app, Learner)):
            raise MethodError(
                f"simulate: {app!r} is no app; give a folder, a FlowerApp, a subclass of Learner, "
                "or nothing"
            )
        learners = [app]
        given.setdefault("method", app.name)
    client_app = make_client_app(*learners, **parts)
    return FlowerApp({}, make_server_app(client_app=client_app), client_app)


def _settings_of(topology: Topology) -> dict[str, Any]:
    """Return the settings that stand for a topology object."""
    family = type(topology)
    built_in = {kind: name for name, kind in TOPOLOGIES.items()}
    name = built_in.get(family, family.name)
    found: dict[str, Any] = {"topology": name}
    own = own_fields(family)
    for field in fields(topology):
        inside = field.name in own
        key = f"{name}.{kebab(field.name)}" if inside else kebab(OF_TOPOLOGY[field.name])
        found[key] = getattr(topology, field.name)
    return found


def _own_family(topology: Topology) -> dict[str, Any]:
    family = type(topology)
    return {} if family in TOPOLOGIES.values() else {"topologies": [family]}


def _new_folder(config: Mapping[str, Any]) -> Path:
    """Return a folder that is not there yet, by the name that is wished for if there is any."""
    usual = Settings()
    parent = folder_of_runs(str(config.get("run-dir", usual.run_dir)))
    wished = str(config.get("run-name", usual.run_name))
    if not wished:
        return parent / new_name(str(config.get("method", usual.method)))
    folder, number = parent / wished, 1
    while folder.exists():
        number += 1
        folder = parent / f"{wished}-{number}"
    return folder


def _warn(text: str) -> None:
    log(logging.WARNING, "%s", text)


def _said(number: int) -> None:
    print("Stopping after this round; once more stops at once.", file=sys.stderr)


@contextmanager
def _log(verbose: bool) -> Iterator[None]:
    """Let only warnings through to the console while the block runs, unless all is asked for."""
    if verbose:
        yield
        return
    logger = logging.getLogger("flwr")
    shown = [h for h in logger.handlers if isinstance(h, logging.StreamHandler)]
    levels = [handler.level for handler in shown]
    for handler in shown:
        handler.setLevel(max(handler.level, logging.WARNING))
    try:
        yield
    finally:
        for handler, level in zip(shown, levels, strict=True):
            handler.setLevel(level)
