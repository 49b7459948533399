"""Devices whose model gives its input back: data are logits, so that scores and labels are known.

Rows of data are written as logits, mostly as logarithms of the probabilities that softmax gives.
"""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from flwr_dmml.clients import Kd, Learner
from flwr_dmml.data import Modality, Partition, PublicSet, Samples
from flwr_dmml.methods.kd import TAUGHT
from flwr_dmml.methods.soft_labels import LABELS, SoftLabels
from flwr_dmml.payload.blocks import STATISTICS
from flwr_dmml.payload.plan import Payload
from flwr_dmml.settings import Settings

Rows = Sequence[Sequence[float]]
Data = Mapping[str, Rows]
"""Modality -> rows ``[n, classes]``."""

LABEL_KEYS = {LABELS + "index", LABELS + "labels"}


class Echo(nn.Module):
    """``scale`` (1 at first) times the sum of the inputs ``[batch, classes]``."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.scale * torch.stack(list(inputs.values())).sum(dim=0)


class OnLogits(Learner):
    """Mixed into a method: its model is an echo."""

    def build_model(self) -> nn.Module:  # type: ignore[override]
        return Echo()

    def blocks(self) -> dict[str, nn.Module]:
        return {"echo": self.model}

    def encoders(self) -> dict[str, nn.Module]:
        return dict.fromkeys(self.partition.modalities, self.model)


def tensors(data: Data) -> dict[str, Tensor]:
    return {m: torch.tensor(rows, dtype=torch.float32) for m, rows in data.items()}


def echo(
    kind: type[Learner],
    public: Data,
    *,
    own: Data | None = None,
    labels: Sequence[int] | None = None,
    held_out: Data | None = None,
    inside: Sequence[bool] | None = None,
    truth: Sequence[int] | None = None,
    chosen: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """Build a device of a method, with this public set and these data of its own.

    It labels the ``chosen`` public samples, if they are given. By default it owns the modalities of
    the public set, two training samples of zeros, of classes 0 and 1, and the same held out.
    """
    first = next(iter(public.values()))
    classes = len(first[0])
    own = own or {m: [[0.0] * classes] * 2 for m in public}
    count = len(next(iter(own.values())))
    train = Samples(tensors(own), torch.tensor(labels or [k % classes for k in range(count)]))
    validation = train
    if held_out:
        drawn = tensors(held_out)
        length = len(next(iter(drawn.values())))
        validation = Samples(drawn, torch.zeros(length, dtype=torch.int64))
    partition = Partition(
        0,
        tuple(own),
        train,
        validation,
        {m: Modality("vector", (classes,)) for m in own},
        classes,
        train,
    )
    known: dict[str, Any] = {
        "public_set": PublicSet(
            tensors(public),
            torch.tensor([True] * len(first) if inside is None else list(inside)),
            None if truth is None else torch.tensor(list(truth)),
        )
    }
    if chosen is not None:
        known["choose"] = lambda self, logits: torch.tensor(list(chosen), dtype=torch.int64)
    cls = type("Echoing", (OnLogits, kind), known)
    return cls(partition, Settings(**settings), kind.options_type(**(options or {})))


def logs(*rows: Sequence[float]) -> list[list[float]]:
    """Return the logits that softmax makes these probabilities of."""
    return [[log(p) for p in row] for row in rows]


def message(rows: Mapping[int, Sequence[float]]) -> Payload:
    """Return the entries of a payload that carry these labels, by position in the public set."""
    labels = SoftLabels.of(torch.tensor(list(rows)), torch.tensor(list(rows.values())))
    return {LABELS + key: value for key, value in labels.pack().items()}


def by_index(index: Tensor, labels: Tensor) -> dict[int, list[float]]:
    return dict(zip(index.tolist(), labels.tolist(), strict=True))


def sent(payload: Payload) -> dict[int, list[float]]:
    """Return the labels in a payload; {} where there are none."""
    found = {k for k in payload if k.startswith(STATISTICS + "labels")}
    if not found:
        return {}
    assert found == LABEL_KEYS
    index, labels = payload[LABELS + "index"], payload[LABELS + "labels"]
    assert (index.dtype, labels.dtype) == (torch.int32, torch.float16)
    return by_index(index, labels)


def taught(learner: Kd) -> dict[int, list[float]] | None:
    """Return the labels that a device trains on; None where it has had none yet."""
    labels = learner._kept(TAUGHT)
    return None if labels is None else by_index(labels.index, labels.labels)
