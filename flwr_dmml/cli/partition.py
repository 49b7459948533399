"""The command ``flwr-dmml partition``."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from ..base.errors import UserError
from ..base.overrides import with_overrides
from .arguments import AppFolder, Nodes, Overrides, changed_settings
from .output import errors_in_words, say

if TYPE_CHECKING:
    from ..data.sets.parts import PartAbout
    from ..engine import FlowerApp
    from ..settings import RunConfig


def partition(
    path: AppFolder = Path("."),
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the parts: new or empty.")
    ] = Path("parts"),
    nodes: Nodes = None,
    overrides: Overrides = None,
) -> None:
    """Split a data set into one folder per device, to be copied there.

    The division is that of [bold]simulate[/bold] with the same app and settings:
    sensors (modality-pattern), samples (partition, alpha, samples-per-node), held-out samples
    (validation-fraction), missing modalities (missing.train-share). Every part has the test set,
    with its device's sensors; the disk holds it once for parts of equal sensors (as a hard link,
    which a copy is not). Each is read back and checked.

    Name a device's part in its node config, and set the run's dataset to "parts":

      flower-supernode --node-config "data-path='/data/part-003'" ...

      flwr run APP -c "dataset='parts'"

    On one machine: --set dataset=parts --set data-path=OUTPUT gives each simulated device its part.

    [bold]Examples[/bold]

      flwr-dmml partition examples/quickstart --nodes 4 --output parts

      flwr-dmml partition examples/quickstart -n 8 --set alpha=0.1

    [bold]Exit status[/bold]  0: all parts are written.  1: nothing is.  2: wrong command line.
    """
    from ..data import DataError
    from ..data.sets.parts import part_folder
    from ..engine import load_app

    changed = changed_settings(overrides, nodes)
    unfinished = output.with_name(output.name + ".unfinished")
    with errors_in_words():
        try:
            config = _read(load_app(path), changed)
            if output.exists() and (not output.is_dir() or any(output.iterdir())):
                raise DataError(f"--output: '{output}' is not empty; name another folder")
            if unfinished.exists():  # of a command that was interrupted
                shutil.rmtree(unfinished)
            parts = _cut(config, unfinished)
            if output.exists():
                output.rmdir()
            unfinished.rename(output)
        except (UserError, OSError):
            if unfinished.exists():
                shutil.rmtree(unfinished)
            raise
    Console().print(_parts_table(parts, output))
    first = part_folder(output.resolve(), 0)
    say(f"{len(parts)} parts in {output}. On device 0: --node-config \"data-path='{first}'\"")


def _read(app: "FlowerApp", changed: dict[str, Any]) -> "RunConfig":
    """Read an app's settings for a method and a graph that fit all data."""
    from ..base.errors import SettingsError
    from ..clients.app import own_parts
    from ..data.sets.parts import PARTS
    from ..settings import find_parts, parse_settings

    config = {**with_overrides(app.run_config), **changed}
    common = {**config, "method": "dpsgd", "compare-with": "", "topology": "complete"}
    read = parse_settings(common, find_parts(own_parts(app.client_app)), side="device")
    if read.settings.dataset == PARTS.name:
        raise SettingsError("dataset = 'parts': is cut already; name the data set itself")
    return read


def _cut(config: "RunConfig", folder: Path) -> "list[PartAbout]":
    from ..data import load_partition
    from ..data.sets.parts import part_folder, save_part
    from ..learning.settings import divides

    options, values = config.settings.partition_options(), config.resolved()
    cut_by = {k: v for k, v in values.items() if divides(k, config.settings.dataset)}
    count, made = config.settings.num_nodes, list["PartAbout"]()
    firsts = dict[tuple[str, ...], Path]()  # the first part with the same modalities
    for part in track(range(count), "Cutting", console=Console(stderr=True), transient=True):
        own, partition = part_folder(folder, part), load_partition(options, part)
        first = firsts.setdefault(partition.modalities, own)
        like = [first] if first != own else []
        made.append(save_part(own, partition, count, cut_by, like=like))
    return made


def _parts_table(parts: "list[PartAbout]", folder: Path) -> Table:
    from ..data.sets.parts import part_folder

    right = [Column(name, justify="right") for name in ("training", "validation", "test", "MB")]
    table = Table("part", "modalities", *right, Column("training samples of each class"))
    for about in parts:
        size = sum(file.stat().st_size for file in part_folder(folder, about.part).iterdir()) / 1e6
        counts = [str(n) for n in (about.train, about.validation, about.test)]
        classes = " ".join(map(str, about.class_counts))
        table.add_row(
            f"{about.part:03d}", "+".join(about.modalities), *counts, f"{size:.1f}", classes
        )
    return table
