"""A benchmark from beginning to end: each bundle exported and judged, then all of them measured in turn."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.images import DataSource, ImageSet
from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.specs import ModelSpec, Progress, Say
from gft_edge.bundle.store import Bundle, is_bundle, read_bundle, sha256_of, size_bytes
from gft_edge.datasets import Split, split_digest
from gft_edge.errors import BundleError, FailedError, GateError, GftEdgeError, UsageError
from gft_edge.export.int8 import CalibrationRequest
from gft_edge.export.recipe import ExportRequest, export
from gft_edge.export.verify import torch_outputs
from gft_edge.export.workbench import tool_versions
from gft_edge.fidelity.verify import Reference, verify
from gft_edge.model.checkpoint import WEIGHTS_FILE, load_run
from gft_edge.model.networks import Network
from gft_edge.nvidia.build import build_engine
from gft_edge.profiling.machine import summary, this_machine
from gft_edge.profiling.profile import ProfileRequest, check_measuring, profile
from gft_edge.profiling.report import Profile
from gft_edge.runtime.outputs import Outputs
from gft_edge.studies.grid import Cell, grid
from gft_edge.studies.images import (
    calibration_images,
    evaluation_split,
    verification_images,
)
from gft_edge.studies.memory import (
    BUNDLES,
    Kept,
    Owner,
    claimed,
    digest_of,
    read_kept,
    write_kept,
)
from gft_edge.studies.results import (
    SCHEMA_VERSION,
    Accuracy,
    Benchmark,
    Row,
    best_rows,
    measured,
)


@dataclass(frozen=True)
class BenchmarkRequest:
    """What to benchmark, on which images, and how long to measure; see profile.ProfileRequest.

    `targets` and `precisions` None take all there are. `calibration_data` None takes the train split.
    Exports are verified on `images`, accuracy is of `limit` images of the split, None for all.
    """

    run: Path
    data: DataSource
    out: Path
    split: str = "test"
    targets: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    calibration_data: Path | None = None
    images: int = 256
    limit: int | None = None
    force: bool = False
    duration_s: float = 10.0
    warmup_ms: float = 200.0
    min_samples: int | None = None
    percentiles: tuple[float, ...] = (50.0, 90.0, 95.0, 99.0)
    layers: bool = False


@dataclass(frozen=True)
class _Work:
    """What every bundle of a benchmark shares."""

    request: BenchmarkRequest
    model: Network
    spec: ModelSpec
    weights_sha256: str
    split: Split
    split_digest: str
    verified_on: ImageSet
    calibrated_on: ImageSet | None
    reference: Reference
    machine: str
    progress: Progress
    say: Say

    def folder(self, cell: Cell) -> Path:
        """Of a bundle."""
        return self.request.out / BUNDLES / cell.folder_name


def benchmark(
    request: BenchmarkRequest,
    progress: Progress = lambda text, done, total: None,
    say: Say = lambda text: None,
) -> tuple[Benchmark, Profile | None]:
    """Export, judge and measure everything that runs here; what fails is a row with its reason.

    What `request.out` has from an earlier call, or an interrupted one, is taken over where nothing that
    decides it has changed; latency is measured anew, as ratios need one run. The profile is None where
    no bundle came out. Raises UsageError for a request that cannot be met at all, BundleError and
    OSError where nothing can be written; an interrupt before the measuring goes through.
    """
    if is_bundle(request.run):
        raise UsageError(f"{request.run} is a bundle: give the run that it was exported from")
    if request.images < 1:
        raise UsageError(f"--images is {request.images}: give 1 or more")
    check_measuring(_profile_request(request, [request.out], None))
    spec, model = load_run(request.run)
    everything = evaluation_split(request.data, request.split, spec.labels, None)
    calibrated_on, uncalibrated = _calibration(request, spec, say)
    cells = grid(request.targets, request.precisions, uncalibrated)
    split = evaluation_split(request.data, request.split, spec.labels, request.limit)
    owner = Owner(sha256_of(request.run / WEIGHTS_FILE), split_digest(everything))
    work = _Work(
        request,
        model,
        spec,
        owner.weights_sha256,
        split,
        split_digest(split),
        verification_images(request.data, spec.labels, request.images, calibrated_on),
        calibrated_on,
        _remembering(model, spec),
        summary(this_machine()),
        progress,
        say,
    )
    with claimed(request.out, owner, request.force):
        rows = [_row(work, cell, number, len(cells)) for number, cell in enumerate(cells, 1)]
        rows, measured_together = _measured(work, rows)
    return _benchmark(work, rows, measured_together), measured_together


def _calibration(
    request: BenchmarkRequest, spec: ModelSpec, say: Say
) -> tuple[ImageSet | None, str | None]:
    """Images for INT8 where it is asked for, or why there are none."""
    if request.precisions is not None and "int8" not in request.precisions:
        return None, None
    found = calibration_images(request.calibration_data, request.data, spec.labels, say)
    return (None, found) if isinstance(found, str) else (found, None)


def _remembering(model: Network, spec: ModelSpec) -> Reference:
    """PyTorch's outputs, computed once for pixels that are asked for again with every bundle."""
    known: dict[bytes, Outputs] = {}

    def outputs(pixels: npt.NDArray[np.uint8]) -> Outputs:
        key = hashlib.sha256(pixels.tobytes()).digest()
        if key not in known:
            known[key] = torch_outputs(model, pixels, spec.preprocessing)
        return known[key]

    return outputs


def _row(work: _Work, cell: Cell, number: int, count: int) -> Row:
    """Export and judge one bundle, or take over what is known of it. No failure of its own is raised."""
    row = Row(cell.target, cell.precision, "absent", cell.absent)
    if cell.absent is not None:
        return row
    place = f"{cell.name} ({number} of {count})"
    try:
        kept = _exported(work, cell, place)
        if kept.digest is None:
            return dataclasses.replace(row, status="failed", reason=kept.missed)
        kept = _judged(work, cell, kept, place)
    # Engines raise their own classes, which share only Exception.
    except Exception as error:
        # A disk that is full or read-only fails every other bundle as well.
        if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        work.say(f"{place}: failed: {reason}")
        return dataclasses.replace(row, status="failed", reason=reason)
    bundle = work.folder(cell)
    return dataclasses.replace(
        row,
        status="done",
        bundle=str(bundle.relative_to(work.request.out)),
        digest=kept.digest,
        files_mb=size_bytes(read_bundle(bundle)) / 2**20,
        build_s=kept.build_s,
        accuracy=kept.accuracy,
    )


def _exported(work: _Work, cell: Cell, place: str) -> Kept:
    """The bundle of an earlier call where it would come out the same, or a new one."""
    folder = work.folder(cell)
    calibrated_on = work.calibrated_on if cell.precision == "int8" else None
    asked = digest_of(
        weights=work.weights_sha256,
        model=to_json(work.spec),
        verified_on=work.verified_on.digest,
        calibrated_on=calibrated_on and calibrated_on.digest,
        tools=tool_versions(),
    )
    kept = read_kept(folder)
    if kept is not None:
        changed = _changed(folder, kept, asked)
        if changed is None:
            work.say(f"{place}: {'exported already' if kept.digest else 'failed before, the same'}")
            return kept
        work.say(f"{place}: {changed}: exporting anew")
    else:
        work.say(f"{place}: exporting")
    started = time.perf_counter()
    try:
        bundle = _export(work, cell, folder, calibrated_on)
    except GateError as error:
        # A bound missed is a result: it would be missed again, and an older bundle is of no use.
        shutil.rmtree(folder, ignore_errors=True)
        kept = Kept(asked, None, error.reason, time.perf_counter() - started)
        work.say(f"{place}: failed: {error.reason}")
    else:
        kept = Kept(asked, bundle.manifest.seal, None, time.perf_counter() - started)
    write_kept(folder, kept)
    return kept


def _changed(folder: Path, kept: Kept, asked: str) -> str | None:
    """Why what is kept cannot be taken over; None where it can."""
    if kept.request != asked:
        return "images, network or tools are others than before"
    if kept.digest is None:
        return None
    try:
        bundle = read_bundle(folder)
    except BundleError as error:
        return str(error)
    return None if bundle.manifest.seal == kept.digest else "the bundle was altered"


def _export(work: _Work, cell: Cell, folder: Path, calibrated_on: ImageSet | None) -> Bundle:
    asked = ExportRequest(
        cell.target,
        cell.precision,
        calibration=None if calibrated_on is None else CalibrationRequest(calibrated_on),
    )
    weights = work.request.run / WEIGHTS_FILE
    export(work.model, work.spec, work.verified_on, asked, folder, work.progress, work.say, weights)
    if cell.target == "tensorrt":
        build_engine(folder, progress=work.progress, say=work.say)
        # A second engine returns the kept patches, which are to be compared.
        build_engine(folder, explain=True, progress=work.progress, say=work.say)
    return read_bundle(folder)


def _judged(work: _Work, cell: Cell, kept: Kept, place: str) -> Kept:
    """With the accuracy on the split, measured unless it is known."""
    folder = work.folder(cell)
    judged = digest_of(
        bundle=kept.digest,
        split=work.split.name,
        images=work.split_digest,
        machine=work.machine,
        tools=tool_versions(),
    )
    if kept.judged == judged:
        return kept
    total, done = len(work.split.paths), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        work.progress(f"{place}: accuracy on {work.split.name}", done, total)

    found = verify(folder, None, work.split, work.reference, advance)
    if found.top1 is None or found.reference_top1 is None or found.top1_agreement is None:
        raise FailedError("; ".join(found.failures))
    accuracy = Accuracy(
        found.top1,
        found.reference_top1,
        found.reference_top1 - found.top1,
        found.top1_agreement,
        found.kept_overlap or (),
        found.failures,
        found.skipped,
    )
    kept = dataclasses.replace(kept, judged=judged, accuracy=accuracy)
    write_kept(folder, kept)
    return kept


def _measured(work: _Work, rows: list[Row]) -> tuple[list[Row], Profile | None]:
    """All bundles in one interleaved run; one that cannot be measured is a failure, the rest goes on."""
    while competing := [row for row in rows if row.status == "done"]:
        folders = [work.request.out / str(row.bundle) for row in competing]
        work.say(f"measuring in turn: {', '.join(row.name for row in competing)}")
        try:
            found = profile(
                _profile_request(work.request, folders, work.split), work.progress, work.say
            )
        except GftEdgeError as error:
            if error.bundle not in folders:
                raise
            failed = competing[folders.index(error.bundle)]
            work.say(f"{failed.name}: failed: {error}")
            rows = [
                dataclasses.replace(row, status="failed", reason=str(error))
                if row is failed
                else row
                for row in rows
            ]
            continue
        reports = {report.digest: measured(report) for report in found.reports}
        return [dataclasses.replace(r, measured=reports.get(r.digest or "")) for r in rows], found
    return rows, None


def _profile_request(
    request: BenchmarkRequest, folders: Sequence[Path], split: Split | None
) -> ProfileRequest:
    # Timed on any images of the folder that the split's lie in.
    images = Path(os.path.commonpath([path.parent for path in split.paths])) if split else None
    return ProfileRequest(
        tuple(folders),
        images=images,
        duration_s=request.duration_s,
        warmup_ms=request.warmup_ms,
        min_samples=request.min_samples,
        percentiles=request.percentiles,
        layers=request.layers,
    )


def _benchmark(work: _Work, rows: Sequence[Row], found: Profile | None) -> Benchmark:
    judged = next((row.accuracy for row in rows if row.accuracy is not None), None)
    return Benchmark(
        schema_version=SCHEMA_VERSION,
        version=metadata.version("gft-edge"),
        made_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        complete=found is None or found.complete,
        run=str(work.request.run),
        network=work.spec.name,
        weights_sha256=work.weights_sha256,
        data=str(work.request.data.folder),
        split=work.split.name,
        images=len(work.split.paths),
        split_digest=work.split_digest,
        reference_top1=judged.reference_top1 if judged else None,
        machine=found.machine if found else this_machine(),
        stable=found.stable if found else None,
        causes=found.causes if found else (),
        rows=tuple(rows),
        best=best_rows(rows, len(work.split.paths), found),
    )
