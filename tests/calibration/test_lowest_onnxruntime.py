"""The integer kernels once more, on the lowest ONNX Runtime that the project allows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TESTS = ROOT / "tests" / "calibration" / "test_integer_kernels.py"


def lowest() -> str:
    found = re.search(r"onnxruntime>=([\d.]+),", (ROOT / "pyproject.toml").read_text("utf-8"))
    assert found
    return found[1]


@pytest.mark.slow
@pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="the lowest ONNX Runtime has no wheel for this Python"
)
def test_every_quantized_layer_is_an_integer_kernel_there_too(tmp_path: Path) -> None:
    version, library = lowest(), tmp_path / "library"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(library),
         f"onnxruntime=={version}"],
        check=True,
    )  # fmt: skip
    before_all = {**os.environ, "PYTHONPATH": os.pathsep.join([str(library), str(ROOT)])}
    which = subprocess.run(
        [sys.executable, "-c", "import onnxruntime; print(onnxruntime.__version__)"],
        env=before_all, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert which.stdout.strip() == version
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS)],
        env=before_all, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
