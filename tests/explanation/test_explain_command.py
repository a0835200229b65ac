"""gft-edge explain writes a picture of each image with its numbers, or measures the ranking."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gft_edge.bundle.json_form import to_json
from gft_edge.explanation.sheet import PANEL_PX
from gft_edge.export.request import ExportRequest
from gft_edge.model.checkpoint import save_network
from gft_edge.model.named_networks import build_network, spec_from_name
from gft_edge.training.recipes import Recipe
from gft_edge.training.run_folder import CONFIG_FILE, RunConfig
from tests.support.cli import refusal, refused, run, run_json
from tests.support.networks import export_run, micro_spec, save_micro_network
from tests.support.pictures import MICRO_LABELS


@pytest.fixture(scope="module")
def image(micro_data: Path) -> Path:
    """One picture of the micro data."""
    return micro_data / "test" / "dill" / "0.png"


# One image after another.


@pytest.mark.parametrize("what", ["run", "openvino", pytest.param("onnx", marks=pytest.mark.slow)])
def test_explain_writes_a_picture_an_image_and_its_numbers(
    what: str, micro_run: Path, micro_bundles: dict[str, Path], image: Path, tmp_path: Path
) -> None:
    of = micro_run if what == "run" else micro_bundles[what]
    (tmp_path / "mine.txt").write_text("keep me")
    content = run_json("explain", of, image, image.with_name("1.png"), "--out", tmp_path)
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
    first, second = entry["predictions"][:2]
    assert first["probability"] >= second["probability"]
    covered = entry["occlusion"]
    assert covered["inferences"] == 50
    assert [c["label"] for c in covered["classes"]] == [first["label"], second["label"]]
    assert np.asarray(covered["classes"][0]["drop"]).shape == (8, 8)


def test_explain_says_in_a_table_what_it_drew(micro_run: Path, image: Path, tmp_path: Path) -> None:
    out = tmp_path / "it's here"
    result = run("explain", micro_run, image.parent, "--out", out, "--cover", 0)
    assert result.exit_code == 0, result.output
    assert "48 / 32 / 16" in result.stdout
    assert "3-2.png" in result.stdout
    following = shlex.split(result.stdout.splitlines()[-1])
    assert following[:4] == ["next:", "gft-edge", "explain", str(micro_run)]
    assert str(out) in following
    assert json.loads((out / "explain.json").read_text())["images"][0]["occlusion"] is None


def test_a_network_without_stages_is_still_covered(
    micro_data: Path, image: Path, tmp_path: Path
) -> None:
    dense = tmp_path / "run"
    save_micro_network(dense, micro_data, "test", 0.1, micro_spec(stages="none"))
    content = run_json("explain", dense, image, "--out", tmp_path / "out")
    assert content["unavailable"] == ["importance and kept patches: this network drops no patches"]
    assert content["images"][0]["stages"] == []
    assert content["images"][0]["occlusion"]["inferences"] == 50
    refusal("explain", dense, "--data", micro_data, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module", params=["test_resnet", "transfg_tiny"])
def other_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, micro_data: Path
) -> Path:
    """A run of a network that is no GFT, at 64 px, beside its bundle; TransFG's patches overlap."""
    vit = {"patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 3, "patch_stride": 12}
    args = vit if request.param == "transfg_tiny" else None
    spec = spec_from_name(request.param, MICRO_LABELS, image_size_px=64, backbone_args=args)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_network(spec).eval()
    folder = tmp_path_factory.mktemp(request.param) / "run"
    folder.mkdir()
    save_network(folder, model, spec)
    unjudged = ExportRequest("onnx", judged=False)
    export_run(folder, micro_data, folder.parent / "bundle", unjudged, count=6)
    return folder


@pytest.mark.parametrize("what", ["run", "bundle"])
def test_a_network_that_is_no_gft_is_covered_cell_by_cell(
    other_run: Path, what: str, image: Path, tmp_path: Path
) -> None:
    content = run_json("explain", other_run.parent / what, image, "--out", tmp_path)
    (entry,) = content["images"]
    assert entry["occlusion"]["cover_patches"] == 2
    assert entry["occlusion"]["inferences"] == 13 * 13 + 1
    drop = np.asarray(entry["occlusion"]["classes"][0]["drop"])
    assert drop.shape == (14, 14)
    assert len(np.unique(drop)) > 14 * 13
    with Image.open(tmp_path / entry["picture"]) as picture:
        assert picture.height > 2 * PANEL_PX


def test_what_a_network_that_is_no_gft_does_not_show_is_said_of_its_kind(
    other_run: Path, micro_data: Path, image: Path, tmp_path: Path
) -> None:
    arguments = ("--out", tmp_path, "--cover", 0)
    transfg = "transfg" in str(other_run)
    for what in (other_run, other_run.parent / "bundle"):
        shown = run("explain", what, image, *arguments)
        assert shown.exit_code == 0, shown.output
        assert ("parts: TransFG chooses them before its last block" in shown.stdout) == transfg
        assert ("this network drops no patches" in shown.stdout) != transfg
        why = refusal("explain", what, "--data", micro_data, *arguments)
        assert ("shows no parts" if transfg else "ranks no patches") in why
    # A cover as large as the grid does not move.
    moved = run("explain", other_run, image, "--out", tmp_path / "out", "--cover", 14)
    refused(moved, "14", "1 to 13")
    assert not (tmp_path / "out").exists()


def test_a_network_of_one_class_has_no_runner_up(
    micro_data: Path, image: Path, tmp_path: Path
) -> None:
    single = tmp_path / "run"
    save_micro_network(single, micro_data, "test", 0.1, micro_spec(MICRO_LABELS[:1]))
    result = run("explain", single, image, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if "0.png" in line and "48 / 32" in line]
    assert "apple 100.00 %" in line
    assert " - " in line


def test_a_broken_image_is_named_and_the_others_are_explained(
    micro_run: Path, image: Path, tmp_path: Path
) -> None:
    broken, out = tmp_path / "broken.png", tmp_path / "out"
    broken.write_bytes(b"no image")
    result = run("explain", micro_run, broken, image, image, "--out", out, "--cover", 0)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert sum(line.startswith("Error: ") and "broken.png" in line for line in lines) == 1
    assert f"{image} is named twice: it is explained once" in lines
    assert "1 of 2 images could not be read" in lines
    entries = json.loads((out / "explain.json").read_text())["images"]
    assert "broken.png" in entries[0]["error"]
    assert entries[1]["picture"] == "2-0.png"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{run} {image}", "--out"),
        ("{run} --out {tmp}/o", "--data"),
        ("{run} {image} --data {data} --out {tmp}/o", "--data"),
        ("{run} {image} --out {image}", "{image}"),
        ("{run} {tmp}/no.png --out {tmp}/o --backend onnx", "--backend"),
        ("{data} {image} --out {tmp}/o", "{data}"),
        ("{tmp}/none {image} --out {tmp}/o", "{tmp}/none"),
        ("{ov} {image} --out {tmp}/o --backend onnx", "ONNX Runtime"),
        ("{run} {image} --out {tmp}/o --cover 9", "8 x 8"),
        ("{run} {tmp}/*.webp --out {tmp}/o", "*.webp"),
        ("{run} --data {tmp} --out {tmp}/o", "test/"),
        ("{run} --data {data} --split val --out {tmp}/o", "val/"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: str,
    words: str,
    micro_run: Path,
    micro_bundles: dict[str, Path],
    micro_data: Path,
    image: Path,
    tmp_path: Path,
) -> None:
    places = {"run": micro_run, "ov": micro_bundles["openvino"], "data": micro_data,
              "tmp": tmp_path, "image": image}  # fmt: skip
    given = [argument.format(**places) for argument in arguments.split()]
    refused(run("explain", *given), words.format(**places))
    assert not (tmp_path / "o").exists()


# A ranking against others.


def test_the_ranking_of_a_run_is_measured_against_others(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    arguments = ("explain", micro_run, "--data", micro_data, "--out", tmp_path, "--points", 4)
    content = run_json(*arguments, "--limit", 6)
    assert [r["order"] for r in content["results"]] == ["importance", "class attention", "random"]
    assert content["images"] == 6
    assert content["unavailable"] == []
    # The logits, two rankings, and five points of both curves for five orders.
    assert content["inferences"] == 6 * (1 + 2 + 5 * 2 * 5)
    assert len(content["results"][0]["deletion_curve"]) == len(content["fractions"]) == 5
    assert content["results"][0]["deletion_gain"] is None
    assert content["results"][2]["deletion_gain"]["interval"] is not None
    assert content == json.loads((tmp_path / "curves.json").read_text())
    drawn = run_json("report", tmp_path, "--out", tmp_path)
    assert drawn["written"] == [str(tmp_path / "deletion.png")]
    table = run(*arguments, "--limit", 2, "--insert-from", "mean")
    assert table.exit_code == 0, table.output
    assert "2 images are too few for an interval: take 5 or more" in table.stdout
    assert "importance (GALA, its own)" in table.stdout


def test_a_run_is_measured_on_images_as_it_was_trained_on_them(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    """The data set is the run's own unless it is given, and so is its folder."""
    folder = Path(shutil.copytree(micro_run, tmp_path / "run"))
    recipe = Recipe(epochs=1, batch_size=4)
    config = RunConfig(str(micro_data), recipe, False, 0, "cpu", dataset="fgvc-aircraft")
    (folder / CONFIG_FILE).write_text(json.dumps(to_json(config)))
    arguments = ("explain", folder, "--out", tmp_path / "out", "--points", 2, "--limit", 1)
    assert "variants.txt" in refusal(*arguments, "--data", micro_data)
    assert run_json(*arguments, "--dataset", "imagefolder")["images"] == 1


def test_a_bundle_measures_its_own_ranking_and_names_what_only_a_run_knows(
    micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    content = run_json(
        "explain", micro_bundles["onnx"], "--data", micro_data, "--out", tmp_path,
        "--points", 3, "--limit", 5,
    )  # fmt: skip
    assert [r["order"] for r in content["results"]] == ["importance", "random"]
    # Deployed, deployed and with more outputs, and four points of both curves for four orders.
    assert content["inferences"] == 5 * (1 + 2 + 4 * 2 * 4)
    assert content["unavailable"] == [
        "the order by class attention: a bundle ranks by its own score alone; give the run"
    ]
