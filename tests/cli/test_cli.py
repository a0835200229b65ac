"""The command line as a script meets it: JSON alone on stdout, one line of error, the right exit code."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import onnx
import pytest
import torch

from gft_edge.bundle.store import read_manifest, write_manifest
from gft_edge.cli import main
from gft_edge.fidelity.verify import verify
from tests.support.bundles import sign
from tests.support.cli import refused, run, run_json
from tests.support.paths import ROOT

EVALUATE_KEYS = {
    "split", "top1", "top5", "precision_macro", "recall_macro", "f1_macro",
    "temperature", "ece", "ece_uncalibrated",
    "precision_weighted", "recall_weighted", "f1_weighted", "images",
}  # fmt: skip
VERIFY_KEYS = {
    "device",
    "verdict", "top1", "reference_top1", "top1_agreement", "cosine", "max_abs",
    "kept_overlap", "patches_lost", "lost_near_border", "disagreements", "picture", "images", "labelled",
    "failures", "golden", "skipped", "confidence_change", "drop", "noise_floor", "noise_floors",
    "integer_layers", "warnings", "ece", "reference_ece",
}  # fmt: skip


def test_every_command_has_help_with_an_example_and_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    listed = run("--help").stdout
    assert {"train", "export", "predict"} <= set(main.commands)
    for name, command in main.commands.items():
        assert f"`gft-edge {name}" in readme, f"{name} is not in the README"
        assert run(name, "--help").exit_code == 0
        first = command.get_short_help_str(40).removesuffix("...")
        assert first in listed, f"gft-edge --help says something else of {name}"
        example = shlex.split(str(command.help).rpartition("\n\n")[2])
        assert example[:2] == ["gft-edge", name]
        command.make_context(name, example[2:]).close()
        for parameter in command.params:
            assert not isinstance(parameter, click.Option) or parameter.hidden or parameter.help


def test_evaluate_gives_one_object_for_a_run_and_a_bundle_and_they_agree(
    micro_run: Path, micro_bundles: dict[str, Path], micro_data: Path
) -> None:
    of_run = run_json("evaluate", micro_run, "--data", micro_data)
    assert set(of_run) == EVALUATE_KEYS
    assert of_run["images"] == 12
    for bundle in micro_bundles.values():
        assert run_json("evaluate", bundle, "--data", micro_data) == pytest.approx(of_run, abs=1e-5)


def test_verify_without_images_checks_the_bundle_alone(micro_bundles: dict[str, Path]) -> None:
    for bundle in micro_bundles.values():
        content = run_json("verify", bundle)
        assert set(content) == VERIFY_KEYS
        assert content["verdict"] == "pass"
        assert content["failures"] == []
        skipped = "" if bundle.name == "onnx" else "graph structure: checked at export"
        assert "".join(content["skipped"]).startswith(skipped)
        assert bool(content["skipped"]) == bool(skipped)
        assert content["top1"] is content["reference_top1"] is content["kept_overlap"] is None


def test_verify_of_an_altered_bundle_prints_a_failed_verdict(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(micro_bundles["onnx"], bundle)
    with (bundle / "model.onnx").open("r+b") as file:
        file.seek(5000)
        file.write(b"\0\1\2\3")
    content = run_json("verify", bundle, exit_code=1)
    assert content["verdict"] == "fail"
    assert "sha256 differs" in content["failures"][0]
    refused(run("predict", bundle, "x.jpg"), "model.onnx", "sha256")


def test_verify_fails_a_graph_of_another_structure(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(micro_bundles["onnx"], bundle)
    path = bundle / "model.onnx"
    model = onnx.load(path)
    node = onnx.helper.make_node("Cast", ["logits_"], ["logits"], to=onnx.TensorProto.FLOAT)
    next(n for n in model.graph.node if n.output[0] == "logits").output[0] = "logits_"
    model.graph.node.append(node)
    onnx.save(model, path)
    sign(bundle, "model.onnx")
    content = run_json("verify", bundle, exit_code=1)
    assert content["failures"] == ["graph structure: the graph holds 2 Cast nodes, expected 1"]
    # The library is as strong as the command.
    assert list(verify(bundle).failures) == content["failures"]


def test_predict_prints_one_object_a_line_and_goes_on_after_a_broken_image(
    micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.jpg").touch()
    shutil.copy(micro_data / "test" / "dill" / "0.png", tmp_path / "good.png")
    pattern = micro_data / "test" / "apple" / "*.png"
    result = run("predict", micro_bundles["onnx"], tmp_path, pattern, "--top-k", 2, "--json")
    assert result.exit_code == 1
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(line["path"]).name for line in lines] == [
        "empty.jpg", "good.png", "0.png", "1.png", "2.png",
    ]  # fmt: skip
    assert set(lines[0]) == {"path", "error"}
    assert "0 bytes" in lines[0]["error"]
    for line in lines[1:]:
        assert [set(p) for p in line["predictions"]] == [{"label", "index", "probability"}] * 2
        best, second = line["predictions"]
        assert best["probability"] >= second["probability"]
    assert "1 of 5 images could not be read" in result.stderr


def test_predict_keeps_compiled_models_in_the_users_cache_folder(
    micro_bundles: dict[str, Path],
    micro_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = micro_data / "test" / "apple" / "0.png"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    kept = (tmp_path / "cache" / "gft-edge" / "openvino", tmp_path / "home" / ".cache" / "gft-edge")
    answers = [run("predict", micro_bundles["openvino"], image, "--cache-dir", "none")]
    answers += [run("predict", micro_bundles["onnx"], image)]
    assert not any(folder.exists() for folder in kept)
    answers += [run("predict", micro_bundles["openvino"], image) for _ in range(2)]
    assert len(list(kept[0].iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    answers += [run("predict", micro_bundles["onnx"], image, "--backend", "ov")]
    assert len(list((kept[1] / "openvino").iterdir())) == 1
    assert {(answer.exit_code, answer.stdout, answer.stderr) for answer in answers} == {
        (0, answers[0].stdout, "")
    }


def test_a_cache_folder_that_cannot_be_is_one_remark_beside_the_prediction(
    micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "gft_edge", "predict", micro_bundles["openvino"],
         micro_data / "test" / "apple" / "0.png", "--json", "--cache-dir", tmp_path / "file"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(json.loads(done.stdout)["predictions"]) == 4
    assert done.stderr == f"compiled models are not kept in {tmp_path / 'file'}: File exists\n"


def test_a_cache_folder_for_an_engine_without_one_is_refused(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle = micro_bundles["onnx"]
    result = run("predict", bundle, "x.jpg", "--cache-dir", tmp_path)
    refused(result, "cache_dir", "onnx")
    refused(run("predict", bundle, "x.jpg", "--cache-dir", ""), "--cache-dir")


def test_json_stays_on_stdout_while_a_terminal_shows_progress(
    micro_bundles: dict[str, Path], micro_data: Path
) -> None:
    terminal, end = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gft_edge", "predict", micro_bundles["onnx"],
             *[micro_data / "test"] * 2, "--json"],
            stdout=subprocess.PIPE, stderr=end, check=True,
        )  # fmt: skip
        shown = os.read(terminal, 100_000)
    finally:
        os.close(end)
        os.close(terminal)
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 24
    assert b"classify" in shown
    assert b"predictions" not in shown


@pytest.mark.slow
def test_export_prints_bundle_artifacts_and_fidelity(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    content = run_json(
        "export", micro_run, "--format", "ov", "--data", micro_data, "--split", "test",
        "--out", tmp_path / "bundle", "--batch", 2,
    )  # fmt: skip
    assert content["bundle"] == str(tmp_path / "bundle")
    assert content["artifacts"][-1]["path"] == "model.xml"
    assert content["fidelity"]["verdict"] == "pass"
    assert content["fidelity"]["images"] == 12
    assert [report["step"] for report in content["fidelity"]["steps"]] == [
        "onnx_from_torch", "simplify", "build for openvino",
    ]  # fmt: skip
    assert run_json("verify", tmp_path / "bundle")["verdict"] == "pass"


def test_inspect_counts_a_network_by_name() -> None:
    content = run_json("inspect", "gft_base")
    assert abs(content["parameters"] - 93e6) < 0.5e6
    assert content["gflops"] == pytest.approx(sum(row["gflops"] for row in content["blocks"]))
    assert content["eq6_gflops"] < content["gflops"] < content["dense_gflops"]
    tokens = [row["tokens_out"] for row in content["blocks"] if row["name"].startswith("GALA")]
    assert tokens == [148, 99, 50]


def test_inspect_opens_a_run_a_bundle_and_an_onnx_file(
    micro_run: Path, micro_bundles: dict[str, Path]
) -> None:
    assert run_json("inspect", micro_run)["kind"] == "network"
    bundle = run_json("inspect", micro_bundles["openvino"])
    assert bundle["kind"] == "bundle"
    assert bundle["runtime_precision"] == "f32"
    graph = run_json("inspect", micro_bundles["onnx"] / "model.onnx")
    assert graph["kind"] == "onnx"
    assert graph["top_k"] == [48, 32, 16]
    assert graph["outputs"] == {"logits": {"dtype": "float", "shape": [1, 4]}}
    for what in (micro_run, micro_bundles["onnx"], micro_bundles["onnx"] / "model.onnx"):
        assert run("inspect", what).exit_code == 0


def test_doctor_names_the_machine_and_its_engines() -> None:
    content = run_json("doctor")
    assert content["engines"]["onnx"]["version"].startswith("onnxruntime ")
    assert content["engines"]["openvino"]["missing"] is None
    assert content["machine"]["cores"] >= 1
    assert content["engines"]["onnx"]["version"] in run("doctor").stdout


@pytest.fixture
def tiny_data(micro_data: Path, tmp_path: Path) -> Path:
    """Train and val from the shared drawings."""
    for split in ("train", "val"):
        shutil.copytree(micro_data / "test", tmp_path / "data" / split)
    return tmp_path / "data"


def test_training_data_that_cannot_be_used_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    refused(run("train", *out), "--data")
    refused(run("train", "--data", tiny_data), "--out", "--resume")
    refused(run("train", "--data", tmp_path / "absent", *out), str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    refused(run("train", "--data", tmp_path / "empty", *out), "train/")
    for name in ("apple", "café", "dill"):
        shutil.rmtree(tiny_data / "train" / name)
    refused(run("train", "--data", tiny_data, *out), "1 class")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_takes_new_places_and_nothing_that_decides_the_result(
    tiny_data: Path, tmp_path: Path
) -> None:
    resumed = ("train", "--resume", tmp_path / "run")
    refused(run(*resumed, "--lr", "1", "--epochs", 2, "--ema", "0.9"), "--ema, --epochs, --lr")
    refused(run(*resumed), str(tmp_path / "run"))
    given = ("train", "--data", tiny_data, "--out", tmp_path / "run", "--device", "cuda")
    if not torch.cuda.is_available():
        refused(run(*given), "--device cuda")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--model gft_huge", ["gft_huge", "gft_tiny"]),
        ("--model swin_tiny_patch4_window7_224 --stages 2:10", ["VisionTransformer"]),
        ("--model resnet18 --score class", ["resnet18", "--score"]),
        ("--stages 13:100", ["stage 1 (13:100)", "0 to 12"]),
        ("--stages 8:400", ["keeps 400", "196"]),
        ("--stages 8:100,9:120", ["keeps 120", "100"]),
        ("--stages 9:100,8:50", ["positions"]),
        ("--gala block --stages 11:49", ["0 to 10"]),
        ("--stages eight", ["(eight)"]),
        ("--stages 8:1,9:1", ["one patch left"]),
        ("--image-size 230", ["230", "16", "224 or 240"]),
        ("--weights absent.safetensors", ["absent.safetensors"]),
        ("--distillation-temperature 3", ["--distillation-temperature", "--teacher"]),
        ("--distillation 0.3", ["--distillation ", "--teacher"]),
        ("--feature-distillation 1", ["--feature-distillation", "--teacher"]),
        ("--teacher tests", ["tests", "no run"]),
        ("--teacher timm:deit_tinny", ["deit_tinny"]),
        ("--ema 1", ["--ema is 1"]),
        ("--image-size 0", ["--image-size", "0"]),
        *(
            (f"{option} {value}", [option, value])
            for value in ("nan", "inf", "-inf")
            for option in (
                "--lr",
                "--weight-decay",
                "--warmup",
                "--layer-decay",
                "--temperature",
                "--ema",
            )
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(
    options: str, words: list[str], tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    refused(run("train", "--data", tiny_data, "--out", out, *options.split()), *words)
    assert not out.exists()


def test_a_run_folder_that_cannot_be_made_is_one_line(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run(
        "train", "--data", tiny_data, "--model", "gft_tiny", "--epochs", 1,
        "--out", tmp_path / "file" / "run",
    )  # fmt: skip
    refused(result, "file", exit_code=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--target coreml", ["'coreml'", "onnx, openvino, tensorrt"]),
        ("--target onnx --int8", ["--calibration-data"]),
        ("--target onnx --precision bf16", ["onnx", "fp32, fp16, int8"]),
        ("--target trt --precision bf16", ["tensorrt", "fp32, fp16"]),
        ("--target trt --precision auto", ["tensorrt"]),
        ("--target onnx --opset 9", ["--opset", "9", "18 to 20"]),
        ("--target onnx --batch 0", ["--batch", "0"]),
        ("--target onnx --compress-weights", ["--target openvino"]),
        ("--target onnx --split train", ["train/", "test"]),
    ],
)
def test_exports_that_cannot_be_done_are_refused(
    options: str, words: list[str], micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    given = ("export", micro_run, "--out", out, "--data", micro_data)
    refused(run(*given, *options.split()), *words)
    assert not out.exists()


def test_references_that_do_not_fit_are_refused(
    micro_run: Path, micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path
) -> None:
    bundle, other = micro_bundles["onnx"], tmp_path / "other"
    refused(run("verify", bundle, "--reference", micro_run), "--data")
    refused(run("verify", tmp_path), str(tmp_path))
    refused(run("export", tmp_path, "--target", "onnx", "--out", other), str(tmp_path))
    given = ("verify", bundle, "--data", micro_data, "--reference")
    refused(run(*given, other), str(other))
    refused(run(*given, tmp_path), str(tmp_path), "model.json", "manifest.json")
    shutil.copytree(micro_run, other)
    spec = json.loads((other / "model.json").read_text())
    spec["labels"][0] = "pear"
    (other / "model.json").write_text(json.dumps(spec))
    refused(run(*given, other), f"{other} has other labels than {bundle}")
    shutil.rmtree(other)
    shutil.copytree(bundle, other)
    manifest = read_manifest(other)
    model = dataclasses.replace(manifest.model, patch_grid=(4, 16))
    write_manifest(other, dataclasses.replace(manifest, model=model))
    refused(run(*given, other), f"{other} has other patch_grid than {bundle}")


def test_a_bundle_needs_images_to_be_evaluated_on(micro_bundles: dict[str, Path]) -> None:
    refused(run("evaluate", micro_bundles["onnx"]), "--data")
