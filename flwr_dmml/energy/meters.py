"""Energy meters: the joules a device has used, measured where its hardware can, else modelled."""

import re
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Protocol


class MeterError(OSError):
    """A meter that is not there or cannot be read; the message names the file and the reason."""


class EnergyMeter(Protocol):
    """Something that counts joules."""

    @property
    def name(self) -> str:
        """Short and kebab-case, for tables."""

    @property
    def measures(self) -> str:
        """One sentence: what the joules cover."""

    @property
    def why(self) -> str:
        """Reason that :func:`find_meter` took no better meter; empty if this is the best one."""

    def read_j(self) -> float:
        """Return the joules used since the meter was made; never falls."""


class ModelMeter:
    """Adds up what the energy model says: for simulations and boards without a power sensor."""

    name = "model"
    measures = "Nothing is measured: the energy model's joules for the iterations and bits booked."

    def __init__(self, why: str = "") -> None:
        self.why = why
        self._joules = 0.0

    def add_j(self, joules: float) -> None:
        """Book modelled joules; raises ``ValueError`` unless they are finite and >= 0."""
        if not (isfinite(joules) and joules >= 0):
            raise ValueError(f"a meter adds joules of 0 or more, not {joules}")
        self._joules += joules

    def read_j(self) -> float:
        """Return the joules added so far."""
        return self._joules


class PowercapMeter:
    """Reads the processor's own counters (RAPL) through Linux powercap.

    Sums the zones ``class/powercap/intel-rapl:*`` named ``package-*`` or ``dram``; ``core`` and
    ``uncore`` are parts of a package, ``psys`` contains the packages, and ``intel-rapl-mmio`` is
    the same counter again. AMD processors appear under the same names. A counter starts anew at
    ``max_energy_range_uj``; one such wrap between two reads is made good, so read at least every
    few minutes (a range of 262 kJ lasts 44 minutes at 100 W). Since Linux 5.10 the counters are
    root's only.

    Parameters
    ----------
    root : Path or str
        Where sysfs is mounted.
    why : str
        See :class:`EnergyMeter`.

    Raises
    ------
    MeterError
        If there is no such zone or one of them cannot be read.

    References
    ----------
    Linux, Documentation/power/powercap/powercap.rst.
    """

    name = "powercap"

    def __init__(self, root: Path | str = "/sys", why: str = "") -> None:
        self.why = why
        folder = Path(root) / "class" / "powercap"
        zones = {zone: _text(zone / "name") for zone in sorted(folder.glob("intel-rapl:*"))}
        chosen = {z: n for z, n in zones.items() if n.startswith("package") or n == "dram"}
        if not chosen:
            raise MeterError(f"{folder}: no RAPL package")
        self._range_uj = {zone: _number(zone / "max_energy_range_uj") for zone in chosen}
        self._last_uj = {zone: _number(zone / "energy_uj") for zone in chosen}
        self._total_uj = 0.0
        self.measures = f"Processor energy from the RAPL counters of {', '.join(chosen.values())}."

    def read_j(self) -> float:
        """Return the joules since creation; raises :class:`MeterError` if a file has gone."""
        for zone, last_uj in self._last_uj.items():
            now_uj = _number(zone / "energy_uj")
            self._total_uj += now_uj - last_uj + (self._range_uj[zone] if now_uj < last_uj else 0)
            self._last_uj[zone] = now_uj
        return self._total_uj * 1e-6


@dataclass(frozen=True)
class _Rail:
    """One supply line: power is the product of the files' numbers times ``scale`` watts."""

    label: str
    files: tuple[Path, ...]
    scale: float

    def power_w(self) -> float:
        power = self.scale
        for file in self.files:
            power *= _number(file)
        return max(0.0, power)  # a line that feeds back counts as none


class _Integral:
    """Energy under sampled power, by trapezia; safe to sample from two threads."""

    def __init__(self, rails: list[_Rail], clock: Callable[[], float]) -> None:
        self._rails, self._clock = rails, clock
        self._lock = threading.Lock()
        self._joules = 0.0
        self._last = self._measure()

    def _measure(self) -> tuple[float, float]:
        return self._clock(), sum(rail.power_w() for rail in self._rails)

    def sample(self) -> float:
        with self._lock:
            now_s, power_w = self._measure()
            last_s, last_w = self._last
            self._joules += (now_s - last_s) * (last_w + power_w) / 2
            self._last = now_s, power_w
            return self._joules

    def sample_until(self, stop: threading.Event, interval_s: float) -> None:
        while not stop.wait(interval_s):
            with suppress(MeterError):  # the next trapezium bridges the gap; read_j reports it
                self.sample()


class InaMeter:
    """Integrates the power that INA sensors report, as on Jetson boards.

    The sensors give power, not energy, so it is sampled: at every read, and every ``interval_s``
    by a daemon thread that ends with the meter; trapezia between. What changes faster is missed.

    Three layouts are read: ``class/hwmon/hwmon*`` whose ``name`` begins with ``ina``, with
    ``power*_input`` [uW] (INA2xx) or ``in*_input`` [mV] times ``curr*_input`` [mA] (INA3221,
    JetPack 5 on); and ``bus/i2c/devices/*/iio:device*`` with ``in_power*_input`` [mW] (JetPack 4).
    Where a rail is the module's input (``VDD_IN``, ``POM_5V_IN``) it alone counts, else all rails
    are added up. Rails that are unconnected (``NC``) or unreadable are left out.

    Parameters
    ----------
    root : Path or str
        Where sysfs is mounted.
    why : str
        See :class:`EnergyMeter`.
    interval_s : float, optional
        Seconds between samples, > 0; None samples at reads only.
    clock : callable
        Returns seconds; monotonic.

    Raises
    ------
    MeterError
        If no rail can be read.

    References
    ----------
    Linux, Documentation/hwmon/ina3221.rst and ina2xx.rst; the input rails are those of
    rbonghi/jetson_stats, jtop/core/power.py.
    """

    name = "ina"
    inputs = ("VDD_IN", "POM_5V_IN")  # a module's input: Orin and Xavier NX, Nano and TX1

    def __init__(
        self,
        root: Path | str = "/sys",
        why: str = "",
        *,
        interval_s: float | None = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.why = why
        rails, reasons = [], []
        for rail in _find_rails(Path(root)):
            try:
                rail.power_w()
                rails.append(rail)
            except MeterError as error:
                reasons.append(str(error))
        if not rails:
            raise MeterError("; ".join(reasons) or f"{root}: no INA power sensor")
        rails = [rail for rail in rails if rail.label in self.inputs] or rails
        names = ", ".join(rail.label for rail in rails)
        self.measures = f"Energy through {names}: the INA sensors' power, sampled and integrated."
        self._integral = _Integral(rails, clock)
        self._stop = threading.Event()
        if interval_s is not None:
            weakref.finalize(self, self._stop.set)
            threading.Thread(
                target=self._integral.sample_until,
                args=(self._stop, interval_s),
                name="ina-meter",
                daemon=True,
            ).start()

    def read_j(self) -> float:
        """Return the joules since creation; raises :class:`MeterError` if a file has gone."""
        return self._integral.sample()

    def close(self) -> None:
        """End the sampling between reads."""
        self._stop.set()


def _find_rails(root: Path) -> list[_Rail]:
    """Return every INA rail under ``root`` that has a use, readable or not."""
    rails = []
    for chip in sorted((root / "class" / "hwmon").glob("hwmon*")):
        with suppress(MeterError):
            if not _text(chip / "name").startswith("ina"):
                continue
            for file in sorted(chip.glob("power*_input")):
                rails.append(_Rail(_label(chip, file, "power", chip.name), (file,), 1e-6))
            if any(chip.glob("power*_input")):
                continue
            for amps in sorted(chip.glob("curr[0-9]_input")):
                volts = chip / amps.name.replace("curr", "in")
                label = _label(chip, volts, "in", chip.name)
                if amps.name != "curr4_input":  # curr4 is the sum of the other three
                    rails.append(_Rail(label, (volts, amps), 1e-6))  # mV mA
    for file in sorted(root.glob("bus/i2c/devices/*/iio:device*/in_power*_input")):
        label = _label(file.parent, file, "in_power", file.parent.name)
        rails.append(_Rail(label, (file,), 1e-3))  # mW
    return [rail for rail in rails if "NC" not in rail.label.split("_")]


def _label(folder: Path, file: Path, prefix: str, fallback: str) -> str:
    """Return the name on a channel's label file, else ``fallback`` and the channel's number."""
    number = "".join(re.findall(r"\d+", file.name.removeprefix(prefix)))
    name = f"rail_name_{number}" if prefix == "in_power" else f"{prefix}{number}_label"
    try:
        return _text(folder / name)
    except MeterError:
        return f"{fallback}:{number}"


def find_meter(root: Path | str = "/sys") -> EnergyMeter:
    """Return the best meter of this machine: RAPL counters, else INA sensors, else the model.

    Parameters
    ----------
    root : Path or str
        Where sysfs is mounted.

    Returns
    -------
    EnergyMeter
        Its ``measures`` says what was chosen, its ``why`` the reason that each better meter gave:
        "no such sensor", or a file that this user may not read.
    """
    reasons: list[str] = []
    for meter in (PowercapMeter, InaMeter):
        try:
            return meter(root, "; ".join(reasons))
        except MeterError as error:
            reasons.append(f"{meter.name}: {error}")
    return ModelMeter("; ".join(reasons))


def _text(file: Path) -> str:
    """Return a sysfs file's text without blanks around it, or raise :class:`MeterError`."""
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise MeterError(f"{file}: {reason}") from error


def _number(file: Path) -> int:
    """Return a sysfs file's integer, or raise :class:`MeterError`."""
    text = _text(file)
    try:
        return int(text)
    except ValueError:
        raise MeterError(f"{file}: {text!r} is no integer") from None
