"""RelaySGD: averages on a tree, stepped by hand; rubbish and failures on the way; refused graphs.

Most runs are of points: device k minimises (x - a_k)^2 / 2, so that a step of rate r takes its x to
(1 - r) x + r a_k. With r = 1 it is at a_k after training, whatever mixing has made of x.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import networkx as nx
import pytest
import torch
from helpers import FAST, make_learner, run_peers
from torch import Tensor, nn

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.base.options import Group
from flwr_dmml.clients import DPSGD, DSGDm, Learner, RelaySGD, make_client_app
from flwr_dmml.engine import FlowerApp, run_app
from flwr_dmml.gossip.relaysgd import RelaySGDRule
from flwr_dmml.graph.topology import EdgeList, Topology, TopologyError, make_topology
from flwr_dmml.learning.batch import Batch
from flwr_dmml.learning.speedometer import SPEEDS
from flwr_dmml.payload.blocks import addressed, flatten
from flwr_dmml.payload.plan import Inbox, Outcome, Plan
from flwr_dmml.strategies import PeerStrategy, make_server_app
from flwr_dmml.transport import size_bytes
from flwr_dmml.transport.messages import pack

BOTH = {"modality-pattern": "audio+image"}
LINE: dict[str, Any] = {**FAST, **BOTH, "method": "relaysgd", "num-nodes": 3, "topology": "line"}

TREE = ((0, 1), (1, 2), (2, 3), (1, 4), (4, 5), (4, 6))
"""Seven nodes, the longest way (3-2-1-4-5) of four links; written in any order."""


class Point(nn.Module):
    """One parameter."""

    def __init__(self, x: float) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([x]))


class OnAPoint(Learner):
    """Mixed into a method: a point at ``starts[k]`` that the data of device k pull to ``pulls[k]``.

    ``mixed[t][k]`` is where mixing after round t has put it, t = 0 the start; ``counts[t][k]`` is
    the number of devices in that.
    """

    pulls: ClassVar[Sequence[float]] = ()
    starts: ClassVar[Sequence[float]] = ()
    mixed: ClassVar[list[dict[int, float]]] = []
    counts: ClassVar[list[dict[int, int]]] = []
    fails: ClassVar[tuple[int, int]] = (0, 0)
    """Round and device."""

    def build_model(self) -> nn.Module:  # type: ignore[override]
        return Point(self.starts[self.partition.partition_id])

    def blocks(self) -> dict[str, nn.Module]:
        return {"point": self.model}

    def encoders(self) -> dict[str, nn.Module]:
        return {"audio": self.model}

    def local_loss(self, batch: Batch) -> Tensor:
        # a product of matrices, so that there is an operation to count
        away = (self.model.x - self.pulls[self.partition.partition_id]).reshape(1, 1)  # type: ignore[union-attr, operator]
        return (away @ away).sum() / 2

    def mix(self, plan: Plan, inbox: Inbox) -> tuple[float, list[str]]:
        result = super().mix(plan, inbox)
        me, t = self.partition.partition_id, plan.server_round - 1
        self.mixed[t][me] = float(self.model.x.detach())  # type: ignore[union-attr, operator]
        messages = [payload.get(addressed("point", me)) for payload in inbox.values()]
        self.counts[t][me] = 1 + sum(int(m[-1]) for m in messages if m is not None)
        if self.fails == (plan.server_round, me):
            raise RuntimeError("out of order")
        return result

    def evaluate(self) -> dict[str, float]:
        return {}


def run(
    pulls: Sequence[float],
    rounds: int,
    *,
    method: type[Learner] = RelaySGD,
    starts: Sequence[float] = (),
    fails: tuple[int, int] = (0, 0),
    **settings: Any,
) -> list[list[float]]:
    """Return where the points are after each round's mixing, ``[round][device]``; nan: nowhere."""
    nodes = range(len(pulls))
    config = {
        **FAST, "method": "on-a-point", "num-nodes": len(pulls), "modality-pattern": "audio",
        "topology": "line", "local-iterations": 1, "learning-rate": 0.1, "momentum": 0.0,
        "clip-norm": 0.0, **{key.replace("_", "-"): value for key, value in settings.items()},
    }  # fmt: skip
    OnAPoint.pulls, OnAPoint.starts, OnAPoint.fails = pulls, starts or [0.0 for _ in nodes], fails
    OnAPoint.mixed[:] = [{} for _ in range(rounds + 1)]
    OnAPoint.counts[:] = [{} for _ in range(rounds + 1)]
    learner = type("Own", (OnAPoint, method), {"name": "on-a-point"})
    run_peers(config, learner, num_rounds=rounds)
    return [[x.get(k, float("nan")) for k in nodes] for x in OnAPoint.mixed]


def counts() -> list[list[int]]:
    """Return of how many devices the points of the last run were, ``[round][device]``."""
    return [[of[k] for k in sorted(of)] for of in OnAPoint.counts]


def on_tree(tmp_path: Path) -> dict[str, str]:
    """Return the settings of :data:`TREE`."""
    path = tmp_path / "tree.txt"
    path.write_text("\n".join(f"{i} {j}" for i, j in TREE))
    return {"topology": "edge-list", "topology_file": str(path)}


# ---- the algorithm --------------------------------------------------------------------------


def test_three_rounds_on_a_line_by_hand():
    """Pulled to 1, 2 and 6 at rate 0.1: training takes x to y = 0.9 x + 0.1 a.

    Round 1: y = 0.1, 0.2, 0.6. Each sends its own: x = 0.3/2, 0.9/3, 0.8/2 = 0.15, 0.3, 0.4.

    Round 2: y = 0.235, 0.47, 0.96. Node 1 tells node 0 y_1 + 0.6 = 1.07 (2 devices), and node 2
    y_1 + 0.1 = 0.57. x = (0.235 + 1.07)/3, (0.235 + 0.47 + 0.96)/3, (0.96 + 0.57)/3
    = 0.435, 0.555, 0.51.

    Round 3: y = 0.4915, 0.6995, 1.059. Node 1 tells node 0 y_1 + 0.96 and node 2 y_1 + 0.235:
    x = 2.151/3, 2.25/3, 1.9935/3 = 0.717, 0.75, 0.6645.
    """
    start, *mixed = run((1.0, 2.0, 6.0), 3)
    assert start == [0.0, 0.0, 0.0]
    assert mixed[0] == pytest.approx([0.15, 0.3, 0.4])
    assert mixed[1] == pytest.approx([0.435, 0.555, 0.51])
    assert mixed[2] == pytest.approx([0.717, 0.75, 0.6645])


def relay_sgd(
    pulls: Sequence[float], rounds: int, *, rate: float, momentum: float, iterations: int
) -> list[list[float]]:
    """Vogels et al.'s algorithm 1 on :data:`TREE` as plain arithmetic: sums, counts, all floats."""
    graph = nx.Graph(TREE)
    x, v = dict.fromkeys(graph, 0.0), dict.fromkeys(graph, 0.0)
    links = [*graph.edges, *((b, a) for a, b in graph.edges)]
    m, n = dict.fromkeys(links, 0.0), dict.fromkeys(links, 0)  # of the round before
    mixed = [[x[i] for i in sorted(x)]]
    for _ in range(rounds):
        for i in graph:
            for _ in range(iterations):
                v[i] = momentum * v[i] + x[i] - pulls[i]
                x[i] -= rate * v[i]
        m, n = (
            {(i, b): x[i] + sum(m[c, i] for c in graph[i] if c != b) for i, b in links},
            {(i, b): 1 + sum(n[c, i] for c in graph[i] if c != b) for i, b in links},
        )
        for i in graph:
            x[i] = (x[i] + sum(m[j, i] for j in graph[i])) / (1 + sum(n[j, i] for j in graph[i]))
        mixed.append([x[i] for i in sorted(x)])
    return mixed


@pytest.mark.parametrize(("iterations", "momentum"), [(1, 0.0), (3, 0.9)])
def test_many_rounds_on_a_tree_are_the_pseudo_code(
    iterations: int, momentum: float, tmp_path: Path
):
    """With momentum that lasts from round to round, as in the paper's experiments."""
    pulls = (1.0, 3.0, -2.0, 5.0, 0.5, 8.0, -4.0)
    options = {"local_iterations": iterations, "momentum": momentum, "learning_rate": 0.02}
    expected = relay_sgd(pulls, 15, rate=0.02, momentum=momentum, iterations=iterations)
    mixed = run(pulls, 15, **options, **on_tree(tmp_path))
    assert len(mixed) == 16
    for found, wanted in zip(mixed, expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_after_t_rounds_all_within_t_links_count_once_each(tmp_path: Path):
    """Training at rate 1 ends at y_k = a_k in every round, so x_i is the mean of the a_k within t
    links of i. After 4 rounds, the longest way, these are all: everybody has the exact mean.
    """
    pulls = (1.0, 3.0, -2.0, 5.0, 0.5, 8.0, -4.0)
    mixed = run(pulls, 6, learning_rate=1.0, **on_tree(tmp_path))
    away = dict(nx.all_pairs_shortest_path_length(nx.Graph(TREE)))
    for t in range(1, 7):
        near = [[k for k in range(7) if away[i][k] <= t] for i in range(7)]
        assert counts()[t] == [len(some) for some in near]
        means = [sum(pulls[k] for k in some) / len(some) for some in near]
        assert mixed[t] == pytest.approx(means, abs=1e-6)
    assert counts()[3] != [7] * 7 and counts()[4] == [7] * 7
    assert mixed[4] == pytest.approx([11.5 / 7] * 7, abs=1e-6)


def test_without_training_all_meet_at_a_point_that_the_first_rounds_decide():
    """A line of three at a, b, c that do not train; x, y, z are the devices, ' is a round before.

    Round 1: x = (a + b)/2, y = (a + b + c)/3, z = (b + c)/2. From then on all three are counted::

        x <- (x + y + z')/3      y <- (x + y + z)/3      z <- (x' + y + z)/3

    Their sum grows by (x' - x + z' - z)/3, so x + y + z + (x' + z')/3 stays the same. After round 1
    that is (7a + 8b + 7c)/6; where all are equal it is 11/3 of each. So they meet at
    (7a + 8b + 7c)/22: near the mean, but not there. A relay averages exactly what is trained anew,
    as above, and a run starts from equal points.
    """
    mixed = run((0.0, 0.0, 0.0), 30, starts=(22.0, 0.0, 44.0), learning_rate=1e-12)
    assert mixed[1] == pytest.approx([11.0, 22.0, 22.0])
    assert mixed[2] == pytest.approx([(11 + 22 + 44) / 3, 55 / 3, (22 + 22 + 22) / 3])
    for t in range(2, 31):
        (x, y, z), (x_before, _, z_before) = mixed[t], mixed[t - 1]
        assert x + y + z + (x_before + z_before) / 3 == pytest.approx(77.0, rel=1e-5)
    assert mixed[30] == pytest.approx([21.0] * 3, rel=1e-5)


@pytest.mark.parametrize("topology", ["line", "star"])
@pytest.mark.parametrize("gossip", [DPSGD, DSGDm])
def test_ends_at_the_common_minimum_where_gossip_stays_apart(topology: str, gossip: type[Learner]):
    """Devices that pull to 1 and to 3 meet at 2; plain gossip keeps a gap for ever."""
    pulls, momentum = (1.0, 1.0, 3.0, 3.0), 0.5
    options: dict[str, Any] = {"topology": topology, "momentum": momentum}
    *_, relayed = run(pulls, 100, **options)
    *_, gossiped = run(pulls, 100, method=gossip, **options)
    assert relayed == pytest.approx([2.0] * 4, abs=1e-4)
    assert sum(gossiped) / 4 == pytest.approx(2.0, abs=1e-4)
    assert max(gossiped) - min(gossiped) > 0.1


# ---- one device -----------------------------------------------------------------------------

BLOCK = "head.common"


def middle(nodes: int = 3) -> tuple[Learner, Tensor]:
    """Return device 1 of a line, whose block is all 3, and what device 0 sends: two 6s."""
    learner = make_learner({**LINE, "num-nodes": nodes, "learning-rate": 1e-12}, 1)
    length = len(flatten(learner.blocks()[BLOCK]))
    learner.load_state({BLOCK: torch.full((length,), 3.0)})
    return learner, torch.cat([torch.full((length,), 6.0), torch.tensor([2.0])])


def step(learner: Learner, left: Tensor | None, right: Tensor | None, **plan: Any) -> Outcome:
    """Let it mix with what devices 0 and 2 send, and publish."""
    sent = {0: left, 2: right}
    inbox = {j: {addressed(BLOCK, 1): m} for j, m in sent.items() if m is not None}
    weights = {BLOCK: (0.4, *[0.3] * len(inbox))}  # all that they tell is who owns the block
    given = Plan(2, 1, neighbours=tuple(inbox), weights=weights, recipients=(0, 2))
    return learner.run_round(Plan(**{**vars(given), **plan}), inbox)


def test_a_device_tells_each_neighbour_of_all_the_others():
    """Own 3; 0 relays the mean 6 of 2 devices, 2 the mean 10 of 1: x = (3 + 12 + 10)/4 = 6.25.

    To 0 goes (6.25 + 10)/2 of 2 devices, to 2 (6.25 + 12)/3 of 3. The disagreement is
    2/4 (3 - 6)^2 + 1/4 (3 - 10)^2 = 16.75 for each number of the block.
    """
    learner, left = middle(nodes=4)
    right = torch.cat([torch.full_like(left[:-1], 10.0), torch.ones(1)])
    outcome = step(learner, left, right, evaluate=True)
    assert outcome.rejected == []
    assert outcome.metrics["mix.disagreement"] == pytest.approx(16.75 * len(left[:-1]), rel=1e-5)
    for b, mean, count in ((0, 8.125, 2.0), (2, 18.25 / 3, 3.0)):
        message = outcome.payload[addressed(BLOCK, b)]
        assert message.dtype == torch.float32 and message.shape == left.shape
        assert torch.allclose(message[:-1], torch.tensor(mean)) and float(message[-1]) == count
    assert BLOCK not in outcome.payload
    assert {name.partition("@")[0] for name in outcome.payload} == {*learner.blocks(), SPEEDS}


def test_a_parked_device_relays_what_it_has_mixed():
    """Own 3 and two 6s mix to 5: that, with the 6s, makes (5 + 12)/3 of 3 devices for 2."""
    learner, left = middle()
    outcome = step(learner, left, None, by_modality={"audio": 0, "image": 0})
    assert "train.loss" not in outcome.metrics
    to_0, to_2 = (outcome.payload[addressed(BLOCK, b)] for b in (0, 2))
    assert torch.allclose(to_0[:-1], torch.tensor(5.0)) and float(to_0[-1]) == 1.0
    assert torch.allclose(to_2[:-1], torch.tensor(17 / 3)) and float(to_2[-1]) == 3.0


def test_a_device_that_nobody_listens_to_publishes_its_plain_blocks():
    learner, left = middle()
    payload = step(learner, left, None, recipients=()).payload
    assert set(payload) == {*learner.blocks(), SPEEDS}
    assert torch.allclose(payload[BLOCK], torch.tensor(5.0))


def _with(count: float) -> Any:
    return lambda good: torch.cat([good[:-1], torch.tensor([count])])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_with(0.0), "counts 0 devices, which is no whole number from 1 to 2"),
        (_with(-1.0), "counts -1 devices"),
        (_with(1.5), "counts 1.5 devices"),
        (_with(3.0), "counts 3 devices"),  # there are three, the receiver among them
        (_with(float("nan")), "holds NaN or infinite values"),
        (_with(2e6), "holds values beyond 1e+06"),
        (lambda good: good[:-1], "instead of"),
        (lambda good: torch.cat([good, good[-1:]]), "instead of"),
        (lambda good: good.double(), "has type torch.float64"),
        (lambda good: good * float("inf"), "holds NaN or infinite values"),
    ],
)
def test_a_bad_message_is_named_and_left_out(spoil: Any, words: str):
    """Own 3 and the 6s of 0 alone mix to 5, and nothing of 2 is relayed to 0."""
    learner, left = middle()
    outcome = step(learner, left, spoil(left))
    (line,) = outcome.rejected
    assert line.startswith(f"2: block {BLOCK} ") and words in line
    to_0, to_2 = (outcome.payload[addressed(BLOCK, b)] for b in (0, 2))
    assert torch.allclose(to_0[:-1], torch.tensor(5.0)) and float(to_0[-1]) == 1.0
    assert torch.allclose(to_2[:-1], torch.tensor(17 / 3)) and float(to_2[-1]) == 3.0


def test_a_missing_message_is_named():
    learner, left = middle()
    weights = {BLOCK: (0.4, 0.3, 0.3)}
    inbox = {0: {addressed(BLOCK, 1): left}, 2: {addressed(BLOCK, 0): left, BLOCK: left[:-1]}}
    outcome = learner.run_round(Plan(2, 0, neighbours=(0, 2), weights=weights), inbox)
    assert outcome.rejected == [f"2: block {BLOCK} is missing"]
    assert torch.allclose(flatten(learner.blocks()[BLOCK]), torch.tensor(5.0))


# ---- whole runs -----------------------------------------------------------------------------


def test_a_device_that_fails_in_one_round_costs_its_messages_of_that_round():
    """Line of three, training to 1, 2 and 6 in every round; node 1 raises in round 2.

    Nobody hears of anybody else then: x = 1, 2, 6 of 1 device each. In round 3 they begin anew, as
    in round 1: x = 3/2, 9/3, 8/2; round 4 brings all three to the mean again.
    """
    mixed = run((1.0, 2.0, 6.0), 4, learning_rate=1.0, fails=(2, 1))
    assert mixed[1] == pytest.approx([1.5, 3.0, 4.0])
    assert mixed[2] == pytest.approx([1.0, 2.0, 6.0])
    assert mixed[3] == pytest.approx([1.5, 3.0, 4.0])
    assert mixed[4] == pytest.approx([3.0, 3.0, 3.0])
    assert counts() == [[1, 1, 1], [2, 3, 2], [1, 1, 1], [2, 3, 2], [3, 3, 3]]


class Lying(RelaySGD):
    """Node 1 says in round 2 that it relays half a device."""

    name = "lying"

    def outgoing(self, plan: Plan, inbox: Inbox, blocks: dict[str, Tensor]) -> dict[str, Tensor]:
        payload = super().outgoing(plan, inbox, blocks)
        if (self.partition.partition_id, plan.server_round) == (1, 2):
            payload[addressed(BLOCK, 0)][-1] = 0.5
        return payload


def test_a_lie_is_in_the_log_and_the_run_goes_on(caplog: pytest.LogCaptureFixture):
    peers = run_peers({**LINE, "method": "lying"}, Lying, num_rounds=3)
    (said,) = [r.getMessage() for r in caplog.records if "rejects" in r.getMessage()]
    assert said.startswith(f"Round 2: node 0 rejects from node 1: block {BLOCK} counts 0.5 devices")
    assert [set(r.by_partition[0].claims) for r in peers.records] == [set(), {1}, set()]
    assert not any(r.failed for r in peers.records)  # it lied to one of two
    assert all(n.accuracy is not None for n in peers.records[-1].nodes)


def test_every_neighbour_gets_one_model_and_a_count_per_block():
    """An end of the line sends one of those, the middle two."""
    peers = run_peers(LINE, num_rounds=2)
    lengths = make_learner(LINE).block_lengths()
    one = {addressed(name, 1): torch.zeros(n + 1) for name, n in lengths.items()}
    expected = size_bytes(pack(one | {SPEEDS: torch.zeros(2)}))
    for record in peers.records:
        assert [n.bytes_sent for n in record.nodes] == [expected, 2 * expected, expected]
    gossip = run_peers({**LINE, "method": "dpsgd"}, num_rounds=1)
    assert expected == gossip.records[0].nodes[0].bytes_sent + 4 * len(lengths)


class Final(RelaySGD):
    """Keeps every device's final blocks."""

    name = "final"
    final: ClassVar[dict[int, dict[str, Tensor]]] = {}

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        outcome = super().run_round(plan, inbox)
        blocks = {name: flatten(module) for name, module in self.blocks().items()}
        self.final[self.partition.partition_id] = blocks
        return outcome


def test_every_block_is_relayed_over_its_owners():
    """Four rounds with mixed sensors, against sums over each block's part of the line.

    Devices 0 to 3 have audio, image, both, audio: the audio encoder is linked between 2 and 3 only,
    the image encoder between 1 and 2, and the common head along the whole line.
    """
    config: dict[str, Any] = {**FAST, "method": "relaysgd", "num-nodes": 4, "topology": "line"}
    peers = run_peers({**config, "method": "final"}, Final, num_rounds=4)
    assert all(not r.failed for r in peers.records) and peers.records[-1].accuracy is not None

    learners = [make_learner(config, k) for k in range(4)]
    line, sums, numbers = nx.path_graph(4), dict[Any, Tensor](), dict[Any, int]()
    start = learners[0].state()
    trees = set()
    for t in (1, 2, 3, 4):
        y = [x.run_round(Plan(t, config["local-iterations"]), {}).payload for x in learners]
        m, n = dict[Any, Tensor](), dict[Any, int]()
        mixed: list[dict[str, Tensor]] = [{} for _ in learners]
        for name in {name for learner in learners for name in learner.blocks()}:
            tree = line.subgraph([k for k in range(4) if name in y[k]])
            trees.add((name, tuple(sorted(tree.edges))))
            for i in tree:
                for b in tree[i]:
                    others = [(c, i, name) for c in tree[i] if c != b and (c, i, name) in sums]
                    m[i, b, name] = y[i][name].double() + sum(sums[link] for link in others)
                    n[i, b, name] = 1 + sum(numbers[link] for link in others)
            for i in tree:
                total = y[i][name].double() + sum(m[j, i, name] for j in tree[i])
                count = 1 + sum(n[j, i, name] for j in tree[i])
                mixed[i][name] = (total / count).float()
        sums, numbers = m, n
        for learner, blocks in zip(learners, mixed, strict=True):
            learner.load_state({**learner.state(), **blocks})
    assert ("encoder.audio", ((2, 3),)) in trees and ("encoder.image", ((1, 2),)) in trees
    assert (BLOCK, ((0, 1), (1, 2), (2, 3))) in trees
    assert float((Final.final[0][BLOCK] - start[BLOCK]).abs().max()) > 1e-3
    for k, blocks in enumerate(mixed):
        assert set(Final.final[k]) == set(blocks)
        for name, vector in blocks.items():
            assert torch.allclose(Final.final[k][name], vector, atol=1e-5), (k, name)


# ---- graphs ---------------------------------------------------------------------------------


def run_it(tmp_path: Path, **settings: Any) -> None:
    """Run the whole app, as ``flwr-dmml simulate`` does."""
    config = {
        **FAST, **BOTH, "method": "relaysgd", "num-server-rounds": 2, "local-iterations": 1,
        "run-dir": str(tmp_path), "run-name": "x",
        **{key.replace("_", "-"): value for key, value in settings.items()},
    }  # fmt: skip
    run_app(FlowerApp(config, make_server_app(), make_client_app()), config["num-nodes"])


@pytest.mark.parametrize("methods", [{}, {"method": "dpsgd", "compare_with": "relaysgd"}])
@pytest.mark.parametrize(
    ("topology", "words"),
    [("ring", "has a cycle"), ("one-peer-exponential", "changes every round")],
)
def test_a_graph_that_is_no_tree_is_refused_before_any_method_runs(
    topology: str, words: str, methods: dict[str, str], tmp_path: Path
):
    with pytest.raises(SettingsError) as error:
        run_it(tmp_path, topology=topology, num_nodes=4, **methods)
    assert f"topology = '{topology}' with gossip rule 'relaysgd': this graph {words}" in str(
        error.value
    )
    assert "allowed: line, star, or an edge-list without cycles" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("topology", "nodes"), [("star", 4), ("ring", 2), ("ring", 1)])
def test_the_app_runs_on_a_tree(topology: str, nodes: int, tmp_path: Path):
    run_it(tmp_path, topology=topology, num_nodes=nodes)
    lines = (tmp_path / "x" / "relaysgd" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2


def relay(topology: Topology, nodes: int, seed: int = 0) -> PeerStrategy:
    return PeerStrategy(topology, num_nodes=nodes, seed=seed, gossip=RelaySGDRule(Group()))


def test_what_counts_is_the_graph_not_its_name(tmp_path: Path):
    """A forest is as good as a tree; a random graph is looked at as the run's seed makes it."""
    apart = tmp_path / "apart.txt"
    apart.write_text("0 1\n2 3\n")
    assert RelaySGDRule(Group()).graph_problem(EdgeList(str(apart)), 5, 0) == ""
    apart.write_text("0 1\n2 3\n3 4\n4 2\n")
    with pytest.raises(TopologyError, match="has a cycle"):
        relay(EdgeList(str(apart)), 5)
    with pytest.raises(TopologyError, match="two different nodes from 0 to 3"):
        relay(EdgeList(str(apart)), 4)

    sparse = make_topology("erdos-renyi", probability=0.3)
    trees = [seed for seed in range(20) if nx.is_forest(sparse.graph(5, seed=seed))]
    assert 0 < len(trees) < 20
    for seed in range(20):
        if seed in trees:
            assert relay(sparse, 5, seed).topology is sparse
        else:
            with pytest.raises(TopologyError, match="has a cycle"):
                relay(sparse, 5, seed)


def test_radio_is_planned_for_a_model_a_neighbour_from_the_first_round():
    """Round 1 has no payload to go by: its bits are estimated. Headers and counts are the rest."""
    peers = run_peers({**FAST, **BOTH, "method": "relaysgd", "num-nodes": 4, "topology": "star"})
    first, second = (record.total_bits for record in peers.records)
    assert first == pytest.approx(second - first, rel=0.02)
