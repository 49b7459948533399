"""Rounds over graphs that are drawn for each block's owners, and over links of one way."""

from typing import Any, ClassVar

import pytest
import torch
from helpers import FAST, Recording, run_peers
from helpers_engines import SENSORS, on_both_engines
from torch import Tensor

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.payload.plan import Inbox, Outcome, Plan
from flwr_dmml.settings import find_parts, parse_settings

BASE: dict[str, Any] = {**SENSORS, "topology": "base", "topology-degree": 1}
ONE_WAY: dict[str, Any] = {**SENSORS, "topology": "epidemic", "topology-directed": True}


@pytest.mark.parametrize(
    "changed",
    [
        {"topology": "base"},
        {"topology": "base", "topology-degree": 1, "method": "dmml-kd"},
        {"topology": "epidemic", "topology-degree": 2},
        {"topology": "epidemic", "topology-degree": 1, "topology-directed": True},
        {"topology": "ring", "topology-directed": True},
        {"topology": "one-peer-exponential", "topology-directed": True, "gossip": "qg-dsgdm"},
        {"topology": "epidemic", "exchange.precision": "int8", "exchange.top-k": 0.5},
    ],
    ids=str,
)
def test_rows_and_messages_give_the_same_numbers(changed: dict[str, Any]) -> None:
    run = on_both_engines({**SENSORS, "topology-degree": 2, **changed})
    assert run.records[-1].accuracy is not None


class Published(Recording):
    """D-PSGD that keeps every device's plans, too."""

    name = "published"
    sent: ClassVar[dict[int, dict[str, Tensor]]] = {}
    plans: ClassVar[dict[tuple[int, int], Plan]] = {}

    def run_round(self, plan: Plan, inbox: Inbox) -> Outcome:
        self.plans[plan.server_round, self.partition.partition_id] = plan
        return super().run_round(plan, inbox)


def test_every_block_is_averaged_exactly_whoever_owns_it() -> None:
    """Nothing is trained (rate 1e-30), and every device starts from numbers of its own.

    Six own the heads (5 rounds of the Base-2 graph at most), four each encoder (2 rounds).
    """

    class Unequal(Published):
        name = "unequal"

        def reset(self) -> None:
            super().reset()
            with torch.no_grad():
                for p in self.model.parameters():
                    p += 0.01 * self.partition.partition_id

    config = {**BASE, "method": "unequal", "learning-rate": 1e-30}
    run_peers(config, Unequal, num_rounds=5)
    blocks: dict[str, list[Tensor]] = {}
    for own in Recording.final.values():
        for name, vector in own.items():
            blocks.setdefault(name, []).append(vector)
    assert {name: len(own) for name, own in blocks.items()}["encoder.audio"] == 4
    for name, own in blocks.items():
        for vector in own[1:]:
            assert torch.allclose(vector, own[0], atol=1e-6), name


def test_a_device_that_is_gone_gets_no_place_in_the_next_graph() -> None:
    """Device 2 rests in rounds 2 and 3: of round 2 on the others' graph is drawn without it."""
    from flwr_dmml.strategies import PeerStrategy

    class Resting(PeerStrategy):
        def participants(self, server_round: int, connected: Any) -> list[int]:
            return [p for p in connected if p != 2 or server_round not in (2, 3)]

    from flwr_dmml.clients import make_client_app
    from flwr_dmml.engine import InProcessGrid, server_identity
    from flwr_dmml.graph.base_graph import BaseGraph

    config = {**FAST, "method": "published", "num-nodes": 5, "modality-pattern": "audio"}
    Published.plans.clear()
    peers = Resting(BaseGraph(1), num_nodes=5, method="published", local_iterations=2)
    with server_identity(1):
        peers.start(InProcessGrid(make_client_app(Published), 5, config), num_rounds=3)
    near = {key: plan.neighbours for key, plan in Published.plans.items()}
    # Of round 2 over devices 0, 1, 3, 4 the Base-2 graph links 0-3 and 1-4, mixed in round 3.
    assert [near[3, p] for p in (0, 1, 3, 4)] == [(3,), (4,), (0,), (1,)]
    weights = [Published.plans[3, p].weights["head.common"] for p in (0, 1, 3, 4)]
    assert weights == [(0.5, 0.5)] * 4
    # Of round 1 over all five it links 0-1 and 2-3: 2 is not there to mix, and 3 keeps its own.
    assert (near[2, 0], near[2, 3]) == ((1,), ())


def test_one_way_goes_from_the_sender_to_the_receiver() -> None:
    """On a ring one way device k hears from k - 1 and sends to k + 1, of all that own the block."""
    Published.plans.clear()
    config = {**SENSORS, "method": "published", "topology": "ring", "topology-directed": True}
    run_peers(config, Published, num_rounds=2)
    plan = Published.plans[2, 3]  # a microphone, as are 0, 2 and 5
    assert plan.neighbours == (2,) and plan.recipients == (4, 5)
    assert plan.weights["encoder.audio"] == (0.5, 0.5)
    both = Published.plans[2, 2]
    assert both.neighbours == (0, 1)
    assert both.weights["encoder.audio"] == (0.5, 0.5, 0.0)
    assert both.weights["head.common"] == (0.5, 0.0, 0.5)


# ---- what is refused ----------------------------------------------------------------------------


def problems(**config: Any) -> str:
    given = {key.replace("__", ".").replace("_", "-"): value for key, value in config.items()}
    with pytest.raises(SettingsError) as error:
        parse_settings({"method": "dpsgd", **given}, find_parts())
    return str(error.value)


def test_links_one_way_are_refused_where_they_would_be_wrong(tmp_path: Any) -> None:
    links = tmp_path / "links.txt"
    links.write_text("0 1\n1 2\n2 0\n0 2\n")
    file = {"topology": "edge-list", "topology_file": str(links), "num_nodes": 3}
    said = problems(**file, topology_directed=True)
    assert "a device that more hear would weigh more; allowed with it: sgp" in said
    said = problems(topology="ring", topology_directed=True, gossip="d2")
    assert "its links are one-way, and the rule needs both ways; allowed with it: sgp" in said
    assert "torus: its links go both ways" in problems(topology="torus", topology_directed=True)
    said = problems(topology="ring", topology_directed=True, couriers="forward")
    assert "its links go one way, and couriers carry both ways; allowed: off" in said
    said = problems(topology="epidemic", couriers="forward")
    assert "it links the owners of each block already; allowed: off" in said


def test_couriers_stay_away_by_themselves() -> None:
    for topology in ({"topology": "base"}, {"topology": "ring", "topology-directed": True}):
        parsed = parse_settings({"method": "dmml-kd", **topology}, find_parts())
        assert parsed.couriers_of("dmml-kd") == "off"
    assert parse_settings({"method": "dmml-kd"}, find_parts()).couriers_of("dmml-kd") == "forward"
