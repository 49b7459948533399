"""The strategies of docs/howto/own-strategy.md, from its code blocks, and hooks that go wrong."""

import json
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from helpers import FAST, ROOT
from helpers_docs import write_files

from flwr_dmml import PeerStrategy, make_client_app, make_server_app
from flwr_dmml.energy.allocation import Allocation, RoundProblem, allocate
from flwr_dmml.engine import FlowerApp, load_app, run_app
from flwr_dmml.graph.topology import Ring, TopologyError
from flwr_dmml.report.reading import read_run
from flwr_dmml.strategies import RunStoppedError
from flwr_dmml.tracking.records import RoundRecord
from flwr_dmml.tracking.sinks import Sink

PAGE = ROOT / "docs" / "howto" / "own-strategy.md"
SMALL: dict[str, Any] = {
    **FAST,
    "num-nodes": 4,
    "num-server-rounds": 4,
    "partition": "iid",
    "run-name": "run",
}
Run = Callable[..., list[dict[str, Any]]]


def given(config: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("_", "-").replace("--", "."): value for key, value in config.items()}


@pytest.fixture
def page(tmp_path: Path) -> Callable[[str], tuple[FlowerApp, Any]]:
    """Load an example of the page by its folder: the app, and the module it is in."""
    write_files(PAGE, tmp_path / "page")

    def load(name: str) -> tuple[FlowerApp, Any]:
        app = load_app(tmp_path / "page" / name)
        return app, import_module("my_app.app")

    return load


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run an app, or a strategy, with four devices; return the lines of its metrics file."""

    def of(app: FlowerApp | type[PeerStrategy], **config: Any) -> list[dict[str, Any]]:
        more = {key: config.pop(key) for key in ("trackers", "stopping") if key in config}
        if not isinstance(app, FlowerApp):
            client_app = make_client_app()
            server_app = make_server_app(app, client_app=client_app)
            app = FlowerApp({"method": "dpsgd"}, server_app, client_app)
        run_app(app, 4, {**SMALL, "run-dir": str(tmp_path), **given(config)}, **more)
        text = (tmp_path / "run" / "dpsgd" / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    return of


# ---- the examples of the page -----------------------------------------------------------------


def test_full_batteries_get_more_links(page: Any, run: Run) -> None:
    """On a ring of four, the fullest sends to all: it and the one opposite have three links."""
    app, _ = page("battery")
    lines = run(app, modality_pattern="audio+image")  # payloads of one size to everybody
    assert not any(line["failed"] for line in lines)
    once = [node["bytes_sent"] // 2 for node in lines[0]["nodes"]]  # nobody is fuller yet
    for before, line in pairwise(lines):
        battery_j = np.array([before["battery_j"][str(k)] for k in range(4)])
        fullest = int(battery_j.argmax())
        degrees = [node["bytes_sent"] / once[node["partition"]] for node in line["nodes"]]
        wanted = [3 if k in (fullest, (fullest + 2) % 4) else 2 for k in range(4)]
        assert degrees == pytest.approx(wanted, rel=0.01)


def test_on_mains_power_the_topology_stays(page: Any, run: Run) -> None:
    app, _ = page("battery")
    lines = run(app, energy__battery_share=0.0)
    sent = [[node["bytes_sent"] for node in line["nodes"]] for line in lines]
    assert all(line["battery_j"] == {} for line in lines) and sent[1:] == sent[:-1]


def test_another_objective_makes_other_iterations_within_the_budget(page: Any, run: Run) -> None:
    """What was planned was trained; the sum of roots is above that of the max-min plan."""
    app, module = page("objective")
    seen: list[tuple[RoundProblem, Allocation]] = []

    class Watched(module.RootProgress):  # type: ignore[misc, name-defined]
        def allocate(self, problem: RoundProblem, server_round: int) -> Allocation:
            plan: Allocation = super().allocate(problem, server_round)
            seen.append((problem, plan))
            return plan

    app = FlowerApp(app.run_config, make_server_app(Watched), app.client_app)
    both = {"modality_pattern": "audio+image", "local_iterations": 12, "allocation__warm_up": 0}
    lines = run(app, **both)
    better = 0
    for (problem, plan), line in zip(seen, lines, strict=True):
        assert problem.is_feasible(plan.tau).all() and plan.tau.sum() > 0
        trained = [[n["updates"][m] for m in ("audio", "image")] for n in line["nodes"]]
        assert trained == plan.tau.tolist()
        for n in line["nodes"]:
            assert n["compute_j"] <= problem.budget_j[n["partition"]] * (1 + 1e-9)
        fair = allocate(problem, "max-min").tau
        roots = [np.sqrt(problem.speed * tau).sum() for tau in (plan.tau, fair)]
        better += roots[0] > roots[1] and (plan.tau != fair).any()
    assert better >= len(lines) - 1  # in the first round all speeds may be alike


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_the_objective_never_gives_too_much(page: Any) -> None:
    """On drawn problems: whole numbers within energy, time and bounds, for whoever can be served.

    A device with one sensor, whose budget pays for seven iterations to the last joule, gets seven.
    """
    _, module = page("objective")
    strategy = module.RootProgress(Ring(), num_nodes=4)
    rng = np.random.default_rng(0)
    for _ in range(20):
        energy_j = rng.uniform(0.1, 1, (4, 2)) * 10.0 ** rng.uniform(-5, 2)
        budget_j = energy_j.sum(axis=1) * rng.choice([-1, 0.5, 3, 7.7, np.inf], 4)
        owned = rng.random((4, 2)) < 0.7
        owned[0] = [True, False]
        budget_j[0] = 7 * energy_j[0, 0]
        problem = RoundProblem.of(
            rng.uniform(1, 3, (4, 2)), energy_j, budget_j,
            seconds=rng.random((4, 2)), owned=owned,
            latency_s=np.where(np.arange(4) == 0, np.inf, rng.choice([3, 9, np.inf], 4)),
            tau_min=1, tau_max=12,
        )  # fmt: skip
        plan = strategy._allocation(problem, 1)  # checked as in a run
        assert plan.tau[0].tolist() == [7, 0]
        assert ((plan.tau.sum(axis=1) > 0) == problem.servable).all()


class Written:
    """What a sink is given of a run."""

    def __init__(self) -> None:
        self.numbers: list[dict[str, float]] = []
        self.complete: bool | None = None

    def write(self, numbers: Any, server_round: int) -> None:
        self.numbers.append(dict(numbers))

    def close(self, complete: bool) -> None:
        self.complete = complete


FLAT: dict[str, Any] = {"learning_rate": 1e-9, "num_server_rounds": 20}
"""Nothing is learnt: round 1 is the best, round 6 the fifth that is not, and ends with round 7."""


def test_a_run_ends_when_validation_no_longer_gains(page: Any, run: Run, tmp_path: Path) -> None:
    app, _ = page("patience")
    written = Written()
    lines = run(app, **FLAT, trackers=[Sink("written", lambda method: written)])
    assert [line["round"] for line in lines] == [*range(1, 8)]
    log = (tmp_path / "run" / "log.txt").read_text()
    best = lines[0]["noted"]["validation"]
    why = f"validation accuracy has not risen above {best:.3f} for 5 evaluations"
    assert f"The run ends after round 7: {why}" in log
    for line in lines:
        assert line["noted"] == {"validation": best, "validation.best": best}
        assert line["own"] == line["noted"] and line["accuracy"] is not None
    assert [n["own/validation"] for n in written.numbers] == [best] * 7
    assert written.complete
    assert read_run(tmp_path / "run").unfinished == []


def test_a_run_that_gains_goes_on(page: Any, run: Run) -> None:
    app, _ = page("patience")
    lines = run(app, learning_rate=0.1, local_iterations=8, num_server_rounds=7)
    assert len(lines) == 7
    assert lines[-1]["noted"]["validation.best"] > lines[0]["noted"]["validation"]


def test_patience_survives_a_stop(page: Any, run: Run, tmp_path: Path) -> None:
    """Stopped after round 4 and resumed, the run ends with the same bytes."""
    app, _ = page("patience")
    asked = iter(range(100))
    with pytest.raises(RunStoppedError, match="after round 4"):
        run(app, **FLAT, stopping=lambda: next(asked) == 3)
    lines = run(app, **FLAT, resume="run")
    whole = page("patience")[0]
    run_app(whole, 4, {**SMALL, **given(FLAT), "run-dir": str(tmp_path / "whole")})
    found = [f / "run" / "dpsgd" / "metrics.jsonl" for f in (tmp_path, tmp_path / "whole")]
    assert len(lines) == 7 and found[0].read_bytes() == found[1].read_bytes()


# ---- other hooks ------------------------------------------------------------------------------


class EvenOnly(PeerStrategy):
    """Devices 0 and 2 work in even rounds, all in odd ones."""

    def participants(self, server_round: int, connected: Any) -> Any:
        return [k for k in connected if server_round % 2 or not k % 2]


def test_who_does_not_take_part_rests(run: Run) -> None:
    lines = run(EvenOnly, topology="complete")
    who = [[n["partition"] for n in line["nodes"] if n["train_loss"] is not None] for line in lines]
    assert who == [[0, 1, 2, 3], [0, 2], [0, 1, 2, 3], [0, 2]]
    assert not any(line["failed"] for line in lines)


class Wrong(PeerStrategy):
    """Each subclass answers one hook with nonsense, in round 2."""


class Stranger(Wrong):
    def participants(self, server_round: int, connected: Any) -> Any:
        return [0, 9] if server_round == 2 else connected


class Nobody(Wrong):
    def participants(self, server_round: int, connected: Any) -> Any:
        return [] if server_round == 2 else connected


class OutOfRange(Wrong):
    def graph(self, server_round: int) -> nx.Graph:
        return nx.Graph([(0, 1), (2, 7)]) if server_round == 2 else super().graph(server_round)


class WrongShape(Wrong):
    def allocate(self, problem: RoundProblem, server_round: int) -> Allocation:
        plan = super().allocate(problem, server_round)
        if server_round == 2:
            plan.__dict__["tau"] = plan.tau[:2]
        return plan


class Spendthrift(Wrong):
    def allocate(self, problem: RoundProblem, server_round: int) -> Allocation:
        if server_round == 1:
            return super().allocate(problem, server_round)
        return Allocation.of(problem, problem.upper)


class TooMany(Wrong):
    def allocate(self, problem: RoundProblem, server_round: int) -> Allocation:
        plan = super().allocate(problem, server_round)
        return plan if server_round == 1 else Allocation.of(problem, 100 * plan.tau)


@pytest.mark.parametrize(
    ("strategy", "problem"),
    [
        (Stranger, r"participants\(\) names device 9, which is not connected"),
        (Nobody, r"participants\(\) names no device"),
        (OutOfRange, "the strategy's graph has the node 7; allowed: partition ids from 0 to 3"),
        (WrongShape, r"allocate\(\) gives iterations of shape \(2, 2\), not \(4, 2\)"),
        (Spendthrift, r"allocate\(\) gives device 0 the iterations \[4, 4\]; allowed are all 0, "),
        (TooMany, r"allocate\(\) gives device 0 the iterations \[200, 200\]; allowed are all 0, o"),
    ],
)
def test_nonsense_ends_the_run_with_one_clear_error(
    strategy: type[Wrong], problem: str, run: Run
) -> None:
    with pytest.raises(ValueError, match=f"^round 2: {problem}") as error:
        run(strategy, modality_pattern="audio+image")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rule", ["d2", "relaysgd"])
def test_a_rule_with_steady_weights_is_refused_with_a_graph_of_ones_own(
    rule: str, page: Any, run: Run
) -> None:
    app, _ = page("battery")
    with pytest.raises(TopologyError, match=f"^ByBattery plans graphs of its own, .*{rule!r} need"):
        run(app, gossip=rule, topology="line")


def test_an_allocation_of_ones_own_shares_no_band(page: Any, run: Run) -> None:
    app, _ = page("objective")
    radio = {"wireless__enabled": True, "wireless__shared_band_hz": 1e6}
    with pytest.raises(ValueError, match="allocation of its own cannot share a radio band"):
        run(app, **radio)


class Numbers(PeerStrategy):
    """Records numbers of its own, and knows its batteries from the second round on."""

    def recorded(self, record: RoundRecord) -> dict[str, float]:
        assert self.battery_j is not None
        return {"left": float(self.battery_j.sum()), "round": record.round}


def test_numbers_of_a_strategy_are_beside_those_of_a_method(run: Run) -> None:
    lines = run(Numbers, energy__battery_share=0.5)
    assert [line["noted"]["round"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["noted"]["left"] == pytest.approx(sum(lines[-1]["battery_j"].values()))
