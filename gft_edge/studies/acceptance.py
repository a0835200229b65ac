"""Whether a bundle's probabilities tell its own photographs from those of none of its classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.images import DataSource
from gft_edge.bundle.specs import Progress, counter
from gft_edge.datasets import Photographs, Split, reporting_split
from gft_edge.datasets.photographs import photographs_split, read_photographs
from gft_edge.errors import DataError
from gft_edge.fidelity.confidence import Acceptance, acceptance, kept_threshold, probabilities
from gft_edge.fidelity.verify import split_outputs
from gft_edge.runtime.classifier import Classifier


def unknown_photographs(folder: Path, labels: tuple[str, ...]) -> Photographs:
    """List the photographs below a folder, of a split where it has some, which have none of the classes.

    Raises DataError for a folder without an image, and for one with classes of the network's.
    """
    source = DataSource(folder)
    found = read_photographs(source, photographs_split(source, None, reporting_split), labels)
    own = sorted({labels[target] for target in found.targets if target is not None})
    if own:
        raise DataError(
            f"--unknown {folder} holds {found.labelled:,} images of the network's own classes "
            f"({', '.join(own[:3])}{', ...' if len(own) > 3 else ''}): give photographs of none of them"
        )
    return found


def judge_acceptance(
    classifier: Classifier,
    logits: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64],
    unknown: Photographs,
    progress: Progress,
) -> Acceptance:
    """Compare the logits (images,classes) of photographs with known `targets` with unknown ones'."""
    text = f"classify {unknown.name}, of none of the classes"
    outputs, _ = split_outputs(classifier, unknown, counter(progress, text, len(unknown.paths)))
    right = logits.argmax(axis=1) == targets
    return acceptance(
        _confidence(classifier, logits), right, _confidence(classifier, outputs.logits)
    )


def least_probability(
    classifier: Classifier, val: Split, unknown: Photographs | None, progress: Progress
) -> float:
    """The least probability for a label that the photographs of val propose, and unknown ones.

    Without unknown ones the one that keeps confidence.KEPT of val; rounded down to four decimals.
    """
    advance = counter(progress, f"classify {val.name}", len(val.paths))
    outputs, _ = split_outputs(classifier, val, advance)
    targets = np.asarray(val.targets, dtype=np.int64)
    if unknown is None:
        found = kept_threshold(_confidence(classifier, outputs.logits))
    else:
        judged = judge_acceptance(classifier, outputs.logits, targets, unknown, progress)
        found = judged.proposed.min_probability
    return float(np.floor(found * 1e4) / 1e4)


def _confidence(classifier: Classifier, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    temperature = classifier.bundle.manifest.confidence.temperature
    return np.asarray(probabilities(logits, temperature).max(axis=1))
