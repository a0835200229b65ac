"""A line of tegrastats is read, whichever Jetson and release printed it."""

from __future__ import annotations

import pytest

from gft_edge.profiling.tegrastats import parse_line
from tests.profiling.machines import AGX_ORIN, AGX_ORIN_39, NANO, ORIN_NANO, THOR


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
