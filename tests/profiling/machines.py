"""Files, tools and printed lines of machines that are not here."""

from __future__ import annotations

import shutil
from pathlib import Path

from gft_edge.profiling.power import PowerSource, find_power_source
from tests.support.files import write

# Printed by Jetsons with Jetson Linux 32 to 39.
AGX_ORIN = (
    "04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) "
    "CPU [0%@729,off] EMC_FREQ 0%@2133 GR3D_FREQ 0%@[0,0] CV0@-256C CPU@44.562C tj@44.343C "
    "VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 301mW/301mW"
)
ORIN_NANO = (
    "RAM 3000/7620MB (lfb 4x4MB) CPU [10%@1510,12%@1510] GR3D_FREQ 99%@[918] cpu@52C "
    "VDD_IN 8942mW/8130mW VDD_CPU_GPU_CV 4210mW/3880mW VDD_SOC 2115mW/2006mW"
)
AGX_ORIN_39 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201] EMC_FREQ 3%@3199 "
    "GR3D_FREQ 12%@[1300,1300] NVENC0 off APE 174 cpu@52.968C/52.968C gpu@47.625C/49.5C "
    "VDD_GPU_SOC 5139mW/5000mW/5300mW VDD_CPU_CV 3268mW/3268mW/3268mW "
    "VIN_SYS_5V0 5500mW/5500mW/5500mW"
)
THOR = (
    "04-21-2026 15:50:52 RAM 105265/125772MB (lfb 34x4MB) CPU [0%@972] EMC_FREQ 0%@2750 "
    "GR3D_FREQ @[314,314,314] NVENC0_FREQ @314 VIC off cpu@37.343C tj@38.875C "
    "VDD_GPU -392mW/1962mW VDD_CPU_SOC_MSS 5887mW/5887mW VIN_SYS_5V0 5635mW/5635mW "
    "VIN 19780mW/19780mW"
)
NANO = (
    "RAM 1766/3964MB (lfb 197x4MB) SWAP 0/2048MB (cached 0MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [24%,15%,off]@1224 EMC_FREQ 0% GR3D_FREQ 0% PLL@21C CPU@25C PMIC@100C thermal@24.5C "
    "POM_5V_IN 2545/2547 POM_5V_GPU 0/0 POM_5V_CPU 549/529"
)


# What a tool prints, every 20 ms.
LOOP = "while :; do echo '{}'; sleep 0.02; done"


def tool(folder: Path, name: str, script: str) -> None:
    """Install a shell script as a tool."""
    path = folder / name
    path.write_text(f"#!{shutil.which('sh', path='/bin:/usr/bin')}\nPATH=/bin:/usr/bin\n{script}\n")
    path.chmod(0o755)


def ina3221(sysfs: Path, number: int, **rails: tuple[int, int]) -> Path:
    """A chip with up to three rails, each of (millivolts, milliamperes)."""
    chip = write(sysfs / "class" / "hwmon" / f"hwmon{number}", {"name": "ina3221"})
    for channel, (label, (mv, ma)) in enumerate(rails.items(), start=1):
        values = {"in{}_label": label, "in{}_input": mv, "curr{}_input": ma}
        write(chip, {name.format(channel): value for name, value in values.items()})
    sums = {"in4_input": 9, "in7_label": "sum of shunt voltages", "in7_input": 9, "curr4_input": 9}
    return write(chip, sums)


def orin_nano(sysfs: Path) -> Path:
    """Write the chip of an Orin Nano that draws 8 W."""
    return ina3221(sysfs, 1, VDD_IN=(5000, 1600), VDD_CPU_GPU_CV=(5000, 400), VDD_SOC=(5000, 300))


def rapl_zone(sysfs: Path, zone: str, name: str, energy_uj: int) -> Path:
    """Write one energy counter of a CPU, which wraps at 1 J."""
    folder = sysfs / "class" / "powercap" / zone
    files = {"name": name, "energy_uj": energy_uj, "max_energy_range_uj": 1_000_000}
    return write(folder, files)


def found(sysfs: Path, nvidia_gpu: bool = False) -> PowerSource:
    """Return the power source of a machine that has one."""
    source = find_power_source(sysfs, nvidia_gpu)
    assert not isinstance(source, str), source
    return source
