"""A benchmark: a run in targets, precisions and at keep counts, exported, judged and measured in turn."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from gft_edge.bundle.images import DataSource, ImageSet
from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.specs import ModelSpec, Progress, Say
from gft_edge.bundle.store import is_bundle, write_whole
from gft_edge.datasets import Split, choosing_split, reporting_split
from gft_edge.errors import DataError, UsageError
from gft_edge.model.network import Network
from gft_edge.model.remembered import Remembered
from gft_edge.profiling.machine import this_machine
from gft_edge.profiling.profile import ProfileRequest, check_measuring
from gft_edge.profiling.report import Profile
from gft_edge.reporting.table import to_csv
from gft_edge.runtime.backends import backend_for
from gft_edge.studies.bench import HERE, Bench
from gft_edge.studies.benchmark_table import csv_table
from gft_edge.studies.drawn_images import (
    VERIFICATION_IMAGES,
    calibration_images,
    verification_images,
)
from gft_edge.studies.evaluation import Case, launched_together, open_case
from gft_edge.studies.grid import grid
from gft_edge.studies.keep_counts import evaluated_at, keep_counts
from gft_edge.studies.memory import CSV_FILE, JSON_FILE, claimed
from gft_edge.studies.results import SCHEMA_VERSION, Benchmark, best_rows
from gft_edge.studies.study import Study, exported, judged, measured_together, reference_at
from gft_edge.studies.variants import PYTORCH, KeepCounts, Variant, with_front


@dataclass(frozen=True)
class BenchmarkRequest:
    """What to benchmark, on which images, and how long to measure; see profile.ProfileRequest.

    `keep` are lists of keep counts, `points` a number of them made at the trained ratios; with either
    the trained counts and the network that drops nothing are tried as well. `targets` and `precisions`
    None take all there are, with keep counts one engine in fp32. `split` None takes test to report on,
    or val to choose keep counts on. Without `latency` nothing is exported: accuracy and GFLOPs alone.
    `calibration_data` None takes the train split. Exports are verified on `images`; accuracy is of
    `limit` images of the split, None for all. `device` and `workers` are evaluate_case's.
    """

    run: Path
    data: DataSource
    out: Path
    split: str | None = None
    targets: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    keep: tuple[str, ...] = ()
    points: int | None = None
    latency: bool = True
    calibration_data: Path | None = None
    images: int = VERIFICATION_IMAGES
    limit: int | None = None
    fresh: bool = False
    duration_s: float = 10.0
    warmup_ms: float = 200.0
    min_samples: int | None = None
    percentiles: tuple[float, ...] = (50.0, 90.0, 95.0, 99.0)
    layers: bool = False
    device: str = "auto"
    workers: int = 2

    @property
    def by_counts(self) -> bool:
        """Whether keep counts are compared."""
        return bool(self.keep) or self.points is not None


def benchmark(
    request: BenchmarkRequest,
    progress: Progress = lambda text, done, total: None,
    say: Say = lambda text: None,
    bench: Bench = HERE,
) -> tuple[Benchmark, Profile | None]:
    """Export, judge and measure every variant that runs on `bench`; what fails is a row with its reason.

    What `request.out` remembers of an earlier call, or an interrupted one, is taken over where nothing
    that decides it has changed. The profile is None where no bundle came out. Raises UsageError for a
    request that cannot be met at all, BundleError and OSError where nothing can be written; an
    interrupt before the measuring goes through. Writes CSV_FILE and JSON_FILE, and PROFILE_FILE where
    something was measured.
    """
    case, model = _opened(request, progress, say)
    counts: tuple[KeepCounts, ...] = ()
    if request.by_counts:
        counts = keep_counts(case.spec, model, request.keep, request.points or 0)
    variants, calibrated_on, verified_on = _variants(request, case.spec, model, counts, bench, say)
    with claimed(request.out, case.weights_sha256, request.fresh) as memory:
        at_counts = evaluated_at(
            counts, case, model, memory, request.fresh, request.device, request.workers,
            progress, say,
        )  # fmt: skip
        variants = [
            dataclasses.replace(each, at_counts=at_counts.get(each.keep)) if each.keep else each
            for each in variants
        ]
        found = None
        if verified_on is not None:
            study = Study(
                case, model, calibrated_on, verified_on, request.out, memory, progress, say, bench
            )
            variants = _exported_and_judged(study, variants)
            variants, found = measured_together(study, variants, _how(request, case.split))
        result = _benchmark(request, case, with_front(variants), found)
        text = json.dumps(to_json(result), indent=1) + "\n"
        write_whole(request.out / JSON_FILE, text.encode())
        csv = to_csv(csv_table(result))
        write_whole(request.out / CSV_FILE, csv.encode("utf-8", "backslashreplace"))
    return result, found


def _opened(request: BenchmarkRequest, progress: Progress, say: Say) -> tuple[Case, Network]:
    """Raises UsageError, CheckpointError or DataError for a request that cannot be met at all."""
    if is_bundle(request.run):
        raise UsageError(f"{request.run} is a bundle: give the run that it was exported from")
    if launched_together():
        raise UsageError(
            "processes launched together would measure each other: start gft-edge benchmark alone"
        )
    if request.images < 1:
        raise UsageError(f"--images is {request.images}: give 1 or more")
    if request.limit is not None and request.by_counts:
        raise UsageError("--limit cannot be had with --keep or --grid: they take the whole split")
    if not (request.latency or request.by_counts):
        raise UsageError("--no-latency is for --keep or --grid: give one of them too")
    check_measuring(_how(request, None))
    source, name = request.data, request.split
    if name is None:
        name = choosing_split(source) if request.by_counts else reporting_split(source)
        say(f"judging on {name}: --split names another")
    return open_case(request.run, source, name, request.limit, request.fresh, progress, say)


def _variants(
    request: BenchmarkRequest,
    spec: ModelSpec,
    model: Network,
    counts: Sequence[KeepCounts],
    bench: Bench,
    say: Say,
) -> tuple[list[Variant], ImageSet | None, ImageSet | None]:
    """What to try, the images that INT8 is calibrated on, and those that exports are verified on."""
    if not request.latency:
        return [Variant(PYTORCH, "fp32", each) for each in counts], None, None
    targets, precisions = request.targets, request.precisions
    if counts:
        precisions = precisions or ("fp32",)
        targets = targets or ("onnx" if backend_for("openvino").missing() else "openvino",)
    calibrated_on, uncalibrated = None, None
    if precisions is None or any(name.startswith("int8") for name in precisions):
        try:
            calibrated_on = calibration_images(
                request.calibration_data, request.data, spec.labels, say
            )
        except DataError as error:
            if request.calibration_data is not None:
                raise
            uncalibrated = str(error)
    elif request.calibration_data is not None:
        raise UsageError("--calibration-data is for --precisions int8: leave it out")
    variants = list(grid(targets, precisions, uncalibrated, counts or (None,), bench))
    verified_on = verification_images(
        request.data,
        spec.labels,
        request.images,
        calibrated_on,
        decisions=Remembered(model, spec).decisions,
    )
    return variants, calibrated_on, verified_on


def _exported_and_judged(study: Study, variants: Sequence[Variant]) -> list[Variant]:
    """PyTorch's outputs are kept for as long as the next variant has the same keep counts."""
    found: list[Variant] = []
    reference = None
    for number, variant in enumerate(variants, start=1):
        if variant.status == "absent":
            found.append(variant)
            continue
        place = f"{variant.name} ({number} of {len(variants)})"
        if reference is None or variants[number - 2].keep != variant.keep:
            reference = reference_at(study, variant)
        variant = exported(study, variant, place)
        if variant.status == "done":
            variant = judged(study, variant, reference, place)
        found.append(variant)
    return found


def _how(request: BenchmarkRequest, split: Split | None) -> ProfileRequest:
    # Timed on any images of the folder that the split's lie in.
    images = Path(os.path.commonpath([path.parent for path in split.paths])) if split else None
    return ProfileRequest(
        (request.out,),
        images=images,
        duration_s=request.duration_s,
        warmup_ms=request.warmup_ms,
        min_samples=request.min_samples,
        percentiles=request.percentiles,
        layers=request.layers,
    )


def _benchmark(
    request: BenchmarkRequest, case: Case, rows: tuple[Variant, ...], found: Profile | None
) -> Benchmark:
    images = len(case.split.paths)
    return Benchmark(
        schema_version=SCHEMA_VERSION,
        version=metadata.version("gft-edge"),
        made_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        complete=found is None or found.complete,
        run=str(request.run),
        network=case.spec.name,
        patches=case.spec.patch_count,
        weights_sha256=case.weights_sha256,
        data=str(request.data.folder),
        split=case.split.name,
        images=images,
        split_digest=case.split_digest,
        reference_top1=_reference_top1(rows),
        machine=found.machine if found else this_machine(),
        stable=found.stable if found else None,
        causes=found.causes if found else (),
        rows=rows,
        best=best_rows(rows, images, found),
    )


def _reference_top1(rows: Sequence[Variant]) -> float | None:
    """PyTorch's accuracy at the trained keep counts; None where nothing was judged there."""
    trained = [row for row in rows if row.keep is None or row.keep.role == "trained"]
    for row in trained:
        if row.at_counts is not None:
            return row.at_counts.top1
        if row.accuracy is not None:
            return row.accuracy.reference_top1
    return None
