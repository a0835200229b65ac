"""An image's energy says what it rests on, and what is not known is not said."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.profiling import energy as energy_room
from gft_edge.profiling.energy import Energy, PowerMeter, idle_power_w
from gft_edge.profiling.power import PowerSource, Reading
from tests.profiling.machines import LOOP, ORIN_NANO, found, orin_nano, rapl_zone, tool
from tests.support.fake_nvml import fake_nvml
from tests.support.files import write

pytestmark = pytest.mark.usefixtures("no_tools")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of a tenth of a second is enough."""
    monkeypatch.setattr(energy_room, "MIN_WINDOW_S", 0.1)


def measured(source: PowerSource, sysfs: Path, seconds: float = 0.2) -> PowerMeter:
    with PowerMeter(source, interval_s=0.02, sysfs=sysfs) as meter:
        time.sleep(seconds)
    return meter


def alive(pids: list[str]) -> list[str]:
    """Leave out those that are killed and wait for init to bury them."""
    states = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return [
        pid
        for pid, stat in states.items()
        if stat.exists() and stat.read_text().rsplit(")")[-1].split()[0] != "Z"
    ]


def scripted(*script: tuple[float, Reading]) -> PowerSource:
    """Return a source of these readings, each after a pause in seconds."""

    def readings(stop: threading.Event, interval_s: float) -> Iterator[Reading]:
        for pause_s, reading in script:
            time.sleep(pause_s)
            yield reading

    return PowerSource("script", ("VIN",), readings)


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


def test_the_power_of_every_nvidia_card_is_summed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rapl_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    cards = [{"name": "a", "milliwatts": 40500}, {"name": "b", "milliwatts": 9500}]
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(cards))
    source = found(tmp_path, nvidia_gpu=True)
    assert found(tmp_path).name == "RAPL"
    result = measured(source, tmp_path).energy(images=1)
    assert (result.source, result.total) == ("NVML", "sum of GPU 0 + GPU 1")
    assert result.mean_power_w == pytest.approx(50)


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
    assert (none.mean_power_w, none.gross_mj_per_image) == (None, None)
    for one in (result, none):
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
    source = scripted((0, good), (0.05, lost), (0.05, good), (0.05, good))
    result = measured(source, tmp_path, seconds=0.2).energy(images=1)
    assert result.mean_power_w == pytest.approx(4.0)


def test_a_silence_in_the_run_is_not_bridged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy_room, "MAX_GAP_S", 0.25)
    good = Reading({"VIN": 4.0})
    source = scripted((0, good), (0.4, good))
    result = measured(source, tmp_path, seconds=0.45).energy(images=1)
    assert "script said nothing for " in str(result.why)


def test_a_source_that_never_speaks_is_said(tmp_path: Path) -> None:
    result = measured(scripted(), tmp_path).energy(images=1)
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
    orin_nano(tmp_path)
    meter = PowerMeter(found(tmp_path), interval_s=600, sysfs=tmp_path)

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
