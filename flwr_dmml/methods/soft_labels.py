"""Sparse soft labels of a public set: what nodes send each other about it, and their average."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..gossip.aggregation.median import median_of_those
from ..payload.blocks import STATISTICS

LABELS = STATISTICS + "labels."
"""Prefix of soft labels in a payload."""
_TOLERANCE = 1e-2  # of a row's sum; float16 rounding stays below 1e-3 up to 10,000 classes
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class SoftLabelError(ValueError):
    """Soft labels that are not what they should be; the message names the problem."""


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """Class probabilities for some samples of a public set. Checked when made.

    Attributes
    ----------
    index : Tensor
        Which public samples, ``[k]`` int32, >= 0, strictly increasing; k may be 0.
    labels : Tensor
        Their class probabilities, ``[k, classes]`` float16, >= 0. Rows sum to 1 up to float16
        rounding; up to 1e-2 is put up with, for a peer may round in another way.

    Raises
    ------
    SoftLabelError
        A type, a shape or a value is not as above.
    """

    index: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        index, labels = self.index, self.labels
        if index.dtype != torch.int32 or labels.dtype != torch.float16:
            raise SoftLabelError(
                f"index is int32 and labels float16, not {index.dtype} and {labels.dtype}"
            )
        if index.ndim != 1 or labels.ndim != 2 or len(index) != len(labels) or not labels.shape[1]:
            raise SoftLabelError(
                "index has shape [k] and labels [k, classes], "
                f"not {list(index.shape)} and {list(labels.shape)}"
            )
        if not (index[1:] > index[:-1]).all():
            raise SoftLabelError("index is not strictly increasing")
        if len(index) and index[0] < 0:
            raise SoftLabelError(f"index {int(index[0])} is out of range: it is below 0")
        if torch.isnan(labels).any():
            raise SoftLabelError("labels hold NaN")
        if (labels < 0).any():
            raise SoftLabelError(f"labels hold a negative value, {float(labels.min())}")
        sums = labels.double().sum(dim=1)  # [k]
        wrong = (sums - 1).abs() > _TOLERANCE
        if wrong.any():
            row = int(wrong.nonzero()[0, 0])
            raise SoftLabelError(
                f"labels of public sample {int(index[row])} sum to {float(sums[row]):.4g}, not to 1"
            )

    @classmethod
    def of(cls, index: Tensor, probabilities: Tensor) -> "SoftLabels":
        """Return the soft labels of a node's own outputs, rounded to float16.

        Parameters
        ----------
        index : Tensor
            ``[k]``, any integer type; >= 0, strictly increasing.
        probabilities : Tensor
            ``[k, classes]``, any floating type; rows sum to 1. Carries no gradient on.

        Raises
        ------
        SoftLabelError
            They make no :class:`SoftLabels`.
        """
        if index.dtype not in _INTEGERS:
            raise SoftLabelError(f"index holds integers, not {index.dtype}")
        if not probabilities.is_floating_point():
            raise SoftLabelError(f"probabilities are floating point, not {probabilities.dtype}")
        if index.numel() and int(index.max()) > torch.iinfo(torch.int32).max:
            raise SoftLabelError(f"index {int(index.max())} is out of range: above int32")
        if index.numel() and int(index.min()) < 0:
            raise SoftLabelError(f"index {int(index.min())} is out of range: it is below 0")
        return cls(index.to(torch.int32), probabilities.detach().to(torch.float16))

    def pack(self) -> dict[str, Tensor]:
        """Return the message: 'index' ``[k]`` int32 and 'labels' ``[k, classes]`` float16."""
        return {"index": self.index, "labels": self.labels}

    @property
    def num_bytes(self) -> int:
        """Payload of the message in bytes: ``k (4 + 2 classes)``."""
        return sum(t.numel() * t.element_size() for t in self.pack().values())


def _fit(labels: SoftLabels, num_public: int, num_classes: int) -> SoftLabels:
    """Return soft labels unchanged if they are about this public set, else raise."""
    if labels.labels.shape[1] != num_classes:
        raise SoftLabelError(f"labels are of {labels.labels.shape[1]} classes, not {num_classes}")
    if len(labels.index) and int(labels.index[-1]) >= num_public:
        raise SoftLabelError(
            f"index {int(labels.index[-1])} is out of range: there are {num_public} public samples"
        )
    return labels


def unpack(tensors: Mapping[str, Tensor], num_public: int, num_classes: int) -> SoftLabels:
    """Read and check what :meth:`SoftLabels.pack` made on another node.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        As received; not trusted.
    num_public : int
        Samples of the public set.
    num_classes : int
        Classes of the task.

    Raises
    ------
    SoftLabelError
        Names the problem: other tensors than the two, a wrong type or shape, an index out of range
        or not strictly increasing, NaN, a negative value, a row that does not sum to 1 within 1e-2.
    """
    if set(tensors) != {"index", "labels"}:
        raise SoftLabelError(f"soft labels are 'index' and 'labels', not {sorted(tensors)}")
    return _fit(SoftLabels(tensors["index"], tensors["labels"]), num_public, num_classes)


def average(
    received: Iterable[SoftLabels], num_public: int, num_classes: int, *, robust: bool = False
) -> SoftLabels:
    """Return the mean label of each public sample, over the nodes that sent one for it.

    A sample that nobody sent is absent, so that there is never an all-zero label. Rows are divided
    by their sum, which takes out the senders' rounding. Sums of float16 are exact in float64: the
    order of the senders makes no difference.

    Parameters
    ----------
    received : iterable of SoftLabels
        One a sender, the node's own among them; none gives an empty result.
    num_public : int
        Samples of the public set.
    num_classes : int
        Classes of the task.
    robust : bool (default: False)
        Take the median of each class's probability instead, as some senders may lie; the mean where
        all medians are 0.

    Raises
    ------
    SoftLabelError
        One has other classes, or an index out of range.

    References
    ----------
    IDKD (Ravikumar et al., TMLR 2024) averages in the paper; its released code picks one sender's
    label, and can leave an all-zero one.
    """
    senders = [_fit(labels, num_public, num_classes) for labels in received]
    if not senders:
        return SoftLabels.of(
            torch.empty(0, dtype=torch.int32), torch.empty(0, num_classes, dtype=torch.float16)
        )
    index: Tensor = torch.unique(torch.cat([sent.index for sent in senders]))  # [k], sorted
    total = torch.zeros(len(index), num_classes, dtype=torch.float64, device=index.device)
    for sent in senders:
        total[torch.searchsorted(index, sent.index)] += sent.labels.double()
    if robust:
        every = total.new_zeros(len(senders), *total.shape)
        there = torch.zeros_like(every[:, :, :1], dtype=torch.bool)
        for k, sent in enumerate(senders):
            rows = torch.searchsorted(index, sent.index)
            every[k, rows], there[k, rows] = sent.labels.double(), True
        middle = median_of_those(every, there)
        total = torch.where(middle.sum(dim=1, keepdim=True) > 0, middle, total)
    return SoftLabels.of(index, total / total.sum(dim=1, keepdim=True))
