"""The ceiling: one model, trained in one place on the samples of all devices.

It has the encoders of all sensors and takes as many steps as a device of the network has local
iterations. A step takes as many samples of each set of sensors as all devices with that set take in
an iteration: each sample is seen as often as in the network. Devices are judged by this model with
the modalities that they own.
"""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flwr_dmml.base.seeding import torch_generator
from flwr_dmml.data import Partition, load_partition
from flwr_dmml.learning.batch import draw_indices
from flwr_dmml.learning.evaluation import confusion, macro_f1
from flwr_dmml.models import DecomposedClassifier
from flwr_dmml.settings import find_parts, parse_settings

Samples = dict[tuple[str, ...], tuple[dict[str, Tensor], Tensor]]


def run_pooled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train the model; return what a result of the suite has, without bytes and joules."""
    parsed = parse_settings({**settings, "method": "dpsgd"}, find_parts()).settings
    torch.set_num_threads(parsed.torch_threads)
    partitions = [load_partition(parsed.partition_options(), k) for k in range(parsed.num_nodes)]
    model = DecomposedClassifier(
        dict(partitions[0].source_modalities),
        partitions[0].num_classes,
        common_dim=parsed.common_dim,
        specific_dim=parsed.specific_dim,
        choice=parsed.encoder_choice,
        seed=parsed.seed,
    )
    samples = _together(partitions)
    steps = parsed.num_server_rounds * parsed.local_iterations
    devices = {owned: [p.modalities for p in partitions].count(owned) for owned in samples}
    draws = {
        owned: draw_indices(
            len(labels),
            steps,
            parsed.batch_size * devices[owned],
            torch_generator(parsed.seed, "pooled", *owned),
        )
        for owned, (_, labels) in samples.items()
    }
    optimizer = torch.optim.SGD(
        model.parameters(), lr=parsed.learning_rate, momentum=parsed.momentum
    )
    for step in range(steps):
        rate = parsed.learning_rate_at(1 + step // parsed.local_iterations)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        for owned, (inputs, labels) in samples.items():
            rows = next(draws[owned])
            x = {m: values[rows] for m, values in inputs.items()}
            share = devices[owned] / parsed.num_nodes
            (share * _loss(model, x, labels[rows])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), parsed.clip_norm or torch.inf)
        optimizer.step()
    return _judged(model, partitions)


def _together(partitions: list[Partition]) -> Samples:
    """Return the training samples of all devices, by what these have."""
    by_set: dict[tuple[str, ...], list[Partition]] = {}
    for partition in partitions:
        by_set.setdefault(partition.modalities, []).append(partition)
    return {
        owned: (
            {m: torch.cat([p.train.inputs[m] for p in some]) for m in owned},
            torch.cat([p.train.labels for p in some]),
        )
        for owned, some in by_set.items()
    }


def _loss(model: DecomposedClassifier, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Return the cross-entropy, and that of each modality by itself where there are several."""
    loss = F.cross_entropy(model(inputs), labels)
    if len(inputs) > 1:
        alone = [F.cross_entropy(model({m: x}), labels) for m, x in inputs.items()]
        loss = loss + sum(alone)
    return loss


@torch.no_grad()
def _judged(model: DecomposedClassifier, partitions: list[Partition]) -> dict[str, Any]:
    """Return the accuracies of the network's devices if each had this model."""
    model.eval()
    found: dict[tuple[str, ...], tuple[float, float]] = {}
    for partition in partitions:
        for owned in {partition.modalities, *((m,) for m in partition.modalities)}:
            if owned not in found:
                classes = _predicted(model, partition, owned)
                table = confusion(classes, partition.test.labels, partition.num_classes)
                right = float((classes == partition.test.labels).float().mean())
                found[owned] = right, macro_f1(table)
    own = [found[p.modalities] for p in partitions]
    names = sorted({m for p in partitions for m in p.modalities})
    nodes = [
        {"modalities": "+".join(p.modalities), "accuracy": a, "macro_f1": f}
        for p, (a, f) in zip(partitions, own, strict=True)
    ]
    return {
        "accuracy": fmean(a for a, _ in own),
        "min_accuracy": min(a for a, _ in own),
        "macro_f1": fmean(f for _, f in own),
        "accuracy_by_set": {"+".join(p.modalities): found[p.modalities][0] for p in partitions},
        "accuracy_by_modality": {m: found[m,][0] for m in names},
        "nodes": nodes,
    }


def _predicted(model: DecomposedClassifier, partition: Partition, owned: tuple[str, ...]) -> Tensor:
    inputs = {m: partition.test.inputs[m] for m in owned}
    parts = [
        model({m: x[rows] for m, x in inputs.items()}).argmax(dim=1)
        for rows in torch.arange(len(partition.test.labels)).split(500)
    ]
    return torch.cat(parts)
