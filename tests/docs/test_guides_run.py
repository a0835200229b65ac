"""The guides in docs/: each of their commands that runs without a board, as it stands."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from tests.support.guides import JETSON, PI, Guide, is_on_device, is_run
from tests.support.paths import ROOT
from tests.support.sources import copy_sources

# Those that compute with an engine. Without a GPU they must name the way out, which is then taken.
ON_THE_CPU = {
    "gft-edge verify ": "--backend onnx",
    "gft-edge predict ": "--backend onnx",
    "gft-edge profile ": "--backend onnx",
}
# What is added so that it does not take its minute here.
SHORTER = {"gft-edge profile ": " --duration 0.2 --min-samples 20"}


@pytest.fixture(scope="module")
def workstation(
    tmp_path_factory: pytest.TempPathFactory, calm_run: Path, micro_pictures: Path
) -> Path:
    """A clone with runs/grocery and grocery/, after the workstation's commands."""
    reason = "tensorrt_rtx cannot be imported here: its wheels are for x86-64"
    pytest.importorskip("tensorrt_rtx", reason=reason, exc_type=ImportError)
    if int(metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools here is older than pyproject.toml asks for, and no index is asked")
    folder = copy_sources(tmp_path_factory.mktemp("workstation"))
    shutil.copytree(calm_run, folder / "runs" / "grocery")
    shutil.copytree(micro_pictures, folder / "grocery")
    # pip's way to say --no-build-isolation: an isolated build fetches setuptools.
    given = {"PYTHONPATH": str(ROOT), "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}
    typed = [
        (guide, command) for guide in (JETSON, PI) for command in guide.commands("workstation")
    ]
    for guide, command in typed:
        if is_run(guide, "workstation", command):
            done = execute(shortened(command), folder, given)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return folder


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_needs_what_the_guide_says(workstation: Path) -> None:
    (wheel,) = (workstation / "dist").glob("gft_edge-*-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith(".py")}
        (about,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        lines = archive.read(about).decode().splitlines()
    # The two symlinks show export/ and calibration/ as parts of gft_edge/.
    modules = [
        path.relative_to(ROOT).as_posix()
        for folder in ("gft_edge", "gft_edge/export", "gft_edge/calibration")
        for path in (ROOT / folder).glob("*.py" if folder != "gft_edge" else "**/*.py")
    ]
    assert packed == set(modules)
    needed = [
        line.removeprefix("Requires-Dist: ")
        for line in lines
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    names = {re.split(r"[<>=]", text)[0] for text in needed}
    assert names == {"numpy", "pillow", "click", "rich", "psutil"}


@pytest.mark.slow
def test_the_commands_for_a_jetson_run(workstation: Path, tmp_path: Path) -> None:
    board, printed = followed(JETSON, workstation, tmp_path)
    (engine,) = (text for command, text in printed.items() if command.startswith("ENGINE="))
    assert (board / engine).is_file()
    rows = (board / "predictions.jsonl").read_text().splitlines()
    assert len(rows) == len(list((board / "photos").rglob("*.png")))
    assert {len(json.loads(row)["predictions"]) for row in rows} == {4}
    report = json.loads((board / "orin.json").read_text())
    assert report["inputs"]["kind"] == "encoded images"
    assert report["reports"][0]["layers"]["parts"]
    (paid,) = (
        text for command, text in printed.items() if "--baseline bundles/dense-trt" in command
    )
    assert "selection against deit_tiny_patch16_224" in paid


@pytest.mark.slow
def test_the_commands_for_a_raspberry_pi_run(workstation: Path, tmp_path: Path) -> None:
    board, _ = followed(PI, workstation, tmp_path)
    report = json.loads((board / "pi.json").read_text())
    assert [each["precision"] for each in report["reports"]] == ["fp32", "int8"]


def followed(guide: Guide, workstation: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Run the commands of the board, and those of --on there: the board's folder, and what each printed.

    They run in a venv that holds the guide's wheel; numpy and the like come from this Python's packages.
    """
    board = tmp_path / "board"
    board.mkdir()
    for name in ("dist", "bundles", "grocery"):
        shutil.copytree(workstation / name, board / name)
    shutil.copytree(workstation / "grocery" / "test", board / "photos")
    photo = min((board / "photos").rglob("*.png"))
    shutil.copyfile(photo, board / "photo.jpg")

    venv = board / "gft" / "bin"
    offline = {"HOME": str(board), "PIP_NO_INDEX": "1"}
    # pip must not take these packages for those of the venv.
    packages = {"PYTHONPATH": str(Path(np.__file__).parent.parent)}
    remote = [c for c in guide.commands("workstation") if is_on_device(c)]
    typed = [
        *(command for command in guide.commands("board") if not command.startswith("gft-edge ")),
        # What they do there is what they do without --on.
        *(re.sub(r" --on \S+", "", command) for command in remote),
        *(command for command in guide.commands("board") if command.startswith("gft-edge ")),
    ]
    # The engine is there when all is built.
    typed.sort(key=lambda command: command.startswith("ENGINE="))
    printed: dict[str, str] = {}
    for command in typed:
        line, given = command, offline
        if command.startswith("pip install "):
            line = "pip install --no-deps dist/gft_edge-*.whl"
        elif not is_run(guide, "board", command):
            continue
        elif command.startswith("ENGINE="):
            line = f'{command}\nprintf %s "$ENGINE"'
        elif command.startswith("gft-edge "):
            given = {**offline, **packages}
        line = shortened(line)
        done = execute(line, board, given, venv)
        on_the_cpu = [text for start, text in ON_THE_CPU.items() if command.startswith(start)]
        if done.returncode and on_the_cpu and guide == JETSON:
            assert "ONNX Runtime runs the graph on a CPU: --backend onnx" in done.stderr, (
                done.stderr
            )
            done = execute(f"{line} {on_the_cpu[0]}", board, given, venv)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        printed[command] = done.stdout
    # It was the wheel's code that ran, not this tree's.
    code = "import gft_edge, gft_edge.export; print(gft_edge.__file__, gft_edge.export.__file__)"
    done = execute(f"python -c '{code}'", board, packages, venv)
    assert [Path(text).is_relative_to(board / "gft") for text in done.stdout.split()] == [True] * 2
    return board, printed


def shortened(command: str) -> str:
    """As it stands, but for what would only take longer."""
    return command + "".join(more for start, more in SHORTER.items() if command.startswith(start))


def execute(
    command: str, folder: Path, environment: dict[str, str], programs: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A line in a shell; `programs` come before those of this Python, which come before the rest."""
    first = [str(programs)] if programs else []
    path = [*first, str(Path(sys.executable).parent), os.environ["PATH"]]
    rest = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env={**rest, **environment, "PATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
