"""What a lower precision may change, by what a change nobody sees does to the network itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from gft_edge.bundle.reports import Change
from gft_edge.fidelity.compare import PHOTO_TOLERANCES, compare, low_floor, noise_floor_of
from gft_edge.fidelity.noise_floor import NAMES, changed
from gft_edge.model.reference import torch_outputs
from gft_edge.runtime.classifier import load_pixels
from gft_edge.runtime.outputs import Outputs
from tests.support.networks import wide_network
from tests.support.pictures import smooth_pixels

INT8, BF16, FP16 = (PHOTO_TOLERANCES[name] for name in ("int8", "bf16", "fp16"))
IMAGES, CLASSES, PATCHES, KEPT = 256, 8, 64, 32
Pixels = npt.NDArray[np.uint8]


def answers(
    seed: int, exchanged: float = 0.0, turned: float = 0.0, share_wrong: float = 0.0
) -> Outputs:
    """Outputs of one stage that differ from those of seed 0 by so much: patches, logits, decisions."""
    base, drawn = np.random.default_rng(0), np.random.default_rng(seed)
    logits = base.normal(size=(IMAGES, CLASSES))
    logits[np.arange(IMAGES), np.arange(IMAGES) % CLASSES] += 5
    kept = np.stack([base.permutation(PATCHES)[:KEPT] for _ in range(IMAGES)])
    for row in kept:
        rest = np.setdiff1d(np.arange(PATCHES), row)
        which = drawn.random(KEPT) < exchanged
        row[which] = drawn.permutation(rest)[: which.sum()]
    logits += drawn.normal(scale=turned, size=logits.shape)
    wrong = drawn.random(IMAGES) < share_wrong
    logits[wrong] = np.roll(logits[wrong], 1, axis=1)
    return Outputs(logits.astype(np.float32), (np.sort(kept, axis=1),))


REFERENCE = answers(0)
FLOOR = answers(1, exchanged=0.1, turned=0.1, share_wrong=0.02)


def failures(
    candidate: Outputs, tolerance: object = INT8, floor: Outputs = FLOOR
) -> tuple[str, ...]:
    report = compare("x", REFERENCE, candidate, tolerance, (), floor, "abcdefgh")  # type: ignore[arg-type]
    return report.failures


def test_no_more_than_the_change_passes_and_more_fails_by_name() -> None:
    assert not failures(answers(2, 0.07, 0.07, 0.01))
    (missed,) = failures(answers(2, 0.2, 0.07, 0.01))
    assert "stage 1" in missed
    assert "JPEG at quality 75" in missed


def test_fp16_may_change_a_quarter_and_is_held_to_fixed_bounds_besides() -> None:
    assert not failures(answers(2, 0.001, 0.001), FP16)
    assert failures(answers(2, 0.07, 0.001), FP16)
    wild = answers(1, exchanged=0.9, turned=0.1, share_wrong=0.02)
    assert any("0.995" in text for text in failures(answers(2, 0.05, 0.001), FP16, wild))


def test_wrong_decisions_ruined_probabilities_and_a_lost_class_fail() -> None:
    assert any("top-1 agreement" in text for text in failures(answers(2, 0.05, 0.05, 0.1)))
    ruined = Outputs(REFERENCE.logits * 1000, REFERENCE.kept)
    soft = Outputs(REFERENCE.logits * 0.2, REFERENCE.kept)
    for candidate in (ruined, soft):
        assert any("probability" in text for text in failures(candidate))
    one_class = REFERENCE.logits.copy()
    rows = REFERENCE.logits.argmax(axis=1) == 3
    one_class[rows] = np.roll(one_class[rows], 1, axis=1)
    assert any("class 'd'" in text for text in failures(Outputs(one_class, REFERENCE.kept)))
    nothing = Outputs(np.full_like(REFERENCE.logits, np.nan), REFERENCE.kept)
    assert any("NaN" in text for text in failures(nothing))


def test_a_network_without_stages_is_held_by_the_cosine_of_its_logits() -> None:
    bare = [Outputs(one.logits, ()) for one in (REFERENCE, FLOOR, answers(2, 0, 0.05))]
    assert not compare("x", bare[0], bare[2], INT8, (), bare[1]).failures
    turned = Outputs(answers(2, 0, 2.0).logits, ())
    assert any(
        "cosine" in text for text in compare("x", bare[0], turned, INT8, (), bare[1]).failures
    )


def test_two_images_of_few_decide_nothing() -> None:
    some = slice(0, 64)
    reference, floor = (Outputs(o.logits[some], (o.kept[0][some],)) for o in (REFERENCE, FLOOR))
    candidate = answers(2, 0.05, 0.05)
    logits = candidate.logits[some].copy()
    logits[:2] = np.roll(logits[:2], 1, axis=1)
    report = compare("x", reference, Outputs(logits, (candidate.kept[0][some],)), INT8, (), floor)
    assert report.top1_agreement == 62 / 64
    assert report.verdict == "pass"


def test_a_drop_passes_fails_or_is_not_resolved_by_its_interval() -> None:
    targets = REFERENCE.logits.argmax(axis=1)

    def after(wrong: int) -> Outputs:
        logits = REFERENCE.logits.copy()
        logits[:wrong] = np.roll(logits[:wrong], 1, axis=1)
        return Outputs(logits, REFERENCE.kept)

    free = dataclasses.replace(INT8, max_drop=0.05)
    none, some, many = (
        compare("x", REFERENCE, after(wrong), free, targets.tolist(), after(40))
        for wrong in (0, 11, 40)
    )
    assert (none.verdict, none.resolved) == ("pass", True)
    assert (some.verdict, some.resolved) == ("pass", False)
    assert any("accuracy falls" in text for text in many.failures)


@pytest.mark.parametrize("change", NAMES)
def test_a_change_is_small_the_same_each_time_and_made_on_what_the_network_reads(
    change: Change,
) -> None:
    ramp = np.linspace(0, 255, 48, dtype=np.uint8)
    pixels: Pixels = np.stack([np.stack([np.add.outer(ramp // 2, ramp // 2)] * 3, axis=-1)] * 2)
    once, again = changed(pixels, change), changed(pixels, change)
    np.testing.assert_array_equal(once, again)
    assert once.dtype == np.uint8
    assert once.shape == pixels.shape
    moved = np.abs(once.astype(int) - pixels.astype(int))
    assert 0 < moved.mean() < 6


def test_a_floor_that_is_very_low_is_remarked() -> None:
    assert low_floor(noise_floor_of("jpeg75", REFERENCE, FLOOR)) is None
    hardly = low_floor(noise_floor_of("jpeg75", REFERENCE, answers(1, 0.001, 0.1)))
    assert hardly is not None
    assert "JPEG" in hardly
    bare, turned = (Outputs(o.logits, ()) for o in (REFERENCE, answers(1, turned=1e-3)))
    assert "cosine" in (low_floor(noise_floor_of("noise", bare, turned)) or "")


def test_a_photograph_and_the_same_enlarged_get_the_same_verdict() -> None:
    """The change is made on what the network reads, so the size of the file makes no difference."""
    spec, model = wide_network()
    small = smooth_pixels(64, 96)
    large = [Image.fromarray(one).resize((384, 384), Image.Resampling.BICUBIC) for one in small]
    floors = []
    for images in ([Image.fromarray(one) for one in small], large):
        pixels = np.stack([load_pixels(image, spec.preprocessing) for image in images])
        outputs = torch_outputs(model, pixels, spec.preprocessing)
        after = torch_outputs(model, changed(pixels, "jpeg75"), spec.preprocessing)
        floors.append(noise_floor_of("jpeg75", outputs, after))
    for ours, theirs in zip(floors[0].kept_overlap, floors[1].kept_overlap, strict=True):
        assert ours == pytest.approx(theirs, abs=0.02)
        assert ours < 0.99
