"""The final merge: all owners of a block end with its average, on every engine, and pay for it."""

from collections.abc import Collection
from typing import Any, ClassVar

import networkx as nx
import numpy as np
import pytest
import torch
from helpers import FAST, Recording, run_peers
from helpers_engines import SENSORS, on_both_engines
from torch import Tensor

from flwr_dmml.clients import make_client_app
from flwr_dmml.engine import InProcessGrid, server_identity
from flwr_dmml.graph.spectral import rounds_to_agree
from flwr_dmml.graph.topology import Complete, metropolis_weights, spectral_gap
from flwr_dmml.graph.weights import metropolis_rows
from flwr_dmml.payload.plan import Inbox, Outcome, Plan
from flwr_dmml.settings import find_parts, parse_settings
from flwr_dmml.strategies import PeerStrategy
from flwr_dmml.strategies.energy.energy_constrained import EnergyConstrained
from flwr_dmml.strategies.merging import FinalMerge
from flwr_dmml.strategies.mixing import Hubs
from flwr_dmml.tracking.records import RoundRecord


@pytest.fixture(autouse=True)
def _clear() -> None:
    Recording.final.clear()


MERGE: dict[str, Any] = {**SENSORS, "final-merge": "owners"}


# ---- how many rounds ------------------------------------------------------------------------


EVERYBODY = {node: ["b"] for node in range(12)}


def weigh(graph: nx.Graph, owners: Collection[int], hubs: Hubs) -> dict[int, dict[int, float]]:
    return metropolis_rows(graph, owners, hubs)


def test_rounds_of_a_ring_are_those_of_its_gap() -> None:
    """The slowest of a ring's waves falls by 1 - gap in a round; others fall faster."""
    graph = nx.cycle_graph(12)
    slowest = np.log(0.01) / np.log(1 - spectral_gap(metropolis_weights(graph)))
    merge = FinalMerge(0.01, 200)
    count, left = merge.rounds(
        lambda n, block: graph, EVERYBODY, weigh, lasting=True, couriers=False
    )
    assert 0.7 * slowest < count <= slowest + 1 and left <= 0.01
    few = FinalMerge(0.01, 5).rounds(
        lambda n, block: graph, EVERYBODY, weigh, lasting=True, couriers=False
    )
    assert few[0] == 5 and few[1] > 0.01


def test_groups_that_cannot_meet_count_apart_and_couriers_join_them() -> None:
    """On a line 0 - 1 - 2 - 3 device 1 does not own the block: 2 and 3 average at once."""
    graph = nx.path_graph(4)
    blocks = {0: ["b"], 1: [], 2: ["b"], 3: ["b"]}
    merge = FinalMerge(0.01, 200)
    alone = merge.rounds(lambda n, block: graph, blocks, weigh, lasting=True, couriers=False)
    carried = merge.rounds(lambda n, block: graph, blocks, weigh, lasting=True, couriers=True)
    assert alone[0] == 1 and carried[0] % 2 == 0 and carried[0] > 4


def test_a_single_device_needs_no_round() -> None:
    assert rounds_to_agree([{3: {3: 1.0}}], [[3]], 0.5) == (0, 0.0)


# ---- what comes of it -----------------------------------------------------------------------


def blocks() -> dict[str, list[Tensor]]:
    """Return what the devices have in the end, by block."""
    found: dict[str, list[Tensor]] = {}
    for own in Recording.final.values():
        for name, vector in own.items():
            found.setdefault(name, []).append(vector)
    return found


def spread() -> float:
    """Return the largest spread of a block, as a share of its norm."""
    each = [torch.stack(own) for own in blocks().values()]
    return max(float((x - x.mean(dim=0)).norm() / x.norm()) for x in each)


def joined(**changed: Any) -> dict[str, Any]:
    """Return a config of a graph on which all owners of a block are linked with one another."""
    return {**MERGE, "method": "recording", "topology": "complete", **changed}


def test_owners_of_every_block_end_with_its_average() -> None:
    run_peers({**joined(), "final-merge": "off", "topology": "star"}, Recording, num_rounds=2)
    assert spread() > 0.05
    # every owner of an encoder on a star but its middle hears from nobody
    peers = run_peers(joined(), Recording, num_rounds=2)
    assert spread() < 1e-6
    assert [r.round for r in peers.records] == [1, 2, 3], "one round on a complete graph"
    before, after = peers.records[1], peers.records[2]
    assert before.accuracy is not None and after.accuracy is not None
    assert after.train_loss is None and before.train_loss is not None
    assert all(node.bytes_sent > 0 and not any(node.updates.values()) for node in after.nodes)


@pytest.mark.parametrize("gossip", ["dpsgd", "sgp", "k-gt", "qg-dsgdm", "choco", "relaysgd"])
def test_with_any_rule_the_average_is_that_of_the_trained_models(gossip: str) -> None:
    """On a line: what the last round has mixed is averaged, and nothing of the rule is left."""

    class Averaged(Recording):
        name = "averaged"
        mixed: ClassVar[dict[int, dict[str, Tensor]]] = {}

        def begin(self, plan: Plan, inbox: Inbox) -> Inbox:
            found = super().begin(plan, inbox)
            if plan.merges and not plan.merged:
                self.mixed[self.partition.partition_id] = self.flat.copy()
            return found

    config = joined(method="averaged", gossip=gossip, topology="line")
    config |= {"modality-pattern": "audio", "num-nodes": 4, "final-merge-tolerance": 0.001}
    Averaged.mixed.clear()
    peers = run_peers(config, Averaged, num_rounds=2)
    assert not any(r.failed for r in peers.records) and len(peers.records) > 10
    assert all(n.rejected == 0 for r in peers.records for n in r.nodes)
    for name, own in blocks().items():
        mean = torch.stack([mixed[name] for mixed in Averaged.mixed.values()]).mean(dim=0)
        away = max(float((x - mean).norm()) for x in own)
        apart = max(float((x[name] - mean).norm()) for x in Averaged.mixed.values())
        assert away < 0.01 * apart, name


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"method": "dmml-kd"},  # with couriers, int8 and leaky D-squared
        {"gossip": "sgp", "topology": "ring", "topology-directed": True, "loss-rate": 0.2},
        {"gossip": "beer", "exchange.top-k": 0.3},
        {"method": "kd", "topology": "base", "topology-degree": 1},
        {"method": "harmony"},
    ],
    ids=str,
)
def test_rows_and_messages_give_the_same_numbers(changed: dict[str, Any]) -> None:
    run = on_both_engines({**MERGE, "final-merge-rounds": 6, **changed}, rounds=2)
    assert 2 < len(run.records) <= 8 and run.records[-1].accuracy is not None


def test_couriers_bring_the_models_of_owners_that_are_not_linked() -> None:
    config = {**MERGE, "method": "recording", "couriers": "forward", "final-merge-rounds": 40}
    run_peers(config, Recording, num_rounds=2)
    with_couriers = spread()
    run_peers({**config, "couriers": "off"}, Recording, num_rounds=2)
    assert with_couriers < 0.02 < spread()


# ---- what it costs ----------------------------------------------------------------------------


def test_batteries_pay_for_it_and_keep_something_for_it() -> None:
    radio = {"wireless.enabled": True, "energy.battery-share": 0.5}
    config = {**MERGE, **radio, "topology": "complete", "exchange.precision": "int8"}
    settings = parse_settings(config, find_parts()).settings
    peers = run_peers(config, num_rounds=4, energy=EnergyConstrained(settings))
    last = peers.records[-1]
    assert len(peers.records) == 5 and not last.failed, "everybody could pay for the merge"
    assert last.radio_j > peers.records[3].radio_j > 0, "float32 in place of int8"
    assert last.compute_j == 0
    assert last.total_j == pytest.approx(sum(r.compute_j + r.radio_j for r in peers.records))
    assert min(last.battery_j.values()) >= 0


def test_a_run_that_ends_early_is_merged_as_well() -> None:
    class Short(PeerStrategy):
        def stop(self, record: RoundRecord) -> str:
            return "enough" if record.round == 2 else ""

    config = {**FAST, "method": "recording", "num-nodes": 3, "modality-pattern": "audio"}
    merge = FinalMerge(0.01, 100)
    peers = Short(Complete(), num_nodes=3, method="recording", merge=merge, local_iterations=2)
    with server_identity(1):
        peers.start(InProcessGrid(make_client_app(Recording), 3, config), num_rounds=9)
    assert [r.round for r in peers.records] == [1, 2, 3, 4]
    assert [r.train_loss is None for r in peers.records] == [False, False, False, True]
    assert peers.records[2].accuracy is not None and peers.records[3].accuracy is not None
    assert spread() < 1e-6


def test_outcomes_of_a_merge_hold_the_blocks_alone() -> None:
    class Keeping(Recording):
        name = "keeping"
        names: ClassVar[list[set[str]]] = []

        def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
            outcome = super().run_round(plan, inbox)
            if plan.merges:
                self.names.append(set(outcome.payload))
            return outcome

    config = joined(method="keeping", **{"label-correction": "network", "gossip": "k-gt"})
    run_peers(config, Keeping, num_rounds=2)
    assert Keeping.names and all(
        own <= {"encoder.audio", "encoder.image", "head.audio", "head.image", "head.common"}
        for own in Keeping.names
    )
