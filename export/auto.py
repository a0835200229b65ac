"""The fastest precision of a target on this machine that keeps its bounds."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from gft_edge.backends import backend_for
from gft_edge.bundle import Bundle, read_bundle, replacing, write_manifest
from gft_edge.classifier import Classifier
from gft_edge.errors import FailedError, UsageError
from gft_edge.export.recipe import ExportRequest, check_request, export
from gft_edge.export.verify import pixels_of
from gft_edge.model.gft import GFT
from gft_edge.profiling.latency import interleaved_medians_ms
from gft_edge.specs import Candidate, ImageSet, ModelSpec, Progress, Say

AUTO = "auto"

# A lower precision is not worth its risk for less.
LEAST_GAIN = 0.03
ROUNDS = 100


def export_fastest(
    model: GFT,
    spec: ModelSpec,
    images: ImageSet,
    request: ExportRequest,
    out: Path,
    progress: Progress = lambda text, done, total: None,
    say: Say = lambda text: None,
    weights: Path | None = None,
) -> Bundle:
    """Export every precision that this machine can run, time them in turn, keep one; why is recorded.

    Arguments as in `export`; without `request.calibration` int8 is left out. A lower precision is
    kept when it holds its bounds and is faster than every higher one by LEAST_GAIN. Raises UsageError
    for a target whose engine is not on this machine.
    """
    backend = backend_for(request.target)
    if backend.TARGET == "tensorrt" or backend.missing():
        raise UsageError(
            f"--precision auto measures speed, and {backend.TARGET} has no engine on this machine: "
            f"choose one of {', '.join(backend.PRECISIONS)}"
        )
    check_request(_of(request, "fp32"))
    with replacing(out) as folder, tempfile.TemporaryDirectory(prefix="gft-edge-") as scratch:
        built: dict[str, Bundle] = {}
        left_out: dict[str, str] = {}
        for precision in backend.PRECISIONS:
            try:
                one = _of(request, precision)
                check_request(one)
                say(f"auto: {precision}")
                at = Path(scratch) / precision
                built[precision] = export(model, spec, images, one, at, progress, say, weights)
            except (FailedError, UsageError) as error:
                if precision == "fp32":
                    raise
                left_out[precision] = str(error)
        medians_ms = _medians_ms(built, images, spec)
        candidates = _judge(built, left_out, medians_ms, backend.PRECISIONS)
        for candidate in candidates:
            say(f"auto: {candidate.precision}: {candidate.reason}")
        kept = next(c.precision for c in candidates if c.reason.startswith("kept"))
        shutil.copytree(built[kept].folder, folder, dirs_exist_ok=True)
        write_manifest(
            folder, dataclasses.replace(built[kept].manifest, candidates=tuple(candidates))
        )
    return read_bundle(out)


def _of(request: ExportRequest, precision: str) -> ExportRequest:
    calibration = request.calibration if precision == "int8" else None
    return dataclasses.replace(request, precision=precision, calibration=calibration)


def _medians_ms(built: dict[str, Bundle], images: ImageSet, spec: ModelSpec) -> dict[str, float]:
    with ExitStack() as stack:
        calls = {}
        for precision, bundle in built.items():
            batch = bundle.manifest.input.batch
            one = dataclasses.replace(images, paths=images.paths[:1] * batch)
            pixels = pixels_of(one, spec.preprocessing)
            classifier = stack.enter_context(Classifier.load(bundle))
            calls[precision] = functools.partial(classifier.outputs, pixels)
        return interleaved_medians_ms(calls, ROUNDS)


def _judge(
    built: dict[str, Bundle],
    left_out: dict[str, str],
    medians_ms: dict[str, float],
    order: tuple[str, ...],
) -> list[Candidate]:
    kept = "fp32"
    for precision in order:
        if precision in built and medians_ms[precision] < medians_ms[kept] * (1 - LEAST_GAIN):
            kept = precision
    candidates = []
    for precision in order:
        if precision in left_out:
            candidates.append(Candidate(precision, None, None, None, left_out[precision]))
            continue
        report = built[precision].manifest.reports[-1]
        ratio = medians_ms[precision] / medians_ms[kept]
        if precision == kept:
            others = [medians_ms[p] for p in built if p != kept]
            gain = f", {min(others) / medians_ms[kept]:.2f}x as fast as the next" if others else ""
            reason = f"kept: {medians_ms[kept]:.2f} ms{gain}"
        else:
            reason = f"not kept: {medians_ms[precision]:.2f} ms, {ratio:.2f} times that of {kept}"
        candidates.append(
            Candidate(
                precision,
                report.accuracy,
                report.top1_agreement,
                medians_ms[precision],
                reason,
            )
        )
    return candidates
