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

from gft_edge.cli import main
from gft_edge.datasets.drawings import write_drawings
from tests.support.data_sets import make_aircraft
from tests.support.paths import ROOT
from tests.support.pictures import write_smooth
from tests.support.published import published
from tests.support.runs import trained_on
from tests.support.videos import numbered, write_video

README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, heading: str) -> str:
    """The fenced blocks of a language under a second-level heading, one after the other."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return "".join(re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL))


def commands(heading: str, *expected: str) -> list[str]:
    """The lines of shell under a heading, which call these commands of gft-edge, or scripts."""
    lines = [line for line in block("sh", heading).splitlines() if not line.startswith("pip ")]
    assert [word_of(line) for line in lines] == [*expected]
    return lines


def word_of(line: str) -> str:
    """`train` of `gft-edge train ...`."""
    return shlex.split(line.replace("accelerate launch -m gft_edge", "gft-edge"))[1]


GUIDES = ("README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))))
COMMANDS = sorted(
    {
        line
        for guide in GUIDES
        for block in re.findall(
            r"```sh[^\n]*\n(.*?)```", (ROOT / guide).read_text("utf-8"), re.DOTALL
        )
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


@pytest.fixture
def quantizable(tmp_path: Path, calm_run: Path, micro_pictures: Path) -> Path:
    """A folder with runs/grocery and grocery/, a run that an export in INT8 or FP16 keeps whole."""
    run, data = tmp_path / "runs" / "grocery", tmp_path / "grocery"
    shutil.copytree(calm_run, run)
    shutil.copytree(micro_pictures, data)
    trained_on(run, data)
    return tmp_path


@pytest.mark.slow
def test_the_commands_for_real_photographs_and_the_device_code_run(folder: Path) -> None:
    named = ("train", "train", "evaluate", "export", "verify", "predict")
    for command in commands("Real photographs", *named):
        execute(command, folder)
    assert len(python(block("python", "On the device"), folder).splitlines()) == 3


@pytest.mark.slow
def test_the_commands_and_the_code_for_videos_run(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(micro_bundles["openvino"], tmp_path / "bundles" / "grocery")
    write_video(tmp_path / "clip.mp4", numbered(10))
    # The second has cameras.
    execute(commands("Video and cameras", "predict", "predict")[0], tmp_path)
    assert (tmp_path / "seen.mp4").stat().st_size > 1000
    guide = (ROOT / "docs" / "video.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    assert len(python(code, tmp_path).splitlines()) == 2


@pytest.mark.slow
def test_the_commands_for_none_of_these_run(
    micro_bundles: dict[str, Path], quantizable: Path
) -> None:
    shutil.copytree(micro_bundles["onnx"], quantizable / "bundles" / "grocery")
    write_smooth(quantizable / "clothing", ("dress", "hat"), 4)
    photo = next((quantizable / "grocery" / "test").rglob("*.png"))
    shutil.copy(photo, quantizable / "photo.jpg")
    for command in commands("None of these", "evaluate", "export", "predict"):
        execute(command, quantizable)


@pytest.mark.slow
def test_the_functions_behind_the_commands_run_from_python(folder: Path) -> None:
    code = block("python", "From Python")
    # As it stands, but for what would only take longer.
    for asked, quicker in (
        ("DEFAULT, amp", "DEFAULT.__class__(epochs=1, batch_size=8), amp"),
        ("((bundle,))", "((bundle,), duration_s=0.2, min_samples=20)"),
        ('("fp32",))', '("fp32",), duration_s=0.2, min_samples=20)'),
    ):
        assert asked in code
        code = code.replace(asked, quicker)
    label, rows, stable = python(code, folder).rsplit(maxsplit=2)
    assert (folder / "grocery" / "test" / label).is_dir()
    assert (int(rows) > 0, stable in ("True", "False")) == (True, True)


@pytest.mark.slow
def test_the_commands_for_lower_precision_run(quantizable: Path) -> None:
    named = ("export", "verify", "sensitivity", "export", "export")
    for command in commands("Lower precision", *named):
        execute(command, quantizable)
    assert (quantizable / "pictures" / "compare.png").is_file()
    assert (quantizable / "sensitivity.png").is_file()


@pytest.mark.slow
def test_the_commands_for_tensorrt_run(rtx: object, quantizable: Path) -> None:
    for command in commands("TensorRT and Jetson", "export", "inspect", "build"):
        execute(command, quantizable)
    assert list((quantizable / "bundles" / "grocery-trt" / "engines").glob("*/model.engine"))


@pytest.mark.slow
def test_the_commands_for_latency_run(quantizable: Path, micro_bundles: dict[str, Path]) -> None:
    shutil.copytree(micro_bundles["openvino"], quantizable / "bundles" / "grocery")
    shutil.copytree(micro_bundles["onnx"], quantizable / "bundles" / "grocery-int8")
    named = ("profile", "profile", "report", "report", "benchmark")
    for command in commands("Latency on the device", *named):
        # As it stands, but for what would only take longer.
        execute(command + " --duration 0.2 --min-samples 20" * (word_of(command) != "report"),
                quantizable)  # fmt: skip
        if not (quantizable / "orin.json").exists():
            shutil.copyfile(quantizable / "profile.json", quantizable / "orin.json")
    assert "pays" in (quantizable / "profile.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_commands_for_scores_and_a_teacher_run(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "grocery", tmp_path / "grocery")
    shutil.copy(folder / "deit_tiny.safetensors", tmp_path)
    execute(block("sh", "Real photographs").splitlines()[1] + " --epochs 1", tmp_path)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    script = "benchmarks/ablation.py"
    for command in commands("Networks", script, "benchmark", script, script):
        # As it stands, but for what would only take longer.
        shorter = " --seeds 1 --vary epochs=1 --vary batch_size=4" * (word_of(command) == script)
        execute(command + shorter, tmp_path)
    assert (tmp_path / "taught" / "ablation.md").is_file()


@pytest.mark.slow
def test_the_commands_for_the_papers_experiments_run(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "deit_tiny.safetensors", tmp_path)
    shutil.copy(folder / "photo.jpg", tmp_path)
    (tmp_path / "aircraft").symlink_to(make_aircraft(tmp_path) / "fgvc-aircraft-2013b")
    torch.save(published(192).state_dict(), tmp_path / "best_gft_aircraft.pth")
    named = (
        "train",
        "train",
        "train",
        "export",
        "evaluate",
        "report",
        "explain",
        "explain",
        "import",
    )
    shorter = {"train": " --epochs 1 --batch-size 4", "explain": " --limit 2"}
    for command in commands("The paper's experiments", *named):
        # As it stands, but for what would only take longer.
        execute(command + shorter.get(word_of(command), ""), tmp_path)
    plots = {path.name for path in (tmp_path / "plots").iterdir()}
    assert plots >= {"curves.png", "gradients.png", "confusion.png"}
    assert list((tmp_path / "looks").glob("*.png"))
    assert (tmp_path / "runs" / "published" / "model.safetensors").is_file()


def execute(command: str, folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        shlex.split(command, comments=True), cwd=folder, env={**os.environ, "PATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def python(code: str, folder: Path) -> str:
    """What a program prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
