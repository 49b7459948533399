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
from flwr_dmml.graph.topology import make_topology
from flwr_dmml.payload.plan import Carried, Inbox, Outcome, Payload, Plan
from flwr_dmml.payload.routing import brought, passed_on, wanted
from flwr_dmml.settings import Settings, find_parts, parse_settings
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


def test_a_plan_is_written_with_what_is_carried() -> None:
    plan = Plan(
        2, 3, neighbours=(1, 4), weights={A: (0.4, 0.3, 0.0, 0.3)}, far=(Carried(3, 4, (A, V)),),
        carries=(Carried(7, 1, (C,)), Carried(8, 1, (C, V))),
    )  # fmt: skip
    assert read_plan(write_plan(plan, "dpsgd")) == plan


def test_a_missing_courier_takes_what_it_brings_with_it() -> None:
    plan = Plan(
        2, 3, neighbours=(1, 4), weights={A: (0.4, 0.2, 0.1, 0.3), C: (0.5, 0.2, 0.3, 0.0)},
        far=(Carried(3, 4, (A,)),), carries=(Carried(7, 1, (V,)), Carried(8, 4, (V,))),
    )  # fmt: skip
    left = plan.without([4])
    assert left.neighbours == (1,) and left.far == () and left.carries == (Carried(7, 1, (V,)),)
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


def test_a_state_is_json_and_goes_on() -> None:
    import json

    couriers, again = Couriers(), Couriers()
    couriers.begin(couriers.plan(RING, range(6), prospect(RING), SIX))
    again.load_state(json.loads(json.dumps(couriers.state())))
    assert again.brought(RING, SIX) == couriers.brought(RING, SIX) != {}
    assert again.plan(RING, range(6), prospect(RING), SIX) == couriers.plan(
        RING, range(6), prospect(RING), SIX
    )


@given(st.integers(2, 9), st.integers(0, 10_000), st.data())
def test_with_couriers_every_block_is_mixed_by_a_symmetric_doubly_stochastic_matrix(
    n: int, seed: int, data: st.DataObject
) -> None:
    """On graphs that change, with devices that come and go, rounds after rounds."""
    couriers, before = Couriers(), nx.empty_graph(n)
    kinds = [data.draw(st.sampled_from(["a", "v", "av"])) for _ in range(n)]
    published: set[int] = set()
    for t in range(4):
        graph = nx.gnp_random_graph(n, 0.4, seed=seed + t // 2)
        live = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
        blocks = {k: sizes(*kinds)[k] for k in sorted(live)}
        mixed = {k: blocks[k] for k in blocks if k in published}
        links = couriers.brought(before, mixed)
        around = neighbourhoods(before, mixed, links)
        couriers.begin(couriers.plan(before, published, prospect(graph), blocks))
        for block in (A, V, C):
            matrix = np.zeros((n, n))
            for k, near in around.items():
                row = near.weights.get(block, (1.0,)) if block in blocks[k] else (1.0,)
                sources = [k, *near.neighbours, *(there.origin for there in near.far)]
                for j, weight in zip(sources, row, strict=False):
                    matrix[k, j] += weight
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
        couriers=True,
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


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"gossip": "d2"}, "the gossip rule 'd2' needs what all neighbours have now"),
        ({"gossip": "relaysgd", "topology": "line"}, "the gossip rule 'relaysgd' needs"),
        ({"method": "harmony", "num-server-rounds": 9}, "chooses in every round whom it mixes"),
        ({"couriers": "average them"}, "couriers = 'average them'"),
    ],
    ids=str,
)
def test_what_cannot_have_couriers_is_refused_by_name(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match="couriers") as refused:
        parse_settings({**CONFIG, **changed}, find_parts(), side="coordinator")
    assert words in str(refused.value)


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
