"""What the system files of an NVIDIA machine say: Jetson Linux, the driver, and the memory left."""

from __future__ import annotations

import re
from pathlib import Path


def l4t() -> str | None:
    """Jetson Linux, R36.4.0, or None on another machine."""
    release = _first_match("/etc/nv_tegra_release", r"R(\d+) \(release\)")
    revision = _first_match("/etc/nv_tegra_release", r"REVISION: ([\d.]+)")
    return f"R{release}.{revision}" if release and revision else None


def driver() -> str | None:
    """The version of the kernel's NVIDIA module, 540.4.0, or None without one."""
    return _first_match("/proc/driver/nvidia/version", r"\s(\d+\.\d+(?:\.\d+)?)\s")


def available_bytes() -> int | None:
    """The memory that a program can have without swapping, or None where the system does not say."""
    kib = _first_match("/proc/meminfo", r"MemAvailable:\s+(\d+) kB")
    return int(kib) * 1024 if kib else None


def _first_match(path: str, pattern: str) -> str | None:
    try:
        found = re.search(pattern, Path(path).read_text(errors="replace"))
    except OSError:
        return None
    return found.group(1) if found else None
