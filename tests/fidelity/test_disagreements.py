"""How far a bundle is from its reference on a split, which images differ, and what each kept of them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from gft_edge.bundle.specs import ModelSpec
from gft_edge.bundle.store import read_bundle, write_manifest
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.datasets import Split, read_split
from gft_edge.export.pipeline import export
from gft_edge.export.request import ExportRequest
from gft_edge.fidelity.disagreements import Comparison, compared
from gft_edge.model.checkpoint import load_run
from gft_edge.reporting.comparison_sheet import comparison_sheet, pictured
from gft_edge.reporting.pictures import CAPTION_PX, MARGIN_PX
from gft_edge.runtime.classifier import Classifier, load_pixels
from gft_edge.runtime.outputs import Outputs, grid_positions
from tests.support.bundles import alter_head, sign
from tests.support.cli import refusal, run, run_json


@pytest.fixture(scope="module")
def spec(micro_run: Path) -> ModelSpec:
    return load_run(micro_run)[0]


@pytest.fixture(scope="module")
def split(micro_data: Path, spec: ModelSpec) -> Split:
    return read_split(micro_data, "test", spec.labels)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, micro_run: Path, split: Split) -> Path:
    """The bundle of a copy of the micro run with noise on its weights: it looks elsewhere."""
    spec, model = load_run(micro_run)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.add_(0.01 * torch.randn(parameter.shape))
    folder = tmp_path_factory.mktemp("other") / "bundle"
    export(model, spec, draw_image_set(split, count=12, seed=0), ExportRequest("onnx"), folder)
    return folder


@pytest.fixture(scope="module")
def found(micro_bundles: dict[str, Path], other: Path, micro_data: Path) -> dict[str, Any]:
    """What verify says of `other` beside the micro bundle."""
    return run_json(
        "verify", other, "--reference", micro_bundles["onnx"], "--data", micro_data, exit_code=1
    )


def outputs_of(bundle: Path, split: Split) -> Outputs:
    with Classifier.load(bundle, kept=True) as classifier:
        preprocessing = classifier.bundle.manifest.model.preprocessing
        return classifier.outputs(
            np.stack([load_pixels(path, preprocessing) for path in split.paths])
        )


def test_two_bundles_of_one_run_are_the_same(
    micro_bundles: dict[str, Path], micro_data: Path
) -> None:
    given = ("verify", micro_bundles["openvino"], "--reference", micro_bundles["onnx"])
    content = run_json(*given, "--data", micro_data)
    assert content["verdict"] == "pass"
    assert content["images"] == 12
    assert content["top1"] == content["reference_top1"]
    assert content["kept_overlap"] == [1, 1, 1]
    assert content["patches_lost"] == [0, 0, 0]
    assert content["lost_near_border"] == content["disagreements"] == []
    assert content["picture"] is None
    assert content["cosine"] == pytest.approx(1)
    assert 0 < content["max_abs"] < 1e-4
    result = run(*given, "--data", micro_data)
    assert "give every image the same label" in result.stdout
    assert "true label" not in result.stdout


def test_each_disagreeing_image_is_told_with_both_labels_and_its_overlaps(
    found: dict[str, Any], micro_bundles: dict[str, Path], other: Path, split: Split
) -> None:
    sides = [outputs_of(bundle, split) for bundle in (micro_bundles["onnx"], other)]
    labels = [[split.labels[i] for i in side.logits.argmax(axis=1)] for side in sides]
    kept = [
        [[set(row.tolist()) for row in stage] for stage in grid_positions(side.kept)]
        for side in sides
    ]
    overlaps = [
        [len(a & b) / len(a | b) for a, b in zip(ours, theirs, strict=True)]
        for ours, theirs in zip(*kept, strict=True)
    ]
    expected = {
        str(path): {
            "path": str(path),
            "label": path.parent.name,
            "reference": labels[0][i],
            "candidate": labels[1][i],
            "kept_overlap": pytest.approx([stage[i] for stage in overlaps]),
        }
        for i, path in enumerate(split.paths)
        if labels[0][i] != labels[1][i]
    }
    assert 1 < len(expected) < 12
    assert {row["path"]: row for row in found["disagreements"]} == expected
    last = [row["kept_overlap"][-1] for row in found["disagreements"]]
    assert last == sorted(last)
    assert last[0] < 0.7
    assert found["top1_agreement"] == pytest.approx(1 - len(expected) / 12)
    assert found["kept_overlap"] == pytest.approx([np.mean(stage) for stage in overlaps])


def test_a_run_as_the_reference_also_tells_how_near_the_border_lost_patches_were(
    found: dict[str, Any], micro_run: Path, other: Path, micro_data: Path
) -> None:
    given = ("verify", other, "--reference", micro_run, "--data", micro_data)
    of_run = run_json(*given, exit_code=1)
    assert len(of_run["lost_near_border"]) == 3
    for near, lost in zip(of_run["lost_near_border"], of_run["patches_lost"], strict=True):
        assert 0 < near <= lost
    assert found["lost_near_border"] == []
    for key in ("kept_overlap", "patches_lost", "top1_agreement", "disagreements"):
        assert of_run[key] == found[key]


def test_the_table_holds_the_figures_and_the_images(
    found: dict[str, Any], micro_bundles: dict[str, Path], other: Path, micro_data: Path
) -> None:
    given = ("verify", other, "--reference", micro_bundles["onnx"], "--data", micro_data)
    result = run(*given)
    assert result.exit_code == 1
    # A long path is folded into its column.
    shown = " ".join(result.stdout.split())
    for measure, value in {
        "patches lost an image": " / ".join(f"{lost:.2f}" for lost in found["patches_lost"]),
        "of these near the border": "not known: only a run ranks its patches",
    }.items():
        assert f"│ {measure} │ {value} │" in shown
    assert f"disagree on {len(found['disagreements'])} of 12 images" in shown
    for row in found["disagreements"]:
        assert (
            f"│ {row['label']} │ {row['reference']} │ {row['candidate']} │ "
            f"{row['kept_overlap'][-1]:.4f} │" in shown
        )
    assert "--json" not in shown


def test_the_terminal_lists_twenty_images_and_the_picture_twelve(
    micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    """Logits negated: another label for each of 24 images, the same patches."""
    opposite = Path(shutil.copytree(micro_bundles["onnx"], tmp_path / "opposite"))
    alter_head(opposite / "model.onnx", np.negative, "head.weight", "head.bias")
    sign(opposite, "model.onnx")
    twice = Path(shutil.copytree(micro_data, tmp_path / "twice"))
    for path in list(twice.rglob("*.png")):
        shutil.copy(path, path.with_name(f"{path.stem}-again.png"))
    out = tmp_path / "new" / "folder"
    result = run(
        "verify", opposite, "--reference", micro_bundles["onnx"], "--data", twice,
        "--pictures", out,
    )  # fmt: skip
    assert result.exit_code == 1
    assert "disagree on 24 of 24 images" in result.stdout
    assert result.stdout.count("1.0000 │\n") == 20
    assert "and 4 more: --json lists all" in result.stdout
    assert result.stdout.splitlines()[-1] == f"picture: {out / 'compare.png'}"
    assert [path.name for path in out.iterdir()] == ["compare.png"]
    with Image.open(out / "compare.png") as image:
        assert image.height == CAPTION_PX + MARGIN_PX + 12 * (192 + CAPTION_PX + MARGIN_PX)


def cell(sheet: npt.NDArray[np.uint8], row: int, column: int, size: int) -> npt.NDArray[np.uint8]:
    """The picture in a row and a column of a sheet of square pictures."""
    top = 2 * CAPTION_PX + row * (size + CAPTION_PX + MARGIN_PX)
    left = MARGIN_PX + column * (size + MARGIN_PX)
    return sheet[top : top + size, left : left + size]


def test_the_picture_darkens_what_each_side_dropped(
    micro_bundles: dict[str, Path], other: Path, split: Split, spec: ModelSpec
) -> None:
    sides = [outputs_of(bundle, split) for bundle in (micro_bundles["onnx"], other)]
    comparison = compared(split, *sides)
    sheet = np.asarray(comparison_sheet(comparison, spec))
    scale, size, patch = 3, 192, 8
    shown = pictured(comparison)
    assert [comparison.row(image) for image in shown] == list(comparison.disagreements())
    for row, image in enumerate(shown):
        pixels = load_pixels(split.paths[image], spec.preprocessing)
        large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
        np.testing.assert_array_equal(cell(sheet, row, 0, size), large)
        for side, outputs in enumerate(sides):
            for stage, positions in enumerate(grid_positions(outputs.kept)):
                drawn = cell(sheet, row, 1 + 2 * stage + side, size)
                for position in range(64):
                    y, x = (scale * patch * place for place in divmod(position, 8))
                    here = np.s_[y : y + scale * patch, x : x + scale * patch]
                    chosen = position in positions[image]
                    expected = large[here] if chosen else large[here] // 8 + 16
                    np.testing.assert_array_equal(drawn[here], expected)


def test_where_all_agree_the_picture_shows_the_four_that_look_elsewhere_most(
    micro_bundles: dict[str, Path], other: Path, split: Split
) -> None:
    theirs, ours = (outputs_of(bundle, split) for bundle in (micro_bundles["onnx"], other))
    comparison = compared(split, dataclasses.replace(theirs, logits=ours.logits), ours)
    assert comparison.disagreements() == ()
    last = comparison.overlaps[:, -1]
    assert last[pictured(comparison)].tolist() == sorted(last)[:4]
    assert last.min() < last.max()


def test_images_of_equal_overlap_at_the_last_stage_are_ordered_by_the_stage_before(
    micro_bundles: dict[str, Path], split: Split
) -> None:
    outputs = outputs_of(micro_bundles["onnx"], split)
    same = compared(split, outputs, outputs)
    assert same.by_overlap() == list(range(12))
    overlaps = np.ones((12, 3))
    overlaps[[3, 5, 7]] = [[0.1, 0.9, 0.5], [0.2, 0.8, 0.5], [0.9, 0.9, 0.4]]
    ordered: Comparison = dataclasses.replace(same, overlaps=overlaps)
    assert ordered.by_overlap()[:4] == [7, 5, 3, 0]


def test_logits_that_are_no_numbers_are_a_failure(
    micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    nan = Path(shutil.copytree(micro_bundles["onnx"], tmp_path / "nan"))
    alter_head(nan / "model.onnx", lambda values: values * np.nan)
    sign(nan, "model.onnx")
    for bundle, reference in ((nan, micro_bundles["onnx"]), (micro_bundles["onnx"], nan)):
        content = run_json(
            "verify", bundle, "--reference", reference, "--data", micro_data, exit_code=1
        )
        assert content["verdict"] == "fail"
        assert content["failures"]


def test_what_cannot_be_compared_is_refused_and_nothing_is_written(
    micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    bundle, reference = micro_bundles["onnx"], micro_bundles["openvino"]
    altered = Path(shutil.copytree(bundle, tmp_path / "altered"))
    manifest = read_bundle(altered).manifest
    stages = (*manifest.model.stages[:2], dataclasses.replace(manifest.model.stages[2], keep=15))
    model = dataclasses.replace(manifest.model, stages=stages)
    write_manifest(altered, dataclasses.replace(manifest, model=model))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    data, out = ("--data", micro_data), ("--pictures", tmp_path / "out")
    for named, *arguments in (
        ("--data", bundle, "--reference", reference, *out),
        ("--reference", bundle, *data, *out),
        ("val", bundle, "--reference", reference, *data, "--split", "val", *out),
        ("absent", bundle, "--reference", tmp_path / "absent", *data, *out),
        ("absent", tmp_path / "absent", "--reference", reference, *data, *out),
        ("model.json", bundle, "--reference", tmp_path / "empty", *data, *out),
        ("stages", altered, "--reference", reference, *data, *out),
        ("--pictures", bundle, "--reference", reference, *data, "--pictures", tmp_path / "file"),
        ("file", bundle, "--reference", reference, *data, "--pictures", tmp_path / "file" / "x"),
    ):
        assert named in refusal("verify", *arguments)
    assert not (tmp_path / "out").exists()
