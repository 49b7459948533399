"""CHOCO, BEER and MoTEF: against their papers, on quadratics, on engines, with messages lost."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers import run_peers
from helpers_engines import SENSORS, on_both_engines
from helpers_quadratics import LENGTH, NODES, er, error, make, problem
from torch import Tensor

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import Learner
from flwr_dmml.gossip.trial import Trial
from flwr_dmml.graph.weights import metropolis_weights
from flwr_dmml.payload.copies import Copies
from flwr_dmml.payload.plan import Inbox, Plan
from flwr_dmml.settings import find_parts, parse_settings

UNEVEN = torch.arange(NODES) % 5 * 2 + 1


@pytest.fixture
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def weights() -> Tensor:
    return torch.from_numpy(metropolis_weights(er()))


def lossy(one_way: bool) -> Any:
    """Return weights of rounds in which a tenth of the messages, or of the links, is lost."""
    rng, full = np.random.default_rng(1), weights().numpy()
    every = []
    for _ in range(100):
        lost = rng.random((NODES, NODES)) < 0.1
        lost = lost if one_way else np.triu(lost, 1) | np.triu(lost, 1).T
        w = np.where(lost, 0, full - np.diag(np.diag(full)))
        every.append(torch.from_numpy(w + np.diag(1 - w.sum(axis=1))))
    return lambda t: every[t % 100]


# ---- on quadratics ------------------------------------------------------------------------------


@pytest.mark.usefixtures("_double")
def test_beer_and_motef_are_exact_with_a_fifth_of_the_numbers_and_choco_is_not() -> None:
    assert error(make("choco", gamma=0.3), weights(), rounds=300, top=0.2) > 0.2
    assert error(make("choco", gamma=1.0), weights(), rounds=300, top=0.2) > 100  # too large a step
    assert error(make("beer", gamma=0.3), weights(), rounds=1000, top=0.2) < 1e-6
    how = {"rounds": 1000, "top": 0.2, "momentum": 0.9, "lr": 0.002}
    assert error(make("motef", gamma=0.3), weights(), **how) < 1e-6


@pytest.mark.usefixtures("_double")
def test_they_are_with_several_steps_of_uneven_numbers() -> None:
    assert error(make("beer", gamma=0.3), weights(), rounds=900, top=0.2, tau=UNEVEN) < 1e-5
    how = {"rounds": 900, "top": 0.2, "momentum": 0.9, "lr": 0.002}
    assert error(make("motef", gamma=0.3), weights(), tau=UNEVEN, **how) < 1e-5


@pytest.mark.usefixtures("_double")
def test_beer_with_pairs_lost_is_exact_and_with_messages_lost_one_way_is_not() -> None:
    assert error(make("beer", gamma=0.3), lossy(one_way=False), rounds=1200, top=0.2) < 1e-6
    assert error(make("beer", gamma=0.3), lossy(one_way=True), rounds=600, top=0.2) > 0.02


@pytest.mark.usefixtures("_double")
def test_choco_that_sends_everything_is_plain_gossip() -> None:
    found = [error(make(name), weights(), rounds=50) for name in ("choco", "dpsgd")]
    assert found[0] == pytest.approx(found[1], rel=1e-9)


# ---- by hand ------------------------------------------------------------------------------------

LRS = (0.05, 0.05, 0.03, 0.03, 0.05)


def largest_two(change: Tensor) -> Tensor:
    least = change.abs().topk(2, dim=1).values[:, -1:]
    return torch.where(change.abs() >= least, change, 0.0)


def stepped(name: str) -> list[Tensor]:
    a, b, _ = problem()
    start = 0.1 * torch.ones(NODES, LENGTH)
    trial = Trial(
        make(name, gamma=0.4),
        start,
        lambda x: (a @ (x - b)[:, :, None])[:, :, 0],
        lr=1.0,
        code=largest_two,
    )
    trial.mix(weights())
    found = []
    for lr in LRS:
        trial.lr = lr
        trial.train(torch.ones(NODES, dtype=torch.long))
        trial.mix(weights())
        found.append(trial.x)
    return found


@pytest.mark.usefixtures("_double")
def test_choco_by_hand() -> None:
    (a, b, _), w = problem(), weights()
    x = copies = 0.1 * torch.ones(NODES, LENGTH)
    for lr, found in zip(LRS, stepped("choco"), strict=True):
        z = x - lr * (a @ (x - b)[:, :, None])[:, :, 0]
        copies = copies + largest_two(z - copies)
        x = z + 0.4 * (w @ copies - copies)
        assert torch.allclose(found, x, atol=1e-12)


@pytest.mark.usefixtures("_double")
def test_beer_is_its_recursion() -> None:
    """V <- V + gamma (W - I) G + g - g', from V = g, and G <- G + C(V - G).

    x goes along V after mixing, with the gradient of where mixing has put it.
    """
    (a, b, _), w = problem(), weights()
    x = h = 0.1 * torch.ones(NODES, LENGTH)
    v = g_of_v = before = torch.zeros_like(x)
    for t, (lr, found) in enumerate(zip(LRS, stepped("beer"), strict=True)):
        g = (a @ (x - b)[:, :, None])[:, :, 0]
        v = v + 0.4 * (w @ g_of_v - g_of_v) + g - before if t else g
        before, z = g, x - lr * v
        h, g_of_v = h + largest_two(z - h), g_of_v + largest_two(v - g_of_v)
        x = z + 0.4 * (w @ h - h)
        assert torch.allclose(found, x, atol=1e-12)


# ---- on engines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gossip", ["choco", "beer", "motef"])
@pytest.mark.parametrize(
    "changed",
    [
        {"exchange.precision": "int8", "exchange.top-k": 0.2, "loss-rate": 0.3},
        {"method": "dmml-kd", "couriers": "off"},
    ],
    ids=str,
)
def test_rows_and_messages_give_the_same_numbers(gossip: str, changed: dict[str, Any]) -> None:
    run = on_both_engines({**SENSORS, "gossip": gossip, **changed}, rounds=4)
    assert run.records[-1].accuracy is not None


class Looking(Learner):
    """Keeps every device's copies."""

    name = "looking"
    gossip = "choco"
    copies: ClassVar[dict[int, Copies]] = {}
    resent: ClassVar[list[tuple[int, int, tuple[int, ...]]]] = []

    def mix(self, plan: Plan, inbox: Inbox) -> tuple[float, list[str]]:
        me = self.partition.partition_id
        assert isinstance(self.compressor, Copies)
        self.copies[me] = self.compressor
        if plan.resend:
            self.resent.append((plan.server_round, me, plan.resend))
        return super().mix(plan, inbox)


LOOKING: dict[str, Any] = {
    **SENSORS,
    "method": "looking",
    "exchange.precision": "int8",
    "exchange.top-k": 0.2,
}


def assert_in_step(*rounds: int) -> None:
    """Assert that every neighbour has the same copy of a device as itself, to the bit."""
    compared = 0
    for receiver, copies in Looking.copies.items():
        for key, x in copies.state().items():
            if not key.startswith("compressor.of.") or key.endswith("#count"):
                continue
            sender, _, name = key.removeprefix("compressor.of.").partition(".")
            counts = [
                int(Looking.copies[int(sender)].state()[f"compressor.count.{name}"]),
                int(copies.state()[f"{key}#count"]),
            ]
            if counts[0] == counts[1]:
                mine = Looking.copies[int(sender)].state()[f"compressor.own.{name}"]
                assert torch.equal(mine, x), (receiver, key)
                compared += 1
    assert compared >= rounds[0]


def test_copies_stay_in_step_and_who_missed_a_message_gets_a_copy() -> None:
    Looking.copies.clear()
    Looking.resent.clear()
    clean = run_peers(LOOKING, Looking, num_rounds=3)
    assert_in_step(28)
    assert Looking.resent == []
    peers = run_peers({**LOOKING, "loss-rate": 0.3}, Looking, num_rounds=5)
    assert all(n.rejected == 0 for r in peers.records for n in r.nodes)
    assert_in_step(15)
    assert Looking.resent and all(t > 1 for t, _, _ in Looking.resent)
    size = clean.records[1].nodes[2].bytes_sent
    t, sender, _ = Looking.resent[0]
    assert peers.records[t - 1].nodes[sender].bytes_sent > 1.5 * size, "a copy is sent in full"


def test_a_device_that_failed_gets_copies_and_gives_none() -> None:
    class Failing(Looking):
        name = "failing"

        def after_training(self, plan: Plan, inbox: Inbox) -> None:
            if (plan.server_round, self.partition.partition_id) == (3, 2):
                raise RuntimeError("out of order")

    Looking.copies.clear()
    Looking.resent.clear()
    peers = run_peers({**LOOKING, "method": "failing"}, Failing, num_rounds=6)
    assert [sorted(r.failed) for r in peers.records] == [[], [], [2], [], [], []]
    assert all(n.rejected == 0 for r in peers.records for n in r.nodes)
    assert_in_step(28)
    # Of round 4 on 2 lacks what came in round 3; 1 and 3 had nothing from it.
    assert sorted(Looking.resent) == [(4, 1, (2,)), (4, 2, (1, 3)), (4, 3, (2,))]


def test_devices_that_start_unequal_begin_with_copies() -> None:
    class Unequal(Looking):
        name = "unequal"

        def reset(self) -> None:
            super().reset()
            with torch.no_grad():
                for p in self.model.parameters():
                    p += 0.01 * self.partition.partition_id

    Looking.copies.clear()
    Looking.resent.clear()
    peers = run_peers({**LOOKING, "method": "unequal"}, Unequal, num_rounds=3)
    assert all(n.rejected == 0 for r in peers.records for n in r.nodes)
    assert {t for t, _, _ in Looking.resent} == {1} and len(Looking.resent) == 6
    assert_in_step(28)


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("gossip", ["choco", "beer", "motef"])
def test_what_is_refused(gossip: str) -> None:
    def said(**config: Any) -> str:
        given = {key.replace("__", ".").replace("_", "-"): value for key, value in config.items()}
        with pytest.raises(SettingsError) as error:
            parse_settings({"method": "dpsgd", "gossip": gossip, **given}, find_parts())
        return str(error.value)

    assert "this graph changes every round" in said(topology="base")
    assert "needs weights that stay the same" in said(method="harmony")
    assert "from device to device nobody knows" in said(exchange__transport="direct")
    assert "its links are one-way" in said(topology="ring", topology_directed=True)
    for gamma in (0.0, 1.5):
        words = f'{gossip}.gamma = {gamma}: must be "auto" or a number above 0, at most 1'
        assert words in said(**{f"{gossip}__gamma": gamma})
