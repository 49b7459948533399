"""Push-sum: by hand on three devices, on quadratics over links of one way, on engines, refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers import FAST, run_peers
from helpers_engines import SENSORS, on_both_engines
from helpers_gossip import OnAParabola
from helpers_quadratics import NODES, digraph, error, make

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.graph.topology import OnePeerExponential
from flwr_dmml.graph.weights import as_matrix, receiver_rows, sender_rows
from flwr_dmml.payload.plan import Inbox, Plan
from flwr_dmml.settings import find_parts, parse_settings

LINKS = "0 1\n1 2\n2 0\n0 2\n"
"""Device 0 sends to 1 and 2, 1 to 2, 2 to 0."""


@pytest.fixture
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pushed(rounds: int, tau: int, lr: float) -> tuple[list[float], list[float]]:
    """Push-sum as plain arithmetic; return where it ends, and the weights."""
    p = np.array([[1 / 3, 0, 1 / 2], [1 / 3, 1 / 2, 0], [1 / 3, 1 / 2, 1 / 2]])
    centre, s = np.array([1.0, 3.0, 8.0]), np.array([1.0, 2.0, 3.0])
    x, a = np.zeros(3), np.ones(3)
    for _ in range(rounds):
        z = x.copy()
        for _ in range(tau):
            z = z - lr * s * (z - centre)
        x, a = p @ (a * x + z - x), p @ a
        x = x / a
    return x.tolist(), a.tolist()


class Weighing(OnAParabola):
    """Keeps the weights of push-sum."""

    name = "weighing"
    gossip = "sgp"
    weights: ClassVar[dict[int, float]] = {}

    def evaluate(self) -> dict[str, float]:
        (block,) = self.blocks()
        a = self.mixer.state_of(block)["a"]
        self.weights[self.partition.partition_id] = float(a)
        return super().evaluate()


def one_way(path: Path, **more: Any) -> dict[str, Any]:
    path.write_text(LINKS)
    return {
        **FAST, "num-nodes": 3, "modality-pattern": "audio", "topology": "edge-list",
        "topology-file": str(path), "topology-directed": True, "momentum": 0.0, "clip-norm": 0.0,
        **more,
    }  # fmt: skip


def test_five_rounds_by_hand(tmp_path: Path) -> None:
    config = one_way(tmp_path / "links.txt", method="weighing")
    config |= {"local-iterations": 2, "learning-rate": 0.05}
    peers = run_peers(config, Weighing, num_rounds=5)
    assert not any(record.failed for record in peers.records)
    x, a = pushed(5, 2, 0.05)
    assert [OnAParabola.final[k] for k in range(3)] == pytest.approx(x, rel=1e-5)
    assert [Weighing.weights[k] for k in range(3)] == pytest.approx(a, rel=1e-5)
    assert sum(a) == pytest.approx(3) and max(a) > 1.2


def test_the_sum_of_the_weights_stays_where_some_hear_nobody(tmp_path: Path) -> None:
    config = one_way(tmp_path / "links.txt", method="weighing", topology="epidemic")
    peers = run_peers({**config, "topology-degree": 1}, Weighing, num_rounds=30)
    assert not any(node.rejected for record in peers.records for node in record.nodes)
    assert sum(Weighing.weights.values()) == pytest.approx(3, rel=1e-5)


def test_a_weight_that_there_cannot_be_is_rejected() -> None:
    rule = make("sgp")
    for weight in (0.0, -1.0, 7.0, float("nan")):
        problem = rule.problem([torch.ones(4), torch.tensor([weight])], 3)
        assert problem and "is not above 0 and at most 3" in problem
    assert rule.problem([torch.ones(4), torch.tensor([2.9])], 3) is None


@pytest.mark.usefixtures("_double")
def test_it_reaches_the_optimum_where_averages_of_what_comes_do_not() -> None:
    """Over links of one way that some hear more of; push-sum keeps the bias of plain gossip."""
    everybody = range(NODES)
    dealt = torch.from_numpy(as_matrix(sender_rows(digraph(), everybody), NODES))
    averaged = torch.from_numpy(as_matrix(receiver_rows(digraph(), everybody), NODES))
    assert error(make("sgp"), dealt, rounds=400, spread=False) < 0.05
    assert error(make("dpsgd"), averaged, rounds=400, spread=False) > 0.5
    uneven = torch.arange(NODES) % 5 * 2 + 1
    assert error(make("sgp"), dealt, rounds=200, tau=uneven, spread=False) < 0.2


@pytest.mark.usefixtures("_double")
def test_what_is_lost_in_silence_diverges_unless_the_sender_keeps_it() -> None:
    rng = np.random.default_rng(0)
    dealt = as_matrix(sender_rows(digraph(), range(NODES)), NODES)
    gone = rng.random((300, NODES, NODES)) < 0.1
    gone &= ~np.eye(NODES, dtype=bool)

    def silent(t: int) -> torch.Tensor:
        return torch.from_numpy(np.where(gone[t % 300], 0, dealt))

    def known(t: int) -> torch.Tensor:
        lost = np.where(gone[t % 300], dealt, 0).sum(axis=0)
        return silent(t) + torch.from_numpy(np.diag(lost))

    assert error(make("sgp"), known, rounds=300, spread=False) < 0.2
    assert error(make("sgp"), silent, rounds=300, spread=False) > 1


@pytest.mark.usefixtures("_double")
def test_where_everybody_sends_to_as_many_as_it_hears_from_it_is_plain_gossip() -> None:
    graphs = [OnePeerExponential(directed=True).graph(NODES, server_round=t) for t in range(1, 5)]
    rounds = [torch.from_numpy(as_matrix(sender_rows(g, range(NODES)), NODES)) for g in graphs]
    found = [error(make(name), lambda t: rounds[t % 4], rounds=100) for name in ("sgp", "dpsgd")]
    assert found[0] == pytest.approx(found[1], rel=1e-9)


@pytest.mark.parametrize(
    "changed",
    [
        {"topology": "one-peer-exponential", "topology-directed": True},
        {"topology": "erdos-renyi", "topology-directed": True, "topology-probability": 0.6},
        {"topology": "star", "loss-rate": 0.3},
        {"topology": "epidemic", "topology-degree": 2, "exchange.precision": "int8"},
    ],
    ids=str,
)
def test_rows_and_messages_give_the_same_numbers(changed: dict[str, Any]) -> None:
    run = on_both_engines({**SENSORS, "gossip": "sgp", **changed})
    assert run.records[-1].accuracy is not None


class Counting(Weighing):
    """On digits, keeps the weights of each block."""

    name = "counting"
    sums: ClassVar[dict[tuple[int, str], float]] = {}

    def build_model(self) -> torch.nn.Module:  # type: ignore[override]
        return super(OnAParabola, self).build_model()

    def local_loss(self, batch: Any) -> torch.Tensor:
        return super(OnAParabola, self).local_loss(batch)

    def mix(self, plan: Plan, inbox: Inbox) -> tuple[float, list[str]]:
        found = super().mix(plan, inbox)
        for block in self.blocks():
            a = self.mixer.state_of(block)["a"]
            self.sums[self.partition.partition_id, block] = float(a)
        return found

    def evaluate(self) -> dict[str, float]:
        return {}


def test_lost_messages_keep_the_sum_of_the_weights_of_every_block() -> None:
    """On a star, whose middle would otherwise gather or lose weight."""
    config = {**SENSORS, "method": "counting", "topology": "star", "loss-rate": 0.4}
    run_peers(config, Counting, num_rounds=4)
    blocks = {block for _, block in Counting.sums}
    for block in blocks:
        each = [a for (_, name), a in Counting.sums.items() if name == block]
        assert sum(each) == pytest.approx(len(each), rel=1e-5), block
    assert max(Counting.sums.values()) > 1.2


def test_what_is_refused(tmp_path: Path) -> None:
    def said(**config: Any) -> str:
        given = {key.replace("__", ".").replace("_", "-"): value for key, value in config.items()}
        with pytest.raises(SettingsError) as error:
            parse_settings({"method": "dpsgd", "gossip": "sgp", **given}, find_parts())
        return str(error.value)

    path = tmp_path / "links.txt"
    path.write_text("0 1\n1 2\n2 1\n")
    file = {"topology": "edge-list", "topology_file": str(path), "num_nodes": 3}
    assert "devices 0 and 1 cannot reach one another both ways" in said(
        **file, topology_directed=True
    )
    assert "gossip rule 'sgp' needs a block whole" in said(exchange__top_k=0.5)
    assert "the rule 'sgp' needs the graph's own weights" in said(method="harmony")
    assert "couriers = 'forward': the gossip rule 'sgp'" in said(couriers="forward")
    parse_settings(
        {"method": "dpsgd", "gossip": "sgp", "topology": "ring", "topology-directed": True},
        find_parts(),
    )
