"""The fastest precision of a target on this machine that keeps its bounds."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.manifest import Candidate
from gft_edge.bundle.specs import ModelSpec, Progress, Say
from gft_edge.bundle.store import Bundle, read_bundle, replacing, write_manifest
from gft_edge.errors import FailedError, GateError, UsageError
from gft_edge.export.recipe import ExportRequest, check_request, export
from gft_edge.model.networks import Network
from gft_edge.nvidia.build import build_engine
from gft_edge.profiling.latency import engine_medians_ms
from gft_edge.profiling.machine import summary, this_machine
from gft_edge.runtime.backends import backend_for

AUTO = "auto"

# A lower precision is not worth its risk for less.
LEAST_GAIN = 0.03


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
    Raises UsageError for a target whose engine is not on this machine, and what `export` raises for
    unfit images.
    """
    backend = backend_for(request.target)
    if backend.missing():
        raise UsageError(
            f"--precision auto measures speed, and {backend.TARGET} has no engine on this machine: "
            f"choose one of {', '.join(backend.PRECISIONS)}"
        )
    check_request(_of(request, "fp32"))
    if request.calibration is not None:
        check_request(_of(request, "int8"))
    with replacing(out) as folder, tempfile.TemporaryDirectory(prefix="gft-edge-") as scratch:
        built: dict[str, Bundle] = {}
        left_out: dict[str, str] = {}
        for precision in backend.PRECISIONS:
            if precision == "int8" and request.calibration is None:
                left_out[precision] = "no --calibration-data"
            elif reason := backend.unsupported(precision):
                left_out[precision] = reason
            else:
                say(f"auto: {precision}")
                one, at = _of(request, precision), Path(scratch) / precision
                try:
                    built[precision] = export(model, spec, images, one, at, progress, say, weights)
                    if backend.TARGET == "tensorrt":
                        build_engine(at, progress=progress, say=say)
                        built[precision] = read_bundle(at)
                except FailedError as error:
                    if precision == "fp32":
                        raise
                    left_out[precision] = (
                        error.reason if isinstance(error, GateError) else str(error)
                    )
        medians_ms = engine_medians_ms({name: bundle.folder for name, bundle in built.items()})
        kept = _fastest(medians_ms)
        candidates = _candidates(backend.PRECISIONS, built, left_out, medians_ms, kept)
        for candidate in candidates:
            say(f"auto: {candidate.precision}: {candidate.reason}")
        shutil.copytree(built[kept].folder, folder, dirs_exist_ok=True)
        write_manifest(folder, dataclasses.replace(built[kept].manifest, candidates=candidates))
    return read_bundle(out)


def _of(request: ExportRequest, precision: str) -> ExportRequest:
    calibration = request.calibration if precision == "int8" else None
    return dataclasses.replace(request, precision=precision, calibration=calibration)


def _fastest(medians_ms: dict[str, float]) -> str:
    """From high precision to low: the next is kept where it gains LEAST_GAIN on the one kept so far."""
    kept = next(iter(medians_ms))
    for precision, median_ms in medians_ms.items():
        if median_ms < medians_ms[kept] * (1 - LEAST_GAIN):
            kept = precision
    return kept


def _candidates(
    order: tuple[str, ...],
    built: dict[str, Bundle],
    left_out: dict[str, str],
    medians_ms: dict[str, float],
    kept: str,
) -> tuple[Candidate, ...]:
    machine = summary(this_machine())
    candidates = []
    for precision in order:
        if precision in left_out:
            candidates.append(Candidate(precision, None, None, None, left_out[precision], machine))
            continue
        report = built[precision].manifest.reports[-1]
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
