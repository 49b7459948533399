"""Models of a device as files: a simulation gets them, a real device keeps them."""

from collections.abc import Mapping

from flwr.app import ConfigRecord, Context, RecordDict

from ..base.files import WriteError, writing
from ..base.options import Group
from ..deploy.files import SCHEMA, About, Input, ModelFiles, file_stem, plain
from ..learning.evaluated import Evaluated
from ..learning.learner import Learner, overrides
from ..models import architecture_of
from ..payload.plan import Plan
from ..tracking.provenance import versions
from ..transport.messages import add_note
from .own_state import NODE_KEY, state_folder
from .sealing import seals

Models = dict[str, ModelFiles]
"""By what is kept: "last", "best"."""
HANDED_OVER = "models"
"""Name of the record with a device's models in its reply."""
FOLDER = "models"
"""Folder of models: of a method in a run folder, and beside the states of a real device."""
OF_THE_MACHINE = {
    "data-path", "data-cache", "encoder-weights", "topology-file", "run-dir", "run-name", "resume",
    "track-with", "ray-address", "device", "torch-threads", "workers", "engine", "exchange.router",
}  # fmt: skip
"""Settings that say nothing of a model."""


def models_of(learner: Learner, plan: Plan) -> Models:
    """Return the models that a device is to keep after a round with this plan."""
    found: dict[str, Evaluated | None] = {"best": learner.take_best()}
    if plan.evaluate and not plan.iterations and learner.settings.keep_models is not False:
        found["last"] = learner.evaluated(plan)
    return {kept: _files(learner, model, kept) for kept, model in found.items() if model}


def add_models(reply: RecordDict, learner: Learner, plan: Plan, context: Context) -> None:
    """Hand over a device's models with its reply, or write them beside its state.

    A simulation asks for them. A real device writes them, if ``state-dir`` is set: none of it
    passes the coordinator.
    """
    models = models_of(learner, plan)
    if not models:
        return
    if plan.hand_over and not seals(context):
        reply[HANDED_OVER] = written(models)
    elif folder := state_folder(context):
        place = folder / FOLDER / f"run-{context.run_id}" / learner.name
        try:
            with writing(place):
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
            for kept, files in models.items():
                files.write(place / file_stem(learner.partition.partition_id, kept), 0o600)
        except WriteError as error:
            add_note(reply, f"cannot keep its model: {error}")
    elif learner.settings.keep_models is True or learner.settings.keep_best:
        add_note(reply, f"keeps no model: there is no {NODE_KEY} in its node config")


def written(models: Mapping[str, ModelFiles]) -> ConfigRecord:
    """Write models as a record."""
    record = ConfigRecord()
    for kept, files in models.items():
        record[f"{kept}.weights"], record[f"{kept}.about"] = files.weights, files.about
    return record


def read_models(record: Mapping[str, object]) -> Models:
    """Read what :func:`written` gave."""
    names = {key.partition(".")[0] for key in record}
    found: Models = {}
    for kept in sorted(names):
        weights, about = record.get(f"{kept}.weights"), record.get(f"{kept}.about")
        if isinstance(weights, bytes) and isinstance(about, bytes):
            found[kept] = ModelFiles(weights, about)
    return found


def _files(learner: Learner, found: Evaluated, kept: str) -> ModelFiles:
    part, network = learner.partition, learner.predictor()
    forms = {m: part.source_modalities[m] for m in part.modalities}
    about = {
        "schema": SCHEMA,
        "method": learner.name,
        "dataset": learner.settings.dataset,
        "device": part.partition_id,
        "round": found.server_round,
        "kept": kept,
        "classes": part.class_names or [str(k) for k in range(part.num_classes)],
        "modalities": {
            m: Input(kind=f.kind, shape=f.shape, raw=f.raw, scale=part.scales.get(m))
            for m, f in forms.items()
        },
        "architecture": None if overrides(type(learner), ("scores",)) else architecture_of(network),
        "network": f"{type(network).__module__}.{type(network).__qualname__}",
        "fusion": found.fusion,
        "metrics": found.metrics,
        "settings": _settings(learner),
        "versions": versions(),
    }
    return ModelFiles.of(found.weights, About.model_validate(about))


def _settings(learner: Learner) -> dict[str, object]:
    """Return the settings that a device has learned by, by their keys."""
    groups: dict[str, Group] = {learner.rule.name: learner.rule.options}
    groups |= {learner.name: learner.options, "": learner.settings}
    flat: dict[str, object] = {}
    for prefix, group in groups.items():
        for key, value in group.model_dump(by_alias=True).items():
            name = f"{prefix}.{key}" if prefix else key
            parts = value if isinstance(value, dict) else None
            flat |= {name: value} if parts is None else {f"{name}.{k}": v for k, v in parts.items()}
    return {key: plain(value) for key, value in sorted(flat.items()) if key not in OF_THE_MACHINE}
