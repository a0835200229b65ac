"""Python in a process that file permissions hold for: those of root are bound by none."""

from __future__ import annotations

import os
import subprocess
import sys

# The same user, without the capabilities that open what permissions close.
_WITHOUT = ("setpriv", "--inh-caps=-all", "--bounding-set=-all") if os.geteuid() == 0 else ()


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run this Python with arguments and return what it printed and its exit code."""
    command = [*_WITHOUT, sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
