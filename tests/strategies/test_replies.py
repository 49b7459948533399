"""What a device says is checked where it comes in: a liar is named, and costs only itself."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from math import inf, nan
from pathlib import Path
from typing import Any, ClassVar

import pytest
from flwr.app import ConfigRecord, Context, MetricRecord, RecordDict
from helpers import FAST, make_learner, run_peers
from helpers_liars import (
    EVIL,
    FEW,
    LIAR,
    LIES,
    PLAIN,
    Change,
    Lying,
    hello,
    lines_of,
    metric,
    of_others,
    replaced,
    run_four,
)

from flwr_dmml.base.text import one_line
from flwr_dmml.clients import DPSGD
from flwr_dmml.clients.hello import introduction
from flwr_dmml.energy.costs import Work
from flwr_dmml.energy.equipment import Equipment
from flwr_dmml.payload.plan import Averaged, Carried, Plan
from flwr_dmml.report import read_run
from flwr_dmml.report.summary import claims
from flwr_dmml.strategies import NoDevicesError
from flwr_dmml.strategies.member import Member, read_member
from flwr_dmml.strategies.reasons import ReplyError
from flwr_dmml.strategies.replies import (
    Account,
    Claim,
    check_metrics,
    check_payload,
    most_bytes,
    read_reply,
    told_bytes,
)
from flwr_dmml.strategies.roster import Roster
from flwr_dmml.tracking.ending import read_ending
from flwr_dmml.transport.messages import METRICS, NOTES, REJECTED, REPORT, join


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, Any]]]:
    """Return the rounds of a run in which device 1 fails instead of lying."""

    @cache
    def rounds(kind: str) -> list[dict[str, Any]]:
        return lines_of(run_four(tmp_path_factory.mktemp("silent"), Lying(kind, None)))

    return rounds


@pytest.mark.parametrize("name", LIES)
def test_a_liar_costs_only_itself_and_is_named(
    name: str, silent: Callable[[str], list[dict[str, Any]]], tmp_path: Path
):
    """The others' figures are those of a run in which that device fails in the same replies."""
    kind, change, words = LIES[name]
    method = run_four(tmp_path, Lying(kind, change))
    lines, end = lines_of(method), json.loads((method.parent / "end.json").read_text())
    assert of_others(lines) == of_others(silent(kind)) and len(lines) == 3
    log = (method.parent / "log.txt").read_text().splitlines()
    (first, *_) = [line for line in log if words in line]
    assert " WARNING " in first and re.search(r"node (1|1001)( \(partition 1\))?:? ", first), first
    failing = {"hello": [], "train": [2, 3], "closing": [3], "state": []}[kind]
    assert [line["round"] for line in lines if str(LIAR) in line["failed"]] == failing
    assert all(words in line["failed"][str(LIAR)] for line in lines if line["failed"])
    assert all(set(line["failed"]) <= {str(LIAR)} for line in lines)
    assert end["ended"] == "finished"
    assert (
        end["methods"]["dpsgd"]["finished"]
        == {
            "hello": [0, 2, 3],
            "train": [0, 1, 2, 3],
            "closing": [0, 2, 3],
            "state": [0, 1, 2, 3],
        }[kind]
    )


def test_a_run_in_which_all_lie_ends_with_their_reasons(tmp_path: Path):
    change = LIES["accuracy NaN"][1]

    class All(Lying):
        def __call__(self, message: Any, context: Any) -> Any:
            reply = super().__call__(message, context)
            if message.metadata.message_type == "train":
                change(reply.content)
            return reply

    with pytest.raises(NoDevicesError, match=r"every device failed: node 0, 1, 2, 3: its reply is"):
        run_four(tmp_path, All("hello", lambda content: None))
    end = read_ending(tmp_path / "x")
    assert end and end.ended == "failed" and "test.accuracy is nan" in end.reason
    assert end.methods["dpsgd"].rounds == 0 and end.methods["dpsgd"].finished == []
    assert all("nan" in own.reason for own in end.methods["dpsgd"].failures.values())


def test_a_liar_among_rows_is_named_too(tmp_path: Path):
    """An engine that runs all devices together gets no messages from them."""
    lied, failed = (
        run_four(tmp_path / method, None, method=method) for method in ("lying-row", "failing-row")
    )
    assert of_others(lines_of(lied)) == of_others(lines_of(failed))
    why = "its reply is refused: its metric test.uar is 7.0; allowed: 0 to 1"
    assert [line["failed"] for line in lines_of(lied)] == [{}, {"1": why}, {"1": why}]
    assert lines_of(failed)[1]["failed"] == {"1": f"RuntimeError: {PLAIN}"}
    kept = json.loads((lied / "checkpoints" / "round-00003" / "state.json").read_text())
    assert set(kept["about"]["published"]) == {"0", "2", "3"}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("hello", hello("flops-solo", [1e24])),
        ("hello", hello("payload-bytes", 1 << 30)),
        ("hello", hello("modalities", ["[/x]"])),  # markup to the library that draws tables
        ("train", metric("near.image", 1e30)),
        ("train", metric("mix.disagreement", 1e30)),
    ],
)
def test_what_is_in_range_ends_no_run(kind: str, change: Change, tmp_path: Path):
    """Rounds are planned by these numbers, with batteries and radio."""
    power = {"energy.battery-share": 0.5, "wireless.enabled": True, "allocation.rule": "max-min"}
    method = run_four(tmp_path, Lying(kind, change), **power)
    assert len(lines_of(method)) == 3 and (method / "end.json").exists()


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return lines_of(run_four(tmp_path_factory.mktemp("honest"), Lying("nothing", None)))


def test_a_blame_is_the_word_of_the_one_who_says_it(honest: list[dict[str, Any]], tmp_path: Path):
    """On the ring 0-1-2-3 device 1 blames both its neighbours, 3, itself, and somebody unknown."""
    blamed = [f"{k}: block head.common holds {EVIL}" for k in (0, 2, 3, 1, 99)] + ["nonsense"]
    method = run_four(tmp_path, Lying("train", replaced(REPORT, REJECTED, blamed)))
    lines = lines_of(method)
    assert of_others(lines) == of_others(honest)
    assert not any(line["failed"] for line in lines)
    told = [line["nodes"][LIAR].get("claims", {}) for line in lines]
    assert [list(claims) for claims in told] == [["0", "2"], ["0", "2"], []]
    assert told[0]["0"] == f"block head.common holds {PLAIN}"
    assert [line["nodes"][LIAR]["rejected"] for line in lines] == [6, 6, 0]
    log = (method.parent / "log.txt").read_text()
    assert f"Round 1: node 1 rejects from node 0: block head.common holds {PLAIN}" in log
    assert f"Round 1: node 1 says: 3: block head.common holds {PLAIN}" in log
    assert "\n[ROUND 3/3] accuracy mean 0.999" not in log
    table = claims(read_run(method.parent))
    assert table and [row[:5] for row in table.rows] == [
        ["1", "0", "dpsgd", "2", "1"],
        ["1", "2", "dpsgd", "2", "1"],
    ]


class Blaming(DPSGD):
    """In round 2, devices that ``by`` names say that they could not use what ``of`` sent."""

    name = "blaming"
    by: ClassVar[set[int]] = set()

    def begin_mixed(self, plan: Plan, inbox: Any, apart: float | None) -> None:
        super().begin_mixed(plan, inbox, apart)
        if self.partition.partition_id in self.by and plan.server_round == 2:
            self.rejected.append("1: block head.common is missing")


@pytest.mark.parametrize(("by", "fails"), [({0}, False), ({0, 2}, True), ({0, 2, 3}, True)])
def test_a_sender_has_failed_if_all_whom_it_should_have_reached_say_so(by: set[int], fails: bool):
    """1's neighbours on the ring of four are 0 and 2; 3 is nobody whom it sends anything."""
    Blaming.by = by
    peers = run_peers({**FEW, "method": "blaming"}, Blaming, num_rounds=3, evaluate_every=1)
    failed = {r.round: r.failed for r in peers.records if r.failed}
    why = "rejected by all of its 2 neighbours: block head.common is missing"
    assert failed == ({1: {1: why}} if fails else {})
    claims = {n.partition: n.claims for n in peers.records[0].nodes if n.claims}
    assert claims == {p: {1: "block head.common is missing"} for p in by & {0, 2}}


@pytest.mark.parametrize("by", [{0}, {1}])
def test_of_two_devices_neither_condemns_the_other(by: set[int]):
    Blaming.by = by
    config = {**FEW, "num-nodes": 2, "method": "blaming"}
    peers = run_peers(config, Blaming, num_rounds=2, evaluate_every=1)
    assert not any(record.failed for record in peers.records)


@pytest.mark.parametrize("kind", ["train", "state"])
def test_no_word_of_a_device_forges_a_line_or_reaches_the_terminal(kind: str, tmp_path: Path):
    notes = Lying(kind, replaced(NOTES, NOTES, [EVIL] * 20))
    log = (run_four(tmp_path, notes).parent / "log.txt").read_text()
    assert log.count(f"node 1 {PLAIN}\n") == 10 * (2 if kind == "train" else 3)
    assert not any(line.startswith("[ROUND") for line in log.splitlines())
    assert all(c.isprintable() or c in "\n\t" for c in log)


def test_an_error_is_told_in_one_line(silent: Callable[[str], list[dict[str, Any]]]):
    (reason,) = {line["failed"]["1"] for line in silent("train")[1:]}
    assert reason == f"RuntimeError: {PLAIN}"


# By hand


MEMBER = Member(7, 1, ("audio",), {"head": 10}, 168, {"head": 168}, {"head": "x"}, 9, Work(1.0, {}))
SOUND = {"test.accuracy": 1.0, "train.loss": -2.5, "mine": 1e30, "speed.audio": 0, "near.image": 3}


def test_sound_metrics_come_back_as_numbers():
    found = check_metrics(SOUND, {"audio", "image"})
    assert found == SOUND and all(type(x) is float for x in found.values())
    assert check_metrics({"energy.measured-j": inf}, set())["energy.measured-j"] != inf  # a meter's


@pytest.mark.parametrize(
    "wrong",
    [
        {"test.uar": 1.1},
        {"test.without.audio": -1e-6},
        {"validation.accuracy": nan},
        {"labels.auroc": 2.0},
        {"speed.audio": -1.0},
        {"mine": 10**400},
        {"letter.bytes": float(1 << 40)},
        {"x" * 121: 1.0},
        {"a\nb": 1.0},
        {f"m{i}": 1.0 for i in range(501)},
        {"train.loss": "0.5"},
        {"train.loss": None},
    ],
)
def test_other_metrics_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ReplyError):
        check_metrics(SOUND | wrong, {"audio", "image"})


def test_each_round_of_a_reply_is_read_as_it_was_written():
    plans = [Plan(t, 5, neighbours=(3,) * (t < 12)) for t in range(1, 14)]
    metrics = MetricRecord(join({"train.loss": float(t)} for t in range(13)))
    reports = ConfigRecord(join([{}] * 11 + [{REJECTED: ["3: late"]}, {}]))
    reply = read_reply(RecordDict({METRICS: metrics, REPORT: reports}), MEMBER, plans, {"audio"})
    assert [account.metrics for account in reply.rounds] == [
        {"train.loss": float(t)} for t in range(13)
    ]
    assert [account.claims for account in reply.rounds] == [
        [Claim(None, "3: late")] if t == 11 else [] for t in range(13)
    ]
    assert reply.notes == reply.confusion == [] and not reply.payload
    assert read_reply(RecordDict(), MEMBER, plans[:1], set()).rounds == [Account({})]


def test_a_payload_is_of_the_names_and_sizes_that_are_expected():
    """Of ``head`` 168 bytes were told: 4 times that, and a header, for each receiver."""
    mean = Averaged("far", (0, 2), 100)
    plan = Plan(2, 5, recipients=(0, 2), carries=(Carried(0, 0, ("head",)),), averages=(mean,))
    limits = most_bytes([MEMBER, replace(MEMBER, blocks={"far": 100}, block_bytes={})])
    most, of_far = 4 * (168 + 1024), 4 * (400 + 1024)
    assert limits == {"head": most, "far": of_far}
    check_payload({"head@0": most, "head@2": most, "stats.x": 1 << 28}, MEMBER, plan, limits)
    check_payload({"head": 168, "head#1": 99, "head<0": most}, MEMBER, plan, limits)
    check_payload({"head": 3 * most, "far<-2": of_far - 1, "far<-2#scale": 1}, MEMBER, plan, limits)
    for wrong, words in (
        ({"head": 1 << 20}, f"have {1 << 20} bytes; allowed: {3 * most + of_far}"),
        ({"head": 168, "far<-1": 10}, "carries far<-1, which was not asked for"),
        ({"head": 168, "stats.x": (1 << 28) + 1}, "bytes of statistics"),
        ({"head": 168, "head<2": 10}, "carries head<2, which was not asked for"),
        ({"stats.x": 1}, "its payload lacks head"),
        ({"head": 168, "other": 1}, "unknown blocks: other"),
    ):
        with pytest.raises(ReplyError, match=words):
            check_payload(wrong, MEMBER, plan, limits)


def test_what_a_device_announces_alone_is_no_block_of_letters():
    members = {k: replace(MEMBER, partition_id=k, blocks={"head": 42}) for k in range(3)}
    members[1] = replace(members[1], blocks={"head": 42, "mine": 1 << 28})
    roster = Roster(members)
    assert roster.block_lengths == {"head": 42, "mine": 1 << 28}
    assert roster.shared_blocks == {"head": 42}


def test_what_a_letter_holds_is_believed_as_far_as_it_can_be():
    assert told_bytes({"payload.bytes": 300.0, "letter.label-bytes": 20.0}, 250) == (300, 20)
    for wrong in ({}, {"payload.bytes": 1e9}, {"payload.bytes": 1.0, "letter.label-bytes": 2.0}):
        with pytest.raises(ReplyError):
            told_bytes(wrong, 250)


def introduced() -> ConfigRecord:
    """Return what an honest device says of itself."""
    learner = make_learner({**FAST, "method": "dmml-kd", "num-nodes": 3}, 2)
    return introduction(learner, Context(1, 2, {}, RecordDict(), {}))


def test_an_honest_introduction_is_read_whole():
    about = introduced()
    member = read_member(7, about)
    assert (member.partition_id, member.modalities) == (2, ("audio", "image"))
    assert list(member.blocks) == about["block-names"] and member.num_classes == 10
    assert sum(member.class_counts) == member.num_train == 36
    assert member.work.joint > 0 and set(member.work.solo) == {"audio", "image"}
    assert member.equipment == Equipment()
    own = Equipment("phone", 12.5, "ina", "Energy through VDD_IN.")
    assert read_member(7, ConfigRecord({**about, **own.told()})).equipment == own


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("partition-id", 1.0),
        ("partition-id", "0"),
        ("modalities", []),
        ("modalities", ["audio", "audio"]),
        ("modalities", ["audio+image", "image"]),
        ("block-lengths", [1]),
        ("block-lengths", [1 << 31] * 8),
        ("block-bytes", [0] * 8),
        ("payload-bytes", 1 << 40),
        ("num-train", -1),
        ("num-classes", 1 << 20),
        ("class-counts", [1, 2]),
        ("class-names", ["a"] * 11),
        ("flops-joint", 1e25),
        ("flops-in.label", nan),
        ("battery-j", -1.0),
        ("profile", "toaster\x1b[2J"),
        ("public-key", b"x" * (1 << 17)),
        ("data", 3),
    ],
)
def test_other_introductions_are_refused_by_the_entry(key: str, value: Any):
    about = introduced()
    about[key] = value
    with pytest.raises(ReplyError) as error:
        read_member(7, about)
    assert key.partition(".")[0] in str(error.value) and str(error.value).isprintable()


def test_free_text_of_an_introduction_is_made_plain():
    member = read_member(7, ConfigRecord({**introduced(), "data": EVIL, "meter": EVIL}))
    assert member.data == member.equipment.meter == PLAIN


@pytest.mark.parametrize(
    ("text", "most", "plain"),
    [
        ("a  b\r\n\tc", 99, "a b c"),
        ("x\x00\x1b[31m\x7f\x9b\u2028\ud800é猫", 99, r"x\x00\x1b[31m\x7f\x9b \ud800é猫"),
        ("abcdef", 6, "abcdef"),
        ("abcdefg", 6, "abcde…"),
        (" " * 50 + "a", 6, "…"),
    ],
)
def test_one_line(text: str, most: int, plain: str):
    assert one_line(text, most) == plain
