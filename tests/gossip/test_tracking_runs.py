"""Corrections in real runs: failures, devices that come and go, unequal iterations, settings."""

from collections.abc import Collection
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import networkx as nx
import numpy as np
import pytest
import torch
from helpers import FAST, make_learner, run_peers
from helpers_gossip import OnAParabola
from torch import Tensor

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import Learner, make_client_app
from flwr_dmml.energy.allocation import Allocation, RoundProblem
from flwr_dmml.engine import FlowerApp, run_app
from flwr_dmml.learning.crew import Crew
from flwr_dmml.payload.compression import AT, read_places
from flwr_dmml.payload.plan import Inbox, Outcome, Payload, Plan
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.strategies import PeerStrategy, RunStoppedError, make_server_app

LINE: dict[str, Any] = {
    **FAST,
    "num-nodes": 3,
    "modality-pattern": "audio",
    "topology": "line",
    "method": "parabola",
    "local-iterations": 3,
    "learning-rate": 0.05,
    "momentum": 0.0,
    "clip-norm": 0.0,
}
BEST = 31 / 6
"""Of (k + 1) (x - a_k)^2 / 2 with a = 1, 3, 8."""


class Parabola(OnAParabola):
    """One that fails where it is told to, and notes what it is told."""

    name = "parabola"
    gossip = "dpsgd"
    fails: ClassVar[Collection[tuple[int, int]]] = ()
    told: ClassVar[dict[tuple[int, int], Plan]] = {}

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        me = self.partition.partition_id, plan.server_round
        self.told[me] = plan
        if me in self.fails:
            raise RuntimeError("out of order")
        return super().run_round(plan, inbox)


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    Parabola.fails, Parabola.told = (), {}
    Parabola.final.clear()


def final() -> list[float]:
    return [Parabola.final[k] for k in range(3) if k in Parabola.final]


# ---- failures and owners ----------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["k-gt", "mt", "d2"])
def test_all_owners_start_anew_where_one_has_failed_and_end_at_the_optimum(rule: str) -> None:
    """Device 1 fails in round 2: its neighbours have mixed what it sent, and it has not theirs."""
    Parabola.fails = {(1, 2)}
    config = {**LINE, "gossip": rule, "momentum": 0.5 if rule == "mt" else 0.0}
    run_peers(config, Parabola, num_rounds=100)
    anew = {t for (k, t), plan in Parabola.told.items() if plan.anew}
    assert anew == {3, 4}  # without it, and with it again
    assert Parabola.told[0, 3].anew == ("model",)
    assert final() == pytest.approx([BEST] * 3, rel=1e-3)


def test_without_that_it_would_end_elsewhere() -> None:
    Parabola.fails = {(1, 2)}

    class Deaf(Parabola):
        name = "parabola"

        def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
            return super().run_round(Plan(**{**vars(plan), "anew": ()}), inbox)

    run_peers({**LINE, "gossip": "k-gt"}, Deaf, num_rounds=100)
    assert abs(sum(final()) / 3 - BEST) > 0.05


class Resting(PeerStrategy):
    """Device 0 takes part in three rounds of four."""

    def participants(self, server_round: int, connected: Collection[int]) -> Collection[int]:
        return [k for k in connected if k or server_round % 4]


def test_a_device_that_only_rests_keeps_its_correction() -> None:
    """It is there, and comes back: nobody starts anew, and the end is the optimum of all."""
    run_peers({**LINE, "gossip": "k-gt"}, Parabola, num_rounds=150, kind=Resting)
    assert not any(plan.anew for plan in Parabola.told.values())
    assert final() == pytest.approx([BEST] * 3, rel=2e-3)


class Away(PeerStrategy):
    """Device 0 rests in rounds 4 and 5."""

    def participants(self, server_round: int, connected: Collection[int]) -> Collection[int]:
        return [k for k in connected if k or server_round not in (4, 5)]


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("rule", ["k-gt", "d2"])
def test_a_device_that_rests_while_the_others_start_anew_does_so_when_it_is_back(
    rule: str, stopped: bool, tmp_path: Path
) -> None:
    """Device 2 fails in round 3, so that all others start anew in rounds 4 and 5."""
    Parabola.fails = {(2, 3)}
    app = FlowerApp({}, make_server_app(Away, Parabola), make_client_app(Parabola))
    config = {
        **LINE, "gossip": rule, "num-server-rounds": 80, "run-dir": str(tmp_path),
        "compare-with": "", "evaluate-every": 100,
    }  # fmt: skip
    if stopped:
        after_5 = (n == 5 for n in count(1))
        with pytest.raises(RunStoppedError, match="after round 5"):
            run_app(app, 3, config | {"run-name": "r"}, stopping=lambda: next(after_5))
    run_app(app, 3, config | ({"resume": "r"} if stopped else {}))
    anew = {(t, k) for (k, t), plan in Parabola.told.items() if plan.anew}
    assert anew == {(4, 1), (4, 2), (5, 1), (5, 2), (6, 0)}
    assert final() == pytest.approx([BEST] * 3, rel=1e-3)


def test_only_rules_that_need_it_are_told_of_owners() -> None:
    Parabola.fails = {(1, 3)}
    run_peers({**LINE, "gossip": "dpsgd"}, Parabola, num_rounds=5)
    assert not any(plan.anew for plan in Parabola.told.values())


# ---- unequal iterations -----------------------------------------------------------------------

TAU = (2, 4, 6)


class Unequal(PeerStrategy):
    """Devices train for 2, 4 and 6 iterations."""

    def allocate(self, problem: RoundProblem, server_round: int) -> Allocation:
        return Allocation.of(problem, np.array([[n] for n in TAU]))


def arithmetic(rounds: int, *, scaled: bool, momentum: float, lr: float = 0.05) -> list[float]:
    """D-PSGD on the line, a device's progress scaled to the mean of 4 iterations, at most by 4."""
    w = np.array([[2 / 3, 1 / 3, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 3, 2 / 3]])
    a, s, x = np.array([1.0, 3.0, 8.0]), np.array([1.0, 2.0, 3.0]), np.zeros(3)

    def weight(steps: int) -> float:
        return sum(sum(momentum**i for i in range(n)) for n in range(1, steps + 1))

    for _ in range(rounds):
        z = x.copy()
        for k, steps in enumerate(TAU):
            v = 0.0
            for _ in range(steps):
                v = momentum * v + s[k] * (z[k] - a[k])
                z[k] -= lr * v
        scale = np.array([min(4.0, weight(4) / weight(n)) for n in TAU]) if scaled else np.ones(3)
        x = w @ (x + scale * (z - x))
    return x.tolist()


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("scaled", [False, True])
def test_progress_is_scaled_to_the_mean_number_of_iterations(scaled: bool, momentum: float) -> None:
    config = {**LINE, "gossip-normalise": scaled, "momentum": momentum, "local-iterations": 6}
    run_peers(config, Parabola, num_rounds=40, kind=Unequal)
    assert Parabola.told[0, 7].steps == {"": 4.0, "audio": 4.0}
    expected = arithmetic(40, scaled=scaled, momentum=momentum)
    assert final() == pytest.approx(expected, rel=1e-4)


def test_scaled_gossip_ends_near_the_common_optimum_and_raw_gossip_does_not() -> None:
    ends = (arithmetic(600, scaled=x, momentum=0.0, lr=0.005) for x in (True, False))
    scaled, raw = (sum(end) / 3 for end in ends)
    assert abs(scaled - BEST) < 0.25 < 0.5 < abs(raw - BEST)


@pytest.mark.parametrize("rule", ["k-gt", "mt", "d2"])
def test_exact_rules_need_no_equal_iterations(rule: str) -> None:
    config = {**LINE, "gossip": rule, "learning-rate": 0.03, "local-iterations": 6}
    config |= {"momentum": 0.5 if rule == "mt" else 0.0}
    run_peers(config, Parabola, num_rounds=100, kind=Unequal)
    assert final() == pytest.approx([BEST] * 3, rel=1e-3)


def test_each_block_has_the_mean_of_those_who_train_it() -> None:
    """Updates 6 of audio and 2 of image, of which one is joint: 6 iterations, 7 on average."""
    config = {**FAST, "num-nodes": 2, "modality-pattern": "audio+image", "method": "dpsgd"}
    learner = make_learner({**config, "stagger": 0.5})
    steps = {"": 7.0, "audio": 4.0, "image": 3.0}
    plan = Plan(1, 6, by_modality={"audio": 6, "image": 2}, steps=steps)
    assert learner.planned(plan) == {
        "head.common": (7.0, 7.0),
        "encoder.audio": (6.0, 4.0),
        "encoder.image": (2.0, 3.0),
        "head.audio": (6.0, 4.0),
        "head.image": (2.0, 3.0),
    }
    assert learner.planned(Plan(1, 6)) == {}


@pytest.mark.parametrize("rule", ["dpsgd", "dsgdm", "qg-dsgdm-n", "decentlam", "d2", "relaysgd"])
def test_unequal_devices_in_one_process_are_those_of_messages_to_the_last_bit(rule: str) -> None:
    """Scaled progress, in rows and by itself; another state than without scaling."""
    ends: dict[bool, list[dict[str, Tensor]]] = {}
    for scaled in (True, False):
        config = {
            **FAST,
            "num-nodes": 3,
            "topology": "line",
            "method": "dpsgd",
            "gossip": rule,
            "modality-pattern": "audio+image,audio,image",
            "gossip-normalise": scaled,
        }
        alone, together = ([make_learner(config, k) for k in range(3)] for _ in range(2))
        crew, sent = Crew(dict(enumerate(together))), dict[int, Payload]()
        updates = {"audio": 5, "image": 2}, {"audio": 1}, {"image": 4}
        steps = {"": 10 / 3, "audio": 3.0, "image": 3.0}
        for t in (1, 2, 3):
            plans = {}
            for k, learner in enumerate(alone):
                near = tuple(sorted(nx.path_graph(3)[k]))
                weights = {
                    block: (0.4, *(0.3 for _ in near)) if len(near) > 1 else (0.7, 0.3)
                    for block in ("head.common",)
                    if block in learner.block_names
                }
                given = {"neighbours": near, "weights": weights} if t > 1 else {}
                plans[k] = Plan(t, 5, by_modality=updates[k], steps=steps, recipients=near, **given)
            inboxes: dict[int, Inbox] = {
                k: {n: sent[n] for n in plan.neighbours} for k, plan in plans.items()
            }
            outcomes = {k: alone[k].run_round(plan, inboxes[k]) for k, plan in plans.items()}
            sent = {k: outcome.payload for k, outcome in outcomes.items()}
            for outcome in crew.run(plans).values():
                assert isinstance(outcome, Outcome) and not outcome.rejected
        ends[scaled] = [learner.state() for learner in alone]
        for mine, theirs in zip(ends[scaled], together, strict=True):
            for name, value in theirs.state().items():
                assert torch.equal(mine[name], value), name
    same = torch.equal(ends[True][1]["encoder.audio"], ends[False][1]["encoder.audio"])
    assert same == (rule == "d2")  # it scales by itself


# ---- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"gossip": "k-gt", "optimizer": "adam"},
            "optimizer = 'adam': the correction of the gossip rule 'k-gt' goes with sgd only",
        ),
        (
            {"gossip": "decentlam", "optimizer": "adamw"},
            "optimizer = 'adamw': the momentum of the gossip rule 'decentlam' goes with sgd only",
        ),
        (
            {"gossip": "gut", "exchange.top-k": 0.5},
            "exchange.top-k = 0.5: the gossip rule 'gut' needs a block whole",
        ),
        (
            {"gossip": "k-gt", "couriers": "forward"},
            "couriers = 'forward': the gossip rule 'k-gt' needs what all neighbours have now",
        ),
        (
            {"gossip": "decentlam", "topology": "random-matching"},
            "topology = 'random-matching' with gossip rule 'decentlam': this graph changes every",
        ),
        ({"gossip-normalise": "yes"}, "gossip-normalise = 'yes': must be \"auto\", true or false"),
    ],
)
def test_what_does_not_go_together_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_settings({"method": "dpsgd", **config}, find_parts())
    assert words in str(error.value)


def test_a_second_vector_that_was_not_trained_is_neither_yes_nor_no() -> None:
    learner = make_learner({**FAST, "num-nodes": 2, "method": "dpsgd", "gossip": "k-gt"})
    block, length = "head.common", learner.block_lengths()["head.common"]
    told = torch.cat([torch.zeros(length), torch.tensor([0.5])])
    plan = Plan(2, 0, neighbours=(1,), weights={block: (0.5, 0.5)})
    outcome = learner.run_round(plan, {1: {block: told, f"{block}#1": torch.zeros(length)}})
    assert outcome.rejected == [
        f"1: block {block} says 0.5 of whether it was trained; allowed: 0 and 1"
    ]


def test_k_gt_goes_with_half_of_the_entries_and_with_int8() -> None:
    """Models are compressed; the second vector is sent as it is, so that corrections sum to 0."""
    config: dict[str, Any] = {**FAST, "num-nodes": 3, "method": "dpsgd", "gossip": "k-gt"}
    config |= {"modality-pattern": "audio+image", "exchange.top-k": 0.5, "method": "sums"}
    peers = run_peers({**config, "exchange.precision": "int8"}, Sums, num_rounds=4)
    assert not any(record.failed for record in peers.records)
    assert Sums.largest and max(Sums.largest) > 1e-3
    assert float(sum(Sums.corrections).abs().max()) < 1e-5 * max(Sums.largest) + 1e-6


class Comparing(Learner):
    """Notes how far neighbours' vectors are from what it has sent, where they have sent nothing."""

    name = "comparing"
    apart: ClassVar[list[float]] = []
    scaled: ClassVar[list[float]] = []

    def begin(self, plan: Plan, inbox: Inbox) -> Inbox:
        self.came = inbox
        return super().begin(plan, inbox)

    def mix(self, plan: Plan, inbox: Inbox) -> tuple[float, list[str]]:
        trained = self.flat.copy()
        for j, payload in self.came.items():
            for block, n in self.block_lengths().items():
                own = self.mixer.sent(block, {})[block]
                unsent = torch.ones(n, dtype=torch.bool)
                unsent[read_places(payload[block + AT], n)] = False
                self.apart.append(float((inbox[j][block][:n] - own)[unsent].abs().max()))
                self.scaled.append(float((trained[block] - own)[unsent].abs().max()))
        return super().mix(plan, inbox)


def test_where_a_neighbour_sends_nothing_it_is_taken_to_have_what_the_device_has_sent() -> None:
    """Not what it has trained: with unequal iterations leaky-d2 sends scaled progress."""
    config = {**FAST, "num-nodes": 3, "modality-pattern": "audio", "method": "comparing"}
    config |= {"gossip": "leaky-d2", "exchange.top-k": 0.2, "local-iterations": 6}
    peers = run_peers(config, Comparing, num_rounds=3, kind=Unequal)
    assert not any(record.failed for record in peers.records)
    assert max(Comparing.scaled) > 1e-3 and max(Comparing.apart) == 0


class Sums(Learner):
    """Keeps the corrections of all devices at the end."""

    name = "sums"
    corrections: ClassVar[list[Tensor]] = []
    largest: ClassVar[list[float]] = []

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        outcome = super().run_round(plan, inbox)
        if not plan.iterations:
            c = self.mixer.state_of("head.common")["c"]
            self.corrections.append(c)
            self.largest.append(float(c.abs().max()))
        return outcome
