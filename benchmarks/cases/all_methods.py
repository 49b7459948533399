"""Every installed method on the same devices, data and iterations, at one learning rate."""

from typing import Any

from harness import Case

from flwr_dmml.clients import find_methods

from .common import APART

SETTING: dict[str, Any] = {
    "num-server-rounds": 40,
    "local-iterations": 10,
    "evaluate-every": 40,
    "learning-rate": 0.05,
    "public.samples": 2000,  # for kd and idkd
    "public.outside": "",
}
ON_TREES = ["relaysgd"]
# dmml is nothing but choices that are the same for all here.
METHODS: dict[str, dict[str, Any]] = {
    name: {"method": name} for name in sorted(find_methods()) if name != "dmml"
}
METHODS["dmml-kd"] |= {"gossip": "dpsgd", **APART}
# What D-PSGD gains by what other methods have by default.
MORE: dict[str, dict[str, Any]] = {
    "dpsgd, staggered": {"method": "dpsgd", "stagger": 0.5},
    "dpsgd, modality losses": {"method": "dpsgd", "modality-loss": 1.0},
    "ogm-ge, alpha 0.8": {"method": "ogm-ge", "ogm-ge.alpha": 0.8},
}
ON_GRAPHS = [name for name in METHODS | MORE if name not in ON_TREES]

ALL = Case(
    scenarios={
        "ring": SETTING,
        "complete": SETTING | {"topology": "complete"},
        "line": SETTING | {"topology": "line"},
    },
    arms=METHODS | MORE,
    only={"ring": ON_GRAPHS, "complete": ON_GRAPHS, "line": ["dpsgd", "dmml-kd", *ON_TREES]},
    bars=[],
    measures=["mean", "min", "fused", "audio", "image", "kB sent a round", "joules"],
)
