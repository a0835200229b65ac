"""Which layers go back to high precision so that an INT8 graph holds its bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from gft_edge.bundle.reports import FidelityReport, Tolerance
from gft_edge.bundle.specs import Say
from gft_edge.errors import GateError


class Judged(Protocol):
    """Something that was built and measured."""

    @property
    def report(self) -> FidelityReport: ...


Built = TypeVar("Built", bound=Judged)

# What the search holds back of the loss that is allowed: layers are chosen on some hundred images,
# and the bounds are meant for all others.
RESERVE = 0.1

# After the search: how often a final graph that just misses gets more layers back.
FINAL_ATTEMPTS = 3


def fewest_high_precision(
    layers: Sequence[str],
    always: tuple[str, ...],
    rank: Callable[[], Sequence[str]],
    build: Callable[[tuple[str, ...], bool], Built],
    say: Say,
) -> tuple[tuple[str, ...], Built]:
    """Find the shortest beginning of a ranking, after `always`, whose graph passes, and that graph.

    `rank` is asked for all `layers`, the worst first, only where the graph of `always` alone fails, which
    is built first and final. `build` takes the layers in high precision and whether the graph is final;
    what is not final may be calibrated on fewer images.
    Bisection: log2(layers) graphs are built, at most FINAL_ATTEMPTS + 2 more. Where no final graph
    holds, that of the bisection which did is taken. Raises GateError with what was tried when there
    is none.
    """
    order: list[str] = []
    tried: dict[int, FidelityReport] = {}
    held: list[int] = []

    def built(count: int, final: bool = False) -> Built:
        high = (*always, *order[:count])
        made = build(high, final)
        tried[count] = made.report
        say(f"{len(layers) - len(high)} of {len(layers)} layers in INT8: {describe(made.report)}")
        return made

    def passes(count: int) -> bool:
        if not built(count).report.failures:
            held.append(count)
        return count in held

    made = built(0, final=True)
    if not made.report.failures:
        return always, made
    order = [name for name in rank() if name not in always]
    failing, fewest = 0, len(order)
    while fewest - failing > 1:
        middle = (failing + fewest) // 2
        if passes(middle):
            fewest = middle
        else:
            failing = middle
    for _ in range(FINAL_ATTEMPTS):
        if fewest >= len(order):
            break
        made = built(fewest, final=True)
        if not made.report.failures:
            return (*always, *order[:fewest]), made
        fewest += max(1, len(order) // 20)
    if held:
        # More calibration images made it worse: what held its bounds before still does.
        made = built(min(held))
        if not made.report.failures:
            return (*always, *order[: min(held)]), made
    lines = "; ".join(f"{len(always) + count}: {describe(tried[count])}" for count in sorted(tried))
    more = ", allow more with --max-drop" if made.report.accuracy is not None else ""
    raise GateError(
        f"INT8 does not hold its bounds with {len(always) + max(tried)} of {len(layers)} layers in "
        f"high precision (tried: {lines})",
        f"Nothing was written: calibrate on more images{more}, or use another --precision",
    )


def with_reserve(bound: Tolerance) -> Tolerance:
    """The bound with RESERVE of every allowed loss held back; the accuracy budget stays the user's.

    A bound that an interval decides holds for all images already, and no bound stays none.
    """
    if bound.change is not None or not bound.judges:
        return bound
    return Tolerance(
        _tighter(bound.top1_agreement),
        tuple(map(_tighter, bound.kept_overlap)),
        _tighter(bound.cosine),
        bound.max_drop,
    )


def _tighter(least: float) -> float:
    return 1 - (1 - RESERVE) * (1 - least)


def describe(report: FidelityReport) -> str:
    """A verdict in one line."""
    kept = " / ".join(f"{overlap:.4f}" for overlap in report.kept_overlap) or "-"
    accuracy = "not known"
    if report.accuracy is not None and report.reference_accuracy is not None:
        accuracy = f"{report.accuracy - report.reference_accuracy:+.4f}"
    return (
        f"{report.verdict}, accuracy {accuracy}, agreement {report.top1_agreement:.4f}, "
        f"kept patches {kept}"
    )
