"""What a machine says of itself is read where it says it, and two moments tell what disturbed a run."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.nvidia.nvml import GpuState
from gft_edge.profiling import conditions, machine
from gft_edge.profiling.conditions import (
    Conditions,
    likely_causes,
    other_load,
    read_conditions,
    stolen_load,
    throttle_alerts,
    throttle_counts,
)
from gft_edge.profiling.sysfs import listed, number, text
from tests.profiling.machines import tool
from tests.support.fake_nvml import fake_nvml
from tests.support.files import write
from tests.support.profiles import CONDITIONS

pytestmark = pytest.mark.usefixtures("no_tools")

GPU = GpuState("GPU 17000000.gpu", 918.0, 918.0, None, 0.0, ())
CALM = dataclasses.replace(CONDITIONS, cpu_mhz=(2000.0, 2000.0), gpus=(GPU,))


def later(seconds: float = 10.0, **changes: Any) -> Conditions:
    """Ten seconds after CALM, in which this process was busy for all ten."""
    after = dataclasses.replace(
        CALM, at_s=CALM.at_s + seconds, busy_cpu_s=1000.0 + seconds, own_cpu_s=5.0 + seconds
    )
    return dataclasses.replace(after, **changes)


def test_a_machine_that_says_nothing_is_all_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cpu_freq", "cpu_times", "getloadavg"):
        monkeypatch.setattr(psutil, name, lambda **_: raises(OSError("not on this system")))
    read = read_conditions(tmp_path)
    assert dataclasses.replace(read, at_s=0, own_cpu_s=0) == Conditions(
        at_s=0, cpu_mhz=(), cpu_max_mhz=(), governors=(), temperatures_c={}, gpus=(),
        power_mode=None, throttling=None, throttle_counts={}, load_1min=None, busy_cpu_s=None,
        stolen_cpu_s=None, own_cpu_s=0,
    )  # fmt: skip


def test_this_machine_is_read_and_survives_json() -> None:
    read = read_conditions()
    assert read.busy_cpu_s is not None
    assert 0 < read.own_cpu_s <= read.busy_cpu_s
    assert from_json(Conditions, json.loads(json.dumps(to_json(read))), "conditions") == read


def test_the_clocks_are_psutils_and_the_governors_those_of_cpufreq(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = tmp_path / "sys" / "devices" / "system" / "cpu"
    for core, governor in enumerate(("performance", "schedutil", "schedutil")):
        write(cores / f"cpu{core}" / "cpufreq", {"scaling_governor": governor})
    write(cores, {"cpufreq/scaling_governor": "none", "cpuidle/current_driver": "psci_idle"})
    clocks = [SimpleNamespace(current=c, max=m) for c, m in ((1000, 1510.4), (2596.122, 0.0))]
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: clocks)
    read = read_conditions(tmp_path)
    # Where cpufreq is not there psutil knows no limit.
    assert (read.cpu_mhz, read.cpu_max_mhz) == ((1000, 2596.122), (1510.4,))
    assert read.governors == ("performance", "schedutil")


def test_an_absent_sensor_is_no_temperature(tmp_path: Path) -> None:
    zones = write(tmp_path / "sys" / "class" / "thermal", {
        "thermal_zone0/type": "cpu-thermal", "thermal_zone0/temp": 51718,
        "thermal_zone1/type": "cv0-thermal", "thermal_zone1/temp": -256000,
        "thermal_zone2/type": "cold-store", "thermal_zone2/temp": -18500,
        "thermal_zone3/type": "x86_pkg_temp", "thermal_zone3/temp": 60000,
        "thermal_zone4/type": "x86_pkg_temp", "thermal_zone4/temp": 61000,
        "thermal_zone5/type": "cv1-thermal",
        "thermal_zone6/temp": 20000,
        "thermal_zone7/type": "broken", "thermal_zone7/temp": "n/a",
    })  # fmt: skip
    (zones / "thermal_zone5" / "temp").mkdir()
    amd = {"hwmon2/name": "k10temp", "hwmon2/temp1_input": 45125, "hwmon2/temp1_label": "Tctl"}
    write(tmp_path / "sys" / "class" / "hwmon", amd)
    assert read_conditions(tmp_path).temperatures_c == {
        "cpu-thermal": 51.718, "cold-store": -18.5, "x86_pkg_temp": 60.0,
        "x86_pkg_temp (thermal_zone4)": 61.0, "k10temp Tctl": 45.125,
    }  # fmt: skip


def test_the_gpu_of_a_jetson_is_read_and_its_video_engines_are_not(tmp_path: Path) -> None:
    write(tmp_path / "sys" / "class" / "devfreq", {
        "17000000.gpu/cur_freq": 612000000, "17000000.gpu/min_freq": 306000000,
        "17000000.gpu/max_freq": 918000000, "17000000.gpu/device/load": 437,
        "gpu-nvd-0/cur_freq": 1, "15340000.vic/cur_freq": 1,
    })  # fmt: skip
    state = GpuState("GPU 17000000.gpu", 612.0, 918.0, None, 43.7, None)
    assert read_conditions(tmp_path).gpus == (state,)


def test_a_gpu_under_its_locked_clock_is_throttled(tmp_path: Path) -> None:
    gpu = write(tmp_path / "sys" / "class" / "devfreq" / "gpu-gpc-0", {
        "cur_freq": 1575000000, "min_freq": 1575000000, "max_freq": 1575000000,
    })  # fmt: skip
    assert read_conditions(tmp_path).throttling == ()
    write(gpu, {"cur_freq": 1100000000})
    slow = "GPU gpu-gpc-0 1100 MHz, under its locked 1575 MHz"
    assert read_conditions(tmp_path).throttling == (slow,)


A2000 = {
    "name": "NVIDIA RTX A2000", "compute": (8, 6), "mhz": 1200, "max_mhz": 2100,
    "temperature_c": 71, "busy_pct": 98, "reasons": 0x21,
}  # fmt: skip


def test_nvidia_cards_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [A2000, {"name": "NVIDIA T4", "max_mhz": 1590, "temperature_c": 40, "reasons": 1}]
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(cards))
    read = read_conditions(tmp_path)
    assert read.gpus == (
        GpuState(
            "GPU 0 NVIDIA RTX A2000", 1200.0, 2100.0, 71.0, 98.0, ("software thermal slowdown",)
        ),
        GpuState("GPU 1 NVIDIA T4", None, 1590.0, 40.0, None, ()),
    )
    assert read.throttling == ("GPU 0 NVIDIA RTX A2000 software thermal slowdown",)


def test_thor_has_its_clocks_from_devfreq_beside_nvml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml([{"name": "NVIDIA Thor", "busy_pct": 12}]))
    write(tmp_path / "sys" / "class" / "devfreq", {"gpu-gpc-0/cur_freq": 1575000000})
    read = [(gpu.name, gpu.mhz, gpu.busy_pct) for gpu in read_conditions(tmp_path).gpus]
    assert read == [("GPU 0 NVIDIA Thor", None, 12.0), ("GPU gpu-gpc-0", 1575.0, None)]
    assert read_conditions(tmp_path).throttling is None


def test_a_machine_names_its_cards_and_their_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "driver", lambda: "570.86.10")
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml([A2000]))
    this = machine.this_machine()
    assert this.driver == "570.86.10"
    assert this.gpus == ("NVIDIA RTX A2000 (driver 570.86.10, compute 8.6)",)


def raises(error: Exception) -> None:
    raise error


def test_the_power_mode_is_what_nvpmodel_says(tmp_path: Path, no_tools: Path) -> None:
    script = "echo 'NVPM WARN: fan mode is not set!'; echo 'NV Power Mode: MAXN_SUPER'; echo 2"
    tool(no_tools, "nvpmodel", script)
    assert read_conditions(tmp_path).power_mode == "MAXN_SUPER (mode 2)"


def test_the_power_mode_is_in_nvpmodels_files_where_it_does_not_answer(
    tmp_path: Path, no_tools: Path
) -> None:
    tool(no_tools, "nvpmodel", "echo 'needs root' >&2; exit 1")
    write(tmp_path / "var" / "lib" / "nvpmodel", {"status": "pmode:0001 fmode:quiet"})
    assert read_conditions(tmp_path).power_mode == "mode 1"
    table = "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >"
    write(tmp_path / "etc", {"nvpmodel.conf": table})
    assert read_conditions(tmp_path).power_mode == "25W (mode 1)"


def test_only_throttle_devices_count_as_throttling(tmp_path: Path) -> None:
    thermal = write(tmp_path / "class" / "thermal", {
        "cooling_device0/type": "pwm-fan", "cooling_device0/cur_state": 3,
        "cooling_device1/type": "cpufreq-cpu0", "cooling_device1/cur_state": 18,
    })  # fmt: skip
    assert throttle_alerts(tmp_path) is None
    write(thermal, {"cooling_device2/type": "gpu-throttle-alert", "cooling_device2/cur_state": 0})
    assert throttle_alerts(tmp_path) == ()
    write(thermal, {"cooling_device2/cur_state": 1, "cooling_device3/type": "cpu-throttle-alert"})
    assert throttle_alerts(tmp_path) == ("gpu-throttle-alert",)


def test_throttle_events_are_counted(tmp_path: Path) -> None:
    cores = tmp_path / "devices" / "system" / "cpu"
    for core, count in enumerate((3, 4)):
        counts = {"core_throttle_count": count, "package_throttle_count": 6 + core}
        write(cores / f"cpu{core}" / "thermal_throttle", counts)
    chip = write(tmp_path / "class" / "hwmon" / "hwmon3", {"name": "soctherm_oc"})
    write(chip, {"oc1_event_cnt": 0, "oc3_event_cnt": 37, "oc3_throt_en": 1})
    assert throttle_counts(tmp_path) == {
        "CPU core too hot": 7, "CPU package too hot": 7,
        "over-current oc1": 0, "over-current oc3": 37,
    }  # fmt: skip


def test_cpu_seconds_leave_out_waiting_and_the_hypervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psutil's fields on Linux; guests are counted in user already."""
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest")
    times = dict(zip(names, (10.0, 20.0, 30.0, 4000.0, 500.0, 1.0, 2.0, 7.0, 10.0), strict=True))
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(**times))
    monkeypatch.setattr(psutil, "getloadavg", lambda: (1.25, 0.9, 0.5))
    read = read_conditions(tmp_path)
    assert (read.busy_cpu_s, read.stolen_cpu_s, read.load_1min) == (63.0, 7.0, 1.25)


def test_files_that_vanish_once_listed_are_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sysfs = write(tmp_path / "sys", {
        "class/thermal/thermal_zone0/type": "cpu", "class/thermal/thermal_zone0/temp": 1,
        "class/thermal/cooling_device0/type": "a-throttle-alert",
        "class/thermal/cooling_device0/cur_state": 1,
        "class/hwmon/hwmon0/name": "soctherm_oc", "class/hwmon/hwmon0/oc1_event_cnt": 1,
        "class/devfreq/17000000.gpu/cur_freq": 1,
        "devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance",
    })  # fmt: skip

    def listed_then_gone(folder: Path, pattern: str) -> list[Path]:
        found = listed(folder, pattern)
        shutil.rmtree(folder, ignore_errors=True)
        return found

    monkeypatch.setattr(conditions, "listed", listed_then_gone)
    read = read_conditions(tmp_path)
    assert not list(sysfs.rglob("thermal_zone0"))
    assert (read.governors, read.temperatures_c, read.throttling) == ((), {}, None)
    assert [gpu.mhz for gpu in read.gpus] == [None]


def test_what_a_file_says_is_read_or_is_none(tmp_path: Path) -> None:
    write(tmp_path, {"two": "32760 ma", "name": "\x00Orin\x00", "nan": "nan", "empty": ""})
    assert (number(tmp_path / "two"), text(tmp_path / "name")) == (32760.0, "Orin")
    for name in ("nan", "empty", "name", "absent", "."):
        assert number(tmp_path / name) is None
    assert (text(tmp_path), text(tmp_path / "empty")) == (None, None)
    assert listed(tmp_path / "two", "*") == []


def test_other_processes_are_what_is_left_of_the_busy_time() -> None:
    assert other_load(CALM, later(busy_cpu_s=1025.0)) == pytest.approx(1.5)
    assert other_load(CALM, later(busy_cpu_s=1025.0), own_cpu_s=20.0) == pytest.approx(0.5)
    assert other_load(CALM, later(busy_cpu_s=1009.9)) == 0.0
    assert stolen_load(CALM, later(stolen_cpu_s=14.0)) == pytest.approx(0.4)
    # What cannot be known is none.
    assert other_load(CALM, later(busy_cpu_s=None)) is None
    assert other_load(CALM, CALM) is None
    assert other_load(later(), CALM) is None
    assert stolen_load(CALM, later(stolen_cpu_s=None)) is None


def test_another_process_shows_in_the_load() -> None:
    before = read_conditions()
    work = "import time\nwhile time.process_time() < 0.5: pass"
    child = subprocess.Popen([sys.executable, "-S", "-c", work])
    child_s = os.wait4(child.pid, 0)[2]
    child.returncode = 0
    after = read_conditions()
    # Waited for, the child is this process' own; as somebody else's, it is theirs.
    own_s = after.own_cpu_s - before.own_cpu_s
    mine, theirs = other_load(before, after), other_load(before, after, own_s - child_s.ru_utime)
    assert mine is not None
    assert theirs is not None
    assert theirs - mine == pytest.approx(child_s.ru_utime / (after.at_s - before.at_s), rel=0.2)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"cpu_mhz": (1400.0, 1200.0)}, "the clock of the CPU went from 2000 to 1400 MHz"),
        (
            {"gpus": (dataclasses.replace(GPU, mhz=612.0),)},
            "the clock of the GPU 17000000.gpu went from 918 to 612 MHz",
        ),
        ({"throttling": ("gpu-throttle-alert",)}, "the machine was throttled: gpu-throttle-alert"),
        (
            {"throttle_counts": {"over-current oc3": 9, "over-current oc1": 2}},
            "the machine was throttled 5 times: over-current oc3",
        ),
        ({"temperatures_c": {"cpu-thermal": 61.0}}, "cpu-thermal warmed from 50 to 61 °C"),
        ({"temperatures_c": {"tj-thermal": 97.0}}, "tj-thermal is hot: 97 °C"),
        ({"busy_cpu_s": 1027.0}, "other processes used 1.7 cores"),
        ({"stolen_cpu_s": 12.0}, "the hypervisor gave 0.20 cores to other machines"),
        (
            {"governors": ("schedutil",)},
            "the schedutil governor lets the clocks move: performance holds them",
        ),
    ],
)
def test_each_cause_is_one_line(changes: dict[str, Any], cause: str) -> None:
    assert [*likely_causes(CALM, later(**changes))] == [cause]


def test_what_is_within_the_usual_is_no_cause() -> None:
    usual: tuple[dict[str, Any], ...] = (
        {},
        {"cpu_mhz": (1950.0, 400.0)},
        {"cpu_mhz": (), "gpus": (), "temperatures_c": {}, "throttling": None},
        {"temperatures_c": {"cpu-thermal": 59.0, "PMIC-Die": 100.0}},
        {"busy_cpu_s": 1011.5},
        {"throttle_counts": {"over-current oc3": 1}},
    )
    for changes in usual:
        assert [*likely_causes(CALM, later(**changes))] == []


def test_throttling_before_the_run_is_a_cause_too() -> None:
    before = dataclasses.replace(CALM, throttling=("cpu-throttle-alert",))
    assert [*likely_causes(before, later())] == ["the machine was throttled: cpu-throttle-alert"]
