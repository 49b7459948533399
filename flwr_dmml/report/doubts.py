"""What may make runs differ besides their settings: other versions, other data."""

import json
from collections.abc import Sequence

from ..learning.settings import divides
from .grouping import Group
from .lines import REVISION, Devices
from .reading import Run

DECISIVE = {
    "flwr-dmml": "versions of flwr-dmml",
    "torch": "versions of torch",
    REVISION: "git revisions",
}
"""What numbers depend on of what runs were made with, and what a warning calls it."""


def doubts(groups: Sequence[Group]) -> list[str]:
    """Return warnings of what tells the runs of groups apart besides settings and seeds."""
    return _other_versions(groups) + _other_data(groups)


def _other_versions(groups: Sequence[Group]) -> list[str]:
    found: dict[str, dict[str, None]] = {}
    for group in groups:
        for run, _ in group.runs.values():
            for name, text in (run.info.made_with if run.info else {}).items():
                found.setdefault(name, {})[text] = None
    return [
        f"different {words}: {'; '.join(found[name])}"
        for name, words in DECISIVE.items()
        if len(found.get(name, ())) > 1
    ]


def _other_data(groups: Sequence[Group]) -> list[str]:
    """Name runs of a seed whose devices have other samples, though their data are set alike."""
    first: dict[str, tuple[Run, Devices]] = {}
    warnings: list[str] = []
    for group in groups:
        dataset = str(group.settings.get("dataset"))
        divided = {
            key: value
            for key, value in group.settings.items()
            if key in ("num-nodes", "data-path") or divides(key, dataset)
        }
        for seed, (run, method) in group.runs.items():
            if method.devices is None:
                continue
            key = json.dumps([seed, divided], sort_keys=True, default=str)
            other, devices = first.setdefault(key, (run, method.devices))
            if _differ(devices, method.devices):
                warnings.append(
                    f"{other.name} and {run.name}: their devices have different training samples, "
                    "though their seed and settings of the data are the same"
                )
    return list(dict.fromkeys(warnings))


def _differ(a: Devices, b: Devices) -> bool:
    """Return whether a device has other numbers of samples or classes, as far as they are known."""
    before = {node.partition: node for node in a.nodes}
    pairs = [(before[node.partition], node) for node in b.nodes if node.partition in before]
    return any(
        old.num_train != new.num_train
        or (old.class_counts != new.class_counts and old.class_counts and new.class_counts)
        for old, new in pairs
    )
