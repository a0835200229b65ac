"""The variants that a benchmark tries: targets, precisions, and why some of them cannot be here."""

from __future__ import annotations

from collections.abc import Sequence

from gft_edge.errors import UsageError
from gft_edge.runtime.backends import Backend, backend_for, backends
from gft_edge.studies.bench import HERE, Bench
from gft_edge.studies.variants import KeepCounts, Variant


def grid(
    targets: Sequence[str] | None,
    precisions: Sequence[str] | None,
    uncalibrated: str | None,
    counts: Sequence[KeepCounts | None] = (None,),
    bench: Bench = HERE,
) -> tuple[Variant, ...]:
    """Every target in every precision it has at each of the keep counts; None stands for all there are.

    `uncalibrated` says why there are no images to calibrate INT8 on. Raises UsageError for a name that
    does not exist, for names without a combination, and where nothing asked for can run on `bench`.
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
    absent = {(t, p): _absent(here[t], p, uncalibrated, bench) for t, p in pairs}
    if all(absent.values()):
        reasons = dict.fromkeys(f"{target}: {reason}" for (target, _), reason in absent.items())
        raise UsageError(f"nothing that was asked for runs here. {'; '.join(reasons)}")
    return tuple(
        variant.absent(reason) if reason else variant
        for keep in counts
        for (target, precision), reason in absent.items()
        for variant in [Variant(target, precision, keep)]
    )


def _absent(backend: Backend, precision: str, uncalibrated: str | None, bench: Bench) -> str | None:
    if reason := bench.unfit(backend.TARGET, precision):
        return reason
    # What another machine measures is exported and judged here: for TensorRT by ONNX Runtime.
    judge = backend_for(bench.judge_backend(backend.TARGET) or backend.TARGET)
    if reason := judge.missing() or backend.unsupported(precision):
        return reason
    return uncalibrated if precision.startswith("int8") else None
