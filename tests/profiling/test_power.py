"""Power is read from what a machine has."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from gft_edge.profiling import power
from gft_edge.profiling.power import (
    PowerSource,
    find_power_source,
    tegrastats_watts,
    total_name,
    total_of,
)
from tests.profiling.machines import (
    AGX_ORIN,
    AGX_ORIN_39,
    LOOP,
    NANO,
    ORIN_NANO,
    THOR,
    found,
    ina3221,
    orin_nano,
    rapl_zone,
    tool,
)
from tests.support.fake_nvml import fake_nvml
from tests.support.files import write

pytestmark = pytest.mark.usefixtures("no_tools")


def why_not(sysfs: Path, nvidia_gpu: bool = False) -> str:
    why = find_power_source(sysfs, nvidia_gpu)
    assert isinstance(why, str)
    assert "\n" not in why
    return why


def watts_now(source: PowerSource) -> Mapping[str, float]:
    stop = threading.Event()
    readings = source.readings(stop, 0.02)
    first = next(readings)
    stop.set()
    for _ in readings:
        pass
    assert first.failure is None
    return first.watts


def test_the_total_is_never_added_to_its_parts_and_a_sum_is_called_a_sum() -> None:
    assert total_of(["VDD_SOC", "VDD_IN", "VDD_CPU_GPU_CV"]) == ("VDD_IN",)
    assert total_of(["VIN_SYS_5V0", "VDD_GPU", "VDD_CPU_SOC_MSS", "VIN"]) == ("VIN",)
    assert total_of(["VIN_SYS_5V0", "VDD_GPU_SOC"]) is None
    total = total_of(["VDDQ_VDD2_1V8AO", "VIN_SYS_5V0", "VDD_CPU_CV", "VDD_GPU_SOC"])
    assert total is not None
    assert total_name(total) == "sum of VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert total_name(("VDD_IN",)) == "VDD_IN"


def test_an_orin_nano_is_read_from_hwmon(tmp_path: Path, no_tools: Path) -> None:
    write(tmp_path / "class" / "hwmon" / "hwmon0", {"name": "tmp451"})
    orin_nano(tmp_path)
    tool(no_tools, "tegrastats", f"echo '{THOR}'")
    source = found(tmp_path)
    assert (source.name, source.total) == ("hwmon", ("VDD_IN",))
    assert watts_now(source) == {"VDD_IN": 8.0, "VDD_CPU_GPU_CV": 2.0, "VDD_SOC": 1.5}


def test_the_two_chips_of_an_agx_orin_make_one_sum(tmp_path: Path) -> None:
    ina3221(
        tmp_path, 2, VDD_GPU_SOC=(20000, 150), VDD_CPU_CV=(20000, 100), VIN_SYS_5V0=(5000, 1000)
    )
    chip = ina3221(tmp_path, 11, NC=(0, 0), VDDQ_VDD2_1V8AO=(5000, 60))
    write(chip, {"in3_label": "NC", "in3_input": 0, "curr3_input": 0})
    source = found(tmp_path)
    assert source.total == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    assert watts_now(source) == {
        "VDD_GPU_SOC": 3.0, "VDD_CPU_CV": 2.0, "VIN_SYS_5V0": 5.0, "VDDQ_VDD2_1V8AO": 0.3,
    }  # fmt: skip


@pytest.mark.parametrize("label", [{}, {"in1_label": "VIN"}])
def test_the_total_of_thor_is_its_ina238(tmp_path: Path, label: Mapping[str, str]) -> None:
    ina3221(tmp_path, 3, VDD_GPU=(12000, 100), VDD_CPU_SOC_MSS=(12000, 500), VIN_SYS_5V0=(5000, 9))
    chip = {"name": "ina238", "power1_input": 19780000, **label}
    write(tmp_path / "class" / "hwmon" / "hwmon4", chip)
    source = found(tmp_path)
    assert source.total == ("VIN",)
    assert watts_now(source)["VIN"] == 19.78


def test_rails_without_a_known_total_are_named_and_not_added(tmp_path: Path) -> None:
    for number in (3, 4):
        files = {"name": "ina238", "power1_input": 1}
        write(tmp_path / "same" / "class" / "hwmon" / f"hwmon{number}", files)
    ina3221(tmp_path / "unknown", 1, VDD_ARM=(5000, 100), VDD_DDR=(5000, 100))
    chip = orin_nano(tmp_path / "unreadable")
    (chip / "curr1_input").unlink()
    (chip / "curr1_input").mkdir()
    for machine, words in (
        ("same", "VIN (hwmon3), VIN (hwmon4)"),
        ("unknown", "VDD_ARM, VDD_DDR"),
        ("unreadable", "hwmon: VDD_IN: Is a directory; tegrastats: not on the PATH"),
    ):
        assert words in why_not(tmp_path / machine)


def test_a_machine_without_any_source_names_each(tmp_path: Path) -> None:
    head = "hwmon: no INA3221 or INA238; tegrastats: not on the PATH; "
    assert why_not(tmp_path) == head + "RAPL: no package in /sys/class/powercap"
    assert why_not(tmp_path, nvidia_gpu=True).startswith(head + "NVML: ")


def test_the_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    rapl_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    rapl_zone(tmp_path, "intel-rapl:0:0", "core", 1)
    rapl_zone(tmp_path, "intel-rapl:1", "package-1", 1)
    rapl_zone(tmp_path, "intel-rapl:2", "psys", 1)
    rapl_zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1)
    source = found(tmp_path)
    assert source.name == "RAPL"
    assert total_name(source.total) == "sum of package-0 + package-1"


def test_a_counter_that_wraps_goes_on(tmp_path: Path) -> None:
    zone = rapl_zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    began = time.perf_counter()
    readings = found(tmp_path).readings(threading.Event(), 0.05)
    assert next(readings).watts == {"package-0": 0.0}
    write(zone, {"energy_uj": 100_000})
    # 0.2 J of the counter's 1 J, in 0.05 s or a little more.
    watts = next(readings).watts["package-0"]
    assert 0.2 / (time.perf_counter() - began) <= watts <= 0.2 / 0.04


def test_a_counter_for_root_alone_is_not_available(tmp_path: Path) -> None:
    zone = rapl_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (zone / "energy_uj").unlink()
    (zone / "energy_uj").mkdir()
    assert why_not(tmp_path).endswith("RAPL: package-0: Is a directory (root may read it)")


def test_a_counter_that_goes_back_without_a_range_is_no_reading(tmp_path: Path) -> None:
    zone = rapl_zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    (zone / "max_energy_range_uj").unlink()
    readings = found(tmp_path).readings(threading.Event(), 0.01)
    assert next(readings).watts == {"package-0": 0.0}
    write(zone, {"energy_uj": 100_000})
    assert next(readings).watts == {}


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        (AGX_ORIN, {"VDD_GPU_SOC": 2.34, "VDD_CPU_CV": 0.39, "VIN_SYS_5V0": 4.025,
                    "VDDQ_VDD2_1V8AO": 0.301}),
        (ORIN_NANO, {"VDD_IN": 8.942, "VDD_CPU_GPU_CV": 4.21, "VDD_SOC": 2.115}),
        # Means and maxima are passed over.
        (AGX_ORIN_39, {"VDD_GPU_SOC": 5.139, "VDD_CPU_CV": 3.268, "VIN_SYS_5V0": 5.5}),
        # A rail that feeds nothing.
        (THOR, {"VDD_GPU": -0.392, "VDD_CPU_SOC_MSS": 5.887, "VIN_SYS_5V0": 5.635, "VIN": 19.78}),
        # From before units.
        (NANO, {"POM_5V_IN": 2.545, "POM_5V_GPU": 0, "POM_5V_CPU": 0.549}),
        # What is new, cut off or garbage is no rail.
        ("VDD_LATE 12W/13W ZONE@1.5F FOO 3/4 NEW(3x4) BAZ 5% VDD_CUT 89", {}),
        ("\x00\ufffd\x1b[2J [[[@@%%C mW", {}),
    ],
)  # fmt: skip
def test_the_rails_of_a_tegrastats_line_of_each_board_are_read(
    line: str, watts: dict[str, float]
) -> None:
    assert tegrastats_watts(line) == watts


def test_tegrastats_is_read_where_hwmon_is_not_there(tmp_path: Path, no_tools: Path) -> None:
    # Lines that say nothing are waited out.
    first = "[ $1 = --interval ] || exit 2\necho warming up; echo; echo 'QPU 3'\n"
    tool(no_tools, "tegrastats", first + LOOP.format(AGX_ORIN))
    source = found(tmp_path)
    assert source.name == "tegrastats"
    assert total_name(source.total) == "sum of VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert watts_now(source)["VIN_SYS_5V0"] == 4.025


def test_tegrastats_is_asked_where_hwmon_knows_no_total(tmp_path: Path, no_tools: Path) -> None:
    ina3221(tmp_path, 3, VDD_GPU=(12000, 100), VDD_CPU_SOC_MSS=(12000, 500), VIN_SYS_5V0=(5000, 9))
    tool(no_tools, "tegrastats", LOOP.format(THOR))
    assert (found(tmp_path).name, found(tmp_path).total) == ("tegrastats", ("VIN",))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (LOOP.format("RAM 1/2MB cpu@50C"), "no power in what it prints: RAM 1/2MB cpu@50C"),
        ("echo 'no such device' >&2; exit 1", "it ended; its last line: no such device"),
        (None, "it did not start: No such file"),
    ],
)
def test_tegrastats_that_tells_no_power_says_why(
    script: str | None,
    words: str,
    tmp_path: Path,
    no_tools: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(power, "FIRST_LINE_S", 0.3 if script else 5)
    tool(no_tools, "tegrastats", script or "")
    if script is None:
        (no_tools / "tegrastats").write_text("#!/no/such/shell\n")
    assert f"tegrastats: {words}" in why_not(tmp_path)


def test_a_card_that_reads_no_power_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml([{"name": "a"}]))
    assert why_not(tmp_path, nvidia_gpu=True).endswith("GPU 0")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py" in why_not(tmp_path, nvidia_gpu=True)
