"""The ServerApp of every method: reads the run config, runs the round plan, reports."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from logging import INFO, WARNING
from signal import SIGTERM

import numpy as np
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from ..base.errors import MethodError, SettingsError
from ..base.machine import cores
from ..base.stopping import in_main_thread, stop_requests, stop_requests_from_a_thread
from ..base.waits import quicken
from ..clients.app import PeerClientApp, make_client_app
from ..data import Dataset
from ..energy.ledger import Floats
from ..engine import SimulationGrid, never, sharded_grid
from ..gossip.aggregation.rule import AggregationRule
from ..gossip.rule import GossipRule
from ..graph.topology import Topology
from ..learning.learner import Learner
from ..settings import RunConfig, Settings, find_parts, parse_settings
from ..settings.rounds import no_beat_problems_of_real_devices
from ..tracking import (
    RoundRecord,
    RunFolder,
    Tracker,
    devices_table,
    failures_table,
    final_table,
    render,
    verdict,
)
from ..tracking.ending import MethodEnd, absence, read_left
from ..tracking.openmetrics import exposed
from ..tracking.sinks import closing_all, make_sinks
from .direct import DirectExchange, SpanExchange
from .ending import Ends, end_noted, end_of
from .energy.energy_constrained import EnergyConstrained
from .energy.own_rounds import OwnRounds
from .energy.shared_band import SharedBandConstrained
from .epsilons import epsilon_lines
from .exchange import Exchange, MakeExchange
from .keeper import Keeper
from .layout import layout
from .merging import FinalMerge
from .peer import PeerStrategy
from .resuming import check_unchanged, find_run
from .sealed import SealedExchange
from .sending import FLOWERS_SIMULATION, program_name, simulates

FLOWERS_RAY_S = {FLOWERS_SIMULATION: 300.0}
"""Seconds to wait for Flower's simulation to start Ray, by the program that this process runs."""


def make_server_app(
    *own: type[Learner] | type[PeerStrategy],
    gossip: Iterable[type[GossipRule]] = (),
    aggregation: Iterable[type[AggregationRule]] = (),
    datasets: Iterable[Dataset] = (),
    topologies: Iterable[type[Topology]] = (),
    client_app: ClientApp | None = None,
) -> ServerApp:
    """Return a ServerApp that runs the method of the run config, and ``compare-with`` before it.

    Parameters
    ----------
    *own : type[Learner] or type[PeerStrategy]
        Methods of your own, and at most one strategy of your own, which then runs every method.
    gossip, aggregation, datasets, topologies : iterable
        Parts of your own, as for :func:`~flwr_dmml.clients.make_client_app`.
    client_app : ClientApp, optional
        What devices run, from :func:`~flwr_dmml.clients.make_client_app`. Its methods and rules are
        known here, too: give either it or them. By default it is made of what is given here.

    Raises
    ------
    MethodError
        One of them is not what it should be.

    Examples
    --------
    >>> app = make_server_app()  # in server_app.py
    """
    kinds = [kind for kind in own if isinstance(kind, type) and issubclass(kind, PeerStrategy)]
    learners = [kind for kind in own if isinstance(kind, type) and issubclass(kind, Learner)]
    if odd := [kind for kind in own if kind not in kinds and kind not in learners]:
        raise MethodError(f"make_server_app: {odd[0]!r} is no subclass of Learner or PeerStrategy")
    if len(kinds) > 1:
        raise MethodError(f"make_server_app: two strategies, {kinds[0]!r} and {kinds[1]!r}")
    strategy = kinds[0] if kinds else PeerStrategy
    if client_app is None:
        parts = {"gossip": gossip, "aggregation": aggregation}
        sources = {"datasets": datasets, "topologies": topologies}
        client_app = make_client_app(*learners, **parts, **sources)  # type: ignore[arg-type]
    elif learners or gossip or aggregation or datasets or topologies:
        raise MethodError("make_server_app: the client_app brings its own parts; give it alone")
    if not isinstance(client_app, PeerClientApp):
        raise MethodError("make_server_app: the client_app is not one of make_client_app")
    app_of_devices = client_app
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        config = parse_settings(
            context.run_config, find_parts(app_of_devices.own), side="coordinator"
        )
        check_attack(config.settings, grid)
        check_rounds(config, grid)
        if not is_simulated(config.settings, grid):
            quicken("coordinator", config.settings.round_timeout)
        settings, folder = config.settings, _folder(config)
        sinks = make_sinks(settings.track_with, folder.path, config.resolved())
        engine = _engine(grid, context, settings, app_of_devices)
        with (
            folder.in_use(),
            end_noted(folder) as ends,
            closing_all(sinks),
            engine as arranged,
            exposed(settings.metrics_host, settings.metrics_port) as shown,
            _stopping(grid) as stopping,
        ):
            _run(arranged, config, strategy, folder, [*sinks, *shown], stopping, ends)

    return app


def _folder(config: RunConfig) -> RunFolder:
    """Return a new run folder, or that of the run to resume if it is still the same run."""
    settings, values = config.settings, config.resolved()
    if not settings.resume:
        return RunFolder(settings.run_dir, settings.run_name, values)
    path = find_run(settings.resume, settings.run_dir)
    check_unchanged(path, values, config.parts)
    return RunFolder.reopen(path)


def _run(
    grid: Grid,
    config: RunConfig,
    kind: type[PeerStrategy],
    folder: RunFolder,
    sinks: Sequence[Tracker],
    stopping: Callable[[], bool],
    ends: Ends,
) -> None:
    """Run the methods one after another, and report."""
    settings, methods, options = config.settings, config.parts.methods, config.options
    log(INFO, "Run folder: %s", folder.path)
    trackers: list[Tracker] = [folder, *sinks]
    if isinstance(grid, SimulationGrid):  # with trackers of its own, such as the live table
        trackers += grid.trackers
    results, histories = dict[str, RoundRecord](), dict[str, list[RoundRecord]]()
    if settings.compare_with == settings.method:
        log(INFO, "compare-with names the method itself: it runs once")
    present: int | None = None  # a device lost by the first method is not waited for again
    battery_j: Floats | None = None  # the second method gets the batteries of the first
    for name in dict.fromkeys(filter(None, (settings.compare_with, settings.method))):
        if done := read_left(folder.path / name):
            results[name], left = done
            present = max(1, len(results[name].nodes))
            battery_j = None if left.battery_j is None else np.array(left.battery_j)
            ends.done(name, left.end)
            log(INFO, "%s has finished already", name)
            continue
        energy = constrain(settings, methods[name], battery_j)
        warn_of_losses(settings, config.gossip_of(name), grid)
        every, keep = settings.checkpoint_every, settings.checkpoint_keep
        strategy = kind(
            settings.make_topology(),
            num_nodes=settings.num_nodes,
            method=name,
            communicates=methods[name].communicates,
            local_iterations=settings.local_iterations,
            evaluate_every=settings.evaluate_every,
            wait_timeout=settings.wait_timeout,
            min_nodes=present,
            quorum=settings.quorum,
            seed=settings.seed,
            options=options[name],
            gossip=config.gossip_of(name),
            energy=energy,
            trackers=trackers,
            keeper=Keeper(folder.path / name, every, keep, stopping),
            exchange=exchange_of(settings, grid),
            couriers=config.couriers_of(name),
            sealed=settings.exchange.sealed and not isinstance(grid, SimulationGrid),
            aggregation=config.aggregation,
            liars=settings.attack.liars(settings.num_nodes, settings.seed),
            loss_rate=settings.loss_rate,
            merge=merge_of(settings),
            shares=settings.privacy.unicast,
            sums=settings.privacy.secure_sums,
            keep_models=is_simulated(settings, grid)
            and (settings.keep_models or settings.keep_best),
            rounds=settings.rounds,
            max_staleness=settings.max_staleness,
        )
        rounds, timeout = settings.num_server_rounds, settings.round_timeout
        ends.begin(name, strategy)
        strategy.start(grid, num_rounds=rounds, timeout=timeout)
        results[name], histories[name] = strategy.records[-1], strategy.records
        present = max(1, len(results[name].nodes))
        battery_j = None if settings.energy.on_mains else energy.battery_j
        left_j = None if battery_j is None else battery_j.tolist()
        end_here = end_of(strategy)
        folder.finish(name, {"battery_j": left_j, "end": end_here.model_dump(mode="json")})
        ends.done(name, end_here)
    report(settings, results, ends.so_far())
    for name, records in histories.items():
        for line in epsilon_lines(name, records, settings.privacy):
            log(INFO, "%s", line)
    log(INFO, "Run folder: %s", folder.path)


def check_attack(settings: Settings, grid: Grid) -> None:
    """Refuse liars where devices are real.

    Raises
    ------
    SettingsError
        The devices are not simulated, by an engine of this package or by Flower's.
    """
    attack = settings.attack
    lies = attack.lies or attack.devices or attack.share
    if lies and not is_simulated(settings, grid):
        raise SettingsError(
            "the run config cannot work:\n  "
            f"attack.kind = {attack.kind!r}, attack.payload = {attack.payload!r}: attacks are for "
            "simulations, and these devices are real; leave attack.devices empty and attack.share 0"
        )


def check_rounds(config: RunConfig, grid: Grid) -> None:
    """Refuse rounds without a beat where nothing can time them.

    Raises
    ------
    SettingsError
        The devices are those of Flower's simulation, or are real and have settings that do not go
        with it.
    """
    settings = config.settings
    ours = isinstance(grid, SimulationGrid) or settings.engine == "sharded"
    if settings.rounds == "sync" or ours:
        return
    if program_name() == FLOWERS_SIMULATION:
        why = "Flower's simulation has no seconds of devices"
        problems = [f"rounds = 'async': {why}; allowed: engine = 'sharded', flwr-dmml simulate"]
    else:
        names = dict.fromkeys(filter(None, (settings.compare_with, settings.method)))
        problems = [x for name in names for x in no_beat_problems_of_real_devices(name, config)]
    if problems:
        lines = "\n  ".join(dict.fromkeys(problems))
        raise SettingsError(f"the run config cannot work:\n  {lines}")


def is_simulated(settings: Settings, grid: Grid) -> bool:
    """Return whether the devices are simulated, by an engine of this package or by Flower's."""
    return settings.engine == "sharded" or simulates(grid)


def warn_of_losses(settings: Settings, rule: GossipRule, grid: Grid) -> None:
    """Say that a rule needs both ends to know what is lost, where only the receiver does."""
    direct = settings.exchange.transport == "direct" and not isinstance(grid, SimulationGrid)
    if direct and rule.loss != "own":
        text = "The gossip rule %r needs both ends of a link to know what is lost; from device to"
        text += " device only the receiver does: lost letters may lead it to another model"
        log(WARNING, text, rule.name)


def merge_of(settings: Settings) -> FinalMerge | None:
    """Return what the settings ask of a final merge; None where there is none."""
    if settings.final_merge == "off":
        return None
    return FinalMerge(settings.final_merge_tolerance, settings.final_merge_rounds)


def exchange_of(settings: Settings, grid: Grid) -> MakeExchange:
    """Return what makes the exchange that the settings name."""
    direct, sealed = settings.exchange.transport == "direct", settings.exchange.sealed
    if isinstance(grid, SimulationGrid):
        if direct:
            log(INFO, "exchange.transport = direct: devices simulated here get a relay instead")
        if sealed:
            log(INFO, "exchange.sealed: nothing is sealed between devices simulated here")
        return Exchange
    if not direct:
        return SealedExchange if sealed else Exchange
    kind = SpanExchange if settings.rounds == "async" else DirectExchange
    return partial(kind, rounds_per_message=settings.exchange.rounds_per_message)


@contextmanager
def _engine(
    grid: Grid, context: Context, settings: Settings, client_app: ClientApp
) -> Iterator[Grid]:
    """Yield the grid of the engine that the run config names, with its devices in their places."""
    if isinstance(grid, SimulationGrid):  # an engine of this package has been chosen already
        grid.arrange(*layout(settings))
        yield grid
    elif settings.engine == "sharded":
        asked = 0 if settings.workers == "auto" else settings.workers
        sharded = sharded_grid(
            client_app,
            settings.num_nodes,
            context.run_config,
            workers=asked or cores(),
            address=settings.ray_address,
            run_id=context.run_id,
            patience_s=FLOWERS_RAY_S.get(program_name(), 10.0),
        )
        with sharded:
            sharded.arrange(*layout(settings))
            yield sharded
    else:
        yield grid


@contextmanager
def _stopping(grid: Grid) -> Iterator[Callable[[], bool]]:
    """Yield what says whether the run is to stop after the round in progress.

    An engine of this package has been told. Under ``flwr run`` this process is Flower's, and
    SIGTERM asks for it; Ctrl-C stays Flower's, which sends it to itself where the run is stopped or
    nobody is left to report to. In Flower's simulation Ray, once it is there, takes SIGTERM.
    """

    def said(number: int) -> None:
        log(INFO, "SIGTERM: the run stops after this round; a second one stops it at once")

    if isinstance(grid, SimulationGrid):
        yield grid.stopping
    elif in_main_thread():
        with stop_requests(said, SIGTERM) as request:
            yield request
    elif patience_s := FLOWERS_RAY_S.get(program_name()):
        from ..engine.cluster import others_ray

        others_ray(patience_s)
        with stop_requests_from_a_thread(said, SIGTERM) as request:
            yield request
    else:
        yield never


def constrain(
    settings: Settings, method: type[Learner], battery_j: Floats | None = None
) -> EnergyConstrained:
    """Return the energy and the iterations that the settings give to a method's devices."""
    kind = SharedBandConstrained if settings.wireless.shared else EnergyConstrained
    kind = OwnRounds if settings.rounds == "async" else kind
    return kind(settings.of_method(method), battery_j=battery_j)


def report(
    settings: Settings, results: dict[str, RoundRecord], ends: Mapping[str, MethodEnd]
) -> None:
    """Log the final tables, and who is not in them."""
    begun = max((len(end.begun) for end in ends.values()), default=0)
    for table in (devices_table(results), failures_table(ends), final_table(results, begun)):
        for line in render(table).splitlines() if table.row_count else []:
            log(INFO, "%s", line)
    if len(results) > 1:
        log(INFO, "%s", verdict(settings.compare_with, settings.method, results))
    for name, end in ends.items():
        if warning := absence(name, end.begun, end.missing):
            log(WARNING, "%s", warning)
