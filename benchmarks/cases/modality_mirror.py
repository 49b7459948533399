"""ModalityMirror against learning one modality alone, and against its own parts."""

from typing import Any

from harness import Bar, Case

STAGE_1, FUSION, STAGE_2 = 40, 10, 20  # rounds
COMPLETE = {"topology": "complete", "local-iterations": 10, "learning-rate": 0.05}


def _rounds(rounds: int) -> dict[str, Any]:
    return {"num-server-rounds": rounds, "evaluate-every": rounds}


def _lacking(share: float) -> dict[str, Any]:
    """Return a fleet in which this share of the devices has no camera."""
    return COMPLETE | {"modality-shares": f"audio={share},audio+image={round(1 - share, 2)}"}


def _mirror(**options: Any) -> dict[str, Any]:
    rounds = STAGE_1 + FUSION + STAGE_2
    shares = {"uni-modal": STAGE_1 / rounds, "fusion": FUSION / rounds}
    named = {name.replace("_", "-"): value for name, value in options.items()}
    options = {f"modality-mirror.{k}": value for k, value in (shares | named).items()}
    return {"method": "modality-mirror", **_rounds(rounds), **options}


def _harmony(uni_modal: int, fusion: int) -> dict[str, Any]:
    rounds = uni_modal + fusion
    return {"method": "harmony", "harmony.uni-modal": uni_modal / rounds, **_rounds(rounds)}


SHARES = {share: f"{share:.0%} without image" for share in (0.2, 0.5, 0.8)}
CHARGED = {share: f"{name}, the teacher charged" for share, name in SHARES.items()}
# Rounds in which devices that train nothing but the sound spend what ModalityMirror does: its
# joules over the 5.429 J of such a round, rounded down.
AS_MANY_JOULES = {0.2: 95, 0.5: 81, 0.8: 67}
TEACHING: dict[str, dict[str, Any]] = {
    "T 1": {"temperature": 1.0},
    "T 4": {"temperature": 4.0},
    "lambda 0.2": {"lam": 0.2},
    "lambda 0.8": {"lam": 0.8},
}
MAIN = [
    "uni-modal",
    "harmony",
    "CE, multi-modal devices",
    "KD, multi-modal devices",
    "CE, all devices",
    "modality-mirror",
]
MODALITY_MIRROR_CASE = Case(
    scenarios={name: _lacking(share) for share, name in SHARES.items()}
    | {CHARGED[share]: _lacking(share) | _rounds(r) for share, r in AS_MANY_JOULES.items()},
    full={"50% without image, other teaching": _lacking(0.5)},
    arms={
        # As many iterations of the audio network as with ModalityMirror: its fusion trains none.
        "uni-modal": _harmony(STAGE_1 + STAGE_2, 1),
        "harmony": _harmony(STAGE_1, STAGE_2),
        "CE, multi-modal devices": _mirror(lam=0.0, all_nodes=False),
        "KD, multi-modal devices": _mirror(all_nodes=False),
        "CE, all devices": _mirror(lam=0.0),
        "modality-mirror": _mirror(),
        "audio alone": {
            "method": "dpsgd",
            "modality-shares": "",
            "modality-pattern": "audio",
        },
        **{
            f"KD, {name}": _mirror(all_nodes=False, **changed) for name, changed in TEACHING.items()
        },
    },
    only=dict.fromkeys(SHARES.values(), MAIN)
    | {name: ["modality-mirror", "audio alone"] for name in CHARGED.values()}
    | {"50% without image, other teaching": [f"KD, {name}" for name in TEACHING]},
    bars=[
        bar
        for where in (SHARES[0.2], SHARES[0.5])
        for bar in (
            Bar("KD, multi-modal devices", "CE, multi-modal devices", {"audio": 1.0}, where),
            Bar("modality-mirror", "uni-modal", {"audio": -0.5}, where),
            Bar("modality-mirror", "harmony", {"audio": 10.0}, where, read="audio, image zeroed"),
        )
    ],
    measures=["audio", "audio, image zeroed", "fused", "min", "joules"],
)
