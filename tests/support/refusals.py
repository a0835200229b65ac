"""How a library call refuses: one exception of a known type, one line, the thing that it names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gft_edge.errors import GftEdgeError


def refusal_of(kind: type[GftEdgeError], work: Callable[[], object], *words: str) -> str:
    """Return the one line of the `kind` of error that `work` raises; `words` stand in it."""
    with pytest.raises(kind) as caught:
        work()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line
    return line
