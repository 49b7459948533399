"""Settings that all cases share, and the data sets by name."""

from typing import Any

from flwr_dmml.clients import Learner
from flwr_dmml.learning.settings import choices_of

PLAIN: dict[str, Any] = {
    **{k: v for k, v in choices_of(Learner).items() if k not in ("stagger", "allocation.rule")},
    "couriers": Learner.couriers,
}
"""None of the choices that DMML makes: in these cases methods differ in what they learn from."""
COMMON: dict[str, Any] = {
    **PLAIN,
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
APART: dict[str, Any] = {"dmml-kd.orthogonality-weight": 0.3, "dmml-kd.similarity-weight": 0.1}
"""DMML-KD's other decomposition losses, which it has not by default."""
DATA: dict[str, dict[str, Any]] = {
    "av-digits": {"dataset": "av-digits", "samples-per-node": 400},
    "digits": {"dataset": "digits"},
    "mnist": {"dataset": "mnist", "samples-per-node": 500, "modality-pattern": "image"},
}
