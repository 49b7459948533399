"""The ServerApp of every method: reads the run config, runs the round plan, reports."""

from collections.abc import Sequence
from logging import INFO

from flwr.app import Context
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from ..clients import Learner, find_methods, option_types
from ..config import Settings, parse_settings, resolved
from ..energy import Floats
from ..tracking import RoundRecord, RunFolder, Tracker, devices_table, final_table, render, verdict
from .energy_constrained import EnergyConstrained
from .peer import PeerStrategy
from .shared_band import SharedBandConstrained


def make_server_app(*learners: type[Learner]) -> ServerApp:
    """Return a ServerApp that runs the method of the run config, and ``compare-with`` before it.

    Parameters
    ----------
    *learners : type[Learner]
        Methods of your own, besides the registered ones. Give the same to ``make_client_app``.

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
        folder = RunFolder(settings.run_dir, settings.run_name, resolved(settings, options))
        log(INFO, "Run folder: %s", folder.path)
        # An engine of this package may carry trackers of its own, such as the live table.
        trackers = [folder, *getattr(grid, "trackers", ())]
        results: dict[str, RoundRecord] = {}
        if settings.compare_with == settings.method:
            log(INFO, "compare-with names the method itself: it runs once")
        present: int | None = None  # a device lost by the first method is not waited for again
        battery_j: Floats | None = None  # the second method gets the batteries of the first
        for name in dict.fromkeys(filter(None, (settings.compare_with, settings.method))):
            energy = constrain(settings, methods[name], battery_j)
            results[name] = _run(grid, settings, methods[name], trackers, present, energy)
            present = max(1, len(results[name].nodes))
            battery_j = None if settings.energy.on_mains else energy.battery_j
        report(settings, results)
        log(INFO, "Run folder: %s", folder.path)

    return app


def constrain(
    settings: Settings, method: type[Learner], battery_j: Floats | None = None
) -> EnergyConstrained:
    """Return the energy and the iterations that the settings give to a method's devices."""
    kind = SharedBandConstrained if settings.wireless.shared else EnergyConstrained
    return kind(settings.of_method(method.stagger, method.rule), battery_j=battery_j)


def _run(
    grid: Grid,
    settings: Settings,
    method: type[Learner],
    trackers: Sequence[Tracker],
    min_nodes: int | None,
    energy: EnergyConstrained,
) -> RoundRecord:
    """Run one method and return its last round."""
    strategy = PeerStrategy(
        settings.make_topology(),
        num_nodes=settings.num_nodes,
        method=method.name,
        communicates=method.communicates,
        local_iterations=settings.local_iterations,
        evaluate_every=settings.evaluate_every,
        wait_timeout=settings.wait_timeout,
        min_nodes=min_nodes,
        seed=settings.seed,
        energy=energy,
        trackers=trackers,
    )
    strategy.start(grid, num_rounds=settings.num_server_rounds, timeout=settings.round_timeout)
    return strategy.records[-1]


def report(settings: Settings, results: dict[str, RoundRecord]) -> None:
    """Log the final tables."""
    for table in (devices_table(results), final_table(results)):
        for line in render(table).splitlines():
            log(INFO, "%s", line)
    if len(results) > 1:
        log(INFO, "%s", verdict(settings.compare_with, settings.method, results))
