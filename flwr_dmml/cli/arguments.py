"""Arguments shared by the commands on a Flower app: its folder, and changes to its settings."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..base.overrides import parse_override

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
