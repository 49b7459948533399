"""The metrics of a run in TensorBoard, MLflow or Weights & Biases, if that is installed.

All three are trackers: one with the same two methods is a sink of your own.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ..config import SettingsError
from .records import RoundRecord, Tracker


def scalars(record: RoundRecord) -> dict[str, float]:
    """Return the numbers of a round over all devices, by name: ``accuracy_by_set/audio``.

    What is not known in a round (accuracies of one that is not evaluated, say) is left out.
    """
    found: dict[str, float] = {"failed": float(len(record.failed)), "seconds": record.seconds}
    for name, value in record.to_json().items():
        if name in ("round", "nodes", "failed"):
            continue
        if isinstance(value, dict):
            found |= {f"{name}/{key}": float(v) for key, v in value.items()}
        elif isinstance(value, list):
            quantiles = ("min", "lower", "median", "upper", "max")
            pairs = zip(quantiles, value, strict=True)
            found |= {f"{name}/{key}": float(v) for key, v in pairs}
        elif value is not None:
            found[name] = float(value)
    return found


class _Writer(Protocol):
    """What a sink writes one method's numbers with."""

    def write(self, numbers: Mapping[str, float], server_round: int) -> None: ...

    def close(self) -> None: ...


class Sink:
    """Writes every round's :func:`scalars`, each method apart.

    Parameters
    ----------
    open_writer : callable
        Given a method's name, returns what its numbers are written with.
    """

    def __init__(self, open_writer: Callable[[str], _Writer]) -> None:
        self._open = open_writer
        self._writer: _Writer | None = None
        self._last = 0

    def run_started(self, method: str, num_rounds: int, node_modalities: Sequence[str]) -> None:
        """Begin a method."""
        self._writer, self._last = self._open(method), num_rounds

    def round_ended(self, record: RoundRecord) -> None:
        """Write a round; after the last one the method is closed."""
        if self._writer is None:
            return
        self._writer.write(scalars(record), record.round)
        if record.round == self._last:
            self._writer.close()
            self._writer = None


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(str(folder))

    def write(self, numbers: Mapping[str, float], server_round: int) -> None:
        for name, value in numbers.items():
            self._events.add_scalar(name, value, server_round)
        self._events.flush()

    def close(self) -> None:
        self._events.close()


class _MLflow:
    def __init__(self, run: Path, method: str, config: Mapping[str, Any]) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        known = self._client.get_experiment_by_name("flwr-dmml")
        experiment = known.experiment_id if known else self._client.create_experiment("flwr-dmml")
        made = self._client.create_run(experiment, run_name=f"{run.name}/{method}")
        self._run_id = made.info.run_id
        for key, value in config.items():
            self._client.log_param(self._run_id, key, value)

    def write(self, numbers: Mapping[str, float], server_round: int) -> None:
        for name, value in numbers.items():
            name = name.replace("+", "-")  # not allowed in MLflow's names
            self._client.log_metric(self._run_id, name, value, step=server_round)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


class _Wandb:
    def __init__(self, run: Path, method: str, config: Mapping[str, Any]) -> None:
        import wandb

        name = f"{run.name}/{method}"
        self._run = wandb.init(
            project="flwr-dmml", name=name, dir=str(run), config=dict(config), reinit="create_new"
        )

    def write(self, numbers: Mapping[str, float], server_round: int) -> None:
        self._run.log(dict(numbers), step=server_round)

    def close(self) -> None:
        self._run.finish()


SINKS: dict[str, tuple[str, Callable[[Path, str, Mapping[str, Any]], _Writer]]] = {
    "tensorboard": ("tensorboard", lambda run, method, _: _TensorBoard(run / method)),
    "mlflow": ("mlflow", _MLflow),
    "wandb": ("wandb", _Wandb),
}
"""What ``track-with`` may name: the package it needs, and how a method's writer is opened."""


def make_sinks(names: str, run: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Return the sinks that ``track-with`` names, ``"tensorboard,mlflow"``.

    TensorBoard's files go into the methods' folders; MLflow and Weights & Biases are set up as
    always, by their own environment variables (``MLFLOW_TRACKING_URI``, ``WANDB_MODE``).

    Raises
    ------
    SettingsError
        One is unknown or not installed.
    """
    found: list[Tracker] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in SINKS:
            raise SettingsError(f"track-with = {names!r}: allowed are {', '.join(SINKS)}")
        package, writer = SINKS[name]
        if find_spec(package) is None:
            raise SettingsError(f"track-with = {names!r}: pip install 'flwr-dmml[{name}]'")
        found.append(Sink(lambda method, writer=writer: writer(run, method, config)))  # type: ignore[misc]
    return found
