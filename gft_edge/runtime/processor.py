"""What this machine's processor makes of INT8."""

from __future__ import annotations

import platform
from pathlib import Path

from gft_edge.bundle.manifest import Manifest
from gft_edge.errors import UsageError

CPUINFO = Path("/proc/cpuinfo")

# Each adds products of 8-bit integers in 32 bits, by the names Linux gives them.
X86_DOT_PRODUCTS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})


def cpuinfo() -> str:
    """What the kernel tells of each core; nothing where it is another system's."""
    try:
        return CPUINFO.read_text(errors="replace")
    except OSError:
        return ""


def saturates_int8() -> bool:
    """Whether products of 8-bit integers are added in pairs in 16 bits here, which saturate.

    True of x86 without VNNI and AMX, as Linux tells them; False where that is not known.
    https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    lines = cpuinfo().splitlines()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), None)
    return flags is not None and not X86_DOT_PRODUCTS & set(flags.split())


def refuse_saturation(bundle: Path, manifest: Manifest) -> None:
    """Raise UsageError for a bundle whose INT8 weights take their whole range, which saturates here."""
    quantization = manifest.quantization
    if quantization is None or manifest.target == "tensorrt":
        return
    if quantization.weights_range == "full" and saturates_int8():
        raise UsageError(
            f"{bundle} is INT8 with the whole range of its weights, and this CPU has no VNNI: it would "
            "answer something else; export it with --weights-range half"
        )
