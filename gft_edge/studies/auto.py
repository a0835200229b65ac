"""The fastest precision of a target on this machine that keeps its bounds."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.manifest import Candidate
from gft_edge.bundle.specs import ModelSpec, Progress, Say
from gft_edge.bundle.store import Bundle, read_bundle, replacing, sha256_of, write_manifest
from gft_edge.errors import FailedError, GateError, UsageError
from gft_edge.export.request import ExportRequest, check_request
from gft_edge.model.network import Network
from gft_edge.profiling.machine import summary, this_machine
from gft_edge.runtime.backends import backend_for
from gft_edge.studies.latency import engine_reports
from gft_edge.studies.memory import Memory
from gft_edge.studies.study import Study, exported
from gft_edge.studies.variants import Variant

AUTO = "auto"

# A lower precision is not worth its risk for less.
LEAST_GAIN = 0.03
DURATION_S = 2.0


def export_fastest(
    model: Network,
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
    kept when it holds its bounds and is faster by LEAST_GAIN than what would be kept without it.
    Raises UsageError for a target whose engine is not on this machine, GateError where fp32 misses
    its bounds, and what `export` raises for unfit images.
    """
    backend = backend_for(request.target)
    if backend.missing():
        raise UsageError(
            f"--precision auto measures speed, and {backend.TARGET} has no engine on this machine: "
            f"choose one of {', '.join(backend.PRECISIONS)}"
        )
    check_request(dataclasses.replace(request, precision="fp32", calibration=None))
    if request.calibration is not None:
        check_request(dataclasses.replace(request, precision="int8"))
    with replacing(out) as folder, tempfile.TemporaryDirectory(prefix="gft-edge-") as scratch:
        study = Study(
            weights,
            "" if weights is None else sha256_of(weights),
            model,
            spec,
            request,
            images,
            Path(scratch),
            Memory(Path(scratch)),
            progress,
            say,
        )
        variants = [_exported(study, backend.TARGET, name) for name in backend.PRECISIONS]
        done = [variant for variant in variants if variant.status == "done"]
        found = engine_reports([study.bundle(variant) for variant in done], DURATION_S, progress)
        medians_ms = {
            variant.precision: report.boundaries.engine.p50_ms or 0.0
            for variant, report in zip(done, found.reports, strict=True)
        }
        bundles = {variant.precision: read_bundle(study.bundle(variant)) for variant in done}
        kept = _fastest(medians_ms)
        candidates = _candidates(variants, bundles, medians_ms, kept)
        for candidate in candidates:
            say(f"auto: {candidate.precision}: {candidate.reason}")
        shutil.copytree(bundles[kept].folder, folder, dirs_exist_ok=True)
        write_manifest(folder, dataclasses.replace(bundles[kept].manifest, candidates=candidates))
    return read_bundle(out)


def _exported(study: Study, target: str, precision: str) -> Variant:
    """The variant in one precision; a failure is its own, but for that of fp32, which is raised."""
    variant = Variant(target, precision)
    if precision == "int8" and study.request.calibration is None:
        return variant.absent("no --calibration-data")
    if reason := backend_for(target).unsupported(precision):
        return variant.absent(reason)
    variant = exported(study, variant, f"auto: {precision}", survived=FailedError)
    if precision == "fp32" and variant.reason is not None:
        raise GateError(variant.reason, "Nothing was written")
    return variant


def _fastest(medians_ms: Mapping[str, float]) -> str:
    """From high precision to low: the next is kept where it gains LEAST_GAIN on the one kept so far."""
    kept = next(iter(medians_ms))
    for precision, median_ms in medians_ms.items():
        if median_ms < medians_ms[kept] * (1 - LEAST_GAIN):
            kept = precision
    return kept


def _candidates(
    variants: Sequence[Variant],
    bundles: Mapping[str, Bundle],
    medians_ms: Mapping[str, float],
    kept: str,
) -> tuple[Candidate, ...]:
    machine = summary(this_machine())
    candidates = []
    for variant in variants:
        precision = variant.precision
        if variant.reason is not None:
            candidates.append(Candidate(precision, None, None, None, variant.reason, machine))
            continue
        report = bundles[precision].manifest.reports[-1]
        ratio = medians_ms[precision] / medians_ms[kept]
        if precision == kept:
            reason = f"kept: {medians_ms[kept]:.2f} ms"
        elif ratio < 1:
            reason = f"not kept: faster than {kept} by less than {LEAST_GAIN:.0%}"
        else:
            reason = f"not kept: {ratio:.2f} times the time of {kept}"
        candidates.append(
            Candidate(
                precision,
                report.accuracy,
                report.top1_agreement,
                medians_ms[precision],
                reason,
                machine,
            )
        )
    return tuple(candidates)
