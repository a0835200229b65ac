"""compare says how far two artifacts of one network are apart, on which images, and where they look."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import numpy_helper
from PIL import Image

from gft_edge.bundle.specs import ModelSpec
from gft_edge.bundle.store import read_bundle, read_manifest, sha256_of, write_manifest
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.cli import main
from gft_edge.datasets import Split, read_split
from gft_edge.explanation.comparison import Comparison, compare_on_split
from gft_edge.export.recipe import ExportRequest, export
from gft_edge.model.checkpoint import load_run, save_network
from gft_edge.model.gft import build_gft
from gft_edge.reporting.pictures import CAPTION_PX, MARGIN_PX
from gft_edge.runtime.classifier import Classifier, load_pixels
from gft_edge.runtime.outputs import Outputs, grid_positions

KEYS = {
    "reference", "candidate", "split", "images", "reference_accuracy", "accuracy",
    "top1_agreement", "cosine", "max_abs", "kept_overlap", "patches_lost", "lost_near_border",
    "disagreements", "picture",
}  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def run_json(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    assert set(content) == KEYS
    return content


def refusal(*arguments: object, exit_code: int = 2) -> str:
    """The one line of error of a compare that prints nothing else."""
    result = run(*arguments)
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    return errors[0].removeprefix("Error: ")


def with_head(
    bundle: Path, copy: Path, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> Path:
    """A copy of an ONNX bundle with the classifier's weights and bias changed, signed anew."""
    shutil.copytree(bundle, copy)
    path = copy / "model.onnx"
    model = onnx.load(path)
    changed = [t for t in model.graph.initializer if t.name.endswith(("head.weight", "head.bias"))]
    assert len(changed) == 2
    for tensor in changed:
        values = change(numpy_helper.to_array(tensor)).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)
    manifest, digest = read_manifest(copy), sha256_of(path)
    artifact = dataclasses.replace(manifest.artifact, sha256=digest)
    files = {**manifest.files, "model.onnx": digest}
    write_manifest(copy, dataclasses.replace(manifest, artifact=artifact, files=files))
    return copy


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
    images = draw_image_set(split, count=12, seed=0)
    export(model, spec, images, ExportRequest("onnx"), folder)
    return folder


@pytest.fixture(scope="module")
def opposite(tmp_path_factory: pytest.TempPathFactory, micro_bundles: dict[str, Path]) -> Path:
    """The ONNX bundle with its logits negated: another label for every image, the same patches."""
    folder = tmp_path_factory.mktemp("opposite") / "bundle"
    return with_head(micro_bundles["onnx"], folder, np.negative)


@pytest.fixture(scope="module")
def more_data(tmp_path_factory: pytest.TempPathFactory, micro_data: Path) -> Path:
    """Each image of the micro data twice: 24."""
    folder = tmp_path_factory.mktemp("more_data")
    shutil.copytree(micro_data, folder, dirs_exist_ok=True)
    for path in list(folder.rglob("*.png")):
        shutil.copy(path, path.with_name(f"{path.stem}-again.png"))
    return folder


def test_two_bundles_of_one_run_are_the_same(
    micro_bundles: dict[str, Path], micro_data: Path
) -> None:
    content = run_json(micro_bundles["onnx"], micro_bundles["openvino"], "--data", micro_data)
    assert content["reference"] == str(micro_bundles["onnx"])
    assert content["candidate"] == str(micro_bundles["openvino"])
    assert (content["split"], content["images"]) == ("test", 12)
    assert content["accuracy"] == content["reference_accuracy"]
    assert content["top1_agreement"] == 1
    assert content["cosine"] == pytest.approx(1)
    assert 0 < content["max_abs"] < 1e-4
    assert content["kept_overlap"] == [1, 1, 1]
    assert content["patches_lost"] == [0, 0, 0]
    assert content["lost_near_border"] == content["disagreements"] == []
    assert content["picture"] is None


def test_each_disagreeing_image_is_told_with_both_labels_and_its_overlaps(
    micro_bundles: dict[str, Path], other: Path, micro_data: Path, split: Split
) -> None:
    content = run_json(micro_bundles["onnx"], other, "--data", micro_data)
    labels: list[list[str]] = []
    sets: list[list[list[set[int]]]] = []
    for bundle in (micro_bundles["onnx"], other):
        with Classifier.load(bundle, kept=True) as classifier:
            labels.append([best[0].label for best in classifier.predict(split.paths, top_k=1)])
            preprocessing = classifier.bundle.manifest.model.preprocessing
            pixels = np.stack([load_pixels(path, preprocessing) for path in split.paths])
            kept = grid_positions(classifier.outputs(pixels).kept)
            sets.append([[set(row.tolist()) for row in stage] for stage in kept])
    overlaps = [
        [len(a & b) / len(a | b) for a, b in zip(ours, theirs, strict=True)]
        for ours, theirs in zip(*sets, strict=True)
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
    assert {row["path"]: row for row in content["disagreements"]} == expected
    last = [row["kept_overlap"][-1] for row in content["disagreements"]]
    assert last == sorted(last)
    assert last[0] < 0.7
    assert content["top1_agreement"] == pytest.approx(1 - len(expected) / 12)
    assert content["kept_overlap"] == pytest.approx([np.mean(stage) for stage in overlaps])
    truth = [path.parent.name for path in split.paths]
    for side, key in zip(labels, ("reference_accuracy", "accuracy"), strict=True):
        right = sum(ours == true for ours, true in zip(side, truth, strict=True))
        assert content[key] == pytest.approx(right / 12)


def test_a_run_as_the_reference_also_tells_how_near_the_border_lost_patches_were(
    micro_run: Path, micro_bundles: dict[str, Path], other: Path, micro_data: Path
) -> None:
    of_run = run_json(micro_run, other, "--data", micro_data)
    of_bundle = run_json(micro_bundles["onnx"], other, "--data", micro_data)
    assert len(of_run["lost_near_border"]) == 3
    for near, lost in zip(of_run["lost_near_border"], of_run["patches_lost"], strict=True):
        assert 0 < near <= lost
    assert of_bundle["lost_near_border"] == []
    for key in ("kept_overlap", "patches_lost", "top1_agreement", "disagreements"):
        assert of_run[key] == of_bundle[key]
    result = run(micro_run, other, "--data", micro_data)
    near = " / ".join(f"{value:.2f}" for value in of_run["lost_near_border"])
    assert f"of these near the border │ {near}" in " ".join(result.stdout.split())


def test_the_table_holds_the_figures_and_the_images(
    micro_bundles: dict[str, Path], other: Path, micro_data: Path
) -> None:
    given = (micro_bundles["onnx"], other, "--data", micro_data)
    content, result = run_json(*given), run(*given)
    assert result.exit_code == 0
    # A long path is folded into its column.
    shown = " ".join(result.stdout.split())
    for measure, value in {
        "images": "12",
        "top-1 of A": f"{100 * content['reference_accuracy']:.2f} %",
        "top-1 of B": f"{100 * content['accuracy']:.2f} %",
        "top-1 agreement": f"{100 * content['top1_agreement']:.2f} %",
        "cosine": f"{content['cosine']:.6f}",
        "max abs": f"{content['max_abs']:.1e}",
        "kept patches": " / ".join(f"{value:.4f}" for value in content["kept_overlap"]),
        "patches lost an image": " / ".join(f"{value:.2f}" for value in content["patches_lost"]),
        "of these near the border": "not known: only a run ranks its patches",
    }.items():
        assert f"│ {measure} │ {value} │" in shown
    differing = content["disagreements"]
    assert f"A and B disagree on {len(differing)} of 12 images" in shown
    for row in differing:
        assert (
            f"│ {row['label']} │ {row['reference']} │ {row['candidate']} │ "
            f"{row['kept_overlap'][-1]:.4f} │" in shown
        )
    assert "more: --json" not in shown
    assert result.stdout.splitlines()[-1].startswith("next: the same with --out FOLDER")


def test_where_all_agree_no_image_is_listed(
    micro_bundles: dict[str, Path], micro_data: Path
) -> None:
    result = run(micro_bundles["onnx"], micro_bundles["openvino"], "--data", micro_data)
    assert "A and B give every image the same label" in result.stdout
    assert "true label" not in result.stdout


def test_the_terminal_lists_twenty_images_and_json_all(
    micro_bundles: dict[str, Path], opposite: Path, more_data: Path
) -> None:
    given = (micro_bundles["onnx"], opposite, "--data", more_data)
    result = run(*given)
    assert result.exit_code == 0
    assert "A and B disagree on 24 of 24 images" in result.stdout
    assert result.stdout.count("1.0000 │\n") == 20
    assert "and 4 more: --json lists all" in result.stdout
    content = run_json(*given)
    assert len(content["disagreements"]) == 24
    assert content["cosine"] == pytest.approx(-1)
    assert content["top1_agreement"] == 0


def cell(sheet: npt.NDArray[np.uint8], row: int, column: int, size: int) -> npt.NDArray[np.uint8]:
    """The picture in a row and a column of a sheet of square pictures."""
    top = 2 * CAPTION_PX + row * (size + CAPTION_PX + MARGIN_PX)
    left = MARGIN_PX + column * (size + MARGIN_PX)
    return sheet[top : top + size, left : left + size]


def pixels_of(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_the_picture_darkens_what_each_side_dropped(
    micro_bundles: dict[str, Path],
    other: Path,
    micro_data: Path,
    spec: ModelSpec,
    tmp_path: Path,
) -> None:
    out = tmp_path / "new" / "folder"
    content = run_json(micro_bundles["onnx"], other, "--data", micro_data, "--out", out)
    assert content["picture"] == str(out / "compare.png")
    assert [path.name for path in out.iterdir()] == ["compare.png"]
    sheet = pixels_of(out / "compare.png")
    rows = len(content["disagreements"])
    scale, size, patch = 3, 192, 8
    assert sheet.shape == (
        CAPTION_PX + MARGIN_PX + rows * (size + CAPTION_PX + MARGIN_PX),
        MARGIN_PX + 7 * (size + MARGIN_PX),
        3,
    )
    sides = [Classifier.load(bundle, kept=True) for bundle in (micro_bundles["onnx"], other)]
    for row, difference in enumerate(content["disagreements"]):
        pixels = load_pixels(difference["path"], spec.preprocessing)
        large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
        np.testing.assert_array_equal(cell(sheet, row, 0, size), large)
        for side, classifier in enumerate(sides):
            kept = grid_positions(classifier.outputs(pixels[None]).kept)
            for stage, positions in enumerate(kept):
                drawn = cell(sheet, row, 1 + 2 * stage + side, size)
                for position in range(64):
                    y, x = (scale * patch * place for place in divmod(position, 8))
                    here = np.s_[y : y + scale * patch, x : x + scale * patch]
                    chosen = position in positions[0]
                    expected = large[here] if chosen else large[here] // 8 + 16
                    np.testing.assert_array_equal(drawn[here], expected)
    for classifier in sides:
        classifier.close()


def test_the_picture_has_twelve_rows_at_most_and_is_replaced(
    micro_bundles: dict[str, Path], opposite: Path, more_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "compare.png").write_text("of an earlier run")
    result = run(micro_bundles["onnx"], opposite, "--data", more_data, "--out", tmp_path)
    assert result.stdout.splitlines()[-1] == f"picture: {tmp_path / 'compare.png'}"
    height = len(pixels_of(tmp_path / "compare.png"))
    assert height == CAPTION_PX + MARGIN_PX + 12 * (192 + CAPTION_PX + MARGIN_PX)


def test_where_all_agree_the_picture_shows_the_four_that_look_elsewhere_most(
    micro_bundles: dict[str, Path], other: Path, split: Split, spec: ModelSpec
) -> None:
    with (
        Classifier.load(micro_bundles["onnx"], kept=True) as a,
        Classifier.load(other, kept=True) as b,
    ):

        def agreeing(pixels: npt.NDArray[np.uint8]) -> Outputs:
            return dataclasses.replace(a.outputs(pixels), logits=b.outputs(pixels).logits)

        seen: list[int] = []
        comparison = compare_on_split(agreeing, b, split, seen.append)
    assert sum(seen) == 12
    assert comparison.fidelity.top1_agreement == 1
    assert comparison.disagreements() == []
    last = comparison.overlaps[:, -1]
    assert len(comparison.pictured()) == 4
    assert last[comparison.pictured()].tolist() == sorted(last)[:4]
    assert last.min() < last.max()
    sheet = np.asarray(comparison.picture(spec))
    for row, image in enumerate(comparison.pictured()):
        pixels = load_pixels(split.paths[image], spec.preprocessing)
        large = pixels.repeat(3, axis=0).repeat(3, axis=1)
        np.testing.assert_array_equal(cell(sheet, row, 0, 192), large)


def test_images_of_equal_overlap_at_the_last_stage_are_ordered_by_the_stage_before(
    micro_bundles: dict[str, Path], split: Split
) -> None:
    with Classifier.load(micro_bundles["onnx"], kept=True) as classifier:
        same = compare_on_split(classifier.outputs, classifier, split)
    assert same.by_overlap() == list(range(12))
    overlaps = np.ones((12, 3))
    overlaps[[3, 5, 7]] = [[0.1, 0.9, 0.5], [0.2, 0.8, 0.5], [0.9, 0.9, 0.4]]
    ordered: Comparison = dataclasses.replace(same, overlaps=overlaps)
    assert ordered.by_overlap()[:4] == [7, 5, 3, 0]


@pytest.mark.parametrize("broken", ["A", "B"])
def test_logits_that_are_no_numbers_are_a_failure(
    broken: str, micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    nan = with_head(micro_bundles["onnx"], tmp_path / "nan", lambda values: values * np.nan)
    sides = (nan, micro_bundles["onnx"]) if broken == "A" else (micro_bundles["onnx"], nan)
    error = refusal(*sides, "--data", micro_data, "--out", tmp_path / "out", exit_code=1)
    assert error.startswith(f"the logits of {broken} (the ")
    first = micro_data / "test" / "apple" / "0.png"
    assert f"NaN or infinity on 12 of 12 images, first on {first}: run gft-edge verify" in error


def test_a_network_that_drops_no_patches_is_compared_by_its_logits(
    micro_run: Path, split: Split, micro_data: Path, tmp_path: Path
) -> None:
    spec = dataclasses.replace(load_run(micro_run)[0], stages=())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_gft(spec).eval()
    (tmp_path / "run").mkdir()
    save_network(tmp_path / "run", model, spec)
    images = draw_image_set(split, count=12, seed=0)
    export(model, spec, images, ExportRequest("onnx"), tmp_path / "bundle")
    given = (tmp_path / "run", tmp_path / "bundle", "--data", micro_data)
    content = run_json(*given)
    assert content["top1_agreement"] == 1
    assert content["kept_overlap"] == content["patches_lost"] == content["lost_near_border"] == []
    result = run(*given)
    assert "no stage" in result.stdout
    assert "near the border" not in result.stdout
    assert "next:" not in result.stdout
    error = refusal(*given, "--out", tmp_path / "out")
    assert "drops no patches, there is nothing to draw: leave out --out" in error
    assert "choose a real one" in refusal(*given, "--backend", "fake")


def test_the_backend_holds_for_both_sides(micro_bundles: dict[str, Path], micro_data: Path) -> None:
    graph, ir = micro_bundles["onnx"], micro_bundles["openvino"]
    given = ("--data", micro_data, "--backend")
    assert run_json(graph, ir, *given, "openvino")["top1_agreement"] == 1
    for sides in ((graph, ir), (ir, graph)):
        assert "ONNX Runtime runs bundles of --target onnx" in refusal(*sides, *given, "onnx")


def test_what_cannot_be_compared_is_refused_with_what_to_do(
    micro_run: Path, micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    a, b = micro_bundles["onnx"], micro_bundles["openvino"]
    given = ("--data", micro_data)
    absent, empty = tmp_path / "absent", tmp_path / "empty"
    (empty / "test" / "apple").mkdir(parents=True)
    (tmp_path / "file").touch()
    assert refusal(a, b) == "two artifacts are compared on images: give --data FOLDER"
    assert "empty/test holds no image: expected test/CLASS/image" in refusal(a, b, "--data", empty)
    assert "has no val/ folder (found: test)" in refusal(a, b, *given, "--split", "val")
    assert f"{absent}: no such folder, give a run or a bundle" in refusal(absent, b, *given)
    assert f"{absent}: no such bundle" in refusal(a, absent, *given)
    assert f"{empty} is neither a run (no model.json) nor a bundle" in refusal(empty, b, *given)
    assert f"{empty} is no bundle: it has no manifest.json. Give as B" in refusal(a, empty, *given)
    assert "a run can only be A" in refusal(a, micro_run, *given)
    assert "choose from onnx, openvino" in refusal(a, b, *given, "--backend", "tpu")
    assert "choose a real one" in refusal(a, b, *given, "--backend", "fake")
    error = refusal(a, b, *given, "--out", tmp_path / "file")
    assert error == f"{tmp_path / 'file'} is a file: give --out a folder"
    assert "Not a directory" in refusal(a, b, *given, "--out", tmp_path / "file" / "x", exit_code=1)


def test_artifacts_of_two_networks_are_refused_and_nothing_is_written(
    micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    bundle, out = Path(shutil.copytree(micro_bundles["onnx"], tmp_path / "bundle")), tmp_path / "x"
    manifest = read_bundle(bundle).manifest
    stages = (*manifest.model.stages[:2], dataclasses.replace(manifest.model.stages[2], keep=15))
    model = dataclasses.replace(manifest.model, stages=stages)
    write_manifest(bundle, dataclasses.replace(manifest, model=model))
    a = micro_bundles["openvino"]
    error = refusal(a, bundle, "--data", micro_data, "--out", out)
    assert error == (
        f"{a} has other stages than {bundle}: give the run or bundle of the same network"
    )
    assert not out.exists()
