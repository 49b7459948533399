"""The metrics of a run in TensorBoard, MLflow or Weights & Biases, if that is installed.

All three are trackers: one with the same two methods is a sink of your own.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from logging import WARNING
from pathlib import Path
from typing import Any, Protocol

from flwr.common.logger import log

from ..base.errors import SettingsError
from ..base.libraries import LibraryError, require
from .records import RoundRecord


def scalars(record: RoundRecord) -> dict[str, float]:
    """Return the numbers of a round over all devices, by name: ``accuracy_by_set/audio``.

    What is not known in a round (accuracies of one that is not evaluated, say) is left out.
    """
    found: dict[str, float] = {"failed": float(len(record.failed)), "seconds": record.seconds}
    for name, value in record.to_json().items():
        if name in ("round", "nodes", "failed", "noted", "battery_j", "carried"):
            continue
        if name == "battery_quantiles_j" and value is not None:
            value = dict(zip(("min", "lower", "median", "upper", "max"), value, strict=True))
        if isinstance(value, dict):
            numbers = {key: v for key, v in value.items() if isinstance(v, int | float)}
            found |= {f"{name}/{key}": float(v) for key, v in numbers.items()}
        elif value is not None:
            found[name] = float(value)
    return found


class _Writer(Protocol):
    """Writer of one method's numbers to a sink."""

    def write(self, numbers: Mapping[str, float], server_round: int) -> None: ...

    def close(self, complete: bool) -> None: ...


class Sink:
    """Writes every round's :func:`scalars`, each method apart.

    A run whose first method cannot be written does not begin. Later on training matters more: there
    is a warning, and the other rounds of that method are not written.

    Parameters
    ----------
    name : str
        What messages call it.
    open_writer : callable
        Given a method's name, returns what its numbers are written with.
    """

    def __init__(self, name: str, open_writer: Callable[[str], _Writer]) -> None:
        self._name, self._open = name, open_writer
        self._writer: _Writer | None = None
        self._worked = False
        self._last = 0

    def run_started(self, method: str, num_rounds: int, node_modalities: Sequence[str]) -> None:
        """Begin a method.

        Raises
        ------
        SettingsError
            The first method of the run cannot be written.
        """
        try:
            self._writer = self._open(method)
        except Exception as error:  # each library has its own kinds
            if not self._worked:
                message = f"track-with: {self._name}: {_without_password(error)}"
                raise SettingsError(message) from None
            self._give_up(error)
        self._worked, self._last = True, num_rounds

    def run_shortened(self, num_rounds: int) -> None:
        """Take note that the method ends early: it is complete then."""
        self._last = num_rounds

    def round_ended(self, record: RoundRecord) -> None:
        """Write a round; after the last one the method is closed."""
        if self._writer is None:
            return
        try:
            self._writer.write(scalars(record), record.round)
        except Exception as error:
            self._give_up(error)
        if record.round == self._last:
            self.close(complete=True)

    def close(self, *, complete: bool = False) -> None:
        """Close the method that is being written, if there is one."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close(complete)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._writer = None
        text = "track-with: %s failed and gets no more of this method: %s"
        log(WARNING, text, self._name, _without_password(error))


def _without_password(error: Exception) -> str:
    """Return what an error says, without the user and password of addresses in it."""
    return re.sub(r"(?<=://)\S*@", "", f"{type(error).__name__}: {error}")


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open = partial(SummaryWriter, str(folder))
        self._events: SummaryWriter | None = None

    def write(self, numbers: Mapping[str, float], server_round: int) -> None:
        if self._events is None:  # of a resumed run, rounds that are run again are there already
            self._events = self._open(purge_step=server_round)
        for name, value in numbers.items():
            self._events.add_scalar(name, value, server_round)
        self._events.flush()

    def close(self, complete: bool) -> None:
        if self._events is not None:
            self._events.close()


_MLFLOW_PARAMS = 100
"""Most settings that MLflow takes at once."""


class _MLflow:
    def __init__(self, run: Path, config: Mapping[str, Any], method: str) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or self._experiment()
        made = self._client.create_run(experiment, run_name=f"{run.name}/{method}")
        self._run_id = made.info.run_id
        params = [Param(key, str(value)) for key, value in config.items()]
        for begin in range(0, len(params), _MLFLOW_PARAMS):
            self._client.log_batch(self._run_id, params=params[begin : begin + _MLFLOW_PARAMS])

    def _experiment(self) -> str:
        """Return the id of the experiment that the environment names, made if it is new."""
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        known = self._client.get_experiment_by_name(name)
        if known is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:  # unless another run has made it meanwhile
                known = self._client.get_experiment_by_name(name)
                if known is None:
                    raise
        return str(known.experiment_id)

    def write(self, numbers: Mapping[str, float], server_round: int) -> None:
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        names = {name: re.sub(r"[^\w./ -]", "-", name) for name in numbers}  # not all are allowed
        metrics = [Metric(names[k], value, now, server_round) for k, value in numbers.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, complete: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if complete else "KILLED")


class _Wandb:
    def __init__(self, run: Path, config: Mapping[str, Any], method: str) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=f"{run.name}/{method}",
            dir=os.environ.get("WANDB_DIR") or str(run),
            config=dict(config),
            reinit="create_new",
        )

    def write(self, numbers: Mapping[str, float], server_round: int) -> None:
        self._run.log(dict(numbers), step=server_round)

    def close(self, complete: bool) -> None:
        self._run.finish(exit_code=0 if complete else 1)


PROJECT = "flwr-dmml"
"""MLflow's experiment and the project at Weights & Biases, unless the environment names another."""

SINKS: dict[str, tuple[str, Callable[[Path, Mapping[str, Any], str], _Writer]]] = {
    "tensorboard": ("tensorboard", lambda run, _, method: _TensorBoard(run / method)),
    "mlflow": ("mlflow", _MLflow),
    "wandb": ("wandb", _Wandb),
}
"""Sinks by their name in ``track-with``: the package each needs, and how it opens a writer."""


def make_sinks(names: str, run: Path, config: Mapping[str, Any]) -> list[Sink]:
    """Return the sinks that ``track-with`` names, ``"tensorboard,mlflow"``.

    TensorBoard's files go into the methods' folders; MLflow and Weights & Biases are set up as
    always, by their own environment variables (``MLFLOW_TRACKING_URI``, ``WANDB_MODE``).

    Raises
    ------
    SettingsError
        One is unknown, missing, or does not load.
    """
    found: list[Sink] = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in SINKS:
            raise SettingsError(f"track-with = {names!r}: allowed are {', '.join(SINKS)}")
        package, writer = SINKS[name]
        try:
            require(package)
        except LibraryError as error:
            raise SettingsError(f"track-with = {names!r}: {error}") from error
        found.append(Sink(name, partial(writer, run, config)))
    return found


@contextmanager
def closing_all(sinks: Iterable[Sink]) -> Iterator[None]:
    """Close what is still being written at the end: a run may fail, or be stopped."""
    try:
        yield
    finally:
        for sink in sinks:
            sink.close()
