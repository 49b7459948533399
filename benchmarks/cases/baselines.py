"""Every method, each at its best learning rate, on four networks; with DMML's two aids and without.

What a method chooses for itself it keeps, such as its gossip rule and its losses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .common import COMMON, DATA
from .sensors import SP_SW_HAR
from .suite import CORRECTED, COURIERS, MIXED, OF_THE_METHOD, TABLES
from .weak_strong import weak_strong

RATE_SEED = 100
"""The learning rates are chosen on this seed, which is none of those reported."""
PLAIN: dict[str, Any] = {"couriers": "off", "label-correction": "off"}
AIDED: dict[str, Any] = COURIERS | CORRECTED
WAYS: Mapping[str, dict[str, Any]] = {"alone": PLAIN, "aided": AIDED}

PHONE, WRIST = "pocket-acc", "wrist-acc+wrist-gyro"
WEARABLES = f"{PHONE}+{WRIST}+ankle-acc+ankle-gyro"  # some trials lack the ankle


@dataclass(frozen=True)
class Network:
    """Devices on a graph, and the learning rates that methods choose from."""

    settings: Mapping[str, Any]
    rates: tuple[float, ...]
    public: Mapping[str, Any] | None = None
    """The public set of methods that need one; None where there is no sample left for it."""


NETWORKS: Mapping[str, Network] = {
    "av-digits": Network(
        {**DATA["av-digits"], "num-server-rounds": 60},
        rates=(0.025, 0.05, 0.1),
        public={"public.samples": 2000},
    ),
    "weak-strong": Network(
        {**TABLES, **MIXED, "data-path": partial(weak_strong, leak=True)},
        rates=(0.025, 0.05, 0.1),
    ),
    "umafall": Network(
        {
            "dataset": "umafall",
            "partition": "natural",
            "num-nodes": 14,
            "samples-per-node": 0,
            "modality-pattern": f"{PHONE},{WRIST},{WEARABLES}",
            "num-server-rounds": 30,
            "modality-mirror.student": PHONE,
        },
        rates=(0.01, 0.03, 0.1),
    ),
    "sensors": Network(
        SP_SW_HAR
        | {"samples-per-node": 0, "num-server-rounds": 30, "modality-mirror.student": "phone-acc"},
        rates=(0.005, 0.01, 0.02),
    ),
}
NEEDS_PUBLIC = "kd", "idkd", "creamfl"
METHODS: dict[str, dict[str, Any]] = {
    "dmml-kd": {"method": "dmml-kd"},
    "dmml": {"method": "dmml"},
    "local": {"method": "local"},
    "dpsgd": {"method": "dpsgd"},
    "dpsgd, modality losses": {"method": "dpsgd", "modality-loss": 1.0},
    "mmpareto": {"method": "mmpareto"},
    "mla": {"method": "mla"},
    "mla, qmf": {"method": "mla", "mla.variant": "qmf", "stagger": 0.0},
    "di-mml": {"method": "di-mml"},
    "parse": {"method": "parse"},
    "parse, heads": {"method": "parse", "parse.share": "heads"},
    "parse, encoders": {"method": "parse", "parse.share": "encoders"},
    "parse, both": {"method": "parse", "parse.share": "both"},
    "pmcmfl": {"method": "pmcmfl"},
    "mfcpl": {"method": "mfcpl"},
    "mfcpl, prototypes only": {"method": "mfcpl", "mfcpl.blocks": False},
    "creamfl": {"method": "creamfl"},
    "opm": {"method": "opm"},
    "ogm-ge": {"method": "ogm-ge"},
    "agm": {"method": "agm"},
    "dpsgd, sheaf-dmfl": {"method": "dpsgd", "gossip": "sheaf-dmfl"},
    "pmr": {"method": "pmr"},
    "idkd": {"method": "idkd"},
    "kd": {"method": "kd"},
    "qg-dsgdm-n": {"method": "qg-dsgdm-n"},
    "qg-dsgdm": {"method": "qg-dsgdm"},
    "dsgdm": {"method": "dsgdm"},
    "d2": {"method": "d2"},
    "fedproto": {"method": "fedproto"},
    "fedgen": {"method": "fedgen"},
    "fedcmi": {"method": "fedcmi"},
    "fedprox": {"method": "fedprox"},
    "moon": {"method": "moon"},
    "ccl": {"method": "ccl"},
    "harmony": {"method": "harmony"},
    "modality-mirror": {"method": "modality-mirror"},
    "modality-dropout": {"method": "modality-dropout"},
    "greedy": {"method": "greedy"},
}
"""The order in which they are run. ``relaysgd`` needs a tree, and a ring is none."""


def settings_of(network: str, method: str, way: str) -> dict[str, Any]:
    """Return the settings of an arm but for its learning rate and seed."""
    where, own = NETWORKS[network], METHODS[method]
    public = where.public if own["method"] in NEEDS_PUBLIC and where.public else {}
    found = COMMON | OF_THE_METHOD | dict(where.settings) | {"topology": "ring"} | dict(public)
    return found | WAYS[way] | own
