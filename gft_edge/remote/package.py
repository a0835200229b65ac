"""What the device needs of gft-edge: this package zipped, its requirements, and a pip to install them."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from gft_edge.errors import RemoteError, UsageError

# Every zip of the same files is the same file.
_DATE = (1980, 1, 1, 0, 0, 0)


def package_zip() -> bytes:
    """This gft-edge, from a checkout or as it is installed: what its wheel holds. It is pure Python."""
    folder = Path(__file__).parents[1]
    info = f"gft_edge-{metadata.version('gft-edge')}.dist-info"
    found = metadata.distribution("gft-edge")
    # A checkout that was installed as editable has the second, in its own folder.
    told = found.read_text("METADATA") or found.read_text("PKG-INFO") or ""
    return _zip([(f"{info}/METADATA", told.encode()), *_files(folder, "gft_edge")])


def pip_zip() -> bytes:
    """The pip of this Python, which runs from a zip file as from its wheel. Raises UsageError."""
    try:
        import pip
    except ImportError as error:
        raise UsageError(
            f"pip is sent along, and this Python has none: {sys.executable} -m ensurepip"
        ) from error
    return _zip(_files(Path(pip.__file__).parent, "pip"))


def requirements(extras: Iterable[str], facts: Mapping[str, Any]) -> list[str]:
    """What gft-edge requires with these extras on the device of these facts, as pip reads it."""
    found = []
    for line in metadata.requires("gft-edge") or ():
        text, _, marker = (part.strip() for part in line.partition(";"))
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if extra is None or extra[1] in extras:
            found.append(text)
    if (facts["numpy"] or "").startswith("1."):
        # An OpenCV that was built against NumPy 1, as apt's is, does not import under 2.
        found = [f"{text},<2" if re.match(r"numpy\b", text) else text for text in found]
    return found


def wheel_options(facts: Mapping[str, Any]) -> list[str]:
    """The options by which pip, here, chooses wheels for the device of these facts, and no sources."""
    major, minor, _ = facts["python"]
    glibc = int((facts["glibc"] or "2.17").split(".")[1])
    words = ["--python-version", f"{major}.{minor}", "--only-binary=:all:"]
    for number in range(glibc, 4, -1):
        words += ["--platform", f"manylinux_2_{number}_{facts['machine']}"]
    return [*words, "--platform", f"manylinux2014_{facts['machine']}"]


def wheels_for(wanted: Iterable[str], facts: Mapping[str, Any], folder: Path) -> None:
    """Fetch the wheels of requirements for a device that reaches no package index. Raises RemoteError."""
    words = [*wheel_options(facts), "--dest", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *words, *wanted],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
            "no reason"
        ]
        raise RemoteError("here", f"pip cannot fetch the device's wheels: {told[-1]}")


def _files(folder: Path, name: str) -> Iterator[tuple[str, bytes]]:
    """The files of a package, links followed: in a checkout two of its folders are links."""
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(each for each in folders if each != "__pycache__")
        for file in sorted(files):
            path = Path(place, file)
            if path.suffix not in (".pyc", ".so"):
                yield f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes()


def _zip(files: Iterable[tuple[str, bytes]]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name, _DATE), data, zipfile.ZIP_DEFLATED)
    return content.getvalue()
