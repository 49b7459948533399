"""Temperatures of modalities, found on validation samples and by gossip, and calibration error."""

from collections.abc import Mapping, Sequence
from math import exp, log
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from ..data import Samples
from ..losses import cross_entropy
from ..models.late_fusion import HIGHEST, LOWEST, LateFusion, LateRule, Scores, alone, static_weight
from ..payload.blocks import STATISTICS
from ..payload.plan import Inbox
from ..payload.received import received
from .batch import every_part

TestFusion = Literal["trained"] | LateRule
ENOUGH = 30
"""Fewer validation samples with a modality fit no temperature."""
TEMPERATURES: tuple[float, ...] = tuple(LOWEST * (HIGHEST / LOWEST) ** (k / 40) for k in range(41))
"""Those that are tried: 41 from 0.1 to 10, in equal ratios."""
BINS = 15
Noted = list[tuple[Tensor, Tensor]]
"""Logits ``[n, classes]`` and labels ``[n]``, part by part."""
REPORT = STATISTICS + "temperatures"
"""Name of a device's report in a payload, ``[3 * modalities]``."""
OWN, NEAR = "temperatures.own", "temperatures.near"
"""Names of a device's fit and of its neighbours' reports in a learner's state."""
COUNT, TEMPERATURE, ACCURACY = range(3)
"""Rows of a report: validation samples, temperature, and share of these that is found."""


def fitted_temperature(logits: Tensor, labels: Tensor, shift: Tensor | None = None) -> float:
    """Return the one of :data:`TEMPERATURES` at which labels are most likely.

    ``argmin_T CE(o / T + a, y)``, of equal ones the lowest.

    Parameters
    ----------
    logits : Tensor
        ``o``, ``[n, classes]``.
    labels : Tensor
        ``y``, ``[n]`` int64.
    shift : Tensor, optional
        ``a``, ``[classes]``: what the labels' shares add to logits.
    """
    added = torch.zeros(logits.shape[1]) if shift is None else shift
    o, a = logits.double().cpu(), added.double().cpu()
    losses = [float(cross_entropy(o / t + a, labels.cpu())) for t in TEMPERATURES]
    return TEMPERATURES[losses.index(min(losses))]


class Calibration:
    """Temperatures of the modalities that a device has, for a rule of late fusion.

    A device fits a temperature to each modality that :data:`ENOUGH` of its validation samples have,
    and tells its neighbours. It goes by the geometric mean of what it and its neighbours have
    found, weighted by their numbers of validation samples; by 1 if none of them has found any. What
    share of the validation samples a modality finds is averaged alike, without the geometry. The
    reports of neighbours are those of their last evaluation. Test samples are not looked at.

    Parameters
    ----------
    rule : str
        How modalities are combined; with "trained" nothing is fitted, and nothing sent.
    modalities : sequence of str
        All that any device may have: what a report is about.
    classes : int
        Number of classes.
    robust : bool (default: False)
        Whether neighbours may lie: then the median counts, not the mean.
    """

    def __init__(
        self, rule: TestFusion, modalities: Sequence[str], classes: int, *, robust: bool = False
    ) -> None:
        self._rule: TestFusion = rule
        self._modalities, self._classes, self._robust = tuple(modalities), classes, robust
        self._own = torch.zeros(3, len(self._modalities))
        self._near = torch.zeros(0, *self._own.shape)

    def fit(self, scores: Scores, validation: Samples, shift: Tensor | None) -> None:
        """Fit temperatures to validation samples.

        Parameters
        ----------
        scores : callable
            Logits from single modalities.
        validation : Samples
            The device's own; they may lack modalities.
        shift : Tensor, optional
            See :func:`fitted_temperature`; accuracies have it, too.
        """
        if self._rule == "trained":
            return
        self._own = torch.zeros_like(self._own)
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        with torch.no_grad():
            for part in every_part(validation):
                for m, logits in alone(scores, part.inputs, dict.fromkeys(part.inputs)).items():
                    found.setdefault(m, []).append((logits, validation.labels[part.labels]))
        for m, parts in found.items():
            logits, labels = (torch.cat(x).cpu() for x in zip(*parts, strict=True))
            if (n := len(labels)) >= ENOUGH:
                guessed = (logits if shift is None else logits + shift.cpu()).argmax(dim=1)
                right = int((guessed == labels).sum())
                fit = n, fitted_temperature(logits, labels, shift), (right + 1) / (n + 2)
                self._own[:, self._modalities.index(m)] = torch.tensor(fit)

    def fusion(self, owned: Sequence[str]) -> LateFusion | None:
        """Return the rule with what is known of these modalities; None for "trained"."""
        if self._rule == "trained":
            return None
        known = {m: self._known(self._modalities.index(m)) for m in owned}
        temperatures = {m: t for m, (t, _) in known.items()}
        weights = {m: static_weight(a, self._classes) for m, (_, a) in known.items()}
        return LateFusion(self._rule, temperatures, weights if self._rule == "static" else {})

    def _known(self, modality: int) -> tuple[float, float]:
        """Return the temperature and the accuracy of a modality."""
        table = torch.stack([self._own, *self._near])[:, :, modality].double()
        told = [row for row in table.tolist() if row[COUNT] > 0]
        if not told:
            return 1.0, 1 / max(2, self._classes)  # that of chance
        logs = [log(min(max(row[TEMPERATURE], LOWEST), HIGHEST)) for row in told]
        shares = [min(max(row[ACCURACY], 1e-3), 1 - 1e-3) for row in told]
        if self._robust:
            middle, share = median(logs), median(shares)
        else:
            counts = [row[COUNT] for row in told]
            middle, share = _mean(logs, counts), _mean(shares, counts)
        return min(max(exp(middle), LOWEST), HIGHEST), share

    # ---- gossip -----------------------------------------------------------------------------

    def report(self) -> list[float]:
        """Return what neighbours get: the own fit, zeros where there is none."""
        return [] if self._rule == "trained" else self._own.flatten().tolist()

    def payload(self, report: Sequence[float]) -> dict[str, Tensor]:
        """Return a report as an entry of a payload; nothing where there is none."""
        return {} if self._rule == "trained" else {REPORT: torch.tensor(report)}

    def hear(self, reports: Sequence[Sequence[float]]) -> None:
        """Take up what neighbours have reported, in the place of their reports before."""
        if self._rule != "trained":
            shape = len(reports), 3, len(self._modalities)
            self._near = torch.tensor([*map(list, reports)], dtype=torch.float32).view(shape)

    def read(self, inbox: Inbox) -> list[str]:
        """Take up reports from neighbours' payloads; return what was wrong with some of them."""
        if self._rule == "trained":
            return []
        size = 3 * len(self._modalities)
        good, wrong = received(inbox, REPORT, size, optional=True, lowest=0, called="temperatures")
        self.hear([report.tolist() for report in good.values()])
        return wrong

    def state(self) -> dict[str, Tensor]:
        """Return what must survive until the next round."""
        return {} if self._rule == "trained" else {OWN: self._own, NEAR: self._near}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""
        self._own = state.get(OWN, torch.zeros_like(self._own)).clone()
        self._near = state.get(NEAR, self._near[:0]).clone()


def _mean(values: Sequence[float], counts: Sequence[float]) -> float:
    return sum(n * x for n, x in zip(counts, values, strict=True)) / sum(counts)


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Return the expected calibration error (ECE), in [0, 1]; NaN of no samples.

    ``sum_b |sum_{i in b} right_i - sum_{i in b} confidence_i| / n`` over :data:`BINS` bins b of
    equal width, from above their lower end to their upper end (Guo et al., ICML 2017).

    Parameters
    ----------
    confidence : Tensor
        Probability of the predicted class, ``[n]`` in [0, 1].
    right : Tensor
        Whether it is the true one, ``[n]`` bool.
    """
    sure = confidence.double().cpu()
    bins = (sure * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = torch.bincount(bins, right.double().cpu() - sure, minlength=BINS)
    return float(gaps.abs().sum() / len(sure)) if len(sure) else float("nan")


def errors_of(test: Noted, validation: Noted, shift: Tensor | None = None) -> dict[str, float]:
    """Return calibration errors of one prediction: ``test.ece_uncalibrated``, and ``test.ece``.

    The latter with the :func:`fitted_temperature` of the validation samples, if there are
    :data:`ENOUGH`. A temperature changes no predicted class.

    Parameters
    ----------
    test, validation : list of (Tensor, Tensor)
        Logits ``[n, classes]`` and labels ``[n]``, part by part.
    shift : Tensor, optional
        See :func:`fitted_temperature`.
    """
    if not test:
        return {}
    logits, labels = (torch.cat(x) for x in zip(*test, strict=True))
    temperatures = {"test.ece_uncalibrated": 1.0}
    if sum(len(y) for _, y in validation) >= ENOUGH:
        own, theirs = (torch.cat(x) for x in zip(*validation, strict=True))
        temperatures["test.ece"] = fitted_temperature(own, theirs, shift)
    found: dict[str, float] = {}
    for name, temperature in temperatures.items():
        sure, guessed = (logits / temperature).softmax(dim=1).max(dim=1)
        found[name] = calibration_error(sure, guessed == labels)
    return found


@torch.no_grad()
def calibration_metrics(scores: Scores, fusion: LateFusion, test: Samples) -> dict[str, float]:
    """Return the calibration error of a late fusion on test samples, and what it goes by.

    ``test.ece``, ``test.ece_uncalibrated`` with all temperatures 1, ``test.temperature.<m>``. Each
    sample is predicted from all modalities that it has.

    Parameters
    ----------
    scores : callable
        Logits from single modalities.
    fusion : LateFusion
        With the device's temperatures.
    test : Samples
        With the device's modalities.
    """
    rules = {"test.ece": fusion, "test.ece_uncalibrated": fusion.uncalibrated}
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in rules}
    for part in every_part(test):
        logits = alone(scores, part.inputs, dict.fromkeys(part.inputs))
        for name, rule in rules.items():
            sure, guessed = rule(logits).softmax(dim=1).max(dim=1)
            found[name].append((sure, guessed == test.labels[part.labels]))
    metrics = {f"test.temperature.{m}": t for m, t in fusion.temperatures.items()}
    for name, parts in found.items():
        if parts:
            sure, right = (torch.cat(x) for x in zip(*parts, strict=True))
            metrics[name] = calibration_error(sure, right)
    return metrics
