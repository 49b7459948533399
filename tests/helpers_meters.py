"""Sysfs trees with meters, laid out as the kernel lays them out."""

from pathlib import Path


def write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")
    return folder


def zone(
    root: Path, zone_id: str, name: str, energy_uj: int, range_uj: int = 262_143_328_850
) -> Path:
    """Add a powercap zone; the class folder links to the devices, as in the real one."""
    device = root / "devices" / "virtual" / "powercap" / zone_id.split(":")[0] / zone_id
    write(device, name=name, energy_uj=energy_uj, max_energy_range_uj=range_uj, enabled=0)
    (root / "class" / "powercap").mkdir(parents=True, exist_ok=True)
    (root / "class" / "powercap" / zone_id).symlink_to(device)
    return device


def ina3221(root: Path) -> Path:
    """Lay out a Jetson Orin Nano (JetPack 5): VDD_IN at 5 V and 1 A, two rails below it."""
    write(root / "class" / "hwmon" / "hwmon0", name="cpu-thermal", temp1_input=45000)
    chip = write(root / "class" / "hwmon" / "hwmon3", name="ina3221")
    write(chip, in1_label="VDD_IN", in1_input=5000, curr1_input=1000)
    write(chip, in2_label="VDD_CPU_GPU_CV", in2_input=5000, curr2_input=400)
    write(chip, in3_label="VDD_SOC", in3_input=5000, curr3_input=200)
    write(chip, in4_input=1000, in7_label="sum of shunt voltages", in7_input=1600, curr4_input=1600)
    return chip
