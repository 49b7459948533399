"""The suite: every data set and graph, and every choice of DMML for the control, too.

``pooled`` is one model that is trained in one place on all samples: the ceiling.
"""

from functools import partial
from typing import Any

from harness import Bar, Case, Limit

from .common import APART, DATA, PLAIN
from .sensors import BOTH, PHONE, SP_SW_HAR
from .weak_strong import weak_strong

STAGGERED: dict[str, Any] = {
    "method": "dpsgd", "gossip": "dpsgd", "stagger": 0.5, "modality-loss": 1.0,
}  # fmt: skip
COURIERS = {"couriers": "forward", "exchange.precision": "int8"}
CORRECTED = {"label-correction": "network"}
THRICE = {
    "exchange.precision": "int8",
    "num-server-rounds": 180,
    "local-iterations": 7,
    "evaluate-every": 180,
}
"""About the bytes of the control in float32: an exchange after a third of the iterations."""
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


AUDIO_VISUAL = {
    "av-digits, ring": AV,
    "av-digits, complete": AV | {"topology": "complete"},
    "av-digits, 4-regular": AV | {"topology": "random-regular", "topology-degree": 4, "alpha": 0.1},
}
OTHERS = {
    "sensors, ring": SP_SW_HAR
    | {"learning-rate": 0.01, "samples-per-node": 0, "num-server-rounds": 60},
    **{
        f"weak-strong, {graph}{', no leak' * (not leak)}": _tables(leak=leak, **where)
        for leak in (True, False)
        for graph, where in (("complete", ALL_THREE), ("ring", MIXED))
    },
}
OURS: dict[str, Any] = {"method": "dmml-kd", **OF_THE_METHOD}
ARMS: dict[str, dict[str, Any]] = {
    "local": {"method": "local"},
    "dpsgd": {"method": "dpsgd"},
    "control": STAGGERED,
    "control, couriers": STAGGERED | COURIERS,
    "control, correction": STAGGERED | CORRECTED,
    "control, both": STAGGERED | COURIERS | CORRECTED,
    "control, tracked": STAGGERED | COURIERS | CORRECTED | {"gossip": "leaky-d2"},
    "dmml": {"method": "dmml", **OF_THE_METHOD},
    "dmml-kd": OURS,
    "dmml-kd, before": {
        "method": "dmml-kd",
        "gossip": "dpsgd",
        **APART,
    },
    "qg-dsgdm-n": {"method": "qg-dsgdm-n"},
    "fedproto": {"method": "fedproto"},
    "pooled": {"method": "pooled"},
}
WITH_PUBLIC_SET = {"idkd": {"method": "idkd", "public.samples": 2000}}
ON_THE_RING = {
    "control, thrice": STAGGERED | THRICE,
    "dmml, quasi-global": {"method": "dmml", **OF_THE_METHOD, "gossip": "qg-dsgdm-n"},
    "kept apart": OURS | APART,
    "without decomposition": OURS | {"dmml-kd.decomposition": False},
}
KINDS = {
    "av-digits": ("audio", "image", "audio+image"),
    "sensors": (BOTH, PHONE),
    "weak-strong, complete": ("audio+text+video",),
    "weak-strong, ring": ("text", "audio", "video", "audio+text+video"),
}
"""The sets of sensors of a scenario's devices, by how its name begins."""
EVERY_KIND = dict.fromkeys(kind for kinds in KINDS.values() for kind in kinds)
WITHOUT_US = ("local", "dpsgd", "control")


def _never_loses(scenario: str) -> list[Bar]:
    """Return the bars against the best of what works without us: as a whole, by kind of device."""
    kinds = next(kinds for name, kinds in KINDS.items() if scenario.startswith(name))
    return [
        *(Bar("dmml-kd", other, {"mean": -0.5}, scenario) for other in WITHOUT_US),
        Bar("dmml-kd", "local", {f"accuracy of {kind}": -1.0 for kind in kinds}, scenario),
    ]


SUITE = Case(
    scenarios=AUDIO_VISUAL | OTHERS,
    arms=ARMS | WITH_PUBLIC_SET | ON_THE_RING,
    only={
        "av-digits, complete": [*ARMS, *WITH_PUBLIC_SET],
        "av-digits, 4-regular": [*ARMS, *WITH_PUBLIC_SET],
        **{scenario: list(ARMS) for scenario in OTHERS},
    },
    bars=[
        Bar("dmml-kd", "control", {"mean": 12.0, "min": 12.0, "audio": 10.0}, "av-digits, ring"),
        Bar("dmml-kd", "control, thrice", {"mean": 10.0}, "av-digits, ring"),
        Bar("dmml-kd", "control, couriers", {"mean": 4.0}, "av-digits, ring"),
        Bar("dmml-kd", "pooled", {"mean": -3.0}, "av-digits, ring"),
        Bar("dmml-kd", "control", {"macro F1": 0.0}, "sensors, ring"),
        *(bar for scenario in AUDIO_VISUAL | OTHERS for bar in _never_loses(scenario)),
    ],
    limits=[Limit("dmml-kd", "kB sent a round", at_most=105.0, scenario="av-digits, ring")],
    measures=[
        *("mean", "min", "macro F1", "audio", "image", "kB sent a round", "joules"),
        *(f"accuracy of {kind}" for kind in EVERY_KIND),
    ],
    ahead="dmml-kd",
)
