"""Export of a trained model: to torch.export, ONNX and ExecuTorch, and checked there."""

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..base.errors import UserError
from ..base.files import whole, writing
from ..base.libraries import needed
from ..data.reading.raw import read_raw
from .files import ModelError
from .front import LogMel, Pixels, Program
from .model import TrainedModel

Format = Literal["torch-export", "onnx", "executorch"]
SUFFIXES: dict[Format, str] = {"torch-export": ".pt2", "onnx": ".onnx", "executorch": ".pte"}
OUTPUT = "probabilities"
"""Name of the output."""
ABOUT = "flwr-dmml"
"""Name of the description in a file of torch.export or ONNX."""
TOLERANCE = 1e-4
"""Largest difference of a probability from the model's own."""
EXECUTORCH_BATCH = 8
"""Most samples at once in ExecuTorch; its XNNPACK kernels were found to take 15 at most."""
CHECKED = 32
"""Samples that a program is checked on, where there are so many."""

Run = Callable[[Sequence[Tensor]], Tensor]
"""Runs an exported program on a batch."""


@dataclass(frozen=True)
class Samples:
    """What an exported program is checked on.

    Attributes
    ----------
    inputs : dict of str to Tensor
        By modality, ``[samples, …]`` as the program takes them.
    told : str
        How many there are, and where they are from, for people.
    read : mapping of str to Tensor
        What the model itself is given of a modality, ``[samples, …]``; by default ``inputs``, read
        as they were in training.
    """

    inputs: dict[str, Tensor]
    told: str
    read: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """An exported program.

    Attributes
    ----------
    inputs : dict of str to str
        Names of its inputs with the shape and type of a batch, for people.
    told : str
        What it has been checked on.
    difference : float
        The largest one of a probability.
    """

    inputs: dict[str, str]
    told: str
    difference: float


def export_model(
    model: TrainedModel,
    file: Path,
    form: Format,
    *,
    modalities: Sequence[str] = (),
    raw: bool = False,
    samples: Samples | None = None,
) -> Exported:
    """Export a model, and check the file.

    The program takes one argument for each modality, batches of any size (ExecuTorch:
    :data:`EXECUTORCH_BATCH` samples at most), and returns probabilities ``[batch, classes]``. The
    file says what classes and inputs are; ExecuTorch's has no place for it.

    Parameters
    ----------
    model : TrainedModel
        To be exported.
    file : Path
        Written only if the program in it gives what the model gives.
    form : {"torch-export", "onnx", "executorch"}
        The format.
    modalities : sequence of str
        Those that the program takes, of the model's own; by default all.
    raw : bool
        Whether it takes samples of sound and pixels (:mod:`~flwr_dmml.deploy.front`) instead of
        spectrograms and images.
    samples : Samples, optional
        What to check it on; by default random numbers.

    Raises
    ------
    ModelError
        There is no such modality; the model cannot be exported; or the program gives something
        else than the model.
    LibraryError
        What the format needs is not installed.
    WriteError
        The file cannot be written.
    """
    chosen = [m for m in model.modalities if m in modalities or not modalities]
    if unknown := [m for m in modalities if m not in model.modalities]:
        raise ModelError(
            f"no modality {unknown[0]!r}; this model has {', '.join(model.modalities)}"
        )
    program = Program(model, chosen, raw=raw).eval().cpu()
    tried = samples or random_samples(program)
    expected = _by_the_model(program, tried)
    write, load = _FORMATS[form]
    with writing(file), whole(file) as part:
        with _quiet(form):
            write(program, part)
            found = _in_batches(load(part, program), program, tried.inputs, form)
        difference = float((found - expected).abs().max())
        if not difference <= TOLERANCE:
            raise ModelError(
                f"{file} is not written: the {form} program differs from the model by up to "
                f"{difference:.2g} in a probability, on {tried.told}; allowed: {TOLERANCE:g}"
            )
    inputs = {name_of(m): _described(program, m) for m in chosen}
    return Exported(inputs, tried.told, difference)


def samples_of_files(program: Program, files: Mapping[str, Sequence[str | Path]]) -> Samples:
    """Return files of each modality, as a program and as the model take them.

    Pixels of 16 bit are 8 bit to both, as the program takes no others.

    Raises
    ------
    DataError
        One cannot be read.
    """
    heard = {m: [*paths] for m, paths in files.items() if isinstance(program.front(m), LogMel)}
    count = len(next(iter(files.values())))
    read = program.model.read(heard) if heard else {}
    return Samples(program.read(files), f"{count} samples given", read)


def random_samples(program: Program, seed: int = 0) -> Samples:
    """Return noise as a program takes it: in sound, pixels or inputs.

    Every other sound is shorter, with zeros at its end.
    """
    draw = torch.Generator().manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    for m in program.modalities:
        shape = CHECKED, *program.shape(m)
        if program.kind(m) is torch.uint8:
            inputs[m] = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
        else:
            inputs[m] = torch.randn(shape, generator=draw)
            if isinstance(program.front(m), LogMel):
                inputs[m][::2, shape[1] // 2 :] = 0
    return Samples(inputs, f"{CHECKED} random inputs")


def name_of(modality: str) -> str:
    """Return the name of a program's input: a modality's, with ``_`` for what is no letter."""
    return re.sub(r"\W", "_", modality)


@torch.no_grad()
def _by_the_model(program: Program, samples: Samples) -> Tensor:
    """Return what the model makes of the samples, read as they were in training."""
    model, tensors = program.model, dict[str, Tensor]()
    for m, x in samples.inputs.items():
        if m in samples.read:
            tensors[m] = samples.read[m]
        elif m not in program.fronts:
            tensors[m] = x
        elif isinstance(program.front(m), Pixels):
            pictures = [one.squeeze(-1).numpy() for one in x]
            tensors[m] = torch.stack([read_raw(one, model.modalities[m]) for one in pictures])
        else:
            tensors[m] = torch.stack([read_raw(one, model.modalities[m]) for one in x])
    probabilities: Tensor = model(tensors).softmax(dim=1)
    program(*_example(program))  # constants of layers are made here, not while it is traced
    return probabilities


def _in_batches(run: Run, program: Program, inputs: Mapping[str, Tensor], form: Format) -> Tensor:
    """Run a program on batches of several sizes, as many as there are samples."""
    count = len(next(iter(inputs.values())))
    most = EXECUTORCH_BATCH if form == "executorch" else count
    sizes, found, start = [1, 3, most], list[Tensor](), 0
    while start < count:
        size = sizes.pop(0) if len(sizes) > 1 else most
        batch = [inputs[m][start : start + size].contiguous() for m in program.modalities]
        found.append(run(batch))
        start += size
    return torch.cat(found)


def _example(program: Program) -> tuple[Tensor, ...]:
    return tuple(random_samples(program).inputs[m][:2] for m in program.modalities)


def _traced(program: Program, most: int | None = None) -> Any:
    batch = torch.export.Dim("batch", min=1, max=most)
    free = tuple({0: batch} for _ in program.modalities)
    return torch.export.export(program, _example(program), dynamic_shapes={"inputs": free})


def _described(program: Program, modality: str) -> str:
    shape = ", ".join(["batch", *map(str, program.shape(modality))])
    return f"{str(program.kind(modality)).removeprefix('torch.')} [{shape}]"


def about_program(program: Program) -> str:
    """Return what the classes and inputs of a program are, as JSON.

    Where an input has a ``scale``, its numbers are to be given standardised by it.
    """
    about, forms = program.model.about, program.model.modalities
    inputs = {
        name_of(m): {
            "modality": m,
            "given": _described(program, m),
            "raw": (raw := forms[m].raw) and raw.model_dump(mode="json", by_alias=True),
            "scale": (scale := about.scales.get(m)) and asdict(scale),
        }
        for m in program.modalities
    }
    told = {"method": about.method, "dataset": about.dataset, "digest": about.digest}
    return json.dumps({"classes": about.classes, "inputs": inputs, **told})


@contextmanager
def _quiet(form: Format) -> Iterator[None]:
    """Keep what libraries say of their own insides from the terminal, and their tracebacks.

    Raises
    ------
    ModelError
        Instead of whatever they raise.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()):
            yield
    except (UserError, OSError):
        raise
    except Exception as error:  # a compiler raises anything
        why = next(iter(str(error).strip().splitlines()), "")
        raise ModelError(
            f"the model cannot be exported to {form}: {type(error).__name__}: {why}"
        ) from error
    finally:
        logging.disable(before)


# ---- formats --------------------------------------------------------------------------------


def _write_torch(program: Program, file: Path) -> None:
    data = BytesIO()
    torch.export.save(_traced(program), data, extra_files={ABOUT: about_program(program)})
    file.write_bytes(data.getvalue())


def _load_torch(file: Path, program: Program) -> Run:
    run = torch.export.load(BytesIO(file.read_bytes())).module()
    return lambda batch: run(*batch)


def _write_onnx(program: Program, file: Path) -> None:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        with needed(library):
            __import__(library)
    exported = torch.onnx.export(
        program,
        _example(program),
        dynamo=True,
        dynamic_shapes={"inputs": tuple({0: "batch"} for _ in program.modalities)},
        input_names=[name_of(m) for m in program.modalities],
        output_names=[OUTPUT],
        verbose=False,
    )
    assert exported is not None
    exported.model.metadata_props[ABOUT] = about_program(program)
    exported.save(file)


def _load_onnx(file: Path, program: Program) -> Run:
    with needed("onnxruntime"):
        import onnxruntime
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [name_of(m) for m in program.modalities]

    def run(batch: Sequence[Tensor]) -> Tensor:
        given = {name: x.numpy() for name, x in zip(names, batch, strict=True)}
        return torch.from_numpy(session.run([OUTPUT], given)[0])

    return run


def _write_executorch(program: Program, file: Path) -> None:
    with needed("executorch"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    traced = _traced(program, EXECUTORCH_BATCH)
    lowered = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()])
    file.write_bytes(lowered.to_executorch().buffer)


def _load_executorch(file: Path, program: Program) -> Run:
    with needed("executorch"):
        from executorch.runtime import Runtime
    loaded = Runtime.get().load_program(file.read_bytes())
    method = loaded.load_method("forward")

    def run(batch: Sequence[Tensor]) -> Tensor:
        assert loaded is not None  # the method reads its memory
        found: Tensor = method.execute(list(batch))[0].clone()
        return found

    return run


_FORMATS: dict[Format, tuple[Callable[[Program, Path], None], Callable[[Path, Program], Run]]] = {
    "torch-export": (_write_torch, _load_torch),
    "onnx": (_write_onnx, _load_onnx),
    "executorch": (_write_executorch, _load_executorch),
}
