"""The report of one run: which sections it has and what stands in them."""

import re
from collections.abc import Callable, Iterable, Sequence

from ..tracking.records import RoundRecord
from ..tracking.tables import ONE_SEED
from . import curves, maps, summary, timing
from .leaving import privacy_sections
from .parts import Cards, Figure, Part, Section
from .reading import MethodRun, Run


def report_sections(run: Run) -> list[Section]:
    """Return the sections of a run's report; those without data are left out.

    Parameters
    ----------
    run : Run
        From :func:`.reading.read_run`.
    """
    methods = run.methods
    changed, usual = summary.settings(run.config)
    troubles = [table for table in (summary.failures(run), summary.claims(run)) if table]
    lead = "At the last evaluated round. Joules, seconds and bytes count all devices and rounds."
    found = [
        Section(
            "headline",
            "Headline numbers",
            f"{lead} {ONE_SEED}" if len(methods) > 1 else lead,
            [Cards(summary.headline(run)), summary.final_accuracies(run)],
        ),
        *_accuracy(run),
        *_training(methods),
        *_energy(methods),
        _seconds(methods),
        *_devices(methods),
        *_liars(run),
        *_labels(methods),
        *privacy_sections(run),
        *_own(methods),
        Section(
            "per-device",
            "Device by device",
            "Accuracy with all sensors that the device has. Costs count the rounds in which it "
            "answered.",
            [summary.devices(run), *troubles],
        ),
        Section(
            "settings-section",
            "Settings and origin",
            "Settings that differ from the defaults come first.",
            [changed, usual, summary.provenance(run)],
        ),
    ]
    return [section for section in found if section.parts]


def _there(figures: Iterable[Figure | None]) -> list[Part]:
    return [figure for figure in figures if figure is not None]


def _accuracy(run: Run) -> list[Section]:
    methods = [method for method in run.methods if method.evaluated]
    if not methods:
        return []
    costs = [
        cost
        for cost, (_, value) in curves.COSTS.items()
        if any(value(m, m.rounds[-1]) > 0 for m in methods)
    ]
    by_set = curves.by_key(
        "accuracy-by-set",
        "Mean test accuracy of the devices that have exactly these sensors.",
        methods,
        lambda line: line.accuracy_by_set,
        y_title="test accuracy",
    )
    alone = curves.by_key(
        "accuracy-by-modality",
        "Mean test accuracy of a modality's owners when they use it alone.",
        methods,
        lambda line: line.accuracy_by_modality,
        y_title="test accuracy",
    )
    without = curves.by_key(
        "accuracy-without",
        "Mean test accuracy of a modality's owners when they use all their others.",
        methods,
        lambda line: line.accuracy_without if len(line.accuracy_without) > 2 else {},
        y_title="test accuracy",
    )
    missing = curves.scalar(
        "accuracy-missing",
        "Mean test accuracy when a share of the test samples lacks a modality.",
        methods,
        lambda line: line.accuracy_missing,
        y_title="test accuracy",
    )
    alike = curves.by_key(
        "macro-f1",
        "Macro-F1 and unweighted average recall (UAR), means over devices.",
        methods,
        lambda line: line.over_classes,
        y_title="macro-F1, UAR",
    )
    return [
        Section(
            "accuracy",
            "Accuracy and what it cost",
            "Lines are means over devices; the dark band holds the middle half of the devices, "
            "the light one all of them. Further left at the same height is cheaper.",
            [curves.accuracy(methods, cost) for cost in costs],
        ),
        Section(
            "classes-alike",
            "Every class alike",
            "F1 and recall of each class, averaged over the classes: one with few samples counts "
            "as much as one with many.",
            _there([alike]),
        ),
        Section(
            "modalities",
            "Accuracy by sensors",
            "Colour: the sensors. Dash: the method, where there are two.",
            _there([by_set, alone, without, missing]),
        ),
    ]


def _training(methods: Sequence[MethodRun]) -> list[Section]:
    loss = curves.scalar(
        "train-loss",
        "Training loss, mean over devices and local iterations.",
        methods,
        lambda line: line.train_loss,
        y_title="training loss",
    )
    distance = curves.scalar(
        "consensus-distance",
        "Consensus distance between neighbours: 0 when all models are alike.",
        methods,
        lambda line: line.consensus_distance,
        y_title="consensus distance",
        y_axis={"rangemode": "tozero"},
    )
    lead = "How well the devices fit their own data, and how far apart their models are."
    return [Section("training", "Training", lead, _there([loss, distance]))]


def _energy(methods: Sequence[MethodRun]) -> list[Section]:
    balance = curves.scalar(
        "balance",
        "Balance metric, mean over devices with several modalities: 1 is balanced.",
        methods,
        lambda line: line.balance,
        y_title="balance metric",
    )
    network = curves.scalar(
        "network-balance",
        "Balance metric of the network: each modality's progress is the mean over its owners.",
        methods,
        lambda line: line.network_balance,
        y_title="balance metric",
    )
    return [
        Section(
            "balance-section",
            "Balance and iterations",
            "A modality that trains faster than another starves it. Bright cells: many updates, "
            "on one scale for all; gaps: the device did not take part.",
            _there([balance, network, *maps.iterations(methods)]),
        ),
        Section(
            "battery-section",
            "Batteries",
            "A device with an empty battery neither trains nor sends.",
            _there([curves.batteries(methods)]),
        ),
    ]


def _seconds(methods: Sequence[MethodRun]) -> Section:
    lead = (
        "What devices did in their own seconds, by profile and radio. Where nobody waits, a round "
        "of the other figures is one round a device on average."
    )
    parts = [*timing.strips(methods), *_there([timing.staleness(methods)])]
    return Section("seconds-section", "Simulated seconds", lead, parts)


def _devices(methods: Sequence[MethodRun]) -> list[Section]:
    described = next((m.devices for m in methods if m.devices and m.devices.nodes), None)
    figures = [maps.graph(described, methods), maps.classes(described)] if described else []
    confused = [maps.confusion(m, m.confusion) for m in methods if m.confusion]
    recalls = summary.recalls(methods)
    return [
        Section(
            "graph-section",
            "Graph and data",
            "Who mixes with whom, and which classes each device holds. Hover or tap for details.",
            _there(figures),
        ),
        Section(
            "confusion-section",
            "Confusion",
            "Right answers are on the diagonal. Its shares are the recall of each class.",
            [*confused, *([recalls] if recalls else [])],
        ),
    ]


def _liars(run: Run) -> list[Section]:
    def around(line: RoundRecord) -> dict[str, float]:
        if line.liars is None or line.accuracy is None:
            return {}
        every = {
            "honest mean": line.accuracy,
            "worst": line.min_accuracy,
            "near a liar": line.liars.accuracy_near,
            "far from liars": line.liars.accuracy_far,
        }
        return {name: value for name, value in every.items() if value is not None}

    def detection(line: RoundRecord) -> dict[str, float]:
        found = line.liars
        if found is None or found.precision is None or found.recall is None:
            return {}
        return {"precision": found.precision, "recall": found.recall}

    accuracy = curves.by_key(
        "accuracy-liars",
        "Test accuracy of honest devices: all, the worst, those that hear a liar, and the others.",
        run.methods,
        around,
        y_title="test accuracy",
    )
    dropped = curves.by_key(
        "detection",
        "Precision: liars' share of all numbers that honest devices have dropped. Recall: the "
        "share of liars' numbers that they have dropped.",
        run.methods,
        detection,
        y_title="share",
    )
    table = summary.dropped(run)
    lead = (
        "Simulated liars are left out of all means. What the aggregation rule dropped, and whose."
    )
    parts = [*_there([accuracy, dropped]), *([table] if table else [])]
    return [Section("liars-section", "Liars and dropped neighbours", lead, parts)]


def _own(methods: Sequence[MethodRun]) -> list[Section]:
    names = sorted({name for m in methods for line in m.rounds for name in line.own})

    def values(name: str) -> Callable[[RoundRecord], float | None]:
        return lambda line: line.own.get(name)

    figures = [
        curves.scalar(
            "own-" + re.sub(r"[^\w-]", "-", name),
            f"{name}, mean over the devices that record it.",
            methods,
            values(name),
            y_title=name,
        )
        for name in names
    ]
    lead = "Numbers that methods record under names of their own."
    return [Section("own-section", "The methods' own numbers", lead, _there(figures))]


def _labels(methods: Sequence[MethodRun]) -> list[Section]:
    figure = curves.by_key(
        "labels",
        "Means over devices. sent, used: shares of the public set. auroc, kept, admitted: the "
        "detector against the truth. right: right labels among those used. skew: how far the "
        "labels of a device's training data are from uniform.",
        methods,
        lambda line: line.labels,
        y_title="share",
    )
    cost = curves.scalar(
        "label-bytes",
        "kB of soft labels that a device sent in a round, mean over devices.",
        methods,
        lambda line: line.label_bytes_sent / 1e3 or None,
        y_title="kB a round",
    )
    lead = "How a public set without labels was labelled by the devices for each other."
    return [Section("labels-section", "Soft labels", lead, _there([figure, cost]))]
