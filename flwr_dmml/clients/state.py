"""What a learner of this process holds of its device's state: it is not loaded again."""

from weakref import WeakKeyDictionary, WeakSet

import torch
from flwr.app import ArrayRecord, RecordDict

from ..learning.evaluation import confusion, predictions
from ..learning.learner import Learner
from ..transport.messages import PRIVATE, SECRET, STATE, unpack

_held: WeakKeyDictionary[Learner, ArrayRecord] = WeakKeyDictionary()
_fresh: WeakSet[Learner] = WeakSet()


def hold(learner: Learner, kept: ArrayRecord) -> None:
    """Take note that a learner is in the state that a record holds."""
    _held[learner] = kept
    _fresh.discard(learner)


def begin_afresh(learner: Learner) -> None:
    """Take note that a learner has just been reset."""
    _held.pop(learner, None)
    _fresh.add(learner)


def take_up(learner: Learner, state: RecordDict) -> None:
    """Bring a learner to the state that its device has kept; it is then changed by a round.

    A round that fails leaves a learner that holds no known state.
    """
    torch.set_num_threads(learner.settings.torch_threads)
    secret = state.config_records.get(SECRET)
    learner.private_key = bytes(secret[PRIVATE]) if secret else b""  # type: ignore[arg-type]
    held, fresh = _held.pop(learner, None), learner in _fresh
    _fresh.discard(learner)
    if STATE not in state.array_records:
        if not fresh:
            learner.reset()
    elif not _is(state.array_records[STATE], held):
        learner.load_state(unpack(state.array_records[STATE]))


def _is(record: ArrayRecord, held: ArrayRecord | None) -> bool:
    """Return whether these are the very arrays of the state that a learner still holds."""
    if held is None or record.keys() != held.keys():
        return False
    return all(array is held[name] for name, array in record.items())


def confusion_of(learner: Learner) -> list[int]:
    """Return how often each class is taken for each; [] for a method with a measure of its own."""
    if type(learner).evaluate is not Learner.evaluate:
        return []
    learner.flat.attach()
    part, test = learner.partition, learner.test_data
    found = predictions(learner.predicted, test, [part.modalities])[part.modalities]
    counts: list[int] = confusion(found, test.labels, part.num_classes).flatten().tolist()
    return counts
