"""docs/jetson.md: each of its commands that runs without a Jetson, as it stands."""

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
from types import SimpleNamespace

import numpy as np
import pytest

from gft_edge.bundle.manifest import EngineSettings
from gft_edge.errors import UsageError
from gft_edge.nvidia.cuda import Gpu
from gft_edge.nvidia.engines import Host, engine_for, engine_of, fingerprint
from gft_edge.nvidia.library import Library
from tests.support.paths import ROOT

GUIDE = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")

# All that is not run here. A command of the guide that is neither here nor of a kind in RUN fails.
NEEDS_A_JETSON = (
    "cat /etc/nv_tegra_release",
    "sudo apt update",
    "sudo apt install nvidia-jetpack python3-venv",
    "python -c 'import tensorrt; print(tensorrt.__version__)'",
    "grep POWER_MODEL /etc/nvpmodel.conf",
    "sudo nvpmodel -m 0",
    "sudo nvpmodel -q",
    "sudo jetson_clocks --store clocks.before",
    "sudo jetson_clocks",
    "sudo jetson_clocks --show",
    "sudo jetson_clocks --restore clocks.before",
    'sh bundles/grocery-trt/golden/check.sh "$ENGINE"',
    '/usr/src/tensorrt/bin/trtexec --loadEngine="$ENGINE" --warmUp=500 --duration=10 --useCudaGraph '
    "--useSpinWait",
    "sudo systemctl set-default multi-user.target",
    "sudo fallocate -l 8G /mnt/8GB.swap",
    "sudo chmod 600 /mnt/8GB.swap",
    "sudo mkswap /mnt/8GB.swap",
    "sudo swapon /mnt/8GB.swap",
)
NEEDS_A_NETWORK = (
    "scp -r dist bundles jetson:",
    "pip install 'numpy<2' dist/gft_edge-*.whl",
)
# Needs OpenCV and a camera: compiled, not run.
NEEDS_A_CAMERA = "cv2.VideoCapture"

# How the commands begin that are run.
RUN = {
    "workstation": ("gft-edge ", "pip wheel --no-deps "),
    "board": (
        "gft-edge ",
        "python3 -m venv ",
        ". ~/gft/bin/activate",
        "ENGINE=",
        "pip install --force-reinstall --no-deps ",
    ),
}
# Those that compute with an engine. Without a GPU they must name the way out, which is then taken.
ON_THE_CPU = {
    "gft-edge verify ": "--backend onnx",
    "gft-edge predict ": "--backend onnx",
    "gft-edge profile ": "--backend onnx",
}
# What is added so that it does not take its minute here.
SHORTER = {"gft-edge profile ": " --duration 0.2 --min-samples 20"}

# The project as a clone has it, but for what no wheel holds.
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "gft_edge", "export", "calibration")


def blocks(language: str) -> list[tuple[str, str]]:
    """(what follows the language, content) of each fenced block."""
    return re.findall(rf"^```{language}\b ?(.*)\n((?s:.*?))^```$", GUIDE, flags=re.MULTILINE)


def commands(where: str) -> list[str]:
    return [line for place, text in blocks("sh") if place == where for line in text.splitlines()]


def is_run(where: str, command: str) -> bool:
    return command.startswith(RUN[where])


def test_every_block_says_where_it_belongs_and_is_shell() -> None:
    assert {place for place, _ in blocks("sh")} == {"workstation", "board"}
    for _, text in blocks("sh"):
        done = subprocess.run(["sh", "-n"], input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), text
        assert "\\\n" not in text  # one command a line
    assert len(re.findall("^```", GUIDE, flags=re.MULTILINE)) == 2 * sum(
        len(blocks(language)) for language in ("sh", "python", "text")
    )


def test_every_command_is_run_or_listed_as_one_that_needs_more() -> None:
    listed = (*NEEDS_A_JETSON, *NEEDS_A_NETWORK)
    found = [(where, command) for where in RUN for command in commands(where)]
    unknown = [command for where, command in found if not is_run(where, command)]
    assert sorted(unknown) == sorted(listed)


def test_the_python_of_the_guide_compiles() -> None:
    names = [name for name, _ in blocks("python")]
    assert names == [""]
    for _, text in blocks("python"):
        compile(text, "camera", "exec")
        assert NEEDS_A_CAMERA in text


def test_the_readme_names_the_guide() -> None:
    assert "(docs/jetson.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_the_guide_says_after_an_update_is_what_is_said() -> None:
    """An Orin went from JetPack 6.2 to 7.2."""
    orin = Gpu("Orin", "8.7", integrated=True, multiprocessors=8)
    before = Host("linux-aarch64", orin, "12.6", None, "R36.4.3")
    after = Host("linux-aarch64", orin, "13.2", None, "R39.2.0")
    old, new = (
        Library(SimpleNamespace(__version__=version), "tensorrt")
        for version in ("10.3.0", "10.16.1.11")
    )
    settings = EngineSettings("tensorrt")
    path = f"engines/{fingerprint(settings, old, before)}/model.engine"
    engine = engine_of(
        old, before, settings, path=path, sha256="", graph_sha256="graph", outputs=("logits",),
        flags=("STRONGLY_TYPED",), timing_cache=None, build_seconds=60,
    )  # fmt: skip
    with pytest.raises(UsageError) as raised:
        engine_for(Path("bundles/grocery-trt"), [engine], "graph", ("logits",), [new], after)
    ((_, quoted),) = blocks("text")
    assert str(raised.value) == quoted.strip()


@pytest.fixture(scope="module")
def workstation(
    tmp_path_factory: pytest.TempPathFactory, calm_run: Path, micro_pictures: Path
) -> Path:
    """A clone with runs/grocery and grocery/, after the workstation's commands."""
    reason = "tensorrt_rtx cannot be imported here: its wheels are for x86-64"
    pytest.importorskip("tensorrt_rtx", reason=reason, exc_type=ImportError)
    if int(metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools here is older than pyproject.toml asks for, and no index is asked")
    folder = tmp_path_factory.mktemp("workstation")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=unwanted)
        else:
            shutil.copyfile(ROOT / name, folder / name)
    shutil.copytree(calm_run, folder / "runs" / "grocery")
    shutil.copytree(micro_pictures, folder / "grocery")
    # pip's way to say --no-build-isolation: an isolated build fetches setuptools.
    given = {"PYTHONPATH": str(ROOT), "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}
    for command in commands("workstation"):
        if is_run("workstation", command):
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
def test_the_commands_of_the_board_run(workstation: Path, tmp_path: Path) -> None:
    """In a venv that holds the guide's wheel; numpy and the like come from this Python's packages."""
    board = tmp_path / "board"
    board.mkdir()
    # As scp copies them, with a photograph and a folder of them.
    for name in ("dist", "bundles"):
        shutil.copytree(workstation / name, board / name)
    shutil.copytree(workstation / "grocery" / "test", board / "photos")
    photo = min((board / "photos").rglob("*.png"))
    shutil.copyfile(photo, board / "photo.jpg")

    venv = board / "gft" / "bin"
    offline = {"HOME": str(board), "PIP_NO_INDEX": "1"}
    # pip must not take these packages for those of the venv.
    packages = {"PYTHONPATH": str(Path(np.__file__).parent.parent)}
    printed: dict[str, str] = {}
    for command in commands("board"):
        line, given = command, offline
        if command == NEEDS_A_NETWORK[1]:
            line = "pip install --no-deps dist/gft_edge-*.whl"
        elif not is_run("board", command):
            continue
        elif command.startswith("ENGINE="):
            line = f'{command}\nprintf %s "$ENGINE"'
        elif command.startswith(("gft-edge ", "python ")):
            given = {**offline, **packages}
        line = shortened(line)
        done = execute(line, board, given, venv)
        on_the_cpu = [text for start, text in ON_THE_CPU.items() if command.startswith(start)]
        if done.returncode and on_the_cpu:
            assert "ONNX Runtime runs the graph on a CPU: --backend onnx" in done.stderr, (
                done.stderr
            )
            done = execute(f"{line} {on_the_cpu[0]}", board, given, venv)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        printed[command] = done.stdout

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
    # It was the wheel's code that ran, not this tree's.
    code = "import gft_edge, gft_edge.export; print(gft_edge.__file__, gft_edge.export.__file__)"
    done = execute(f"python -c '{code}'", board, packages, venv)
    assert [Path(text).is_relative_to(board / "gft") for text in done.stdout.split()] == [True] * 2


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
