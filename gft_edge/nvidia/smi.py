"""What nvidia-smi says of each GPU."""

from __future__ import annotations

import shutil
import subprocess


def query(*fields: str) -> tuple[tuple[str, ...], ...]:
    """One row a GPU, one text a field; nothing where nvidia-smi is absent or knows a field not."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()
    rows = (tuple(line.split(", ")) for line in done.stdout.splitlines() if line.strip())
    return tuple(row for row in rows if len(row) == len(fields))
