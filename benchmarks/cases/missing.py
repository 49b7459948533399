"""Modalities that are missing at test time, and devices that have lost one for good.

Each modality of a test sample is dropped at a rate, by the same masks for every arm; the area is
that under the accuracies. ``without audio`` leaves it out of all samples.
"""

from typing import Any

from harness import OF_MODELS, Case

SETTING: dict[str, Any] = {
    "modality-pattern": "audio+image",
    "num-server-rounds": 30,
    "local-iterations": 10,
    "evaluate-every": 30,
    "learning-rate": 0.1,
    "keep-models": True,
}
METHODS: dict[str, dict[str, Any]] = {
    "local": {"method": "local"},
    "dpsgd": {"method": "dpsgd"},
    "dpsgd, modality losses": {"method": "dpsgd", "modality-loss": 1.0},
    "modality-dropout": {"method": "modality-dropout"},
    "dmml-kd": {"method": "dmml-kd"},
}
LATE: dict[str, dict[str, Any]] = {
    f"dpsgd, {rule}": METHODS["dpsgd, modality losses"] | {"test-fusion": rule}
    for rule in ("uniform", "entropy", "certainty", "energy", "static")
}

MISSING = Case(
    scenarios={"ring": SETTING, "ring, lost by half": SETTING | {"missing.device-rate": 0.5}},
    arms=METHODS | LATE,
    bars=[],
    measures=[*OF_MODELS, "without audio", "without image", "ECE uncalibrated", "ECE"],
)
