"""The public set: the same unlabelled samples on every device, some perhaps of another kind."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from ..base.libraries import needed
from ..base.seeding import numpy_generator
from .assignment import ModalitySet, assign_modalities
from .options import PartitionOptions, PublicOptions
from .partition import divide
from .registry import find_dataset, load_source
from .samples import DataError, Source


@dataclass(frozen=True, eq=False)
class PublicSet:
    """Aligned samples without labels, in random order; never write into the tensors.

    Parameters
    ----------
    inputs : mapping of str to torch.Tensor
        Modality to ``[n, *shape]`` float32: modalities of the run's data set, in its order and
        form, perhaps not all.
    inside : torch.Tensor
        ``[n]`` bool, False for samples of ``public.outside``. Only to measure a detector with.
    truth : torch.Tensor, optional
        ``[n]`` int64: the class in ``[0, num_classes)``, -1 for outside samples. Only to measure
        with, and None where the inside samples are not of the run's own data set.
    """

    inputs: Mapping[str, torch.Tensor]
    inside: torch.Tensor
    truth: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.inside)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of the samples."""
        return tuple(self.inputs)


def public_problems(options: PublicOptions, partition: PartitionOptions) -> list[str]:
    """Say what keeps a public set from working, as far as can be told without loading data.

    Each begins with its key and value. There are none if ``partition`` has no valid modalities.
    """
    try:
        kept = find_dataset(partition.dataset).modalities_of(partition.load)
        if kept is None:  # only the devices can tell
            return []
        shares, pattern = partition.modality_shares, partition.modality_pattern
        nodes = assign_modalities(
            partition.num_nodes, pattern=pattern, shares=shares, available=kept, seed=partition.seed
        )
    except DataError:
        return []
    problems = []
    if options.outside and options.outside in (partition.dataset, options.dataset):
        problems.append(f"public.outside = '{options.outside}': is inside already; set another one")
    for key, name in _added(options, partition).items():
        try:
            dataset = find_dataset(name)
        except DataError as error:
            problems.append(f"{key} = '{name}': {str(error).removeprefix('dataset: ')}")
            continue
        if dataset.needs_path and not partition.load.path:
            problems.append(f"{key} = '{name}': reads a folder; set data-path to it")
        try:
            found = dataset.modalities_of(partition.load)
            kept = kept if found is None else _shared(f"{key} = '{name}'", kept, found, nodes)
        except DataError as error:
            problems.append(str(error))
    return problems


@lru_cache(maxsize=4)
def load_public(options: PublicOptions, partition: PartitionOptions) -> PublicSet:
    """Draw the run's public set, the same in every process; the last few are kept.

    Inside samples are the training samples that ``partition`` gave to no node, or all of
    ``public.dataset``. No public option changes the partition.

    Parameters
    ----------
    options : PublicOptions
        Where the samples come from, and how many: ``round(outside_share * samples)`` are outside.
    partition : PartitionOptions
        The run's own data; its ``load`` is for the other data sets too, as is its ``seed``.

    Raises
    ------
    DataError
        If the set is empty or smaller than asked for, a node owns none of its modalities, or one
        has another shape than the run's and is not converted.
    """
    if problems := public_problems(options, partition):
        raise DataError("; ".join(problems))
    run, seed = load_source(partition.dataset, partition.load), partition.seed
    indices, nodes = divide(partition)
    kept, sources = tuple(run.modalities), {}
    for key, name in _added(options, partition).items():
        sources[key] = load_source(name, partition.load)
        found = sources[key].modalities
        alike = [m for m in kept if m in found and found[m].kind == run.modalities[m].kind]
        kept = _shared(f"{key} = '{name}'", kept, alike, nodes)
    own = "public.dataset" not in sources
    inside, outside = sources.get("public.dataset", run), sources.get("public.outside")
    pool = np.setdiff1d(_complete(inside), np.concatenate(indices) if own else [])
    others_pool = _complete(outside) if outside else np.arange(0)
    there = len(others_pool)
    num_inside, num_outside = _counts(options, partition, len(pool), there)

    drawn = numpy_generator(seed, "public", "inside").permutation(pool)[:num_inside]
    parts = [_inputs("public.dataset", inside, drawn, kept, run, options.convert_images)]
    if outside:
        others = numpy_generator(seed, "public", "outside").permutation(others_pool)[:num_outside]
        parts.append(_inputs("public.outside", outside, others, kept, run, options.convert_images))
    order = numpy_generator(seed, "public", "order").permutation(num_inside + num_outside)
    truth = torch.cat([inside.train.labels[drawn], torch.full((num_outside,), -1)])[order]
    return PublicSet(
        inputs={name: torch.cat([part[name] for part in parts])[order] for name in kept},
        inside=torch.from_numpy(order < num_inside),
        truth=truth if own else None,
    )


def _complete(source: Source) -> np.ndarray:
    """Return the indices of the training samples that lack nothing."""
    present = source.train.present
    if present is None:
        return np.arange(len(source.train))
    return np.flatnonzero(torch.stack([*present.values()]).all(dim=0).numpy())


def _added(options: PublicOptions, partition: PartitionOptions) -> dict[str, str]:
    """Return the data sets besides the run's own, by key."""
    named = {"public.dataset": options.dataset, "public.outside": options.outside}
    return {key: name for key, name in named.items() if name not in ("", partition.dataset)}


def _shared(
    label: str, kept: ModalitySet, offered: Collection[str], nodes: list[ModalitySet]
) -> ModalitySet:
    """Return what of ``kept`` is ``offered`` too; raise if a node has nothing of that."""
    shared = tuple(name for name in kept if name in offered)
    for node, owned in enumerate(nodes):
        if not set(owned) & set(shared):
            raise DataError(
                f"{label}: node {node} owns {', '.join(owned)}, the public set then has "
                f"{', '.join(shared) or 'no modality'}; every node must own one of its modalities"
            )
    return shared


def _counts(
    options: PublicOptions, partition: PartitionOptions, inside: int, outside: int
) -> tuple[int, int]:
    """Return how many samples are drawn of the ``inside`` and ``outside`` ones there are."""
    own = options.dataset in ("", partition.dataset)
    if not inside:
        raise DataError(
            f"public.dataset = '{options.dataset}': the public set is empty; set another, or a "
            f"lower samples-per-node (it is {partition.samples_per_node}; 0 deals out all samples)"
        )
    share = options.outside_share if options.outside else 0.0
    totals = np.arange(inside + outside + 1)
    outsiders = np.rint(share * totals)  # half to even, as round
    most = int(totals[(outsiders <= outside) & (totals - outsiders <= inside)].max())
    total = options.samples or most
    counts = total - round(share * total), round(share * total)
    if total > most or (options.outside and 0 in counts):
        raise DataError(
            f"public.samples = {options.samples}: takes {counts[0]} inside and {counts[1]} outside "
            f"samples, there are {inside}{' that no node got' if own else ''} and {outside}; "
            f"allowed: up to {most}{', of each part at least 1' if options.outside else ''}"
            + ("; a lower samples-per-node leaves more" if own else "")
        )
    return counts


def _inputs(
    key: str, source: Source, index: np.ndarray, kept: ModalitySet, run: Source, convert: bool
) -> dict[str, torch.Tensor]:
    """Return the training samples at ``index``, in the form of the run's data set."""
    inputs = {name: source.train.inputs[name][index] for name in kept}
    for name in kept:
        found, form = source.modalities[name], run.modalities[name]
        if found.shape == form.shape:
            continue
        problem = f"{key} = '{source.name}': {name} is of shape {found.shape}, here {form.shape}"
        if form.kind != "image" or not convert:
            raise DataError(f"{problem}; public.convert-images = true brings images to that form")
        if {found.shape[0], form.shape[0]} not in ({form.shape[0]}, {1, 3}):
            raise DataError(f"{problem}; allowed: as many channels, 3 for 1, or 1 for 3")
        inputs[name] = _convert(inputs[name], form.shape)
    return inputs


def _convert(images: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return images ``[n, channels, height, width]`` in ``[0, 1]`` as ``[n, *shape]``."""
    with needed("torchvision"):
        from torchvision.transforms.functional import resize, rgb_to_grayscale

    if images.shape[1] > shape[0]:
        images = rgb_to_grayscale(images)
    resized: torch.Tensor = resize(images, [*shape[1:]], antialias=True)  # bilinear
    return resized.clamp(0, 1).expand(-1, *shape)
