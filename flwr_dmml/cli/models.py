"""The commands on trained models: ``flwr-dmml predict`` and ``flwr-dmml export``."""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .output import errors_in_words, labelled, say

if TYPE_CHECKING:
    from ..deploy.export import Samples
    from ..deploy.model import Prediction, TrainedModel

Model = Annotated[
    Path,
    typer.Argument(help="A model (device-003.safetensors), or a run folder with --device."),
]
Device = Annotated[
    int | None, typer.Option("--device", "-d", min=0, help="The device, in a run folder.")
]
Method = Annotated[str, typer.Option(help="Method, in a run of two (default: its main one).")]
Best = Annotated[bool, typer.Option("--best", help="Take the model that keep-best kept.")]


def predict(
    model: Model,
    samples: Annotated[
        list[str], typer.Argument(metavar="SAMPLE...", help="FILE, or NAME=FILE,NAME=FILE.")
    ],
    device: Device = None,
    method: Method = "",
    best: Best = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of CSV.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file instead.")
    ] = None,
) -> None:
    """Predict the classes of files with a trained model.

    Files are read as those of the data set were: sound is resampled and cropped, images are
    resized. A SAMPLE is one file, whose type tells its modality, or several: NAME=FILE for each
    modality, separated by commas. It may lack modalities of the model.

    The CSV output has a line for each sample: its name, its class, the probability of that class,
    and the probabilities of all classes.

    [bold]Examples[/bold]

      flwr-dmml predict runs/mine --device 3 seven.wav eight.wav

      flwr-dmml predict device-005.safetensors audio=a.wav,image=a.png --json

    [bold]Exit status[/bold]  0: all samples are predicted.  1: the model or a sample cannot be
    used; standard error says why.  2: wrong command line.
    """
    from ..base.files import write_whole
    from ..deploy.model import load_model
    from ..deploy.runs import find_model

    with errors_in_words():
        found = load_model(find_model(model, device, method, best=best))
        say(_whose(found), err=True)
        answers = [(sample, found.predict(_files_of(sample, found))) for sample in samples]
        text = (_as_json if as_json else _as_csv)(found, answers)
        if output is None:
            say(text.rstrip("\n"))
        else:
            write_whole(output, text)
            say(f"{len(answers)} predictions in {output}")


def _whose(model: "TrainedModel") -> str:
    about = model.about
    return f"Model of device {about.device}, {about.method}, round {about.round}"


def _files_of(sample: str, model: "TrainedModel") -> dict[str, str]:
    """Return the files of a sample by modality.

    Raises
    ------
    DataError
        The modality of a file is not clear.
    """
    from ..data import DataError
    from ..data.reading.decoding import kind_of

    names = sorted(model.modalities, key=len, reverse=True)
    pair = rf"(?:^|,)({'|'.join(map(re.escape, names))})="
    if re.match(pair, sample):
        parts = re.split(pair, sample)[1:]
        return dict(zip(parts[::2], parts[1::2], strict=True))
    kind = kind_of(sample)
    numbers = ("vector", "series", "sequence")
    fits = [
        name
        for name, form in model.modalities.items()
        if form.kind == kind or (kind == "table" and form.kind in numbers)
    ]
    if len(fits) != 1:
        told = f"could be {' or '.join(fits)}" if fits else "is none of the model's modalities"
        raise DataError(
            f"{sample} {told}, by its type; write NAME={sample}, with one of "
            f"{', '.join(model.modalities)}"
        )
    return {fits[0]: sample}


def _as_csv(model: "TrainedModel", answers: "Sequence[tuple[str, Prediction]]") -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["sample", "class", "probability", *model.classes])
    for sample, answer in answers:
        shares = [f"{p:.6f}" for p in answer.probabilities[0].tolist()]
        table.writerow([sample, answer.classes[0], max(shares, key=float), *shares])
    return text.getvalue()


def _as_json(model: "TrainedModel", answers: "Sequence[tuple[str, Prediction]]") -> str:
    rows = [
        {
            "sample": sample,
            "class": answer.classes[0],
            "probabilities": dict(
                zip(model.classes, answer.probabilities[0].tolist(), strict=True)
            ),
        }
        for sample, answer in answers
    ]
    return json.dumps(rows, indent=2) + "\n"


def export(
    model: Model,
    form: Annotated[
        Literal["torch-export", "onnx", "executorch"],
        typer.Option("--format", "-f", metavar="FORMAT", help="torch-export, onnx or executorch."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file.")],
    device: Device = None,
    method: Method = "",
    best: Best = False,
    modalities: Annotated[
        str, typer.Option(help="Inputs: 'audio', for example; by default all of the model's.")
    ] = "",
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Take waves and pixels, not spectrograms."),
    ] = False,
    samples: Annotated[
        list[str] | None,
        typer.Option("--sample", help="Check it on this sample; see predict. Repeatable."),
    ] = None,
) -> None:
    r"""Export a trained model to a file for another runtime, and check it there.

    The program takes a batch of each modality, and returns the probabilities of the classes.
    Batches may have any size; in ExecuTorch up to 8 samples. With [bold]--raw[/bold] it takes what
    sensors give: sound as float32 \[batch, samples], at the rate and length of the run's settings
    and of any volume, with zeros behind shorter sound; images as uint8 \[batch, side, side,
    channels].

    The file is read back by its own runtime and must give the model's probabilities, to 1e-4: on
    each [bold]--sample[/bold] that is given; else on test samples of the run, or on noise where
    they cannot be read and with [bold]--raw[/bold]. Otherwise nothing is written.

    ONNX needs pip install "flwr-dmml\[onnx]", ExecuTorch "flwr-dmml\[executorch]".

    [bold]Examples[/bold]

      flwr-dmml export runs/mine --device 5 --format onnx --raw --output app.onnx

      flwr-dmml export device-003.safetensors -f torch-export -o model.pt2

      flwr-dmml export runs/mine -d 5 -f executorch -o app.pte

    [bold]Exit status[/bold]  0: written.  1: nothing is written; standard error says why.
    2: wrong command line.
    """
    from ..deploy.export import export_model
    from ..deploy.model import load_model
    from ..deploy.runs import find_model

    with errors_in_words():
        path = find_model(model, device, method, best=best)
        found = load_model(path)
        chosen = [name.strip() for name in modalities.split(",") if name.strip()]
        tried = _samples(path, found, chosen, samples or [], raw=raw)
        done = export_model(found, output, form, modalities=chosen, raw=raw, samples=tried)
    say(_whose(found))
    for name, given in done.inputs.items():
        say(f"input {name}: {given}")
    say(f"output probabilities: float32 [batch, {len(found.classes)}]")
    say(f"checked on {done.told}: probabilities differ by {done.difference:.1e} at most")
    say(f"{output} ({output.stat().st_size / 1e6:.2f} MB)")


def _samples(
    path: Path, model: "TrainedModel", chosen: list[str], given: list[str], *, raw: bool
) -> "Samples | None":
    """Return what to check a program on: what is given, or test samples of the run."""
    from ..data import DataError
    from ..deploy.export import CHECKED, Samples, samples_of_files
    from ..deploy.front import Program
    from ..deploy.runs import samples_of_run

    names = [m for m in model.modalities if m in chosen or not chosen]
    if given:
        files = [_files_of(sample, model) for sample in given]
        if short := [s for s, own in zip(given, files, strict=True) if not set(names) <= {*own}]:
            raise DataError(f"--sample {short[0]}: it needs a file of each of {', '.join(names)}")
        lists = {m: [own[m] for own in files] for m in names}
        return samples_of_files(Program(model, names, raw=raw), lists)
    if raw:
        return None
    found = samples_of_run(path, model, names, CHECKED)
    if isinstance(found, str):
        labelled("Note", "bold yellow", f"no test samples, so it is checked on noise: {found}")
        return None
    count = len(next(iter(found.values())))
    return Samples(found, f"{count} test samples of {model.about.dataset}")
