"""A profile as a JSON file: written, read back with what is derived computed anew, compared with others."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.bundle.store import write_whole
from gft_edge.errors import SpecError, UsageError
from gft_edge.profiling import samples as of
from gft_edge.profiling.report import (
    MOST_OTHER_LOAD,
    SCHEMA_VERSION,
    Boundaries,
    Boundary,
    Profile,
    Report,
    boundary_of,
)


def write_profile(profile: Profile, path: Path) -> None:
    """Write the JSON whole or not at all."""
    write_whole(path, (json.dumps(to_json(profile), indent=1) + "\n").encode())


def read_profile(path: Path) -> Profile:
    """Read a JSON that `write_profile` wrote; what derives from samples is derived again.

    Raises UsageError for a file that is none, or of another schema version.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UsageError(f"{path} is no profile: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{path} is no profile of schema version {SCHEMA_VERSION}: give a file that "
            "gft-edge profile --out wrote"
        )
    profile = from_json(Profile, data, str(path))
    if not profile.reports:
        raise SpecError(f"{path}: reports is empty")
    of.check_percentiles(profile.settings.percentiles)
    return _derived(profile, str(path))


def _derived(profile: Profile, where: str) -> Profile:
    first = profile.reports[0].boundaries
    reports = []
    for number, report in enumerate(profile.reports):
        others = first.named() if number else {}
        rebuilt = {
            name: _rebuilt(given, others.get(name), profile, where)
            for name, given in report.boundaries.named().items()
        }
        boundaries = Boundaries(rebuilt["engine"], rebuilt.get("end to end"))
        ratio = boundaries.engine.ratio_to_first
        reports.append(dataclasses.replace(report, boundaries=boundaries, ratio_to_first=ratio))
    stable = is_stable(reports, profile.other_cores, profile.machine.cores)
    return dataclasses.replace(profile, reports=tuple(reports), stable=stable)


def is_stable(reports: Sequence[Report], other_cores: float | None, cores: int) -> bool:
    """Whether every boundary of every bundle is, and the machine had next to nothing else to do."""
    steady = all(
        boundary.stable for report in reports for boundary in report.boundaries.named().values()
    )
    return steady and (other_cores is None or other_cores <= MOST_OTHER_LOAD * cores)


def _rebuilt(given: Boundary, first: Boundary | None, profile: Profile, where: str) -> Boundary:
    if sum(given.turns) != len(given.samples_ms) or not given.samples_ms or min(given.turns) < 1:
        raise SpecError(f"{where}: turns do not count the {len(given.samples_ms)} samples_ms")
    if not all(0 < sample < math.inf for sample in given.samples_ms) or given.inputs < 1:
        raise SpecError(f"{where}: samples_ms hold what is no time")
    if len(given.turns_s) != len(given.turns) or not all(0 < s < math.inf for s in given.turns_s):
        raise SpecError(f"{where}: turns_s are no times of {len(given.turns)} turns")
    return boundary_of(
        given.what,
        given.by_turn(),
        profile.settings.percentiles,
        profile.settings.batch,
        given.inputs,
        first,
        given.split_ms,
        given.lost,
        given.turns_s if profile.settings.hint == "throughput" else None,
    )


def check_comparable(profiles: Mapping[str, Profile]) -> None:
    """Raise UsageError unless all measured the same: boundaries, inputs, batch and hint.

    Keyed by what each is called in the message. Machines may differ: that is what one compares.
    """
    (first_name, first), *others = profiles.items()
    for name, profile in others:
        for what, ours, theirs in (
            ("hint", first.settings.hint, profile.settings.hint),
            ("batch", first.settings.batch, profile.settings.batch),
            ("inputs", _inputs(first), _inputs(profile)),
            ("boundaries", _boundaries(first), _boundaries(profile)),
        ):
            if ours != theirs:
                raise UsageError(
                    f"{first_name} and {name} differ in {what} ({ours}; {theirs}): their numbers "
                    "cannot be compared, profile both alike"
                )


def _inputs(profile: Profile) -> str:
    inputs = profile.inputs
    return f"{inputs.count} {inputs.kind} of digest {inputs.digest[:12]}"


def _boundaries(profile: Profile) -> str:
    return "; ".join(
        sorted({b.what for r in profile.reports for b in r.boundaries.named().values()})
    )
