"""Which round plan goes with which method."""

from dataclasses import dataclass
from typing import Any

import pytest

from flwr_dmml.clients import DPSGD, find_methods
from flwr_dmml.strategies import PeerStrategy, registry
from flwr_dmml.strategies.idkd import IdkdStrategy
from flwr_dmml.strategies.registry import find_strategies
from flwr_dmml.strategies.relaysgd import RelaySGDStrategy
from flwr_dmml.strategies.staged import StagedStrategy


class Mine(PeerStrategy):
    """A plan of a user's."""


@dataclass(frozen=True)
class Entry:
    """An entry point of an installed package."""

    name: str
    value: Any

    def load(self) -> Any:
        return self.value


def install(monkeypatch: pytest.MonkeyPatch, *entries: Entry) -> None:
    def entry_points(*, group: str) -> list[Entry]:
        assert group == "flwr_dmml.strategies"
        return list(entries)

    monkeypatch.setattr(registry, "entry_points", entry_points)


def test_the_registered_plans():
    """Of methods that exist; every other one runs plain gossip."""
    found = find_strategies()
    assert found == {
        "harmony": StagedStrategy,
        "idkd": IdkdStrategy,
        "kd": IdkdStrategy,
        "modality-mirror": StagedStrategy,
        "relaysgd": RelaySGDStrategy,
    }
    assert set(found) <= set(find_methods())


def test_plans_of_an_apps_own():
    assert find_strategies({"mine": Mine}) == find_strategies() | {"mine": Mine}
    assert find_strategies({}) == find_strategies(None) == find_strategies()


def test_plans_of_an_installed_package(monkeypatch: pytest.MonkeyPatch):
    install(monkeypatch, Entry("theirs", Mine))
    assert find_strategies({"mine": IdkdStrategy}) == {"theirs": Mine, "mine": IdkdStrategy}


@pytest.mark.parametrize("entry", [object(), DPSGD, dict, "flwr_dmml", None, IdkdStrategy.phase])
def test_an_entry_that_is_no_plan_is_refused(entry: Any, monkeypatch: pytest.MonkeyPatch):
    """Named by its method, wherever it comes from."""
    with pytest.raises(ValueError, match=r"^method 'mine': .* is not a subclass of PeerStrategy$"):
        find_strategies({"mine": entry})
    install(monkeypatch, Entry("theirs", entry))
    with pytest.raises(ValueError, match="method 'theirs'"):
        find_strategies()


def test_two_plans_for_one_method_are_refused(monkeypatch: pytest.MonkeyPatch):
    """Also where the first is a registered one: an app does not replace it unnoticed."""
    with pytest.raises(ValueError, match=r"^method 'idkd' has two strategies: .*Idkd.*Mine"):
        find_strategies({"idkd": Mine})
    install(monkeypatch, Entry("theirs", Mine), Entry("theirs", IdkdStrategy))
    with pytest.raises(ValueError, match=r"^method 'theirs' has two strategies"):
        find_strategies()


def test_the_same_plan_twice_is_no_problem(monkeypatch: pytest.MonkeyPatch):
    assert find_strategies({"kd": IdkdStrategy}) == find_strategies()
    install(monkeypatch, Entry("theirs", Mine), Entry("theirs", Mine))
    assert find_strategies() == {"theirs": Mine}
