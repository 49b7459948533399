"""Runs with couriers: what is mixed, on every engine; who fails; what it takes."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import networkx as nx
import numpy as np
import pytest
import torch
from helpers import FAST, Recording, make_learner, run_peers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import DPSGD, make_client_app
from flwr_dmml.energy.options import AllocationOptions, EnergyOptions, WirelessOptions
from flwr_dmml.engine import InProcessGrid, server_identity
from flwr_dmml.gossip.rule import GossipRule
from flwr_dmml.graph.couriers import Hub
from flwr_dmml.graph.topology import make_topology
from flwr_dmml.payload.compression import Compressor
from flwr_dmml.payload.plan import Averaged, Carried, Inbox, Outcome, Payload, Plan
from flwr_dmml.payload.routing import averaged, brought, passed_on, wanted
from flwr_dmml.settings import OwnParts, Settings, find_parts, parse_settings
from flwr_dmml.strategies import PeerStrategy
from flwr_dmml.strategies.couriers import Couriers
from flwr_dmml.strategies.energy.energy_constrained import EnergyConstrained
from flwr_dmml.strategies.energy.round_budget import Prospect
from flwr_dmml.strategies.mixing import FarLink, neighbourhoods
from flwr_dmml.transport.messages import pack, read_plan, write_plan
from flwr_dmml.transport.relay import size_bytes

A, V, C = "encoder.audio", "encoder.image", "head.common"
RING = nx.cycle_graph(6)
"""Sensors in turn: audio, image, both. Audio is at 0, 2, 3, 5, in the pairs 2-3 and 5-0."""
CONFIG: dict[str, Any] = {
    **FAST,
    "num-nodes": 6,
    "modality-pattern": "audio,image,audio+image",
    "method": "dpsgd",
    "couriers": "forward",
}
STAR: dict[str, Any] = {
    **CONFIG,
    "topology": "star",
    "num-nodes": 4,
    "modality-pattern": "image,audio,audio,audio",
    "couriers": "average",
}
"""Courier 0, with images only, and three owners of audio that know nobody else."""


# ---- payloads -----------------------------------------------------------------------------------


def test_a_courier_passes_on_what_it_has_received_and_the_receiver_reads_it_as_the_origins() -> (
    None
):
    """Device 3's block goes over 4 to 5; its scales go along, other blocks do not."""
    x, scale, other = torch.arange(3.0), torch.ones(1), torch.zeros(2)
    taken = Plan(3, 1, neighbours=(3,), weights={C: (0.5, 0.5)}, carries=(Carried(3, 3, (A,)),))
    published = {A: x, A + "#scale": scale, V: other, C: other, "stats.speeds": other}
    assert wanted(taken, 1, 4, published) == {A, C}
    sent = passed_on(taken, {3: published})
    assert sent == {"encoder.audio<3": x, "encoder.audio<3#scale": scale}
    assert sent["encoder.audio<3"] is x
    plan = Plan(
        4, 1, neighbours=(4,), weights={A: (0.5, 0.0, 0.5)}, far=(Carried(3, 4, (A,)),)
    )  # fmt: skip
    assert wanted(plan, 1, 5, sent) == {"encoder.audio<3"} and plan.sources == (4, 3)
    assert brought(plan.far, {4: sent}) == {3: {A: x, A + "#scale": scale}}
    further = Plan(4, 1, neighbours=(4,), carries=(Carried(3, 4, (A,)),))
    assert passed_on(further, {4: sent}) == sent, "the next courier does the same"
    assert wanted(further, 1, 5, sent) == {"encoder.audio<3"}
    assert passed_on(taken, {}) == {} and brought(plan.far, {}) == {3: {}}


def test_a_courier_makes_one_mean_of_what_it_has_received() -> None:
    """Device 4 of 1, 3 and 5, which read it under the courier's virtual id, -5."""
    plan = Plan(3, 1, neighbours=(1, 3, 5), averages=(Averaged(A, (1, 3, 5), 3),))
    published = {j: {A: torch.tensor([1.0, 2.0, float(j)]), V: torch.ones(2)} for j in (1, 3, 5)}
    assert wanted(plan, 2, 4, published[3]) == {A}
    sent, wrong = averaged(plan, published, Compressor(), 4)
    assert sent.keys() == {"encoder.audio<-5"} and wrong == []
    assert torch.equal(sent["encoder.audio<-5"], torch.tensor([1.0, 2.0, 3.0]))
    mixes = Plan(4, 1, neighbours=(4,), weights={A: (0.5, 0.0, 0.5)}, far=(Carried(-5, 4, (A,)),))
    assert mixes.far[0].is_mean and mixes.sources == (4, -5)
    assert wanted(mixes, 1, 3, sent) == {"encoder.audio<-5"}
    assert brought(mixes.far, {4: sent}) == {-5: {A: sent["encoder.audio<-5"]}}
    for x in (published[j][A] for j in (1, 3, 5)):
        assert x[0] == 1, "what was received stays as it is"


def test_a_mean_is_rounded_once() -> None:
    """127 and 63.5 in int8, with scales of 1 and 1/2: their mean is 95.25 and 4 / 2 = 2.

    It is sent with a scale of 95.25 / 127 = 3/4: 127, and 2 / 0.75 = 2.67 as 3.
    """
    plan = Plan(2, 1, neighbours=(1, 2), averages=(Averaged(A, (1, 2), 2),))
    inbox: Inbox = {
        1: {A: torch.tensor([127, 4], dtype=torch.int8), A + "#scale": torch.tensor([1.0])},
        2: {A: torch.tensor([127, 0], dtype=torch.int8), A + "#scale": torch.tensor([0.5])},
    }
    compressor = Compressor("int8")
    for _ in range(2):  # no error feedback
        sent, wrong = averaged(plan, inbox, compressor, 0)
        assert sent["encoder.audio<-1"].tolist() == [127, 3] and wrong == []
        assert sent["encoder.audio<-1#scale"].tolist() == [0.75]
    assert compressor.state() == {}


def test_what_cannot_be_used_is_left_out_of_a_mean_and_named() -> None:
    plan = Plan(3, 1, neighbours=(1, 2, 3, 4, 5), averages=(Averaged(A, (1, 2, 3, 4, 5), 2),))
    inbox: Inbox = {
        1: {A: torch.tensor([1.0, 3.0])},
        2: {A: torch.tensor([float("nan"), 3.0])},
        3: {A: torch.ones(3)},
        4: {A: torch.zeros(0)},  # does not send it in this round
        5: {},
    }
    sent, wrong = averaged(plan, inbox, Compressor(), 0)
    assert torch.equal(sent["encoder.audio<-1"], inbox[1][A])
    assert wrong == [
        "2: block encoder.audio holds NaN or infinite values",
        "3: block encoder.audio has shape (3,) instead of (2,)",
        "5: block encoder.audio is missing",
    ]
    assert averaged(plan.without([1]), inbox, Compressor(), 0)[0] == {}
    coarse = {1: {A: torch.ones(2, dtype=torch.int8)}, 4: {A: torch.zeros(0, dtype=torch.int8)}}
    none, why = averaged(plan.without([2, 3, 5]), coarse, Compressor("int8"), 0)
    assert none == {} and why == ["1: block encoder.audio lacks encoder.audio#scale"]


def test_a_plan_is_written_with_what_is_carried() -> None:
    plan = Plan(
        2, 3, neighbours=(1, 4), weights={A: (0.4, 0.3, 0.0, 0.3)}, far=(Carried(3, 4, (A, V)),),
        carries=(Carried(7, 1, (C,)), Carried(8, 1, (C, V))),
        averages=(Averaged(A, (1, 4), 30), Averaged(V, (1, 4), 20)),
    )  # fmt: skip
    assert read_plan(write_plan(plan, "dpsgd")) == plan


def test_a_missing_courier_takes_what_it_brings_with_it() -> None:
    plan = Plan(
        2, 3, neighbours=(1, 4), weights={A: (0.4, 0.2, 0.1, 0.3), C: (0.5, 0.2, 0.3, 0.0)},
        far=(Carried(3, 4, (A,)),), carries=(Carried(7, 1, (V,)), Carried(8, 4, (V,))),
        averages=(Averaged(V, (1, 4), 20),),
    )  # fmt: skip
    left = plan.without([4])
    assert left.neighbours == (1,) and left.far == () and left.carries == (Carried(7, 1, (V,)),)
    assert left.averages == (Averaged(V, (1,), 20),)
    assert left.weights[A] == pytest.approx((0.8, 0.2))
    assert left.weights[C] == pytest.approx((0.8, 0.2))


# ---- plans --------------------------------------------------------------------------------------


def prospect(graph: nx.Graph, spare: Mapping[int, float] | None = None) -> Prospect:
    return Prospect(graph, np.ones(len(graph)), dict(spare or {}))


def sizes(*kinds: str) -> dict[int, dict[str, int]]:
    of = {"a": {A: 10, C: 1}, "v": {V: 20, C: 1}, "av": {A: 10, V: 20, C: 1}}
    return {k: of[kind] for k, kind in enumerate(kinds)}


SIX = sizes("a", "v", "av", "a", "v", "av")


def test_three_rounds_of_a_ring_by_hand() -> None:
    """Round 2 takes what round 1 has published, round 3 mixes it: one round late.

    1 and 4 could carry audio between the pairs 2-3 and 5-0, 0 and 3 image between 1-2 and 4-5: of
    equals the first does.
    """
    couriers, everybody = Couriers(), range(6)
    first = couriers.plan(nx.empty_graph(6), [], prospect(RING), SIX)
    couriers.begin(first)
    assert first.by == {} == first.bytes_more, "nothing has been received yet"
    assert couriers.brought(RING, SIX) == {}
    second = couriers.plan(RING, everybody, prospect(RING), SIX)
    couriers.begin(second)
    assert second.by == {
        0: (Carried(1, 1, (V,)), Carried(5, 5, (V,))),
        1: (Carried(0, 0, (A,)), Carried(2, 2, (A,))),
    }
    assert second.bytes_more == {0: 40, 1: 20}
    links = couriers.brought(RING, SIX)
    assert links == {
        A: [FarLink((0, 2), (1, 1))],
        V: [FarLink((1, 5), (0, 0))],
    }
    around = neighbourhoods(RING, SIX, links)
    assert around[2].neighbours == (1, 3)
    assert around[2].far == (Carried(0, 1, (A,)),)
    assert around[2].weights[A] == pytest.approx((1 / 3, 0, 1 / 3, 1 / 3))
    assert around[2].weights[V] == pytest.approx((2 / 3, 1 / 3, 0, 0))
    assert around[2].weights[C] == pytest.approx((1 / 3, 1 / 3, 1 / 3, 0))


def test_a_longer_gap_takes_a_round_for_each_courier() -> None:
    """0 - 1 - 2 - 3 with the owners 0 and 3: round 2 brings it to 1, 3 to 2, 4 to the other end."""
    graph, blocks = nx.path_graph(4), sizes("a", "v", "v", "a")
    couriers = Couriers()
    by: list[dict[int, tuple[Carried, ...]]] = []
    found: list[bool] = []
    for t in range(1, 5):
        received = graph if t > 1 else nx.empty_graph(4)
        found.append(A in couriers.brought(received, blocks))
        carrying = couriers.plan(received, range(4) if t > 1 else [], prospect(graph), blocks)
        couriers.begin(carrying)
        by.append(carrying.by)
    assert by[0] == {} and found == [False, False, False, True]
    assert by[1] == {1: (Carried(0, 0, (A,)),), 2: (Carried(3, 3, (A,)),)}
    assert by[2] == {
        1: (Carried(0, 0, (A,)), Carried(3, 2, (A,))),
        2: (Carried(0, 1, (A,)), Carried(3, 3, (A,))),
    }


def test_a_link_needs_both_directions_and_both_ends() -> None:
    couriers, every = Couriers(), range(6)
    couriers.begin(couriers.plan(RING, every, prospect(RING), SIX))
    assert couriers.brought(RING, SIX).keys() == {A, V}
    there = {k: own for k, own in SIX.items() if k != 1}  # a courier is gone, and an end of image
    assert couriers.brought(RING, there) == {}
    there = {k: own for k, own in SIX.items() if k != 5}  # an end is
    assert couriers.brought(RING, there).keys() == {A}
    cut = RING.copy()
    cut.remove_edge(1, 2)
    assert couriers.brought(cut, SIX).keys() == {V}, "it could not be handed over"
    only = couriers.plan(RING, [0, 1, 3, 4, 5], prospect(RING), SIX)  # 2 has published nothing
    couriers.begin(only)
    assert couriers.brought(RING, SIX).keys() == {V}
    whole = nx.complete_graph(6)
    assert couriers.brought(whole, SIX) == {}, "the owners are linked by now"


def test_who_cannot_pay_carries_less_or_nothing() -> None:
    """1 can pay for 19 bytes, less than two copies of audio: it carries none; 4 for just both."""
    carrying = Couriers().plan(RING, range(6), prospect(RING, {1: 19.0, 4: 20.0, 0: 0.0}), SIX)
    assert carrying.bytes_more == {3: 40, 4: 20}


def test_three_rounds_of_means_by_hand() -> None:
    """As on the ring above, but 1 sends one mean to 0 and 2, and 0 one to 1 and 5.

    2 has the neighbour 3 and the mean of 1: 1/3 each, and 1/3 for itself, besides its share of the
    mean.
    """
    couriers, everybody = Couriers(average=True), range(6)
    first = couriers.plan(nx.empty_graph(6), [], prospect(RING), SIX)
    couriers.begin(first)
    assert first.hubs == [] and first.bytes_more == {} and couriers.means(RING, SIX) == {}
    second = couriers.plan(RING, everybody, prospect(RING), SIX)
    couriers.begin(second)
    assert second.by == {} and second.routes == [] and second.bytes_more == {0: 20, 1: 10}
    means = couriers.means(RING, SIX)
    assert means == {A: [Hub(1, (0, 2))], V: [Hub(0, (1, 5))]}
    assert couriers.brought(RING, SIX) == {}
    around = neighbourhoods(RING, SIX, {}, means)
    assert around[2].neighbours == (1, 3) and around[2].far == (Carried(-2, 1, (A,)),)
    assert around[2].weights[A] == pytest.approx((1 / 3, 0, 1 / 3, 1 / 3))
    assert around[2].weights[V] == pytest.approx((2 / 3, 1 / 3, 0, 0))
    assert around[1].far == (Carried(-1, 0, (V,)),) and around[0].far == (Carried(-2, 1, (A,)),)


def test_a_mean_needs_all_whose_mean_it_is() -> None:
    star, four = nx.star_graph(3), sizes("v", "a", "a", "a")
    couriers = Couriers(average=True)
    couriers.begin(couriers.plan(star, range(4), prospect(star), four))
    assert couriers.means(star, four) == {A: [Hub(0, (1, 2, 3))]}
    for gone in (0, 2):
        assert couriers.means(star, {k: own for k, own in four.items() if k != gone}) == {}
    cut = star.copy()
    cut.remove_edge(0, 3)
    assert couriers.means(cut, four) == {}, "it could not be handed over"
    couriers.begin(couriers.plan(cut, range(4), prospect(star), four))  # 3's has not arrived
    assert couriers.means(star, four) == {A: [Hub(0, (1, 2))]}
    couriers.begin(couriers.plan(star, [0, 1], prospect(star), four))
    assert couriers.means(star, four) == {}, "1 alone has published"
    poor = couriers.plan(star, range(4), prospect(star, {0: 9.0}), four)
    assert poor.hubs == [] and poor.bytes_more == {}, "it cannot pay for 10 bytes"
    assert couriers.plan(star, range(4), prospect(star, {0: 10.0}), four).bytes_more == {0: 10}


@pytest.mark.parametrize("average", [False, True])
def test_a_state_is_json_and_goes_on(average: bool) -> None:
    import json

    couriers, again = Couriers(average=average), Couriers(average=average)
    couriers.begin(couriers.plan(RING, range(6), prospect(RING), SIX))
    again.load_state(json.loads(json.dumps(couriers.state())))
    assert again.brought(RING, SIX) == couriers.brought(RING, SIX)
    assert again.means(RING, SIX) == couriers.means(RING, SIX)
    assert bool(again.means(RING, SIX)) == average != bool(again.brought(RING, SIX))
    assert again.plan(RING, range(6), prospect(RING), SIX) == couriers.plan(
        RING, range(6), prospect(RING), SIX
    )


@pytest.mark.parametrize("average", [False, True])
@given(n=st.integers(2, 9), seed=st.integers(0, 10_000), data=st.data())
def test_with_couriers_every_block_is_mixed_by_a_symmetric_doubly_stochastic_matrix(
    average: bool, n: int, seed: int, data: st.DataObject
) -> None:
    """On graphs that change, with devices that come and go, rounds after rounds."""
    couriers, before = Couriers(average=average), nx.empty_graph(n)
    kinds = [data.draw(st.sampled_from(["a", "v", "av"])) for _ in range(n)]
    published: set[int] = set()
    for t in range(4):
        graph = nx.gnp_random_graph(n, 0.4, seed=seed + t // 2)
        live = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
        blocks = {k: sizes(*kinds)[k] for k in sorted(live)}
        mixed = {k: blocks[k] for k in blocks if k in published}
        links, means = couriers.brought(before, mixed), couriers.means(before, mixed)
        around = neighbourhoods(before, mixed, links, means)
        couriers.begin(couriers.plan(before, published, prospect(graph), blocks))
        for block in (A, V, C):
            matrix = np.zeros((n, n))
            whose = {-1 - hub.courier: hub.owners for hub in means.get(block, ())}
            for k, near in around.items():
                row = near.weights.get(block, (1.0,)) if block in blocks[k] else (1.0,)
                sources = [k, *near.neighbours, *(there.origin for there in near.far)]
                assert row[0] > 0
                for j, weight in zip(sources, row, strict=False):
                    for member in whose.get(j, (j,)) if weight else ():
                        matrix[k, member] += weight / len(whose.get(j, (j,)))
            part = matrix[np.ix_([*around], [*around])]
            assert np.allclose(part, part.T) and np.allclose(part.sum(axis=0), 1)
            assert matrix.min() >= 0
        before, published = graph.subgraph(live).copy(), set(live)
        before.add_nodes_from(range(n))


# ---- runs ---------------------------------------------------------------------------------------


class Noting(Recording):
    """Keeps what devices publish, round by round."""

    name = "noting"
    published: ClassVar[dict[tuple[int, int], Payload]] = {}

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        outcome = super().run_round(plan, inbox)
        self.published[plan.server_round, self.partition.partition_id] = outcome.payload
        return outcome


def test_what_is_mixed_by_hand() -> None:
    """Three rounds. Device 2 mixes audio of 3, as it is, and of 0, as it was a round before."""
    run_peers({**CONFIG, "method": "noting"}, Noting, num_rounds=3)
    sent = Noting.published

    def y(t: int, k: int) -> Tensor:
        return sent[t, k][A]

    assert torch.equal(sent[3, 1]["encoder.audio<0"], y(2, 0)), "as it was received"
    assert "encoder.audio<0" not in sent[1, 1]
    expected = (y(3, 2) + y(3, 3) + y(2, 0)) / 3
    assert torch.allclose(Noting.final[2][A], expected, atol=1e-6)
    image = (2 * sent[3, 2][V] + sent[3, 1][V]) / 3
    assert torch.allclose(Noting.final[2][V], image, atol=1e-6)


def test_a_mean_is_mixed_by_hand() -> None:
    """A star of three owners, three rounds: each keeps half, and mixes half of round 2's mean."""
    run_peers({**STAR, "method": "noting"}, Noting, num_rounds=3)
    sent = Noting.published
    assert [name for name in sent[1, 0] if "<" in name] == []
    mean = (sent[2, 1][A] + sent[2, 2][A] + sent[2, 3][A]) / 3
    assert torch.allclose(sent[3, 0]["encoder.audio<-1"], mean, atol=1e-6)
    assert [name for name in sent[3, 0] if "<" in name] == [
        "encoder.audio<-1", "head.audio<-1"
    ]  # fmt: skip
    for k in (1, 2, 3):
        expected = (sent[3, k][A] + mean) / 2
        assert torch.allclose(Noting.final[k][A], expected, atol=1e-6)


class Still(Noting):
    """Begins at its partition id, and trains nothing."""

    name = "still"

    def reset(self) -> None:
        super().reset()
        self.flat.vector.fill_(float(self.partition.partition_id))

    def trains(self, plan: Plan) -> bool:
        return False


def test_owners_around_a_hub_come_to_their_mean() -> None:
    """1, 2 and 3: a deviation from their mean halves in every round but the first two."""
    run_peers({**STAR, "method": "still"}, Still, num_rounds=12)
    for t, apart in ((2, 1), (3, 0.5), (12, 2**-10)):
        assert Noting.published[t, 1][A].unique() == pytest.approx(2 - apart, abs=1e-6)
        assert Noting.published[t, 2][A].unique() == 2
        assert Noting.published[t, 3][A].unique() == pytest.approx(2 + apart, abs=1e-6)


class ByMessages(InProcessGrid):
    """Asks each device by a message of its own, as Flower's engine does."""

    @property
    def hosted(self) -> None:
        """Nobody hosts all devices at once."""
        return None


def run(grid: type[InProcessGrid], config: Mapping[str, Any], rounds: int = 5) -> PeerStrategy:
    parsed = parse_settings(config, find_parts())
    method, topology = parsed.settings.method, str(config.get("topology", "ring"))
    nodes = int(config["num-nodes"])
    strategy = PeerStrategy(
        make_topology(topology),
        num_nodes=nodes,
        method=method,
        local_iterations=2,
        evaluate_every=1,
        gossip=parsed.gossip_of(method),
        options=parsed.options[method],
        couriers=parsed.couriers_of(method),
    )
    with server_identity(1):
        strategy.start(grid(make_client_app(), nodes, config), num_rounds=rounds)
    return strategy


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"exchange.precision": "int8"},
        {"exchange.precision": "int8", "exchange.top-k": 0.2},
        {"method": "dmml-kd", "stagger": 0.5},
        {"gossip": "qg-dsgdm"},
        {"modality-pattern": "audio,image,image,audio", "num-nodes": 8},  # two couriers in a row
        {"topology": "random-matching", "num-nodes": 8},
        {"couriers": "average"},
        {"couriers": "average", "exchange.precision": "int8"},
        {"couriers": "average", "method": "dmml-kd", "gossip": "dpsgd", "stagger": 0.5},
        {
            "couriers": "average",
            "method": "dmml",
            "gossip": "qg-dsgdm-n",
            "exchange.precision": "float16",
        },
        {**STAR, "num-nodes": 7, "modality-pattern": "image,audio,audio"},
        {
            "couriers": "average",
            "modality-pattern": "audio,image,audio,image,image",
            "num-nodes": 10,
        },
    ],
    ids=str,
)
def test_devices_of_a_process_do_what_each_does_by_messages(changed: dict[str, Any]) -> None:
    config = {**CONFIG, **changed}
    together, alone = run(InProcessGrid, config), run(ByMessages, config)
    assert not any(record.failed for record in together.records)
    for a, b in zip(together.records, alone.records, strict=True):
        assert a.to_json() == b.to_json()
    if "topology" in changed:
        return  # where everybody has one neighbour, nobody stands between two
    without = run_peers({**config, "couriers": "off"}, num_rounds=5)
    assert together.records[-1].train_loss != without.records[-1].train_loss
    assert together.records[3].nodes[1].bytes_sent > without.records[3].nodes[1].bytes_sent


class Dying(DPSGD):
    """Device 1, a courier of audio, fails in round 3."""

    name = "dying"

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        if self.partition.partition_id == 1 and plan.server_round == 3:
            raise ValueError("out of order")
        return super().run_round(plan, inbox)


def test_a_courier_that_fails_costs_only_its_links(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        peers = run_peers({**CONFIG, "method": "dying"}, Dying, num_rounds=5)
    assert [sorted(record.failed) for record in peers.records] == [[], [], [1], [], []]
    assert all(node.rejected == 0 for record in peers.records for node in record.nodes)


class Careless(DPSGD):
    """Device 1 publishes nothing of what it was to carry."""

    name = "careless"

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        outcome = super().run_round(plan, inbox)
        if self.partition.partition_id == 1:
            for name in [name for name in outcome.payload if "<" in name]:
                del outcome.payload[name]
        return outcome


def test_a_courier_that_brings_nothing_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run_peers({**CONFIG, "method": "careless"}, Careless, num_rounds=3)
    assert "node 2 rejects from node 1: block encoder.audio of device 0 is missing" in caplog.text
    assert "rejects from node 0" not in caplog.text


def test_a_courier_that_makes_no_mean_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """All weight of the mean that is not there goes to the own copy."""
    with caplog.at_level(logging.WARNING):
        run_peers({**CONFIG, "method": "careless", "couriers": "average"}, Careless, num_rounds=3)
    assert "node 2 rejects from node 1: block encoder.audio as a mean is missing" in caplog.text
    assert "rejects from node 0" not in caplog.text


def test_a_hub_or_an_owner_that_fails_costs_only_its_mean() -> None:
    for config in (STAR | {"modality-pattern": "audio,image,image,image"}, STAR):
        hub = 0 if config is STAR else None
        peers = run_peers({**config, "method": "dying"}, Dying, num_rounds=5)
        assert [sorted(record.failed) for record in peers.records] == [[], [], [1], [], []]
        assert all(node.rejected == 0 for record in peers.records for node in record.nodes)
        carried = [record.carried for record in peers.records]
        if hub is None:  # device 1 is one of three owners of images around 0
            assert carried[3] == {(0, 0, 2), (0, 0, 3)}, "the others go on with each other"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"gossip": "d2"}, "the gossip rule 'd2' needs what all neighbours have now"),
        ({"gossip": "relaysgd", "topology": "line"}, "the gossip rule 'relaysgd' needs"),
        ({"method": "harmony", "num-server-rounds": 9}, "chooses in every round whom it mixes"),
        ({"couriers": "average them"}, "couriers = 'average them'"),
        ({"couriers": "average", "gossip": "d2"}, "the gossip rule 'd2' needs"),
        (
            {"couriers": "average", "exchange.sealed": True},
            "cannot read what exchange.sealed hides",
        ),
        ({"couriers": "average", "exchange.top-k": 0.5}, "exchange.top-k = 0.5 sends a part"),
        ({"couriers": "average", "method": "fedgen", "gossip": "relaysgd"}, "'relaysgd' needs"),
        (
            {"exchange.sealed": True, "exchange.transport": "direct"},
            "couriers = 'forward': with exchange.sealed, letters from device to device",
        ),
    ],
    ids=str,
)
def test_what_cannot_have_couriers_is_refused_by_name(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match="couriers") as refused:
        parse_settings({**CONFIG, **changed}, find_parts(), side="coordinator")
    assert words in str(refused.value)


class Twice(GossipRule):
    """Sends more of a block than the model."""

    name = "twice"
    sends = ("block", "number")


def test_means_are_of_models_alone() -> None:
    parts = find_parts(OwnParts(gossip=(Twice,)))
    config = {**CONFIG, "gossip": "twice"}
    parse_settings(config, parts)
    with pytest.raises(SettingsError, match="couriers = 'average': the gossip rule 'twice' sends"):
        parse_settings({**config, "couriers": "average"}, parts)


def test_where_no_link_is_missing_nothing_is_carried() -> None:
    """A complete graph: the records are those without couriers."""
    config = {**CONFIG, "topology": "complete"}
    with_them, without = run_peers(config), run_peers({**config, "couriers": "off"})
    assert [r.to_json() for r in with_them.records] == [r.to_json() for r in without.records]


# ---- what it takes ------------------------------------------------------------------------------


STILL = WirelessOptions(enabled=True, positions="grid", fading="none", shadowing_db=0.0)


def on_radio(battery_j: list[float] | None = None, *, pacing: bool = True) -> EnergyConstrained:
    """Return the energy of devices at fixed places, on mains power or with these batteries."""
    settings = Settings(
        local_iterations=2, energy=EnergyOptions(pacing=pacing), wireless=STILL,
        allocation=AllocationOptions(rule="uniform"),
    )  # fmt: skip
    given = None if battery_j is None else np.array(battery_j)
    return EnergyConstrained(settings, battery_j=given)


def test_carrying_is_billed_by_its_bytes() -> None:
    """From round 2 on device 1 sends its own payload and two encoders and heads of audio."""
    on, off = (
        run_peers({**CONFIG, "couriers": how}, num_rounds=3, energy=on_radio())
        for how in ("forward", "off")
    )
    lengths = make_learner(CONFIG, 2).block_lengths()
    audio, image = (
        size_bytes(pack({name: torch.zeros(n) for name, n in lengths.items() if m in name}))
        for m in ("audio", "image")
    )
    more = 2 * audio
    for t, (a, b) in enumerate(zip(on.records, off.records, strict=True), start=1):
        with_them, without = a.by_partition[1], b.by_partition[1]
        own = 8 * on.roster.members[1].payload_bytes
        bits = own + (8 * more if t > 1 else 0)
        assert without.radio_j > 0
        assert with_them.radio_j == pytest.approx(without.radio_j * bits / own)
        assert a.by_partition[3].radio_j == pytest.approx(b.by_partition[3].radio_j)
    sent = [on.records[1].by_partition[k].bytes_sent for k in (1, 4)]
    assert sent[0] - sent[1] == more + image, "a copy to each end, and its own image to courier 0"
    assert on.records[1].carried == {(0, 1, 2), (2, 1, 0), (1, 0, 5), (5, 0, 1)}
    assert on.records[0].carried == set() == off.records[1].carried


def test_a_mean_is_billed_as_one_block_and_all_copies_as_many() -> None:
    """A star of three owners: on air their mean is one encoder and head of audio instead of three.

    By relay each owner gets the mean, or the copies of the two others.
    """
    off, forward, average = (
        run_peers({**STAR, "couriers": how}, num_rounds=3, energy=on_radio())
        for how in ("off", "forward", "average")
    )
    lengths = make_learner(STAR, 1).block_lengths()
    audio = size_bytes(pack({k: torch.zeros(n) for k, n in lengths.items() if "audio" in k}))
    own = off.roster.members[0].payload_bytes
    for peers, on_air, to_all in ((off, 0, 0), (forward, 3, 6), (average, 1, 3)):
        first, second = (record.by_partition[0] for record in peers.records[:2])
        assert second.radio_j / first.radio_j == pytest.approx((own + on_air * audio) / own)
        assert second.bytes_sent - first.bytes_sent == to_all * audio
        owner = peers.records[1].by_partition[1]
        assert owner.bytes_sent - off.records[1].by_partition[1].bytes_sent == bool(on_air) * audio
    assert average.records[1].carried == {(0, 0, 1), (0, 0, 2), (0, 0, 3)}


def test_the_fuller_battery_carries() -> None:
    """1 and 4 could carry audio: 1 begins, with more; when it has less than 4, that does."""
    batteries = [9.0, 1.02, 9.0, 9.0, 1.0, 9.0]
    config = {**CONFIG, "num-server-rounds": 6}
    peers = run_peers(config, num_rounds=6, energy=on_radio(batteries))
    couriers = [{via for origin, via, _ in r.carried if origin in (0, 3)} for r in peers.records]
    assert couriers[0] == set() and couriers[1] == {1}
    assert {4} in couriers[2:], "1 has paid for carrying, 4 has not"
    assert not any(record.failed for record in peers.records)


def test_who_can_pay_for_itself_only_goes_on_without_carrying() -> None:
    """Batteries of 1 and 4 hold their own payloads of all rounds, and half of what 1 carries.

    No weight goes astray: the means over the owners of a block stay what they are, up to what was
    carried late.
    """
    free = run_peers(CONFIG, num_rounds=4, energy=on_radio())
    own = [sum(r.by_partition[k].radio_j for r in free.records) for k in (1, 4)]
    compute = [sum(r.by_partition[k].compute_j for r in free.records) for k in (1, 4)]
    extra = own[0] - own[1]
    batteries = [9.0] * 6
    batteries[1] = own[1] + compute[0] + 0.5 * extra
    batteries[4] = own[1] + compute[1]
    peers = run_peers(CONFIG, num_rounds=4, energy=on_radio(batteries, pacing=False))
    assert not any(record.failed for record in peers.records)
    couriers = [{via for origin, via, _ in r.carried if origin in (0, 3)} for r in peers.records]
    assert {1} in couriers and couriers[-1] == set(), couriers
    assert all(node.rejected == 0 for record in peers.records for node in record.nodes)
