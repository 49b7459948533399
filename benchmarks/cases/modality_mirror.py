"""ModalityMirror against learning one modality alone, and against its own parts."""

from typing import Any

from harness import Bar, Case

COMPLETE = {
    "topology": "complete",
    "num-server-rounds": 60,
    "local-iterations": 10,
    "evaluate-every": 60,
    "learning-rate": 0.05,
}


def _lacking(share: float) -> dict[str, Any]:
    """Return a fleet in which this share of the devices has no camera."""
    return COMPLETE | {"modality-shares": f"audio={share},audio+image={round(1 - share, 2)}"}


def _mirror(**options: Any) -> dict[str, Any]:
    named = {f"modality-mirror.{k.replace('_', '-')}": value for k, value in options.items()}
    return {"method": "modality-mirror", **named}


MODALITY_MIRROR_CASE = Case(
    scenarios={f"{share:.0%} without image": _lacking(share) for share in (0.2, 0.5, 0.8)},
    arms={
        # All rounds are the first stage's but the last, which rests half of the fleet.
        "uni-modal": {"method": "harmony", "harmony.uni-modal": 0.98},
        "harmony": {"method": "harmony"},
        "CE, multi-modal devices": _mirror(lam=0.0, all_nodes=False),
        "KD, multi-modal devices": _mirror(all_nodes=False),
        "CE, all devices": _mirror(lam=0.0),
        "modality-mirror": _mirror(),
    },
    bars=[
        bar
        for share in ("20%", "50%")
        for where in [f"{share} without image"]
        for bar in (
            Bar("KD, multi-modal devices", "CE, multi-modal devices", {"audio": 1.0}, where),
            Bar("modality-mirror", "uni-modal", {"audio": -0.5}, where),
            Bar("modality-mirror", "harmony", {"audio": 10.0}, where),
        )
    ],
    measures=["mean", "min", "fused", "audio", "image", "joules"],
)
