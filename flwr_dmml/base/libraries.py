"""Third-party libraries: the use of each, whether it loads, and the command that repairs it.

A library is imported where it is first needed, inside :func:`needed` (or by :func:`require`), so
that one that is missing or broken ends only what needs it.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement
from packaging.version import Version

from .errors import UserError
from .machine import provide_home

DISTRIBUTION = "flwr-dmml"


class LibraryError(UserError, RuntimeError):
    """A library is missing or does not load: names it, the versions, and what mends it."""


@dataclass(frozen=True)
class Library:
    """A library that this package uses.

    Attributes
    ----------
    name : str
        Name on PyPI.
    use : str
        What needs it.
    extra : str
        The extra of this package that installs it; empty if it is always installed.
    source : str
        The requirement of this package that brings it, where that has another name.
    beside : tuple of str
        Distributions whose versions matter when it does not load.
    """

    name: str
    use: str
    extra: str = ""
    source: str = ""
    beside: tuple[str, ...] = ("numpy",)


LIBRARIES: dict[str, Library] = {
    "torch": Library("torch", "all models and training"),
    "torchvision": Library(
        "torchvision",
        "MNIST files, the resnet18 encoder and resized public images",
        beside=("torch", "numpy"),
    ),
    "torchaudio": Library("torchaudio", "spectrograms of sound", beside=("torch", "numpy")),
    "numpy": Library("numpy", "all arrays", beside=()),
    "flwr": Library("flwr", "all messages between devices", beside=("protobuf", "grpcio")),
    "cvxpy": Library("cvxpy", "the solver of the shared radio band", beside=("numpy", "scipy")),
    "networkx": Library("networkx", "all topologies"),
    "sklearn": Library(
        "scikit-learn", "IDKD's detector, and the images of the data set digits",
        beside=("numpy", "scipy"),
    ),
    "scipy": Library(
        "scipy", "tests for chance in comparisons, large graphs", source="scikit-learn"
    ),
    "soundfile": Library("soundfile", "reading sound"),
    "PIL": Library("pillow", "reading images"),
    "safetensors": Library("safetensors", "checkpoints and cached data"),
    "pydantic": Library("pydantic", "all settings", beside=("pydantic-core",)),
    "rich": Library("rich", "tables on the terminal", beside=()),
    "typer": Library("typer", "the command line", beside=("click",)),
    "packaging": Library("packaging", "comparing versions", beside=()),
    "ray": Library("ray", "several processes, and flwr run", "simulation", "flwr", ("flwr",)),
    "flwr_datasets": Library(
        "flwr-datasets", "dividing a data set by natural ids", "simulation",
        beside=("datasets", "pyarrow", "numpy"),
    ),
    "pyarrow": Library("pyarrow", "Parquet and Arrow files", "simulation", "flwr-datasets"),
    "plotly": Library("plotly", "reports and comparisons", "report", beside=()),
    "pandas": Library("pandas", "the tables of a run in Python", "notebook", beside=("numpy",)),
    "kaleido": Library("kaleido", "figures as files", "report", beside=("plotly",)),
    "zenoh": Library("eclipse-zenoh", "letters from device to device", "direct", beside=()),
    "cryptography": Library("cryptography", "certificates, sealing, sums", "direct", beside=()),
    "dp_accounting": Library(
        "dp-accounting", "privacy.accountant = 'pld'", "privacy", beside=("numpy", "scipy")
    ),
    "tensorboard": Library("tensorboard", "track-with = 'tensorboard'", "tensorboard"),
    "mlflow": Library("mlflow-skinny", "track-with = 'mlflow'", "mlflow", beside=("protobuf",)),
    "prometheus_client": Library("prometheus-client", "metrics-port", "metrics", beside=()),
    "onnx": Library("onnx", "export to ONNX", "onnx", beside=("torch", "protobuf")),
    "onnxscript": Library("onnxscript", "export to ONNX", "onnx", beside=("torch", "onnx")),
    "onnxruntime": Library(
        "onnxruntime", "checking what was exported to ONNX", "onnx", beside=("numpy",)
    ),
    "executorch": Library("executorch", "export to ExecuTorch", "executorch", beside=("torch",)),
    "wandb": Library("wandb", "track-with = 'wandb'", "wandb", beside=("protobuf",)),
}  # fmt: skip
"""By the name that is imported."""

CHROME = "apt install chromium, or plotly_get_chrome; BROWSER_PATH names one in an unusual place"
"""Remedy where kaleido finds no browser to draw with."""

TORCH_SET = ("torch", "torchvision", "torchaudio")
"""Distributions whose binaries must fit together."""


@contextmanager
def needed(module: str) -> Iterator[None]:
    """Turn whatever goes wrong while a library is imported in this block into one clear error.

    Parameters
    ----------
    module : str
        A key of :data:`LIBRARIES`. Nothing but import statements belongs in the block.

    Raises
    ------
    LibraryError
        The library is missing or does not load.
    """
    provide_home()  # some look for it while they are imported
    try:
        yield
    except Exception as error:  # a broken library raises ImportError, OSError, RuntimeError, ...
        raise LibraryError(f"{fault(module, error)}. To fix it: {mend(module)}") from error


def require(*modules: str) -> None:
    """Import libraries, so that work which needs them does not begin without.

    Raises
    ------
    LibraryError
        One is missing or does not load.
    """
    for module in modules:
        with needed(module):
            spec = import_module(module).__spec__
            if spec is None or spec.origin is None:  # a folder of that name, such as wandb/
                raise ModuleNotFoundError(f"No module named {module!r}")


def fault(module: str, error: BaseException) -> str:
    """Return what is wrong with a library, beside which versions, and what needs it."""
    library = LIBRARIES[module]
    found = installed(library.name)
    around = [f"{name} {installed(name) or '(missing)'}" for name in library.beside]
    versions = ", ".join([*around, f"Python {platform.python_version()}"])
    if found:
        causes = [error, *([error.__cause__] if error.__cause__ else [])]
        why = ", because of ".join(
            f"{type(e).__name__}: {' '.join(str(e).split())}" for e in causes
        )
        state = f"{library.name} {found} does not work beside {versions}: {why}"
    else:
        state = f"{library.name} is not installed ({versions})"
    return f"{state}. It is needed for {library.use}"


def installed(distribution: str) -> str:
    """Return the version of an installed distribution, or an empty string."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def requirement(distribution: str, extra: str = "") -> Requirement:
    """Return what this package, or an extra of it, asks of a distribution on this machine.

    Raises
    ------
    LookupError
        It asks nothing of it.
    """
    for text in requires(DISTRIBUTION) or []:
        found = Requirement(text)
        always = found.marker is None or found.marker.evaluate({"extra": ""})
        here = found.marker is None or found.marker.evaluate({"extra": extra})
        if found.name == distribution and here and not (extra and always):
            return found
    raise LookupError(f"{DISTRIBUTION} does not require {distribution}")


def mend(module: str) -> str:
    """Return the command that installs a library, or replaces one that does not load."""
    library = LIBRARIES[module]
    if library.name in TORCH_SET:
        return _mend_torch(library.name)
    if not installed(library.name) and library.extra:
        return f'pip install "{DISTRIBUTION}[{library.extra}]"'
    again = "--force-reinstall " if installed(library.name) else ""
    if library.source:  # what brings it has a say in its version
        bringer = f"{DISTRIBUTION}[{library.extra}]" if library.extra else asked(library.source)
        return f'pip install {again}{library.name} "{bringer}"'
    return f'pip install {again}"{asked(library.name, library.extra)}"'


def partners(torch: str) -> dict[str, str]:
    """Return which versions of torchvision and torchaudio load beside a version of torch.

    Up to torch 2.13 each release has a torchvision of its own, and up to 2.11 a torchaudio. What
    came after them is built against torch's stable interface and goes with later releases, too.
    There is no torchaudio for torch 2.12.

    Source: the requirements of the wheels, and trying them (this project).

    Parameters
    ----------
    torch : str
        A version from 2.5 on.

    Returns
    -------
    dict of str to str
        Version specifiers, such as ``{"torchvision": "==0.24.*", "torchaudio": "==2.9.*"}``.
    """
    major, minor = (*Version(torch).release, 0)[:2]
    newer = major > 2 or minor >= 14
    found = {"torchvision": ">=0.29" if newer else f"==0.{minor + 15}.*"}
    if newer or minor != 12:
        own = f"==2.{minor}.*" if minor < 11 else "==2.11.0"
        found["torchaudio"] = ">=2.11.1" if newer or minor > 12 else own
    return found


def on_vendor_board() -> bool:
    """Whether this is a Jetson: its torch is NVIDIA's build, which pip must not replace."""
    return "tegra" in platform.release()


def _mend_torch(name: str) -> str:
    own = installed("torch")
    if (
        not own
        or name == "torch"
        or not (on_vendor_board() or requirement("torch").specifier.contains(own))
    ):
        return "pip install --upgrade " + " ".join(f'"{asked(one)}"' for one in TORCH_SET)
    fitting = partners(own).get(name)
    if fitting is None:
        return f"install another torch: no {name} goes with torch {own}"
    command = f'pip install --force-reinstall --no-deps "{name}{fitting}"'
    if on_vendor_board() or "+cpu" in own:  # PyPI's are built for CUDA
        return f"{command} --index-url INDEX, where INDEX is the one that torch {own} came from"
    return command


def asked(distribution: str, extra: str = "") -> str:
    """Return a requirement of this package as pip takes it on this machine."""
    wanted = requirement(distribution, extra)
    return wanted.name + ",".join(sorted(map(str, wanted.specifier), reverse=True))


def python_problem() -> str:
    """Return why the package does not run on this Python, or an empty string."""
    wanted = Requirement(f"python{metadata(DISTRIBUTION)['Requires-Python']}").specifier
    now = platform.python_version()
    return "" if wanted.contains(now, prereleases=True) else f"Python {wanted} is needed, not {now}"
