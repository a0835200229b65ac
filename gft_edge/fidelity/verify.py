"""Whether a bundle still does on this machine what it did when it was exported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.manifest import Manifest
from gft_edge.bundle.reports import Change, FidelityReport, NoiseFloor, Tolerance, Verdict
from gft_edge.bundle.store import Bundle, read_bundle, read_manifest
from gft_edge.datasets import Photographs
from gft_edge.errors import BundleError, FailedError, KeptPatchesError, PipelineError, UsageError
from gft_edge.fidelity.compare import NO_BOUND, TOLERANCES, compare, noise_floor_of
from gft_edge.fidelity.disagreements import Comparison, Disagreement, compared
from gft_edge.fidelity.metrics import accuracy_of
from gft_edge.fidelity.noise_floor import changed
from gft_edge.fidelity.structure import structure_checked
from gft_edge.runtime.backends import backend_for, integer_layers
from gft_edge.runtime.backends.ov import placed
from gft_edge.runtime.batches import Advance, static_batches
from gft_edge.runtime.classifier import Classifier, load_pixels
from gft_edge.runtime.device_verdicts import recalled_failures, remember_failures
from gft_edge.runtime.golden import read_golden
from gft_edge.runtime.opening import bundle_request
from gft_edge.runtime.outputs import Outputs, concatenate

# uint8 (images,S,S,3) -> what the reference gives for them.
Reference = Callable[[npt.NDArray[np.uint8]], Outputs]

CHUNK_IMAGES = 64


# What a VerifyReport takes over from the comparison with the reference.
FIGURES = (
    "top1_agreement", "cosine", "max_abs", "kept_overlap", "patches_lost", "lost_near_border",
    "confidence_change", "drop", "noise_floor", "ece", "reference_ece",
)  # fmt: skip


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`; None where it was not asked for. Fractions of 1.

    `top1` and `reference_top1` are of the `labelled` images, those of a class of the network's, and None
    where there is none.
    The fidelity figures are against the reference on the split; `golden` has its own.
    `skipped` names each check that this machine could not make, and why. `integer_layers` are the layers
    in INT8 that the engine computes in integers here, None where that is not known; `warnings` say what
    is right and slow. `noise_floor` is of the change that the bundle is judged by, `noise_floors` of all
    that were asked for. `disagreements` are the
    images that bundle and reference classify differently, those with the least overlap first.
    """

    verdict: Verdict
    failures: tuple[str, ...]
    images: int = 0
    labelled: int | None = None
    top1: float | None = None
    reference_top1: float | None = None
    top1_agreement: float | None = None
    cosine: float | None = None
    max_abs: float | None = None
    kept_overlap: tuple[float, ...] | None = None
    golden: FidelityReport | None = None
    skipped: tuple[str, ...] = ()
    patches_lost: tuple[float, ...] | None = None
    lost_near_border: tuple[float, ...] | None = None
    disagreements: tuple[Disagreement, ...] | None = None
    confidence_change: float | None = None
    drop: tuple[float, float] | None = None
    noise_floor: NoiseFloor | None = None
    noise_floors: tuple[NoiseFloor, ...] = ()
    ece: float | None = None
    reference_ece: float | None = None
    integer_layers: int | None = None
    warnings: tuple[str, ...] = ()


def verify(
    folder: Path,
    backend: str | None = None,
    split: Photographs | None = None,
    reference: Reference | None = None,
    advance: Advance | None = None,
    seen: Callable[[Comparison], object] = lambda comparison: None,
    changes: Sequence[Change] = (),
    device: str | None = None,
) -> VerifyReport:
    """Check hashes, structure and golden outputs, and with a split accuracy and agreement too.

    The reference is asked once more for the split's images after each of `changes`.

    `seen` is told what bundle and reference gave for each image, to draw it. On a `device` of OpenVINO's
    that computes in f16 the bounds are at least FP16's, and the verdict is remembered: what runs there
    later is trusted by it. A damaged bundle is a failed verdict. Raises BundleError when `folder` is no
    bundle at all, UsageError for a reference without images.
    """
    if reference is not None and split is None:
        raise UsageError("a reference is compared on images: give --data too")
    read_manifest(folder)
    skipped: list[str] = []
    try:
        bundle = read_bundle(folder)
        try:
            classifier = _opened(bundle, backend, device, bundle.manifest.kept_outputs)
        except KeptPatchesError as error:
            classifier = _opened(bundle, backend, device)
            skipped.append(f"kept patches: {error}")
        returns_kept = not skipped
        with classifier:
            half_on = classifier.session.half_on
            golden = check_golden(classifier)
            failures = [f"golden outputs: {failure}" for failure in golden.failures]
            found: dict[str, Any] = {"images": golden.images}
            against: list[str] = []
            if split is not None:
                found = _on_split(classifier, split, reference, advance, seen, changes)
                against = found.pop("failures")
                failures += against
                skipped += found.pop("skipped")
        found |= _kernels(bundle, backend, device, skipped)
        try:
            if reason := structure_checked(bundle.manifest, bundle.artifact_path):
                skipped.append(f"graph structure: {reason}")
        except PipelineError as error:
            failures.append(f"graph structure: {error}")
        tensorrt = backend_for(backend or bundle.manifest.target).TARGET == "tensorrt"
        if tensorrt and returns_kept:
            failures += _of_deployed(bundle, backend, skipped)
        if half_on and device is not None:
            engine = backend_for(backend or bundle.manifest.target).version()
            golden_failures = [each for each in failures if each not in against]
            remember_failures(
                bundle, device, half_on, engine, golden_failures,
                None if reference is None else against,
            )  # fmt: skip
    except BundleError as error:
        return VerifyReport("fail", (str(error),))
    return VerifyReport(
        "fail" if failures else "pass",
        tuple(failures),
        golden=golden,
        skipped=tuple(skipped),
        **found,
    )


def verify_once(bundle: Bundle, backend: str | None, device: str | None) -> None:
    """Verify a bundle on a device that computes in f16, unless the verdict is remembered.

    Whoever loads it there is warned where it fails. Raises as Classifier.load.
    """
    if device is None:
        return
    engine, _ = bundle_request(bundle, backend, None, device)
    processors = placed(device).half_on
    if processors and recalled_failures(bundle, device, processors, engine.version()) is None:
        verify(bundle.folder, backend, device=device)


def _opened(
    bundle: Bundle, backend: str | None, device: str | None, kept_outputs: tuple[str, ...] = ()
) -> Classifier:
    """A classifier that is not trusted yet: Classifier.load would warn of that."""
    engine, request = bundle_request(bundle, backend, None, device, kept_outputs=kept_outputs)
    return Classifier(bundle, engine.open_session(bundle.artifact_path, request))


def _kernels(
    bundle: Bundle, backend: str | None, device: str | None, skipped: list[str]
) -> dict[str, Any]:
    """What a VerifyReport says of an INT8 bundle's kernels, by the engine's own execution graph.

    TensorRT fuses layers and needs its own report (gft-edge inspect --engine). Where a device tells
    nothing, `skipped` gets the reason.
    """
    manifest = bundle.manifest
    engine, request = bundle_request(bundle, backend, None, device)
    if manifest.quantization is None or engine.TARGET == "tensorrt":
        return {}
    pixels = read_golden(bundle)[0]
    batch, _ = next(static_batches(pixels, manifest.input, manifest.model.preprocessing))
    try:
        timed = engine.layer_times(bundle.artifact_path, request, batch, 1, lambda: None)
    except FailedError as error:
        skipped.append(f"layers computed in integers: {error}")
        return {}
    integers, asked = integer_layers(timed.layers), manifest.quantization.int8_layers
    if integers >= asked:
        return {"integer_layers": integers}
    return {
        "integer_layers": integers,
        "warnings": (
            f"{engine.version()} computes {asked - integers} of {asked} INT8 layers in FP32 on this machine: "
            "right, and slower than they could be; another engine or version may do better",
        ),
    }


def _of_deployed(bundle: Bundle, backend: str | None, skipped: list[str]) -> list[str]:
    """TensorRT's engine that returns kept patches is not the one that predicts: that one's golden logits.

    Returns the bounds that it misses; where this machine cannot load it, `skipped` gets the reason.
    """
    try:
        classifier = Classifier.load(bundle, backend)
    except BundleError:
        raise
    except UsageError as error:
        skipped.append(f"the engine that predicts: {error}")
        return []
    with classifier:
        missed = check_golden(classifier).failures
    return [f"golden outputs of the engine that predicts: {failure}" for failure in missed]


def check_golden(classifier: Classifier) -> FidelityReport:
    """Run the bundle's golden images on this machine and compare with the recorded outputs.

    Raises BundleError when the golden file does not fit the bundle.
    """
    manifest = classifier.bundle.manifest
    pixels, expected = read_golden(classifier.bundle)
    bound = golden_tolerance(manifest, len(pixels), bool(classifier.session.half_on))
    outputs, temperature = classifier.outputs(pixels), manifest.confidence.temperature
    return _compared("golden", expected, outputs, bound, temperature=temperature)


def _compared(
    name: str,
    expected: Outputs,
    outputs: Outputs,
    bound: Tolerance,
    targets: Sequence[int | None] = (),
    floor: Outputs | None = None,
    labels: Sequence[str] = (),
    temperature: float = 1.0,
) -> FidelityReport:
    """Compare two outputs; where an engine returns no kept patches, their logits alone."""
    if len(outputs.kept) < len(expected.kept):
        expected = Outputs(expected.logits, ())
        floor = None if floor is None else Outputs(floor.logits, ())
    return compare(name, expected, outputs, bound, targets, floor, labels, temperature)


def export_tolerance(manifest: Manifest, half: bool = False) -> Tolerance:
    """The bound that the export itself was held to; FP16's where a device computes FP32 in `half`."""
    if half and manifest.precision == "fp32":
        return TOLERANCES["fp16"]
    return manifest.reports[-1].tolerance if manifest.reports else TOLERANCES[manifest.precision]


def golden_tolerance(manifest: Manifest, images: int, half: bool = False) -> Tolerance:
    """Fixed bounds, as a file is compared with itself, with room for one exchanged patch.

    Few images cannot resolve 99.9 %. A network whose weights mean nothing has none. Where a device
    computes FP32 in `half` they are FP16's.
    """
    precision = "fp16" if half and manifest.precision == "fp32" else manifest.precision
    bound = NO_BOUND if manifest.fidelity is None else TOLERANCES[precision]
    keeps = [stage.keep for stage in manifest.model.stages] or [1]
    one_patch = 1 - 2 / (min(keeps) + 1) / images - 1e-9  # rounding
    overlaps = tuple(min(bound.overlap_bound(n), one_patch) for n in range(len(keeps)))
    return dataclasses.replace(bound, kept_overlap=overlaps)


def split_outputs(
    classifier: Classifier,
    split: Photographs,
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


def _on_split(
    classifier: Classifier,
    split: Photographs,
    reference: Reference | None,
    advance: Advance | None,
    seen: Callable[[Comparison], object],
    changes: Sequence[Change],
) -> dict[str, Any]:
    """What a VerifyReport says of the images of a split, and the bounds that the reference misses."""
    half = bool(classifier.session.half_on)
    bound, skipped = export_tolerance(classifier.bundle.manifest, half), []
    if bound.change is not None and reference is not None and len(split.paths) < 2:
        bound = NO_BOUND
        skipped = ["bounds: 1 image has no interval, and --fidelity photo judges by intervals"]
    floors: dict[Change, list[Outputs]] = {change: [] for change in changes}
    if bound.change is not None:
        floors.setdefault(bound.change, [])

    def also_changed(pixels: npt.NDArray[np.uint8]) -> Outputs:
        assert reference is not None
        for change, outputs in floors.items():
            outputs.append(reference(changed(pixels, change)))
        return reference(pixels)

    asked = None if reference is None else also_changed
    outputs, expected = split_outputs(classifier, split, advance, asked)
    found = {
        "images": len(split.paths),
        "labelled": split.labelled,
        "top1": accuracy_of(outputs.logits, split.targets),
    }
    if expected is None:
        return {**found, "failures": [], "skipped": skipped}
    whole = {change: concatenate(outputs) for change, outputs in floors.items()}
    floor = whole[bound.change] if bound.change is not None else None
    temperature = classifier.bundle.manifest.confidence.temperature
    report = _compared(
        "reference", expected, outputs, bound, split.targets, floor, split.labels, temperature
    )
    comparison = compared(split, expected, outputs)
    seen(comparison)
    return {
        **found,
        **{name: getattr(report, name) for name in FIGURES},
        "reference_top1": report.reference_accuracy,
        "disagreements": comparison.disagreements(),
        "noise_floors": tuple(
            noise_floor_of(each, expected, whole[each], temperature) for each in changes
        ),
        "failures": [f"against the reference: {failure}" for failure in report.failures],
        "skipped": skipped,
    }
