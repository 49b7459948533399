"""What has left the devices of a run, and what is said of it: the privacy section of a report."""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from ..learning.learner import SKIPPED, unaccounted
from ..learning.spending import EPSILON, SIGMA, STEPS
from ..methods.registry import find_methods
from ..strategies.epsilons import last_of, spent_in
from .parts import Section, Table
from .reading import MethodRun, Run

SECRET = "each device's operating system; the run's seed does not give it again"
UNITS = {"sample": "one training sample of a device", "device": "all training data of a device"}

ACCOUNTANTS = {"rdp": "Rényi divergences", "pld": "privacy loss distributions"}


def privacy_sections(run: Run) -> list[Section]:
    """Return the section on what has left devices; none of runs in which nothing has."""
    kinds = find_methods()
    methods = [m for m in run.methods if m.name not in kinds or kinds[m.name].communicates]
    rows = {m.name: dict(_rows(m, run.config)) for m in methods}
    names = list(dict.fromkeys(name for own in rows.values() for name in own))
    table = Table(
        "privacy",
        "Mechanisms, and what has left the devices",
        ["", *rows],
        [[name, *(own.get(name, "-") for own in rows.values())] for name in names],
        numeric=False,
    )
    lead = (
        "Every neighbour sees what a device sends it, in every round. An epsilon holds for its "
        "unit and against everybody who sees what the device has sent; nothing else here is a "
        "guarantee. flwr-dmml audit measures what neighbours can tell."
    )
    return [Section("privacy-section", "Privacy", lead, [table] if methods else [])]


def _rows(method: MethodRun, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is to be said of a method: its name and the text."""
    dp = str(config.get("privacy.dp", "off"))
    epsilons = sorted(last_of(method.rounds, EPSILON).values())
    if epsilons:
        yield "noise on", "gradients of samples" if dp == "sample" else "each round's change"
        yield "unit", UNITS.get(dp, dp)
        yield "adversary", "all who see what the device sends in this run, also together"
        delta = config.get("privacy.delta") or f"1/(10 {dp}s)"
        low, high = epsilons[0], epsilons[-1]
        yield (
            "epsilon: least / median / most",
            f"{low:.3g} / {median(epsilons):.3g} / {high:.3g} at delta {delta}",
        )
        by = config.get("privacy.accountant", "rdp")
        yield "found by", ACCOUNTANTS.get(by, by)
        for name, key in (("sigma", SIGMA), ("steps with noise", STEPS)):
            if found := sorted(last_of(method.rounds, key).values()):
                ends = dict.fromkeys(f"{x:.4g}" for x in (found[0], found[-1]))
                yield name, " to ".join(ends)
        before_the_end = [node for record in method.rounds[:-1] for node in record.nodes]
        stopped = spent_in(before_the_end)
        yield "stopped by the budget", ", ".join(map(str, sorted(stopped))) or "none"
    else:
        yield "epsilon", "none: no unit is protected against anybody (privacy.dp = off)"
    if noise := config.get("privacy.zip-noise"):
        text = f"standard deviation {noise:g}, another to each neighbour, which cancels in the "
        yield "noise on copies", text + "network's mean; no epsilon is stated"
    if config.get("privacy.secure-sums"):
        skipped = int(sum(node.own.get(SKIPPED, 0) for r in method.rounds for node in r.nodes))
        text = "a neighbour learns the weighted sum of two models or more, not a single one; no "
        text += f"epsilon is stated. Not mixed, as a part had not come: {skipped} blocks"
        yield "sums", text
    if epsilons or noise:
        yield "source of the noise", SECRET
    if config.get("privacy.secure-sums"):
        yield "source of the masks", "X25519 keys of " + SECRET.removeprefix("each ")
    yield "besides parameters", "; ".join(_besides(method.name, config, bool(epsilons)))


def _besides(method: str, config: Mapping[str, Any], noisy: bool) -> Iterator[str]:
    """Yield what else has left the devices."""
    yield "to the coordinator: numbers of training samples, accuracies, iterations"
    if not noisy:
        yield "training losses"
        if config.get("report-classes"):
            yield "class counts and names"
    of_device = config.get("privacy.dp") == "device"
    yield "to neighbours: " + ("no training speeds" if of_device else "training speeds")
    if config.get("test-fusion", "trained") != "trained":
        yield "temperatures of modalities"
    kind = find_methods().get(method)
    if kind is None:
        yield f"what the method {method} adds is not known: it is not installed here"
        return
    correction = config.get("label-correction")
    correction = kind.label_correction if correction == "auto" else correction
    if correction == "network" and not noisy:
        yield "label counts"
    if what := unaccounted(kind):
        yield f"the method takes from own samples: {what}"
