"""The commands train, judge and measure on data sets by name, and remember which one it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gft_edge.bundle.images import DataSource
from gft_edge.datasets import data_sets, read_split
from gft_edge.model.checkpoint import load_run, save_network
from gft_edge.runtime.preprocess import open_rgb
from gft_edge.training.run_folder import read_run_config
from tests.support.cli import refusal, refused, run, run_json
from tests.support.data_sets import BANNER_PX, draw, source, write

NAMED = ("--dataset", "fgvc-aircraft")
TINY = ("--model", "test_vit", "--image-size", 32, "--stages", "none", "--epochs", 1,
        "--batch-size", 8, "--workers", 0, "--device", "cpu", "--no-amp", "--lr", 1e-3)  # fmt: skip


@pytest.fixture(scope="module")
def airfield(data_sets_made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run/ that was trained on the aircraft beside it, fgvc/."""
    folder = tmp_path_factory.mktemp("airfield")
    shutil.copytree(data_sets_made / "fgvc", folder / "fgvc")
    run_json("train", *NAMED, "--data", folder / "fgvc", *TINY, "--out", folder / "run")
    return folder


def scribble(aircraft: Path) -> None:
    """Draw other banners; every file keeps its size."""
    for path in sorted(aircraft.rglob("*.jpg")):
        pixels = np.array(open_rgb(path))
        pixels[-BANNER_PX:] = 255 - pixels[-BANNER_PX:]
        Image.fromarray(pixels).save(path, format="PNG")


def run_logits(bundle: Path, aircraft: Path) -> Any:
    from gft_edge.fidelity.verify import split_outputs
    from gft_edge.runtime.classifier import Classifier

    with Classifier.load(bundle) as classifier:
        split = read_split(source(aircraft, "fgvc-aircraft"), "test", classifier.labels)
        return split_outputs(classifier, split)[0].logits


@pytest.mark.slow
def test_a_network_of_aircraft_never_sees_the_banner(
    airfield: Path, aircraft: Path, tmp_path: Path
) -> None:
    first, second, bundle = airfield / "run", tmp_path / "second", tmp_path / "bundle"
    given = (*NAMED, "--data", aircraft)
    config = read_run_config(first)[1]
    assert config.source == DataSource(airfield / "fgvc", "fgvc-aircraft")
    assert config.splits is not None
    assert {name: (s.images, s.classes) for name, s in config.splits.items()} == {
        "train": (16, 4),
        "val": (16, 4),
    }
    exported = run("export", first, "--target", "onnx", "--out", bundle)
    assert exported.exit_code == 0, exported.output
    assert "16 of them from train/" in exported.stderr
    before = run_json("evaluate", first)
    assert before["images"] == 16
    assert run_json("evaluate", bundle, *given) == pytest.approx(before, abs=1e-5)
    differing = run_json("verify", bundle, *given, "--reference", first)
    assert differing["max_abs"] < 1e-3
    assert differing["top1"] == before["top1"]

    logits = run_logits(bundle, aircraft)
    scribble(aircraft)
    assert run_json("evaluate", first, *given) == pytest.approx(before, abs=1e-5)
    np.testing.assert_array_equal(run_logits(bundle, aircraft), logits)
    run_json("train", *given, *TINY, "--out", second)
    names = "model.safetensors"
    assert (second / names).read_bytes() == (first / names).read_bytes()


def test_a_run_is_resumed_on_the_images_it_began_with(
    airfield: Path, aircraft: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(airfield / "run", out)
    resume = ("train", "--resume", out)
    assert "nothing to resume" in refusal(*resume)
    assert "nothing to resume" in refusal(*resume, "--data", aircraft)
    refused(run(*resume, "--dataset", "coco"), "--dataset")
    path = read_split(source(aircraft, "fgvc-aircraft"), "train").paths[0]
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    refused(run(*resume, "--data", aircraft), "train split", "16 images, 16 then")
    path.write_bytes(whole)
    config = json.loads((out / "train.json").read_text())
    del config["splits"]["val"]
    write(out / "train.json", json.dumps(config))
    refused(run(*resume, "--data", aircraft), "val split", "16 images, 0 then")


def test_a_run_remembers_its_category_of_coco(coco: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(coco.rglob("*.jpg"))):
        draw(path, number, number % 3)
    out = tmp_path / "run"
    given = ("--dataset", "coco", "--data", coco, "--coco-category", "first")
    run_json("train", *given, *TINY, "--out", out)
    assert read_run_config(out)[1].source == DataSource(coco, "coco", "first")
    spec, model = load_run(out)
    assert spec.labels == ("person", "dog", "bottle")
    with torch.no_grad():
        model.backbone.head.bias[0] += 100  # all four images are persons, says the network
    save_network(out, model, spec)
    assert run_json("evaluate", out)["top1"] == 0.5
    assert run_json("evaluate", out, *given)["top1"] == 0.5
    other = run_json("evaluate", out, "--coco-category", "largest")
    assert (other["images"], other["top1"]) == (4, 0.25)
    foreign = ("--dataset", "food-101", "--coco-category", "first")
    refused(run("evaluate", out, *foreign), "--coco-category", "--dataset coco")


def test_the_help_names_every_data_set() -> None:
    for command in ("train", "evaluate", "verify", "export", "sensitivity", "benchmark"):
        words = "".join(run(command, "--help").output.split())
        assert all(name in words for name in ("--dataset", "--coco-category", *data_sets()))


def test_options_that_do_not_go_together_are_refused(food: Path, tmp_path: Path) -> None:
    given = ("train", *TINY, "--out", tmp_path / "run")
    for options, words in (
        (("--dataset", "food", "--data", food), ("'food'",)),
        (("--dataset", "food-101"), ("--dataset food-101", "--data FOLDER")),
        (("--dataset", "food-101", "--data", food, "--coco-category", "first"),
         ("--coco-category", "--dataset coco", "food-101")),
        ((), ("--data FOLDER",)),
    ):  # fmt: skip
        refused(run(*given, *options), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sensitivity_and_benchmark_read_the_data_of_the_run(airfield: Path, tmp_path: Path) -> None:
    out = airfield / "run"
    assert run_json("sensitivity", out, "--images", 8)["images"] == 8
    quick = ("--targets", "onnx", "--precisions", "fp32", "--duration", 0.2, "--warmup-ms", 1,
             "--min-samples", 3, "--no-layers", "--percentiles", "50")  # fmt: skip
    result = run_json("benchmark", out, *quick, "--out", tmp_path / "bench")
    assert (result["data"], result["images"]) == (str(airfield / "fgvc"), 16)
    assert [row["status"] for row in result["rows"]] == ["done"]
