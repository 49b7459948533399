"""The suite: every data set and graph, and every choice of DMML for the control, too.

``pooled`` is one model that is trained in one place on all samples: the ceiling.
"""

from functools import partial
from typing import Any

from harness import Bar, Case

from .common import DATA, PLAIN
from .sensors import SP_SW_HAR
from .weak_strong import weak_strong

STAGGERED: dict[str, Any] = {
    "method": "dpsgd", "gossip": "dpsgd", "stagger": 0.5, "modality-loss": 1.0,
}  # fmt: skip
COURIERS = {"couriers": "forward", "exchange.precision": "int8"}
CORRECTED = {"label-correction": "network"}
OF_THE_METHOD = dict.fromkeys(PLAIN, "auto")
"""As the method chooses: not as all cases have it."""
AV = {**DATA["av-digits"], "learning-rate": 0.1}
TABLES: dict[str, Any] = {
    "dataset": "feature-table",
    "partition": "natural",
    "num-nodes": 20,
    "samples-per-node": 0,
    "num-server-rounds": 30,
    "evaluate-every": 30,
    "learning-rate": 0.05,
}
MIXED = {"topology": "ring", "modality-pattern": "text,audio,video,audio+text+video"}
ALL_THREE = {"topology": "complete", "modality-pattern": "auto"}


def _tables(*, leak: bool, **where: Any) -> dict[str, Any]:
    return {**TABLES, "data-path": partial(weak_strong, leak=leak), **where}


SUITE = Case(
    scenarios={
        "av-digits, ring": AV,
        "av-digits, complete": AV | {"topology": "complete"},
        "av-digits, 4-regular": AV
        | {"topology": "random-regular", "topology-degree": 4, "alpha": 0.1},
        "sensors, ring": SP_SW_HAR | {"learning-rate": 0.01},
        **{
            f"weak-strong, {graph}{', no leak' * (not leak)}": _tables(leak=leak, **where)
            for leak in (True, False)
            for graph, where in (("complete", ALL_THREE), ("ring", MIXED))
        },
    },
    arms={
        "local": {"method": "local"},
        "dpsgd": {"method": "dpsgd"},
        "control": STAGGERED,
        "control, couriers": STAGGERED | COURIERS,
        "control, correction": STAGGERED | CORRECTED,
        "control, both": STAGGERED | COURIERS | CORRECTED,
        "dmml": {"method": "dmml", **OF_THE_METHOD},
        "dmml-kd": {"method": "dmml-kd", **OF_THE_METHOD},
        "dmml-kd, before": {"method": "dmml-kd", "gossip": "dpsgd"},
        "qg-dsgdm-n": {"method": "qg-dsgdm-n"},
        "fedproto": {"method": "fedproto"},
        "pooled": {"method": "pooled"},
    },
    bars=[Bar("dmml-kd", "control", {"mean": 12.0, "min": 12.0, "audio": 10.0}, "av-digits, ring")],
    measures=["mean", "min", "macro F1", "audio", "image", "kB sent a round", "joules"],
)
