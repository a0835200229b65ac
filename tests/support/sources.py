"""The project as a clone has it, but for what no wheel holds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.tools import lacking

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "gft_edge", "export", "calibration")


def copy_sources(folder: Path) -> Path:
    """Copy what a wheel is built from into `folder`, and return it."""
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=unwanted)
        else:
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def built_wheel(folder: Path) -> Path:
    """Build the wheel in the empty `folder`, with the setuptools that pip fetches for it."""
    (folder / "sources").mkdir()
    sources = copy_sources(folder / "sources")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--no-deps", "--wheel-dir", folder, sources],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        lacking(f"no wheel can be built here, for which pip fetches setuptools: {last_line(done)}")
    (wheel,) = folder.glob("gft_edge-*-none-any.whl")
    return wheel


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the line in which pip or apt says why it failed, or the last one of another program."""
    told = done.stderr.splitlines()
    errors = [line for line in told if line.startswith(("E: ", "ERROR"))]
    return (errors or told or [f"exit code {done.returncode}"])[-1]
