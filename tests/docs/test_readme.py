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
import torch
from PIL import Image

from gft_edge.cli import main
from gft_edge.datasets.drawings import write_drawings
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, heading: str) -> list[str]:
    """The fenced blocks of a language under a second-level heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


GUIDES = ("README.md", "docs/jetson.md", "docs/selection.md", "docs/weights.md")
COMMANDS = sorted(
    {
        line
        for guide in GUIDES
        for block in re.findall(r"```sh\n(.*?)```", (ROOT / guide).read_text("utf-8"), re.DOTALL)
        for line in block.replace("accelerate launch -m gft_edge", "gft-edge").splitlines()
        if line.startswith("gft-edge ")
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_that_a_guide_shows_has_the_options_it_is_given(line: str) -> None:
    """Parsed as the command line does; they are executed by the slow tests."""
    _, name, *arguments = shlex.split(line, comments=True)
    main.commands[name].make_context(name, arguments).close()


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


@pytest.mark.slow
def test_the_commands_for_real_photographs_and_the_device_code_run(folder: Path) -> None:
    (shell,) = blocks("sh", "Real photographs")
    commands = [line for line in shell.splitlines() if not line.startswith("pip ")]
    assert [shlex.split(line)[1] for line in commands] == [
        "train", "train", "evaluate", "export", "verify", "predict",
    ]  # fmt: skip
    for command in commands:
        execute(command, folder)
    (code,) = blocks("python", "On the device")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.slow
def test_the_functions_behind_the_commands_run_from_python(folder: Path) -> None:
    (code,) = blocks("python", "From Python")
    # As it stands, but for what would only take longer.
    for asked, quicker in (
        ("DEFAULT, amp", "DEFAULT.__class__(epochs=1, batch_size=8), amp"),
        ("((bundle,))", "((bundle,), duration_s=0.2, min_samples=20)"),
        ('("fp32",))', '("fp32",), duration_s=0.2, min_samples=20)'),
    ):
        assert asked in code
        code = code.replace(asked, quicker)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    label, rows, stable = done.stdout.rsplit(maxsplit=2)
    assert (folder / "grocery" / "test" / label).is_dir()
    assert (int(rows) > 0, stable in ("True", "False")) == (True, True)


@pytest.mark.slow
def test_the_commands_for_lower_precision_run(
    tmp_path: Path, calm_run: Path, micro_pictures: Path
) -> None:
    shutil.copytree(calm_run, tmp_path / "runs" / "grocery")
    shutil.copytree(micro_pictures, tmp_path / "grocery")
    (shell,) = blocks("sh", "Lower precision")
    commands = shell.splitlines()
    assert [shlex.split(line)[1] for line in commands] == [
        "export", "verify", "sensitivity", "export", "export",
    ]  # fmt: skip
    for command in commands:
        execute(command, tmp_path)
    assert (tmp_path / "pictures" / "compare.png").is_file()
    assert (tmp_path / "sensitivity.png").is_file()


@pytest.mark.slow
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


@pytest.mark.slow
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
        "profile", "profile", "report", "report", "benchmark",
    ]  # fmt: skip
    for command in commands:
        measures = shlex.split(command)[1] != "report"
        # As it stands, but for what would only take longer.
        execute(command + " --duration 0.2 --min-samples 20" * measures, tmp_path)
        if not (tmp_path / "orin.json").exists():
            shutil.copyfile(tmp_path / "profile.json", tmp_path / "orin.json")
    assert "pays" in (tmp_path / "profile.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_commands_for_scores_and_a_teacher_run(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "grocery", tmp_path / "grocery")
    shutil.copy(folder / "deit_tiny.safetensors", tmp_path)
    execute(blocks("sh", "Real photographs")[0].splitlines()[1] + " --epochs 1", tmp_path)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    commands = [line for shell in blocks("sh", "Networks") for line in shell.splitlines()]
    script = "benchmarks/ablation.py"
    words = [shlex.split(line)[1] for line in commands]
    assert words == [script, "benchmark", script, script]
    for command, word in zip(commands, words, strict=True):
        # As it stands, but for what would only take longer.
        shorter = " --seeds 1 --vary epochs=1 --vary batch_size=4" * (word == script)
        execute(command + shorter, tmp_path)
    assert (tmp_path / "taught" / "ablation.md").is_file()


@pytest.mark.slow
def test_the_commands_for_the_papers_experiments_run(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "deit_tiny.safetensors", tmp_path)
    shutil.copy(folder / "photo.jpg", tmp_path)
    write_aircraft(tmp_path / "aircraft" / "data", folder / "grocery")
    torch.save(published_weights(), tmp_path / "best_gft_aircraft.pth")
    (shell,) = blocks("sh", "The paper's experiments")
    commands = shell.splitlines()
    words = [
        shlex.split(line.replace("accelerate launch -m gft_edge", "gft-edge"))[1]
        for line in commands
    ]
    assert words == [
        "train", "train", "train", "export", "evaluate", "report", "explain", "explain", "import",
    ]  # fmt: skip
    for command, word in zip(commands, words, strict=True):
        shorter = {"train": " --epochs 1 --batch-size 4", "explain": " --limit 2"}
        # As it stands, but for what would only take longer.
        execute(command + shorter.get(word, ""), tmp_path)
    assert {path.name for path in (tmp_path / "plots").iterdir()} >= {
        "curves.png", "gradients.png", "confusion.png",
    }  # fmt: skip
    assert list((tmp_path / "looks").glob("*.png"))
    assert (tmp_path / "runs" / "published" / "model.safetensors").is_file()


def write_aircraft(folder: Path, drawings: Path) -> None:
    """FGVC-Aircraft's layout with three variants, from drawings of them."""
    (folder / "images").mkdir(parents=True)
    variants = sorted(path.name for path in (drawings / "train").iterdir())[:3]
    (folder / "variants.txt").write_text("".join(f"{name}\n" for name in variants))
    for split in ("train", "val", "test"):
        lines: list[str] = []
        for name in variants:
            for number, path in enumerate(sorted((drawings / split / name).iterdir())):
                image = f"{split}{len(lines)}{number}"
                Image.open(path).convert("RGB").save(folder / "images" / f"{image}.jpg")
                lines.append(f"{image} {name}\n")
        (folder / f"images_variant_{split}.txt").write_text("".join(lines))


def published_weights() -> dict[str, torch.Tensor]:
    """The names and shapes that the published scripts save, at ViT-tiny's width."""
    base = timm.create_model("vit_tiny_patch16_224")
    weights = {f"base_model.{name}": tensor for name, tensor in base.state_dict().items()}
    for stage, tokens in enumerate((196, 147, 98)):
        name = f"hierarchical_blocks.{stage}"
        weights |= {
            f"{name}.qkv.weight": torch.zeros(3 * 192, 192),
            f"{name}.proj.weight": torch.zeros(192, 192),
            f"{name}.proj.bias": torch.zeros(192),
            f"{name}.smooth.weight": torch.ones(1, 1, 3),
            f"{name}.ema_grad": torch.zeros(16, tokens),
        }
    classifier = torch.nn.Linear(192, 3)
    return {
        **weights,
        "classifier.weight": classifier.weight.detach(),
        "classifier.bias": classifier.bias.detach(),
    }


def execute(command: str, folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        shlex.split(command, comments=True), cwd=folder, env={**os.environ, "PATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
