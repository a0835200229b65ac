"""The temperature of a run fitted on its logits, and kept in the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.store import sha256_of
from gft_edge.fidelity.confidence import calibration_error, fit_temperature
from gft_edge.model.checkpoint import WEIGHTS_FILE
from gft_edge.model.temperature import FittedTemperature, write_temperature


def fit_run_temperature(
    run: Path, logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], split: str
) -> FittedTemperature:
    """Fit the temperature of a run's weights on their logits (images,classes), and write it there."""
    found = calibration_error(logits, targets, fit_temperature(logits, targets))
    weights_sha256 = sha256_of(run / WEIGHTS_FILE)
    fitted = FittedTemperature(
        found.temperature, split, len(targets), found.ece, found.ece_uncalibrated, weights_sha256
    )
    write_temperature(run, fitted)
    return fitted
