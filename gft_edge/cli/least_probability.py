"""The least probability for a label that export writes into a bundle: a number, or what images propose."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gft_edge.bundle.images import DataSource
from gft_edge.bundle.specs import Progress
from gft_edge.bundle.store import Bundle, read_bundle, write_manifest
from gft_edge.cli.options import refuse_given
from gft_edge.cli.output import say
from gft_edge.cli.references import engine_of
from gft_edge.datasets import Photographs, Split, choosing_split, read_split, splits_of
from gft_edge.errors import UsageError
from gft_edge.runtime.classifier import Classifier, check_probability
from gft_edge.studies.acceptance import least_probability, unknown_photographs


def threshold_asked(given: str | None) -> float | None:
    """What --min-probability asks for, None for auto. Raises UsageError."""
    if given == "auto":
        return None
    try:
        number = 0.0 if given is None else float(given)
    except ValueError:
        raise UsageError(f"--min-probability is {given}: give a number, 0 to 1, or auto") from None
    check_probability(number)
    return number


def known_photographs(
    source: DataSource, labels: tuple[str, ...], unknown: Path | None, threshold: float | None
) -> tuple[Split, Photographs | None] | None:
    """The photographs that --min-probability auto reads, known before the work; None without it."""
    if threshold is not None:
        refuse_given("unknown", why="is for --min-probability auto: give that too")
        return None
    if "val" not in splits_of(source):
        raise UsageError(
            f"--min-probability auto reads the val split, and {source.folder} has none: give a number"
        )
    others = None if unknown is None else unknown_photographs(unknown, labels, say, choosing_split)
    return read_split(source, "val", labels), others


def with_threshold(out: Path, known: tuple[Split, Photographs | None], report: Progress) -> Bundle:
    """Write the least probability that the bundle's own answers propose into its manifest."""
    bundle = read_bundle(out)
    with Classifier.load(bundle, engine_of(bundle)) as classifier:
        found = least_probability(classifier, *known, report)
    confidence = dataclasses.replace(bundle.manifest.confidence, min_probability=found)
    write_manifest(out, dataclasses.replace(bundle.manifest, confidence=confidence))
    by = "val" if known[1] is None else "val and --unknown"
    say(f"a label needs a probability of {found:.4f}, by the images of {by}")
    return read_bundle(out)
