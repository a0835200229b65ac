"""Photographs of anything serve to export, calibrate and verify; the accuracy is then not known."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import safetensors.torch

from gft_edge.bundle.store import read_bundle
from tests.support import pictures
from tests.support.bundles import alter_head, sign
from tests.support.cli import refusal, run, run_json
from tests.support.pictures import MICRO_LABELS
from tests.support.runs import trained_on

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the splits of other classes, one of which is the network's."""
    folder = tmp_path_factory.mktemp("other")
    pictures.write_smooth(folder, ("kiwi", "lime", "pear", "dill"), 10)
    return folder


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory, micro_pictures: Path) -> Path:
    """96 pictures side by side, in no class folder."""
    folder = tmp_path_factory.mktemp("flat")
    for number, path in enumerate(sorted((micro_pictures / "train").rglob("*.png"))):
        shutil.copyfile(path, folder / f"{number}.png")
    return folder


@pytest.mark.slow
def test_a_flat_folder_exports_in_fp32_and_the_accuracy_is_not_known(
    flat: Path, calm_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("export", calm_run, "--data", flat, "--target", "onnx", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "verifying on 96 images, none of a class" in result.stderr
    assert result.stderr.count(f"{flat}: 96 of 96 images") == 1
    assert "accuracy is not known" in result.stdout
    report = read_bundle(out).manifest.reports[-1]
    assert (report.verdict, report.images, report.labelled) == ("pass", 96, 0)
    assert report.accuracy is report.reference_accuracy is None
    assert report.drop is None
    assert report.top1_agreement == 1
    assert "accuracy is not known" in run("inspect", out).stdout

    content = run_json("verify", out, "--data", flat, "--reference", calm_run)
    assert content["verdict"] == "pass"
    assert (content["images"], content["labelled"]) == (96, 0)
    assert content["top1"] is content["reference_top1"] is content["drop"] is None
    assert content["top1_agreement"] == 1
    assert min(content["kept_overlap"]) > 0.999
    alone = run("verify", out, "--data", flat)
    assert alone.exit_code == 0
    assert "--reference" in alone.stderr


@slow
def test_of_classes_that_are_partly_known_the_accuracy_is_of_those(
    other: Path, calm_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--data", other, "--target", "onnx", "--out", out, "--images", 30)
    result = run("export", calm_run, *options)
    assert result.exit_code == 0, result.stderr
    assert "30 of 40 images have no class" in result.stderr
    assert "kiwi, lime, pear" in result.stderr
    report = read_bundle(out).manifest.reports[-1]
    assert report.images == 30
    assert 0 < report.labelled <= 10
    assert report.accuracy is not None

    # Every image of the fourth class, by the split that is named.
    content = run_json("verify", out, "--data", other, "--split", "val")
    dill = tmp_path / "dill" / "val"
    shutil.copytree(other / "val" / "dill", dill / "dill")
    alone = run_json("verify", out, "--data", dill.parent)
    assert (content["images"], content["labelled"]) == (40, 10)
    assert (alone["images"], alone["labelled"]) == (10, 10)
    assert content["top1"] == alone["top1"]


def test_disagreements_about_images_without_a_class_have_no_label(
    flat: Path, micro_bundles: dict[str, Path], micro_run: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(micro_bundles["onnx"], bundle)
    alter_head(bundle / "model.onnx", lambda weights: weights[::-1])
    sign(bundle, "model.onnx")
    given = ("verify", bundle, "--reference", micro_run, "--data", flat)
    content = run_json(*given, "--pictures", tmp_path / "pictures", exit_code=1)
    assert content["disagreements"]
    assert {row["label"] for row in content["disagreements"]} == {None}
    assert {row["reference"] for row in content["disagreements"]} <= set(MICRO_LABELS)
    assert Path(content["picture"]).is_file()
    assert f"of {content['images']} images" in run(*given).stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--max-drop", 0.05), ("--max-drop", "accuracy")),
        (("--require-resolved",), ("--require-resolved", "accuracy")),
        (("--images", 63), ("63 images", "--images 64", "--fidelity strict")),
        (("--split", "val"), ("val/",)),
    ],
)
def test_what_a_flat_folder_cannot_give_is_refused_before_the_work(
    options: tuple[object, ...],
    words: tuple[str, ...],
    flat: Path,
    calm_run: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    given = ("export", calm_run, "--data", flat, "--target", "onnx", "--precision", "fp16")
    line = refusal(*given, "--out", out, *options)
    for word in words:
        assert word in line
    assert not out.exists()


def test_what_reports_accuracy_alone_refuses_other_classes(
    flat: Path, other: Path, calm_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert "test/" in refusal("benchmark", calm_run, "--data", flat, "--out", out)
    assert "kiwi" in refusal("benchmark", calm_run, "--data", other, "--out", out)
    assert "test/" in refusal("evaluate", calm_run, "--data", flat)
    assert "kiwi" in refusal("evaluate", calm_run, "--data", other)


def test_a_run_of_a_published_data_set_takes_any_folder(
    flat: Path, calm_run: Path, tmp_path: Path
) -> None:
    copy = trained_on(Path(shutil.copytree(calm_run, tmp_path / "run")), tmp_path)
    config = copy / "train.json"
    config.write_text(config.read_text().replace('"imagefolder"', '"food-101"'))
    given = ("export", copy, "--data", flat, "--target", "onnx", "--out", tmp_path / "out")
    assert run_json(*given)["fidelity"]["accuracy"] is None
    # Named, it has to be there.
    assert "food-101" in refusal(*given, "--dataset", "food-101")


@slow
def test_int8_is_calibrated_and_verified_on_a_flat_folder(
    flat: Path, calm_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ("export", calm_run, "--data", flat, "--target", "onnx", "--precision", "int8")
    assert "--calibration-data" in refusal(*given, "--out", out)
    calibrated = ("--out", out, "--calibration-data", flat, "--subset-size")
    assert "--subset-size" in refusal(*given, *calibrated, 48)
    result = run(*given, *calibrated, 32)
    assert result.exit_code == 0, result.stderr
    # What is calibrated on is not verified on, and the folder is told of once.
    assert result.stderr.count(f"{flat}: 96 of 96 images") == 1
    assert "accuracy not known" in result.stderr
    assert "accuracy is not known" in result.stdout
    report = read_bundle(out).manifest.reports[-1]
    assert (report.verdict, report.images, report.labelled) == ("pass", 64, 0)
    assert report.accuracy is None
    assert run_json("verify", out, "--data", flat, "--reference", calm_run)["verdict"] == "pass"


@slow
def test_a_network_that_calls_them_all_the_same_is_warned_of(
    flat: Path, calm_run: Path, tmp_path: Path
) -> None:
    """Of one class they may be, which nobody knows: it is no reason to refuse."""
    copy = Path(shutil.copytree(calm_run, tmp_path / "run"))
    weights = safetensors.torch.load_file(copy / "model.safetensors")
    weights["backbone.head.bias"][2] += 10
    safetensors.torch.save_file(weights, copy / "model.safetensors")
    given = ("export", copy, "--data", flat, "--target", "onnx", "--precision", "fp16")
    result = run(*given, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "calls all 96 images 'café'" in result.stderr


@slow
def test_layers_are_ranked_on_a_flat_folder(flat: Path, calm_run: Path) -> None:
    content = run_json("sensitivity", calm_run, "--data", flat, "--images", 16)
    assert content["images"] == 16
    assert {layer["accuracy_drop"] for layer in content["layers"]} == {None}
    assert content["with_it"]["accuracy"] is None
