"""Training balance at equal energy."""

from harness import Bar, Case

from flwr_dmml.learning.balance import SPEED_METRICS

from .common import APART

ALL_BOTH = {"modality-pattern": "audio+image", "alpha": 100.0, "image-visible": 0.5}
ALONE = {"modality-loss": 1.0}
DMML_KD = {"method": "dmml-kd", "gossip": "dpsgd", **APART}
HALF = {"energy.battery-share": 0.5, "allocation.rule": "uniform", "stagger": 0.0}
BY_SPEED = HALF | {"stagger": 0.5, "allocation.rule": "max-min"}

# Equal energy: half of what 20 iterations of every modality in every round take, sending
# included; the channel and what it takes are the same for all arms.
BALANCE = Case(
    scenarios={
        name: {
            "method": "dpsgd",
            "learning-rate": 0.05,
            "num-server-rounds": 40,
            "evaluate-every": 40,
            "wireless.enabled": True,
            **settings,
        }
        for name, settings in {
            "(i)": ALL_BOTH,
            "(i) per-modality losses": ALL_BOTH | ALONE,
            "(ii)": {},
            "(ii) per-modality losses": ALONE,
            "(i) DMML-KD": ALL_BOTH | DMML_KD,
            "(ii) DMML-KD": DMML_KD,
        }.items()
    },
    arms={
        "full energy, staggered": {"stagger": 0.5, "allocation.rule": "uniform"},
        "uniform, synchronous": HALF,
        "uniform, staggered": HALF | {"stagger": 0.5},
        "random ratio": BY_SPEED | {"allocation.rule": "random"},
        **{name: BY_SPEED | {"speed-metric": name} for name in SPEED_METRICS},
        "conditional, surplus solo only": BY_SPEED | {"stagger": 0.0},
    },
    bars=[
        Bar(
            "uniform, staggered",
            "uniform, synchronous",
            {"audio": 8.0, "image": 5.0, "fused": 1.0},
            "(i)",
        ),
        Bar("conditional", "uniform, synchronous", {"audio": 8.0, "fused": -0.5}, "(i)"),
        Bar("conditional", "uniform, staggered", {"audio": 3.0, "fused": -1.0}, "(i)"),
        Bar("conditional", "uniform, staggered", {"mean": -1.5}, "(ii)"),
    ],
    measures=[
        "mean",
        "fused",
        "audio",
        "image",
        "audio / image updates",
        "balance",
        "joules",
        "simulated s",
    ],
)
