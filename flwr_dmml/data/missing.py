"""Samples that lack one of their modalities."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch

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
