"""Whether loading an engine's library ends the process here, tried in another one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

# -c puts the working folder first on the path, and a user's numpy.py would be imported from it.
_TRY = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]
sys.path.append(sys.argv[1])
from gft_edge.runtime.backends import backend_for
engine = backend_for(sys.argv[2])
engine.missing() or engine.version()
sys.exit(5)
"""
_LOADED = 5  # An exit code of its own: a library may end the process with 0.

_SLOWEST_S = 120

_REMEDIES = {
    "SIGILL": "its build has instructions that this processor lacks: install another version of it, or "
    "one that is built for this processor",
    "SIGSEGV": "bring every core online that /sys/devices/system/cpu/offline lists, or install another "
    "version of it",
}


def why_fatal(target: str) -> str | None:
    """What ends a process that loads the engine's library, and what to do; None where nothing does."""
    command = [sys.executable, "-c", _TRY, str(Path(__file__).parent.parent.parent), target]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SLOWEST_S
        )
    except subprocess.TimeoutExpired:
        return f"its library has not loaded after {_SLOWEST_S} s: install it again"
    if done.returncode == _LOADED:
        return None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        remedy = _REMEDIES.get(name, "install another version of it")
        return f"loading its library ends the process ({name}): {remedy}"
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return f"loading its library fails ({last}): install it again"
