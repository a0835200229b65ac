"""What the bundles of a table's runs take on this machine, measured in turn in one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gft_edge.bundle.specs import Progress, Say
from gft_edge.bundle.store import MANIFEST_FILE, Bundle, is_bundle, read_bundle
from gft_edge.errors import UsageError
from gft_edge.profiling.machine import summary
from gft_edge.profiling.profile import ProfileRequest
from gft_edge.profiling.report import Profile, Report
from gft_edge.profiling.samples import paired_ratio
from gft_edge.runtime.backends import backend_for
from gft_edge.runtime.sources.images import Unread, walked
from gft_edge.studies.bench import HERE, Bench
from gft_edge.studies.evaluation import Case

MIN_SAMPLES = 64

# (row of the table, target, precision)
Place = tuple[int, str, str]


@dataclass(frozen=True)
class Latency:
    """A bundle's engine: median milliseconds of a call, and its ratio to the first row that has one.

    The ratio is the median over turns of the time by the other's in the same turn.
    """

    target: str
    precision: str
    bundle: str
    p50_ms: float
    ratio: float


@dataclass(frozen=True)
class MeasuredOn:
    """The conditions of a table's latencies. `batch` is images a call."""

    machine: str
    batch: int
    stable: bool
    causes: tuple[str, ...]


def find_bundles(folders: Sequence[Path]) -> list[tuple[Bundle, bool]]:
    """The bundles among `folders`, then those somewhere below them, and whether each was given itself.

    Raises UsageError, BundleError.
    """
    found = [(folder, True) for folder in folders if is_bundle(folder)]
    for folder in folders:
        if is_bundle(folder):
            continue
        unlisted: list[Unread] = []
        files = [path for inside in walked(folder, unlisted) for path in inside.files]
        if unlisted:
            path, why = min(unlisted)
            raise UsageError(
                f"{path} cannot be read ({why}): mend it, or name the bundles themselves"
            )
        below = sorted(path.parent for path in files if path.name == MANIFEST_FILE)
        if not below:
            raise UsageError(f"{folder} holds no bundle: give a folder that gft-edge export wrote")
        found += [(path, False) for path in below]
    distinct: dict[Path, tuple[Path, bool]] = {}
    for path, given in found:
        distinct.setdefault(path.resolve(), (path, given))
    return [(read_bundle(path), given) for path, given in distinct.values()]


def assign(
    folders: Sequence[Path],
    cases: Sequence[Case],
    say: Say,
) -> dict[Place, Bundle]:
    """Each bundle to the run that it was exported from, known by the weights that open its lineage.

    `cases` are the rows. A bundle of no row is refused where it was given itself, and left out with a
    remark where it lay in a folder; so is one at other keep counts than its run's. One that no engine
    runs here is left out. Raises UsageError for two bundles of one run, target and precision.
    """
    assigned: dict[Place, Bundle] = {}
    for bundle, given in find_bundles(folders):
        manifest = bundle.manifest
        weights = manifest.lineage[0].sha256 if manifest.lineage else ""
        rows = [row for row, case in enumerate(cases) if case.weights_sha256 == weights]
        if len(rows) > 1:
            trained = dataclasses.replace(manifest.model, stages=manifest.trained_stages)
            rows = [row for row in rows if cases[row].spec == trained]
        reason = mend = None
        if not rows:
            reason = f"{bundle.folder} was exported from none of the runs"
            mend = "export the run again, or leave it out"
        elif manifest.rescheduled is not None:
            reason = (
                f"{bundle.folder} keeps other numbers of patches than {cases[rows[0]].run} was trained "
                "to, and its latency does not belong beside that accuracy"
            )
            mend = "gft-edge benchmark --keep shows both"
        if reason is not None:
            if given:
                raise UsageError(f"{reason}: {mend}")
            say(f"{reason}: left out")
            continue
        missing = backend_for(manifest.target).missing()
        if missing is not None:
            say(f"{bundle.folder} is not measured: {missing}")
            continue
        place = (rows[0], manifest.target, manifest.precision)
        if place in assigned:
            raise UsageError(
                f"{assigned[place].folder} and {bundle.folder} are both {cases[rows[0]].run} for "
                f"{manifest.target} in {manifest.precision}: give one of them"
            )
        assigned[place] = bundle
    return assigned


def measure(
    assigned: Mapping[Place, Bundle],
    duration_s: float,
    progress: Progress,
    say: Say,
) -> tuple[dict[int, tuple[Latency, ...]], MeasuredOn]:
    """Row -> its latencies. Raises as `engine_reports` does."""
    places = sorted(assigned)
    found = engine_reports([assigned[place].folder for place in places], duration_s, progress, say)
    reports = dict(zip(places, found.reports, strict=True))
    rows: dict[int, tuple[Latency, ...]] = {}
    for (row, *column), report in reports.items():
        first = next(other for (_, *of), other in reports.items() if of == column)
        rows[row] = (*rows.get(row, ()), _latency(report, first))
    conditions = MeasuredOn(
        summary(found.machine), found.settings.batch, found.stable, found.causes
    )
    return rows, conditions


def engine_reports(
    folders: Sequence[Path],
    duration_s: float,
    progress: Progress,
    say: Say = lambda text: None,
    bench: Bench = HERE,
) -> Profile:
    """Measure bundles in turn, for their medians alone, on golden frames; a report each, in order.

    An interrupt is raised: half a measurement decides nothing. Raises UsageError for bundles of
    different batches, FailedError where an engine dies.
    """
    found = bench.profile(
        ProfileRequest(
            tuple(folders), duration_s=duration_s, min_samples=MIN_SAMPLES, percentiles=(50.0,)
        ),
        progress,
        say,
    )
    if not found.complete:
        raise KeyboardInterrupt
    return found


def _latency(report: Report, first: Report) -> Latency:
    engine = report.boundaries.engine
    assert engine.p50_ms is not None
    ratio, _ = paired_ratio(engine.by_turn(), first.boundaries.engine.by_turn())
    return Latency(report.target, report.precision, report.bundle, engine.p50_ms, ratio)
