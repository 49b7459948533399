"""A device's introduction before the first round: its data, model, work and energy meter."""

from hashlib import blake2b

import torch
from flwr.app import ConfigRecord, Context

from ..data.looks import named_channels
from ..learning.learner import Learner
from ..learning.work import first_payload, measure_work
from ..payload.blocks import digest, unaddressed
from ..privacy.masks import new_key
from ..transport import size_bytes
from ..transport.arrays import serialised_bytes
from ..transport.messages import FLOPS_IN, MASK_KEY, PUBLIC_KEY, SPOKEN, pack
from .metering import equipment_of
from .sealing import announcement, seals

_SHOWN = 200  # characters of the names of channels


def introduction(learner: Learner, context: Context) -> ConfigRecord:
    """Return what the coordinator needs to know of a device; afterwards its learner is reset.

    Raises
    ------
    SettingsError
        The node config is wrong.
    """
    work = measure_work(learner)  # leaves it as at the start
    lengths, payload = learner.block_lengths(), pack(first_payload(learner))
    sizes = dict.fromkeys(lengths, 0)
    for name, array in payload.items():
        if (block := unaddressed(name)) in sizes:
            sizes[block] += serialised_bytes(array)
    about = ConfigRecord(
        {
            **SPOKEN,
            "partition-id": learner.partition.partition_id,
            "modalities": list(learner.partition.modalities),
            "block-names": list(lengths),
            "block-lengths": list(lengths.values()),
            "payload-bytes": size_bytes(payload),
            "block-bytes": list(sizes.values()),
            "block-digests": [digest(learner.flat.modules[block]) for block in lengths],
            "num-train": len(learner.train_data),
            **_data_told(learner),
            "flops-joint": work.joint,
            "flops-solo": list(work.solo.values()),
            "flops-per-round": work.per_round,
            **{FLOPS_IN + phase: flops for phase, flops in work.in_phase.items()},
            **equipment_of(context.node_config, learner.settings).told(),
        }
    )
    if any(channels := [_channels_told(learner, m) for m in learner.partition.modalities]):
        about["channels"] = channels
    if address := context.node_config.get("direct-address"):
        about["direct-address"] = str(address)
    if seals(context):
        about[PUBLIC_KEY] = announcement(context, learner.partition.partition_id)
    if learner.settings.privacy.secure_sums:
        learner.private_key, about[MASK_KEY] = new_key()
    if learner.settings.report_classes and learner.spending.how is None:
        labels, classes = learner.train_data.labels.cpu(), learner.partition.num_classes
        about["class-counts"] = torch.bincount(labels, minlength=classes).tolist()
        if names := learner.partition.class_names:  # Flower cannot count the bytes of an empty list
            about["class-names"] = list(names)
    return about


def _channels_told(learner: Learner, modality: str) -> str:
    """Return the names of a modality's channels, in order; of long ones a digest stands for all."""
    names = ", ".join(named_channels(learner.partition.source_modalities[modality]))
    if len(names) <= _SHOWN:
        return names
    return f"{names[:_SHOWN]}... ({blake2b(names.encode(), digest_size=8).hexdigest()})"


def _data_told(learner: Learner) -> dict[str, int | str]:
    """Return what a device says of its data, so that those of another data set are noticed."""
    part = learner.partition
    own = ", ".join(f"{m} {(*part.source_modalities[m].shape,)}" for m in part.modalities)
    path = f"'{learner.settings.data_folder}'" if learner.settings.data_path else "no data-path"
    told = f"{path}, {part.num_classes} classes, {own}"
    return {"num-classes": part.num_classes, "data": told}
