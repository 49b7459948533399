"""Gossip rules and aggregation rules as axes: with any method, on rows, from settings to state."""

from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from helpers import FAST, make_learner, run_peers
from helpers_gossip import OnAParabola, Tracking, tracked
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flwr_dmml.base.errors import MethodError, SettingsError
from flwr_dmml.base.options import Group
from flwr_dmml.clients import DPSGD, find_methods
from flwr_dmml.gossip.aggregation.mean import Mean
from flwr_dmml.gossip.qg_dsgdm import QgDsgdmRule, QgOptions
from flwr_dmml.gossip.registry import find_aggregation, find_gossip
from flwr_dmml.gossip.rule import GossipRule, Mix, Steps
from flwr_dmml.graph.topology import metropolis_weights, spectral_gap
from flwr_dmml.learning.mixing import GOSSIP
from flwr_dmml.payload.plan import Inbox, Plan
from flwr_dmml.settings import find_parts, parse_settings

RULES = tuple(find_gossip())
MEAN = Mean(Group())


# ---- the mean ---------------------------------------------------------------------------------


def test_the_mean_by_hand() -> None:
    """1/2 (3, 0) + 1/4 (1, 4) + 1/4 (-1, 8) = (3/2 + 1/4 - 1/4, 1 + 2) = (3/2, 3)."""
    own, near = torch.tensor([[3.0, 0.0]]), torch.tensor([[[1.0, 4.0], [-1.0, 8.0]]])
    assert MEAN(own, near, torch.tensor([[0.5, 0.25, 0.25]])).tolist() == [[1.5, 3.0]]
    assert own.tolist() == [[3, 0]]  # left alone


def test_the_mean_with_nobody_changes_nothing() -> None:
    own = torch.rand(1, 50) * 1e6
    assert torch.equal(MEAN(own, torch.empty(1, 0, 50), torch.ones(1, 1)), own)


def test_rows_are_averaged_as_one_by_one_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    own, near = torch.randn(5, 37, generator=generator), torch.randn(5, 3, 37, generator=generator)
    weights = torch.softmax(torch.randn(5, 4, generator=generator), dim=1)
    each = [MEAN(own[k : k + 1], near[k : k + 1], weights[k : k + 1]) for k in range(5)]
    assert torch.equal(MEAN(own, near, weights), torch.cat(each))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 10), st.floats(0, 1), st.integers(0, 2**31), st.sampled_from([1e-3, 1.0]))
def test_mixing_keeps_the_mean_and_brings_nodes_together(
    n: int, probability: float, seed: int, scale: float
) -> None:
    """The spread sum_k ||x_k - mean||^2 shrinks at least by (1 - gap)^2.

    W is symmetric, so ||W (x - mean)|| <= sigma_2 ||x - mean||, and the gap is 1 - sigma_2.
    """
    graph = nx.gnp_random_graph(n, probability, seed=seed)
    weights = metropolis_weights(graph)
    draws = np.random.default_rng(seed).normal(size=(n, 20)) * scale
    blocks = torch.from_numpy(draws).float()  # [nodes, length]
    rows = []
    for k in range(n):
        near = sorted(graph[k])
        row = torch.tensor([[weights[k, j] for j in (k, *near)]], dtype=torch.float32)
        rows.append(MEAN(blocks[k : k + 1], blocks[near][None], row))
    before, after = blocks.double(), torch.cat(rows).double()
    mean = before.mean(dim=0)
    assert (after.mean(dim=0) - mean).abs().max() <= 1e-6 * scale
    spread, left = float((before - mean).square().sum()), float((after - mean).square().sum())
    rounding = 1e-6 * spread  # float32: up to 2 * 6e-8 of it, where the bound is tight
    assert left <= (1 - spectral_gap(weights)) ** 2 * spread + rounding + 1e-9 * scale**2
    if n > 1 and nx.is_connected(graph):
        assert left < spread


# ---- with any method --------------------------------------------------------------------------

REFUSED = {
    **{
        ("harmony", name): "chooses in every round whom it mixes with"
        for name, rule in find_gossip().items()
        if rule.static or rule.linear
    },
    **{("local", rule): "sends nothing" for rule in RULES if rule != "dsgdm"},
    **{(method, "sheaf-dmfl"): "reads its neighbours' blocks" for method in ("dmml-kd", "fedgen")},
}
"""Pairs that make no sense, and why."""
HEADLESS = "mla", "parse", "pmcmfl"
"""Their models have no heads of unequal shapes."""


@pytest.mark.parametrize("method", find_methods())
def test_every_method_runs_with_every_rule_or_is_refused_by_name(method: str) -> None:
    """On a line of devices with different sensors; each rule leaves other numbers than plain."""
    found = {}
    for rule in RULES:
        config = {
            **FAST,
            "num-nodes": 3,
            "num-server-rounds": 4,
            "topology": "line",
            "method": method,
            "gossip": rule,
            "modality-pattern": "audio+image",
        }
        if why := REFUSED.get((method, rule)):
            with pytest.raises(SettingsError, match=f"gossip = '{rule}': .*'{method}' {why}"):
                make_learner(config)
            continue
        if rule == "sheaf-dmfl" and method in HEADLESS:
            with pytest.raises(MethodError, match=r"no blocks 'head\.…'"):
                make_learner(config)
            continue
        peers = run_peers(config, num_rounds=4, evaluate_every=4)
        for record in peers.records:
            assert len(record.nodes) == 3 and not record.failed
        last = peers.records[-1]
        assert last.accuracy is not None
        # what training and mixing have left of every round
        found[rule] = [n.train_loss for r in peers.records for n in r.nodes], last.accuracy
    plain = found.get("dpsgd")
    alike = [rule for rule, numbers in found.items() if numbers == plain]
    alike = [rule for rule in alike if rule != "choco"]  # which here sends everything
    assert method == "local" or alike == ["dpsgd"], alike


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "sheaf-dmfl"])
def test_a_round_goes_on_from_the_state(rule: str) -> None:
    """State -> a fresh learner -> the same next round and payload, bit for bit."""
    config = {**FAST, "num-nodes": 2, "method": "dmml-kd", "gossip": rule, "topology": "line"}
    config |= {"modality-pattern": "audio+image", "stagger": 0.5}
    one, two, other = (make_learner(config, k) for k in (0, 0, 1))
    weights = dict.fromkeys(one.blocks(), (0.5, 0.5))
    inbox: Inbox = {}
    for t in (1, 2):
        plan = Plan(t, 3, neighbours=(1,) * bool(inbox), recipients=(1,))
        plan = Plan(**{**vars(plan), "weights": weights if inbox else {}})
        one.run_round(plan, inbox)
        theirs = Plan(t, 3, recipients=(0,))
        inbox = {1: other.run_round(theirs, {}).payload}
    state = one.state()
    kept = any(name.startswith(GOSSIP) for name in state)
    assert kept == (rule not in ("dpsgd", "dsgdm", "relaysgd", "choco"))
    two.load_state({name: value.clone() for name, value in state.items()})
    plan = Plan(3, 3, neighbours=(1,), recipients=(1,), weights=weights)
    a, b = one.run_round(plan, inbox), two.run_round(plan, inbox)
    assert a.metrics == b.metrics and a.rejected == b.rejected == []
    assert a.payload.keys() == b.payload.keys()
    assert all(torch.equal(a.payload[name], b.payload[name]) for name in a.payload)
    left, right = one.state(), two.state()
    assert left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("rule", ["k-gt", "mt", "d2", "gut", "decentlam"])
@pytest.mark.parametrize("method", ["dpsgd", "modality-mirror"])
def test_a_device_that_rests_says_so_or_begins_anew(method: str, rule: str) -> None:
    """What has not been trained is mixed as it is later."""
    config = {**FAST, "num-nodes": 2, "method": method, "gossip": rule, "num-server-rounds": 9}
    learner = make_learner({**config, "modality-pattern": "audio+image"})
    block = "encoder.audio"
    for t in (1, 2):
        learner.run_round(Plan(t, 3, phase="uni-modal"), {})
    before = learner.state()
    tracks = rule in ("k-gt", "mt", "d2")
    told = f"{GOSSIP}{block}#sent.{2 if rule in ('k-gt', 'mt') else 1}"
    assert not tracks or before[told].tolist() == [1]
    phase = "uni-modal" if method == "dpsgd" else "distil"
    learner.run_round(Plan(3, 3, phase=phase, by_modality={"audio": 0, "image": 0}), {})
    after = learner.state()
    if tracks:
        assert after[told].tolist() == [0]
        assert torch.equal(after[f"{GOSSIP}{block}#c"], before[f"{GOSSIP}{block}#c"])
    else:
        assert after[f"{GOSSIP}{block}#common"].tolist() == [0]
    learner.run_round(Plan(4, 0), {})  # nobody is near: nothing changes
    assert torch.equal(learner.state()[block], after[block])


def test_dmml_kd_with_quasi_global_momentum_is_not_plain_dmml_kd() -> None:
    config = {**FAST, "num-nodes": 4, "method": "dmml-kd", "local-iterations": 4}
    plain = run_peers(config, num_rounds=3).records[-1]
    quasi = run_peers({**config, "gossip": "qg-dsgdm"}, num_rounds=3).records[-1]
    assert plain.train_loss != quasi.train_loss and not quasi.failed


# ---- a rule of one's own ----------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [2, 200])
def test_a_rule_of_ones_own_sends_two_vectors(rounds: int) -> None:
    """Two rounds are the plain arithmetic; 200 end at (1 + 6 + 24) / 6, where plain gossip has a
    bias."""
    config = {
        **FAST,
        "num-nodes": 3,
        "modality-pattern": "audio",
        "topology": "line",
        "method": "on-a-parabola",
        "local-iterations": 3,
        "learning-rate": 0.02,
        "momentum": 0.0,
        "clip-norm": 0.0,
    }
    peers = run_peers(config, OnAParabola, num_rounds=rounds, rules=[Tracking])
    assert not any(r.failed for r in peers.records)
    found = [OnAParabola.final[k] for k in range(3)]
    assert found == pytest.approx(tracked(rounds, 3, 0.02), rel=1e-4)
    if rounds == 200:
        assert found == pytest.approx([31 / 6] * 3, rel=1e-3)


def test_a_second_vector_that_is_missing_costs_its_sender_only() -> None:
    """Its weight goes to the own copy, of both vectors."""
    parts = find_parts()
    base = make_learner({**FAST, "num-nodes": 2, "method": "dpsgd"}, 0)
    learner = DPSGD(base.partition, base.settings, base.options, Tracking(Group()))
    assert "tracking" not in parts.gossip
    block = "head.common"
    length = learner.block_lengths()[block]
    learner.load_state({block: torch.full((length,), 2.0)})
    plan = Plan(2, 0, neighbours=(1,), weights={block: (0.5, 0.5)})
    bad: Inbox = {1: {block: torch.zeros(length)}}
    outcome = learner.run_round(plan, bad)
    assert outcome.rejected == [f"1: block {block} is missing"]
    assert torch.equal(learner.state()[block], torch.full((length,), 2.0))
    good: Inbox = {1: {block: torch.zeros(length), f"{block}#1": torch.zeros(length)}}
    assert learner.run_round(plan, good).rejected == []
    assert torch.equal(learner.state()[block], torch.full((length,), 1.0))


def test_quasi_global_momentum_follows_each_parameter_by_its_own_steps() -> None:
    """One step of rate 0.1 from 1 to 0.8 for the first number, two for the second, none for the
    third: d = 2, 1, and m stays."""
    rule = QgDsgdmRule(QgOptions(mu=0.5))
    x = torch.ones(1, 3)
    state = rule.start(x) | {"m": torch.full((1, 3), 7.0)}
    steps = Steps(0.1, 0.9, torch.tensor([[1.0, 2.0, 0.0]]))
    _, state = rule.publish(x, x, state, steps)
    z = torch.tensor([[0.8, 0.8, 1.0]])
    alone = Mix((z,), (torch.empty(1, 0, 3),), torch.ones(1, 1), MEAN)
    _, state = rule.mixed(alone, state)
    expected = torch.tensor([[3.5 + 1.0, 3.5 + 0.5, 7.0]])
    assert torch.allclose(state["m"], expected)


# ---- settings ---------------------------------------------------------------------------------


def problem(**config: Any) -> str:
    given = {key.replace("_", "-").replace("--", "."): value for key, value in config.items()}
    with pytest.raises(SettingsError) as error:
        parse_settings(given, find_parts())
    head, *lines = str(error.value).splitlines()
    assert head == "the run config cannot work:" and len(lines) == 1, lines
    return lines[0].strip()


def test_the_rule_is_the_methods_own_unless_it_is_named() -> None:
    parts = find_parts()
    for method, rule in (("idkd", "qg-dsgdm-n"), ("kd", "qg-dsgdm-n"), ("dmml-kd", "leaky-d2")):
        assert parse_settings({"method": method}, parts).gossip_of(method).name == rule
    config = parse_settings({"method": "dmml-kd", "gossip": "qg-dsgdm", "qg-dsgdm.mu": 0.3}, parts)
    rule = config.gossip_of("dmml-kd")
    assert isinstance(rule, QgDsgdmRule) and rule.options.mu == 0.3
    assert config.resolved()["qg-dsgdm.mu"] == 0.3
    assert config.gossip_of("local").name == "dsgdm"  # who is compared with, and sends nothing


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"gossip": "push"}, "gossip = 'push': there are auto, beer, choco, d2, decentlam"),
        ({"aggregation": "largest"}, "aggregation = 'largest': there are balance, gated-ios"),
        (
            {"method": "dpsgd", "gossip": "qg-dsgdm", "optimizer": "adam"},
            "optimizer = 'adam': the momentum of the gossip rule 'qg-dsgdm' goes with sgd only",
        ),
        (
            {"method": "dpsgd", "gossip": "d2", "topology": "one-peer-exponential"},
            "topology = 'one-peer-exponential' with gossip rule 'd2': this graph changes every",
        ),
        (
            {"gossip": "relaysgd", "topology": "line", "exchange__top_k": 0.5},
            "exchange.top-k = 0.5: the gossip rule 'relaysgd' needs a block whole; allowed: 1",
        ),
        ({"qg_dsgdm__nu": 1.0}, "qg-dsgdm.nu = 1.0: unknown setting; there are qg-dsgdm.mu"),
    ],
)
def test_what_does_not_go_together_is_refused(config: dict[str, Any], words: str) -> None:
    assert problem(**config).startswith(words)


def test_a_rule_without_a_name_or_with_one_that_is_taken_is_refused() -> None:
    class Nameless(GossipRule):
        pass

    class Plain(GossipRule):
        name = "dpsgd"

    with pytest.raises(MethodError, match=r"^Nameless\.name must be set"):
        find_gossip([Nameless])
    with pytest.raises(MethodError, match=r"^two gossip rules are named 'dpsgd'"):
        find_gossip([Plain])
    with pytest.raises(MethodError, match=r"^aggregation rule '': .* is not a subclass"):
        find_aggregation([Nameless])  # type: ignore[list-item]


def test_a_linear_rule_goes_with_the_mean_only() -> None:
    class Largest(Mean):
        name = "largest"
        linear = False

        def __call__(self, own: Tensor, near: Tensor, weights: Tensor) -> Tensor:
            return torch.cat([own[:, None], near], dim=1).amax(dim=1)

    from flwr_dmml.settings import OwnParts

    parts = find_parts(OwnParts(aggregation=(Largest,)))
    with pytest.raises(SettingsError, match="aggregation = 'largest': the gossip rule 'd2' keeps"):
        parse_settings({"gossip": "d2", "aggregation": "largest"}, parts)
    config = parse_settings({"method": "dpsgd", "aggregation": "largest"}, parts)
    partition = make_learner({**FAST, "num-nodes": 2, "method": "dpsgd"}).partition
    learner = config.learner("dpsgd", partition)
    length = learner.block_lengths()["head.common"]
    learner.load_state({"head.common": torch.full((length,), 2.0)})
    plan = Plan(2, 0, neighbours=(1,), weights={"head.common": (0.9, 0.1)})
    learner.run_round(plan, {1: {"head.common": torch.full((length,), 5.0)}})
    assert torch.equal(learner.state()["head.common"], torch.full((length,), 5.0))


def test_rules_come_with_a_source_and_a_summary() -> None:
    rules: Sequence[Any] = [*find_gossip().values(), *find_aggregation().values()]
    for rule in rules:
        assert rule.paper and rule.__doc__ and len(rule.__doc__.splitlines()[0]) < 90
