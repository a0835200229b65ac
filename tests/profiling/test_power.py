"""Power is read from what a machine has, and an image's energy says what it rests on."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.profiling import energy as energy_room
from gft_edge.profiling import power
from gft_edge.profiling.energy import Energy, PowerMeter, idle_power_w
from gft_edge.profiling.power import (
    Hwmon,
    PowerSource,
    Rapl,
    Reading,
    Unavailable,
    find_power_source,
    total_name,
    total_of,
)
from gft_edge.profiling.tegrastats import parse_line
from tests.profiling.machines import tool, write

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


pytestmark = pytest.mark.usefixtures("no_tools")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of a tenth of a second is enough."""
    monkeypatch.setattr(energy_room, "MIN_WINDOW_S", 0.1)


def ina3221(sysfs: Path, number: int, **rails: tuple[int, int]) -> Path:
    """A chip with up to three rails, each of (millivolts, milliamperes)."""
    chip = write(sysfs / "class" / "hwmon" / f"hwmon{number}", {"name": "ina3221"})
    for channel, (label, (mv, ma)) in enumerate(rails.items(), start=1):
        values = {"in{}_label": label, "in{}_input": mv, "curr{}_input": ma}
        write(chip, {name.format(channel): value for name, value in values.items()})
    sums = {"in4_input": 9, "in7_label": "sum of shunt voltages", "in7_input": 9, "curr4_input": 9}
    return write(chip, sums)


def orin_nano(sysfs: Path) -> Path:
    return ina3221(sysfs, 1, VDD_IN=(5000, 1600), VDD_CPU_GPU_CV=(5000, 400), VDD_SOC=(5000, 300))


def rapl_zone(sysfs: Path, zone: str, name: str, energy_uj: int) -> Path:
    folder = sysfs / "class" / "powercap" / zone
    files = {"name": name, "energy_uj": energy_uj, "max_energy_range_uj": 1_000_000}
    return write(folder, files)


def found(sysfs: Path, nvidia_gpu: bool = False) -> PowerSource:
    source = find_power_source(sysfs, nvidia_gpu)
    assert not isinstance(source, Unavailable), source.why
    return source


def why_not(sysfs: Path, nvidia_gpu: bool = False) -> str:
    source = find_power_source(sysfs, nvidia_gpu)
    assert isinstance(source, Unavailable)
    assert "\n" not in source.why
    return source.why


def watts_now(source: PowerSource) -> Mapping[str, float]:
    stop = threading.Event()
    readings = source.readings(stop, 0.02)
    first = next(readings)
    stop.set()
    for _ in readings:
        pass
    assert first.failure is None
    return first.watts


def measured(source: PowerSource | Unavailable, sysfs: Path, seconds: float = 0.2) -> PowerMeter:
    with PowerMeter(source, interval_s=0.02, sysfs=sysfs) as meter:
        time.sleep(seconds)
    return meter


def alive(pids: list[str]) -> list[str]:
    """Without those that are killed and wait for init to bury them."""
    states = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return [
        pid
        for pid, stat in states.items()
        if stat.exists() and stat.read_text().rsplit(")")[-1].split()[0] != "Z"
    ]


@dataclass(frozen=True)
class Scripted:
    """A source that gives the readings it was told to, each after a pause in seconds."""

    script: tuple[tuple[float, Reading], ...]
    total: tuple[str, ...] = ("VIN",)
    name: str = "script"
    averaged: bool = False

    def readings(self, stop: threading.Event, interval_s: float) -> Iterator[Reading]:
        for pause_s, reading in self.script:
            time.sleep(pause_s)
            yield reading


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (AGX_ORIN, {
            "ram_used_mb": 4321, "ram_total_mb": 62801, "cpu_load_pct": (0, None),
            "cpu_mhz": (729, None), "gpu_load_pct": 0, "gpu_mhz": (0, 0),
            "temperatures_c": {"CPU": 44.562, "tj": 44.343},
            "rails_mw": {"VDD_GPU_SOC": 2340, "VDD_CPU_CV": 390, "VIN_SYS_5V0": 4025,
                         "VDDQ_VDD2_1V8AO": 301},
        }),
        # Without a timestamp.
        (ORIN_NANO, {
            "ram_used_mb": 3000, "cpu_load_pct": (10, 12), "gpu_load_pct": 99, "gpu_mhz": (918,),
            "temperatures_c": {"cpu": 52},
            "rails_mw": {"VDD_IN": 8942, "VDD_CPU_GPU_CV": 4210, "VDD_SOC": 2115},
        }),
        # Maxima of power and temperature are passed over.
        (AGX_ORIN_39, {
            "gpu_mhz": (1300, 1300), "temperatures_c": {"cpu": 52.968, "gpu": 47.625},
            "rails_mw": {"VDD_GPU_SOC": 5139, "VDD_CPU_CV": 3268, "VIN_SYS_5V0": 5500},
        }),
        # Clocks without a load, and negative power.
        (THOR, {
            "gpu_load_pct": None, "gpu_mhz": (314, 314, 314),
            "rails_mw": {"VDD_GPU": -392, "VDD_CPU_SOC_MSS": 5887, "VIN_SYS_5V0": 5635,
                         "VIN": 19780},
        }),
        # From before units.
        (NANO, {
            "ram_used_mb": 1766, "gpu_load_pct": 0, "gpu_mhz": (),
            "cpu_load_pct": (24, 15, None), "cpu_mhz": (1224, 1224, None),
            "rails_mw": {"POM_5V_IN": 2545, "POM_5V_GPU": 0, "POM_5V_CPU": 549},
        }),
    ],
)  # fmt: skip
def test_a_line_of_each_board_is_read(line: str, expected: dict[str, object]) -> None:
    stats = parse_line(line)
    assert {name: getattr(stats, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("gpu", "load_pct", "mhz"),
    [
        ("GR3D_FREQ off", None, ()),
        ("GR3D_FREQ 37%", 37, ()),
        ("GR3D_FREQ 37%@921", 37, (921,)),
        ("GR3D_FREQ @921", None, (921,)),
        ("GR3D_FREQ N/A%@[200,300]", None, (200, 300)),
        ("GR3D_FREQ EMC_FREQ 30%@40", None, ()),
    ],
)
def test_every_shape_of_the_gpu_word_is_read(
    gpu: str, load_pct: float | None, mhz: tuple[int, ...]
) -> None:
    stats = parse_line(f"RAM 1/2MB CPU [1%@2] {gpu} cpu@52C")
    assert stats is not None
    assert (stats.gpu_load_pct, stats.gpu_mhz) == (load_pct, mhz)


def test_unknown_words_are_passed_over() -> None:
    known = parse_line(ORIN_NANO)
    words = ORIN_NANO.replace(" CPU [", " QPU0 off FOO 3/4 BAR@[1,2] NEW(3x4) BAZ 5% CPU [")
    assert words != ORIN_NANO
    assert parse_line(words + " VDD_LATE 12W/13W ZONE@1.5F VDD_CUT 89") == known


def test_garbage_is_no_line() -> None:
    for line in ("", "\x00\ufffd\x1b[2J", "tegrastats: not found", "[[[@@%%C mW"):
        assert parse_line(line) is None


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
    assert why_not(tmp_path, nvidia_gpu=True) == head + "nvidia-smi: not on the PATH"
    result = measured(find_power_source(tmp_path), tmp_path).energy(images=10)
    assert (result.available, str(result.why).startswith(head)) == (False, True)
    assert (result.source, result.mean_power_w, result.gross_mj_per_image) == (None, None, None)


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
    readings = Rapl(("package-0",), {"package-0": zone}).readings(threading.Event(), 0.01)
    assert next(readings).watts == {"package-0": 0.0}
    write(zone, {"energy_uj": 100_000})
    assert next(readings).watts == {}


LOOP = "while :; do echo '{}'; sleep 0.02; done"


def test_tegrastats_is_read_where_hwmon_is_not_there(tmp_path: Path, no_tools: Path) -> None:
    tool(no_tools, "tegrastats", "[ $1 = --interval ] || exit 2\n" + LOOP.format(AGX_ORIN))
    source = found(tmp_path)
    assert source.name == "tegrastats"
    assert total_name(source.total) == "sum of VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert watts_now(source)["VIN_SYS_5V0"] == 4.025


def test_tegrastats_is_asked_where_hwmon_knows_no_total(tmp_path: Path, no_tools: Path) -> None:
    ina3221(tmp_path, 3, VDD_GPU=(12000, 100), VDD_CPU_SOC_MSS=(12000, 500), VIN_SYS_5V0=(5000, 9))
    tool(no_tools, "tegrastats", LOOP.format(THOR))
    assert (found(tmp_path).name, found(tmp_path).total) == ("tegrastats", ("VIN",))


def test_lines_that_say_nothing_are_waited_out(tmp_path: Path, no_tools: Path) -> None:
    tool(no_tools, "tegrastats", f"echo warming up; echo; echo 'QPU 3'; {LOOP.format(ORIN_NANO)}")
    assert found(tmp_path).total == ("VDD_IN",)


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


def test_tegrastats_that_dies_in_the_run_takes_the_energy_with_it(
    tmp_path: Path, no_tools: Path
) -> None:
    lines = f"for i in 1 2 3; do echo '{ORIN_NANO}'; sleep 0.02; done; echo 'i2c lost'; exit 1"
    tool(no_tools, "tegrastats", lines)
    result = measured(found(tmp_path), tmp_path, seconds=0.6).energy(images=10)
    assert not result.available
    assert result.why == ("tegrastats failed during the run: it ended; its last line: i2c lost")
    assert result.gross_mj_per_image is None


def test_a_tool_and_its_children_end_with_the_meter(tmp_path: Path, no_tools: Path) -> None:
    pids = tmp_path / "pids"
    loop = f"sleep 600 & echo $$ $! > {pids}; {LOOP.format(ORIN_NANO)}"
    tool(no_tools, "tegrastats", loop)
    measured(found(tmp_path), tmp_path, seconds=0.05)
    until = time.perf_counter() + 30
    while (left := alive(pids.read_text().split())) and time.perf_counter() < until:
        time.sleep(0.01)
    assert not left


def test_the_power_of_every_nvidia_card_is_summed(tmp_path: Path, no_tools: Path) -> None:
    rapl_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    once = "printf '0, 40.50\\n1, 9.50\\n'"
    loop = f"while :; do {once}; sleep 0.02; done"
    tool(no_tools, "nvidia-smi", f'case "$*" in *--loop-ms*) {loop};; *) {once};; esac')
    source = found(tmp_path, nvidia_gpu=True)
    assert found(tmp_path).name == "RAPL"
    result = measured(source, tmp_path).energy(images=1)
    assert (result.source, result.total) == ("nvidia-smi", "sum of GPU 0 + GPU 1")
    assert result.mean_power_w == pytest.approx(50)


def test_a_card_that_reads_no_power_is_named(tmp_path: Path, no_tools: Path) -> None:
    tool(no_tools, "nvidia-smi", "echo '0, [N/A]'")
    why = "nvidia-smi: it does not read the power of GPU 0"
    assert why_not(tmp_path, nvidia_gpu=True).endswith(why)


def test_energy_is_power_by_time_by_image_and_survives_json(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    meter = measured(found(tmp_path), tmp_path)
    result = meter.energy(images=100, idle_power_w=5.0)
    assert (result.available, result.why, result.net_note) == (True, None, None)
    assert (result.source, result.total, result.images) == ("hwmon", "VDD_IN", 100)
    assert result.mean_power_w == pytest.approx(8.0)
    assert result.window_s is not None
    assert result.gross_mj_per_image == pytest.approx(8.0 * result.window_s * 10)
    assert result.net_mj_per_image == pytest.approx(3.0 * result.window_s * 10)
    assert {rail.name: round(rail.mean_power_w, 6) for rail in result.rails} == {
        "VDD_CPU_GPU_CV": 2.0, "VDD_IN": 8.0, "VDD_SOC": 1.5,
    }  # fmt: skip
    # A net below nothing is said and not hidden.
    below = meter.energy(images=10, idle_power_w=9.0)
    assert below.net_mj_per_image is not None
    assert below.net_mj_per_image < 0
    assert "drew less at work (8.00 W) than idle (9.00 W)" in str(below.net_note)
    unknown = meter.energy(images=10)
    assert unknown.net_mj_per_image is None
    assert unknown.net_note == "the power of the idle machine was not measured"
    none = meter.energy(images=0)
    assert (none.available, none.why) == (False, "no image was predicted")
    for one in (result, measured(Unavailable("none here"), tmp_path).energy(images=3)):
        assert from_json(Energy, json.loads(json.dumps(to_json(one))), "energy") == one


def test_the_integral_is_the_trapezoids_and_holds_the_edges() -> None:
    points = [(1.0, 10.0), (2.0, 20.0), (4.0, 20.0)]
    assert energy_room.integral_j(points, (0.0, 5.0), averaged=False) == 10 + 15 + 40 + 20
    assert energy_room.integral_j(points, (0.0, 5.0), averaged=True) == 10 + 20 + 40 + 20


def test_a_counter_gives_its_joules_whatever_the_pace(tmp_path: Path) -> None:
    zone = rapl_zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with PowerMeter(found(tmp_path), interval_s=0.05, sysfs=tmp_path) as meter:
        for energy_uj in (100_000, 110_000, 600_000):
            time.sleep(0.07)
            write(zone, {"energy_uj": energy_uj})
        time.sleep(0.3)
    result = meter.energy(images=1)
    assert result.gross_mj_per_image == pytest.approx(600, rel=0.02)


def test_idle_power_needs_no_long_window(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    assert idle_power_w(found(tmp_path), seconds=0.05) == pytest.approx(8.0)
    assert idle_power_w(Unavailable("none here"), seconds=0) is None


def test_a_short_window_gives_no_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy_room, "MIN_WINDOW_S", 10.0)
    orin_nano(tmp_path)
    result = measured(found(tmp_path), tmp_path, seconds=0.1).energy(images=10)
    assert not result.available
    assert "10 s" in str(result.why)
    assert (result.mean_power_w, result.gross_mj_per_image, result.rails) == (None, None, ())


@pytest.mark.parametrize("lost", ["chip", "rail"])
def test_a_total_that_vanishes_in_the_run_is_said_and_a_part_leaves_the_total(
    lost: str, tmp_path: Path
) -> None:
    chip = orin_nano(tmp_path)
    with PowerMeter(found(tmp_path), interval_s=0.02, sysfs=tmp_path) as meter:
        time.sleep(0.1)
        if lost == "chip":
            shutil.rmtree(chip)
        else:
            (chip / "in3_input").unlink()
        time.sleep(0.1)
    result = meter.energy(images=10)
    if lost == "chip":
        assert result.why == "hwmon failed during the run: VDD_IN: No such file or directory"
        assert result.mean_power_w is meter.mean_power_w is None
    else:
        assert result.mean_power_w == pytest.approx(8.0)
        assert [round(r.mean_power_w, 6) for r in result.rails if r.name == "VDD_SOC"] == [1.5]


def test_a_reading_that_fails_once_is_bridged(tmp_path: Path) -> None:
    good, lost = Reading({"VIN": 4.0}), Reading({}, "VIN: Input/output error")
    source = Scripted(((0, good), (0.05, lost), (0.05, good), (0.05, good)))
    result = measured(source, tmp_path, seconds=0.2).energy(images=1)
    assert result.mean_power_w == pytest.approx(4.0)


def test_a_silence_in_the_run_is_not_bridged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy_room, "MAX_GAP_S", 0.25)
    good = Reading({"VIN": 4.0})
    source = Scripted(((0, good), (0.4, good)))
    result = measured(source, tmp_path, seconds=0.45).energy(images=1)
    assert "script said nothing for " in str(result.why)


def test_a_source_that_never_speaks_is_said(tmp_path: Path) -> None:
    result = measured(Scripted(()), tmp_path).energy(images=1)
    assert result.why == "script said nothing during the run"


def test_throttling_within_the_window_is_named_and_silence_is_no_calm(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    assert measured(found(tmp_path), tmp_path).energy(images=1).throttled is None
    hot = {"type": "gpu-throttle-alert", "cur_state": 0}
    alert = write(tmp_path / "class" / "thermal" / "cooling_device7", hot)
    assert measured(found(tmp_path), tmp_path).energy(images=1).throttled == ()
    write(alert, {"cur_state": 1})
    counter = {"name": "soctherm_oc", "oc3_event_cnt": 5}
    events = write(tmp_path / "class" / "hwmon" / "hwmon9", counter)
    with PowerMeter(found(tmp_path), interval_s=0.02, sysfs=tmp_path) as meter:
        time.sleep(0.1)
        write(alert, {"cur_state": 0})
        write(events, {"oc3_event_cnt": 8})
        time.sleep(0.05)
    assert meter.energy(images=1).throttled == ("gpu-throttle-alert", "over-current oc3: 3 events")


def test_a_meter_stopped_before_the_first_reading_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = PowerMeter(Hwmon(("VIN",), {"VIN": (tmp_path,)}), interval_s=600, sysfs=tmp_path)

    def ctrl_c(timeout: float) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(meter._first, "wait", ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        meter.__enter__()
    meter._thread.join(timeout=5)
    assert not meter._thread.is_alive()


def test_the_meter_ends_when_the_work_fails(tmp_path: Path) -> None:
    orin_nano(tmp_path)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), PowerMeter(found(tmp_path), sysfs=tmp_path):
        raise KeyboardInterrupt
    assert threading.active_count() == before
