"""Settings that go without a common beat (``rounds = "async"``), and reasons why others do not."""

from ..base.errors import MethodError
from ..graph.topology import TopologyError
from .parts import RunConfig


def no_beat_problems(method: str, config: RunConfig) -> list[str]:
    """Return why a method cannot be run without a beat, a line each; none where it has one."""
    settings, learner = config.settings, config.parts.methods[method]
    if settings.rounds == "sync":
        return []
    asked, problems = "rounds = 'async'", list[str]()
    try:
        rule = config.gossip_of(method)
    except MethodError as error:
        return [str(error)]
    if learner.communicates and (why := rule.beat_problem()):
        known = config.parts.gossip.items()
        able = ", ".join(name for name, kind in known if kind.letters != "beat")
        problems.append(f"{asked}: the gossip rule {rule.name!r}: {why}; allowed: {able}")
    own = settings.of_method(learner)
    if rule.letters == "every" and own.exchange.number_type != "float32":
        problems.append(
            f"{asked} with exchange.precision = {own.exchange.number_type!r}: letters of the "
            f"gossip rule {rule.name!r} are added up; allowed: float32"
        )
    if any(config.options[method].phases(settings.num_server_rounds)):
        problems.append(
            f"{asked}: the method {method!r} has phases, and all devices must be in the same one; "
            "allowed: sync"
        )
    refused = {
        f"couriers = {settings.couriers!r}": settings.couriers in ("forward", "average")
        and "what they carry is counted in common rounds; allowed: auto, off",
        f"final-merge = {settings.final_merge!r}": settings.final_merge != "off"
        and "its rounds are common ones; allowed: off",
        "allocation.rule = 'sync-only'": own.allocation.rule == "sync-only"
        and "it says in which common rounds nobody trains; allowed: the other rules",
        f"wireless.shared-band-hz = {settings.wireless.shared_band_hz:g}": settings.wireless.shared
        and "one band is divided among devices that send at the same time; allowed: 0",
        f"energy.harvesting-w = {settings.energy.harvesting_w:g}": settings.energy.harvesting_w > 0
        and "a device whose battery is flat stops for good; allowed: 0",
        f"energy.meter = {settings.energy.meter!r}": settings.energy.meter != "model"
        and "seconds and joules are those of the model; allowed: model",
        f"privacy.dp = {settings.privacy.dp!r}": settings.privacy.on
        and "noise is planned for num-server-rounds rounds of each device, and a fast one does "
        "more; allowed: off",
        f"resume = {settings.resume!r}": bool(settings.resume)
        and "such a run has no checkpoints; start it again",
    }
    problems += [f"{asked} with {key}: {why}" for key, why in refused.items() if why]
    try:
        moving = settings.make_topology().time_varying
    except TopologyError:  # which is among the problems already
        moving = False
    if moving and learner.communicates:
        problems.append(
            f"{asked} with topology = {settings.topology!r}: its links change with the round, and "
            "devices are in different ones; allowed: graphs that stay the same"
        )
    return problems
