"""ModalityMirror in whole runs: its bills by hand, who trains and sends what, determinism."""

from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FAST, make_learner
from helpers_staged import Records, numbers, run, same, watching

from flwr_dmml.clients import ModalityMirror
from flwr_dmml.energy.costs import Work
from flwr_dmml.learning.flops import FlopCounter
from flwr_dmml.learning.work import measure_work
from flwr_dmml.payload.plan import Plan

BOTH: dict[str, Any] = {
    **FAST, "method": "modality-mirror", "modality-pattern": "audio+image", "num-nodes": 3,
}  # fmt: skip
TAUGHT = {"modality-mirror.margin": 0.0}
STAGES = ("uni-modal", "fusion", "distil")
PHASES = ["uni-modal"] * 3 + ["fusion"] + ["distil"] * 2 + [""]
TEACHER = {"teacher.encoder.audio", "teacher.encoder.image", "teacher.head"}


# Bills

BATCH, HEAD = 16, 6 * 64 * 10  # features (64) -> classes (10)
AUDIO = 4 * 25 * 1 * 8 * 128 + 6 * (25 * 8 * 16 * 32 + 256 * 64 + 64 * 64)  # see helpers_work.py
IMAGE = 4 * 25 * 1 * 8 * 16 + 6 * (25 * 8 * 16 * 16 + 256 * 64 + 64 * 64)
AUDIO_FORWARD, IMAGE_FORWARD, HEAD_FORWARD = 296_960, 149_760, 2 * 64 * 10
ASK = AUDIO_FORWARD + IMAGE_FORWARD + 2 * HEAD_FORWARD


@pytest.mark.parametrize(("batch", "iterations", "asked"), [(16, 2, 32), (8, 3, 24), (16, 9, 36)])
def test_work_by_hand(batch: int, iterations: int, asked: int) -> None:
    """A network a modality. Asked about what local-iterations draw of the 36 own samples.

    Besides, about 4 held-out ones, on which the student is judged as well.
    """
    config = {**BOTH, "batch-size": batch, "local-iterations": iterations}
    lessons = (asked + 4) * ASK + 4 * (AUDIO_FORWARD + HEAD_FORWARD)
    assert measure_work(make_learner(config)) == Work(
        joint=batch * (AUDIO + IMAGE + 2 * HEAD),
        solo={"audio": batch * (AUDIO + HEAD), "image": batch * (IMAGE + HEAD)},
        in_phase={"uni-modal": 0.0, "fusion": 0.0, "distil": lessons},
    )
    alone = measure_work(make_learner({**config, "modality-pattern": "image,audio+image"}))
    nothing = dict.fromkeys(STAGES, 0.0)
    assert alone == Work(
        batch * (IMAGE + HEAD), {"image": batch * (IMAGE + HEAD)}, in_phase=nothing
    )


@pytest.mark.parametrize("phase", STAGES)
def test_an_iteration_takes_what_is_billed_for_it(phase: str) -> None:
    """Fusing costs what the networks apart do; the student, what its modality alone does."""
    work, device = measure_work(make_learner(BOTH)), make_learner({**BOTH, **TAUGHT})
    plan = Plan(2, 1, phase=phase)
    device.after_mixing(plan, {})
    device.before_training(plan, {})
    trained = device.options.trained(phase, ("audio", "image"))  # type: ignore[attr-defined]
    batch = next(iter(device.batches(1))).only(trained)
    with FlopCounter() as counter:
        device.loss_of(batch).backward()
    billed = work.solo["audio"] if phase == "distil" else work.joint
    assert counter.flops == billed


# Runs: devices 0 and 3 hear, 1 and 4 see, 2 and 5 do both; stages of 3, 1 and 2 rounds


@pytest.fixture(scope="module")
def watched() -> type[Any]:
    return watching(ModalityMirror)


@pytest.fixture(scope="module")
def records(watched: type[Any], tmp_path_factory: pytest.TempPathFactory) -> Records:
    return run(tmp_path_factory.mktemp("mirror"), watched, watched__margin=0.0)


def test_every_device_is_told_its_stage(records: Records, watched: type[Any]) -> None:
    for k in range(6):
        assert [watched.plans[t, k].phase for t in range(1, 8)] == PHASES


def test_iterations_and_joules_are_those_of_the_stage(records: Records) -> None:
    """Two iterations of what is trained, on a Raspberry Pi 4: 3.4 W, 7.2e9 FLOP a second."""
    audio, image = BATCH * (AUDIO + HEAD), BATCH * (IMAGE + HEAD)
    lessons = (32 + 4) * ASK + 4 * (AUDIO_FORWARD + HEAD_FORWARD)
    every = {"audio": 2, "image": 2}
    flops = {
        "uni-modal": (2 * audio, 2 * image, 2 * (audio + image)),
        "fusion": (0, 0, 2 * (audio + image)),
        "distil": (2 * audio, 2 * image, 2 * audio + lessons),
    }
    updates = {
        "uni-modal": ({"audio": 2}, {"image": 2}, every),
        "fusion": ({"audio": 0}, {"image": 0}, every),
        "distil": ({"audio": 2}, {"image": 2}, {"audio": 2, "image": 0}),
    }
    for record, stage in zip(records, PHASES[:-1], strict=True):
        for k, node in enumerate(record["nodes"]):
            assert node["updates"] == updates[stage][k % 3]
            assert node["compute_j"] == pytest.approx(3.4 * flops[stage][k % 3] / 7.2e9)


def test_only_those_who_have_a_teacher_send_one_and_only_while_it_trains(
    records: Records, watched: type[Any]
) -> None:
    for (t, k), payload in watched.sent_by.items():
        teacher = {name for name in payload if name.startswith("teacher.")}
        assert teacher == (TEACHER if k % 3 == 2 and t < 7 else set())
        assert {len(payload[name]) > 0 for name in teacher} <= {t == 4}
        assert all(len(payload[f"encoder.{m}"]) for m in ("audio", "image") if t < 7 and k % 3 == 2)
    lengths = make_learner(BOTH).block_lengths()
    more = 4 * sum(lengths[name] for name in TEACHER)  # to device 5, the only other owner
    sent = [record["nodes"][2]["bytes_sent"] for record in records]
    assert sent == [sent[0]] * 3 + [sent[0] + more] + [sent[0]] * 2
    assert not any(record["failed"] for record in records)


def test_the_student_reaches_all_who_hear(records: Records, watched: type[Any]) -> None:
    """On a complete graph every owner has the mean of all, teachers' students among them."""
    for t in (5, 6, 7):
        mixed = [watched.mixed[t, k]["encoder.audio"] for k in (0, 2, 3, 5)]
        sent = [watched.sent_by[t - 1, k]["encoder.audio"] for k in (0, 2, 3, 5)]
        mean = torch.stack(sent).double().mean(dim=0).float()
        assert all(torch.allclose(found, mean, atol=1e-6) for found in mixed)


def test_without_all_nodes_the_others_rest_and_hear_of_it(tmp_path: Path) -> None:
    """In rounds 5 and 6 what they publish is what they have mixed, unbilled, and it changes."""
    kind = watching(ModalityMirror)
    found = run(tmp_path, kind, watched__margin=0.0, watched__all_nodes=False)
    for t in (4, 5, 6):
        for k in (0, 1, 3, 4):
            node = found[t - 1]["nodes"][k]
            assert node["compute_j"] == 0 and not any(node["updates"].values())
            blocks = {n: v for n, v in kind.sent_by[t, k].items() if not n.startswith("stats.")}
            assert same(blocks, kind.mixed[t, k])
    for k in (0, 3):
        assert not torch.equal(kind.mixed[6, k]["head.audio"], kind.mixed[5, k]["head.audio"])
    for k in (1, 4):  # nobody trains the image's network any more, and all have the same
        assert torch.allclose(kind.mixed[6, k]["head.image"], kind.mixed[5, k]["head.image"])


@pytest.mark.parametrize(
    "more",
    [
        {"energy__battery_share": 0.5, "topology": "ring"},
        {"missing__train_share": 0.5, "stagger": 0.5},
        {"allocation__rule": "max-min", "energy__battery_share": 0.7},
        {"student": "image"},
        {"wireless__enabled": True, "wireless__shared_band_hz": 1e7, "wireless__fading": "none"},
    ],
    ids=["batteries", "missing and solo", "by speed", "the image learns", "shared band"],
)
def test_other_circumstances(more: dict[str, Any], tmp_path: Path) -> None:
    own = {f"watched__{k}" if k == "student" else k: v for k, v in more.items()}
    found = run(tmp_path, watching(ModalityMirror), watched__margin=0.0, **own)
    assert len(found) == 6 and not any(record["failed"] for record in found)
    for record in found:
        assert all(map(isfinite, numbers(record)))
        assert all(joules >= 0 for joules in record["battery_j"].values())


def test_twelve_devices_give_the_same_lines_for_the_same_seed(tmp_path: Path) -> None:
    lines = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        found = run(tmp_path / name, watching(ModalityMirror), num_nodes=12, seed=seed)
        assert all(map(isfinite, numbers(found)))
        assert all(set(r["accuracy_by_modality"]) == {"audio", "image"} for r in found)
        lines[name] = (tmp_path / name / "x" / "watched" / "metrics.jsonl").read_bytes()
    assert lines["a"] == lines["b"] != lines["c"]
