"""The README's commands, run as they stand on a small data set of the same layout."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm

from gft_edge.demo.drawings import write_drawings

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str, heading: str) -> list[str]:
    """The fenced blocks of a language under a second-level heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """grocery/, deit_tiny.safetensors and photo.jpg, as the README names them."""
    folder = tmp_path_factory.mktemp("readme")
    counts = {"train": 4, "val": 1, "test": 1}
    write_drawings(folder / "grocery", counts, size_px=64, seed=0)
    model = timm.create_model("deit_tiny_patch16_224")
    safetensors.torch.save_file(model.state_dict(), folder / "deit_tiny.safetensors")
    photo = next((folder / "grocery" / "test").rglob("*.png"))
    (folder / "photo.jpg").write_bytes(photo.read_bytes())
    return folder


def test_the_commands_for_real_photographs_and_the_device_code_run(folder: Path) -> None:
    (shell,) = blocks("sh", "Real photographs")
    commands = [line for line in shell.splitlines() if not line.startswith("pip ")]
    assert [shlex.split(line)[1] for line in commands] == [
        "train", "evaluate", "export", "verify", "predict",
    ]  # fmt: skip
    for command in commands:
        execute(command, folder)
    (code,) = blocks("python", "On the device")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_the_commands_for_lower_precision_run(
    tmp_path: Path, calm_run: Path, micro_pictures: Path
) -> None:
    shutil.copytree(calm_run, tmp_path / "runs" / "grocery")
    shutil.copytree(micro_pictures, tmp_path / "grocery")
    (shell,) = blocks("sh", "Lower precision")
    commands = shell.splitlines()
    assert [shlex.split(line)[1] for line in commands] == [
        "export", "compare", "sensitivity", "export", "export",
    ]  # fmt: skip
    for command in commands:
        execute(command, tmp_path)
    assert (tmp_path / "pictures" / "compare.png").is_file()
    assert (tmp_path / "sensitivity.png").is_file()


def test_the_commands_for_tensorrt_run(
    tmp_path: Path, calm_run: Path, micro_pictures: Path
) -> None:
    pytest.importorskip(
        "tensorrt_rtx", reason="tensorrt_rtx cannot be imported here", exc_type=ImportError
    )
    shutil.copytree(calm_run, tmp_path / "runs" / "grocery")
    shutil.copytree(micro_pictures, tmp_path / "grocery")
    (shell,) = blocks("sh", "TensorRT and Jetson")
    commands = shell.splitlines()
    assert [shlex.split(line)[1] for line in commands] == ["export", "inspect", "build"]
    for command in commands:
        execute(command, tmp_path)
    assert list((tmp_path / "bundles" / "grocery-trt" / "engines").glob("*/model.engine"))


def test_the_commands_for_latency_run(
    tmp_path: Path, calm_run: Path, micro_pictures: Path, micro_bundles: dict[str, Path]
) -> None:
    shutil.copytree(calm_run, tmp_path / "runs" / "grocery")
    shutil.copytree(micro_pictures, tmp_path / "grocery")
    shutil.copytree(micro_bundles["openvino"], tmp_path / "bundles" / "grocery")
    shutil.copytree(micro_bundles["onnx"], tmp_path / "bundles" / "grocery-int8")
    (shell,) = blocks("sh", "Latency on the device")
    commands = shell.splitlines()
    assert [shlex.split(line)[1] for line in commands] == [
        "profile", "profile", "profile", "benchmark",
    ]  # fmt: skip
    for command in commands:
        measures = "--load" not in command
        # As it stands, but for what would only take longer.
        execute(command + " --duration 0.2 --min-samples 20" * measures, tmp_path)
        if not (tmp_path / "orin.json").exists():
            shutil.copyfile(tmp_path / "profile.json", tmp_path / "orin.json")
    assert "pays" in (tmp_path / "profile.html").read_text(encoding="utf-8")


def execute(command: str, folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        shlex.split(command, comments=True), cwd=folder, env={**os.environ, "PATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
