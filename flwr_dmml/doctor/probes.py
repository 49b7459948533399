"""Using each library for what it is needed for: ``python -m flwr_dmml.doctor NAME``.

A probe returns what it has seen, in a few words, and raises an error if a result is wrong. It
imports nothing of this package that would import another library.
"""

import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from ..base.libraries import CHROME, fault


class DoubtError(Exception):
    """Something works in part; the arguments are what was seen, and what mends it."""


def use_torch() -> str:
    """Multiply two matrices, and compare with NumPy."""
    import numpy as np
    import torch

    values = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    expected = values.numpy() @ values.numpy()
    _check(np.allclose((values @ values).numpy(), expected, rtol=1e-4), "a wrong matrix product")
    return f"a matrix product; {torch.get_num_threads()} threads; {_gpu()}"


def _gpu() -> str:
    """Multiply two matrices on the GPU if there is one."""
    import torch

    if torch.cuda.is_available():
        device, name = "cuda", torch.cuda.get_device_name(0)
    elif torch.backends.mps.is_available():
        device, name = "mps", "Apple's GPU"
    else:
        if Path("/dev/nvidia0").exists():
            build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
            raise DoubtError(
                f"there is an NVIDIA GPU, but torch, built for {build}, does not use it",
                "install a driver for that CUDA version, or a torch built for CUDA (pytorch.org)",
            )
        return "no GPU, so everything runs on the CPU"
    values = torch.eye(64, device=device)
    _check(bool((values @ values == values).all()), f"a wrong matrix product on {name}")
    return f"a matrix product on {name}"


def use_torchvision() -> str:
    """Suppress the lower-scored of two boxes that are the same."""
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    kept = torchvision.ops.nms(boxes, torch.tensor([0.4, 0.6]), 0.5)
    _check(kept.tolist() == [1], "a wrong non-maximum suppression")
    return "a non-maximum suppression"


def use_torchaudio() -> str:
    """Make a mel spectrogram of a tone, and resample it."""
    import torch
    import torchaudio

    tone = torch.sin(torch.arange(8000) * 0.5).unsqueeze(0)
    mel = torchaudio.transforms.MelSpectrogram(8000, n_fft=256, hop_length=128, n_mels=32)(tone)
    half = torchaudio.transforms.Resample(8000, 4000)(tone)
    _check(mel.shape == (1, 32, 63) and bool(mel.isfinite().all()), "a wrong mel spectrogram")
    _check(half.shape == (1, 4000), "a wrong resampling")
    return "a mel spectrogram, and resampling"


def use_numpy() -> str:
    """Solve a linear system."""
    import numpy as np

    found = np.linalg.solve(np.array([[2.0, 0.0], [0.0, 4.0]]), np.array([2.0, 2.0]))
    _check(found.tolist() == [1.0, 0.5], "a wrong solution of a linear system")
    return "a linear system"


def use_flwr() -> str:
    """Put an array into a record and take it out again."""
    import numpy as np
    from flwr.app import ArrayRecord, RecordDict

    content = RecordDict({"arrays": ArrayRecord([np.arange(3.0)])})
    (back,) = content.array_records["arrays"].to_numpy_ndarrays()
    _check(back.tolist() == [0.0, 1.0, 2.0], "a wrong array in a record")
    return "a record with an array"


def use_cvxpy() -> str:
    """Solve a linear program with each of the two solvers that the allocation uses."""
    import cvxpy as cp

    for solver in ("CLARABEL", "HIGHS"):
        x = cp.Variable(2, nonneg=True)
        cp.Problem(cp.Maximize(x[0] + 2 * x[1]), [cp.sum(x) <= 1]).solve(solver=solver)
        _check(abs(float(x.value[1]) - 1) < 1e-4, f"{solver} solves a linear program wrongly")
    return "a linear program, by Clarabel and HiGHS"


def use_networkx() -> str:
    """Measure a ring."""
    import networkx as nx

    _check(nx.diameter(nx.cycle_graph(6)) == 3, "a wrong diameter")
    return "a ring"


def use_sklearn() -> str:
    """Load the digits, and divide them by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train, _ = train_test_split(images, test_size=0.2, stratify=labels, random_state=0)
    _check(train.shape == (1437, 64), "a wrong division of the digits")
    return "the digits, divided by class"


def use_scipy() -> str:
    """Look up a quantile."""
    from scipy.stats import t

    _check(abs(t.ppf(0.975, 2) - 4.3027) < 1e-3, "a wrong quantile")
    return "a quantile"


def use_soundfile() -> str:
    """Write a WAV and a FLAC file in memory and read them again."""
    import numpy as np
    import soundfile

    for form in ("WAV", "FLAC"):
        file = BytesIO()
        soundfile.write(file, np.array([0.0, 0.5, -0.5]), 8000, format=form)
        file.seek(0)
        wave, rate = soundfile.read(file)
        _check(rate == 8000 and np.allclose(wave, [0, 0.5, -0.5], atol=1e-4), f"a wrong {form}")
    return "a WAV and a FLAC file"


def use_pillow() -> str:
    """Write pictures in memory and read them again."""
    from PIL import Image

    for form in ("PNG", "JPEG", "WEBP"):
        file = BytesIO()
        Image.new("L", (8, 8), 128).save(file, form)
        with Image.open(file) as picture:
            pixel = picture.convert("L").getpixel((3, 3))
        _check(isinstance(pixel, int | float) and abs(pixel - 128) < 3, f"a wrong {form}")
    return "a PNG, a JPEG and a WebP picture"


def use_safetensors() -> str:
    """Write an array and read it again."""
    import numpy as np
    from safetensors.numpy import load, save

    _check(load(save({"a": np.arange(3)}))["a"].tolist() == [0, 1, 2], "a wrong array")
    return "an array"


def use_pydantic() -> str:
    """Validate a model."""
    from pydantic import BaseModel

    class Point(BaseModel):
        x: int

    _check(Point.model_validate({"x": 3}).x == 3, "a wrong model")
    return "a model"


def use_ray() -> str:
    """Start Ray on this machine, and run a task in a worker."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level=logging.ERROR)
    try:
        answer = ray.get(ray.remote(_in_a_worker).remote(6), timeout=120)
    finally:
        ray.shutdown()
    _check(answer == 42, "a wrong answer of a worker")
    return "a task in a worker"


def _in_a_worker(number: int) -> int:
    return 7 * number


def use_flwr_datasets() -> str:
    """Divide four samples between two nodes."""
    from datasets import Dataset
    from flwr_datasets.partitioner import IidPartitioner

    partitioner = IidPartitioner(num_partitions=2)
    partitioner.dataset = Dataset.from_dict({"x": [1, 2, 3, 4]})
    parts = [partitioner.load_partition(k)["x"][:] for k in range(2)]
    _check(sorted(x for part in parts for x in part) == [1, 2, 3, 4], "a wrong division")
    return "a division of four samples"


def use_pyarrow() -> str:
    """Write a Parquet file in memory and read it again."""
    import pyarrow
    import pyarrow.parquet

    file = BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"x": [1, 2]}), file)
    _check(pyarrow.parquet.read_table(file).to_pydict() == {"x": [1, 2]}, "a wrong Parquet file")
    return "a Parquet file"


def use_plotly() -> str:
    """Fetch the script of the pages."""
    from plotly.offline import get_plotlyjs

    _check(len(get_plotlyjs()) > 100_000, "no script")
    return "the script of the pages"


def use_kaleido() -> str:
    """Draw a figure into a file."""
    import kaleido
    from choreographer.errors import ChromeNotFoundError

    figure = {"data": [{"type": "scatter", "y": [1, 2]}]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.svg"
        job = {"fig": figure, "path": str(path), "opts": {"format": "svg"}}
        try:
            kaleido.write_fig_from_object_sync([job], cancel_on_error=True)
        except ChromeNotFoundError as error:
            raise DoubtError(
                "there is no Chrome or Chromium, so figures cannot be written as files",
                CHROME,
            ) from error
        _check("<svg" in path.read_text(encoding="utf-8")[:500], "no figure")
    return "a figure as a file"


def use_zenoh() -> str:
    """Open two sessions on loopback, and send a letter from one to the other."""
    import zenoh

    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"tcp/127.0.0.1:{server.getsockname()[1]}"
    sessions = []
    for what in ("listen", "connect"):
        config = zenoh.Config()
        config.insert_json5("mode", '"peer"')
        config.insert_json5("scouting/multicast/enabled", "false")
        config.insert_json5(f"{what}/endpoints", json.dumps([place]))
        sessions.append(zenoh.open(config))
    here, there = sessions
    answers = here.declare_queryable("doctor", lambda query: query.reply("doctor", b"letter"))
    found: list[bytes] = []
    until = time.monotonic() + 10
    while not found and time.monotonic() < until:  # the sessions take a moment to know each other
        replies = [reply.ok for reply in there.get("doctor", timeout=2)]
        found = [sample.payload.to_bytes() for sample in replies if sample]
    answers.undeclare()
    _check(found == [b"letter"], "no letter came")
    return "a letter on loopback"


def use_cryptography() -> str:
    """Sign a letter and verify it."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    key.public_key().verify(key.sign(b"letter"), b"letter")
    return "a signature"


def use_dp_accounting() -> str:
    """Account for one step with noise, whose epsilon at delta 0.1268 is 1."""
    from dp_accounting.dp_event import GaussianDpEvent
    from dp_accounting.pld import PLDAccountant

    found = PLDAccountant().compose(GaussianDpEvent(1.0)).get_epsilon(0.12693674)
    _check(abs(found - 1) < 0.01, f"an epsilon of 1 is taken for {found:g}")
    return "an epsilon"


def use_onnx() -> str:
    """Make a model that adds 1, and check it."""
    import onnx

    number = onnx.helper.make_tensor("one", onnx.TensorProto.FLOAT, [1], [1.0])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    node = onnx.helper.make_node("Add", ["x", "one"], ["y"])
    graph = onnx.helper.make_graph([node], "doctor", ends[:1], ends[1:], [number])
    onnx.checker.check_model(onnx.helper.make_model(graph))
    return "a model"


def use_onnxscript() -> str:
    """Import it."""
    import onnxscript

    _check(hasattr(onnxscript, "script"), "it is not ONNX Script")
    return "it loads"


def use_onnxruntime() -> str:
    """Import it, and ask what it runs on."""
    import onnxruntime

    found = onnxruntime.get_available_providers()
    _check("CPUExecutionProvider" in found, f"it runs on {', '.join(found)} only")
    return "it runs on the CPU"


def use_executorch() -> str:
    """Import its runtime."""
    from executorch.runtime import Runtime

    _check(Runtime.get() is not None, "it has no runtime")
    return "its runtime loads"


def use_tensorboard() -> str:
    """Import its writer."""
    from torch.utils.tensorboard import SummaryWriter

    return f"{SummaryWriter.__name__} loads"


def use_mlflow() -> str:
    """Import it."""
    import mlflow

    _check(hasattr(mlflow, "start_run"), "it is not MLflow")
    return "it loads"


def use_wandb() -> str:
    """Import it."""
    import wandb

    _check(hasattr(wandb, "init"), "it is not Weights & Biases")
    return "it loads"


def use_prometheus_client() -> str:
    """Write a metric."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    Gauge("probe", "Of doctor", registry=registry).set(1)
    _check(b"probe 1.0" in generate_latest(registry), "it writes something else")
    return "a metric is written"


PROBES: dict[str, Callable[[], str]] = {
    "torch": use_torch,
    "torchvision": use_torchvision,
    "torchaudio": use_torchaudio,
    "numpy": use_numpy,
    "flwr": use_flwr,
    "cvxpy": use_cvxpy,
    "networkx": use_networkx,
    "sklearn": use_sklearn,
    "scipy": use_scipy,
    "soundfile": use_soundfile,
    "PIL": use_pillow,
    "safetensors": use_safetensors,
    "pydantic": use_pydantic,
    "ray": use_ray,
    "flwr_datasets": use_flwr_datasets,
    "pyarrow": use_pyarrow,
    "plotly": use_plotly,
    "kaleido": use_kaleido,
    "zenoh": use_zenoh,
    "cryptography": use_cryptography,
    "dp_accounting": use_dp_accounting,
    "onnx": use_onnx,
    "onnxscript": use_onnxscript,
    "onnxruntime": use_onnxruntime,
    "executorch": use_executorch,
    "prometheus_client": use_prometheus_client,
    "tensorboard": use_tensorboard,
    "mlflow": use_mlflow,
    "wandb": use_wandb,
}
"""By the name that is imported."""


def run(module: str) -> None:
    """Run a probe; print how it went as JSON on the last line."""
    try:
        told = {"state": "ok", "seen": PROBES[module]()}
    except DoubtError as doubt:
        seen, mend = doubt.args
        told = {"state": "warning", "seen": seen, "mend": mend}
    except Exception as error:  # whatever a broken library raises
        told = {"state": "error", "seen": fault(module, error)}
    print("\n" + json.dumps(told), flush=True)


def _check(right: bool, wrong: str) -> None:
    if not right:
        raise RuntimeError(wrong)
