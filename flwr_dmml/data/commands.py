"""The commands ``flwr-dmml partition`` and ``flwr-dmml cache``."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from ..arguments import AppFolder, Nodes, Overrides, changed_settings
from ..clients import find_methods, option_types
from ..config import SettingsError, parse_settings, resolved
from ..engine import AppError, load_app
from ..options import GROUPS
from ..settings import Settings
from .cache import cache_folder, clear, entries
from .partition import load_partition
from .parts import PARTS, PartAbout, part_folder, save_part
from .samples import DataError

CUT_BY = (
    "dataset", "snr-db", "image-visible", "partition", "alpha", "samples-per-node",
    "validation-fraction", "modality-pattern", "modality-shares", "seed",
)  # fmt: skip
"""Settings that decide what is in a part, with those of :data:`CUT_BY_GROUPS`."""
CUT_BY_GROUPS = ("audio.", "image.", "series.", "missing.")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(partition)
    app.command()(cache)


def partition(
    path: AppFolder = Path("."),
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the parts: new or empty.")
    ] = Path("parts"),
    nodes: Nodes = None,
    overrides: Overrides = None,
) -> None:
    """Cut a data set into a folder for each device, to be copied to it.

    The division is the one that [bold]simulate[/bold] would make of the same app and settings:
    sensors (modality-pattern), samples (partition, alpha, samples-per-node), what is held out
    (validation-fraction), what is missing (missing.train-share). Every part has the test set, with
    its device's sensors. Each is read back and checked.

    A device is pointed to its part in its node config, and the run's dataset is "parts":

      flower-supernode --node-config "data-path='/data/part-003'" ...

      flwr run APP -c "dataset='parts'"

    On one machine: --set dataset=parts --set data-path=OUTPUT gives each simulated device its part.

    [bold]Examples[/bold]

      flwr-dmml partition examples/quickstart --nodes 4 --output parts

      flwr-dmml partition examples/quickstart -n 8 --set alpha=0.1 --set modality-pattern=image

    [bold]Exit status[/bold]  0: all parts are written.  1: nothing is.  2: wrong command line.
    """
    out, err = Console(), Console(stderr=True)
    changed = changed_settings(overrides, nodes)
    unfinished = output.with_name(output.name + ".unfinished")
    try:
        settings = _settings({**load_app(path).run_config, **changed})
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise DataError(f"--output: '{output}' is not empty; name another folder")
        if unfinished.exists():  # of a command that was interrupted
            shutil.rmtree(unfinished)
        parts = _cut(settings, unfinished, err)
        if output.exists():
            output.rmdir()
        unfinished.rename(output)
    except (AppError, SettingsError, DataError, OSError) as error:
        if unfinished.exists():
            shutil.rmtree(unfinished)
        err.print(f"[bold red]Error:[/bold red] {type(error).__name__}:", end=" ")
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    out.print(_parts_table(parts, output))
    first = part_folder(output.resolve(), 0)
    out.print(
        f"{len(parts)} parts in {output}. On device 0: --node-config \"data-path='{first}'\"",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def _settings(config: Mapping[str, Any]) -> Settings:
    """Read what of a run config bears on the data, whatever methods the app has."""
    known = {k: v for k, v in config.items() if "." not in k or k.partition(".")[0] in GROUPS}
    common = {**known, "method": "dpsgd", "compare-with": "", "topology": "complete"}
    settings, _ = parse_settings(common, option_types(find_methods()), side="device")
    if settings.dataset == PARTS.name:
        raise SettingsError("dataset = 'parts': is cut already; name the data set itself")
    return settings


def _cut(settings: Settings, folder: Path, console: Console) -> list[PartAbout]:
    options, values = settings.partition_options(), resolved(settings, {})
    cut_by = {k: v for k, v in values.items() if k in CUT_BY or k.startswith(CUT_BY_GROUPS)}
    count = settings.num_nodes
    return [
        save_part(part_folder(folder, part), load_partition(options, part), count, cut_by)
        for part in track(range(count), "Cutting", console=console, transient=True)
    ]


def _parts_table(parts: list[PartAbout], folder: Path) -> Table:
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


def cache(
    clear_it: Annotated[
        bool, typer.Option("--clear", help="Delete what is cached of DATASET, or everything.")
    ] = False,
    dataset: Annotated[
        str, typer.Argument(metavar="[DATASET]", help="Only of this data set.")
    ] = "",
) -> None:
    """Show which data sets are kept as tensors, where and how large; or delete them.

    What a run has read and transformed is kept for the next one, by the content of its files, the
    settings that matter and the version of the code. The folder is ~/.cache/flwr-dmml, or what
    FLWR_DMML_CACHE names. The run config's [bold]data-cache = false[/bold] keeps nothing.

    [bold]Examples[/bold]

      flwr-dmml cache

      flwr-dmml cache --clear av-digits
    """
    out = Console()
    found = [entry for entry in entries() if dataset in ("", entry.dataset)]
    size = sum(entry.size for entry in found) / 1e6
    if not found:
        of = f" of {dataset}" if dataset else ""
        text = f"nothing{of} to delete" if clear_it else f"empty{of}"
        out.print(f"{cache_folder()}: {text}", markup=False, soft_wrap=True)
        return
    if clear_it:
        count = len(clear(dataset))
        text = f"{count} file{'s' * (count > 1)}, {size:.0f} MB deleted"
        out.print(f"{cache_folder()}: {text}", markup=False, soft_wrap=True)
        return
    table = Table("data set", Column("MB", justify="right"), Column("settings", overflow="fold"))
    for entry in found:
        settings = ", ".join(f"{key}={value}" for key, value in json.loads(entry.settings).items())
        table.add_row(entry.dataset, f"{entry.size / 1e6:.1f}", settings)
    out.print(table)
    out.print(f"{cache_folder()}: {size:.0f} MB", markup=False, soft_wrap=True)
