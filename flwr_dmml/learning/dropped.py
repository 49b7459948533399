"""Accuracy when modalities are missing at test time, by the rate at which each one is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..base.seeding import numpy_generator
from ..data import Partition, Samples
from ..data.missing import kept
from ..data.samples import Rows
from ..models.late_fusion import Scores
from .evaluation import accuracy, predictions

RATES = 0.0, 0.2, 0.4, 0.6, 0.8


def drop_at_test(test: Samples, rate: float, seed: int) -> Samples:
    """Return test samples of which each modality is missing at a rate, but never all.

    A modality's draw depends on the seed, its name and the sample's place in the test set only: the
    same is missing for every method, and for every device that has these modalities. What is
    missing at a rate is missing at every higher one (:func:`~flwr_dmml.data.missing.kept`).

    Parameters
    ----------
    test : Samples
        Of a :class:`~flwr_dmml.data.Partition`; what they lack already stays missing.
    rate : float
        In [0, 1].
    seed : int
        Of the run.
    """
    inputs = test.inputs
    places = inputs.index if isinstance(inputs, Rows) else torch.arange(len(test))
    last = int(places.max()) + 1 if len(places) else 0
    draws = [numpy_generator(seed, "dropped", m).random(last) for m in inputs]
    table = torch.from_numpy(np.stack(draws))[:, places]
    if test.present is not None:
        table = torch.where(torch.stack([*test.present.values()]).to(table.device), table, -1.0)
    left = kept(table, rate)
    return replace(test, present=dict(zip(inputs, left, strict=True)))


def accuracy_by_rate(
    scores: Scores, partition: Partition, seed: int, rates: Sequence[float] = RATES
) -> dict[float, float]:
    """Return the test accuracy by the rate at which each modality is missing.

    Each sample is predicted from what is left, as the model or its late fusion does it: nothing is
    filled in, with zeros or otherwise. One modality is never missing.

    Parameters
    ----------
    scores : callable
        Logits from subsets of the modalities, such as
        :meth:`~flwr_dmml.learning.learner.Learner.predicted`.
    partition : Partition
        With the test samples, on the device that computes.
    seed : int
        Of the run.
    rates : sequence of float
        In [0, 1].
    """
    found: dict[float, float] = {}
    for rate in rates:
        data = drop_at_test(partition.test, rate, seed)
        guessed: Tensor = predictions(scores, data, [partition.modalities])[partition.modalities]
        found[rate] = accuracy(guessed, data.labels)
    return found


def area(by_rate: Mapping[float, float]) -> float:
    """Return the mean height of the curve of accuracies over their rates, in [0, 1].

    By the trapezoidal rule.

    Raises
    ------
    ValueError
        There are fewer than two rates, or they do not ascend.
    """
    rates = [*by_rate]
    if len(rates) < 2 or rates != sorted(set(rates)):
        raise ValueError(f"rates {rates}: two or more that ascend are needed")
    steps = ((b - a) * (by_rate[a] + by_rate[b]) / 2 for a, b in pairwise(rates))
    return sum(steps) / (rates[-1] - rates[0])
