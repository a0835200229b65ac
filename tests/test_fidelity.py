"""Two sets of outputs are compared by decisions, logits and kept patches, and each miss is named."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gft_edge.fidelity import (
    FP32_TOLERANCE,
    Outputs,
    compare,
    concatenate,
    grid_positions,
    image_overlaps,
    kept_overlap,
)
from gft_edge.specs import Tolerance

LOOSE = Tolerance(top1_agreement=0.5, kept_overlap=(0.3,), cosine=0.5)


def outputs(logits: list[list[float]], *kept: list[list[int]]) -> Outputs:
    return Outputs(
        np.asarray(logits, dtype=np.float32),
        tuple(np.asarray(stage, dtype=np.int64) for stage in kept),
    )


REFERENCE = outputs([[1, 0, 0], [0, 2, 0]], [[0, 1, 4, 5], [2, 3, 6, 7]], [[0, 3], [1, 2]])


def test_equal_outputs_pass() -> None:
    report = compare("same", REFERENCE, REFERENCE, FP32_TOLERANCE)
    assert report.verdict == "pass"
    assert report.failures == ()
    assert (report.max_abs, report.cosine, report.top1_agreement) == (0, 1, 1)
    assert report.kept_overlap == (1, 1)
    assert report.images == 2


def test_kept_indices_are_followed_back_to_the_patch_grid() -> None:
    first, second = grid_positions(REFERENCE.kept)
    np.testing.assert_array_equal(first, REFERENCE.kept[0])
    assert second.tolist() == [[0, 5], [3, 6]]


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
    report = compare("onnx", REFERENCE, other, FP32_TOLERANCE)
    assert report.verdict == "fail"
    assert report.failures == (
        "top-1 agreement 0.5000 is under 1",
        "logit cosine 0.500000 is under 0.9999",
        "stage 1 keeps 0.8000 of the same patches, under 0.999",
    )
    assert report.max_abs == 1
    assert report.tolerance == FP32_TOLERANCE


def test_a_looser_bound_forgives_the_same_difference() -> None:
    other = outputs([[0, 1, 0], [0, 2, 0]], [[0, 1, 4, 5], [2, 3, 6, 8]], [[0, 3], [1, 2]])
    assert compare("onnx", REFERENCE, other, LOOSE).verdict == "pass"


def test_scaling_the_logits_is_seen_by_max_abs_alone() -> None:
    other = Outputs(REFERENCE.logits * 3, REFERENCE.kept)
    report = compare("scaled", REFERENCE, other, FP32_TOLERANCE)
    assert report.verdict == "pass"
    assert report.cosine == pytest.approx(1)
    assert report.max_abs == 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_no_number_fails(value: float) -> None:
    other = outputs([[value, 0, 0], [0, 2, 0]], *[stage.tolist() for stage in REFERENCE.kept])
    report = compare("broken", REFERENCE, other, LOOSE)
    assert report.verdict == "fail"
    assert "the logits hold NaN or infinity" in report.failures


def test_logits_of_zero_have_no_direction_and_fail() -> None:
    other = Outputs(REFERENCE.logits * 0, REFERENCE.kept)
    assert "logit cosine 0.000000 is under 0.5" in compare("dead", REFERENCE, other, LOOSE).failures


def test_a_network_without_stages_has_no_overlaps() -> None:
    plain = Outputs(REFERENCE.logits, ())
    assert compare("plain", plain, plain, FP32_TOLERANCE).kept_overlap == ()


def test_batches_join_in_order() -> None:
    halves = [
        Outputs(REFERENCE.logits[i : i + 1], tuple(stage[i : i + 1] for stage in REFERENCE.kept))
        for i in range(2)
    ]
    joined = concatenate(halves)
    assert len(joined) == 2
    np.testing.assert_array_equal(joined.logits, REFERENCE.logits)
    for ours, theirs in zip(joined.kept, REFERENCE.kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)
