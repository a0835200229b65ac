"""Tables and figures of runs: what they hold, what they keep, and what they refuse."""

from __future__ import annotations

import csv
import io
import json
import pydoc
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner, Result

from gft_edge.bundle.json_form import to_json
from gft_edge.cli import main
from gft_edge.fidelity.metrics import Metrics
from gft_edge.model.checkpoint import load_run, save_network
from gft_edge.model.cost import cost_of
from gft_edge.model.gft import build_gft
from gft_edge.model.variants import spec_from_name
from gft_edge.reporting.table import latex, markdown, to_csv
from gft_edge.studies import runs_table_forms as forms
from gft_edge.studies.latency import Conditions, Latency
from gft_edge.studies.runs_table import Row, RunsTable, type_of
from gft_edge.training.loop import RunConfig, network_logits
from gft_edge.training.recipes import Recipe

MICRO_LABELS = ("apple", "brown bread", "café", "dill")  # conftest.py's
HISTORY = "epoch,lr,train_loss,val_top1,val_top5,images_per_s,seconds\n"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run_json(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def assert_refused(result: Result, *words: str) -> None:
    """One line on stderr with `words`, nothing on stdout, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in errors[0]


def trained_on(folder: Path, data: Path, history: str = "1,1e-4,1.5,0.25,1,9,1\n") -> Path:
    """Give a run what gft-edge train leaves beside its network."""
    config = RunConfig(str(data), Recipe(epochs=2), amp=False, workers=0, device="cpu")
    (folder / "train.json").write_text(json.dumps(to_json(config)))
    (folder / "history.csv").write_text(HISTORY + history)
    return folder


@pytest.fixture
def gft(tmp_path: Path, micro_run: Path, micro_data: Path) -> Path:
    """The micro GFT as a trained run."""
    shutil.copytree(micro_run, tmp_path / "gft", ignore=shutil.ignore_patterns("evaluation"))
    return trained_on(tmp_path / "gft", micro_data)


@pytest.fixture
def dense(tmp_path: Path, gft: Path, micro_data: Path) -> Path:
    """The dense backbone of the micro GFT, at the same weights but for its stages."""
    spec, model = load_run(gft)
    plain = spec_from_name(
        spec.backbone,
        spec.labels,
        image_size_px=64,
        backbone_args=dict(spec.backbone_args),
        stages="none",
    )
    network = build_gft(plain)
    network.backbone.load_state_dict(model.backbone.state_dict())
    (tmp_path / "dense").mkdir()
    save_network(tmp_path / "dense", network, plain)
    return trained_on(tmp_path / "dense", micro_data)


def metrics(top1: float, f1: float) -> Metrics:
    return Metrics(top1, 1.0, f1 - 0.1, f1 - 0.2, f1 - 0.3, f1 + 0.002, f1 + 0.001, f1, 12)


def latency(p50_ms: float, ratio: float) -> tuple[Latency, ...]:
    return (Latency("openvino", "int8", "bundles/x", p50_ms, ratio),)


def markdown_of(runs: RunsTable) -> str:
    return markdown(forms.shown(runs))


def latex_of(runs: RunsTable) -> str:
    return latex(forms.shown(runs))


def csv_of(runs: RunsTable) -> str:
    return to_csv(forms.in_full(runs))


TABLE = RunsTable(
    data="100% cats & dogs",
    split="test",
    split_digest="0",
    images=1200,
    classes=2,
    average="weighted",
    measured=Conditions("AMD EPYC, 2 cores", 1, True, ()),
    rows=(
        Row("runs/a", "gft_tiny", "ViT", 93_041_000, 35.123, "0", metrics(0.76511, 0.765),
            latency(12.304, 1.0)),
        Row("runs/b", "[x]_|y\\*", "CNN", 14_149_480, 6.7197, "1", metrics(0.76508, 0.766), ()),
        Row("runs/c", "vit", "ViT", 85_800_000, 0.00612, "2", metrics(0.6586, 0.657),
            latency(24.61, 2.0)),
    ),
)  # fmt: skip

UNSTABLE = RunsTable(**{**vars(TABLE), "measured": Conditions("AMD", 1, False, ("50% busy",))})


def test_markdown_has_the_paper_columns_with_the_best_in_bold() -> None:
    text = markdown_of(TABLE)
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


def test_latex_is_a_booktabs_table_with_every_sign_escaped() -> None:
    text = latex_of(TABLE)
    assert (
        "\\caption{100\\% cats \\& dogs, test (1200 images, 2 classes), weighted averages. " in text
    )
    assert "gft\\_tiny" in text
    assert "{[}x{]}\\_\\textbar{}y\\textbackslash{}{*}" in text
    assert "\\textbf{12.30 (1.00)}" in text
    assert [rule for rule in ("toprule", "midrule", "bottomrule") if f"\\{rule}" in text] == [
        "toprule", "midrule", "bottomrule",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["#$%&_{}~^\\", '"a" <b>|*', "}{", "two\nlines \x00", "[5]"])
def test_latex_stays_balanced_whatever_a_run_is_called(name: str) -> None:
    row = Row(**{**vars(TABLE.rows[0]), "model": name})
    text = latex_of(RunsTable(**{**vars(TABLE), "rows": (row, *TABLE.rows[1:])}))
    body = re.sub(r"(?m)^%.*$", "", text)
    depth = 0
    for sign in re.findall(r"\\.|[{}]", body):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    for line in rows:
        plain = re.sub(r"\\[a-zA-Z]+|\\.", "", line.removesuffix(r"\\"))
        assert plain.count("&") == 8
        assert not set(plain) & set('#$%_~^|<>"')
        assert not line.lstrip().startswith(("[", "*"))


def test_csv_has_the_numbers_in_full() -> None:
    lines = [*csv.DictReader(io.StringIO(csv_of(TABLE)))]
    assert lines[0] == {
        "model": "gft_tiny", "run": "runs/a", "type": "ViT", "data": "100% cats & dogs",
        "split": "test", "images": "1200", "accuracy": "0.76511", "average": "weighted",
        "precision": "0.767", "recall": "0.766", "f1": "0.765", "parameters": "93041000",
        "gflops": "35.123", "openvino_int8_p50_ms": "12.304", "openvino_int8_ratio": "1.0",
        "stable": "True", "machine": "AMD EPYC, 2 cores",
    }  # fmt: skip
    assert lines[1]["model"] == "[x]_|y\\*"
    assert lines[1]["openvino_int8_p50_ms"] == ""
    macro = RunsTable(**{**vars(TABLE), "average": "macro"})
    (line, *_) = csv.DictReader(io.StringIO(csv_of(macro)))
    assert [float(line[name]) for name in ("precision", "recall", "f1")] == pytest.approx(
        [0.665, 0.565, 0.465]
    )


def test_latencies_that_are_not_to_be_trusted_say_so() -> None:
    doubt = "UNSTABLE: do not decide on these numbers. Likely cause: 50% busy"
    assert doubt in markdown_of(UNSTABLE)
    assert doubt.replace("%", "\\%") in latex_of(UNSTABLE)
    assert "False" in csv_of(UNSTABLE)


def test_nothing_is_the_best_of_one_row() -> None:
    alone = RunsTable(**{**vars(TABLE), "rows": TABLE.rows[:1]})
    assert "**" not in markdown_of(alone)


def test_a_network_is_what_it_does() -> None:
    assert type_of(timm.create_model("vit_tiny_patch16_224", depth=1)) == "ViT"
    assert type_of(timm.create_model("resnet18")) == "CNN"
    assert type_of(torch.nn.Linear(2, 2)) == "MLP"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
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
def test_a_stem_and_a_pooling_make_no_type(name: str, kind: str) -> None:
    with torch.device("meta"):
        assert type_of(timm.create_model(name)) == kind


def test_a_table_of_runs_says_what_evaluate_says(gft: Path, dense: Path) -> None:
    content = run_json("evaluate", gft, dense)
    # Both are of one backbone: the run's folder tells them apart.
    names = [row["model"] for row in content["rows"]]
    assert names == ["vit_tiny_patch16_224 (gft)", "vit_tiny_patch16_224 (dense)"]
    assert [{"split": "test", **row["metrics"]} for row in content["rows"]] == [
        run_json("evaluate", run) for run in (gft, dense)
    ]
    assert [row["type"] for row in content["rows"]] == ["ViT", "ViT"]
    first, second = content["rows"]
    assert first["parameters"] == cost_of(load_run(gft)[1]).parameters
    assert first["gflops"] < second["gflops"]
    assert content["measured"] is None
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
                calls.append(name)
                return real(*given)

            monkeypatch.setattr(place, counted)
    assert run("evaluate", gft, dense).exit_code == 0
    assert sorted(calls) == [*["load_run"] * 2, *["sha256_of"] * 2, *["split_digest"] * 2]


def test_what_a_split_lacks_is_said(
    gft: Path, dense: Path, micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    root = tmp_path / "coco"
    (root / "val2017").mkdir(parents=True)
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    content["categories"] = [{"id": n, "name": name} for n, name in enumerate(MICRO_LABELS)]
    for number in range(5):
        shutil.copy(micro_data / "test" / "dill" / "0.png", root / "val2017" / f"{number}.jpg")
        content["images"].append({"id": number, "file_name": f"{number}.jpg"})
    for number in range(4):
        content["annotations"].append(
            {"id": number, "image_id": number, "category_id": number, "bbox": [0, 0, 9, 9]}
        )
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    for command, *subjects in (
        ("evaluate", gft),
        ("evaluate", micro_bundles["onnx"]),
        ("evaluate", gft, dense),
        ("report", gft),
    ):
        result = run(command, *subjects, "--data", root, "--dataset", "coco")
        assert result.exit_code == 0, result.stderr
        assert result.stderr.count("1 of 5 images have no annotation and are left out") == 1


def test_a_table_is_of_its_data_set_wherever_that_was_unpacked(
    gft: Path, micro_data: Path, tmp_path: Path
) -> None:
    # food-101.tar.gz has a folder in it; its classes are here the micro run's.
    root = tmp_path / "downloads" / "food-101"
    shutil.copytree(micro_data / "test", root / "images")
    for image in root.glob("images/*/*.png"):
        image.rename(image.with_suffix(".jpg"))
    labels = sorted(path.name for path in (root / "images").iterdir())
    images = [f"{label}/{number}\n" for label in labels for number in range(3)]
    (root / "meta").mkdir()
    (root / "meta" / "classes.txt").write_text("".join(f"{label}\n" for label in labels))
    (root / "meta" / "test.txt").write_text("".join(images))
    content = run_json(
        "evaluate", gft, "--average", "weighted", "--data", root.parent, "--dataset", "food-101"
    )
    assert (content["data"], content["images"]) == ("food-101", 12)
    assert run_json("evaluate", gft, "--average", "weighted")["data"] == micro_data.name


def test_a_table_is_written_as_its_file_is_called(gft: Path, dense: Path, tmp_path: Path) -> None:
    given = ("evaluate", gft, dense, "--out")
    assert run(*given, tmp_path / "t.tex").exit_code == 0
    assert (tmp_path / "t.tex").read_text() == run(
        "evaluate", gft, dense, "--format", "latex"
    ).stdout
    assert_refused(run(*given, tmp_path / "t.xls"), "says no format", ".md, .tex or .csv")
    assert_refused(run(*given, tmp_path), "cannot be written")
    assert_refused(run(*given, tmp_path / "absent" / "t.md"), "cannot be written")


def test_an_evaluation_is_kept_until_weights_network_or_images_change(
    gft: Path, micro_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return network_logits(*arguments, **options)

    monkeypatch.setattr("gft_edge.studies.evaluation.network_logits", counted)
    first = run("evaluate", gft)
    assert (calls, "as evaluated before" in first.stderr) == (1, False)
    second = run("evaluate", gft)
    assert (calls, "as evaluated before" in second.stderr) == (1, True)
    assert second.stdout == first.stdout
    with np.load(gft / "evaluation" / "test.npz") as kept:
        assert kept["logits"].shape == (12, 4)
        assert kept["targets"].tolist() == [n // 3 for n in range(12)]
    record = json.loads((gft / "evaluation" / "test.json").read_text())
    assert {"split": "test", **record["metrics"]} == run_json("evaluate", gft)

    run("evaluate", gft, "--fresh")
    assert calls == 2
    moved = tmp_path / "moved"
    shutil.copytree(micro_data, moved)
    run("evaluate", gft, "--data", moved)
    assert calls == 2
    (moved / "test" / "dill" / "0.png").unlink()
    run("evaluate", gft, "--data", moved)
    assert calls == 3
    run("evaluate", gft)
    assert calls == 4
    # The record is whole and its logits are not.
    (gft / "evaluation" / "test.npz").write_bytes(b"no zip")
    run("evaluate", gft)
    assert calls == 5
    (gft / "evaluation" / "test.json").write_text("{}")
    run("evaluate", gft)
    assert calls == 6
    spec, model = load_run(gft)
    with torch.no_grad():
        model.backbone.head.bias[0] += 1
    save_network(gft, model, spec)
    run("evaluate", gft)
    assert calls == 7
    text = (gft / "model.json").read_text()
    (gft / "model.json").write_text(text.replace('"keep": 48', '"keep": 47'))
    run("evaluate", gft)
    assert calls == 8


def test_an_evaluation_says_its_device_and_serves_another(
    gft: Path, micro_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, int]] = []

    def noted(network: Any, spec: Any, split: Any, workers: int, progress: Any, on: Any) -> Any:
        given.append((on.device.type, workers))
        return network_logits(network, spec, split, workers, progress, on)

    monkeypatch.setattr("gft_edge.studies.evaluation.network_logits", noted)
    here = "cuda" if torch.cuda.is_available() else "cpu"
    assert run("evaluate", gft).exit_code == 0
    # A batch is decoded sooner than a process starts.
    assert given == [(here, 0)]
    record = json.loads((gft / "evaluation" / "test.json").read_text())
    assert record["device"] == here
    for device in ("cuda", None):
        # Of a GPU, and of a version that did not say.
        kept = {**record, "device": device} if device else {**record}
        if device is None:
            del kept["device"]
        (gft / "evaluation" / "test.json").write_text(json.dumps(kept))
        result = run("evaluate", gft, "--device", "cpu")
        assert (result.exit_code, "as evaluated before" in result.stderr) == (0, True)
    more = tmp_path / "more"
    for number in range(3):
        shutil.copytree(micro_data, more, dirs_exist_ok=True)
        for image in [*more.glob("test/*/[0-9].png")]:
            image.rename(image.with_name(f"copy {number} {image.name}"))
    result = run("evaluate", gft, "--data", more, "--device", "cpu", "--workers", "1")
    assert (result.exit_code, given[-1]) == (0, ("cpu", 1)), result.stderr


def test_a_gpu_that_is_not_there_is_refused(
    gft: Path, micro_bundles: dict[str, Path], micro_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert_refused(run("evaluate", gft, "--device", "cuda"), "PyTorch sees no GPU here")
    bundle = ("evaluate", micro_bundles["onnx"], "--data", micro_data)
    assert_refused(run(*bundle, "--device", "cpu"), "--device is for runs", "give --backend")
    assert_refused(run(*bundle, "--workers", "1"), "--workers is for runs")
    for option in (("--threads", "1"), ("--backend", "onnx")):
        assert_refused(run("evaluate", gft, *option), f"{option[0]} is for bundles, a run")


def test_a_run_that_cannot_be_written_to_is_evaluated_all_the_same(gft: Path) -> None:
    (gft / "evaluation").touch()
    result = run("evaluate", gft)
    assert result.exit_code == 0
    assert f"the evaluation of {gft} is not kept" in result.stderr


def test_runs_that_make_no_table_are_refused(
    gft: Path, dense: Path, tmp_path: Path, micro_data: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(run("evaluate", gft, tmp_path / "absent"), "absent: no such run")
    assert_refused(run("evaluate", gft, empty), f"{empty} is no run: it has no model.json")
    assert_refused(run("evaluate", gft, gft / ".." / "gft"), "is given twice: a run is one row")
    assert_refused(run("evaluate", gft, "--split", "holiday"), "has no holiday/ folder", "test")
    assert_refused(run("evaluate", gft, "--split", "../gft"), "no name of a split")

    copied = tmp_path / "copied"
    shutil.copytree(gft, copied)
    assert_refused(run("evaluate", gft, copied), f"{copied} has the weights of {gft}")

    spec = json.loads((dense / "model.json").read_text())
    spec["labels"][1] = "rye bread"
    (copied / "model.json").write_text(json.dumps(spec))
    shutil.copy(dense / "model.safetensors", copied)
    assert_refused(
        run("evaluate", gft, copied),
        f"{gft} and {copied} are of different data sets",
        "class 1 is 'brown bread' in one and 'rye bread' in the other",
    )
    fewer_classes = spec_from_name(
        "vit_tiny_patch16_224", ("a", "b"), stages="none", backbone_args={"depth": 1}
    )
    (tmp_path / "other").mkdir()
    save_network(tmp_path / "other", build_gft(fewer_classes), fewer_classes)
    trained_on(tmp_path / "other", micro_data)
    assert_refused(run("evaluate", gft, tmp_path / "other"), "different data sets: 4 and 2 classes")

    fewer = tmp_path / "fewer"
    shutil.copytree(micro_data, fewer)
    (fewer / "test" / "dill" / "0.png").unlink()
    trained_on(dense, fewer)
    assert_refused(
        run("evaluate", gft, dense),
        f"{gft} and {dense} have different images in test",
        f"12 below {micro_data}; 11 below {fewer}",
        "give --data FOLDER",
    )
    assert run("evaluate", gft, dense, "--data", micro_data).exit_code == 0

    trained_on(dense, tmp_path / "elsewhere")
    assert_refused(run("evaluate", dense), "elsewhere, which is not here: give --data FOLDER")
    (dense / "train.json").unlink()
    assert_refused(run("evaluate", dense), "does not say where its images are: give --data FOLDER")
    (dense / "model.safetensors").unlink()
    assert_refused(
        run("evaluate", dense), f"{dense} has no finished epoch: continue it with gft-edge train"
    )


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
    assert_refused(
        run("evaluate", gft, dense),
        f"{both} take different boxes for an image's category, the largest and the first: "
        "give --coco-category largest or first",
    )
    # Then they agree: what is missing is COCO itself.
    assert_refused(run("evaluate", gft, dense, "--coco-category", "first"), "holds no coco")
    read_as(dense, dataset="food-101")
    assert_refused(
        run("evaluate", gft, dense),
        f"{both} are of different data sets: coco and food-101; give --data FOLDER and --dataset NAME",
    )
    for folder in (gft, dense):
        read_as(folder)
    spec = json.loads((dense / "model.json").read_text())
    spec["labels"].reverse()
    (dense / "model.json").write_text(json.dumps(spec))
    assert_refused(
        run("evaluate", gft, dense),
        f"{both} have the same classes in another order: class 0 is 'apple' in one and 'dill' in the",
    )


def export(run_folder: Path, data: Path, out: Path) -> Path:
    result = run("export", run_folder, "--target", "onnx", "--data", data, "--split", "test",
                 "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return out


def test_bundles_become_columns_of_the_runs_they_come_from(
    gft: Path, dense: Path, micro_data: Path, tmp_path: Path
) -> None:
    bundles = tmp_path / "bundles"
    bundle = export(dense, micro_data, bundles / "dense")
    content = run_json("evaluate", gft, dense, "--bundles", bundles, "--duration", "0.05")
    assert content["rows"][0]["latency"] == []
    (measured,) = content["rows"][1]["latency"]
    assert (measured["target"], measured["precision"]) == ("onnx", "fp32")
    assert measured["bundle"] == str(bundle)
    assert measured["p50_ms"] > 0
    # The first row has none: then the first that has one is the one to compare with.
    assert measured["ratio"] == 1.0
    assert content["measured"]["machine"]

    without = run("evaluate", gft, "--bundles", bundles, "--json")
    assert f"{bundle} was exported from none of the runs: left out" in without.stderr
    assert json.loads(without.stdout)["measured"] is None
    refused = run("evaluate", gft, "--bundles", bundle)
    assert_refused(refused, f"{bundle} was exported from none of the runs (other weights)")
    shutil.copytree(bundle, tmp_path / "again")
    assert_refused(
        run("evaluate", dense, "--bundles", bundles, "--bundles", tmp_path / "again"),
        f"are both {dense} for onnx in fp32: give one of them",
    )
    assert_refused(run("evaluate", gft, "--bundles", gft), f"{gft} holds no bundle")
