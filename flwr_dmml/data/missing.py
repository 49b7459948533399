"""Samples that lack some of their modalities, and devices that have lost one."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from ..base.seeding import numpy_generator
from .samples import Samples


def draw_present(
    samples: Samples, share: float, modalities: Collection[str], generator: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Draw which samples lack a modality.

    Parameters
    ----------
    samples : Samples
        ``n`` samples. Those that lack a modality already stay as they are.
    share : float
        ``round(share * n)`` samples lack one modality each, drawn uniformly; in [0, 1].
    modalities : collection of str
        What may be missing; names that the samples do not have are ignored.
    generator : numpy.random.Generator
        Draws samples and modalities.

    Returns
    -------
    dict of str to torch.Tensor
        Each modality of the samples to ``[n]`` bool. All are True for samples of one modality, or
        where none may be missing.
    """
    there = torch.ones(len(samples), dtype=torch.bool)
    present = {m: (samples.present or {}).get(m, there).clone() for m in samples.inputs}
    may_miss = [m for m in samples.inputs if m in modalities]
    if len(present) < 2 or not may_miss:
        return present
    whole = torch.stack(list(present.values())).all(dim=0).numpy()
    rows = generator.permutation(np.flatnonzero(whole))[: round(share * len(samples))]
    lacked = generator.integers(len(may_miss), size=len(rows))
    for k, m in enumerate(may_miss):
        present[m][torch.from_numpy(rows[lacked == k])] = False
    return present


def drop(
    samples: Samples, share: float, modalities: Collection[str], generator: np.random.Generator
) -> Samples:
    """Return samples of which a share lacks one modality each, with zeros for its input.

    The parameters are those of :func:`draw_present`. The tensors given are not written into;
    samples of which none comes to lack anything are returned unchanged.
    """
    present = draw_present(samples, share, modalities, generator)
    before = samples.present or {m: torch.ones_like(has) for m, has in present.items()}
    fewer = [m for m, has in present.items() if not torch.equal(has, before[m])]
    if not fewer:
        return samples
    inputs = dict(samples.inputs)
    for m in fewer:
        inputs[m] = inputs[m].clone()
        inputs[m][~present[m]] = 0
    return replace(samples, inputs=inputs, present=present)


def kept(draws: torch.Tensor, rate: float) -> torch.Tensor:
    """Return what is left of modalities that are each missing at a rate, but never all.

    A modality stays if its draw is at least ``rate``, and the one with the highest draw does in any
    case: what is missing at some rate is missing at every higher one.

    Parameters
    ----------
    draws : torch.Tensor
        ``[modality, n]`` in [0, 1), uniform; above 1 for what may not be missing, below 0 for what
        is not there.
    rate : float
        In [0, 1]. Of M modalities a share ``rate - rate**M / M`` is missing.

    Returns
    -------
    torch.Tensor
        ``[modality, n]`` bool.
    """
    return (draws >= 0) & ((draws >= rate) | (draws == draws.amax(dim=0)))


def lost_by(
    partition_id: int, modalities: Sequence[str], may_miss: Collection[str], rate: float, seed: int
) -> list[str]:
    """Return the modalities that a device has lost: :func:`kept` has one draw for each.

    As in FedMultimodal (Feng et al., KDD 2023), but that a device loses not all, and that the draws
    of its modalities differ.
    """
    draws = [
        numpy_generator(seed, "lost", partition_id, m).random() if m in may_miss else 2.0
        for m in modalities
    ]
    stays = kept(torch.tensor(draws, dtype=torch.float64)[:, None], rate)[:, 0].tolist()
    return [m for m, there in zip(modalities, stays, strict=True) if not there]


def without(samples: Samples, modalities: Collection[str]) -> Samples:
    """Return samples that all lack ``modalities``, with zeros for the inputs.

    Those that have nothing else are left out; the tensors given are not written into.
    """
    if not modalities:
        return samples
    every = torch.ones(len(samples), dtype=torch.bool)
    before: Mapping[str, torch.Tensor] = samples.present or dict.fromkeys(samples.inputs, every)
    present = {m: ~every if m in modalities else has for m, has in before.items()}
    inputs = {m: torch.zeros_like(x) if m in modalities else x for m, x in samples.inputs.items()}
    return replace(samples, inputs=inputs, present=present).with_any()
