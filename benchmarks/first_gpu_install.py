"""How a machine with an NVIDIA GPU gets what the first minutes need, from a folder and without internet."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

BASE = "the base"


def make_environment(folder: Path) -> None:
    """Make an environment that sees this Python's packages, unless it is there.

    Without pip, which some systems keep apart: a wheel of it is carried. Not by system_site_packages:
    where this Python is itself an environment, its packages are not the system's.
    """
    if (folder / "bin" / "python").exists():
        return
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    (site,) = (folder / "lib").glob("python*/site-packages")
    seen = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "seen.pth").write_text("\n".join(seen))


def installations(python: str, wheels: Path, index: bool) -> dict[str, list[str]]:
    """pip's commands by what they install. What `python` has in a version that does is kept."""
    (pip,) = wheels.glob("pip-*.whl")
    (ours,) = wheels.glob("gft_edge-*.whl")
    command = [
        python, f"{pip}/pip", "install", "--quiet", "--disable-pip-version-check",
        f"--find-links={wheels}", *([] if index else ["--no-index"]),
    ]  # fmt: skip
    found = {
        BASE: [*command, str(ours), "pytest>=8.3", "nvidia-ml-py"],
        # Also where one of this version was installed before.
        "gft-edge": [*command, "--force-reinstall", "--no-deps", str(ours)],
    }
    if any(wheels.glob("timm-*.whl")):
        found["timm"] = [*command, "--no-deps", *bounded(ours, "timm", "safetensors", "accelerate")]
    if any(wheels.glob("onnxruntime-*.whl")):
        names = ("onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime")
        found["ONNX"] = [*command, "--no-deps", *bounded(ours, *names), "protobuf", "flatbuffers"]
    if index:
        found["TensorRT"] = [*command, f"{ours}[tensorrt]"]
    elif any(wheels.glob("tensorrt_rtx-*.whl")):
        found["TensorRT-RTX"] = [*command, "tensorrt-rtx"]
    return found


def bounded(wheel: Path, *names: str) -> list[str]:
    """The requirements of a wheel's extras that are of these names."""
    with zipfile.ZipFile(wheel) as content:
        (place,) = (name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        lines = content.read(place).decode().splitlines()
    stated = [line.partition(": ")[2].partition(";")[0].strip() for line in lines
              if line.startswith("Requires-Dist: ")]  # fmt: skip
    return sorted(
        {text for text in stated for name in names if text.startswith((f"{name}<", f"{name}>"))}
    )


def gpu() -> str | None:
    """The first GPU as nvidia-smi names it, or what the driver says; None where no driver answers."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            return None
    except (OSError, AttributeError):
        return None
    asked = "name,compute_cap,driver_version,memory.total"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"],
            capture_output=True, text=True, check=True, timeout=15,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "an NVIDIA GPU"
    return done.stdout.splitlines()[0]
