"""A profile from beginning to end: the machine before, bundles measured in turn, the machine after."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from gft_edge.bundle.json_form import from_json
from gft_edge.bundle.specs import Progress, Say
from gft_edge.bundle.store import Bundle, read_bundle
from gft_edge.errors import FailedError, GftEdgeError, UsageError
from gft_edge.profiling.conditions import likely_causes, other_load, read_conditions
from gft_edge.profiling.energy import idle_power_w
from gft_edge.profiling.latency import (
    IN_FLIGHT_TURN_S,
    TURN_S,
    Series,
    Worker,
    measure_in_turn,
    warm_up,
)
from gft_edge.profiling.layers import Breakdown
from gft_edge.profiling.machine import this_machine
from gft_edge.profiling.measured import (
    SETTLE_POWER_S,
    BundleUnderTest,
    energy_of,
    interruptions,
    report_of,
)
from gft_edge.profiling.power import PowerSource, find_power_source
from gft_edge.profiling.report import (
    SCHEMA_VERSION,
    Inputs,
    Profile,
    Report,
    Role,
    Settings,
)
from gft_edge.profiling.report_file import is_stable
from gft_edge.profiling.samples import check_percentiles, samples_needed
from gft_edge.profiling.worker import SETTLE_S
from gft_edge.runtime.backends import Hint, backend_for
from gft_edge.runtime.golden import read_golden
from gft_edge.runtime.preprocess import open_rgb
from gft_edge.runtime.sources.images import images_below

# Enough for sizes to differ, few enough that each comes round often.
MOST_IMAGES = 32
IDLE_S = 5.0
LEAST_PERCENTILE = 99.0


@dataclass(frozen=True)
class ProfileRequest:
    """What to measure and how; see report.Settings.

    `device` is that of the bundles which run on OpenVINO.

    `images` None takes golden frames, `min_samples` None what the percentiles need, but a p99's at least.
    """

    bundles: tuple[Path, ...]
    baseline: Path | None = None
    images: Path | None = None
    duration_s: float = 10.0
    warmup_ms: float = 200.0
    min_samples: int | None = None
    percentiles: tuple[float, ...] = (50.0, 90.0, 95.0, 99.0)
    hint: Hint = "latency"
    threads: int | None = None
    batch: int | None = None
    backend: str | None = None
    device: str | None = None
    cuda_graph: bool = False
    layers: bool = False


def check_request(request: ProfileRequest) -> None:
    """Raise what `profile` would before it measures, for a caller with minutes of work to do first."""
    check_measuring(request)
    bundles = [read_bundle(folder) for folder in request.bundles]
    _batch(bundles, request.batch)
    _inputs(request.images, bundles[0])


def check_measuring(request: ProfileRequest) -> None:
    """Raise UsageError for a number or an option that nothing can be measured with."""
    if not request.bundles:
        raise UsageError(
            "profile which bundle? give one or more folders that gft-edge export wrote"
        )
    if not 0 < request.duration_s < float("inf"):
        raise UsageError(f"--duration is {request.duration_s:g}: give seconds over 0")
    if not 0 <= request.warmup_ms < float("inf"):
        raise UsageError(f"--warmup-ms is {request.warmup_ms:g}: give 0 or more")
    if request.min_samples is not None and request.min_samples < 1:
        raise UsageError(f"--min-samples is {request.min_samples}: give 1 or more")
    check_percentiles(request.percentiles)
    if request.layers and request.hint == "throughput":
        raise UsageError("layers are timed one inference at a time: leave --layers or --hint out")


def profile(
    request: ProfileRequest,
    progress: Progress = lambda text, done, total: None,
    say: Say = lambda text: None,
) -> Profile:
    """Measure the bundles, the baseline last, on this machine.

    Ctrl-C while samples are taken ends the measuring and gives a profile that is not complete.
    Raises UsageError for what cannot run here or be compared, FailedError when an engine dies.
    """
    check_measuring(request)
    folders = [*request.bundles, *([request.baseline] if request.baseline else [])]
    bundles = [read_bundle(folder) for folder in folders]
    targets = {backend_for(request.backend or each.manifest.target).TARGET for each in bundles}
    if request.device is not None and "openvino" not in targets:
        raise UsageError(
            f"--device {request.device} is for OpenVINO, and none of these bundles runs on it: leave it out"
        )
    needed = max(map(samples_needed, (LEAST_PERCENTILE, *request.percentiles)))
    settings = Settings(
        request.duration_s,
        request.warmup_ms,
        needed if request.min_samples is None else request.min_samples,
        request.percentiles,
        request.hint,
        request.threads,
        _batch(bundles, request.batch),
        request.backend,
        request.device,
        request.cuda_graph,
        turn_ms=0.0,
        settle_ms=SETTLE_S * 1000,
    )
    paths, inputs = _inputs(request.images, bundles[0])
    with ExitStack() as stack:
        subjects = _loaded(stack, bundles, settings, paths, progress)
        sources = {s.on_gpu: find_power_source(nvidia_gpu=s.on_gpu) for s in subjects}
        idle_w = _idle_power_w(sources)
        all_series = [series for subject in subjects for series in subject.series]
        progress("warm up", 0, 1)
        longest_s = IN_FLIGHT_TURN_S if request.hint == "throughput" else TURN_S
        turn_s = warm_up(all_series, request.warmup_ms, request.duration_s, longest_s)
        settings = dataclasses.replace(settings, turn_ms=turn_s * 1000)
        progress("warm up", 1, 1)
        own_s = _cpu_s(subjects)
        before = read_conditions()
        complete = measure_in_turn(
            all_series,
            settings.duration_s,
            settings.min_samples,
            turn_s,
            lambda done: progress("measure", round(100 * done), 100),
        )
        after = read_conditions()
        own_s = _cpu_s(subjects) - own_s + after.own_cpu_s - before.own_cpu_s
        if not all_series[0].turns:
            raise FailedError("interrupted before the first turn was over: nothing was measured")
        try:
            if complete:
                _measure_apart(subjects, sources, idle_w, request, progress, say)
        except KeyboardInterrupt:
            complete = False
        reports: list[Report] = []
        for number, subject in enumerate(subjects):
            last = number == len(subjects) - 1
            role: Role = "baseline" if request.baseline and last else "bundle"
            first = reports[0].boundaries if reports else None
            reports.append(report_of(subject, role, settings, first))
    machine, others = this_machine(), other_load(before, after, own_s)
    stable = is_stable(reports, others, machine.cores)
    causes = () if stable else (*likely_causes(before, after, own_s), *interruptions(reports))
    return Profile(
        schema_version=SCHEMA_VERSION,
        version=metadata.version("gft-edge"),
        made_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        complete=complete,
        stable=stable,
        causes=causes,
        other_cores=others,
        machine=machine,
        host=None,
        before=before,
        after=after,
        settings=settings,
        inputs=inputs,
        reports=tuple(reports),
    )


def _loaded(
    stack: ExitStack,
    bundles: Sequence[Bundle],
    settings: Settings,
    paths: Sequence[Path],
    progress: Progress,
) -> list[BundleUnderTest]:
    subjects: list[BundleUnderTest] = []
    for number, bundle in enumerate(bundles):
        progress("load", number, len(bundles))
        worker = stack.enter_context(Worker(str(bundle.folder)))
        target = backend_for(settings.backend or bundle.manifest.target).TARGET
        on_gpu = target == "tensorrt"
        opened = worker.ask(
            "open",
            bundle=str(bundle.folder),
            backend=settings.backend,
            threads=settings.threads,
            device=settings.device if target == "openvino" else None,
            cuda_graph=settings.cuda_graph and on_gpu,
            hint=settings.hint,
            images=[str(path) for path in paths],
            golden=str(bundles[0].folder),
            on_gpu=on_gpu,
        )
        engine = Series(worker, "engine")
        end_to_end = None if settings.hint == "throughput" else Series(worker, "end_to_end")
        subjects.append(BundleUnderTest(bundle, worker, opened, engine, end_to_end, on_gpu))
    progress("load", len(bundles), len(bundles))
    return subjects


def _measure_apart(
    subjects: Sequence[BundleUnderTest],
    sources: Mapping[bool, PowerSource | str],
    idle_w: Mapping[bool, float | None],
    request: ProfileRequest,
    progress: Progress,
    say: Say,
) -> None:
    """Energy, then layers where they are asked for; what cannot be had of one costs the others nothing."""
    for subject in subjects:
        source = sources[subject.on_gpu]
        subject.energy = energy_of(subject, source, idle_w[subject.on_gpu])
    if not request.layers:
        return
    for number, subject in enumerate(subjects):
        progress("layers", number, len(subjects))
        try:
            reply = subject.worker.ask("layers")
            subject.layers = from_json(Breakdown, reply["layers"], "layers")
        except GftEdgeError as error:
            say(f"layers are not timed: {error}")
    progress("layers", len(subjects), len(subjects))


def _idle_power_w(sources: Mapping[bool, PowerSource | str]) -> dict[bool, float | None]:
    """The power with everything loaded and nothing to do, once loading has cooled off."""
    readable = {on_gpu: each for on_gpu, each in sources.items() if not isinstance(each, str)}
    if readable:
        time.sleep(SETTLE_POWER_S)
    idle_w = {on_gpu: idle_power_w(source, IDLE_S) for on_gpu, source in readable.items()}
    return {on_gpu: idle_w.get(on_gpu) for on_gpu in sources}


def _cpu_s(subjects: Sequence[BundleUnderTest]) -> float:
    """CPU seconds of the processes that measure, so far; their memory is noted as well."""
    seconds = 0.0
    for subject in subjects:
        usage = subject.worker.ask("usage")
        subject.peak_rss_bytes = usage["peak_rss_bytes"]
        seconds += usage["cpu_s"]
    return seconds


def _batch(bundles: Sequence[Bundle], asked: int | None) -> int:
    """The static batch of all. Raises UsageError where they differ, or differ from the one asked for."""
    batches = {bundle.manifest.input.batch: bundle.folder for bundle in reversed(bundles)}
    if asked is not None and set(batches) != {asked}:
        batch, folder = next((b, f) for b, f in batches.items() if b != asked)
        raise UsageError(
            f"{folder} takes {batch} images a call and --batch is {asked}: shapes are static, "
            f"export it with --batch {asked}"
        )
    if len(batches) > 1:
        listed = ", ".join(f"{folder} {batch}" for batch, folder in batches.items())
        raise UsageError(f"bundles of different batches cannot be compared: {listed} images a call")
    return bundles[0].manifest.input.batch


def _inputs(images: Path | None, first: Bundle) -> tuple[list[Path], Inputs]:
    """Up to MOST_IMAGES image files spread over the folder, or no path and the golden frames.

    Raises UsageError where there is none or a part cannot be listed, ImageError for one that cannot be read.
    """
    digest = hashlib.sha256()
    if images is None:
        frames = read_golden(first)[0]
        digest.update(frames.tobytes())
        return [], Inputs("golden frames", len(frames), digest.hexdigest(), str(first.folder))
    if not images.exists():
        raise UsageError(f"{images}: no such folder of images")
    found = images_below(images) if images.is_dir() else [images]
    if not found:
        raise UsageError(f"{images} holds no image: give --photos a folder of photographs")
    count = min(MOST_IMAGES, len(found))
    paths = [found[number * len(found) // count] for number in range(count)]
    for path in paths:
        open_rgb(path)
        digest.update(path.read_bytes())
    return paths, Inputs("encoded images", len(paths), digest.hexdigest(), str(images))
