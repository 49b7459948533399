"""The ServerApp of every method: reads the run config, runs the round plan, reports."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from logging import INFO
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from ..base.machine import cores
from ..clients import Learner, find_methods, make_client_app, option_types
from ..energy.ledger import Floats
from ..engine import sharded_grid
from ..learning.options import Options
from ..settings import Settings, parse_settings, resolved
from ..tracking import RoundRecord, RunFolder, Tracker, devices_table, final_table, render, verdict
from ..tracking.sinks import closing_all, make_sinks
from .direct import DirectExchange
from .energy.energy_constrained import EnergyConstrained
from .energy.shared_band import SharedBandConstrained
from .exchange import Exchange, MakeExchange
from .keeper import Keeper
from .layout import layout
from .peer import PeerStrategy
from .resuming import check_unchanged, find_run
from .sealed import SealedExchange

FLOWERS_RAY_S = {"flwr-simulation": 300.0}
"""Seconds to wait for Flower's simulation to start Ray, by the program that this process runs."""


def make_server_app(
    *learners: type[Learner],
    strategy: type[PeerStrategy] = PeerStrategy,
    client_app: ClientApp | None = None,
) -> ServerApp:
    """Return a ServerApp that runs the method of the run config, and ``compare-with`` before it.

    Parameters
    ----------
    *learners : type[Learner]
        Methods of your own, besides the registered ones. Give the same to ``make_client_app``.
    strategy : type[PeerStrategy]
        A strategy of your own; it runs every method.
    client_app : ClientApp, optional
        What devices run where the run config says ``engine = "sharded"``, which then takes the
        place of Flower's engine; by default that of ``make_client_app(*learners)``.

    Examples
    --------
    >>> app = make_server_app()  # in server_app.py
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        methods = find_methods(learners)
        settings, options = parse_settings(
            context.run_config, option_types(methods), side="coordinator"
        )
        app_of_devices = client_app or make_client_app(*learners)
        folder = _folder(settings, options)
        sinks = make_sinks(settings.track_with, folder.path, resolved(settings, options))
        engine = _engine(grid, context, settings, app_of_devices)
        with folder.logging(), closing_all(sinks), engine as grid:
            _run(grid, settings, options, methods, strategy, folder, sinks)

    return app


def _folder(settings: Settings, options: Mapping[str, Options]) -> RunFolder:
    """Return a new run folder, or that of the run to resume if it is still the same run."""
    config = resolved(settings, options)
    if not settings.resume:
        return RunFolder(settings.run_dir, settings.run_name, config)
    path = find_run(settings.resume, settings.run_dir)
    check_unchanged(path, config, options)
    return RunFolder.reopen(path)


def _run(
    grid: Grid,
    settings: Settings,
    options: Mapping[str, Options],
    methods: Mapping[str, type[Learner]],
    kind: type[PeerStrategy],
    folder: RunFolder,
    sinks: Sequence[Tracker],
) -> None:
    """Run the methods one after another, and report."""
    log(INFO, "Run folder: %s", folder.path)
    stopping = getattr(grid, "stopping", lambda: False)
    # An engine of this package may carry trackers of its own, such as the live table.
    trackers = [folder, *sinks, *getattr(grid, "trackers", ())]
    results: dict[str, RoundRecord] = {}
    if settings.compare_with == settings.method:
        log(INFO, "compare-with names the method itself: it runs once")
    present: int | None = None  # a device lost by the first method is not waited for again
    battery_j: Floats | None = None  # the second method gets the batteries of the first
    for name in dict.fromkeys(filter(None, (settings.compare_with, settings.method))):
        if done := folder.finished(name):
            results[name], end = done
            present = max(1, len(results[name].nodes))
            battery_j = None if end["battery_j"] is None else np.array(end["battery_j"])
            log(INFO, "%s has run to its end already", name)
            continue
        energy = constrain(settings, methods[name], battery_j)
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
            seed=settings.seed,
            options=options[name],
            addressed=methods[name].addressed,
            energy=energy,
            trackers=trackers,
            keeper=Keeper(folder.path / name, every, keep, stopping),
            exchange=exchange_of(settings, grid),
        )
        rounds, timeout = settings.num_server_rounds, settings.round_timeout
        strategy.start(grid, num_rounds=rounds, timeout=timeout)
        results[name] = strategy.records[-1]
        present = max(1, len(results[name].nodes))
        battery_j = None if settings.energy.on_mains else energy.battery_j
        folder.finish(name, {"battery_j": None if battery_j is None else battery_j.tolist()})
    report(settings, results)
    log(INFO, "Run folder: %s", folder.path)


def exchange_of(settings: Settings, grid: Grid) -> MakeExchange:
    """Return what makes the exchange that the settings name."""
    peer, encrypt = settings.exchange.transport == "peer", settings.exchange.encrypt
    if hasattr(grid, "trackers"):
        if peer:
            log(INFO, "exchange.transport = peer: devices simulated here get a relay instead")
        if encrypt:
            log(INFO, "exchange.encrypt: nothing is encrypted between devices simulated here")
        return Exchange
    if not peer:
        return SealedExchange if encrypt else Exchange
    return partial(DirectExchange, rounds_per_message=settings.exchange.rounds_per_message)


@contextmanager
def _engine(
    grid: Grid, context: Context, settings: Settings, client_app: ClientApp
) -> Iterator[Grid]:
    """Yield the grid of the engine that the run config names, with its devices in their places."""
    own = hasattr(grid, "trackers")  # an engine of this package has been chosen already
    if settings.engine == "sharded" and not own:
        sharded = sharded_grid(
            client_app,
            settings.num_nodes,
            context.run_config,
            workers=settings.workers or cores(),
            address=settings.ray_address,
            run_id=context.run_id,
            patience_s=FLOWERS_RAY_S.get(Path(sys.argv[0]).name, 10.0),
        )
        with sharded:
            sharded.arrange(*layout(settings))
            yield sharded
        return
    if arrange := getattr(grid, "arrange", None):
        arrange(*layout(settings))
    yield grid


def constrain(
    settings: Settings, method: type[Learner], battery_j: Floats | None = None
) -> EnergyConstrained:
    """Return the energy and the iterations that the settings give to a method's devices."""
    kind = SharedBandConstrained if settings.wireless.shared else EnergyConstrained
    return kind(settings.of_method(method.stagger, method.rule), battery_j=battery_j)


def report(settings: Settings, results: dict[str, RoundRecord]) -> None:
    """Log the final tables."""
    for table in (devices_table(results), final_table(results)):
        for line in render(table).splitlines():
            log(INFO, "%s", line)
    if len(results) > 1:
        log(INFO, "%s", verdict(settings.compare_with, settings.method, results))
