"""Whether a bundle's probabilities tell its own photographs from those of none of its classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.images import DataSource
from gft_edge.bundle.specs import Progress, Say, counter
from gft_edge.datasets import Photographs, Split, reporting_split
from gft_edge.datasets.photographs import photographs_split, read_photographs
from gft_edge.errors import DataError, FailedError
from gft_edge.fidelity.confidence import (
    BY_CHANCE,
    Acceptance,
    acceptance,
    kept_threshold,
    probabilities,
)
from gft_edge.fidelity.verify import split_outputs
from gft_edge.runtime.classifier import Classifier


def unknown_photographs(
    folder: Path,
    labels: tuple[str, ...],
    say: Say,
    choose: Callable[[DataSource], str] = reporting_split,
) -> Photographs:
    """List the photographs below a folder, of a split where it has some, which have none of the classes.

    Which they are is said, with what else there is to remark. Raises DataError for a folder without an
    image, and for one with classes of the network's.
    """
    source = DataSource(folder)
    found = read_photographs(source, photographs_split(source, None, choose), labels)
    own = sorted({labels[target] for target in found.targets if target is not None})
    if own:
        raise DataError(
            f"--unknown {folder} holds {found.labelled:,} images of the network's own classes "
            f"({', '.join(own[:3])}{', ...' if len(own) > 3 else ''}): give photographs of none of them"
        )
    for remark in found.remarks:
        say(remark)
    say(f"none of the classes: the {len(found.paths):,} images of {found.name} in {folder}")
    return found


def unknown_confidence(
    classifier: Classifier, unknown: Photographs, progress: Progress
) -> npt.NDArray[np.float64]:
    """The largest probability of each photograph, (images,). Raises ImageError for one that is none."""
    text = f"classify {unknown.name}, of none of the classes"
    outputs, _ = split_outputs(classifier, unknown, counter(progress, text, len(unknown.paths)))
    return _confidence(classifier, outputs.logits)


def judge_acceptance(
    classifier: Classifier,
    logits: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64],
    unknown: npt.NDArray[np.float64],
) -> Acceptance:
    """Compare the logits (images,classes) of photographs of known `targets` with `unknown_confidence`."""
    right = logits.argmax(axis=1) == targets
    return acceptance(_confidence(classifier, logits), right, unknown)


def least_probability(
    classifier: Classifier, val: Split, unknown: Photographs | None, progress: Progress
) -> float:
    """The least probability for a label that the photographs of val propose, and unknown ones.

    Without unknown ones the one that keeps confidence.KEPT of val. Raises FailedError where the bundle
    is no surer of val than of the unknown ones: no threshold tells them apart.
    """
    others = None if unknown is None else unknown_confidence(classifier, unknown, progress)
    advance = counter(progress, f"classify {val.name}", len(val.paths))
    outputs, _ = split_outputs(classifier, val, advance)
    targets = np.asarray(val.targets, dtype=np.int64)
    if unknown is None or others is None:
        return kept_threshold(_confidence(classifier, outputs.logits))
    judged = judge_acceptance(classifier, outputs.logits, targets, others)
    if judged.auroc <= BY_CHANCE:
        raise FailedError(
            f"the bundle is no surer of val than of {unknown.name} (AUROC {judged.auroc:.3f}): no least "
            "probability tells them apart, so none was written"
        )
    return judged.proposed.min_probability


def _confidence(classifier: Classifier, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    temperature = classifier.bundle.manifest.confidence.temperature
    return np.asarray(probabilities(logits, temperature).max(axis=1))
