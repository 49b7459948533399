"""Payloads as changes: equal copies at both ends, gaps that are mended, rubbish refused."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from flwr_dmml.payload.copies import Copies
from flwr_dmml.payload.plan import Payload

LENGTH, BLOCK = 50, "encoder.audio"
START = torch.linspace(-1, 1, LENGTH)


def numbers(seed: int) -> Tensor:
    return torch.randn(LENGTH, generator=torch.Generator().manual_seed(seed))


def made(precision: str = "int8", top_k: float = 0.2) -> Copies:
    copies = Copies(precision, top_k)
    copies.decode({}, {BLOCK: START}, 0)
    return copies


def vectors(seed: int) -> Payload:
    return {BLOCK: torch.cat([numbers(seed), torch.tensor([1.0])]), f"{BLOCK}#1": numbers(-seed)}


def send(sender: Copies, receiver: Copies, seed: int, *resend: int) -> tuple[Payload, list[str]]:
    """Send device 7's vectors to device 3; return what it has of them, and what was wrong."""
    sent = sender.encode(vectors(seed), {BLOCK: LENGTH}, resend)
    return receive(receiver, sent)


def receive(receiver: Copies, sent: Payload) -> tuple[Payload, list[str]]:
    opened, why = receiver.decode({7: sent}, {BLOCK: torch.zeros(LENGTH)}, 3)
    return opened[7], list(why.values())


def own(sender: Copies) -> Payload:
    return sender.decode({}, {BLOCK: START}, 7)[0][7]


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("top_k", [1.0, 0.2])
def test_both_ends_have_the_same_copy_to_the_bit(precision: str, top_k: float) -> None:
    sender, receiver = made(precision, top_k), made(precision, top_k)
    receiver.decode({}, {BLOCK: START}, 3)
    for seed in range(1, 6):
        sent = sender.encode(vectors(seed), {BLOCK: LENGTH})
        kept = {name: x.clone() for name, x in sent.items()}
        there, why = receive(receiver, sent)
        assert not why and all(torch.equal(kept[k], x) for k, x in sent.items())
        mine = own(sender)
        assert torch.equal(there[BLOCK][:LENGTH], mine[BLOCK]) and there[BLOCK][LENGTH:] == 1
        assert torch.equal(there[f"{BLOCK}#1"], mine[f"{BLOCK}#1"])
    if (precision, top_k) == ("float32", 1.0):
        assert torch.allclose(mine[BLOCK], vectors(5)[BLOCK][:LENGTH], atol=1e-6)


def test_by_hand() -> None:
    """Of (3, -1, 0.5, 2) against 0 the two largest changes go: (3, 0, 0, 2). Then those of the
    rest: (1, -1, 0.5, 0) - 0, of (4, -1, 0.5, 2): 1 and -1, of equals the first."""
    copies = Copies("float32", 0.5)
    copies.decode({}, {"b": torch.zeros(4)}, 0)
    copies.encode({"b": torch.tensor([3.0, -1.0, 0.5, 2.0])}, {"b": 4})
    assert copies.decode({}, {"b": torch.zeros(4)}, 0)[0][0]["b"].tolist() == [3, 0, 0, 2]
    sent = copies.encode({"b": torch.tensor([4.0, -1.0, 0.5, 2.0])}, {"b": 4})
    assert sent["b"].tolist() == [1, -1] and int(sent["b#count"]) == 2
    assert copies.decode({}, {"b": torch.zeros(4)}, 0)[0][0]["b"].tolist() == [4, -1, 0, 2]


def test_what_is_left_out_comes_in_time() -> None:
    """The same numbers over and over: a fifth of them a round, and int8's rest."""
    sender, receiver = made(), made()
    receiver.decode({}, {BLOCK: START}, 3)
    far = [
        float((send(sender, receiver, 1)[0][BLOCK][:LENGTH] - numbers(1)).norm()) for _ in range(12)
    ]
    assert far[0] > 1 and far[-1] < 1e-3 and all(b < a for a, b in pairwise(far))


def test_a_gap_is_noticed_and_a_copy_mends_it() -> None:
    sender, receiver = made(), made()
    receiver.decode({}, {BLOCK: START}, 3)
    send(sender, receiver, 1)
    before = receiver.state()
    sender.encode(vectors(2), {BLOCK: LENGTH})  # lost
    there, why = send(sender, receiver, 3)
    assert BLOCK not in there
    assert why == [
        "7: block encoder.audio is change 3, which does not follow on 1: one has not come"
    ]
    after = receiver.state()
    assert all(torch.equal(before[k], after[k]) for k in before), "it stays as it is"
    there, why = send(sender, receiver, 4, 3, 5)
    assert not why and torch.equal(there[BLOCK][:LENGTH], own(sender)[BLOCK])
    assert (
        torch.equal(there[f"{BLOCK}#1"], own(sender)[f"{BLOCK}#1"]) and there[BLOCK][LENGTH:] == 1
    )
    there, why = send(sender, receiver, 5)  # and goes on from there
    assert not why and torch.equal(there[BLOCK][:LENGTH], own(sender)[BLOCK])


def test_who_starts_from_other_numbers_gets_a_copy_first() -> None:
    sender, receiver = made(), Copies("int8", 0.2)
    receiver.decode({}, {BLOCK: numbers(99)}, 3)
    there, why = send(sender, receiver, 1, 3)
    assert not why and torch.equal(there[BLOCK][:LENGTH], own(sender)[BLOCK])


def test_a_block_that_is_not_sent_stays_as_it_is() -> None:
    sender, receiver = made(), made()
    receiver.decode({}, {BLOCK: START}, 3)
    send(sender, receiver, 1)
    sent = sender.encode({BLOCK: torch.zeros(0)}, {BLOCK: LENGTH})
    assert sent.keys() == {BLOCK} and not sent[BLOCK].numel()
    assert not receive(receiver, sent)[1]
    assert not send(sender, receiver, 2)[1]


def test_a_state_goes_on_to_the_bit() -> None:
    sender, receiver = made(), made()
    receiver.decode({}, {BLOCK: START}, 3)
    for seed in (1, 2):
        send(sender, receiver, seed)
    again = [Copies("int8", 0.2) for _ in range(2)]
    for copies, old in zip(again, (sender, receiver), strict=True):
        copies.load_state({k: x.clone() for k, x in old.state().items()})
    a, b = send(sender, receiver, 3)[0], send(*again, 3)[0]
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert again[1].state().keys() == receiver.state().keys()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({f"{BLOCK}#count": None}, "does not say how many changes there were"),
        ({f"{BLOCK}#count": torch.tensor([1.0])}, "does not say how many changes there were"),
        ({f"{BLOCK}#count": torch.tensor([4], dtype=torch.int32)}, "does not follow on 0"),
        ({f"{BLOCK}#scale": torch.tensor([float("inf")])}, "infinite"),
        ({f"{BLOCK}#1#scale": torch.tensor([1e30])}, "holds values beyond 1e+06"),
        ({f"{BLOCK}#1": torch.zeros(3)}, "has type torch.float32 instead of torch.int8"),
        ({f"{BLOCK}#at": torch.tensor([0, 99], dtype=torch.int32)}, "outside of its 50"),
    ],
)
def test_rubbish_is_refused_and_changes_nothing(
    changed: dict[str, Tensor | None], words: str
) -> None:
    sender, receiver = made(), made()
    receiver.decode({}, {BLOCK: START}, 3)
    sent = sender.encode(vectors(1), {BLOCK: LENGTH})
    bad = {k: x for k, x in (sent | changed).items() if x is not None}
    there, why = receive(receiver, bad)
    assert BLOCK not in there and len(why) == 1 and words in why[0]
    assert not receive(receiver, sent)[1], "the sound one still follows"


@pytest.mark.parametrize("copy", [torch.full((LENGTH + 1,), float("nan")), torch.zeros(3)])
def test_a_copy_that_is_rubbish_is_refused(copy: Tensor) -> None:
    sender, receiver = made(), made()
    sent = sender.encode(vectors(1), {BLOCK: LENGTH}, [3])
    there, why = receive(receiver, sent | {f"{BLOCK}@3": copy})
    assert BLOCK not in there and len(why) == 1


def test_copies_that_a_neighbour_makes_up_are_not_gathered() -> None:
    """Each letter is limited; what is kept of many is no more than one letter has."""
    sender, receiver = made(), made()
    receiver.decode({}, {BLOCK: START}, 3)
    for seed in range(1, 5):
        made_up = {f"{BLOCK}#{10 * seed}": numbers(seed)}
        sent = sender.encode(vectors(seed) | made_up, {BLOCK: LENGTH})
        assert not receive(receiver, sent)[1]
    theirs = [name for name in receiver.state() if f".7.{BLOCK}#" in name]
    assert sorted(name.partition("#")[2] for name in theirs) == ["1", "40", "count"]
