"""doctor outlives an engine whose library ends the process that loads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.mark.skipif(os.name != "posix", reason="signals that end a process are POSIX")
@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", ("SIGSEGV", "/sys/devices/system/cpu/offline")),
        ("os.kill(os.getpid(), signal.SIGILL)", ("SIGILL", "processor")),
        ("os.abort()", ("SIGABRT", "install")),
        ("os._exit(3)", ("exit code 3", "install")),
        ("os._exit(0)", ("exit code 0", "install")),
        ("raise OSError('libgomp.so.1: no such file')", ("libgomp.so.1", "install")),
    ],
)
def test_an_engine_that_ends_the_process_is_reported_with_its_signal_and_a_remedy(
    tmp_path: Path, ending: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "onnxruntime.py").write_text(f"import os, signal\n{ending}\n")
    done = subprocess.run(
        [sys.executable, "-m", "gft_edge", "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    engines = json.loads(done.stdout)["engines"]
    assert engines["onnx"]["version"] is None
    for word in words:
        assert word in engines["onnx"]["missing"]
    assert engines["openvino"]["version"].startswith("openvino ")
