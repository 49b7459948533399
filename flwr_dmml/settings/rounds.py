"""Settings that go without a common beat (``rounds = "async"``), and reasons why others do not."""

from collections.abc import Iterator

from ..base.errors import MethodError
from ..graph.topology import TopologyError
from .parts import RunConfig
from .settings import Settings


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
    for is_so, key, value, why in _with_a_beat(settings, own.allocation.rule):
        if is_so:
            problems.append(f"{asked} with {key} = {value!r}: {why}")
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


def no_beat_problems_of_real_devices(method: str, config: RunConfig) -> list[str]:
    """Return why real devices cannot run a method without a beat, a line each.

    That is besides what :func:`no_beat_problems` has to say.
    """
    return [
        f"rounds = 'async' on real devices with {key} = {value!r}: {why}"
        for is_so, key, value, why in _on_real_devices(config, method)
        if is_so
    ]


def _on_real_devices(config: RunConfig, method: str) -> Iterator[tuple[bool, str, object, str]]:
    """Yield as :func:`_with_a_beat` does what does not go with real devices."""
    s, rule, transport = (
        config.settings,
        config.gossip_of(method),
        config.settings.exchange.transport,
    )
    why = "the relay hands letters on with messages, which are waited for; allowed: direct"
    yield transport != "direct", "exchange.transport", transport, why
    why = (
        "a letter that is replaced before it is fetched would take its share of the sum with it; "
        "allowed: rules that mix the newest letter"
    )
    yield rule.letters == "every", "gossip", rule.name, why
    why = "messages are lost by the network alone; allowed: 0"
    yield s.loss_rate > 0, "loss-rate", s.loss_rate, why
    why = "such a run has no checkpoints; allowed: none, and start it again"
    yield bool(s.resume), "resume", s.resume, why


def _with_a_beat(settings: Settings, allocation: str) -> Iterator[tuple[bool, str, object, str]]:
    """Yield what needs common rounds: whether it is set, its key and value, and why it does."""
    s, energy, band = settings, settings.energy, settings.wireless.shared_band_hz
    why = "what they carry is counted in common rounds; allowed: auto, off"
    yield s.couriers in ("forward", "average"), "couriers", s.couriers, why
    why = "its rounds are common ones; allowed: off"
    yield s.final_merge != "off", "final-merge", s.final_merge, why
    why = "it says in which common rounds nobody trains; allowed: the other rules"
    yield allocation == "sync-only", "allocation.rule", allocation, why
    why = "one band is divided among devices that send at the same time; allowed: 0"
    yield s.wireless.shared, "wireless.shared-band-hz", band, why
    why = "a device whose battery is flat stops for good; allowed: 0"
    yield energy.harvesting_w > 0, "energy.harvesting-w", energy.harvesting_w, why
    why = "seconds and joules are those of the model; allowed: model"
    yield energy.meter != "model", "energy.meter", energy.meter, why
    why = "noise is planned for num-server-rounds rounds, and fast devices do more; allowed: off"
    yield s.privacy.on, "privacy.dp", s.privacy.dp, why
    why = "it cancels over those who mix in a common round; allowed: 0"
    yield s.privacy.zip_noise > 0, "privacy.zip-noise", s.privacy.zip_noise, why
    why = "the parts of a sum are of a common round; allowed: false"
    yield s.privacy.secure_sums, "privacy.secure-sums", True, why
