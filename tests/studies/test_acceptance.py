"""A run's temperature reaches its bundles, and what is none of its classes proposes a threshold."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from gft_edge.bundle.store import read_manifest
from gft_edge.model.temperature import TEMPERATURE_FILE, read_temperature
from tests.support import pictures
from tests.support.cli import refusal, run, run_json


@pytest.fixture(scope="module")
def run_of_its_own(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the trained run, to be altered."""
    folder = tmp_path_factory.mktemp("confidence") / "run"
    shutil.copytree(trained_run, folder)
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of none of the classes, in folders of other names."""
    folder = tmp_path_factory.mktemp("others")
    pictures.write_smooth(folder, ("kiwi", "lime"), 12)
    return folder


@pytest.fixture(scope="module")
def bundle(trained_run: Path, coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained run exported for ONNX Runtime."""
    out = tmp_path_factory.mktemp("confidence-bundle") / "bundle"
    result = run("export", trained_run, "--data", coloured, "--target", "onnx", "--out", out)
    assert result.exit_code == 0, result.stderr
    return out


def test_training_fits_a_temperature_on_val_and_export_takes_it_along(
    trained_run: Path, bundle: Path
) -> None:
    fitted = read_temperature(trained_run)
    assert fitted is not None
    assert fitted.split == "val"
    assert fitted.temperature != 1
    manifest = read_manifest(bundle)
    assert manifest.confidence.temperature == fitted.temperature
    assert manifest.confidence.min_probability == 0
    report = manifest.reports[-1]
    # An FP32 graph has the calibration error of PyTorch.
    assert report.ece == pytest.approx(report.reference_ece, abs=1e-4)
    assert report.ece == pytest.approx(fitted.ece, abs=1e-4)
    assert "expected calibration error" in run("inspect", bundle).stdout


def test_evaluate_fits_it_anew_and_says_what_it_did(
    run_of_its_own: Path, trained_run: Path, coloured: Path
) -> None:
    fitted = read_temperature(trained_run)
    assert fitted is not None
    (run_of_its_own / TEMPERATURE_FILE).unlink()
    before = run_json("evaluate", run_of_its_own, "--data", coloured, "--split", "val")
    assert before["temperature"] == 1
    assert before["ece"] == before["ece_uncalibrated"]
    after = run_json(
        "evaluate", run_of_its_own, "--data", coloured, "--split", "val", "--fit-temperature"
    )
    assert after["temperature"] == pytest.approx(fitted.temperature, rel=1e-4)
    assert after["ece_uncalibrated"] == pytest.approx(before["ece"])
    assert after["ece"] == pytest.approx(fitted.ece, abs=1e-4)


def test_a_temperature_of_other_weights_is_none_and_it_is_said(
    run_of_its_own: Path, coloured: Path
) -> None:
    path = run_of_its_own / TEMPERATURE_FILE
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "weights_sha256": "0" * 64}))
    assert read_temperature(run_of_its_own) is None
    said = run("evaluate", run_of_its_own, "--data", coloured, "--split", "val").stderr
    assert "other weights" in said
    assert "--fit-temperature" in said


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"temperature": 2}', "null", "-1", "0", "1e300", "Infinity", "NaN"]
)
def test_a_damaged_temperature_is_one_line_with_what_mends_it(
    trained_run: Path, coloured: Path, tmp_path: Path, text: str
) -> None:
    damaged = tmp_path / "run"
    shutil.copytree(trained_run, damaged)
    fitted = json.loads((damaged / TEMPERATURE_FILE).read_text())
    if text != "null" and text[0] not in "{[":
        text = json.dumps({**fitted, "temperature": json.loads(text)})
    (damaged / TEMPERATURE_FILE).write_text(text)
    line = refusal("evaluate", damaged, "--data", coloured, "--split", "val")
    assert TEMPERATURE_FILE in line
    assert "--fit-temperature" in line


def test_photographs_of_no_class_give_a_curve_and_a_threshold_that_a_bundle_carries(
    trained_run: Path, bundle: Path, coloured: Path, others: Path, tmp_path: Path
) -> None:
    told = run_json(
        "evaluate", bundle, "--data", coloured, "--split", "val", "--unknown", others / "val"
    )["unknown"]
    # The images that auto reads.
    assert told["unknown_images"] == len(list((others / "val").rglob("*.png")))
    assert 0 <= told["unknown_at_95"] <= 1
    assert told["curve"][0] == {"min_probability": 0, "known": 1, "right": pytest.approx(
        told["curve"][0]["right"]), "unknown": 1}  # fmt: skip
    out = tmp_path / "bundle"
    result = run(
        "export", trained_run, "--data", coloured, "--target", "onnx", "--min-probability", "auto",
        "--unknown", others, "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    proposed = told["proposed"]["min_probability"]
    carried = read_manifest(out).confidence.min_probability
    assert carried == proposed == math.floor(proposed * 1e4) / 1e4
    assert run_json("verify", out)["verdict"] == "pass"
    assert "least probability" in run("inspect", out).stdout


def test_a_score_that_tells_nothing_proposes_no_threshold(
    trained_run: Path, coloured: Path, tmp_path: Path
) -> None:
    """The network's own photographs under another name."""
    folder = tmp_path / "same" / "other"
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted((coloured / "val").rglob("*.png"))):
        shutil.copy(path, folder / f"{number}.png")
    result = run(
        "export", trained_run, "--data", coloured, "--target", "onnx", "--min-probability", "auto",
        "--unknown", tmp_path / "same", "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "AUROC 0.500" in result.stderr.splitlines()[-1]


def test_without_unknown_photographs_auto_keeps_95_percent_of_val(
    trained_run: Path, coloured: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    result = run(
        "export", trained_run, "--data", coloured, "--target", "onnx", "--min-probability", "auto",
        "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    images = sorted((coloured / "val").rglob("*.png"))
    lines = run("predict", out, *images, "--json").stdout.splitlines()
    labels = [json.loads(line)["label"] for line in lines]
    assert sum(label is not None for label in labels) >= 0.95 * len(labels)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--min-probability", "2"), "probability is 2"),
        (("--min-probability", "nan"), "probability is nan"),
        (("--min-probability", ""), "--min-probability"),
        (("--min-probability", "much"), "--min-probability is much"),
        (("--min-probability", "0.5", "--unknown", "{others}"), "--min-probability auto"),
        (("--unknown", "{others}"), "--min-probability auto"),
        (("--min-probability", "auto", "--unknown", "{own}"), "own classes"),
        (("--min-probability", "auto", "--unknown", "nowhere"), "nowhere"),
    ],
)
def test_a_threshold_that_cannot_be_is_refused_before_the_work(
    trained_run: Path, coloured: Path, others: Path, tmp_path: Path,
    words: tuple[str, ...], named: str,
) -> None:  # fmt: skip
    places = {"others": others, "own": coloured}
    line = refusal(
        "export", trained_run, "--data", coloured, "--target", "onnx", "--out", tmp_path / "out",
        *(word.format(**places) for word in words),
    )  # fmt: skip
    assert named in line
    assert not (tmp_path / "out").exists()


def test_evaluate_refuses_the_options_of_the_other_kind(
    trained_run: Path, bundle: Path, coloured: Path, others: Path
) -> None:
    assert "--unknown" in refusal("evaluate", trained_run, "--data", coloured, "--unknown", others)
    given = ("evaluate", bundle, "--data", coloured)
    assert "--fit-temperature" in refusal(*given, "--fit-temperature")
    assert "own classes" in refusal(*given, "--split", "val", "--unknown", coloured)
