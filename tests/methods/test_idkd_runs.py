"""KD and IDKD in whole runs on the in-process engine: phases, bytes, joules, determinism.

Six rounds with start 0.4 and exchange-every 2: labels in rounds 0.4 * 6 + 1 -> 3 and 5.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

import pytest
from helpers import FAST, make_learner
from helpers_idkd import LABEL_KEYS, sent

from flwr_dmml.clients import DPSGD, Idkd, Learner, make_client_app
from flwr_dmml.engine import FlowerApp, run_app
from flwr_dmml.learning.options import Options
from flwr_dmml.learning.work import measure_work
from flwr_dmml.payload.plan import Inbox, Outcome, Payload, Plan
from flwr_dmml.strategies import make_server_app
from flwr_dmml.transport import size_bytes
from flwr_dmml.transport.messages import pack

SIX: dict[str, Any] = {
    **FAST, "num-nodes": 6, "num-server-rounds": 6, "public.samples": 100,
}  # fmt: skip
LABEL_ROUNDS, NUM_ROUNDS = (3, 5), 6
PHASES = ["train", "train", "label", "fine-tune", "label", "fine-tune", ""]
"""The last is the closing message's."""

Records = list[dict[str, Any]]


def run(
    folder: Path,
    method: str,
    *learners: type[Learner],
    **more: Any,
) -> Records:
    """Run the six devices; return the records of the method's rounds."""
    own = {k.replace("__", ".").replace("_", "-"): v for k, v in more.items()}
    config = {**SIX, "method": method, "run-dir": str(folder), "run-name": "x", **own}
    if method in ("kd", "idkd", "witness"):
        config = {f"{method}.exchange-every": 2, **config}
    server = make_server_app(*learners)
    run_app(FlowerApp(config, server, make_client_app(*learners)), config["num-nodes"])
    return records(folder / "x" / method)


def records(folder: Path) -> Records:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Witness(Idkd):
    """IDKD that keeps what every device was asked for and published, by round and device."""

    name = "witness"
    phases_seen: ClassVar[dict[int, list[str]]] = defaultdict(list)
    published: ClassVar[dict[tuple[int, int], Payload]] = {}
    heard: ClassVar[dict[tuple[int, int], set[int]]] = {}

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        me = self.partition.partition_id
        self.phases_seen[me].append(plan.phase)
        self.heard[plan.server_round, me] = {j for j, p in inbox.items() if set(p) >= LABEL_KEYS}
        outcome = super().run_round(plan, inbox)
        self.published[plan.server_round, me] = dict(outcome.payload)
        return outcome


@pytest.fixture(scope="module")
def witnessed(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """A run of IDKD on a ring, with everything its devices sent in ``Witness``."""
    for seen in (Witness.phases_seen, Witness.published, Witness.heard):
        seen.clear()
    folder = tmp_path_factory.mktemp("witness")
    return run(folder, "witness", Witness)


def by_node(record: dict[str, Any], key: str) -> list[Any]:
    return [node[key] for node in record["nodes"]]


# Phases


def test_every_device_is_told_the_phase(witnessed: Records):
    assert dict(Witness.phases_seen) == dict.fromkeys(range(6), PHASES)


def test_labels_are_sent_in_labelling_rounds_and_heard_in_the_next(witnessed: Records):
    assert {t for (t, _), payload in Witness.published.items() if sent(payload)} == {3, 5}
    for (t, me), senders in Witness.heard.items():
        near = {(me - 1) % 6, (me + 1) % 6}
        labelled = {j for j in near if t > 1 and sent(Witness.published[t - 1, j])}
        assert senders == labelled and (labelled if t in (4, 6) else not labelled)


def test_the_figures_are_those_of_the_rounds_they_belong_to(witnessed: Records):
    """What was labelled in the labelling round, what came of it in the next."""
    assert [set(record["labels"]) for record in witnessed] == [
        set(),
        set(),
        {"sent"},
        {"right", "skew", "skew-before", "used"},
        {"sent"},
        {"right", "skew", "skew-before", "used"},
    ]
    for t in LABEL_ROUNDS:
        shares = [len(sent(Witness.published[t, k])) / 100 for k in range(6)]
        assert [labels["sent"] for labels in by_node(witnessed[t - 1], "labels")] == shares
        for k, labels in enumerate(by_node(witnessed[t], "labels")):
            near = [set(sent(Witness.published[t, j % 6])) for j in (k - 1, k, k + 1)]
            assert labels["used"] == pytest.approx(len(set.union(*near)) / 100)
            assert labels["skew"] < labels["skew-before"]


# Bytes


def test_label_bytes_are_those_of_the_arrays_to_each_neighbour(witnessed: Records):
    """Two neighbours on the ring, each gets a device's two arrays as they are serialised."""
    for t, record in enumerate(witnessed, start=1):
        for k, found in enumerate(by_node(record, "label_bytes_sent")):
            payload = Witness.published[t, k]
            arrays = pack({name: payload[name] for name in sorted(LABEL_KEYS & set(payload))})
            assert found == 2 * size_bytes(arrays) and (found > 0) == bool(sent(payload))
        labels = record["label_bytes_sent_per_node"]
        assert labels == pytest.approx(sum(by_node(record, "label_bytes_sent")) / 6)
        assert (labels > 0) == (t in LABEL_ROUNDS)


def test_all_other_bytes_are_the_same_in_every_round(witnessed: Records):
    others = [
        [total - labels for total, labels in zip(*both, strict=True)]
        for both in (
            (by_node(record, "bytes_sent"), by_node(record, "label_bytes_sent"))
            for record in witnessed
        )
    ]
    assert others == [others[0]] * 6 and all(others[0])


@pytest.fixture(scope="module")
def kd(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return run(tmp_path_factory.mktemp("kd"), "kd")


def test_kd_sends_every_public_sample_by_hand(kd: Records):
    """100 samples of 10 classes: 4 + 2 * 10 bytes each, two array headers of 128, 2 neighbours.

    2 * (100 * 24 + 2 * 128) = 5,312 bytes a device in a labelling round.
    """
    assert [by_node(record, "label_bytes_sent") for record in kd] == [
        [5312 if record["round"] in LABEL_ROUNDS else 0] * 6 for record in kd
    ]
    assert [record["labels"].get("sent") for record in kd] == [None, None, 1, None, 1, None]
    assert [record["labels"].get("used") for record in kd] == [None, None, None, 1, None, 1]


# Joules


@pytest.mark.parametrize("method", ["kd", "witness"])
def test_a_labelling_round_costs_more_by_the_price_of_labelling(
    method: str, kd: Records, witnessed: Records
):
    """On a Raspberry Pi 4: 3.4 W, 7.2e9 FLOP a second."""
    found = kd if method == "kd" else witnessed
    kind = {"kd": "kd", "witness": "idkd"}[method]
    work = [measure_work(make_learner({**SIX, "method": kind}, k)) for k in range(6)]
    seconds = [w.in_phase["label"] / 7.2e9 for w in work]
    train, label = found[0], found[2]
    for key, watts in (("compute_j", 3.4), ("simulated_s", 1.0)):
        more = [b - a for a, b in zip(by_node(train, key), by_node(label, key), strict=True)]
        assert more == pytest.approx([watts * s for s in seconds], rel=1e-9) and min(more) > 0
    for t in (2, 4, 6):
        assert by_node(found[t - 1], "compute_j") == by_node(train, "compute_j")
    assert by_node(found[4], "compute_j") == by_node(label, "compute_j")


SMALL_J = 0.1


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder = tmp_path_factory.mktemp("small")
    return run(folder, "kd", energy__battery_j=SMALL_J, energy__pacing=False)


def test_a_device_that_cannot_pay_for_labelling_is_parked_and_labels_nothing(small: Records):
    """0.1 J a device, spent first. A round of both sensors takes 0.0195 J, labelling 0.0212 J more.

    They have 0.0611 J left in round 3, which pays for it, and 0.0009 J in round 5, which does not.
    """
    labels = [{n["partition"] for n in r["nodes"] if "sent" in n["labels"]} for r in small]
    assert labels == [set(), set(), {0, 1, 2, 3, 4, 5}, set(), {0, 1, 3, 4}, set()]
    for record, who in zip(small, labels, strict=True):
        for node in record["nodes"]:
            assert (node["label_bytes_sent"] > 0) == (node["partition"] in who)
            if record["round"] in LABEL_ROUNDS and node["partition"] not in who:
                assert not any(node["updates"].values()) and node["compute_j"] == 0
    # devices 2 and 5 learn from the labels of those beside them
    assert [n["labels"]["used"] for n in small[5]["nodes"]] == [1.0] * 6


@pytest.mark.parametrize("pacing", [True, False])
def test_a_battery_for_all_computing_pays_for_labelling_too(pacing: bool, tmp_path: Path):
    """battery-share = 1: every device trains in full in every round, and labels where it is due."""
    found = run(tmp_path, "kd", energy__battery_share=1.0, energy__pacing=pacing)
    for record in found:
        for node in record["nodes"]:
            assert set(node["updates"].values()) == {2}
            assert ("sent" in node["labels"]) == (record["round"] in LABEL_ROUNDS)
    last = list(found[-1]["battery_j"].values())
    # joint iterations of two sensors are cheaper than what was reckoned with
    assert last[:2] == pytest.approx([0, 0], abs=1e-9) and 0 <= last[2] < 1e-3


def test_paced_batteries_set_aside_what_labelling_takes(tmp_path: Path):
    """With half of what it takes, the first rounds wait, and the last labels are still sent."""
    found = run(tmp_path, "kd", energy__battery_share=0.5)
    assert all("sent" in n["labels"] for n in found[4]["nodes"])
    assert not any(any(n["updates"].values()) for n in found[0]["nodes"])


def test_no_battery_is_ever_overdrawn(small: Records):
    """What is left is what was there less what was spent, and is never below 0."""
    left = [SMALL_J] * 6
    for record in small:
        left = [b - j for b, j in zip(left, by_node(record, "compute_j"), strict=True)]
        assert list(record["battery_j"].values()) == pytest.approx(left, abs=1e-12)
        assert min(left) >= 0 and record["failed"] == {}


@pytest.mark.parametrize(
    "energy",
    [
        {"energy.battery-share": 0.2, "energy.pacing": False},
        {"energy.battery-j": 0.03, "wireless.enabled": True},
        {"energy.battery-j": 0.2, "wireless.enabled": True, "wireless.shared-band-hz": 1e7},
    ],
    ids=["no pacing", "radio", "shared band"],
)
def test_batteries_that_hardly_suffice(energy: dict[str, Any], tmp_path: Path):
    """Whatever devices can pay for, the run goes on and nobody is overdrawn."""
    found = run(tmp_path, "idkd", **energy)
    assert len(found) == NUM_ROUNDS
    assert all(min(record["battery_j"].values()) >= 0 for record in found)
    assert any(not any(updates.values()) for r in found for updates in by_node(r, "updates"))
    for record in found:
        for node in record["nodes"]:
            labels = "sent" in node["labels"]
            assert not labels or (record["round"] in LABEL_ROUNDS and any(node["updates"].values()))


# Once more


def test_the_same_seed_gives_the_same_lines_and_another_does_not(tmp_path: Path):
    """Byte for byte, labels and batteries included."""
    lines = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, "idkd", seed=seed, energy__battery_j=0.2, num_nodes=3)
        lines[name] = (tmp_path / name / "x" / "idkd" / "metrics.jsonl").read_bytes()
    assert b"labels" in lines["a"]
    assert lines["a"] == lines["b"] != lines["c"]


def test_a_comparison_runs_each_method_by_its_own_plan(tmp_path: Path):
    """D-PSGD knows no labels; IDKD after it gives the numbers of IDKD alone."""
    more = {"num-nodes": 3, "num-server-rounds": 4, "idkd.start": 0.25}
    run(tmp_path / "a", "idkd", **more, compare_with="dpsgd")
    plain = records(tmp_path / "a" / "x" / "dpsgd")
    assert all(record["labels"] == {} for record in plain)
    assert sum(record["label_bytes_sent_per_node"] for record in plain) == 0
    run(tmp_path / "b", "idkd", **more)
    alone, after = (
        (tmp_path / run / "x" / "idkd" / "metrics.jsonl").read_bytes() for run in ("a", "b")
    )
    assert alone == after


class Alternating(Options):
    """Rounds of a user's."""

    def phase(self, server_round: int, num_rounds: int) -> str:
        return f"{'even' if server_round % 2 == 0 else 'odd'} of {num_rounds}"


class Counting(DPSGD):
    """A method of a user's, that does as its plan says."""

    name = "counting"
    options_type: ClassVar[type[Options]] = Alternating
    seen: ClassVar[dict[int, set[str]]] = defaultdict(set)

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        self.seen[plan.server_round].add(plan.phase)
        return super().run_round(plan, inbox)


class Plain(Counting):
    """The same, all rounds alike."""

    name = "plain"
    options_type: ClassVar[type[Options]] = Options


def test_a_users_rounds_for_a_users_method(tmp_path: Path):
    """Beside a registered one, whose rounds stay its own."""
    Counting.seen.clear()
    more = {"num-nodes": 3, "num-server-rounds": 3, "compare_with": "kd"}
    assert len(run(tmp_path, "counting", Counting, **more)) == 3
    assert dict(Counting.seen) == {
        1: {"odd of 3"}, 2: {"even of 3"}, 3: {"odd of 3"}, 4: {""},
    }  # fmt: skip


def test_a_users_method_without_phases_runs_plain_gossip(tmp_path: Path):
    Counting.seen.clear()
    run(tmp_path, "plain", Plain, num_nodes=2, num_server_rounds=1)
    assert dict(Counting.seen) == {1: {""}, 2: {""}}
