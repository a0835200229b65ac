"""Loading, predicting and exporting write nothing below the home folder and look up no host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Hosts that are looked up and connections of Python's go to stdout; other ones would leave files.
WATCHED = """
import json, sys
calls = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        calls.append(f"{event} {arguments}")
sys.addaudithook(watch)
import gft_edge
"""

PREDICTS = """
*bundles, image = sys.argv[1:]
for bundle in bundles:
    with gft_edge.Classifier.load(bundle) as classifier:
        classifier.predict(image)
print(json.dumps(calls))
"""

EXPORTS = """
from pathlib import Path
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.datasets import read_split
from gft_edge.export.request import CalibrationRequest, ExportRequest
from gft_edge.model.checkpoint import load_run

run, data, out = map(Path, sys.argv[1:])
spec, model = load_run(run)
images = draw_image_set(read_split(data, "val"), 256, seed=0)
calibration = CalibrationRequest(draw_image_set(read_split(data, "train"), 256, seed=0))
gft_edge.export(model, spec, images, ExportRequest("onnx"), out / "onnx")
gft_edge.export(model, spec, images, ExportRequest("openvino", "int8", calibration=calibration,
                fidelity="strict"), out / "openvino")
print(json.dumps(calls))
"""


def watched(code: str, home: Path, *arguments: object, **variables: str) -> Any:
    """What a process that has `home` tells of its connections; it prints nothing else."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "CI"))
    }
    done = subprocess.run(
        [sys.executable, "-c", WATCHED + code, *map(str, arguments)],
        env={**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize(
    "home", ["home", "absent", "/proc"]
)  # empty, none, and one that root cannot write
def test_a_prediction_leaves_nothing_and_calls_nobody(
    micro_bundles: dict[str, Path], micro_data: Path, tmp_path: Path, home: str
) -> None:
    (tmp_path / "home").mkdir()
    image = micro_data / "test" / "apple" / "0.png"
    given = (micro_bundles["onnx"], micro_bundles["openvino"], image)
    assert watched(PREDICTS, tmp_path / home, *given) == ([], "")
    assert [path.name for path in tmp_path.rglob("*")] == ["home"]


@pytest.mark.slow
def test_exports_for_both_engines_leave_what_they_remember_alone_and_call_nobody(
    calm_run: Path, micro_pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "out").mkdir()
    calls, _ = watched(EXPORTS, tmp_path / "home", calm_run, micro_pictures, tmp_path / "out")
    assert calls == []
    files = [path for path in (tmp_path / "home").rglob("*") if not path.is_dir()]
    remembered = tmp_path / "home" / ".cache" / "gft-edge" / "references"
    assert {path.parent for path in files} <= {remembered}


def test_a_user_who_has_decided_is_left_alone(tmp_path: Path) -> None:
    code = """
import os
known = sys.modules.get("openvino_telemetry", "not imported") is not None
print(json.dumps([os.environ["ORT_DISABLE_TELEMETRY"], known]))
"""
    assert watched(code, tmp_path)[0] == ["1", False]
    (tmp_path / "intel").mkdir()
    (tmp_path / "intel" / "openvino_telemetry").write_text("1")
    assert watched(code, tmp_path, ORT_DISABLE_TELEMETRY="0")[0] == ["0", True]
    (tmp_path / "intel" / "openvino_telemetry").write_text("0")
    assert watched(code, tmp_path)[0] == ["1", False]
