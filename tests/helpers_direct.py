"""A link without a network, and plans for devices that exchange letters themselves."""

from collections.abc import Collection, Mapping, Sequence

from flwr_dmml.clients import Learner
from flwr_dmml.payload.plan import Plan
from flwr_dmml.transport.letter import Letter


class Shelf:
    """Letters that lie ready, by sender and round; keeps what was asked for."""

    def __init__(self, letters: Mapping[tuple[int, int], Letter]) -> None:
        self.letters, self.published = dict(letters), list[Letter]()
        self.readers = list[Collection[int] | None]()
        self.asked: list[tuple[list[int], int]] = []
        self.spare: list[float] = []
        self.lingered: tuple[list[int], int] = ([], -1)

    def publish(self, letter: Letter, readers: Collection[int] | None = None) -> int:
        self.published.append(letter)
        self.readers.append(readers)
        return 100

    def collect(
        self, peers: Mapping[int, str], server_round: int, timeout_s: float, spare_s: float
    ) -> tuple[dict[int, Letter], dict[int, str]]:
        self.asked.append((list(peers), server_round))
        self.spare.append(spare_s)
        there = {
            p: self.letters[p, server_round] for p in peers if (p, server_round) in self.letters
        }
        return there, {p: f"no letter within {timeout_s:g} s" for p in peers if p not in there}

    def linger(self, peers: Sequence[int], server_round: int, timeout_s: float) -> set[int]:
        self.lingered = (list(peers), server_round)
        return set()


def plan(server_round: int, learner: Learner, neighbours: tuple[int, ...]) -> Plan:
    third = {name: (1 / 3, 1 / 3, 1 / 3)[: 1 + len(neighbours)] for name in learner.blocks()}
    weights = third if neighbours else {}
    return Plan(server_round, 2, server_round > 1, neighbours, weights, num_rounds=3)
