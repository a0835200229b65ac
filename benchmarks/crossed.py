"""The mean over seeds and images, with an interval that counts both as drawn at random."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import UsageError
from gft_edge.studies.keep_counts import estimate_by_t
from gft_edge.studies.variants import Estimate, Rests


def crossed_estimate(values: npt.NDArray[Any]) -> Estimate:
    """values (S,I), one of every seed s and image i -> the mean they have in the long run.

    Model: x[s,i] = mean + seed[s] + image[i] + rest[s,i], all three random. With the mean squares MS of
    the two-way analysis of variance without replication

        Var(mean) = seed variance / S + image variance / I + rest variance / (S I)
                  = (MS_seed + MS_image - MS_rest) / (S I)

    and never less than the larger of MS_seed and MS_image alone gives. Its degrees of freedom are
    Satterthwaite's: the square of the sum by the sum of MS^2 / df, those of the larger one where that
    stands alone. Images without seeds (McNemar's test, a bootstrap) would answer only whether these two
    weight files differ, not whether the two ways of training do.

    Simulated with normal effects, the 95 % intervals of three and five seeds cover 92 to 97 %; those of
    two seeds as little as 88 % where the seeds differ more than the images explain. The number of
    standard errors alone misleads: with three seeds it is above 3 without any difference in up to 9.7 %
    of these cases (9.5 % by t of two degrees of freedom), and so the p-value stands beside it.

    H. H. Clark, The language-as-fixed-effect fallacy, J. Verbal Learning and Verbal Behavior 12 (1973),
    whose F' has this denominator; F. E. Satterthwaite, Biometrics Bulletin 2 (1946). Raises UsageError
    for fewer than two seeds or images.
    """
    x = np.asarray(values, dtype=np.float64)
    seeds, images = x.shape
    if seeds < 2:
        raise UsageError(
            "one seed has no interval: how much the result hangs on the seed cannot be told from it, "
            "and the images alone would overstate what is known; give --seeds 3"
        )
    if images < 2:
        raise UsageError("one image has no interval: evaluate on a --split with more")
    mean = float(x.mean())
    by_seed, by_image = x.mean(axis=1), x.mean(axis=0)
    rest = x - by_seed[:, None] - by_image[None, :] + mean
    ms_seed, df_seed = images * float(np.var(by_seed, ddof=1)), seeds - 1
    ms_image, df_image = seeds * float(np.var(by_image, ddof=1)), images - 1
    df_rest = df_seed * df_image
    ms_rest = float((rest**2).sum()) / df_rest
    total, df = ms_seed + ms_image - ms_rest, 0.0
    rests_on: Rests = "seeds and images"
    if total > max(ms_seed, ms_image):
        df = total**2 / (ms_seed**2 / df_seed + ms_image**2 / df_image + ms_rest**2 / df_rest)
    else:
        alone: tuple[tuple[float, int, Rests], ...] = (
            (ms_seed, df_seed, "seeds"),
            (ms_image, df_image, "images"),
        )
        total, df, rests_on = max(alone, key=lambda one: (one[0], -one[1]))
    return estimate_by_t(mean, float(np.sqrt(total / (seeds * images))), df, rests_on)
