"""IDKD against KD and strong optimisers over a graph."""

from harness import Bar, Case, Limit

# Half of the public set is of another kind. 1,000 steps a device; one learning rate for all arms,
# not tuned for any of them.
IDKD = {
    "num-nodes": 16,
    "image-encoder": "conv3",
    "common-dim": 8,
    "specific-dim": 8,
    "num-server-rounds": 100,
    "local-iterations": 10,
    "learning-rate": 0.05,
    "weight-decay": 1e-4,
    "lr-schedule": "step",
    "lr-warm-up": 0.05,
    "evaluate-every": 100,
    "alpha": 0.05,
    "public.samples": 4000,
    "public.outside": "cifar10",
    "public.convert-images": True,
}
EVERY_STEP = {
    "num-server-rounds": 1000,
    "local-iterations": 1,
    "evaluate-every": 1000,
    "kd.exchange-every": 75,
    "idkd.exchange-every": 75,
}
AUDIO_VISUAL = {
    "dataset": "av-digits",
    "samples-per-node": 400,
    "num-nodes": 12,
    "modality-pattern": "audio,image,audio+image",
    "alpha": 0.1,
    "local-iterations": 20,
    "public.samples": 2000,
    "public.outside": "",
}

IDKD_CASE = Case(
    data="mnist",
    scenarios={
        "alpha 0.05": IDKD,
        "alpha 0.1": IDKD | {"alpha": 0.1},
        "gossip every step": IDKD | EVERY_STEP,
        "100 images a device": IDKD | {"samples-per-node": 100, "validation-fraction": 0.2},
        "audio-visual": IDKD | AUDIO_VISUAL,
    },
    full={
        "torus": IDKD | {"topology": "torus"},
        "Dyck": IDKD | {"topology": "dyck", "num-nodes": 32},
        "Florentine": IDKD | {"topology": "florentine", "num-nodes": 15},
    },
    arms={
        "dpsgd": {"method": "dpsgd"},
        "dsgdm": {"method": "dsgdm"},
        "qg-dsgdm-n": {"method": "qg-dsgdm-n"},
        "qg-dsgdm-n, its schedule": {"method": "qg-dsgdm-n", "lr-milestones": "0.6,0.8"},
        "kd": {"method": "kd"},
        "idkd": {"method": "idkd"},
        "idkd, energy score": {"method": "idkd", "idkd.score": "energy"},
        "idkd, one exchange": {"method": "idkd", "idkd.exchange-every": 0},
    },
    bars=[
        Bar("idkd", "qg-dsgdm-n", {"mean": 1.0, "min": 1.5}, "alpha 0.05"),
        Bar("idkd", "kd", {"mean": 1.5}, "alpha 0.05"),
        Bar("idkd", "qg-dsgdm-n, its schedule", {"mean": 0.3}, "alpha 0.05"),
    ],
    limits=[
        Limit("idkd", "lowest AUROC", at_least=0.75, scenario="alpha 0.05"),
        Limit("idkd", "most admitted", at_most=0.2, scenario="alpha 0.05"),
        Limit("idkd", "label / model bytes", at_most=0.08, scenario="alpha 0.05"),
    ],
    only=dict.fromkeys(
        ("gossip every step", "100 images a device"),
        ("qg-dsgdm-n", "qg-dsgdm-n, its schedule", "kd", "idkd", "idkd, one exchange"),
    ),
    measures=[
        "mean",
        "min",
        "averaged model",
        "audio",
        "image",
        "lowest AUROC",
        "kept",
        "most admitted",
        "right, first",
        "right, last",
        "skew before",
        "skew after",
        "label / model bytes",
    ],
)
