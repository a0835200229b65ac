"""The variants that a benchmark tries: targets, precisions, and why some of them cannot be here."""

from __future__ import annotations

from collections.abc import Sequence

from gft_edge.errors import UsageError
from gft_edge.runtime.backends import Backend, backend_for, backends
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
    chosen = list(here) if targets is None else [backend_for(name).TARGET for name in targets]
    known = list(dict.fromkeys(p for backend in here.values() for p in backend.PRECISIONS))
    for name in precisions or ():
        if name not in known:
            raise UsageError(f"there is no precision {name!r}: choose from {', '.join(known)}")
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


def _absent(backend: Backend, precision: str, uncalibrated: str | None) -> str | None:
    if reason := backend.missing() or backend.unsupported(precision):
        return reason
    return uncalibrated if precision.startswith("int8") else None
