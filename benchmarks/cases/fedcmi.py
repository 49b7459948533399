"""FedCMI against the same model without infiltration, on a complete graph (FedAvg) and a ring."""

from typing import Any

from harness import Bar, Case

HALF_AUDIO = {
    "modality-pattern": "audio,audio+image",
    "num-server-rounds": 40,
    "local-iterations": 10,
    "evaluate-every": 40,
    "learning-rate": 0.05,
}
SIDE_BY_SIDE = ",".join(["audio"] * 6 + ["audio+image"] * 6)


def _fedcmi(**options: Any) -> dict[str, Any]:
    named = {f"fedcmi.{name.replace('_', '-')}": value for name, value in options.items()}
    return {"method": "fedcmi", **named}


FEDCMI_CASE = Case(
    scenarios={
        "complete": HALF_AUDIO | {"topology": "complete"},
        "ring": HALF_AUDIO,
        "ring, cameras side by side": HALF_AUDIO | {"modality-pattern": SIDE_BY_SIDE},
        "complete, half of each image": HALF_AUDIO | {"topology": "complete", "image-visible": 0.5},
    },
    arms={
        # One model for all: without infiltration its projector is there and is not used.
        "joint loss": _fedcmi(head_weight=0.0, infiltration_weight=0.0, fill=False),
        "uni-modal losses": _fedcmi(infiltration_weight=0.0, fill=False),
        "fedcmi, as in its code": _fedcmi(
            head_weight=2.0,
            temperature_slope=2.0,
            min_temperature=0.0,
            uni_modal_heads=False,
            train_filled=True,
        ),
        "fedcmi": _fedcmi(),
        "fedcmi, filled slots only": _fedcmi(infiltration_weight=0.0, train_filled=True),
        "fedcmi, filled slots trained": _fedcmi(train_filled=True),
        "fedcmi, not filled": _fedcmi(fill=False),
        "fedcmi, softened by 4": _fedcmi(softening=4.0, train_filled=True),
        "fedcmi, features": _fedcmi(infiltrate="features", train_filled=True),
        "fedcmi, weight 4": _fedcmi(infiltration_weight=4.0, train_filled=True),
        "fedcmi, not filled, weight 4": _fedcmi(fill=False, infiltration_weight=4.0),
    },
    only={
        "ring, cameras side by side": [
            "joint loss",
            "uni-modal losses",
            "fedcmi",
            "fedcmi, filled slots trained",
            "fedcmi, filled slots only",
            "fedcmi, not filled",
        ],
        "complete, half of each image": [
            "joint loss",
            "uni-modal losses",
            "fedcmi",
            "fedcmi, filled slots trained",
            "fedcmi, filled slots only",
            "fedcmi, features",
        ],
    },
    bars=[
        bar
        for where in ("complete", "ring")
        for bar in (
            Bar("fedcmi", "joint loss", {"mean": 2.0, "audio": 3.0}, where),
            Bar("fedcmi", "uni-modal losses", {"mean": 0.0}, where),
        )
    ],
    measures=["mean", "min", "fused", "audio", "image", "kB sent a round", "joules"],
)
