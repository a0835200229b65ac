"""Programs that some machines lack, and that CI has to have."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacking(reason: str) -> NoReturn:
    """Skip a test for that reason, or fail it where GFT_EDGE_TOOLS=required, as .ci/run says."""
    if os.environ.get("GFT_EDGE_TOOLS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)
