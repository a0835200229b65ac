"""--device where precisions and variants are compared: what is judged and timed is on that device."""

from __future__ import annotations

from pathlib import Path

import pytest

from gft_edge.bundle.store import read_manifest
from tests.support.cli import run, run_json

pytestmark = pytest.mark.slow


def test_auto_judges_and_times_on_the_device_and_names_it(
    calm_run: Path, micro_pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    result = run(
        "export", calm_run, "--data", micro_pictures, "--target", "openvino", "--precision", "auto",
        "--device", "HETERO:CPU", "--subset-size", 32, "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    manifest = read_manifest(out)
    for candidate in manifest.candidates:
        assert candidate.machine.endswith("OpenVINO on HETERO:CPU")
    (kept,) = [each for each in manifest.candidates if each.reason.startswith("kept")]
    assert kept.precision == manifest.precision
    assert kept.median_ms is not None


def test_a_benchmark_remembers_what_it_measured_by_the_device(
    calm_run: Path, micro_pictures: Path, tmp_path: Path
) -> None:
    given = (
        "benchmark", calm_run, "--data", micro_pictures, "--targets", "openvino", "--precisions", "fp32",
        "--images", 8, "--duration", 0.2, "--min-samples", 5, "--warmup-ms", 1, "--no-layers",
        "--out", tmp_path / "benchmark",
    )  # fmt: skip
    run_json(*given)
    result = run(*given, "--device", "AUTO")
    assert result.exit_code == 0, result.output
    assert "exported already" in result.stderr
    assert "measuring in turn" in result.stderr
    found = run_json(
        "profile", tmp_path / "benchmark" / "bundles" / "openvino-fp32", "--device", "AUTO",
        "--duration", 0.2, "--min-samples", 5, "--warmup-ms", 1,
    )  # fmt: skip
    assert found["settings"]["device"] == "AUTO"
    assert found["reports"][0]["engine"].endswith("on AUTO")
    assert "DEVICE=CPU" in found["reports"][0]["flags"]
