"""Median time of calls in this process, in turn so that a drift of the machine meets them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from gft_edge.runtime.backends import warmed_up


def interleaved_medians_ms(
    calls: Mapping[str, Callable[[], object]], rounds: int = 50
) -> dict[str, float]:
    """Median wall time of each call once warm, in milliseconds: A B C A B C ..., `rounds` times."""
    for call in calls.values():
        warmed_up(call)
    samples_ms: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            samples_ms[name].append((time.perf_counter() - started) * 1000)
    return {name: statistics.median(values) for name, values in samples_ms.items()}
