"""What explain shows is what the artifact ranks, keeps and answers, each value at its own patch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.specs import ModelSpec
from gft_edge.bundle.store import MANIFEST_FILE, read_bundle, read_manifest, write_manifest
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.cli import main
from gft_edge.datasets import read_split
from gft_edge.errors import BundleError, FailedError, UsageError
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
from gft_edge.explanation.network import NetworkSubject, open_run
from gft_edge.explanation.occlusion import cell_edges, cover_side, mean_colour, occlude
from gft_edge.explanation.sheet import PANEL_PX, explanation_sheet, fitted, number, wrapped
from gft_edge.explanation.subject import BundleSubject, Floats, Pixels, Seen, log_probabilities
from gft_edge.explanation.view import (
    StageView,
    composite,
    explanations,
    importance_order,
    on_grid,
    scaled,
)
from gft_edge.export.explaining import name_scores
from gft_edge.export.int8 import CalibrationRequest
from gft_edge.export.recipe import ExportRequest, export
from gft_edge.model.checkpoint import load_run, save_network
from gft_edge.model.gft import build_gft
from gft_edge.model.networks import build_network
from gft_edge.model.variants import spec_from_name
from gft_edge.runtime.classifier import Classifier, load_pixels
from gft_edge.training.loop import CONFIG_FILE, RunConfig
from gft_edge.training.recipes import Recipe

STAGES = 3
# What is exported without a judgement: random weights mean nothing, and rounding moves them far.
LOWERED = ("onnx-int8", "openvino-int8", "onnx-fp16", "openvino-fp32-fp16-weights")


@pytest.fixture(scope="module")
def pixels(micro_run: Path, micro_data: Path) -> Pixels:
    """All of the micro data, (12,64,64,3)."""
    spec, _ = load_run(micro_run)
    split = read_split(micro_data, "test", spec.labels)
    return np.stack([load_pixels(path, spec.preprocessing) for path in split.paths])


@pytest.fixture(scope="module")
def lowered(
    tmp_path_factory: pytest.TempPathFactory, calm_run: Path, micro_pictures: Path
) -> dict[str, Path]:
    """A bundle for each of LOWERED."""
    spec, model = load_run(calm_run)
    verified = draw_image_set(read_split(micro_pictures, "val", spec.labels), count=8, seed=0)
    given = draw_image_set(read_split(micro_pictures, "train", spec.labels), count=16, seed=0)
    calibration = CalibrationRequest(given, judged=False)
    folder = tmp_path_factory.mktemp("lowered")
    requests = {
        "onnx-int8": ExportRequest("onnx", "int8", calibration=calibration, judged=False),
        "openvino-int8": ExportRequest("openvino", "int8", calibration=calibration, judged=False),
        "onnx-fp16": ExportRequest("onnx", "fp16", judged=False),
        "openvino-fp32-fp16-weights": ExportRequest("openvino", compress_weights=True),
    }
    for name, request in requests.items():
        export(model, spec, verified, request, folder / name)
    return {name: folder / name for name in LOWERED}


def seen_by(bundle: Path, pixels: Pixels) -> Seen:
    subject = BundleSubject(read_bundle(bundle))
    assert subject.unavailable == ()
    seen = subject.see(pixels)
    subject.close()
    return seen


def assert_keeps_the_best(seen: Seen) -> None:
    for importance, kept in zip(seen.importance, seen.kept, strict=True):
        for ranked, chosen in zip(importance, kept, strict=True):
            left = np.delete(ranked, chosen)
            assert ranked[chosen].min() >= left.max()


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_bundle_shows_the_importance_that_pytorch_computes(
    micro_bundles: dict[str, Path], micro_run: Path, pixels: Pixels, target: str
) -> None:
    ours, theirs = seen_by(micro_bundles[target], pixels), open_run(micro_run).see(pixels)
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=2e-4)
    same = np.ones(len(pixels), bool)
    for stage in range(STAGES):
        # Behind a patch that rounding swapped, another set is ranked.
        assert same.sum() >= 11
        for mine, reference in (
            (ours.importance[stage], theirs.importance[stage]),
            (ours.attention[stage], theirs.attention[stage]),
        ):
            assert mine.shape == (len(pixels), (64, 48, 32)[stage])
            np.testing.assert_allclose(mine[same], reference[same], rtol=1e-3, atol=1e-3)
        same &= (ours.kept[stage] == theirs.kept[stage]).all(axis=1)


def test_pytorch_shows_its_own_scores_and_the_mean_of_eq_1(micro_run: Path, pixels: Pixels) -> None:
    from gft_edge.model.gala import smooth, token_gradient
    from gft_edge.model.gft import project_qkv, recorded_scores
    from gft_edge.runtime.preprocess import batch_from_pixels

    spec, model = load_run(micro_run)
    seen = NetworkSubject(spec, model).see(pixels[:2])
    images = torch.from_numpy(batch_from_pixels(pixels[:2], spec.preprocessing, "float32"))
    with torch.inference_mode(), recorded_scores(model) as scores:
        model(images)
        for importance, (_, expected) in zip(seen.importance, scores, strict=True):
            np.testing.assert_array_equal(importance, expected.numpy())
        # By the letter of Eq. 1, over all pairs, for the first stage.
        backbone, layer = model.backbone, model.layers[0]
        x = backbone.blocks[0](backbone._pos_embed(backbone.patch_embed(images)))
        q, k, _, _ = project_qkv(layer.attn, layer.norm(x))
        pairs = layer.attn.scale * q[:, :, 1:] @ k[:, :, 1:].transpose(2, 3)
        means = pairs.mean(dim=3)
        np.testing.assert_allclose(seen.attention[0], means.mean(dim=1).numpy(), atol=1e-4)
        gradient = token_gradient(means).abs().mean(dim=1)
        smoothed = smooth(gradient, model.selections[0].kernel)
        np.testing.assert_allclose(seen.importance[0], smoothed.numpy(), atol=1e-4)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_bundle_keeps_the_best_of_the_importance_that_it_shows(
    micro_bundles: dict[str, Path], pixels: Pixels, target: str
) -> None:
    assert_keeps_the_best(seen_by(micro_bundles[target], pixels))


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_looking_inside_changes_neither_logits_nor_kept_patches(
    micro_bundles: dict[str, Path], pixels: Pixels, target: str
) -> None:
    seen = seen_by(micro_bundles[target], pixels)
    with Classifier.load(micro_bundles[target]) as deployed:
        np.testing.assert_array_equal(seen.logits, deployed.outputs(pixels).logits)
    with Classifier.load(micro_bundles[target], kept=True) as keeping:
        for mine, theirs in zip(seen.kept, keeping.outputs(pixels).kept, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert seen.difference.shape == (len(pixels),)
    assert seen.difference.max() < 1e-4


@pytest.mark.parametrize("name", LOWERED)
def test_a_lowered_bundle_shows_its_own_ranking(
    lowered: dict[str, Path], calm_run: Path, micro_pictures: Path, name: str
) -> None:
    spec, _ = load_run(calm_run)
    paths = read_split(micro_pictures, "test", spec.labels).paths[:8]
    pixels = np.stack([load_pixels(path, spec.preprocessing) for path in paths])
    seen, reference = seen_by(lowered[name], pixels), open_run(calm_run).see(pixels)
    assert_keeps_the_best(seen)
    with Classifier.load(lowered[name]) as deployed:
        np.testing.assert_array_equal(seen.logits, deployed.outputs(pixels).logits)
    with Classifier.load(lowered[name], kept=True) as keeping:
        for mine, theirs in zip(seen.kept, keeping.outputs(pixels).kept, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert seen.difference.max() < 1e-4
    # Near the reference's, and not the reference's own.
    for shown, computed in (
        (seen.importance[0], reference.importance[0]),
        (seen.attention[0], reference.attention[0]),
    ):
        assert 0.98 < np.corrcoef(shown.ravel(), computed.ravel())[0, 1] < 1 - 1e-10


def test_naming_the_scores_changes_no_operation(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle = read_bundle(micro_bundles["onnx"])
    graph = onnx.load(bundle.artifact_path).graph
    assert [value.name for value in graph.output] == ["logits"]
    written = {name for node in graph.node for name in node.output}
    names = {f"{kind}_{n}" for kind in ("kept", "score", "attention") for n in (1, 2, 3)}
    assert names <= written
    manifest = bundle.manifest
    assert manifest.score_outputs == ("score_1", "score_2", "score_3")
    assert manifest.attention_outputs == ("attention_1", "attention_2", "attention_3")
    copied = tmp_path / "again.onnx"
    shutil.copy(bundle.artifact_path, copied)
    name_scores(copied, manifest.model)
    assert copied.read_bytes() == bundle.artifact_path.read_bytes()


@pytest.mark.parametrize(
    ("gala", "score"), [("block", "gala"), ("layer", "class"), ("block", "random")]
)
def test_every_score_is_shown_from_either_place(
    tmp_path: Path, micro_data: Path, gala: Any, score: Any
) -> None:
    spec, run = small_run(tmp_path / "run", micro_data, gala=gala, score=score)
    images = draw_image_set(read_split(micro_data, "test", spec.labels), count=6, seed=0)
    export(load_run(run)[1], spec, images, ExportRequest("onnx"), tmp_path / "bundle")
    pixels = np.stack([load_pixels(path, spec.preprocessing) for path in images.paths[:3]])
    ours, theirs = seen_by(tmp_path / "bundle", pixels), open_run(run).see(pixels)
    assert len(ours.attention) == len(theirs.attention) == (2 if score == "gala" else 0)
    assert_keeps_the_best(ours)
    np.testing.assert_allclose(ours.importance[0], theirs.importance[0], rtol=1e-3, atol=1e-4)


def small_run(
    folder: Path, data: Path, stages: str = "0:20,1:10", classes: int = 4, **how: Any
) -> tuple[ModelSpec, Path]:
    """A run of three blocks at 48 px with 36 patches, and seeded weights that answer variously."""
    spec = spec_from_name(
        "vit_tiny_patch16_224",
        read_split(data, "test").labels[:classes],
        image_size_px=48,
        stages=stages,
        backbone_args={"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3},
        **how,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_gft(spec)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
    folder.mkdir()
    save_network(folder, model, spec)
    return spec, folder


def test_another_score_in_the_same_place_ranks_as_a_network_of_that_score(
    tmp_path: Path, micro_data: Path
) -> None:
    spec, run = small_run(tmp_path / "a", micro_data, score="class")
    subject = open_run(run)
    pixels = np.stack(
        [load_pixels(p, spec.preprocessing) for p in read_split(micro_data, "test").paths[:3]]
    )
    gala = build_gft(dataclasses.replace(spec, score="gala"))
    gala.load_state_dict(subject.network.state_dict(), strict=False)
    expected = NetworkSubject(dataclasses.replace(spec, score="gala"), gala).see(pixels)
    found = subject.ranking_by("gala").see(pixels)
    for stage in range(2):
        np.testing.assert_array_equal(found.importance[stage], expected.importance[stage])
        np.testing.assert_array_equal(found.kept[stage], expected.kept[stage])
    back = subject.ranking_by("gala").ranking_by("class").see(pixels)
    np.testing.assert_array_equal(back.importance[1], subject.see(pixels).importance[1])


def without_names(bundle: Path, folder: Path) -> Path:
    """A copy whose manifest is as it was before scores had names."""
    shutil.copytree(bundle, folder)
    content = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    del content["score_outputs"], content["attention_outputs"]
    content["seal"] = ""
    content["seal"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST_FILE).write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_bundle_of_before_opens_and_says_what_it_cannot_tell(
    micro_bundles: dict[str, Path], pixels: Pixels, tmp_path: Path
) -> None:
    subject = BundleSubject(read_bundle(without_names(micro_bundles["onnx"], tmp_path / "old")))
    assert subject.unavailable == (
        "importance and attention: this bundle was exported before they had names: export the run "
        "again",
    )
    seen = subject.see(pixels[:2])
    assert seen.importance == seen.attention == ()
    assert [kept.shape for kept in seen.kept] == [(2, 48), (2, 32), (2, 16)]
    (explained, _) = explanations(seen, 64)
    assert explained.stages[2].importance is None
    drawn = explanation_sheet("x", pixels[0], explained, subject.model, None, subject.unavailable)
    assert drawn.height > STAGES * PANEL_PX


def test_a_manifest_that_names_too_few_scores_is_refused(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(micro_bundles["onnx"], folder)
    manifest = read_manifest(folder)
    write_manifest(folder, dataclasses.replace(manifest, score_outputs=("score_1",)))
    with pytest.raises(BundleError, match="score_outputs has 1 names for 3 stages: export it anew"):
        read_bundle(folder)


def test_the_fake_backend_explains_nothing(micro_bundles: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="the fake backend looks at nothing: choose a real one"):
        BundleSubject(read_bundle(micro_bundles["onnx"]), "fake")


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
    expected = [
        (4 / 8 + 0) / 2,
        (1 / 8) / 2,
        (6 / 8 + 1 / 4) / 2,
        (1 + 3 / 4) / 2,
        0,
        (5 / 8 + 1) / 2,
    ]
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
    ((first, second),) = (explained.stages for explained in explanations(seen, 6))
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
def window_model(micro_run: Path) -> ModelSpec:
    spec, _ = load_run(micro_run)
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


def test_a_cover_as_large_as_the_grid_is_refused(window_model: ModelSpec) -> None:
    with pytest.raises(UsageError, match="a cover of 8 patches does not move on a 8 x 8 grid"):
        cover_side(window_model, 8)
    tiny = dataclasses.replace(window_model, patch_grid=(1, 1))
    with pytest.raises(UsageError, match="on a 1 x 1 grid: give 0 for none"):
        cover_side(tiny, 1)


def test_the_cover_unless_given_moves_on_every_grid(window_model: ModelSpec) -> None:
    for grid, side in (((14, 14), 2), ((3, 3), 2), ((2, 2), 1), ((2, 5), 1), ((1, 1), 0)):
        model = dataclasses.replace(window_model, patch_grid=grid)
        assert cover_side(model) == side
    assert cover_side(window_model, 7) == 7


def test_cells_share_a_side_to_the_pixel() -> None:
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


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["explain", *map(str, arguments)])


def content_of(result: Result, exit_code: int = 0) -> dict[str, Any]:
    assert result.exit_code == exit_code, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


@pytest.mark.parametrize("what", ["run", "onnx", "openvino"])
def test_explain_writes_a_picture_an_image_and_its_numbers(
    what: str, micro_run: Path, micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    of = micro_run if what == "run" else micro_bundles[what]
    (tmp_path / "mine.txt").write_text("keep me")
    images = [micro_data / "test" / "dill" / f"{n}.png" for n in (0, 1)]
    result = run(of, *images, "--out", tmp_path, "--json")
    content = content_of(result)
    assert content == json.loads((tmp_path / "explain.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "1-0.png", "2-1.png", "explain.json", "mine.txt",
    ]  # fmt: skip
    assert content["unavailable"] == []
    assert content["patch_grid"] == [8, 8]
    with Image.open(tmp_path / "1-0.png") as picture:
        assert picture.width > 3 * PANEL_PX
        assert picture.height > 5 * PANEL_PX
    entry = content["images"][0]
    assert [len(s["kept"]) for s in entry["stages"]] == [48, 32, 16]
    assert [len(s["importance"]) for s in entry["stages"]] == [64, 48, 32]
    for stage in entry["stages"]:
        assert len(stage["attention"]) == len(stage["present"]) == len(stage["importance"])
        ranked = sorted(zip(stage["importance"], stage["present"], strict=True), reverse=True)
        best = sorted(place for _, place in ranked[: len(stage["kept"])])
        assert stage["kept"] == best
    assert entry["stages"][1]["present"] == entry["stages"][0]["kept"]
    assert entry["predictions"][0]["probability"] >= entry["predictions"][1]["probability"]
    covered = entry["occlusion"]
    assert covered["inferences"] == 50
    assert [c["label"] for c in covered["classes"]] == [
        p["label"] for p in entry["predictions"][:2]
    ]
    assert np.asarray(covered["classes"][0]["drop"]).shape == (8, 8)


def test_explain_says_in_a_table_what_it_drew(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    result = run(micro_run, micro_data / "test" / "dill", "--out", tmp_path, "--cover", 0)
    assert result.exit_code == 0, result.output
    assert "48 / 32 / 16" in result.stdout
    assert "3-2.png" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("next: gft-edge explain ")
    assert json.loads((tmp_path / "explain.json").read_text())["images"][0]["occlusion"] is None


def test_a_network_without_stages_is_still_covered(micro_data: Path, tmp_path: Path) -> None:
    _, dense = small_run(tmp_path / "run", micro_data, stages="none")
    image = micro_data / "test" / "dill" / "0.png"
    content = content_of(run(dense, image, "--out", tmp_path / "out", "--json"))
    assert content["unavailable"] == ["importance and kept patches: this network drops no patches"]
    assert content["images"][0]["stages"] == []
    assert content["images"][0]["occlusion"]["inferences"] == 26
    result = run(dense, "--data", micro_data, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "ranks no patches: there is no order to delete patches in" in result.stderr


@pytest.fixture(scope="module", params=["test_resnet", "transfg_tiny"])
def other_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, micro_data: Path
) -> Path:
    """A run of a network that is no GFT, at 64 px; TransFG's patches overlap."""
    vit = {"patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 3, "patch_stride": 12}
    spec = spec_from_name(
        request.param,
        read_split(micro_data, "test").labels,
        image_size_px=64,
        backbone_args=vit if request.param == "transfg_tiny" else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_network(spec).eval()
    folder = tmp_path_factory.mktemp(request.param) / "run"
    folder.mkdir()
    save_network(folder, model, spec)
    images = draw_image_set(read_split(micro_data, "test", spec.labels), count=6, seed=0)
    export(model, spec, images, ExportRequest("onnx", judged=False), folder.parent / "bundle")
    return folder


@pytest.mark.parametrize("what", ["run", "bundle"])
def test_a_network_that_is_no_gft_is_covered_cell_by_cell(
    other_run: Path, what: str, micro_data: Path, tmp_path: Path
) -> None:
    image = micro_data / "test" / "dill" / "0.png"
    content = content_of(run(other_run.parent / what, image, "--out", tmp_path, "--json"))
    (entry,) = content["images"]
    assert entry["occlusion"]["cover_patches"] == 2
    assert entry["occlusion"]["inferences"] == 13 * 13 + 1
    drop = np.asarray(entry["occlusion"]["classes"][0]["drop"])
    assert drop.shape == (14, 14)
    assert len(np.unique(drop)) > 14 * 13
    with Image.open(tmp_path / entry["picture"]) as picture:
        assert picture.height > 2 * PANEL_PX


def test_what_a_network_that_is_no_gft_does_not_show_is_said_of_its_kind(
    other_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    image = micro_data / "test" / "dill" / "0.png"
    arguments = ("--out", tmp_path, "--cover", 0)
    for what in ("run", "bundle"):
        shown = run(other_run.parent / what, image, *arguments)
        assert shown.exit_code == 0, shown.output
        measured = run(other_run.parent / what, "--data", micro_data, *arguments)
        assert measured.exit_code == 2
        if "transfg" in str(other_run):
            assert "parts: TransFG chooses them before its last block" in shown.stdout
            assert "not shown" in shown.stdout
            assert "no patches" not in shown.stdout
            assert "this network shows no parts: there is no order" in measured.stderr
        else:
            assert "this network drops no patches" in shown.stdout
            assert "this network ranks no patches: there is no order" in measured.stderr


def test_a_cover_that_does_not_move_is_refused_before_anything_is_written(
    other_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    image = micro_data / "test" / "dill" / "0.png"
    result = run(other_run, image, "--out", tmp_path / "out", "--cover", 14)
    assert result.exit_code == 2
    assert "a cover of 14 cells does not move on a 14 x 14 grid: give 1 to 13" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_network_of_one_class_has_no_runner_up(micro_data: Path, tmp_path: Path) -> None:
    _, single = small_run(tmp_path / "run", micro_data, classes=1)
    image = micro_data / "test" / "dill" / "0.png"
    result = run(single, image, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if "0.png" in line and "20 / 10" in line]
    assert "apple 100.00 %" in line
    assert " - " in line


def test_a_broken_image_is_named_and_the_others_are_explained(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = micro_data / "test" / "dill" / "0.png"
    out = tmp_path / "out"
    result = run(micro_run, broken, good, good, "--out", out, "--cover", 0)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert sum(line.startswith("Error: ") and "broken.png" in line for line in lines) == 1
    assert f"{good} is named twice: it is explained once" in lines
    assert "1 of 2 images could not be read" in lines
    entries = json.loads((out / "explain.json").read_text())["images"]
    assert "broken.png" in entries[0]["error"]
    assert entries[1]["picture"] == "2-0.png"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}", "{image}"], "give --out FOLDER"),
        (["{run}", "--out", "{tmp}/o"], "nothing to explain: name images, or give --data FOLDER"),
        (["{run}", "{image}", "--data", "{data}", "--out", "{tmp}/o"], "not both"),
        (["{run}", "{image}", "--out", "{image}"], "is a file: give --out a folder"),
        (["{run}", "{tmp}/no.png", "--out", "{tmp}/o", "--backend", "onnx"], "are a bundle's"),
        (["{data}", "{image}", "--out", "{tmp}/o"], "is neither a run"),
        (["{tmp}/none", "{image}", "--out", "{tmp}/o"], "no such folder, give a run or a bundle"),
        (["{ov}", "{image}", "--out", "{tmp}/o", "--backend", "onnx"], "ONNX Runtime runs bundles"),
        (["{ov}", "{image}", "--out", "{tmp}/o", "--backend", "fake"], "looks at nothing"),
        (["{run}", "{image}", "--out", "{tmp}/o", "--cover", "9"], "does not move on a 8 x 8 grid"),
        (["{run}", "--data", "{tmp}", "--out", "{tmp}/o"], "has no test/ folder"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str],
    words: str,
    micro_run: Path,
    micro_bundles: dict[str, Path],
    micro_data: Path,
    tmp_path: Path,
) -> None:
    places = {
        "run": micro_run, "ov": micro_bundles["openvino"], "data": micro_data, "tmp": tmp_path,
        "image": micro_data / "test" / "dill" / "0.png",
    }  # fmt: skip
    result = run(*[argument.format(**places) for argument in arguments])
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert words in errors[0]


def test_the_ranking_of_a_run_is_measured_against_others(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    arguments = [micro_run, "--data", micro_data, "--out", tmp_path, "--points", 4]
    result = run(*arguments, "--limit", 6, "--json")
    content = content_of(result)
    assert [r["order"] for r in content["results"]] == ["importance", "class attention", "random"]
    assert content["images"] == 6
    assert content["unavailable"] == []
    # The logits, two rankings, and five points of both curves for five orders.
    assert content["inferences"] == 6 * (1 + 2 + 5 * 2 * 5)
    assert len(content["results"][0]["deletion_curve"]) == len(content["fractions"]) == 5
    assert content["results"][0]["deletion_gain"] is None
    assert content["results"][2]["deletion_gain"]["interval"] is not None
    assert content == json.loads((tmp_path / "curves.json").read_text())
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 800
    table = run(*arguments, "--limit", 2, "--insert-from", "mean")
    assert table.exit_code == 0, table.output
    assert "2 images are too few for an interval: take 5 or more" in table.stdout
    assert "importance (GALA, its own)" in table.stdout


def test_a_run_is_measured_on_images_as_it_was_trained_on_them(
    micro_data: Path, tmp_path: Path
) -> None:
    """The data set is the run's own unless it is given, and so is its folder."""
    _, folder = small_run(tmp_path / "run", micro_data)
    recipe = Recipe(epochs=1, batch_size=4)
    config = RunConfig(str(micro_data), recipe, False, 0, "cpu", dataset="fgvc-aircraft")
    (folder / CONFIG_FILE).write_text(json.dumps(to_json(config)))
    arguments = ["--out", tmp_path / "out", "--points", 2, "--limit", 1, "--json"]
    refused = run(folder, "--data", micro_data, *arguments)
    assert refused.exit_code == 2
    assert "variants.txt" in refused.stderr
    given = run(folder, "--dataset", "imagefolder", *arguments)
    assert content_of(given)["images"] == 1


def test_a_bundle_measures_its_own_ranking_and_names_what_only_a_run_knows(
    micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    arguments = ["--data", micro_data, "--out", tmp_path, "--points", 3, "--limit", 5]
    content = content_of(run(micro_bundles["onnx"], *arguments, "--json"))
    assert [r["order"] for r in content["results"]] == ["importance", "random"]
    # Deployed, deployed and with more outputs, and four points of both curves for four orders.
    assert content["inferences"] == 5 * (1 + 2 + 4 * 2 * 4)
    assert content["unavailable"] == [
        "the order by class attention: a bundle ranks by its own score alone; give the run"
    ]
    old = without_names(micro_bundles["onnx"], tmp_path / "old")
    result = run(old, *arguments)
    assert result.exit_code == 2
    assert "no order to delete patches in: importance and attention: this bundle was" in (
        result.stderr
    )


def test_broken_logits_are_no_explanation(micro_run: Path, pixels: Pixels) -> None:
    subject = open_run(micro_run)
    with torch.no_grad():
        subject.network.backbone.head.bias.fill_(float("nan"))
    with pytest.raises(FailedError, match="the logits hold NaN or infinity"):
        subject.logits(pixels[:1])


def test_log_probabilities_are_those_of_softmax() -> None:
    logits: npt.NDArray[np.float64] = np.array([[1.0, 2.0, 800.0], [0.0, 0.0, 0.0]])
    expected = torch.log_softmax(torch.from_numpy(logits), dim=1).numpy()
    np.testing.assert_allclose(log_probabilities(logits), expected)
