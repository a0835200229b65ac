"""Small real inputs that several rooms' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def grocery() -> Path:
    """Real photographs, where the machine has them."""
    folder = SHARED / "data" / "grocery"
    if not folder.is_dir():
        pytest.skip("the grocery photographs are not on this machine")
    return folder
