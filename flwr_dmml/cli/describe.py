"""Description of a run before it starts: samples, models, bytes and operations by device kind."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from torch import nn

from ..clients.app import PeerClientApp
from ..data import Modality, Partition, load_partition
from ..energy.costs import FleetCosts, Work
from ..energy.devices import IterationCosts
from ..engine import AppError, FlowerApp
from ..graph.spectral import graph_lines
from ..learning.flops import FlopCounter
from ..learning.learner import Learner
from ..learning.work import first_payload, measure_work
from ..payload.blocks import num_parameters, unaddressed
from ..privacy.accountant import Ledger
from ..privacy.options import Mechanism, PrivacyOptions
from ..settings import Settings, find_parts, parse_settings
from ..strategies.breakdown import told_of
from ..transport import size_bytes
from ..transport.messages import pack


@dataclass(frozen=True)
class Price:
    """Cost of an iteration, or of a method's own work in a round, on devices of a kind.

    Attributes
    ----------
    what : str
        What an iteration trains, or the method's own work in a round.
    predict : float or None
        FLOPs of predicting one sample from these modalities.
    flops : float
        Of a mini-batch, forward and back, losses included; or of the own work.
    joules, seconds : list of float
        On each device, by its profile.
    """

    what: str
    predict: float | None
    flops: float
    joules: list[float]
    seconds: list[float]


@dataclass(frozen=True)
class Planned:
    """Noise of a device, and its epsilon if a whole run goes as planned."""

    sigma: float
    steps: int
    epsilon: float


@dataclass(frozen=True)
class Kind:
    """Devices with the same modalities.

    Attributes
    ----------
    modalities : tuple of str
        What they have.
    devices, samples : list of int
        Their partition ids, and the training samples of each.
    sent, kept : dict of str to int
        Parameters of each block: of those that are sent, and of those that stay on the device.
    wire : dict of str to int
        Bytes of the numbers that round 1 sends of each block to one neighbour.
    payload_bytes : int
        Of all of that payload, with statistics and headers: what radio is billed by.
    prices : list of Price
        Of an iteration of all modalities, of each alone where there are several, and of own work.
    noise : list of Planned
        Of each device under ``privacy.dp``; empty without it.
    """

    modalities: tuple[str, ...]
    devices: list[int]
    samples: list[int]
    sent: dict[str, int]
    kept: dict[str, int]
    wire: dict[str, int]
    payload_bytes: int
    prices: list[Price]
    noise: list[Planned]


@dataclass(frozen=True)
class Description:
    """Description of a run before it starts.

    Attributes
    ----------
    settings : Settings
        Of the run.
    modalities : dict of str to Modality
        All of the data set.
    num_classes : int
        Number of classes.
    class_names : tuple of str
        Empty where they have none.
    kinds : list of Kind
        Every device is in one, in the order of their first devices.
    liars : list of str
        How many liars a robust aggregation rule can bear on the graph of the first round.
    """

    settings: Settings
    modalities: dict[str, Modality]
    num_classes: int
    class_names: tuple[str, ...]
    kinds: list[Kind]
    liars: list[str]


def describe(app: FlowerApp, run_config: Mapping[str, Any]) -> Description:
    """Load the data of every device, and build the model of one of each kind; nothing is trained.

    Parameters
    ----------
    app : FlowerApp
        From :func:`~flwr_dmml.engine.load_app`.
    run_config : mapping
        Of the whole run, in the place of the app's own.

    Raises
    ------
    SettingsError, DataError
        The run could not start.
    AppError
        The ClientApp is not one of :func:`~flwr_dmml.clients.make_client_app`, or the method cannot
        be built for a device.
    """
    if not isinstance(app.client_app, PeerClientApp):
        raise AppError("only an app with the ClientApp of make_client_app can be described")
    config = parse_settings(run_config, find_parts(app.client_app.own))
    settings = config.settings
    of = settings.partition_options()
    parts = [load_partition(of, k) for k in range(settings.num_nodes)]
    alike = dict[tuple[str, ...], list[Partition]]()
    for part in parts:
        alike.setdefault(part.modalities, []).append(part)
    learners, work = dict[tuple[str, ...], Learner](), dict[tuple[str, ...], Work]()
    for modalities, group in alike.items():
        try:
            learner = config.learner(settings.method, group[0])
            learners[modalities], work[modalities] = learner, measure_work(learner)
        except ValueError as error:
            raise AppError(
                f"{settings.method} on devices with {'+'.join(modalities)}: {error}"
            ) from error
    fleet = settings.energy.fleet(settings.num_nodes, settings.seed)
    costs = FleetCosts.of(fleet, {p.partition_id: work[p.modalities] for p in parts})
    kinds = [_kind(alike[m], learners[m], work[m], costs) for m in alike]
    first, rule = parts[0], config.aggregation
    assert rule is not None  # or the run config had been refused
    blocks = {p.partition_id: learners[p.modalities].block_names for p in parts}
    liars = told_of(settings, blocks, rule)
    names, of_classes = first.class_names, first.num_classes
    return Description(settings, first.source_modalities, of_classes, names, kinds, liars)


def _kind(parts: Sequence[Partition], learner: Learner, work: Work, costs: FleetCosts) -> Kind:
    modalities, nodes = parts[0].modalities, [part.partition_id for part in parts]

    def price(
        what: str, flops: float, of: IterationCosts, subset: tuple[str, ...] = (), column: int = 0
    ) -> Price:
        joules, seconds = of.energy_j[nodes, column].tolist(), of.time_s[nodes, column].tolist()
        predict = _forward_flops(learner, subset) if subset else None
        return Price(what, predict, flops, joules, seconds)

    every = "all together" if len(modalities) > 1 else modalities[0]
    prices = [price(every, work.joint, costs.joint, modalities)]
    for m in modalities if len(modalities) > 1 else ():
        column = costs.modalities.index(m)
        prices.append(price(f"{m} alone", work.solo[m], costs.solo, (m,), column))
    if work.per_round:
        prices.append(price("once a round", work.per_round, costs.per_round))
    for phase, flops in work.in_phase.items():
        if flops:
            prices.append(price(f"more in phase '{phase}'", flops, costs.in_phase[phase]))
    kept = _lengths(learner.flat.modules)
    sent = {block: kept.pop(block) for block in learner.block_names}
    payload, wire = first_payload(learner), dict.fromkeys(sent, 0)
    for name, numbers in payload.items():
        if (block := unaddressed(name)) in wire:
            wire[block] += numbers.nbytes
    total, samples = size_bytes(pack(payload)), [len(part.train) for part in parts]
    noise = [_planned(learner, n) for n in samples if learner.spending.how]
    return Kind(modalities, nodes, samples, sent, kept, wire, total, prices, noise)


def _planned(learner: Learner, samples: int) -> Planned:
    """Return what is planned for a device with so many samples and the sensors of a learner."""
    settings, steps = learner.settings, learner.spending.planned_steps
    how = Mechanism.of(settings.privacy, samples, settings.batch_size, steps, settings.num_nodes)
    return Planned(how.sigma, steps, how.epsilon(how.charged(Ledger(), steps)))


def _lengths(blocks: Mapping[str, nn.Module]) -> dict[str, int]:
    return {name: num_parameters(module) for name, module in blocks.items()}


@torch.no_grad()
def _forward_flops(learner: Learner, modalities: tuple[str, ...]) -> float:
    """Count what predicting one sample from these modalities alone takes."""
    shapes = {m: learner.partition.source_modalities[m].shape for m in modalities}
    inputs = {m: torch.zeros(1, *shape, device=learner.device) for m, shape in shapes.items()}
    learner.model.eval()
    with FlopCounter() as counter:
        learner.scores(inputs, [modalities])
    return float(counter.flops)


# ---- as text ------------------------------------------------------------------------------------


def tables(described: Description) -> Group:
    """Return a description for a rich console."""
    return Group(*_parts(described))


def _parts(described: Description) -> Iterator[RenderableType]:
    settings, kinds = described.settings, described.kinds
    names = ", ".join(described.class_names)
    sizes = [size for kind in kinds for size in kind.samples]
    yield (
        f"{settings.method} on {settings.dataset}: {len(sizes)} devices, {_span(sizes)} training "
        f"samples each, {described.num_classes} classes" + (f" ({names})" if names else "")
    )
    samples = Table("modality", "kind", "shape of a sample", title="Samples", title_justify="left")
    for name, modality in described.modalities.items():
        samples.add_row(name, modality.kind, " x ".join(map(str, modality.shape)))
    yield samples
    topology = settings.make_topology()
    yield "\n".join(graph_lines(topology, settings.num_nodes, seed=settings.seed))
    yield from described.liars
    yield f"Joules and milliseconds of computing: on {settings.energy.devices}"
    for kind in kinds:
        count = f"{len(kind.devices)} device" + "s" * (len(kind.devices) > 1)
        yield f"\n{'+'.join(kind.modalities)}: {count}, {_span(kind.samples)} training samples each"
        yield _blocks(kind)
        yield _operations(kind, settings.batch_size)
        if kind.noise:
            yield _noise(kind, settings.privacy)


def _blocks(kind: Kind) -> Table:
    table = Table("block")
    for column in ("parameters", "bytes on the wire"):
        table.add_column(column, justify="right")
    for name, length in kind.sent.items():
        table.add_row(name, f"{length:,}", f"{kind.wire[name]:,}")
    for name, length in kind.kept.items():
        table.add_row(name, f"{length:,}", "stays here")
    table.add_section()
    sent, kept = sum(kind.sent.values()), sum(kind.kept.values())
    table.add_row("all", f"{sent + kept:,}", f"{sum(kind.wire.values()):,}")
    table.add_row("payload, with headers and statistics", "", f"{kind.payload_bytes:,}")
    return table


def _operations(kind: Kind, batch_size: int) -> Table:
    table = Table("modalities")
    columns = ["FLOPs to predict 1 sample", f"to train {batch_size}", "joules", "milliseconds"]
    for column in columns:
        table.add_column(column, justify="right")
    for price in kind.prices:
        table.add_row(
            price.what,
            "" if price.predict is None else f"{price.predict:,.0f}",
            f"{price.flops:,.0f}",
            _between(price.joules),
            _between([1e3 * s for s in price.seconds]),
        )
    return table


def _noise(kind: Kind, privacy: PrivacyOptions) -> str:
    """Return the noise, and what epsilon it is to come to, of which unit."""
    sigma, epsilon = ([getattr(each, x) for each in kind.noise] for x in ("sigma", "epsilon"))
    (steps,) = {each.steps for each in kind.noise}
    limit = f"; a device stops training at {privacy.epsilon:g}" if privacy.epsilon else ""
    return (
        f"Differential privacy of {privacy.unit}, against all who see what its device "
        f"sends: noise sigma {_between(sigma)}, {steps:,} steps planned, then epsilon "
        f"{_between(epsilon)} at delta {privacy.delta_told}{limit}"
    )


def _span(sizes: Sequence[int]) -> str:
    """Return least, median and most, or the one number that there is."""
    low, high = min(sizes), max(sizes)
    return f"{low:,}" if low == high else f"{low:,} to {high:,} (median {median(sizes):g})"


def _between(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"
