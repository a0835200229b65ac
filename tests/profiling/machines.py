"""Files and tools of machines that are not here, for what reads sysfs, procfs and a PATH."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path


def write(folder: Path, files: Mapping[str, object]) -> Path:
    """Write a line into each file, by its path below `folder`."""
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{value}\n")
    return folder


def tool(folder: Path, name: str, script: str) -> None:
    """Install a shell script as a tool."""
    path = folder / name
    path.write_text(f"#!{shutil.which('sh', path='/bin:/usr/bin')}\nPATH=/bin:/usr/bin\n{script}\n")
    path.chmod(0o755)
