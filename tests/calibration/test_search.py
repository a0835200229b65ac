"""The search for layers to give back finds the fewest that hold, in few builds, or says what it tried."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import pytest

from gft_edge.bundle.reports import FidelityReport, Tolerance
from gft_edge.bundle.specs import Say
from gft_edge.calibration.search import (
    FINAL_ATTEMPTS,
    describe,
    fewest_high_precision,
    with_reserve,
)
from gft_edge.errors import GateError
from tests.support.refusals import refusal_of

BOUND = Tolerance(0.99, (0.98, 0.9), 0.95, max_drop=0.01)


def search(
    count: int, always: tuple[str, ...], build: Builder, say: Say = lambda text: None
) -> tuple[tuple[str, ...], Built]:
    """Search among layers that stand in the network in another order than in their ranking."""
    ranking = [f"layer {number}" for number in range(count)]
    return fewest_high_precision(ranking[::-1], always, lambda: ranking, build, say)


def verdict(passes: bool) -> FidelityReport:
    return FidelityReport(
        step="int8",
        max_abs=0.1,
        cosine=0.99,
        top1_agreement=0.995 if passes else 0.5,
        kept_overlap=(0.99, 0.95),
        images=10,
        tolerance=BOUND,
        failures=() if passes else ("top-1 agreement",),
        accuracy=0.8,
        reference_accuracy=0.9,
    )


class Built(NamedTuple):
    report: FidelityReport


class Builder:
    """Graphs that pass from `needed` layers in high precision on; final ones from `finally_needed`."""

    def __init__(self, needed: int, finally_needed: int | None = None):
        self.needed = needed
        self.finally_needed = needed if finally_needed is None else finally_needed
        self.built: list[tuple[tuple[str, ...], bool]] = []

    def __call__(self, high: tuple[str, ...], final: bool) -> Built:
        self.built.append((high, final))
        return Built(verdict(len(high) >= (self.finally_needed if final else self.needed)))


def silent(_: str) -> None:
    pass


@pytest.mark.parametrize("count", [1, 2, 3, 8, 17, 50])
def test_it_finds_the_shortest_beginning_that_passes_in_few_builds(count: int) -> None:
    for needed in range(count):
        build = Builder(needed)
        high, made = search(count, (), build)
        assert high == tuple(f"layer {number}" for number in range(needed))
        assert made.report.verdict == "pass"
        # What is written is the last that was built, on all calibration images.
        assert build.built[-1] == (high, True)
        assert build.built[0] == ((), True)
        assert sum(final for _, final in build.built) == (2 if needed else 1)
        assert len(build.built) <= math.log2(count) + 2 + FINAL_ATTEMPTS


def test_layers_named_by_the_user_come_first_and_are_not_counted_twice() -> None:
    build = Builder(4)
    always = ("layer 9", "layer 1")
    high, _ = search(10, always, build)
    assert high == ("layer 9", "layer 1", "layer 0", "layer 2")
    for tried, _ in build.built:
        assert tried[:2] == always
        assert len(set(tried)) == len(tried)


def test_a_final_graph_that_just_misses_gets_more_layers_back() -> None:
    build = Builder(10, finally_needed=13)
    high, made = search(40, (), build)
    assert len(high) == 14
    assert made.report.verdict == "pass"
    assert [len(tried) for tried, final in build.built if final] == [0, 10, 12, 14]


def refused(build: Builder, count: int, always: tuple[str, ...], *words: str) -> None:
    work = functools.partial(search, count, always, build)
    refusal_of(GateError, work, *words)


def test_where_no_final_graph_holds_the_one_of_the_search_is_taken() -> None:
    build = Builder(2, finally_needed=40)
    high, made = search(40, (), build)
    assert made.report.verdict == "pass"
    assert (high, False) == build.built[-1]
    assert len(high) == 2
    assert sum(final for _, final in build.built) == FINAL_ATTEMPTS + 1
    assert len(build.built) <= math.log2(40) + 3 + FINAL_ATTEMPTS


@pytest.mark.parametrize(
    ("count", "always", "tried"), [(8, (), [0, 4, 6, 7]), (6, ("layer 0", "layer 3"), [2, 4, 5])]
)
def test_when_nothing_passes_it_says_what_was_tried(
    count: int, always: tuple[str, ...], tried: list[int]
) -> None:
    """The attempts are counted with the layers that the user named."""
    build = Builder(99)
    attempts = [f"{number}: fail, accuracy -0.1000, agreement 0.5000" for number in tried]
    refused(build, count, always, f"{tried[-1]} of {count} layers", *attempts, "--max-drop")
    assert [len(high) for high, _ in build.built] == tried


def test_every_attempt_is_said() -> None:
    said: list[str] = []
    search(4, (), Builder(1), said.append)
    assert said[0].startswith("4 of 4 layers in INT8: fail, accuracy -0.1000")
    assert said[-1].startswith("3 of 4 layers in INT8: pass")
    assert len(said) == 4


def test_the_reserve_is_a_tenth_of_each_allowed_loss_and_none_of_the_budget() -> None:
    tighter = with_reserve(BOUND)
    assert tighter.top1_agreement == pytest.approx(0.991)
    assert tighter.kept_overlap == pytest.approx((0.982, 0.91))
    assert tighter.cosine == pytest.approx(0.955)
    assert tighter.max_drop == BOUND.max_drop
    assert with_reserve(Tolerance(1.0, (1.0,), 1.0)) == Tolerance(1.0, (1.0,), 1.0)


def test_a_verdict_without_stages_fits_one_line() -> None:
    report = FidelityReport("int8", 0, 1, 1, (), 1, BOUND, (), accuracy=0.9, reference_accuracy=0.9)
    assert describe(report) == "pass, accuracy +0.0000, agreement 1.0000, kept patches -"
    unlabelled = FidelityReport("int8", 0, 1, 1, (), 1, BOUND, ())
    assert describe(unlabelled) == "pass, accuracy not known, agreement 1.0000, kept patches -"
