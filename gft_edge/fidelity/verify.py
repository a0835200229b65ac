"""Whether a bundle still does on this machine what it did when it was exported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.manifest import Manifest
from gft_edge.bundle.reports import FidelityReport, Tolerance, Verdict
from gft_edge.bundle.store import Bundle, read_bundle, read_manifest
from gft_edge.datasets import Split
from gft_edge.errors import BundleError, KeptPatchesError, PipelineError, UsageError
from gft_edge.fidelity.compare import TOLERANCES, compare
from gft_edge.fidelity.disagreements import Comparison, Disagreement, compared
from gft_edge.fidelity.structure import structure_checked
from gft_edge.runtime.backends import backend_for
from gft_edge.runtime.classifier import Advance, Classifier, load_pixels
from gft_edge.runtime.golden import read_golden
from gft_edge.runtime.outputs import Outputs, concatenate

# uint8 (images,S,S,3) -> what the reference gives for them.
Reference = Callable[[npt.NDArray[np.uint8]], Outputs]

CHUNK_IMAGES = 64


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`; None where it was not asked for. Fractions of 1.

    The fidelity figures are against the reference on the split; `golden` has its own.
    `skipped` names each check that this machine could not make, and why. `disagreements` are the
    images that bundle and reference classify differently, those with the least overlap first.
    """

    verdict: Verdict
    top1: float | None
    reference_top1: float | None
    top1_agreement: float | None
    cosine: float | None
    max_abs: float | None
    kept_overlap: tuple[float, ...] | None
    images: int
    failures: tuple[str, ...]
    golden: FidelityReport | None
    skipped: tuple[str, ...] = ()
    patches_lost: tuple[float, ...] | None = None
    lost_near_border: tuple[float, ...] | None = None
    disagreements: tuple[Disagreement, ...] | None = None


def verify(
    folder: Path,
    backend: str | None = None,
    split: Split | None = None,
    reference: Reference | None = None,
    advance: Advance | None = None,
    seen: Callable[[Comparison], object] | None = None,
) -> VerifyReport:
    """Check hashes, structure and golden outputs, and with a split accuracy and agreement too.

    `seen` is told what bundle and reference gave for each image, to draw it. A damaged bundle is a failed
    verdict. Raises BundleError when `folder` is no bundle at all,
    UsageError for a reference without images.
    """
    if reference is not None and split is None:
        raise UsageError("a reference is compared on images: give --data too")
    read_manifest(folder)
    try:
        bundle = read_bundle(folder)
        classifier, skipped = _opened(bundle, backend)
        with classifier:
            golden = check_golden(classifier)
            report = _judge(classifier, golden, split, reference, advance, seen)
        report = _with_structure(report, bundle)
        if not skipped and backend_for(backend or bundle.manifest.target).TARGET == "tensorrt":
            report = _with_deployed(report, bundle, backend)
        return dataclasses.replace(report, skipped=(*skipped, *report.skipped))
    except BundleError as error:
        return VerifyReport(
            verdict="fail",
            top1=None,
            reference_top1=None,
            top1_agreement=None,
            cosine=None,
            max_abs=None,
            kept_overlap=None,
            images=0,
            failures=(str(error),),
            golden=None,
        )


def _opened(bundle: Bundle, backend: str | None) -> tuple[Classifier, tuple[str, ...]]:
    """The bundle in its engine, with kept patches where it returns them, and what is then skipped."""
    try:
        return Classifier.load(bundle, backend, kept=True), ()
    except KeptPatchesError as error:
        return Classifier.load(bundle, backend), (f"kept patches: {error}",)


def _with_structure(report: VerifyReport, bundle: Bundle) -> VerifyReport:
    """Add what is wrong with the graph's structure, or why this machine cannot tell."""
    try:
        checked = structure_checked(bundle.manifest, bundle.artifact_path)
    except PipelineError as error:
        failures = (*report.failures, f"graph structure: {error}")
        return dataclasses.replace(report, verdict="fail", failures=failures)
    skipped = () if checked is None else (f"graph structure: {checked}",)
    return dataclasses.replace(report, skipped=(*report.skipped, *skipped))


def _with_deployed(report: VerifyReport, bundle: Bundle, backend: str | None) -> VerifyReport:
    """TensorRT's engine that returns kept patches is not the one that predicts: that one's golden logits."""
    try:
        classifier = Classifier.load(bundle, backend)
    except BundleError:
        raise
    except UsageError as error:
        reason = f"the engine that predicts: {error}"
        return dataclasses.replace(report, skipped=(*report.skipped, reason))
    with classifier:
        missed = check_golden(classifier).failures
    failures = tuple(f"golden outputs of the engine that predicts: {failure}" for failure in missed)
    verdict: Verdict = "fail" if failures else report.verdict
    return dataclasses.replace(report, verdict=verdict, failures=(*report.failures, *failures))


def check_golden(classifier: Classifier) -> FidelityReport:
    """Run the bundle's golden images on this machine and compare with the recorded outputs.

    Raises BundleError when the golden file does not fit the bundle.
    """
    manifest = classifier.bundle.manifest
    pixels, expected = read_golden(classifier.bundle)
    bound = golden_tolerance(manifest, len(pixels))
    return _compared("golden", expected, classifier.outputs(pixels), bound)


def _compared(
    name: str,
    expected: Outputs,
    outputs: Outputs,
    bound: Tolerance,
    targets: Sequence[int] | None = None,
) -> FidelityReport:
    """As compare; where an engine returns no kept patches, of the logits alone."""
    if len(outputs.kept) < len(expected.kept):
        expected = Outputs(expected.logits, ())
    return compare(name, expected, outputs, bound, targets)


def export_tolerance(manifest: Manifest) -> Tolerance:
    """The bound that the export itself was held to."""
    return manifest.reports[-1].tolerance if manifest.reports else TOLERANCES[manifest.precision]


def golden_tolerance(manifest: Manifest, images: int) -> Tolerance:
    """The export's own bound, with room for one exchanged patch: few images cannot resolve 99.9 %."""
    bound = export_tolerance(manifest)
    keeps = [stage.keep for stage in manifest.model.stages] or [1]
    one_patch = 1 - 2 / (min(keeps) + 1) / images - 1e-9  # rounding
    overlaps = tuple(min(bound.overlap_bound(n), one_patch) for n in range(len(keeps)))
    return dataclasses.replace(bound, kept_overlap=overlaps)


def split_outputs(
    classifier: Classifier,
    split: Split,
    advance: Advance | None = None,
    reference: Reference | None = None,
) -> tuple[Outputs, Outputs | None]:
    """A bundle's outputs on every image of a split, in order, and the reference's on the same pixels.

    Raises ImageError.
    """
    spec = classifier.bundle.manifest.model.preprocessing
    ours, theirs = [], []
    for start in range(0, len(split.paths), CHUNK_IMAGES):
        paths = split.paths[start : start + CHUNK_IMAGES]
        pixels = np.stack([load_pixels(path, spec, split.crop_bottom_px) for path in paths])
        ours.append(classifier.outputs(pixels, advance))
        if reference is not None:
            theirs.append(reference(pixels))
    return concatenate(ours), concatenate(theirs) if theirs else None


def _judge(
    classifier: Classifier,
    golden: FidelityReport,
    split: Split | None,
    reference: Reference | None,
    advance: Advance | None,
    seen: Callable[[Comparison], object] | None,
) -> VerifyReport:
    failures = [f"golden outputs: {failure}" for failure in golden.failures]
    fidelity: FidelityReport | None = None
    comparison: Comparison | None = None
    top1, reference_top1, images = None, None, golden.images
    if split is not None:
        targets = np.asarray(split.targets)
        images = len(targets)
        outputs, expected = split_outputs(classifier, split, advance, reference)
        top1 = float((outputs.logits.argmax(axis=1) == targets).mean())
        if expected is not None:
            reference_top1 = float((expected.logits.argmax(axis=1) == targets).mean())
            bound = export_tolerance(classifier.bundle.manifest)
            fidelity = _compared("reference", expected, outputs, bound, split.targets)
            failures += [f"against the reference: {failure}" for failure in fidelity.failures]
            comparison = compared(split, expected, outputs)
            if seen is not None:
                seen(comparison)
    return VerifyReport(
        verdict="fail" if failures else "pass",
        top1=top1,
        reference_top1=reference_top1,
        top1_agreement=fidelity.top1_agreement if fidelity else None,
        cosine=fidelity.cosine if fidelity else None,
        max_abs=fidelity.max_abs if fidelity else None,
        kept_overlap=fidelity.kept_overlap if fidelity else None,
        images=images,
        failures=tuple(failures),
        golden=golden,
        patches_lost=fidelity.patches_lost if fidelity else None,
        lost_near_border=fidelity.lost_near_border if fidelity else None,
        disagreements=comparison.disagreements() if comparison else None,
    )
