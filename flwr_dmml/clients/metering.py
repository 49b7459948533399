"""Measured energy of a device's work: joules by the energy meter of its own board."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..base.errors import SettingsError
from ..base.overrides import with_overrides
from ..energy.devices import ProfileError
from ..energy.equipment import Equipment
from ..energy.meters import EnergyMeter, InaMeter, MeterError, ModelMeter, find_meter
from ..learning.learner import Learner
from ..learning.settings import DeviceSettings
from ..payload.plan import Inbox, Outcome, Plan

SYSFS = Path("/sys")
"""Mount point of sysfs, where the kernel exposes its energy meters."""
MEASURED_J, MEASURED_S = "energy.measured-j", "energy.measured-s"
"""Metrics of a round: joules by the meter, and the seconds that it was read over."""

NodeConfig = Mapping[str, object]


@contextmanager
def open_meter() -> Iterator[EnergyMeter]:
    """Yield this machine's meter (:func:`~flwr_dmml.energy.meters.find_meter`), and close it."""
    meter = find_meter(SYSFS)
    try:
        yield meter
    finally:
        if isinstance(meter, InaMeter):
            meter.close()


def measures(node_config: NodeConfig, settings: DeviceSettings) -> bool:
    """Return whether a device is to read its meter: ``energy.meter``, and its own ``meter``.

    Raises
    ------
    SettingsError
        The node config's ``meter`` is neither "auto" nor "none".
    """
    own = node_config.get("meter", "auto")
    if own not in ("auto", "none"):
        raise SettingsError(f"node config: meter = {own!r}: allowed: auto, none")
    return settings.energy.meter == "auto" and own == "auto"


def metered_alone(run_config: Mapping[str, object]) -> bool:
    """Return whether devices of one machine must work one by one, for its meter to tell them apart.

    The setting decides, not who has a meter: the numbers are the same on any machine.
    """
    return with_overrides(run_config).get("energy.meter") == "auto"


def equipment_of(node_config: NodeConfig, settings: DeviceSettings) -> Equipment:
    """Return what a node config and the meters found here say of this device.

    Raises
    ------
    SettingsError
        ``profile``, ``battery-j`` or ``meter`` of the node config is wrong.
    """
    meter = about_meter = ""
    if measures(node_config, settings):
        with open_meter() as found:
            meter, about_meter = found.name, found.why
            if not isinstance(found, ModelMeter):
                about_meter = found.measures
    elif settings.energy.meter == "auto":
        meter, about_meter = ModelMeter.name, "its node config says meter = 'none'"
    battery_j = node_config.get("battery-j", 0.0)
    if not isinstance(battery_j, int | float) or isinstance(battery_j, bool):
        raise SettingsError(f"node config: battery-j = {battery_j!r}: must be a number of joules")
    try:
        profile = str(node_config.get("profile", ""))
        return Equipment(profile, float(battery_j), meter, about_meter)
    except ProfileError as error:
        raise SettingsError(f"node config: {error}") from error


def run_metered(learner: Learner, plan: Plan, inbox: Inbox, node_config: NodeConfig) -> Outcome:
    """Run a device's round, and note what its meter counted meanwhile, if it is to be read.

    Everything that the meter sees while the round runs is counted (mixing, evaluation, training,
    publishing), including other processes and what the board draws at rest. Waiting for letters
    and for messages is not.

    Parameters
    ----------
    learner, plan, inbox
        See :meth:`.Learner.run_round`.
    node_config : mapping
        See :func:`measures`.

    Returns
    -------
    Outcome
        With the metrics ``energy.measured-j`` and ``energy.measured-s``, or in ``meter_problem``
        why there are none.
    """
    if not measures(node_config, learner.settings):
        return learner.run_round(plan, inbox)
    with open_meter() as meter:
        began = time.perf_counter()
        outcome = learner.run_round(plan, inbox)
        if isinstance(meter, ModelMeter):
            return replace(outcome, meter_problem=meter.why)
        try:
            joules = meter.read_j()
        except MeterError as error:
            return replace(outcome, meter_problem=f"{meter.name}: {error}")
        seconds = time.perf_counter() - began
    outcome.metrics.update({MEASURED_J: joules, MEASURED_S: seconds})
    return outcome
