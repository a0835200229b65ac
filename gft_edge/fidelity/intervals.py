"""95 % intervals: what a sample of images can tell of all others. NumPy alone, for devices."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

HALF_ALPHA = 0.025
# The normal quantile; with the 64 images and more of a verdict Student's is 2.00 or less.
Z = 1.96


def mean_interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of the mean, by the normal approximation; of one value that value."""
    if len(values) < 2:
        return float(values.mean()), float(values.mean())
    mean, reach = float(values.mean()), Z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean - reach, mean + reach


def proportion_interval(hits: int, total: int) -> tuple[float, float]:
    """Return the exact interval of a proportion (Clopper and Pearson, 1934)."""
    low = 0.0 if hits == 0 else _root(lambda p: _tail(hits, total, p) - HALF_ALPHA)
    high = 1.0 if hits == total else _root(lambda p: HALF_ALPHA - (1 - _tail(hits + 1, total, p)))
    return low, high


def paired_drop_interval(
    before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]
) -> tuple[float, float]:
    """Return the interval of mean(before) - mean(after) on the same images.

    One image lost and one won are added, which keeps the interval honest where few images or none differ
    (Bonett and Price, Journal of Educational and Behavioral Statistics 37, 2012).
    """
    lost, won = float((before & ~after).sum()) + 1, float((after & ~before).sum()) + 1
    images = len(before) + 2
    drop = (lost - won) / images
    reach = Z * math.sqrt((lost + won) - (lost - won) ** 2 / images) / images
    return drop - reach, drop + reach


def _tail(least: int, total: int, p: float) -> float:
    """P(X >= least) of a binomial."""
    if p <= 0 or p >= 1:
        return float(p >= 1 or least <= 0)
    logs = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        + k * math.log(p) + (total - k) * math.log1p(-p)
        for k in range(max(least, 0), total + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(map(math.exp, logs)))


def _root(rising: Callable[[float], float]) -> float:
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2
