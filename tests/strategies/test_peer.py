"""The peer strategy against oracles, and under faults, on the in-process grid."""

import threading
from typing import ClassVar

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from helpers import FAST, Recording, make_learner, run_peers

from flwr_dmml.clients import DPSGD
from flwr_dmml.engine import InProcessGrid, server_identity
from flwr_dmml.graph.topology import Ring, make_topology, metropolis_weights
from flwr_dmml.learning.mixing import Taken
from flwr_dmml.learning.speedometer import SPEEDS
from flwr_dmml.payload.blocks import flatten
from flwr_dmml.payload.plan import Inbox, Outcome, Plan
from flwr_dmml.strategies import NoDevicesError, PeerStrategy
from flwr_dmml.transport.messages import pack, unpack

BOTH = {"modality-pattern": "audio+image"}


def test_complete_graph_is_flowers_fedavg():
    """Uniform weights on a complete graph: Flower's FedAvg on the same data, to 1e-6."""
    config = {**FAST, **BOTH, "method": "dpsgd", "num-nodes": 4, "topology": "complete"}
    run_peers({**config, "method": "recording"}, Recording, num_rounds=3)

    app = ClientApp()
    learners = [make_learner(config, k) for k in range(4)]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        learner = learners[int(context.node_config["partition-id"])]
        learner.load_state(unpack(message.content.array_records["arrays"]))
        server_round = int(message.content.config_records["config"]["server-round"])
        outcome = learner.run_round(Plan(server_round, config["local-iterations"]), {})
        counts = MetricRecord({"num-examples": len(learner.train_data)})
        return Message(
            RecordDict({"arrays": pack(outcome.payload), "metrics": counts}), reply_to=message
        )

    initial = {name: flatten(m) for name, m in learners[0].blocks().items()}
    fedavg = FedAvg(fraction_evaluate=0.0, min_train_nodes=4, min_available_nodes=4)
    with server_identity(1):
        result = fedavg.start(InProcessGrid(app, 4, config), pack(initial), num_rounds=3)

    expected = unpack(result.arrays)
    assert set(expected) == set(Recording.final[0]) | {SPEEDS}
    expected.pop(SPEEDS)
    for k in range(4):
        for name, vector in expected.items():
            moved = float((vector - initial[name]).abs().max())
            assert moved > 1e-3, "training must have moved the block for the test to mean anything"
            assert torch.allclose(Recording.final[k][name], vector, atol=1e-6)


def test_gossip_is_multiplication_by_the_mixing_matrix_of_each_blocks_owners():
    """Three rounds on a ring of five with mixed sensors, against a plain loop with W X."""
    config = {**FAST, "method": "dpsgd", "num-nodes": 5}
    run_peers({**config, "method": "recording"}, Recording, num_rounds=3)

    learners = [make_learner(config, k) for k in range(5)]
    graph = Ring().graph(5)
    for t in (1, 2, 3):
        published = [x.run_round(Plan(t, config["local-iterations"]), {}).payload for x in learners]
        mixed: list[dict[str, torch.Tensor]] = [{} for _ in learners]
        for name in {name for payload in published for name in payload}:
            owners = [k for k in range(5) if name in published[k]]
            weights = metropolis_weights(graph, owners)
            for k in owners:
                mixed[k][name] = sum(weights[k, j] * published[j][name].double() for j in owners)
        for learner, blocks in zip(learners, mixed, strict=True):
            learner.load_state({name: vector.float() for name, vector in blocks.items()})
    for k, learner in enumerate(learners):
        for name, module in learner.blocks().items():
            assert torch.allclose(Recording.final[k][name], flatten(module), atol=1e-6), (k, name)


def test_initial_arrays_are_taken_up_by_every_owner():
    """Zero rounds of difference: with a learning rate near 0 the given blocks come back."""
    config = {**FAST, **BOTH, "method": "recording", "num-nodes": 2, "learning-rate": 1e-12}
    learner = make_learner({**config, "method": "dpsgd", "seed": 99})
    blocks = {name: flatten(m) for name, m in learner.blocks().items()}
    peers = PeerStrategy(Ring(), num_nodes=2, method="recording", local_iterations=1)
    grid = InProcessGrid(_client(Recording), 2, config)
    with server_identity(1):
        peers.start(grid, pack(blocks), num_rounds=1)
    for name, vector in blocks.items():
        assert torch.allclose(Recording.final[0][name], vector, atol=1e-6)


def test_initial_arrays_that_nobody_has_are_refused():
    peers = PeerStrategy(Ring(), num_nodes=2, method="dpsgd")
    grid = InProcessGrid(_client(), 2, {**FAST, "num-nodes": 2, "method": "dpsgd"})
    with server_identity(1), pytest.raises(ValueError, match=r"encoder\.radar"):
        peers.start(grid, pack({"encoder.radar": torch.zeros(3)}), num_rounds=1)


def test_evaluate_fn_is_refused():
    with pytest.raises(ValueError, match="no global model"):
        PeerStrategy(Ring(), num_nodes=2).start(
            InProcessGrid(_client(), 2, {}), num_rounds=1, evaluate_fn=lambda t, arrays: None
        )


def _client(*learners: type) -> ClientApp:
    from flwr_dmml.clients import make_client_app

    return make_client_app(*learners)


# ---- graphs on which a careless plan would wait for ever ------------------------------------


@pytest.mark.parametrize(
    ("topology", "nodes"),
    [
        ("ring", 5),
        ("line", 4),
        ("star", 5),
        ("complete", 1),
        ("ring", 1),
        ("one-peer-exponential", 4),
    ],
)
def test_no_graph_deadlocks(topology: str, nodes: int):
    peers = run_peers({**FAST, "num-nodes": nodes, "topology": topology}, num_rounds=2)
    assert [r.round for r in peers.records] == [1, 2]
    assert all(len(r.nodes) == nodes and not r.failed for r in peers.records)


def test_two_components_mix_inside_themselves_and_are_named_once(tmp_path, caplog):
    edges = tmp_path / "edges.txt"
    edges.write_text("0 1\n2 3\n")
    config = {**FAST, **BOTH, "num-nodes": 4, "topology": "edge-list", "topology-file": str(edges)}
    run_peers({**config, "method": "recording"}, Recording, num_rounds=2)
    final = Recording.final
    assert torch.equal(final[0]["head.common"], final[1]["head.common"])
    assert torch.equal(final[2]["head.common"], final[3]["head.common"])
    assert not torch.equal(final[0]["head.common"], final[2]["head.common"])
    said = [r.getMessage() for r in caplog.records if "head.common" in r.getMessage()]
    assert len(said) == 1 and "split into 2 disconnected groups" in said[0]


# ---- faults ---------------------------------------------------------------------------------


class Faulty(DPSGD):
    """Node 1 misbehaves in round 2, in the way that ``fault`` says."""

    name = "faulty"
    fault = ""
    release: ClassVar = threading.Event()
    seen: ClassVar[dict[tuple[int, int], dict[str, tuple[float, ...]]]] = {}

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        me = self.partition.partition_id
        self.seen[me, plan.server_round] = plan.weights
        if me == 1 and plan.server_round == 2:
            if self.fault == "raises":
                raise RuntimeError("the microphone fell off")
            if self.fault == "never replies":
                self.release.wait(30)
        return super().run_round(plan, inbox)

    def finish(self, plan: Plan, inbox: Inbox, taken: Taken | None) -> Outcome:
        outcome = super().finish(plan, inbox, taken)
        payload = outcome.payload
        if self.partition.partition_id == 1 and self.server_round == 2:
            head = payload["head.common"]
            if self.fault == "NaN":
                payload["head.common"] = torch.full_like(head, float("nan"))
            if self.fault == "wrong length":
                payload["head.common"] = head[:-3]
            if self.fault == "unknown block":
                payload["encoder.radar"] = head
            if self.fault == "missing block":
                del payload["head.common"]
        return outcome


def _run_with_fault(fault: str, caplog, **kwargs) -> PeerStrategy:
    Faulty.fault, Faulty.seen = fault, {}
    Faulty.release.clear()
    config = {**FAST, **BOTH, "num-nodes": 5, "method": "faulty"}
    peers = run_peers(config, Faulty, num_rounds=4, evaluate_every=1, **kwargs)
    Faulty.release.set()
    return peers


@pytest.mark.parametrize("fault", ["raises", "unknown block", "missing block"])
def test_a_node_without_a_good_payload_is_left_out_for_that_round_only(fault, caplog):
    peers = _run_with_fault(fault, caplog)
    assert [sorted(r.failed) for r in peers.records] == [[], [1], [], []]
    named = [r.getMessage() for r in caplog.records if "node 1 is left out" in r.getMessage()]
    assert len(named) == 1 and named[0].startswith("Round 2")
    expected = {
        "raises": "microphone",
        "unknown block": "encoder.radar",
        "missing block": "head.common",
    }
    assert expected[fault] in named[0]
    # In round 3 the ring 0-1-2-3-4 is the line 2-3-4-0: node 0 mixes with 4 alone (degrees 1 and
    # 2, weight 1/3), node 1 with nobody; in round 4 node 0 has both neighbours again.
    assert Faulty.seen[0, 3]["head.common"] == pytest.approx((2 / 3, 1 / 3))
    assert Faulty.seen[1, 3] == {}
    assert len(Faulty.seen[0, 4]["head.common"]) == 3
    assert all(n.accuracy is not None for n in peers.records[-1].nodes)
    assert len(peers.records[-1].nodes) == 5


@pytest.mark.parametrize(("fault", "words"), [("NaN", "NaN"), ("wrong length", "shape")])
def test_a_node_that_sends_rubbish_is_rejected_by_its_neighbours_by_name(fault, words, caplog):
    peers = _run_with_fault(fault, caplog)
    said = [r.getMessage() for r in caplog.records if "rejects" in r.getMessage()]
    assert len(said) == 2, "nodes 0 and 2 have node 1 for a neighbour"
    for receiver, line in zip((0, 2), said, strict=True):
        assert f"node {receiver} rejects from node 1: block head.common" in line
        assert words in line
    accuracies = [n.accuracy for n in peers.records[-1].nodes]
    assert len(accuracies) == 5 and all(a is not None and np.isfinite(a) for a in accuracies)


def test_a_node_that_never_replies_costs_only_its_own_contribution(caplog):
    peers = _run_with_fault("never replies", caplog, timeout=6.0, stall_s=1.0)
    assert 1 in peers.records[1].failed and "no reply" in peers.records[1].failed[1]
    assert "busy" in peers.records[2].failed[1], "it gets no second message while it has one"
    assert {n.partition for n in peers.records[2].nodes} >= {0, 2, 3, 4}
    assert all(len(r.failed) <= 1 for r in peers.records)
    assert any("node 1 is left out: no reply" in r.getMessage() for r in caplog.records)


def test_healthy_nodes_keep_their_mean_when_one_block_is_rejected():
    """A rejected weight goes to the own copy: the others' matrix stays doubly stochastic.

    Nodes 0, 2, 3, 4 of a ring of five reject node 1's block. Their rows, without column 1 and with
    w_k1 added to w_kk, are symmetric and sum to 1, so their mean is the mean before mixing.
    """
    graph = make_topology("ring").graph(5)
    weights = metropolis_weights(graph)
    learner = make_learner({**FAST, **BOTH, "method": "dpsgd", "num-nodes": 5})
    length = len(flatten(learner.blocks()["head.common"]))
    rng = torch.Generator().manual_seed(1)
    sent = {k: torch.randn(length, generator=rng) for k in range(5)}
    sent[1] = torch.full((length,), float("inf"))
    after = {}
    for k in (0, 2, 3, 4):
        near = tuple(sorted(graph[k]))
        learner.load_state({"head.common": sent[k]})
        row = tuple(float(weights[k, j]) for j in (k, *near))
        plan = Plan(2, 0, neighbours=near, weights={"head.common": row})
        outcome = learner.run_round(plan, {j: {"head.common": sent[j]} for j in near})
        assert len(outcome.rejected) == (1 if 1 in near else 0)
        after[k] = flatten(learner.blocks()["head.common"])
    before_mean = torch.stack([sent[k].double() for k in after]).mean(dim=0)
    after_mean = torch.stack([v.double() for v in after.values()]).mean(dim=0)
    assert torch.allclose(before_mean, after_mean, atol=1e-6)


def test_a_run_whose_devices_all_fail_ends_with_their_reasons():
    class Broken(DPSGD):
        name = "broken"

        def run_round(self, plan, inbox):
            raise RuntimeError("no battery")

    with pytest.raises(NoDevicesError, match=r"every device failed.*no battery"):
        run_peers({**FAST, "num-nodes": 3, "method": "broken"}, Broken)


def test_too_few_devices_is_an_error_that_says_what_to_do():
    peers = PeerStrategy(Ring(), num_nodes=3, wait_timeout=0.2)
    grid = InProcessGrid(_client(), 2, {})
    with pytest.raises(NoDevicesError, match=r"num-nodes = 3, but only 2.*num-supernodes=3"):
        peers.start(grid, num_rounds=1)


def test_a_device_that_cannot_load_its_data_says_so_before_round_one():
    config = {**FAST, "num-nodes": 3, "samples-per-node": 10_000}
    with pytest.raises(NoDevicesError, match="samples-per-node"):
        run_peers(config)


def test_bytes_sent_count_what_is_routed():
    """Two nodes, all blocks shared: each sends its whole payload to one neighbour."""
    peers = run_peers({**FAST, **BOTH, "num-nodes": 2, "method": "dpsgd"}, num_rounds=1)
    learner = make_learner({**FAST, **BOTH, "method": "dpsgd", "num-nodes": 2})
    payload = {name: flatten(m) for name, m in learner.blocks().items()}
    record: ArrayRecord = pack(payload | {SPEEDS: torch.zeros(2)})
    expected = sum(len(array.data) for array in record.values())
    assert [n.bytes_sent for n in peers.records[0].nodes] == [expected, expected]


def test_speeds_of_the_modalities_are_recorded():
    peers = run_peers({**FAST, "num-nodes": 3, "method": "dpsgd"}, num_rounds=1)
    speeds = [node.speed for node in peers.records[0].nodes]
    assert [set(s) for s in speeds] == [{"audio"}, {"image"}, {"audio", "image"}]
    assert all(value > 0 for s in speeds for value in s.values())


def test_local_training_sends_nothing():
    peers = run_peers({**FAST, "num-nodes": 3, "method": "local"}, num_rounds=2)
    assert all(n.bytes_sent == 0 for r in peers.records for n in r.nodes)
    assert peers.records[-1].accuracy is not None


def test_summary_is_a_tree_with_the_spectral_gap(caplog):
    PeerStrategy(Ring(), num_nodes=12, method="dpsgd").summary()
    text = "\n".join(r.getMessage() for r in caplog.records)
    assert "├──> Topology: Ring" in text and "└──> Evaluation" in text
    # Ring of 12, weights 1/3: eigenvalues 1/3 + 2/3 cos(2 pi k / 12); the gap is
    # 1 - (1/3 + 2/3 cos(pi / 6)) = 0.0893.
    assert "0.0893" in text


# ---- who takes part -------------------------------------------------------------------------


class Seeing(DPSGD):
    """Notes the neighbours of every round."""

    name = "seeing"
    near: ClassVar[dict[tuple[int, int], tuple[int, ...]]] = {}

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        self.near[self.partition.partition_id, plan.server_round] = plan.neighbours
        return super().run_round(plan, inbox)


def test_a_time_varying_graph_is_routed_round_by_round():
    config = {**FAST, **BOTH, "num-nodes": 4, "topology": "one-peer-exponential"}
    run_peers({**config, "method": "seeing"}, Seeing, num_rounds=3)
    topology = make_topology("one-peer-exponential")
    for t in (1, 2, 3):
        graph = topology.graph(4, server_round=t)
        for k in range(4):
            assert Seeing.near[k, t + 1] == tuple(sorted(graph[k])), (k, t)
    assert Seeing.near[0, 2] != Seeing.near[0, 3]


class _Losing(InProcessGrid):
    """A grid that loses node 1 after some exchanges of messages."""

    exchanges, lost_after = 0, 2
    hosted = None  # type: ignore[assignment]

    def get_node_ids(self):
        ids = super().get_node_ids()
        return ids if self.exchanges < self.lost_after else [ids[0], *ids[2:]]

    def send_and_receive(self, messages, *, timeout=None):
        self.exchanges += 1
        return super().send_and_receive(messages, timeout=timeout)


def test_a_node_that_disconnects_is_named_and_left_out(caplog):
    config = {**FAST, **BOTH, "num-nodes": 3, "method": "dpsgd"}
    grid = _Losing(_client(), 3, config)
    peers = PeerStrategy(Ring(), num_nodes=3, method="dpsgd", local_iterations=1, evaluate_every=1)
    with server_identity(1):
        peers.start(grid, num_rounds=3)
    assert [r.failed for r in peers.records[1:]] == [{1: "it is not connected"}] * 2
    assert {n.partition for n in peers.records[-1].nodes} == {0, 2}


def test_a_second_method_goes_on_without_the_device_that_the_first_one_lost(tmp_path):
    from flwr.app import Context as ServerContext

    from flwr_dmml.strategies import make_server_app

    config = {
        **FAST, **BOTH, "num-nodes": 3, "method": "dpsgd", "compare-with": "local",
        "num-server-rounds": 2, "wait-timeout": 0.5, "run-dir": str(tmp_path), "run-name": "x",
    }  # fmt: skip
    with server_identity(1):
        context = ServerContext(1, 1, {}, RecordDict(), config)
        make_server_app()(_Losing(_client(), 3, config), context)
    lines = (tmp_path / "x" / "dpsgd" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2 and '"partition": 1' not in lines[-1]


def test_a_partition_that_is_taken_or_out_of_range_is_left_out(caplog):
    config = {**FAST, **BOTH, "num-nodes": 3, "method": "dpsgd"}
    grid = InProcessGrid(_client(), 3, config)
    nodes = list(grid._nodes.values())
    nodes[2].config["partition-id"] = 0
    peers = PeerStrategy(Ring(), num_nodes=3, method="dpsgd", local_iterations=1)
    with server_identity(1):
        peers.start(grid, num_rounds=1)
    assert set(peers.roster.members) == {0, 1}
    said = [r.getMessage() for r in caplog.records if "Left out of the run" in r.getMessage()]
    assert len(said) == 1 and "partition 0 is node 1000's" in said[0]


def test_a_device_that_fails_in_round_one_still_gets_the_initial_arrays():
    class LateStarter(Recording):
        name = "late-starter"

        def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
            if self.partition.partition_id == 1 and plan.server_round == 1:
                raise RuntimeError("still booting")
            return super().run_round(plan, inbox)

    config = {**FAST, **BOTH, "method": "late-starter", "num-nodes": 2, "learning-rate": 1e-12}
    learner = make_learner({**config, "method": "dpsgd", "seed": 99})
    blocks = {name: flatten(m) for name, m in learner.blocks().items()}
    peers = PeerStrategy(Ring(), num_nodes=2, method="late-starter", local_iterations=1)
    with server_identity(1):
        peers.start(InProcessGrid(_client(LateStarter), 2, config), pack(blocks), num_rounds=2)
    for name, vector in blocks.items():
        assert torch.allclose(Recording.final[1][name], vector, atol=1e-6)


def test_blocks_that_start_unequal_are_named(caplog):
    class Uneven(DPSGD):
        name = "uneven"

        def build_model(self):
            model = super().build_model()
            torch.nn.init.constant_(model.head_common.bias, float(self.partition.partition_id))
            return model

    run_peers({**FAST, **BOTH, "num-nodes": 2, "method": "uneven"}, Uneven, num_rounds=1)
    said = [r.getMessage() for r in caplog.records if "does not start equal" in r.getMessage()]
    assert said == ["Block head.common does not start equal on all devices that own it"]


@pytest.mark.parametrize("bad", [{"local_iterations": 0}, {"evaluate_every": 0}])
def test_impossible_arguments_are_refused(bad):
    with pytest.raises(ValueError, match="must be at least 1"):
        PeerStrategy(Ring(), num_nodes=2, **bad)


def test_methods_of_one_run_do_not_see_each_other(tmp_path):
    """D-PSGD after another method gives the numbers of D-PSGD alone."""
    from flwr_dmml.clients import make_client_app
    from flwr_dmml.engine import FlowerApp, run_app
    from flwr_dmml.strategies import make_server_app

    config = {**FAST, **BOTH, "num-nodes": 2, "method": "dpsgd", "num-server-rounds": 2}
    for name, before in (("alone", ""), ("after", "dsgdm")):
        app = FlowerApp(dict(config), make_server_app(), make_client_app())
        run_app(app, 2, {"compare-with": before, "run-dir": str(tmp_path), "run-name": name})
    alone, after = ((tmp_path / n / "dpsgd/metrics.jsonl").read_bytes() for n in ("alone", "after"))
    assert alone == after
