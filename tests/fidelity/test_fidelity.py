"""Two sets of outputs are compared by decisions, logits and kept patches, and each miss is named."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from gft_edge.bundle.reports import Tolerance
from gft_edge.fidelity.compare import (
    TOLERANCES,
    compare,
    image_overlaps,
    kept_overlap,
    patches_lost,
)
from gft_edge.runtime.outputs import Outputs, concatenate

FP32 = TOLERANCES["fp32"]
LOOSE = Tolerance(top1_agreement=0.5, kept_overlap=(0.3,), cosine=0.5)


def outputs(logits: list[list[float]], *kept: list[list[int]]) -> Outputs:
    return Outputs(
        np.asarray(logits, dtype=np.float32),
        tuple(np.asarray(stage, dtype=np.int64) for stage in kept),
    )


REFERENCE = outputs([[1, 0, 0], [0, 2, 0]], [[0, 1, 4, 5], [2, 3, 6, 7]], [[0, 3], [1, 2]])


def test_equal_outputs_pass() -> None:
    report = compare("same", REFERENCE, REFERENCE, FP32)
    assert report.verdict == "pass"
    assert report.failures == ()
    assert (report.max_abs, report.cosine, report.top1_agreement) == (0, 1, 1)
    assert report.kept_overlap == (1, 1)
    assert report.images == 2


def test_the_same_patches_under_other_indices_are_the_same() -> None:
    # Stage 1 keeps patch 0 more and patch 4 less: stage 2 then finds 5 at index 3 as before.
    other = outputs(
        REFERENCE.logits.tolist(), [[0, 1, 2, 5], [2, 3, 6, 7]], REFERENCE.kept[1].tolist()
    )
    report = compare("other", REFERENCE, other, LOOSE)
    assert report.kept_overlap == pytest.approx(((3 / 5 + 1) / 2, 1))


def test_the_overlap_is_the_mean_jaccard_index() -> None:
    a = np.array([[0, 1, 2], [0, 1, 2]])
    b = np.array([[0, 1, 2], [2, 3, 4]])
    assert image_overlaps(a, b).tolist() == pytest.approx([1, 1 / 5])
    assert kept_overlap(a, b) == pytest.approx((1 + 1 / 5) / 2)
    assert kept_overlap(a, a + 10) == 0


def test_each_missed_bound_is_named_with_its_number() -> None:
    other = outputs([[0, 1, 0], [0, 2, 0]], [[0, 1, 4, 5], [2, 3, 6, 8]], [[0, 3], [1, 2]])
    report = compare("onnx", REFERENCE, other, FP32)
    assert report.verdict == "fail"
    assert report.failures == (
        "top-1 agreement 0.5000 is under 1",
        "logit cosine 0.500000 is under 0.9999",
        "stage 1 keeps 0.8000 of the same patches, under 0.999",
    )
    assert report.max_abs == 1
    assert report.tolerance == FP32
    # A looser bound forgives the same difference.
    assert compare("onnx", REFERENCE, other, LOOSE).verdict == "pass"


def test_scaling_the_logits_is_seen_by_max_abs_alone() -> None:
    report = compare("scaled", REFERENCE, Outputs(REFERENCE.logits * 3, REFERENCE.kept), FP32)
    assert report.verdict == "pass"
    assert report.cosine == pytest.approx(1)
    assert report.max_abs == 4


def test_logits_that_are_no_numbers_or_have_no_direction_fail() -> None:
    for value in (math.nan, math.inf, -math.inf):
        logits = REFERENCE.logits.copy()
        logits[0, 0] = value
        report = compare("broken", REFERENCE, Outputs(logits, REFERENCE.kept), LOOSE)
        assert report.verdict == "fail"
        assert "the logits hold NaN or infinity" in report.failures
    other = Outputs(REFERENCE.logits * 0, REFERENCE.kept)
    assert "logit cosine 0.000000 is under 0.5" in compare("dead", REFERENCE, other, LOOSE).failures


def decisions(*classes: int) -> list[list[float]]:
    return [[float(column == chosen) for column in range(3)] for chosen in classes]


def test_both_accuracies_are_of_the_images_classes() -> None:
    ours, theirs = Outputs(np.eye(3, dtype=np.float32), ()), outputs(decisions(0, 1, 0))
    report = compare("int8", ours, theirs, LOOSE, targets=[0, 2, 2])
    assert report.reference_accuracy == pytest.approx(2 / 3)
    assert report.accuracy == pytest.approx(1 / 3)
    assert report.top1_agreement == pytest.approx(2 / 3)


def test_without_stages_and_classes_there_are_no_overlaps_and_no_accuracy() -> None:
    plain = Outputs(REFERENCE.logits, ())
    report = compare("plain", plain, plain, Tolerance(0, (0,), -1, max_drop=0))
    assert (report.accuracy, report.reference_accuracy, report.kept_overlap) == (None, None, ())
    assert report.verdict == "pass"


@pytest.mark.parametrize(
    ("max_drop", "wrong_before", "wrong_after", "images", "passes"),
    [
        (0.1, 0, 1, 10, True),
        (0.09, 0, 1, 10, False),
        (None, 0, 1, 10, True),
        # 0.9 - 0.89 is 0.010000000000000009: no matter of rounding.
        (0.01, 10, 11, 100, True),
        # A gain is no loss.
        (0.0, 2, 0, 2, True),
    ],
)
def test_what_accuracy_may_fall_by_is_bounded(
    max_drop: float | None, wrong_before: int, wrong_after: int, images: int, passes: bool
) -> None:
    ours, theirs = (
        outputs(decisions(*[1] * wrong, *[0] * (images - wrong)))
        for wrong in (wrong_before, wrong_after)
    )
    report = compare("int8", ours, theirs, Tolerance(0, (0,), -1, max_drop), [0] * images)
    assert (not report.failures) == passes
    if not passes:
        assert report.failures == ("accuracy falls from 1.0000 to 0.9000, by more than 0.09",)


def test_each_stage_has_its_own_bound_and_the_last_holds_for_the_rest() -> None:
    whole = [[0, 1, 2, 3]]
    less = [[0, 1, 2, 4]]
    ours = outputs([[1, 0, 0]], whole, [[0, 1, 2]], [[0, 1]])
    theirs = outputs([[1, 0, 0]], less, [[0, 1, 3]], [[0, 2]])
    report = compare("int8", ours, theirs, Tolerance(0, (0.6, 0.5), -1))
    assert report.kept_overlap == pytest.approx((3 / 5, 2 / 4, 1 / 3))
    assert report.failures == ("stage 3 keeps 0.3333 of the same patches, under 0.5",)
    report = compare("int8", ours, theirs, Tolerance(0, (0.7, 0.6, 0.3), -1))
    assert [failure[:7] for failure in report.failures] == ["stage 1", "stage 2"]


def ranked(scores: list[list[float]], keep: int) -> Outputs:
    """One stage that keeps the highest scores, with its ranks."""
    order = np.argsort(-np.asarray(scores), axis=1)
    return Outputs(
        np.zeros((len(scores), 2), dtype=np.float32),
        (np.sort(order[:, :keep], axis=1),),
        (np.argsort(order, axis=1),),
    )


def test_a_lost_patch_is_near_the_border_when_it_was_all_but_dropped() -> None:
    # 40 patches, 20 kept: within 5 % of the border are the last two of those kept, 18 and 19.
    ours = ranked([[float(-patch) for patch in range(40)]], 20)
    assert ours.kept[0].tolist() == [list(range(20))]
    for lost, near in ((19, 1.0), (18, 1.0), (17, 0.0), (0, 0.0)):
        kept = [[patch for patch in range(21) if patch != lost]]
        assert patches_lost(ours, outputs([[0, 0]], kept), 0) == (1.0, near)


def test_lost_patches_are_counted_an_image() -> None:
    ours = ranked([[float(-patch) for patch in range(40)]] * 2, 20)
    theirs = outputs([[0, 0]] * 2, [list(range(20)), [*range(1, 17), 20, 21, 22, 23]])
    # Of the second image 0, 17, 18 and 19, the last two of which are near.
    assert patches_lost(ours, theirs, 0) == (2.0, 1.0)
    report = compare("int8", ours, theirs, LOOSE)
    assert report.patches_lost == (2.0,)
    assert report.lost_near_border == (1.0,)


def test_patches_lost_at_a_later_stage_are_followed_back_to_the_grid() -> None:
    first = np.asarray([[1, 3, 5, 7]])
    # Of 1, 3, 5 and 7, stage 2 keeps 3 and 7, and ranks 7 first.
    ours = Outputs(
        np.zeros((1, 2), dtype=np.float32),
        (first, np.asarray([[1, 3]])),
        (np.asarray([[9, 0, 8, 1, 7, 2, 6, 3]]), np.asarray([[3, 1, 2, 0]])),
    )
    dropping_the_last = outputs([[0, 0]], [[1, 3, 5, 7]], [[2, 3]])
    dropping_the_best = outputs([[0, 0]], [[1, 3, 5, 7]], [[1, 2]])
    assert patches_lost(ours, dropping_the_last, 1) == (1.0, 1.0)
    assert patches_lost(ours, dropping_the_best, 1) == (1.0, 0.0)
    # Other indices for the same patches: nothing is lost.
    same = outputs([[0, 0]], [[0, 3, 5, 7]], [[1, 3]])
    assert patches_lost(ours, same, 1) == (0.0, 0.0)


def test_without_ranks_nothing_is_said_of_the_border() -> None:
    other = outputs([[1, 0, 0], [0, 2, 0]], [[0, 1, 4, 6], [2, 3, 6, 7]], [[0, 3], [1, 2]])
    assert patches_lost(REFERENCE, other, 0) == (0.5, None)
    report = compare("int8", REFERENCE, other, LOOSE)
    assert report.patches_lost == (0.5, 0.5)
    assert report.lost_near_border == ()


def test_batches_join_in_order_with_their_ranks() -> None:
    whole = ranked([[3, 1, 2], [1, 2, 3], [2, 3, 1]], 2)
    whole = dataclasses.replace(whole, logits=np.eye(3, dtype=np.float32))
    parts = [
        Outputs(whole.logits[part], (whole.kept[0][part],), (whole.ranks[0][part],))
        for part in (slice(0, 2), slice(2, 3))
    ]
    joined = concatenate(parts)
    assert len(joined) == 3
    for ours, theirs in (
        (joined.logits, whole.logits),
        (joined.kept[0], whole.kept[0]),
        (joined.ranks[0], whole.ranks[0]),
    ):
        np.testing.assert_array_equal(ours, theirs)
