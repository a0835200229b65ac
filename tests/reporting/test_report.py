"""gft-edge report: pages and pictures of profiles, benchmarks, curves and runs, from their files."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gft_edge.fidelity.confusion import confusion_of
from gft_edge.profiling.report_file import check_comparable, read_profile
from gft_edge.reporting.drawing import save, svg_of
from gft_edge.reporting.run_charts import (
    confusion_chart,
    curves_chart,
    gradients_chart,
    hardest_chart,
    sensitivity_chart,
)
from gft_edge.training.gradients import write_norms
from tests.support.cli import refusal, run, run_json
from tests.support.runs import HISTORY, trained_on


@pytest.fixture
def trained(tmp_path: Path, micro_run: Path, micro_data: Path) -> Path:
    """A copy of the micro run with one epoch behind it."""
    folder = tmp_path / "a run"
    shutil.copytree(micro_run, folder)
    return trained_on(folder, micro_data)


Altered = Callable[[Callable[[dict[str, Any]], object]], Path]


# Profiles


def test_a_profile_becomes_a_page_beside_it_and_pictures(
    profile_file: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(profile_file, tmp_path / "p.json"))
    result = run("report", file)
    assert result.exit_code == 0, result.output
    assert "time / first" in result.stdout
    assert f"written: {tmp_path / 'p.html'}" in result.stdout
    assert "Every call, engine" in (tmp_path / "p.html").read_text()
    found = run_json("report", file, "--out", tmp_path / "charts")
    assert found["kind"] == "profile"
    names = ("calls-engine", "turns-engine", "calls-end-to-end", "turns-end-to-end", "parts")
    assert found["written"] == [str(tmp_path / "charts" / f"{name}.png") for name in names]
    assert {row["boundary"] for row in found["rows"]} == {"engine", "end to end"}
    with Image.open(found["written"][0]) as picture:
        assert picture.format == "PNG"


def test_profiles_of_different_machines_stand_side_by_side(
    profile_file: Path, altered: Altered, tmp_path: Path
) -> None:
    def slower(content: dict[str, Any]) -> None:
        content["machine"]["board"] = "NVIDIA Jetson Orin Nano"
        for report in content["reports"]:
            for boundary in report["boundaries"].values():
                boundary["samples_ms"] = [2 * sample for sample in boundary["samples_ms"]]

    other = altered(slower)
    check_comparable({"a": read_profile(profile_file), "b": read_profile(other)})
    result = run("report", profile_file, other)
    assert result.exit_code == 0, result.output
    assert "Measured apart" in result.stdout
    assert "2.000" in result.stdout
    assert "written" not in result.stdout
    assert run("report", profile_file, other, "--html", tmp_path / "both.html").exit_code == 0
    assert "NVIDIA Jetson Orin Nano" in (tmp_path / "both.html").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["settings"].update(batch=4), "batch (1; 4)"),
        (lambda c: c["settings"].update(hint="throughput"), "hint (latency; throughput)"),
        (lambda c: c["inputs"].update(digest="0" * 64), "inputs"),
        (lambda c: c["inputs"].update(kind="golden frames"), "inputs"),
        (lambda c: [r["boundaries"].update(end_to_end=None) for r in c["reports"]], "boundaries"),
    ],
)
def test_profiles_of_different_things_are_not_compared(
    change: Callable[[dict[str, Any]], object], words: str, profile_file: Path, altered: Altered
) -> None:
    assert words in refusal("report", profile_file, altered(change))


@pytest.mark.parametrize("content", ["{}", "[1", "[]", '{"best": 1}', '{"fractions": [1]}'])
def test_what_is_no_report_is_refused_by_its_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    assert str(path) in refusal("report", path)


def test_what_cannot_be_reported_together_or_written_is_refused(
    profile_file: Path, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert str(trained) in refusal("report", profile_file, trained)
    assert "twice" in refusal("report", profile_file, profile_file)
    assert "--split" in refusal("report", profile_file, "--split", "test")
    assert str(tmp_path / "none.json") in refusal("report", tmp_path / "none.json")
    assert "--html" in refusal("report", profile_file, "--html", tmp_path / "no" / "page.html")
    for out in (tmp_path / "file", tmp_path / "file" / "x"):
        assert str(out) in refusal("report", profile_file, "--out", out)


@pytest.mark.parametrize("package", ["matplotlib.figure", "jinja2"])
def test_without_the_extra_the_line_that_installs_it_is_printed(
    package: str, profile_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    line = refusal("report", profile_file, "--html", tmp_path / "page.html")
    assert "pip install 'gft-edge[report]'" in line


# Runs


def test_a_run_becomes_curves_gradients_and_the_confusion(trained: Path, tmp_path: Path) -> None:
    without = run("report", trained)
    assert without.exit_code == 0, without.stderr
    assert "--log-gradients" in without.stderr
    assert "Hardest classes" in (trained / "report.html").read_text()
    write_norms(trained, 1, {"patch embedding": 1.0, "block 0": 0.5, "head": 0.1})
    content = run_json("report", trained, "--out", tmp_path)
    names = ["curves.png", "gradients.png", "confusion.png", "hardest.png"]
    assert content["written"] == [str(tmp_path / name) for name in names]
    assert content["gradients"] == {"1": {"patch embedding": 1.0, "block 0": 0.5, "head": 0.1}}
    found = content["confusion"]
    assert (found["split"], found["images"]) == ("test", 12)
    assert found["top1"] == run_json("evaluate", trained)["top1"]
    assert len(found["hardest"]) == 4
    wrong = sum(pair["count"] for pair in found["pairs"])
    assert wrong == round(12 * (1 - found["top1"]))
    assert content["histories"][str(trained)]["columns"]["train_loss"] == [1.5]


def test_a_number_that_is_nan_is_a_gap_and_said(trained: Path, micro_data: Path) -> None:
    trained_on(trained, micro_data, "1,1e-4,nan,0.25,1,2,9,1\n2,1e-4,1.2,0.5,1,2,9,1\n")
    result = run("report", trained)
    assert result.exit_code == 0
    assert "train_loss is NaN or infinite in epoch 1" in result.stderr
    columns = run_json("report", trained)["histories"][str(trained)]["columns"]
    assert columns["train_loss"] == [None, 1.2]


def test_several_runs_share_one_picture_of_their_curves(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    content = run_json("report", trained, other, "--out", tmp_path / "both")
    assert content["written"] == [str(tmp_path / "both" / "curves.png")]
    assert [*content["histories"]] == [str(trained), str(other)]
    assert "confusion" not in content


@pytest.mark.parametrize("damage", ["elsewhere", "no image", "no picture", "other classes"])
def test_a_run_that_cannot_be_evaluated_still_shows_its_curves(
    damage: str, trained: Path, tmp_path: Path, micro_data: Path
) -> None:
    data = tmp_path / "elsewhere"
    trained_on(trained, data)
    if damage != "elsewhere":
        shutil.copytree(micro_data / "test", data / "train")
    if damage == "no image":
        (data / "val").mkdir()
    elif damage == "no picture":
        (data / "train" / "dill" / "0.png").write_bytes(b"no picture")
    elif damage == "other classes":
        # As an import with --classes 4 names them.
        spec = json.loads((trained / "model.json").read_text())
        spec["labels"] = [f"class {number}" for number in range(4)]
        (trained / "model.json").write_text(json.dumps(spec))
    content = run("report", trained, "--json")
    assert content.exit_code == 0, content.stderr
    assert "no confusion matrix: " in content.stderr
    assert json.loads(content.stdout)["confusion"] is None
    assert (trained / "report.html").is_file()
    assert "elsewhere" in refusal("report", trained, "--split", "test")


@pytest.mark.parametrize("split", ["val", "train"])
def test_a_run_is_judged_on_the_first_split_that_is_here(
    split: str, trained: Path, tmp_path: Path, micro_data: Path
) -> None:
    shutil.copytree(micro_data / "test", tmp_path / split)
    found = run_json("report", trained, "--data", tmp_path)["confusion"]
    assert found["split"] == split


def test_a_run_without_a_history_to_draw_is_refused(trained: Path, tmp_path: Path) -> None:
    assert "--split holiday" not in refusal("report", tmp_path)
    assert "holiday" in refusal("report", trained, "--split", "holiday")
    history = trained / "history.csv"
    for content in (HISTORY + "1,1e-4,much,0.5,1,2,9,1\n", "epoch,loss\n1,2\n"):
        history.write_text(content)
        assert f"{history}, line 2" in refusal("report", trained)
    for content in (HISTORY, ""):
        history.write_text(content)
        assert str(history) in refusal("report", trained)
    history.unlink()
    assert "history.csv" in refusal("report", trained)


# Pictures of few, many and odd things


@pytest.mark.parametrize("classes", [2, 81, pytest.param(300, marks=pytest.mark.slow)])
def test_pictures_of_few_and_many_classes_are_drawn(classes: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    # A formula to matplotlib, a script its font lacks, and a name too long for any picture.
    labels = ("$x_1$ $", "茶\n", *(f"{'long ' * 20}{n}" for n in range(classes - 2)))
    targets = np.repeat(np.arange(classes), 2)
    logits = generator.normal(size=(len(targets), classes)).astype(np.float32)
    confusion = confusion_of(logits, targets, labels)
    save(confusion_chart("a $ b", confusion).figure, tmp_path / "confusion.png")
    hardest = hardest_chart("a $ b", confusion.hardest(), confusion.pairs())
    save(hardest.figure, tmp_path / "hardest.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert max(image.size) < 4000


def test_pictures_of_next_to_nothing_are_drawn(tmp_path: Path) -> None:
    nan = float("nan")
    names = ("train_loss", "val_loss", "val_top1", "val_top5")
    columns: dict[str, list[float]] = {"epoch": [1], **{name: [nan] for name in names}}
    perfect = confusion_of(np.eye(2, dtype=np.float32), np.array([0, 1]), ("a", "b"))
    assert perfect.pairs() == []
    for chart in (
        curves_chart({"$": columns}),
        gradients_chart({1: {"a": nan, "b": 0.0}, 3: {"b": 1.0, "c": 2.0}}),
        hardest_chart("all right", perfect.hardest(), perfect.pairs()),
        sensitivity_chart([("dense", (), 0.0)], ["dense"]),
    ):
        save(chart.figure, tmp_path / f"{chart.name}.png")
        with Image.open(tmp_path / f"{chart.name}.png") as image:
            assert image.width > 500


def test_the_layers_that_stay_precise_are_marked_in_the_ranking() -> None:
    layers = [(f"blocks.{n}.fc1", (0.1 / (n + 1), 0.0), 0.01) for n in range(6)]
    plain = svg_of(sensitivity_chart(layers, ()))
    marked = svg_of(sensitivity_chart(layers, ["blocks.2.fc1"]))
    assert marked.count("font-weight: 700") == plain.count("font-weight: 700") + 1


def test_hardest_classes_and_pairs_are_counted() -> None:
    targets = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    given = np.array([0, 1, 1, 2, 1, 1, 2, 2, 0])
    confusion = confusion_of(np.eye(4, dtype=np.float32)[given], targets, ("a", "b", "c", "d"))
    assert confusion.counts.tolist() == [[1, 2, 1, 0], [0, 2, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    # d has no image in the split.
    assert [(r.label, r.images, r.recall, r.precision) for r in confusion.hardest()] == [
        ("a", 4, 0.25, 0.5), ("c", 3, 2 / 3, 2 / 3), ("b", 2, 1.0, 0.5),
    ]  # fmt: skip
    assert [(p.label, p.predicted, p.count, p.share) for p in confusion.pairs()] == [
        ("a", "b", 2, 0.5), ("c", "a", 1, 1 / 3), ("a", "c", 1, 0.25),
    ]  # fmt: skip
