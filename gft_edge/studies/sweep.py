"""A sweep from beginning to end: each point evaluated, exported, and all of them measured in turn."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.images import DataSource, ImageRecord, ImageSet
from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.bundle.locks import claimed_folder
from gft_edge.bundle.specs import ModelSpec, Progress, Say
from gft_edge.bundle.store import Bundle, read_bundle, sha256_of, write_whole
from gft_edge.calibration.image_set import (
    CALIBRATION_IMAGES,
    draw_calibration_set,
    draw_image_set,
    read_calibration_folder,
    without_images,
)
from gft_edge.datasets import (
    Split,
    choosing_split,
    read_split,
    split_digest,
    splits_of,
    verification_split,
)
from gft_edge.errors import BundleError, FailedError, GateError, SpecError, UsageError
from gft_edge.export.int8 import CalibrationRequest
from gft_edge.export.recipe import ExportRequest, check_request, export
from gft_edge.export.workbench import tool_versions
from gft_edge.model.checkpoint import WEIGHTS_FILE, load_run
from gft_edge.model.cost import cost_of
from gft_edge.model.networks import Network
from gft_edge.model.schedule import at_stages
from gft_edge.nvidia.build import build_engine
from gft_edge.profiling.machine import summary, this_machine
from gft_edge.profiling.profile import ProfileRequest, check_measuring
from gft_edge.runtime.backends import backend_for
from gft_edge.studies.evaluation import (
    Case,
    check_run,
    chosen_device,
    evaluate_case,
    launched_together,
    run_split,
    spec_digest,
)
from gft_edge.studies.keep_counts import DEFAULT_POINTS, KeepCounts, keep_counts
from gft_edge.studies.latency import Conditions, Latency, measure
from gft_edge.studies.sweep_results import Point, Sweep
from gft_edge.training.data import targets_of
from gft_edge.training.loop import network_logits, quiet, silent
from gft_edge.training.processes import accelerator_on

MARKER_FILE = ".gft-edge-sweep"
POINTS, BUNDLES, LATENCY_FILE = "points", "bundles", "latency.json"

SEED = 0

T = TypeVar("T")


@dataclass(frozen=True)
class SweepRequest:
    """What to try, and where to keep it. `keep` are lists of counts, without any a grid of `points`.

    `split` None is val, or test of data that has no val.
    `target` is what every point is exported for to be timed, None for no latencies; exports are
    verified on `images`, int8 is calibrated on `calibration_data`, None for the train split.
    `device` and `workers` are evaluate_case's.
    """

    run: Path
    source: DataSource
    out: Path
    split: str | None = None
    keep: tuple[str, ...] = ()
    points: int = DEFAULT_POINTS
    target: str | None = None
    precision: str = "fp32"
    calibration_data: Path | None = None
    images: int = 256
    duration_s: float = 5.0
    fresh: bool = False
    device: str = "auto"
    workers: int = 2


@dataclass(frozen=True)
class _Evaluated:
    """The file of a point not trained at: each image's class, and what says whether it still holds."""

    weights_sha256: str
    model_sha256: str
    split_digest: str
    predictions: tuple[int, ...]


@dataclass(frozen=True)
class _Measured:
    """The latencies' file: one a bundle, of those with these seals on this machine."""

    seals: tuple[str, ...]
    machine: str
    duration_s: float
    latencies: tuple[Latency, ...]
    conditions: Conditions


@dataclass(frozen=True)
class _Origin:
    """What decides how an export comes out, target and precision aside, which name its folder."""

    weights_sha256: str
    model: ModelSpec
    verified_on: ImageRecord
    calibrated_on: ImageRecord | None
    tools: Mapping[str, str]


@dataclass(frozen=True)
class _Missed:
    """The file beside a bundle's folder whose export missed a bound: it would miss it again."""

    origin: _Origin
    message: str


@dataclass(frozen=True)
class _Exports:
    """What the bundles of all points are made of beside the network."""

    asked: ExportRequest
    images: ImageSet

    def origin(self, spec: ModelSpec, weights_sha256: str) -> _Origin:
        """Of an export made now."""
        calibration = self.asked.calibration
        return _Origin(
            weights_sha256,
            spec,
            _record(self.images),
            None if calibration is None else _record(calibration.images),
            tool_versions(),
        )


@dataclass(frozen=True)
class _Work:
    """What all points share."""

    request: SweepRequest
    spec: ModelSpec
    model: Network
    weights_sha256: str
    split: Split
    split_digest: str
    progress: Progress
    say: Say


def sweep(request: SweepRequest, progress: Progress = quiet, say: Say = silent) -> Sweep:
    """Evaluate every point on the split, export each, and measure all the bundles in turn.

    What `request.out` keeps of an earlier sweep is taken over where weights, counts and images are
    the same; an interrupt goes through and loses the point at hand alone. Raises before any work
    UsageError for a request or a folder that cannot be used and SpecError for impossible counts,
    and later GateError where the trained counts' own bundle misses a bound; of any other point
    that leaves out the latency.
    """
    if launched_together():
        raise UsageError(
            "processes launched together would measure each other: start gft-edge sweep alone"
        )
    check_run(request.run)
    spec, model = load_run(request.run)
    points = keep_counts(spec, model, request.keep, request.points)
    split = run_split(request.source, request.split or choosing_split(request.source), spec.labels)
    for remark in split.remarks:
        say(remark)
    exports = None if request.target is None else _exports(request, request.target, spec, say)
    weights_sha256 = sha256_of(request.run / WEIGHTS_FILE)
    work = _Work(request, spec, model, weights_sha256, split, split_digest(split), progress, say)
    with claimed_folder(request.out, MARKER_FILE, "sweep"):
        (request.out / MARKER_FILE).touch()
        if request.split is None:
            why = "" if split.name == "val" else ", there is no val split"
            say(f"evaluating on {split.name}{why}")
        if request.fresh:
            _forget(request.out, split.name)
        right = [_right(work, point, n, len(points)) for n, point in enumerate(points, start=1)]
        bundles, reasons = _bundles(work, exports, points) if exports else ({}, {})
        latencies, measured = _latencies(work, bundles) if bundles else ({}, None)
    return Sweep(
        run=str(request.run),
        network=spec.name,
        patches=spec.patch_count,
        weights_sha256=weights_sha256,
        split=split.name,
        split_digest=work.split_digest,
        images=len(split.paths),
        target=None if exports is None else backend_for(exports.asked.target).TARGET,
        precision=None if exports is None else exports.asked.precision,
        measured=measured,
        points=tuple(
            _point(work, point, right[n], right[0], latencies.get(n), reasons.get(n))
            for n, point in enumerate(points)
        ),
    ).with_front()


def _exports(request: SweepRequest, target: str, spec: ModelSpec, say: Say) -> _Exports:
    """Raises UsageError for a target that cannot be measured here, DataError for unfit images."""
    check_measuring(ProfileRequest((request.out,), duration_s=request.duration_s))
    source, labels, calibration = request.source, spec.labels, None
    available = read_split(source, verification_split(source), labels)
    if request.precision == "int8":
        known = read_split(source, "test", labels) if "test" in splits_of(source) else None
        folder, dataset = request.calibration_data, (source.dataset, source.coco_category)
        images, remarks = draw_calibration_set(
            read_split(source, "train", labels)
            if folder is None
            else read_calibration_folder(folder, labels, *dataset),
            CALIBRATION_IMAGES,
            SEED,
            known,
        )
        for remark in remarks:
            say(remark)
        calibration = CalibrationRequest(images)
        available = without_images(available, images)
    elif request.calibration_data is not None:
        raise UsageError("--calibration-data is for --precision int8: leave it out")
    asked = ExportRequest(target, request.precision, calibration=calibration, keeps_all=True)
    check_request(asked)
    if missing := backend_for(target).missing():
        raise UsageError(missing)
    return _Exports(asked, draw_image_set(available, request.images, SEED))


def _forget(out: Path, split: str) -> None:
    for folder in (out / POINTS / split, out / BUNDLES):
        shutil.rmtree(folder, ignore_errors=True)
    (out / LATENCY_FILE).unlink(missing_ok=True)


def _right(work: _Work, point: KeepCounts, number: int, count: int) -> npt.NDArray[np.bool_]:
    """(images,): which ones PyTorch gets right at these counts. Raises FailedError for NaN."""
    place = f"{point.name} ({number} of {count})"
    predictions, reused = _predictions(work, point, place)
    right: npt.NDArray[np.bool_] = predictions == targets_of(work.split)
    how = "as evaluated before" if reused else "evaluated"
    work.say(f"{place}: {how}, top-1 {100 * right.mean():.2f} %")
    return right


def _predictions(work: _Work, point: KeepCounts, place: str) -> tuple[npt.NDArray[np.int64], bool]:
    """(images,) classes, and whether they are of an earlier evaluation."""

    def progress(text: str, done: int, total: int) -> None:
        work.progress(f"{place}: {text}", done, total)

    request = work.request
    if point.role == "trained":
        # The run's own evaluation, so that no other command has another number.
        case = Case(request.run, work.spec, work.split, work.weights_sha256, work.split_digest)
        found = evaluate_case(
            case, request.fresh, progress, silent, request.device, request.workers, work.model
        )
        work.model.to("cpu")
        return found.logits.argmax(axis=1), found.reused
    spec, network = at_stages(work.spec, work.model, point.stages)
    asked = (work.weights_sha256, spec_digest(spec), work.split_digest)
    file = request.out / POINTS / work.split.name / f"{point.file_name}.json"
    kept = _read(_Evaluated, file)
    if (
        kept is not None
        and (kept.weights_sha256, kept.model_sha256, kept.split_digest) == asked
        and len(kept.predictions) == len(work.split.paths)
    ):
        return np.asarray(kept.predictions), True
    accelerator = accelerator_on(chosen_device(request.device))
    logits = network_logits(
        network.to(accelerator.device), spec, work.split, request.workers, progress, accelerator
    )
    if not np.isfinite(logits).all():
        raise FailedError(f"{place}: the logits hold NaN or infinity: train the run again")
    predictions = logits.argmax(axis=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = to_json(_Evaluated(*asked, tuple(map(int, predictions))))
    write_whole(file, json.dumps(content).encode())
    return predictions, False


def _bundles(
    work: _Work, exports: _Exports, points: Sequence[KeepCounts]
) -> tuple[dict[int, Bundle], dict[int, str]]:
    """Point -> its bundle, or the bound that it missed."""
    bundles: dict[int, Bundle] = {}
    reasons: dict[int, str] = {}
    for number, point in enumerate(points):
        try:
            bundles[number] = _bundle(work, exports, point, f"{number + 1} of {len(points)}")
        except GateError as error:
            # The others are measured relative to it.
            if point.role == "trained":
                raise
            reasons[number] = error.reason
            work.say(f"{point.name}: no latency: {reasons[number]}")
    return bundles, reasons


def _bundle(work: _Work, exports: _Exports, point: KeepCounts, place: str) -> Bundle:
    """The bundle of an earlier sweep where it would come out the same, or a new one.

    Raises GateError for one that misses a bound, or missed it before and would again.
    """
    asked = exports.asked
    target = backend_for(asked.target).TARGET
    folder = work.request.out / BUNDLES / f"{target}-{asked.precision}" / point.file_name
    missed = folder.with_name(f"{folder.name}.json")
    spec = dataclasses.replace(work.spec, stages=point.stages)
    origin = exports.origin(spec, work.weights_sha256)
    if _origin_of(folder) == origin:
        work.say(f"{point.name} ({place}): exported already")
    elif (kept := _read(_Missed, missed)) is not None and kept.origin == origin:
        work.say(f"{point.name} ({place}): failed before, the same; --fresh exports it again")
        raise GateError(kept.message)
    else:
        work.say(f"{point.name} ({place}): exporting for {target} in {asked.precision}")
        try:
            _export(work, exports, point, folder)
        except GateError as error:
            missed.parent.mkdir(parents=True, exist_ok=True)
            write_whole(missed, json.dumps(to_json(_Missed(origin, error.reason))).encode())
            raise
    if target == "tensorrt":
        # Of an earlier sweep's bundle too: its build was interrupted, or made on another machine.
        build_engine(folder, progress=work.progress, say=work.say)
    return read_bundle(folder)


def _export(work: _Work, exports: _Exports, point: KeepCounts, folder: Path) -> None:
    stages = None if point.role == "trained" else point.stages
    export(
        work.model,
        work.spec,
        exports.images,
        dataclasses.replace(exports.asked, stages=stages),
        folder,
        work.progress,
        work.say,
        work.request.run / WEIGHTS_FILE,
    )


def _origin_of(folder: Path) -> _Origin | None:
    """Of the bundle in a folder, by the tools of today; None where there is none that can be read."""
    try:
        manifest = read_bundle(folder).manifest
    except BundleError:
        return None
    quantization = manifest.quantization
    return _Origin(
        manifest.lineage[0].sha256 if manifest.lineage else "",
        manifest.model,
        manifest.verified_on,
        None if quantization is None else quantization.calibrated_on,
        {name: version for name, version in manifest.tools.items() if name in tool_versions()},
    )


def _latencies(work: _Work, bundles: Mapping[int, Bundle]) -> tuple[dict[int, Latency], Conditions]:
    """Point -> latency, measured in one run, or all taken over of a stable one of the same bundles."""
    file, machine = work.request.out / LATENCY_FILE, summary(this_machine())
    seals = tuple(bundle.manifest.seal for bundle in bundles.values())
    kept = _read(_Measured, file)
    asked = (seals, machine, work.request.duration_s)
    if (
        kept is None
        or (kept.seals, kept.machine, kept.duration_s) != asked
        or not kept.conditions.stable
    ):
        work.say(f"measuring {len(bundles)} bundles in turn")
        places = {(n, b.manifest.target, b.manifest.precision): b for n, b in bundles.items()}
        found, measured = measure(places, work.request.duration_s, work.progress, work.say)
        kept = _Measured(*asked, tuple(found[number][0] for number in bundles), measured)
        write_whole(file, (json.dumps(to_json(kept), indent=1) + "\n").encode())
    else:
        work.say("latencies: as measured before, the bundles are the same")
    return dict(zip(bundles, kept.latencies, strict=True)), kept.conditions


def _point(
    work: _Work,
    point: KeepCounts,
    right: npt.NDArray[np.bool_],
    trained: npt.NDArray[np.bool_],
    latency: Latency | None,
    reason: str | None,
) -> Point:
    images = len(right)
    gained, lost = int((right & ~trained).sum()), int((trained & ~right).sum())
    # Of the mean of the images' differences, each 1, 0 or -1.
    variance = (gained + lost) / images - ((gained - lost) / images) ** 2
    return Point(
        name=point.name,
        role=point.role,
        keep=tuple(stage.keep for stage in point.stages),
        top1=float(right.mean()),
        difference=(gained - lost) / images,
        standard_error=math.sqrt(max(0.0, variance) / images),
        gained=gained,
        lost=lost,
        gflops=cost_of(at_stages(work.spec, work.model, point.stages)[1]).gflops,
        latency=latency,
        reason=reason,
    )


def _record(images: ImageSet) -> ImageRecord:
    return ImageRecord(len(images.paths), images.seed, images.digest)


def _read(kind: type[T], path: Path) -> T | None:
    """A file of an earlier sweep; None where there is none that can be read."""
    try:
        return from_json(kind, json.loads(path.read_bytes()), path.name)
    except (OSError, ValueError, RecursionError, SpecError):
        return None
