"""Each value is shown at its own patch, and a ranking is measured by what covering patches changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gft_edge.bundle.specs import ModelSpec
from gft_edge.errors import UsageError
from gft_edge.explanation.colours import ABSENT, DIVERGING, SEQUENTIAL, coloured, heat_map, overlay
from gft_edge.explanation.deletion import (
    LEAST_IMAGES,
    OWN,
    RANDOM,
    area_under,
    blurred,
    deletion_report,
    estimate,
    probability_curve,
)
from gft_edge.explanation.occlusion import cell_edges, cover_side, mean_colour, occlude
from gft_edge.explanation.sheet import PANEL_PX, explanation_sheet, fitted, number, wrapped
from gft_edge.explanation.subject import Floats, Pixels, Seen, log_probabilities
from gft_edge.explanation.view import (
    StageView,
    composite,
    explanation,
    importance_order,
    on_grid,
    scaled,
)
from tests.support.networks import micro_spec
from tests.support.refusals import refusal_of


def hand_made_stages() -> tuple[StageView, ...]:
    """Two stages on a grid of 2 x 3: patches 0, 2, 3, 5 stay, then 3 and 5."""
    return (
        StageView(
            np.arange(6),
            np.array([0, 2, 3, 5]),
            np.array([4, 1, 6, 8, 0, 5], np.float32),
            None,
        ),
        StageView(
            np.array([0, 2, 3, 5]), np.array([3, 5]), np.array([0, 1, 3, 4], np.float32), None
        ),
    )


def test_patches_are_ordered_by_how_far_they_come_and_then_by_the_last_stage_to_rank_them() -> None:
    assert importance_order(hand_made_stages(), 6).tolist() == [5, 3, 2, 0, 1, 4]


def test_the_composite_is_the_mean_of_the_stages_scaled_and_0_where_a_patch_is_gone() -> None:
    expected = [4 / 16, 1 / 16, (6 / 8 + 1 / 4) / 2, (1 + 3 / 4) / 2, 0, (5 / 8 + 1) / 2]
    np.testing.assert_allclose(composite(hand_made_stages(), 6), expected, rtol=1e-6)
    assert scaled(np.full(3, 7, np.float32)).tolist() == [0, 0, 0]


def test_a_stages_patches_are_positions_on_the_whole_grid() -> None:
    seen = Seen(
        np.zeros((1, 2), np.float32),
        (np.array([[0, 2, 3, 5]]), np.array([[2, 3]])),
        (np.zeros((1, 6), np.float32), np.array([[0, 1, 3, 4]], np.float32)),
        (),
        np.zeros(1, np.float32),
    )
    first, second = explanation(seen, 6).stages
    assert first.present.tolist() == [0, 1, 2, 3, 4, 5]
    assert second.present.tolist() == [0, 2, 3, 5]
    assert second.kept.tolist() == [3, 5]
    whole = on_grid(second.present, second.importance, 6)  # type: ignore[arg-type]
    np.testing.assert_array_equal(whole, [0, np.nan, 1, 3, np.nan, 4])


def test_a_map_colours_the_patch_of_each_value() -> None:
    values = on_grid(np.array([0, 2, 3, 5]), [0, 1, 3, 4], 6)
    picture = np.asarray(heat_map(values, (2, 3), 60, 0, 4, SEQUENTIAL))

    def at(row: int, column: int) -> tuple[int, ...]:
        cell = picture[row * 30 : row * 30 + 30, column * 20 : column * 20 + 20]
        assert (cell == cell[0, 0]).all()
        return tuple(int(c) for c in cell[0, 0])

    assert at(0, 0) == (0x44, 0x01, 0x54)
    assert at(1, 2) == (0xFD, 0xE7, 0x25)
    assert at(0, 1) == at(1, 1) == ABSENT
    # A value of 3 of 4 is three quarters along: between the seventh and the eighth colour.
    assert at(1, 0) == tuple(int(c) for c in coloured(0.75, 0, 1, SEQUENTIAL))
    assert tuple(coloured(0, -1, 1, DIVERGING)) == (0xF7, 0xF7, 0xF7)
    assert coloured([1, 2], 3, 3, SEQUENTIAL).shape == (2, 3)


def test_the_overlay_is_brightest_where_the_importance_is() -> None:
    values = np.array([0, 0, 1, 0], np.float32)
    grey = np.full((8, 8, 3), 120, np.uint8)
    found = np.asarray(overlay(grey, values, (2, 2), 40)).astype(int).sum(axis=2)
    corner = found[20:, :20]
    assert corner.min() > found[:20].max()
    assert corner.min() > found[20:, 20:].max()


class Window:
    """By hand: class 0 reads the brightness of one patch, class 1 of another, the rest nothing."""

    def __init__(self, model: ModelSpec, patches: tuple[int, int], perfect: bool = True):
        self.model, self.runs = model, "hand made"
        self.unavailable: tuple[str, ...] = ()
        self.inferences = 0
        self._patches = patches
        self._perfect = perfect

    def logits(self, pixels: Pixels) -> Floats:
        self.inferences += len(pixels)
        rows, columns = self.model.patch_grid
        side = pixels.shape[1] // rows
        cells = pixels.reshape(len(pixels), rows, side, columns, side, 3).mean(axis=(2, 4, 5))
        read = cells.reshape(len(pixels), -1)[:, list(self._patches)]
        rest = np.zeros((len(pixels), len(self.model.labels) - 2))
        return np.concatenate([read / 40, rest], axis=1).astype(np.float32)

    def see(self, pixels: Pixels) -> Seen:
        count = self.model.patch_count
        score = np.zeros((len(pixels), count), np.float32)
        logits = self.logits(pixels)
        read = np.asarray(self._patches)[logits.argmax(axis=1)]
        score[np.arange(len(pixels)), read] = 1 if self._perfect else -1
        kept = np.argsort(-score, axis=1, kind="stable")[:, : self.model.stages[0].keep]
        zero = np.zeros(len(pixels), np.float32)
        return Seen(logits, (np.sort(kept),), (score,), (), zero)

    def close(self) -> None:
        pass


@pytest.fixture
def window_model() -> ModelSpec:
    spec = micro_spec()
    return dataclasses.replace(spec, stages=spec.stages[:1])


def bright_pixels(images: int = 1) -> Pixels:
    generator = np.random.default_rng(3)
    return generator.integers(200, 256, (images, 64, 64, 3)).astype(np.uint8)


def test_covering_finds_the_patch_that_a_class_reads(window_model: ModelSpec) -> None:
    image = bright_pixels()[0]
    subject = Window(window_model, (19, 44))
    found = occlude(subject, image, block_patches=1)
    assert found.inferences == 65
    first, second = subject._patches
    if found.classes[0] == 1:
        first, second = second, first
    for drop, own in zip(found.drops, (first, second), strict=True):
        assert drop.shape == (8, 8)
        assert int(drop.argmax()) == own
    # Covering what the other class reads speaks for this one.
    assert int(found.drops[0].argmin()) == second
    covered = image.copy()
    row, column = divmod(first, 8)
    covered[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = mean_colour(
        window_model.preprocessing
    )
    log_p = log_probabilities(subject.logits(np.stack([image, covered])))[:, found.classes[0]]
    assert found.drops[0][row, column] == pytest.approx(log_p[0] - log_p[1])
    assert found.log_p[0] == pytest.approx(log_p[0])


def test_a_cover_of_several_patches_is_shared_by_them(window_model: ModelSpec) -> None:
    image = bright_pixels()[0]
    subject = Window(window_model, (0, 44))
    found = occlude(subject, image, block_patches=2)
    drop = found.drops[found.classes.index(0)]
    assert found.inferences == 50
    # One cover holds the corner, and it is one of two that hold its neighbour.
    assert drop[0, 1] == pytest.approx(drop[0, 0] / 2, rel=1e-3)
    assert drop[1, 1] == pytest.approx(drop[0, 0] / 4, rel=1e-3)


def test_the_cover_moves_on_every_grid(window_model: ModelSpec) -> None:
    def on(grid: tuple[int, int]) -> ModelSpec:
        return dataclasses.replace(window_model, patch_grid=grid)

    for grid, side in (((14, 14), 2), ((3, 3), 2), ((2, 2), 1), ((2, 5), 1), ((1, 1), 0)):
        assert cover_side(on(grid)) == side
    assert cover_side(window_model, 7) == 7
    refusal_of(UsageError, lambda: cover_side(window_model, 8), "8 x 8")
    refusal_of(UsageError, lambda: cover_side(on((1, 1)), 1), "1 x 1", "give 0")
    # Cells share a side to the pixel.
    assert cell_edges(64, 8) == list(range(0, 65, 8))
    edges = cell_edges(64, 14)
    assert (edges[0], edges[-1]) == (0, 64)
    assert set(np.diff(edges).tolist()) == {4, 5}


def test_a_perfect_importance_beats_random_and_a_wrong_one_loses(window_model: ModelSpec) -> None:
    pixels = bright_pixels(8)
    right = deletion_report(Window(window_model, (19, 63)), {}, pixels, 16, insert_from="mean")
    own, random = (next(r for r in right.results if r.order == name) for name in (OWN, RANDOM))
    assert own.deletion.mean < random.deletion.mean
    assert own.insertion.mean > random.insertion.mean
    wrong_one = Window(window_model, (19, 63), perfect=False)
    wrong = deletion_report(wrong_one, {"perfect": Window(window_model, (19, 63))}, pixels, 16)
    perfect = next(r for r in wrong.results if r.order == "perfect")
    assert perfect.deletion_gain is not None
    assert perfect.deletion_gain.mean < 0
    assert perfect.deletion_gain.interval is not None
    assert [r.order for r in wrong.results] == [OWN, "perfect", RANDOM]


def test_the_gain_is_the_mean_of_paired_differences_and_the_seed_decides(
    window_model: ModelSpec,
) -> None:
    subject, pixels = Window(window_model, (19, 63)), bright_pixels(6)
    report = deletion_report(subject, {}, pixels, points=8, random_orders=2, seed=5)
    own, random = report.results
    assert own.deletion_gain is None
    assert random.deletion_gain is not None
    assert random.insertion_gain is not None
    assert random.deletion_gain.mean == pytest.approx(random.deletion.mean - own.deletion.mean)
    assert random.insertion_gain.mean == pytest.approx(own.insertion.mean - random.insertion.mean)
    again = deletion_report(subject, {}, pixels, points=8, random_orders=2, seed=5)
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(report, seconds=0)
    other = deletion_report(subject, {}, pixels, points=8, random_orders=2, seed=6)
    assert other.results[0] == own
    assert other.results[1] != random
    # The logits, what it ranks, and nine points of both curves for each of three orders.
    assert report.inferences == 6 * (1 + 1 + 3 * 2 * 9)
    assert area_under(report.fractions, own.deletion_curve) == pytest.approx(own.deletion.mean)


def test_a_curve_covers_the_patches_in_their_order(window_model: ModelSpec) -> None:
    image = bright_pixels()[0]
    subject = Window(window_model, (10, 20))
    target = int(subject.logits(image[None])[0].argmax())
    base = np.broadcast_to(mean_colour(window_model.preprocessing), image.shape)
    order = np.roll(np.arange(64), -subject._patches[target])  # the patch it reads first
    found = probability_curve(subject, image, base, order, 64, target)
    ends = np.exp(log_probabilities(subject.logits(np.stack([image, base])))[:, target])
    assert found[0] == pytest.approx(ends[0])
    assert found[-1] == pytest.approx(ends[1])
    changes = np.flatnonzero(np.abs(np.diff(found)) > 1e-9)
    read = [int(np.flatnonzero(order == patch)[0]) for patch in subject._patches]
    assert sorted(changes.tolist()) == sorted(read)
    assert changes[0] == 0


def test_the_area_is_the_trapezoid_rules() -> None:
    fractions, values = [0, 0.25, 1], [1.0, 0.5, 0.1]
    assert area_under(fractions, values) == pytest.approx(0.25 * 0.75 + 0.75 * 0.3)
    assert area_under([0, 1], [0.4, 0.4]) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("images", "quantile"), [(5, 2.7764), (10, 2.2622), (64, 1.9983), (400, 1.9659)]
)
def test_the_interval_is_students(images: int, quantile: float) -> None:
    values = np.random.default_rng(0).normal(size=images)
    found = estimate(values.tolist())
    assert found.interval is not None
    reach = quantile * values.std(ddof=1) / images**0.5
    assert found.interval[1] - found.mean == pytest.approx(reach, rel=3e-3)
    assert found.mean - found.interval[0] == pytest.approx(reach, rel=3e-3)


def test_too_few_images_have_no_interval() -> None:
    assert estimate([0.1] * (LEAST_IMAGES - 1)).interval is None
    assert estimate([0.1] * LEAST_IMAGES).interval == pytest.approx((0.1, 0.1))


def test_a_blurred_image_keeps_its_colours_and_loses_its_patches(window_model: ModelSpec) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[::2] = 255
    found = blurred(image, window_model)
    assert found.shape == image.shape
    assert found[16:48].std() < 3
    assert found.mean() == pytest.approx(127.5, abs=3)


def test_kept_patches_alone_are_drawn_where_an_engine_tells_no_more(
    window_model: ModelSpec,
) -> None:
    pixels = bright_pixels()
    seen = dataclasses.replace(Window(window_model, (9, 18)).see(pixels), importance=())
    explained = explanation(seen, window_model.patch_count)
    assert explained.stages[0].importance is None
    drawn = explanation_sheet("x", pixels[0], explained, window_model, None, ("importance",))
    assert drawn.height > len(explained.stages) * PANEL_PX


def test_words_never_leave_their_panel() -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(13)
    for words in ("short", "W" * 200, "path/" * 40 + "end.png", "é" * 90):
        assert font.getlength(fitted(words, PANEL_PX, 13)) <= PANEL_PX
    assert fitted("path/" * 40 + "end.png", PANEL_PX, 13).endswith("end.png")
    lines = wrapped("a note of several words " * 20 + "W" * 300, 400)
    assert len(lines) > 3
    assert all(font.getlength(line) <= 400 for line in lines)
    assert [number(v) for v in (0, 0.012345, -1.05, 1.2e-5)] == ["0", "0.0123", "-1.05", "1.2e-5"]


def test_log_probabilities_are_those_of_softmax() -> None:
    logits: npt.NDArray[np.float64] = np.array([[1.0, 2.0, 800.0], [0.0, 0.0, 0.0]])
    expected = torch.log_softmax(torch.from_numpy(logits), dim=1).numpy()
    np.testing.assert_allclose(log_probabilities(logits), expected)
