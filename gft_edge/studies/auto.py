"""The fastest precision of a target that keeps its bounds, on this machine or on a device."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.manifest import Candidate
from gft_edge.bundle.specs import ModelSpec, Progress, Say
from gft_edge.bundle.store import Bundle, read_bundle, replacing, write_manifest
from gft_edge.errors import FailedError, GateError, UsageError
from gft_edge.export.pipeline import export
from gft_edge.export.request import ExportRequest, check_calibration, check_enough, check_request
from gft_edge.model.network import Network
from gft_edge.runtime.backends import backend_for
from gft_edge.studies.bench import HERE, Bench
from gft_edge.studies.run_latencies import engine_reports
from gft_edge.studies.study import failure_of

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
    bench: Bench = HERE,
) -> Bundle:
    """Export every precision that the machine `bench` can run, time them there in turn, keep one.

    Arguments as in `export`; without `request.calibration` INT8 is left out. A lower precision is
    kept when it holds its bounds, here and there, and is faster by LEAST_GAIN than what would be kept
    without it; why, and on which machine, is recorded. Raises UsageError for a target whose engine is not
    on that machine, GateError where fp32 misses its bounds, and what `export` raises for unfit images.
    """
    backend = backend_for(request.target)
    if reason := bench.unfit(request.target, "fp32"):
        raise UsageError(
            f"--precision auto measures speed, and {backend.TARGET} has no engine on "
            f"{bench.machine()} ({reason}): choose one of {', '.join(backend.PRECISIONS)}"
        )
    check_request(dataclasses.replace(request, precision="fp32"))
    check_enough(dataclasses.replace(request, precision="int8"), images)
    if request.calibration is not None:
        check_calibration(dataclasses.replace(request, precision="int8"))
    with replacing(out) as folder, tempfile.TemporaryDirectory(prefix="gft-edge-") as scratch:
        bundles: dict[str, Bundle] = {}
        reasons: dict[str, str] = {}
        for precision in backend.PRECISIONS:
            reason = bench.unfit(request.target, precision) or backend.unsupported(precision)
            int8 = precision.startswith("int8")
            if int8 and request.calibration is None:
                reason = "no train split and no --calibration-data to calibrate on"
            if reason is not None:
                reasons[precision] = reason
                continue
            calibration = request.calibration if int8 else None
            asked = dataclasses.replace(request, precision=precision, calibration=calibration)
            made = Path(scratch) / precision
            say(f"auto: {precision}: exporting")
            try:
                export(model, spec, images, asked, made, progress, say, weights)
                if backend.TARGET == "tensorrt":
                    bench.build(made, False, progress, say)
                if missed := bench.misses(made, Path(scratch) / "fp32", images, progress):
                    raise GateError(f"on {bench.machine()}: {'; '.join(missed)}")
                bundles[precision] = read_bundle(made)
            except FailedError as error:
                reasons[precision] = failure_of(error)
                if precision == "fp32":
                    raise GateError(reasons[precision], "Nothing was written") from error
        found = engine_reports(
            [one.folder for one in bundles.values()], DURATION_S, progress, say, bench
        )
        medians_ms = {
            precision: report.boundaries.engine.p50_ms or 0.0
            for precision, report in zip(bundles, found.reports, strict=True)
        }
        kept = _fastest(medians_ms)
        machine = bench.machine()
        candidates = tuple(
            _candidate(precision, reasons.get(precision), bundles, medians_ms, kept, machine)
            for precision in backend.PRECISIONS
        )
        for candidate in candidates:
            say(f"auto: {candidate.precision}: {candidate.reason}")
        shutil.copytree(bundles[kept].folder, folder, dirs_exist_ok=True)
        write_manifest(folder, dataclasses.replace(bundles[kept].manifest, candidates=candidates))
    return read_bundle(out)


def _fastest(medians_ms: Mapping[str, float]) -> str:
    """The precision to keep: going down, each where it gains LEAST_GAIN on the one kept so far."""
    kept = next(iter(medians_ms))
    for precision, median_ms in medians_ms.items():
        if median_ms < medians_ms[kept] * (1 - LEAST_GAIN):
            kept = precision
    return kept


def _candidate(
    precision: str,
    reason: str | None,
    bundles: Mapping[str, Bundle],
    medians_ms: Mapping[str, float],
    kept: str,
    machine: str,
) -> Candidate:
    """What is recorded of a precision; `reason` says why there is no bundle in it."""
    if reason is not None:
        return Candidate(precision, None, None, None, reason, machine)
    ratio = medians_ms[precision] / medians_ms[kept]
    if precision == kept:
        reason = f"kept: {medians_ms[kept]:.2f} ms"
    elif ratio < 1:
        reason = f"not kept: faster than {kept} by less than {LEAST_GAIN:.0%}"
    else:
        reason = f"not kept: {ratio:.2f} times the time of {kept}"
    report, median_ms = bundles[precision].manifest.reports[-1], medians_ms[precision]
    return Candidate(precision, report.accuracy, report.top1_agreement, median_ms, reason, machine)
