"""A machine without tools of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder that is all of the PATH; neither tools nor cards of this machine are met."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return folder
