"""Break each library in turn; run what does not need it, then what does.

``python broken_libraries.py PARTS RUN WORK``: two parts of a data set, a run, an empty folder.
Each library gets a process of its own, forked before this package is imported. Prints JSON:
library -> {"run": [exit status, output], "rounds": that it wrote, "needed": [error, message]}.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

# What may be imported before: libraries that nothing works without.
import flwr.clientapp
import flwr.serverapp
import networkx
import numpy as np
import pydantic
import rich.live
import torch
import torch._dynamo  # the first step of an optimiser imports it, and that takes a second
import torch.utils.flop_counter
from typer.testing import CliRunner

CORE = (flwr, networkx, pydantic, rich)
EXAMPLES = Path(__file__).parents[1] / "examples"
PARTS, RUN, WORK = (Path(argument) for argument in sys.argv[1:])


class Broken(MetaPathFinder, Loader):
    """Let a library be found, and raise an error while it loads, as for a missing symbol."""

    def __init__(self, library: str, error: type[Exception]) -> None:
        self.library, self.error = library, error

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        broken = name.partition(".")[0] == self.library
        return ModuleSpec(name, self, origin="broken", is_package=True) if broken else None

    def exec_module(self, module: ModuleType) -> None:
        raise self.error("undefined symbol: broken")


def command(*arguments: str) -> tuple[int, str]:
    from flwr_dmml.cli import app

    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        return 99, "".join(traceback.format_exception(error))
    return result.exit_code, result.output


def simulate(example: str, *settings: str, workers: int = 0) -> tuple[int, str]:
    tiny = ("num-server-rounds=1", "local-iterations=1", "compare-with=", f"run-dir={WORK}")
    changed = [part for setting in (*tiny, *settings) for part in ("--set", setting)]
    path = str(EXAMPLES / example)
    return command("simulate", path, "-n", "2", "--workers", str(workers), *changed)


def parts(*settings: str) -> tuple[int, str]:
    return simulate("fleet", "dataset=parts", f"data-path={PARTS}", *settings)


def calls(use: Callable[[], object]) -> tuple[str, str]:
    try:
        use()
    except Exception as error:
        return type(error).__name__, str(error)
    return "no error", ""


def shown(run: Callable[[], tuple[int, str]]) -> tuple[str, str]:
    status, output = run()
    return ("LibraryError" if status == 1 and "Error: " in output else f"status {status}"), output


def read_sound() -> None:
    from flwr_dmml.data.options import AudioOptions
    from flwr_dmml.data.reading.media import read_wave

    read_wave(WORK / "sound.wav", AudioOptions())


def read_picture() -> None:
    from flwr_dmml.data.options import ImageOptions
    from flwr_dmml.data.reading.media import read_image

    read_image(WORK / "picture.png", ImageOptions())


def open_link() -> None:
    from flwr_dmml.transport.direct.link import DirectLink

    DirectLink("run", 0)


def read_parquet() -> None:
    from flwr_dmml.data.reading.arrow_files import arrow

    arrow()


def interval() -> None:
    from flwr_dmml.report.paired import t_interval

    t_interval([0.1, 0.2])


def share_a_band() -> None:
    from flwr_dmml.energy.allocation import FleetAllocator

    FleetAllocator(2, 2)


def resnet() -> None:
    from flwr_dmml.models.resnet18 import resnet18

    resnet18((3, 32, 32), 4)


def calibrate_a_detector() -> None:
    from flwr_dmml.methods.detector import calibrate

    calibrate(torch.ones(2), torch.zeros(2))


def divide_by_natural_ids() -> None:
    from flwr_dmml.data.partitioners import natural

    natural(np.array([0, 1, 0]))


NEEDED: dict[str, tuple[type[Exception], Callable[[], tuple[str, str]]]] = {
    "torchaudio": (OSError, lambda: shown(lambda: simulate("quickstart"))),
    "torchvision": (RuntimeError, lambda: calls(resnet)),
    "cvxpy": (ImportError, lambda: calls(share_a_band)),
    "sklearn": (ImportError, lambda: calls(calibrate_a_detector)),
    "soundfile": (OSError, lambda: calls(read_sound)),
    "PIL": (ImportError, lambda: calls(read_picture)),
    "flwr_datasets": (ImportError, lambda: calls(divide_by_natural_ids)),
    "ray": (OSError, lambda: shown(lambda: simulate("quickstart", workers=2))),
    "zenoh": (ImportError, lambda: calls(open_link)),
    "plotly": (ImportError, lambda: shown(lambda: command("report", str(RUN)))),
    "kaleido": (
        ImportError,
        lambda: shown(lambda: command("report", str(RUN), "--figures", str(WORK / "figures"))),
    ),
    "pyarrow": (OSError, lambda: calls(read_parquet)),
    "scipy": (ValueError, lambda: calls(interval)),
}


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for library, (error, use) in NEEDED.items():
        file = WORK / f"{library}.json"
        child = os.fork()
        if not child:
            sys.meta_path.insert(0, Broken(library, error))
            run = parts(f"run-name={library}")
            lines = WORK / library / "dmml-kd" / "metrics.jsonl"
            rounds = len(lines.read_text().splitlines()) if lines.exists() else 0
            told = {"run": run, "rounds": rounds, "needed": use()}
            file.write_text(json.dumps(told), encoding="utf-8")
            os._exit(0)
        os.waitpid(child, 0)
        found[library] = json.loads(file.read_text(encoding="utf-8"))
    print(json.dumps(found))


if __name__ == "__main__":
    (WORK / "sound.wav").write_bytes(np.zeros(8, dtype=np.uint8).tobytes())
    (WORK / "picture.png").write_bytes(b"no picture")
    main()
