"""Runs side by side: the columns of the paper's tables, their latencies, runs that cannot be compared."""

from __future__ import annotations

import csv
import io
import json
import pydoc
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from gft_edge.fidelity.metrics import Metrics
from gft_edge.model.checkpoint import load_run, save_network
from gft_edge.model.cost import cost_of
from gft_edge.model.gft import build_gft
from gft_edge.reporting.table import latex, markdown, to_csv
from gft_edge.studies import runs_table_forms as forms
from gft_edge.studies.run_latencies import Latency, MeasuredOn
from gft_edge.studies.runs_table import Row, RunsTable, type_of
from tests.support.cli import refusal, refused, run, run_json
from tests.support.networks import micro_spec
from tests.support.pictures import MICRO_LABELS
from tests.support.runs import trained_on
from tests.support.studies import Shortcut


def metrics(top1: float, f1: float) -> Metrics:
    return Metrics(top1, 1.0, f1 - 0.1, f1 - 0.2, f1 - 0.3, f1 + 0.002, f1 + 0.001, f1, 12)


def latency(p50_ms: float, ratio: float) -> tuple[Latency, ...]:
    return (Latency("openvino", "int8", "bundles/x", p50_ms, ratio),)


TABLE = RunsTable(
    data="100% cats & dogs",
    split="test",
    split_digest="0",
    images=1200,
    classes=2,
    average="weighted",
    measured=MeasuredOn("AMD EPYC, 2 cores", 1, True, ()),
    rows=(
        Row("runs/a", "gft_tiny", "ViT", 93_041_000, 35.123, "0", metrics(0.76511, 0.765),
            latency(12.304, 1.0)),
        Row("runs/b", "[x]_|y\\*", "CNN", 14_149_480, 6.7197, "1", metrics(0.76508, 0.766), ()),
        Row("runs/c", "vit", "ViT", 85_800_000, 0.00612, "2", metrics(0.6586, 0.657),
            latency(24.61, 2.0)),
    ),
)  # fmt: skip


def test_markdown_has_the_paper_columns_with_the_best_in_bold() -> None:
    text = markdown(forms.shown(TABLE))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|") and "---" not in line
    ]
    assert rows == [
        ["model", "accuracy %", "precision", "recall", "F1", "parameters M", "GFLOPs", "type",
         "openvino int8 ms"],
        # Both 76.51: more digits than are shown decide nothing.
        ["gft_tiny", "**76.51**", "0.767", "0.766", "0.765", "93.0", "35.1", "ViT",
         "**12.30 (1.00)**"],
        ["\\[x\\]\\_&#124;y\\\\\\*", "**76.51**", "**0.768**", "**0.767**", "**0.766**", "**14.1**",
         "6.72", "CNN", "-"],
        ["vit", "65.86", "0.659", "0.658", "0.657", "85.8", "**0.00612**", "ViT", "24.61 (2.00)"],
    ]  # fmt: skip
    assert "100% cats & dogs, test (1200 images, 2 classes), weighted averages" in text
    assert "all bundles measured in turn on AMD EPYC, 2 cores" in text


def test_csv_has_the_numbers_in_full() -> None:
    lines = [*csv.DictReader(io.StringIO(to_csv(forms.in_full(TABLE))))]
    assert lines[0] == {
        "model": "gft_tiny", "run": "runs/a", "type": "ViT", "data": "100% cats & dogs",
        "split": "test", "images": "1200", "accuracy": "0.76511", "average": "weighted",
        "precision": "0.767", "recall": "0.766", "f1": "0.765", "parameters": "93041000",
        "gflops": "35.123", "openvino_int8_p50_ms": "12.304", "openvino_int8_ratio": "1.0",
        "stable": "True", "machine": "AMD EPYC, 2 cores",
    }  # fmt: skip
    assert lines[1]["model"] == "[x]_|y\\*"
    assert lines[1]["openvino_int8_p50_ms"] == ""
    macro = forms.in_full(replace(TABLE, average="macro")).records()[0]
    assert [macro[name] for name in ("precision", "recall", "f1")] == pytest.approx(
        [0.665, 0.565, 0.465]
    )


def test_latencies_that_are_not_to_be_trusted_say_so() -> None:
    shaky = replace(TABLE, measured=MeasuredOn("AMD", 1, False, ("50% busy",)))
    doubt = "UNSTABLE: do not decide on these numbers. Likely cause: 50% busy"
    assert doubt in markdown(forms.shown(shaky))
    assert doubt.replace("%", "\\%") in latex(forms.shown(shaky))
    assert "False" in to_csv(forms.in_full(shaky))


def test_nothing_is_the_best_of_one_row() -> None:
    assert "**" not in markdown(forms.shown(replace(TABLE, rows=TABLE.rows[:1])))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet18", "CNN"),
        ("mixer_s32_224", "MLP"),  # its patches are cut by a convolution
        ("resmlp_12_224", "MLP"),
        ("convmixer_768_32", "CNN"),
        ("resnet50_clip", "CNN"),  # attention pools what it has convolved
        ("resnest14d", "CNN"),  # SplitAttn
        ("vit_small_r26_s32_224", "ViT"),
        ("cait_xxs24_224", "ViT"),
        ("convit_tiny", "ViT"),
        ("twins_pcpvt_small", "ViT"),
    ],
)
def test_a_network_is_what_it_does_and_neither_its_stem_nor_its_pooling(
    name: str, kind: str
) -> None:
    with torch.device("meta"):
        assert type_of(timm.create_model(name)) == kind
    assert type_of(torch.nn.Linear(2, 2)) == "MLP"


def test_a_table_of_runs_says_what_evaluate_says(gft: Path, dense: Path, micro_data: Path) -> None:
    content = run_json("evaluate", gft, dense)
    # Both are of one backbone: the run's folder tells them apart.
    names = [row["model"] for row in content["rows"]]
    assert names == ["vit_tiny_patch16_224 (gft)", "vit_tiny_patch16_224 (dense)"]
    for row, run_folder in zip(content["rows"], (gft, dense), strict=True):
        told = run_json("evaluate", run_folder)
        assert {"split": "test", **row["metrics"]}.items() <= told.items()
    assert [row["type"] for row in content["rows"]] == ["ViT", "ViT"]
    first, second = content["rows"]
    assert first["parameters"] == cost_of(load_run(gft)[1]).parameters
    assert first["gflops"] < second["gflops"]
    assert content["measured"] is None
    assert content["data"] == micro_data.name
    for form in ("markdown", "latex", "csv"):
        result = run("evaluate", gft, dense, "--format", form)
        assert result.exit_code == 0
        assert "next:" not in result.stdout
        assert "as evaluated before" in result.stderr
    assert run("evaluate", gft, dense).stdout.splitlines()[-1] == f"next: gft-edge report {gft}"


def test_a_table_opens_a_run_once_that_keeps_its_evaluation(
    gft: Path, dense: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("evaluate", gft, dense).exit_code == 0
    calls: list[str] = []
    for module in ("evaluation", "runs_table"):
        for name in ("load_run", "sha256_of", "split_digest"):
            place = f"gft_edge.studies.{module}.{name}"
            real = pydoc.locate(place)

            def counted(*given: Any, name: str = name, real: Any = real) -> Any:
                if name != "sha256_of" or given[0].name == "model.safetensors":
                    calls.append(name)
                return real(*given)

            monkeypatch.setattr(place, counted)
    assert run("evaluate", gft, dense).exit_code == 0
    assert sorted(calls) == [*["load_run"] * 2, *["sha256_of"] * 2, *["split_digest"] * 2]


def test_a_table_is_of_its_data_set_and_says_what_a_split_lacks(
    gft: Path, dense: Path, micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    root = tmp_path / "coco"
    (root / "val2017").mkdir(parents=True)
    listed: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    listed["categories"] = [{"id": n, "name": name} for n, name in enumerate(MICRO_LABELS)]
    for number in range(5):
        shutil.copy(micro_data / "test" / "dill" / "0.png", root / "val2017" / f"{number}.jpg")
        listed["images"].append({"id": number, "file_name": f"{number}.jpg"})
    for number in range(4):
        listed["annotations"].append(
            {"id": number, "image_id": number, "category_id": number, "bbox": [0, 0, 9, 9]}
        )
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(listed))
    for command, *subjects in (
        ("evaluate", gft),
        ("evaluate", micro_bundles["onnx"]),
        ("evaluate", gft, dense),
        ("report", gft),
    ):
        result = run(command, *subjects, "--data", root, "--dataset", "coco")
        assert result.exit_code == 0, result.stderr
        assert result.stderr.count("1 of 5 images have no annotation and are left out") == 1
    content = run_json("evaluate", gft, dense, "--data", root, "--dataset", "coco")
    assert (content["data"], content["images"]) == ("coco", 4)


def test_a_table_is_written_as_its_file_is_called(gft: Path, dense: Path, tmp_path: Path) -> None:
    given = ("evaluate", gft, dense, "--out")
    assert run(*given, tmp_path / "t.tex").exit_code == 0
    assert (tmp_path / "t.tex").read_text() == run(
        "evaluate", gft, dense, "--format", "latex"
    ).stdout
    for path in (tmp_path / "t.xls", tmp_path, tmp_path / "absent" / "t.md"):
        assert str(path) in refusal(*given, path)


def test_runs_that_make_no_table_are_refused(
    gft: Path, dense: Path, tmp_path: Path, micro_data: Path
) -> None:
    def line(*given: object) -> str:
        return refusal("evaluate", gft, *given)

    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "absent") in line(tmp_path / "absent")
    assert "model.json" in line(tmp_path / "empty")
    assert str(gft / ".." / "gft") in line(gft / ".." / "gft")
    assert "holiday/" in line("--split", "holiday")
    assert "--split ../gft" in line("--split", "../gft")
    copied = Path(shutil.copytree(gft, tmp_path / "copied"))
    assert f"{copied} has the weights of {gft}" in line(copied)

    spec = json.loads((dense / "model.json").read_text())
    spec["labels"][1] = "rye bread"
    (copied / "model.json").write_text(json.dumps(spec))
    shutil.copy(dense / "model.safetensors", copied)
    refused(run("evaluate", gft, copied), f"{gft} and {copied}", "'brown bread'", "'rye bread'")
    two = micro_spec(("a", "b"), stages="none", depth=1)
    (tmp_path / "other").mkdir()
    save_network(tmp_path / "other", build_gft(two), two)
    assert "4 and 2 classes" in line(trained_on(tmp_path / "other", micro_data))


def test_runs_of_other_images_or_of_none_are_refused(
    gft: Path, dense: Path, tmp_path: Path, micro_data: Path
) -> None:
    fewer = Path(shutil.copytree(micro_data, tmp_path / "fewer"))
    (fewer / "test" / "dill" / "0.png").unlink()
    trained_on(dense, fewer)
    refused(run("evaluate", gft, dense), f"12 below {micro_data}", f"11 below {fewer}", "--data")
    assert run("evaluate", gft, dense, "--data", micro_data).exit_code == 0

    trained_on(dense, tmp_path / "elsewhere")
    assert str(tmp_path / "elsewhere") in refusal("evaluate", dense)
    (dense / "train.json").unlink()
    assert "--data" in refusal("evaluate", dense)
    (dense / "model.safetensors").unlink()
    assert f"--resume {dense}" in refusal("evaluate", dense)


def test_runs_that_see_one_folder_differently_are_told_how_to_agree(
    gft: Path, dense: Path, micro_data: Path
) -> None:
    def read_as(run_folder: Path, **changes: object) -> None:
        trained_on(run_folder, micro_data)
        config = json.loads((run_folder / "train.json").read_text())
        (run_folder / "train.json").write_text(json.dumps({**config, **changes}))

    both = f"{gft} and {dense}"
    read_as(gft, dataset="coco", coco_category="largest")
    read_as(dense, dataset="coco", coco_category="first")
    refused(run("evaluate", gft, dense), both, "--coco-category largest or first")
    # Then they agree: what is missing is COCO itself.
    agreed = refusal("evaluate", gft, dense, "--coco-category", "first")
    assert f"{micro_data} holds no coco" in agreed
    read_as(dense, dataset="food-101")
    refused(run("evaluate", gft, dense), both, "coco and food-101", "--dataset")
    for folder in (gft, dense):
        read_as(folder)
    spec = json.loads((dense / "model.json").read_text())
    spec["labels"].reverse()
    (dense / "model.json").write_text(json.dumps(spec))
    refused(run("evaluate", gft, dense), both, "class 0", "'apple'", "'dill'")


def test_bundles_become_columns_of_the_runs_they_come_from(
    gft: Path, dense: Path, micro_bundles: dict[str, Path], tmp_path: Path, shortcut: Shortcut
) -> None:
    bundle = tmp_path / "bundles" / "onnx"
    shutil.copytree(micro_bundles["onnx"], bundle)
    content = run_json("evaluate", dense, gft, "--bundles", bundle.parent)
    assert shortcut.measured == [["onnx"]]
    assert content["rows"][0]["latency"] == []
    (measured,) = content["rows"][1]["latency"]
    assert (measured["target"], measured["precision"]) == ("onnx", "fp32")
    assert measured["bundle"] == str(bundle)
    assert measured["p50_ms"] > 0
    # The first row has none: then the first that has one is the one to compare with.
    assert measured["ratio"] == 1.0
    assert content["measured"]["machine"]


def test_bundles_of_no_run_or_of_one_twice_are_refused(
    gft: Path, dense: Path, micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundles" / "onnx"
    shutil.copytree(micro_bundles["onnx"], bundle)
    without = run("evaluate", dense, "--bundles", bundle.parent, "--json")
    assert f"{bundle} was exported from none of the runs: left out" in without.stderr
    assert json.loads(without.stdout)["measured"] is None
    assert str(bundle) in refusal("evaluate", dense, "--bundles", bundle)
    again = Path(shutil.copytree(bundle, tmp_path / "again"))
    twice = run("evaluate", gft, "--bundles", bundle.parent, "--bundles", again)
    refused(twice, f"{again} and {bundle}", str(gft))
    assert f"{dense} holds no bundle" in refusal("evaluate", gft, "--bundles", dense)
