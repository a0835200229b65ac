"""The package index has wheels for the arm64 systems that the guides name, of every engine of the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gft_edge.remote.package import wheel_options
from tests.support.sources import built_wheel, last_line

pytestmark = pytest.mark.slow  # asks a package index, four times

# What a device of each system tells of itself.
SYSTEMS = {
    "JetPack 6": ((3, 10, 12), "2.35"),
    "Debian 12": ((3, 11, 2), "2.36"),
    "JetPack 7": ((3, 12, 3), "2.39"),
    "Debian 13": ((3, 13, 5), "2.41"),
}
JETPACK_5 = ((3, 8, 10), "2.31")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(tmp_path_factory.mktemp("wheel"))


def resolved(
    wheel: Path, system: tuple[tuple[int, int, int], str], extras: str, folder: Path
) -> subprocess.CompletedProcess[str]:
    """Let pip choose what it would install on an arm64 device, and write it to `folder`/report.json."""
    python, glibc = system
    facts = {"python": python, "glibc": glibc, "machine": "aarch64"}
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return subprocess.run(
        [*pip, "--dry-run", "--ignore-installed", "--report", folder / "report.json",
         "--target", folder / "never", *wheel_options(facts), f"{wheel}{extras}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
def test_gft_edge_and_both_engines_install_on_an_arm64_system(
    name: str, wheel: Path, tmp_path: Path
) -> None:
    """What installs together installs alone: both extras stand for the base and each of them."""
    done = resolved(wheel, SYSTEMS[name], "[onnx,openvino]", tmp_path)
    assert done.returncode == 0, last_line(done)
    chosen = json.loads((tmp_path / "report.json").read_bytes())["install"]
    files = {
        each["metadata"]["name"].lower(): each["download_info"]["url"].rpartition("/")[2]
        for each in chosen
    }
    assert {"gft-edge", "numpy", "pillow", "psutil", "onnxruntime", "openvino"} <= set(files)
    assert all(file.endswith(("aarch64.whl", "-none-any.whl")) for file in files.values()), files
    for engine in ("numpy", "onnxruntime", "openvino"):
        assert files[engine].endswith("aarch64.whl")


def test_jetpack_5_is_told_that_its_python_is_too_old(wheel: Path, tmp_path: Path) -> None:
    done = resolved(wheel, JETPACK_5, "", tmp_path)
    assert done.returncode == 1
    assert "3.8" in last_line(done)
    assert ">=3.10" in last_line(done)
