"""Label shares by gossip, and losses corrected for them."""

from collections.abc import Mapping
from math import log
from typing import Any

import networkx as nx
import pytest
import torch
from helpers import FAST, make_learner, run_peers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flwr_dmml.clients import find_methods
from flwr_dmml.engine import inprocess
from flwr_dmml.learning.evaluation import SHIFTED, confusion, predictions, weighted_recall
from flwr_dmml.learning.label_shares import REPORT, UNSEEN, LabelShares
from flwr_dmml.losses import cross_entropy

CONFIG: dict[str, Any] = {**FAST, "num-nodes": 4, "topology": "ring", "alpha": 0.3}
NETWORK = {"label-correction": "network"}


def gossip(devices: Mapping[int, LabelShares], graph: nx.Graph, rounds: int) -> None:
    """Let devices tell their neighbours what they know, round by round."""
    reports: dict[int, list[float]] = {}
    for _ in range(rounds):
        for k, device in devices.items():
            near = [reports[j] for j in graph[k] if j in reports]
            device.hear(near, graph.degree(k))
        reports = {k: device.report() for k, device in devices.items()}


def shares_of(counts: list[list[int]]) -> dict[int, LabelShares]:
    return {k: LabelShares(torch.tensor(c), "network") for k, c in enumerate(counts)}


def total(devices: Mapping[int, LabelShares]) -> Tensor:
    return torch.stack([torch.tensor(d.report()[:-1]) for d in devices.values()]).sum(dim=0)


@st.composite
def networks(draw: st.DrawFn) -> tuple[nx.Graph, list[list[int]]]:
    """Draw a connected graph, and label counts of its nodes."""
    n = draw(st.integers(2, 7))
    graph = nx.Graph((draw(st.integers(0, k - 1)), k) for k in range(1, n))
    graph.add_edges_from(draw(st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))))
    graph.remove_edges_from(list(nx.selfloop_edges(graph)))
    counts = st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(any)
    return graph, draw(st.lists(counts, min_size=n, max_size=n))


@settings(deadline=None, max_examples=30)
@given(networks())
def test_all_come_to_the_exact_shares_on_a_connected_graph(
    network: tuple[nx.Graph, list[list[int]]],
) -> None:
    graph, counts = network
    devices = shares_of(counts)
    gossip(devices, graph, 800)
    expected = torch.tensor(counts).sum(dim=0) / sum(map(sum, counts))
    for device in devices.values():
        assert torch.allclose(device.network, expected, atol=1e-4)


def test_links_may_change_from_round_to_round() -> None:
    """The sum over all devices stays the same, and all come to the same shares."""
    counts = [[9, 1, 0], [0, 5, 5], [1, 0, 20], [7, 7, 7]]
    devices = shares_of(counts)
    reports: dict[int, list[float]] = {}
    links = [[(0, 1), (2, 3)], [(1, 2)], [(0, 2), (1, 3)]]
    for t in range(120):
        before = nx.Graph(links[(t - 1) % 3])
        for k, device in devices.items():
            near = [reports[j] for j in before.adj.get(k, ()) if j in reports]
            device.hear(near, sum(k in link for link in links[t % 3]))
        reports = {k: device.report() for k, device in devices.items()}
        assert total(devices).tolist() == pytest.approx([17, 13, 32], rel=1e-5)
    for device in devices.values():
        assert device.network.tolist() == pytest.approx([17 / 62, 13 / 62, 32 / 62], rel=1e-4)


def test_those_that_stay_go_on_when_one_leaves() -> None:
    """The others agree, on shares between those with and without the one that has left."""
    counts = [[40, 0], [0, 10], [10, 10], [5, 15]]
    devices, ring = shares_of(counts), nx.cycle_graph(4)
    gossip(devices, ring, 3)
    del devices[0]
    before = total(devices)
    gossip(devices, ring.subgraph([1, 2, 3]), 300)
    assert torch.allclose(total(devices), before, rtol=1e-4)
    found = [device.network[0].item() for device in devices.values()]
    assert found == pytest.approx([found[0]] * 3, abs=1e-4)
    assert 15 / 50 < found[0] < 55 / 90 + 1e-6


def test_the_shift_by_hand() -> None:
    """Shares 3/4, 1/4, 0 against 1/3 each: log 9/4, log 3/4, and a class that is not there."""
    device = LabelShares(torch.tensor([6, 2, 0]), "uniform")
    assert device.shift().tolist() == pytest.approx([log(9 / 4), log(3 / 4), UNSEEN])
    assert device.report() == [] and device.payload([]) == {}
    device = LabelShares(torch.tensor([6, 2, 0]), "network")
    assert device.shift().tolist() == [0, 0, 0], "it knows of nobody else yet"
    device.hear([[2.0, 6.0, 8.0, 1.0]], 3)  # w = 1/2: (6 + 2) / 2, (2 + 6) / 2, 8 / 2
    assert device.report() == [4, 4, 4, 3]
    assert device.shift().tolist() == pytest.approx([log(9 / 4), log(3 / 4), UNSEEN])
    device.hear([[0.0, 8.0, 0.0, 1.0]], 3)  # it has three links by now, and w = 1/4
    assert device.report() == [3, 5, 3, 3]
    assert LabelShares(torch.tensor([6, 2, 0]), "off").shift() is None


def test_the_loss_of_own_samples_gets_the_shift_and_that_of_soft_labels_does_not() -> None:
    learner = make_learner({**CONFIG, **NETWORK})
    logits, labels = torch.randn(6, 10), torch.arange(6)
    plain = learner.cross_entropy(logits, labels)
    assert plain == cross_entropy(logits, labels)
    learner.label_shift = torch.randn(10)
    found = learner.cross_entropy(logits, labels)
    assert found == cross_entropy(logits + learner.label_shift, labels) != plain
    soft = torch.softmax(torch.randn(6, 10), dim=1)
    assert learner.cross_entropy(logits, soft) == cross_entropy(logits, soft)


def test_where_all_have_the_same_shares_training_is_as_without() -> None:
    """A network of one device: its shares are the network's, and no bit differs."""
    runs = [
        run_peers({**CONFIG, "num-nodes": 1, "method": "dmml-kd", "label-correction": how})
        for how in ("off", "network")
    ]
    found = [[record.to_json() for record in run.records] for run in runs]
    for lines in found:
        for line in lines:  # of which it sends more
            for key in ("bytes_sent_per_node", "total_bits"):
                line.pop(key)
    assert found[0] == found[1]


def test_accuracy_at_own_shares_by_hand() -> None:
    """Recall 2/3 of class 0 and 1/2 of class 1; at shares 3/4 and 1/4: 5/8."""
    table = confusion(torch.tensor([0, 0, 1, 1, 0]), torch.tensor([0, 0, 0, 1, 1]), 3)
    assert weighted_recall(table, torch.tensor([0.75, 0.25, 0.0])) == pytest.approx(5 / 8)
    assert weighted_recall(table, torch.tensor([0.6, 0.2, 0.2])) == pytest.approx(5 / 8)


def test_a_device_predicts_by_its_own_shares_for_them() -> None:
    learner = make_learner({**CONFIG, **NETWORK, "modality-pattern": "image"})
    shift = torch.full((10,), UNSEEN)
    shift[3] = 0.0
    found = predictions(learner.scores, learner.test_data, [("image",)], shift)
    assert (found[SHIFTED] == 3).all() and len(found["image",].unique()) > 1


@pytest.mark.parametrize("method", sorted(find_methods()))
def test_every_method_takes_it(method: str) -> None:
    """Its losses differ from those without, if devices differ and it trains on own samples."""
    config = {**CONFIG, "method": method, "public.samples": 60, "topology": "line"}
    plain, corrected = (
        run_peers({**config, "label-correction": how}, num_rounds=2) for how in ("off", "uniform")
    )
    a, b = (run.records[0].train_loss for run in (plain, corrected))
    assert a is not None and b is not None and abs(a - b) > 1e-3
    record = corrected.records[-1]
    assert all(0 <= n.accuracy_own_shares <= 1 for n in record.nodes if n.accuracy_own_shares)
    assert record.accuracy_own_shares is not None


def test_counts_travel_in_payloads_and_in_reports_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds with a message for each device, and rounds without, give the same numbers."""
    config = {**CONFIG, **NETWORK, "method": "dpsgd"}
    bulk = run_peers(config, num_rounds=3)
    with monkeypatch.context() as patched:
        patched.setattr(inprocess.InProcessGrid, "hosted", None)
        messages = run_peers(config, num_rounds=3)
    assert [r.to_json() for r in bulk.records] == [r.to_json() for r in messages.records]
    for partition, payload in messages.exchange.payloads.items():
        assert (
            payload[REPORT].numpy().tolist()
            == bulk.exchange.payloads[partition][REPORT].numpy().tolist()
        )


def test_only_the_network_s_shares_make_counts_travel() -> None:
    for how, travels in (("network", True), ("uniform", False), ("off", False)):
        learner = make_learner({**CONFIG, "label-correction": how})
        assert (REPORT in learner.extras()) == travels
