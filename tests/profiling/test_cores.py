"""The cores of Arm boards have names, whichever numbers the kernel gives."""

from __future__ import annotations

import pytest

from gft_edge.profiling import machine
from gft_edge.profiling.cores import cores_by_name

# Of a Raspberry Pi 4, its last lines left out.
RASPBERRY_PI_4 = """\
processor	: 0
BogoMIPS	: 108.00
Features	: fp asimd evtstrm crc32 cpuid
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x0
CPU part	: 0xd08
CPU revision	: 3
"""
# Of an Orange Pi 5 (RK3588): four small cores, then four large ones.
CORE = """\
processor	: {}
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp
CPU implementer	: 0x41
CPU part	: {}

"""
RK3588 = "".join(CORE.format(n, "0xd05" if n < 4 else "0xd0b") for n in range(8))
# Of a Graviton 3.
NEOVERSE = """\
processor	: 0
Features	: fp asimd fphp asimdhp asimddp sve i8mm bf16 svei8mm svebf16
CPU implementer	: 0x41
CPU part	: 0xd40
"""


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (RASPBERRY_PI_4, "Cortex-A72"),
        (RK3588, "4 x Cortex-A55, 4 x Cortex-A76"),
        (NEOVERSE, "Neoverse-V1"),
        (RASPBERRY_PI_4.replace("0xd08", "0xd42"), "Cortex-A78AE"),
        (RASPBERRY_PI_4.replace("0x41", "0x4e").replace("0xd08", "0x004"), "Carmel"),
        (RASPBERRY_PI_4.replace("0xd08", "0xfff"), "implementer 0x41 part 0xfff"),
        (RASPBERRY_PI_4.replace("0xd08", "unknown"), None),
        ("processor : 0\nmodel name : Intel(R) Xeon(R)\nflags : fpu avx2\n", None),
        ("", None),
    ],
)
def test_a_core_is_named_by_its_implementer_and_part(cpuinfo: str, expected: str | None) -> None:
    assert cores_by_name(cpuinfo) == expected


@pytest.mark.parametrize(
    ("cpuinfo", "cpu", "sets"),
    [
        (RASPBERRY_PI_4, "Cortex-A72", ("asimd",)),
        (RK3588, "4 x Cortex-A55, 4 x Cortex-A76", ("asimd", "asimddp", "fphp", "asimdhp")),
        (NEOVERSE, "Neoverse-V1", ("asimd", "asimddp", "fphp", "asimdhp", "i8mm", "bf16", "sve",
                                   "svei8mm", "svebf16")),
    ],
)  # fmt: skip
def test_the_machine_says_what_decides_the_worth_of_int8_and_fp16(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: str, cpu: str, sets: tuple[str, ...]
) -> None:
    monkeypatch.setattr(machine, "cpuinfo", lambda: cpuinfo)
    found = machine.this_machine()
    assert (found.cpu, found.instruction_sets) == (cpu, sets)
