"""Models in run folders: where a device's lies, and the samples that it was tested on."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..base.errors import UserError
from ..data import load_partition
from ..settings import find_parts, parse_settings
from .files import ABOUT, ModelError, file_stem, stem_of
from .model import TrainedModel

MODELS = "models"
"""Folder of models in the folder of a method."""


def find_model(path: Path, device: int | None, method: str = "", *, best: bool = False) -> Path:
    """Return the path of a model: given itself, or by a run folder and a device.

    Parameters
    ----------
    path : Path
        A model's file, or a run folder.
    device : int, optional
        Partition id of the device in a run folder.
    method : str
        Of the run's methods; by default the run's ``method``.
    best : bool
        Whether it is to be that of ``keep-best``.

    Raises
    ------
    ModelError
        There is none; the message says which ones there are.
    """
    if not path.is_dir():
        if device is not None or method or best:
            raise ModelError(f"{path} is no run folder: a device, a method or best belong to one")
        return path
    kept = {folder.parent.name: folder for folder in sorted(path.glob(f"*/{MODELS}"))}
    if not kept:
        raise ModelError(
            f"{path} has no models: no run folder, or of a run that has not ended, with "
            "keep-models = false, or of real devices, which keep them (flwr-dmml fleet pull-models)"
        )
    name = method or _method_of(path)
    if name not in kept:
        known = " or ".join(f"--method {other}" for other in kept)
        raise ModelError(f"{path} has no models of {name!r}; there are those of {known}")
    what, last = ("best", "-best") if best else ("last", "")
    there = {file.stem for file in kept[name].glob(f"device-*{ABOUT}")}
    if device is None or file_stem(device, what) not in there:
        asked = "name a device" if device is None else f"no {file_stem(device, what)}"
        numbers = (n.removeprefix("device-").removesuffix(last) for n in there if n.endswith(last))
        known = ", ".join(map(str, sorted(int(n) for n in numbers if n.isdecimal())))
        raise ModelError(f"{kept[name]}: {asked}; there are those of {known or 'none'}")
    return kept[name] / f"{file_stem(device, what)}{ABOUT}"


def _method_of(run: Path) -> str:
    try:
        config = json.loads((run / "config.json").read_bytes())
        return str(config["method"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{run}/config.json cannot be read: {error}; name the method") from error


def samples_of_run(
    path: Path, model: TrainedModel, modalities: Sequence[str], most: int
) -> dict[str, Tensor] | str:
    """Return test samples of the run that a model lies in, or why there are none.

    Parameters
    ----------
    path : Path
        Of the model.
    model : TrainedModel
        The model.
    modalities : sequence of str
        Samples that lack one of them are left out.
    most : int
        So many at most.

    Returns
    -------
    dict of str to Tensor, or str
        ``[samples, *shape]`` by modality.
    """
    config = stem_of(path).absolute().parents[2:3]
    file = config[0] / "config.json" if config else Path("config.json")
    try:
        run = json.loads(file.read_bytes())
        settings = parse_settings(run, find_parts(), side="device").settings
        test = load_partition(settings.partition_options(), model.about.device).test
    except (OSError, ValueError, UserError) as error:
        return " ".join(str(error).split())
    there = torch.ones(len(test), dtype=torch.bool)
    for m in modalities:
        if m not in test.inputs:
            return f"the test samples have no {m}"
        there = there & test.present[m] if test.present else there
    rows = there.nonzero().flatten()[:most]
    return {m: test.inputs[m][rows] for m in modalities} if len(rows) else "there is no sample"
