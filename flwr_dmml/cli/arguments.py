"""Arguments shared by the commands on a Flower app: its folder, and changes to its settings."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.errors import SettingsError
from ..engine.project import parse_override

if TYPE_CHECKING:
    from ..engine import FlowerApp

AppFolder = Annotated[
    Path, typer.Argument(help="Folder of the Flower app, e.g. examples/quickstart.")
]
Nodes = Annotated[int | None, typer.Option("--nodes", "-n", min=1, help="Devices; sets num-nodes.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Set a run-config key. Repeatable."),
]


def changed_settings(overrides: list[str] | None, nodes: int | None) -> dict[str, Any]:
    """Return the settings that ``--set`` and ``--nodes`` change.

    Raises
    ------
    typer.BadParameter
        One of them is not KEY=VALUE.
    """
    try:
        changed = dict(parse_override(item) for item in overrides or [])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return changed if nodes is None else {**changed, "num-nodes": nodes}


def check_known(app: "FlowerApp", changed: Mapping[str, Any]) -> None:
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
