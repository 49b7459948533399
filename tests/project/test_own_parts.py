"""The parts of one's own that docs/howto shows: each runs, and does what it says."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from flwr.clientapp import ClientApp
from helpers import FAST, ROOT, make_learner, run_peers, run_together
from helpers_docs import write_files
from helpers_gossip import OnAParabola, tracked

from flwr_dmml import (
    Dataset,
    GossipRule,
    Learner,
    PeerStrategy,
    Topology,
    make_client_app,
    make_server_app,
)
from flwr_dmml.base.errors import UserError
from flwr_dmml.base.options import Group
from flwr_dmml.data import LoadOptions, load_source
from flwr_dmml.engine import FlowerApp, load_app, run_app
from flwr_dmml.graph.topology import TopologyError
from flwr_dmml.learning.together import likeness
from flwr_dmml.payload.plan import Plan
from flwr_dmml.strategies.energy.energy_constrained import EnergyConstrained

HOWTO = ROOT / "docs" / "howto"
SMALL: dict[str, Any] = {**FAST, "partition": "iid", "compare-with": "", "evaluate-every": 3}
ALIKE = {"method": "dpsgd", "modality-pattern": "audio+image"}
VIEWS = {"dataset": "clouds", "modality-pattern": "left,right,left+right"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> FlowerApp:
    """The app of own-method.md, as it is at the end of the page."""
    folder = tmp_path_factory.mktemp("parts")
    write_files(HOWTO / "own-method.md", folder)
    return load_app(folder)


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> FlowerApp:
    """The app of own-topology.md."""
    folder = tmp_path_factory.mktemp("clusters")
    write_files(HOWTO / "own-topology.md", folder)
    return load_app(folder)


@pytest.fixture
def rounds(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Run an app, and return the lines of its metrics file."""
    done = 0

    def run(app: FlowerApp, nodes: int = 3, **config: Any) -> list[dict[str, Any]]:
        nonlocal done
        done += 1
        given = {key.replace("_", "-").replace("--", "."): v for key, v in config.items()}
        where = {"run-dir": str(tmp_path), "run-name": f"run{done}", "num-nodes": nodes}
        run_app(app, nodes, {**SMALL, "num-server-rounds": 3, **where, **given})
        (metrics,) = (tmp_path / f"run{done}").glob("*/metrics.jsonl")
        return [json.loads(line) for line in metrics.read_text().splitlines()]

    return run


def losses(lines: list[dict[str, Any]]) -> list[float]:
    assert not any(line["failed"] for line in lines)
    return [line["train_loss"] for line in lines]


# ---- methods and models -----------------------------------------------------------------------


def test_the_smallest_app_of_the_page(tmp_path: Path, rounds: Any) -> None:
    """Its first four files: what follows on the page is not needed. The option has an effect."""
    text = (HOWTO / "own-method.md").read_text()
    blocks = re.findall(r"```(?:python|toml)\n# (\S+\.\w+)\n(.*?)```", text, flags=re.DOTALL)[:4]
    for name, content in blocks:
        (tmp_path / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "app" / name).write_text(content)
    app = load_app(tmp_path / "app")
    assert losses(rounds(app)) != losses(rounds(app, smooth__smoothing=0.3))


def test_a_method_for_many_devices_at_once(parts: FlowerApp, rounds: Any) -> None:
    """Each of three is what it is alone, to the last bit; and row by row, but for rounding."""
    from my_app.steady import Steady  # type: ignore[import-not-found]

    def devices(**changed: Any) -> list[Learner]:
        made = [make_learner({**SMALL, "num-nodes": 3, **ALIKE, **changed}, k) for k in range(3)]
        return [Steady(x.partition, x.settings, x.options) for x in made]

    plan = Plan(1, 3)
    together, alone, exact = devices(), devices(), devices(exact=True)
    assert len({likeness(x, plan) for x in together} - {None}) == 1
    assert {likeness(x, plan) for x in exact} == {None}
    found = run_together(together, [plan] * 3)
    for one, two, three in zip(found, alone, exact, strict=True):
        assert not isinstance(one, Exception)
        expected, near = two.run_round(plan, {}), three.run_round(plan, {})
        for name, value in expected.payload.items():
            assert torch.equal(one.payload[name], value), name
            assert torch.allclose(one.payload[name], near.payload[name], atol=1e-4), name
    steady, exactly = (losses(rounds(parts, method="steady", exact=e)) for e in (False, True))
    assert steady == pytest.approx(exactly, rel=1e-4)
    assert steady != losses(rounds(parts, method="dpsgd"))


def test_a_method_reads_its_neighbours_and_records_numbers_of_its_own(
    parts: FlowerApp, rounds: Any
) -> None:
    """Nobody has heard of a loss in round 1; later on every device smooths more."""
    wary = rounds(parts, method="wary")
    assert wary[0]["own"] == pytest.approx({"wary.smoothing": 0.1}) and wary[0]["noted"] == {}
    assert all(line["own"]["wary.smoothing"] > 0.15 for line in wary[1:])
    each = [node["own"]["wary.smoothing"] for node in wary[1]["nodes"]]
    assert sum(each) / 3 == pytest.approx(wary[1]["own"]["wary.smoothing"])
    found, plain = losses(wary), losses(rounds(parts, method="smooth"))
    assert found[0] == plain[0] and found[1:] != plain[1:]


def test_a_plain_module_is_a_model(parts: FlowerApp, rounds: Any) -> None:
    """It learns, all of it is one block, and no modality has a speed."""
    lines = rounds(parts, method="plain", num_server_rounds=6, local_iterations=10)
    assert lines[-1]["accuracy"] > 0.3  # of ten classes
    assert {"audio", "image", "audio+image"} == set(lines[-1]["accuracy_by_set"])
    assert all(node["speed"] == {} for line in lines for node in line["nodes"])
    assert losses(lines)[-1] < losses(lines)[0]


# ---- rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["smooth", "plain", "dmml-kd"])
def test_its_gossip_rule_goes_with_any_method(parts: FlowerApp, rounds: Any, method: str) -> None:
    """In round 1 nobody has a direction to correct by, and momentum is off in both."""
    plain = losses(rounds(parts, method=method, momentum=0.0))
    found = losses(rounds(parts, method=method, gossip="tracking"))
    assert found[0] == plain[0] and found[1:] != plain[1:]


def test_its_gossip_rule_is_gradient_tracking(parts: FlowerApp) -> None:
    """On parabolas it is the plain arithmetic of K-GT."""
    (rule,) = parts.client_app.own.gossip  # type: ignore[attr-defined]
    config = {
        **FAST,
        "num-nodes": 3,
        "modality-pattern": "audio",
        "topology": "line",
        "method": "on-a-parabola",
        "local-iterations": 3,
        "learning-rate": 0.02,
        "clip-norm": 0.0,
    }
    run_peers(config, OnAParabola, num_rounds=4, rules=[rule])
    found = [OnAParabola.final[k] for k in range(3)]
    assert found == pytest.approx(tracked(4, 3, 0.02), rel=1e-4)


def test_its_gossip_rule_lets_a_device_rest(parts: FlowerApp, rounds: Any) -> None:
    (kind,) = parts.client_app.own.gossip  # type: ignore[attr-defined]
    x, rule = torch.ones(1, 3), kind(Group())
    (z, d), state = rule.publish(x, x, rule.start(x), None)
    assert torch.equal(z, x) and not d.any() and not state["d"].any()
    poor = {"energy__battery_share": 0.5, "energy__pacing": False, "num_server_rounds": 4}
    lines = rounds(parts, gossip="tracking", **poor)
    updates = [sum(node["updates"].values()) for line in lines for node in line["nodes"]]
    assert 0 in updates and any(updates) and not any(line["failed"] for line in lines)


def test_its_aggregation_rule_is_not_the_mean(parts: FlowerApp, rounds: Any) -> None:
    mean, middle = losses(rounds(parts)), losses(rounds(parts, aggregation="middle"))
    assert middle[0] == mean[0] and middle[1:] != mean[1:]


# ---- data and graphs --------------------------------------------------------------------------


def test_its_data_set_has_an_option(parts: FlowerApp, rounds: Any) -> None:
    """Classes that are far apart are told, those that lie on each other are not."""
    more = {**VIEWS, "local_iterations": 10, "method": "dpsgd"}
    near, far = (rounds(parts, **more, clouds__distance=x)[-1] for x in (0.01, 8.0))
    assert far["accuracy"] > 0.9 and near["accuracy"] < 0.6
    assert set(far["accuracy_by_set"]) == {"left", "right", "left+right"}


def test_its_option_has_a_default_wherever_it_is_loaded(parts: FlowerApp, rounds: Any) -> None:
    rounds(parts, dataset="clouds", modality_pattern="left", num_server_rounds=1)  # known from here
    default, far = (
        load_source("clouds", LoadOptions(own=own)).train.inputs["left"]
        for own in (None, sys.modules["my_app.clouds"].CloudsOptions(distance=3.0))
    )
    assert torch.equal(default, far)


def links(folder: Path) -> list[list[int]]:
    (found,) = folder.glob("*/*/devices.json")
    edges: list[list[int]] = json.loads(found.read_text())["edges"]
    return edges


@pytest.mark.parametrize("bridges", [1, 2])
def test_its_topology_has_a_field_of_its_own(
    clusters: FlowerApp, rounds: Any, tmp_path: Path, bridges: int
) -> None:
    """Two groups of three: 0 1 2 and 3 4 5, linked by 0 - 3, and by 1 - 4 as well."""
    rounds(clusters, 6, topology_degree=3, clusters__bridges=bridges, num_server_rounds=1)
    within = [[0, 1], [0, 2], [1, 2], [3, 4], [3, 5], [4, 5]]
    assert links(tmp_path) == sorted(within + [[0, 3], [1, 4]][:bridges])


def test_settings_of_parts_that_are_not_chosen_do_no_harm(
    parts: FlowerApp, clusters: FlowerApp, rounds: Any
) -> None:
    """The app's own pyproject.toml has clusters.bridges, whatever the topology."""
    assert losses(rounds(clusters, topology="ring"))
    assert losses(rounds(parts, dataset="digits", clouds__distance=1.0))


# ---- what cannot be ---------------------------------------------------------------------------


class Nameless(GossipRule):
    """It has no name."""


class NamelessGraph(Topology):
    """Neither has this."""

    def _edges(self, n: int, t: int, seed: int) -> list[tuple[int, int]]:
        return []


class Taken(NamelessGraph):
    """There is a ring already."""

    name = "ring"


class Lost(Learner):
    """Its rule is nowhere."""

    name = "lost"
    gossip = "nowhere"


class Another(PeerStrategy):
    """A strategy."""


def own(name: str) -> Dataset:
    return Dataset(name, ("audio",), False, False, lambda options: None, "none")  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"gossip": [Nameless]}, "Nameless.name must be set, as in name = 'mine'"),
        ({"aggregation": [Nameless]}, "aggregation rule '': .* is not a subclass of Aggregation"),
        ({"topologies": [NamelessGraph]}, "NamelessGraph.name must be set, as in name = 'mine'"),
        ({"topologies": [Taken]}, "topologies: 'ring' is the name of an installed topology"),
        ({"topologies": [Nameless]}, "topologies: .*Nameless.* is no subclass of Topology"),
        ({"datasets": [own("digits")]}, "datasets: 'digits' is the name of an installed data set"),
        ({"datasets": [Nameless]}, "datasets: .* is not a flwr_dmml.data.Dataset"),
    ],
)
def test_a_part_that_cannot_be_is_refused_in_a_line(
    given: dict[str, Any], problem: str, rounds: Any
) -> None:
    client_app = make_client_app(**given)
    with pytest.raises((UserError, TopologyError), match=f"^{problem}") as error:
        rounds(FlowerApp({}, make_server_app(client_app=client_app), client_app))
    assert "\n" not in str(error.value)


def test_a_method_whose_own_rule_is_not_there_is_refused_in_a_line(rounds: Any) -> None:
    client_app = make_client_app(Lost)
    app = FlowerApp({}, make_server_app(client_app=client_app), client_app)
    with pytest.raises(
        UserError, match=r"^Lost\.gossip = 'nowhere': there are beer, .*d2, .*dpsgd, .*\Z"
    ):
        rounds(app, method="lost")
    assert rounds(app, method="lost", gossip="dpsgd", num_server_rounds=1)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: make_server_app(PeerStrategy, Another), "two strategies, .*Peer.* and .*Another"),
        (lambda: make_server_app(client_app=ClientApp()), "the client_app is not one of make_clie"),
        (
            lambda: make_server_app(cast(Any, EnergyConstrained)),
            ".*EnergyConstrained.* is no subclass of",
        ),
        (
            lambda: make_server_app(Lost, client_app=make_client_app(Lost)),
            "the client_app brings its own parts; give it alone",
        ),
    ],
)
def test_a_server_app_that_cannot_be_is_refused_in_a_line(
    make: Callable[[], Any], problem: str
) -> None:
    with pytest.raises(UserError, match=f"^make_server_app: {problem}") as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({**VIEWS, "clouds__distance": 20.0}, r"clouds\.distance = 20\.0: .*less than or equal to"),
        (
            {**VIEWS, "clouds__distanse": 2.0},
            r"clouds\.distanse = 2\.0: unknown setting; did you",
        ),
        ({"gossip": "tracking", "optimizer": "adam"}, "optimizer = 'adam': the momentum of the go"),
        ({"gossip": "d2", "aggregation": "middle"}, "aggregation = 'middle': the gossip rule 'd2'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_a_line(
    parts: FlowerApp, rounds: Any, config: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem) as error:
        rounds(parts, **config)
    assert str(error.value).count("\n") == 1


@pytest.mark.parametrize(
    ("bridges", "problem"),
    [
        (5, "clusters: bridges must be from 1 to 3"),
        ("two", r"clusters\.bridges = 'two': Input should be a valid integer"),
    ],
)
def test_a_field_that_cannot_be_is_refused_in_a_line(
    clusters: FlowerApp, rounds: Any, bridges: Any, problem: str
) -> None:
    with pytest.raises(UserError, match=problem) as error:
        rounds(clusters, topology_degree=3, clusters__bridges=bridges)
    assert str(error.value).count("\n") == 1
