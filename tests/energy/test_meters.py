"""Meters, on sysfs trees laid out as the kernel lays them out: real files, no mocks."""

import gc
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers_meters import ina3221, write, zone

from flwr_dmml.energy.meters import (
    EnergyMeter,
    InaMeter,
    MeterError,
    ModelMeter,
    PowercapMeter,
    find_meter,
)


def rapl(root: Path) -> dict[str, Path]:
    """Lay out a laptop: one package with its parts, DRAM, the platform, and the MMIO twin."""
    write(root / "class" / "powercap" / "intel-rapl", enabled=1)
    return {
        "package": zone(root, "intel-rapl:0", "package-0", 1_000_000),
        "core": zone(root, "intel-rapl:0:0", "core", 10),
        "uncore": zone(root, "intel-rapl:0:1", "uncore", 10),
        "dram": zone(root, "intel-rapl:0:2", "dram", 500_000, range_uj=65_712_999_613),
        "psys": zone(root, "intel-rapl:1", "psys", 10),
        "mmio": zone(root, "intel-rapl-mmio:0", "package-0", 1_000_000),
    }


class Clock:
    """A clock that is set by hand."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run as a user whom file permissions bind: root steps down for a while."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except PermissionError:
        pytest.skip("root without the right to step down")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a folder that every user may enter (pytest's own are private)."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


# RAPL


def test_powercap_sums_packages_and_dram(tmp_path: Path) -> None:
    """2.5 J and 0.25 J; parts of a package, the platform and the MMIO twin would count twice."""
    zones = rapl(tmp_path)
    meter = PowercapMeter(tmp_path)
    assert meter.read_j() == 0
    write(zones["package"], energy_uj=3_500_000)
    write(zones["dram"], energy_uj=750_000)
    for other in ("core", "uncore", "psys", "mmio"):
        write(zones[other], energy_uj=900_000_000)
    assert meter.read_j() == pytest.approx(2.75, rel=1e-12)
    assert meter.read_j() == pytest.approx(2.75, rel=1e-12)
    assert "package-0, dram" in meter.measures


def test_powercap_counters_wrap_around(tmp_path: Path) -> None:
    """Range 65.7 J: from 65.0 to the end 0.7 J, then 0.3 J, so 1.0 J; the same once more."""
    package = zone(tmp_path, "intel-rapl:0", "package-0", 65_000_000, range_uj=65_700_000)
    meter = PowercapMeter(tmp_path)
    write(package, energy_uj=300_000)
    assert meter.read_j() == pytest.approx(1.0, rel=1e-12)
    write(package, energy_uj=65_000_000)
    assert meter.read_j() == pytest.approx(65.7, rel=1e-12)
    write(package, energy_uj=300_000)
    assert meter.read_j() == pytest.approx(66.7, rel=1e-12)


def test_powercap_of_two_sockets(tmp_path: Path) -> None:
    sockets = [zone(tmp_path, f"intel-rapl:{i}", f"package-{i}", 0) for i in range(2)]
    meter = PowercapMeter(tmp_path)
    for i, socket in enumerate(sockets):
        write(socket, energy_uj=(i + 1) * 1_000_000)
    assert meter.read_j() == pytest.approx(3.0, rel=1e-12)


def test_powercap_says_when_a_counter_goes(tmp_path: Path) -> None:
    zones = rapl(tmp_path)
    meter = PowercapMeter(tmp_path)
    (zones["package"] / "energy_uj").unlink()
    with pytest.raises(MeterError, match=r"energy_uj: No such file"):
        meter.read_j()


# INA


def test_ina_integrates_by_trapezia(tmp_path: Path) -> None:
    """5 W, then 7 W after 2 s: (5 + 7) / 2 * 2 = 12 J; 7 W for 3 s more: 33 J. VDD_IN alone."""
    chip, clock = ina3221(tmp_path), Clock()
    meter = InaMeter(tmp_path, interval_s=None, clock=clock)
    assert meter.read_j() == 0
    clock.now_s = 2.0
    write(chip, curr1_input=1400)
    assert meter.read_j() == pytest.approx(12, rel=1e-12)
    clock.now_s = 5.0
    assert meter.read_j() == pytest.approx(33, rel=1e-12)
    assert "VDD_IN" in meter.measures and "VDD_SOC" not in meter.measures


def test_ina_adds_rails_where_none_is_the_input(tmp_path: Path) -> None:
    """AGX: 20 V * 0.2 A + 19 V * 0.1 A = 5.9 W; what is not connected or switched off is left."""
    clock = Clock()
    chip = write(tmp_path / "class" / "hwmon" / "hwmon1", name="ina3221")
    write(chip, in1_label="VDD_GPU_SOC", in1_input=20_000, curr1_input=200)
    write(chip, in2_label="VDD_CPU_CV", in2_input=19_000, curr2_input=100)
    write(chip, in4_input=1000, curr4_input=300)  # shunt voltage [uV], sum of currents
    other = write(tmp_path / "class" / "hwmon" / "hwmon2", name="ina3221")
    write(other, in1_label="NC", in1_input=20_000, curr1_input=500)
    write(other, in2_label="VDD_OFF", in2_input="", curr2_input="")  # a disabled channel
    meter = InaMeter(tmp_path, interval_s=None, clock=clock)
    clock.now_s = 10.0
    assert meter.read_j() == pytest.approx(59, rel=1e-12)
    assert "through VDD_GPU_SOC, VDD_CPU_CV:" in meter.measures


def test_ina_reads_power_where_the_chip_computes_it(tmp_path: Path) -> None:
    """ina226: power1_input in microwatts (3 W), and never also volts times amperes."""
    clock = Clock()
    chip = write(tmp_path / "class" / "hwmon" / "hwmon0", name="ina226", power1_input=3_000_000)
    write(chip, in0_input=12, in1_input=5000, curr1_input=600)
    meter = InaMeter(tmp_path, interval_s=None, clock=clock)
    clock.now_s = 2.0
    assert meter.read_j() == pytest.approx(6, rel=1e-12)
    write(chip, power1_input=-3_000_000)  # charging: counts as nothing, the meter never falls
    clock.now_s = 4.0
    assert meter.read_j() == pytest.approx(9, rel=1e-12)  # 3 W to 0 W in 2 s: 3 J


def test_ina_reads_the_old_jetson_driver(tmp_path: Path) -> None:
    """Jetson Nano, JetPack 4: milliwatts of POM_5V_IN, the input of GPU and CPU too."""
    clock = Clock()
    chip = tmp_path / "bus" / "i2c" / "devices" / "6-0040"
    write(chip, name="ina3221x")
    rails = {"POM_5V_IN": 4000, "POM_5V_GPU": 1000, "POM_5V_CPU": 800}
    for i, (label, power_mw) in enumerate(rails.items()):
        files = {f"rail_name_{i}": label, f"in_power{i}_input": power_mw}
        write(chip / "iio:device0", **files)
    meter = InaMeter(tmp_path, interval_s=None, clock=clock)
    clock.now_s = 3.0
    assert meter.read_j() == pytest.approx(12, rel=1e-12)
    assert "through POM_5V_IN:" in meter.measures


def test_ina_samples_between_reads_and_ends_with_the_meter(tmp_path: Path) -> None:
    """5 W at both reads and 50 W between them: only samples in between can see the 50 W."""
    chip = ina3221(tmp_path)
    before = set(threading.enumerate())
    meter = InaMeter(tmp_path, interval_s=0.005)
    (thread,) = set(threading.enumerate()) - before
    begin_s = time.monotonic()
    write(chip, curr1_input=10_000)
    time.sleep(0.2)
    write(chip, curr1_input=1000)
    joules, elapsed_s = meter.read_j(), time.monotonic() - begin_s
    assert 2 * 5 * elapsed_s < joules <= 50 * (elapsed_s + 0.1)
    del meter
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_ina_outlives_a_failed_sample(tmp_path: Path) -> None:
    """A read during the gap says so; afterwards 5 W over 4 s are 20 J."""
    chip, clock = ina3221(tmp_path), Clock()
    meter = InaMeter(tmp_path, interval_s=None, clock=clock)
    clock.now_s = 2.0
    (chip / "curr1_input").unlink()
    with pytest.raises(MeterError, match="curr1_input"):
        meter.read_j()
    write(chip, curr1_input=1000)
    clock.now_s = 4.0
    assert meter.read_j() == pytest.approx(20, rel=1e-12)


# Choice


def test_the_counters_are_preferred(tmp_path: Path) -> None:
    rapl(tmp_path)
    ina3221(tmp_path)
    meter = find_meter(tmp_path)
    assert isinstance(meter, PowercapMeter)
    assert (meter.name, meter.why) == ("powercap", "")


def test_ina_is_next(tmp_path: Path) -> None:
    ina3221(tmp_path)
    meter = find_meter(tmp_path)
    assert isinstance(meter, InaMeter)
    meter.close()
    assert meter.name == "ina"
    assert "no RAPL package" in meter.why


@pytest.mark.parametrize("known", [True, False])
def test_the_model_is_last(tmp_path: Path, known: bool) -> None:
    meter = find_meter(tmp_path if known else tmp_path / "nowhere")
    assert isinstance(meter, ModelMeter)
    assert "Nothing is measured" in meter.measures
    assert "no RAPL package" in meter.why and "no INA power sensor" in meter.why


def test_what_may_not_be_read_is_passed_over(public: Path) -> None:
    """Since Linux 5.10 energy_uj is root's only: the reason is kept, for each meter."""
    zones, chip = rapl(public), ina3221(public)
    os.chmod(zones["package"] / "energy_uj", 0o000)
    with unprivileged():
        meter = find_meter(public)
        assert isinstance(meter, InaMeter)
        meter.close()
        assert "intel-rapl:0/energy_uj: Permission denied" in meter.why
    for file in chip.glob("curr*_input"):
        os.chmod(file, 0o000)
    with unprivileged():
        last = find_meter(public)
        assert isinstance(last, ModelMeter)
        assert "energy_uj: Permission denied" in last.why
        assert "curr1_input: Permission denied" in last.why


def test_what_is_no_number_is_passed_over(tmp_path: Path) -> None:
    write(rapl(tmp_path)["dram"], energy_uj="n/a")
    assert "energy_uj: 'n/a' is no integer" in find_meter(tmp_path).why


def test_the_model_adds_up() -> None:
    meter = ModelMeter("no sensor")
    meter.add_j(0.25)
    meter.add_j(0.5)
    assert meter.read_j() == 0.75
    for joules in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="0 or more"):
            meter.add_j(joules)
    assert (meter.read_j(), meter.why) == (0.75, "no sensor")


def test_every_meter_keeps_the_protocol(tmp_path: Path) -> None:
    rapl(tmp_path)
    ina3221(tmp_path)
    meters: list[EnergyMeter] = [
        ModelMeter(),
        PowercapMeter(tmp_path),
        InaMeter(tmp_path, interval_s=None),
    ]
    assert len({meter.name for meter in meters}) == 3
    for meter in meters:
        assert meter.measures.endswith(".")
        assert meter.why == ""
        assert meter.read_j() >= 0
