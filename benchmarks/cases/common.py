"""Settings that all cases share, and the data sets by name."""

from typing import Any

COMMON: dict[str, Any] = {
    "num-nodes": 12,
    "topology": "ring",
    "partition": "dirichlet",
    "alpha": 0.3,
    "snr-db": 0.0,
    "modality-pattern": "audio,image,audio+image",
    "num-server-rounds": 60,
    "local-iterations": 20,
    "batch-size": 32,
    "momentum": 0.9,
    "evaluate-every": 60,
}
DATA: dict[str, dict[str, Any]] = {
    "av-digits": {"dataset": "av-digits", "samples-per-node": 400},
    "digits": {"dataset": "digits"},
    "mnist": {"dataset": "mnist", "samples-per-node": 500, "modality-pattern": "image"},
}
