"""The variants that a benchmark tries: targets, precisions, and why some of them cannot be here."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from gft_edge.errors import UsageError
from gft_edge.runtime.backends import ALIASES, Backend, backends
from gft_edge.studies.variants import KeepCounts, Variant


def grid(
    targets: Sequence[str] | None,
    precisions: Sequence[str] | None,
    uncalibrated: str | None,
    counts: Sequence[KeepCounts | None] = (None,),
) -> tuple[Variant, ...]:
    """Every target in every precision it has at each of the keep counts; None stands for all there are.

    `uncalibrated` says why there are no images to calibrate INT8 on. Raises UsageError for a name that
    does not exist, for names without a combination, and where nothing asked for can run here.
    """
    here = backends()
    chosen = [_target(name, here) for name in targets] if targets is not None else list(here)
    known = list(dict.fromkeys(p for backend in here.values() for p in backend.PRECISIONS))
    for name in precisions or ():
        if name not in known:
            raise UsageError(f"there is no precision {name!r}{_meant(name, known)}")
    pairs = [
        (target, precision)
        for target in dict.fromkeys(chosen)
        for precision in here[target].PRECISIONS
        if precisions is None or precision in precisions
    ]
    if not pairs:
        raise UsageError(
            f"--precisions {','.join(precisions or ())} is not available for {', '.join(chosen)}: "
            f"choose from {', '.join(dict.fromkeys(p for t in chosen for p in here[t].PRECISIONS))}"
        )
    absent = {(t, p): _absent(here[t], p, uncalibrated) for t, p in pairs}
    if all(absent.values()):
        reasons = dict.fromkeys(f"{target}: {reason}" for (target, _), reason in absent.items())
        raise UsageError(f"nothing that was asked for runs here. {'; '.join(reasons)}")
    return tuple(
        variant.absent(reason) if reason else variant
        for keep in counts
        for (target, precision), reason in absent.items()
        for variant in [Variant(target, precision, keep)]
    )


def _target(name: str, here: dict[str, Backend]) -> str:
    target = ALIASES.get(name, name)
    if target not in here:
        raise UsageError(f"there is no target {name!r}{_meant(name, list(here))}")
    return target


def _meant(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1)
    listed = f"choose from {', '.join(known)}"
    return f", did you mean {near[0]}? {listed}" if near else f": {listed}"


def _absent(backend: Backend, precision: str, uncalibrated: str | None) -> str | None:
    if reason := backend.missing() or backend.unsupported(precision):
        return reason
    return uncalibrated if precision == "int8" else None
