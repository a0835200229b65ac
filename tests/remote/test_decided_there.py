"""A device decides: precisions are judged and timed there, and a benchmark measures there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result

from gft_edge.bundle.store import read_bundle
from tests.remote.conftest import left_in_work
from tests.support.cli import refused, run, run_json
from tests.support.ssh import Sshd

pytestmark = pytest.mark.slow


def exported(calm_run: Path, pictures: Path, device: Sshd, out: Path) -> Result:
    """Have the device decide the precision of an export."""
    result = run(
        "export", calm_run, "--target", "onnx", "--precision", "auto", "--data", pictures,
        "--calibration-data", pictures, "--subset-size", 40, "--fidelity", "strict", "--images", 64,
        "--on", device.host, "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return result


def test_auto_is_decided_on_the_device(
    device: Sshd, calm_run: Path, micro_pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "auto"
    result = exported(calm_run, micro_pictures, device, out)
    manifest = read_bundle(out).manifest
    assert [c.precision for c in manifest.candidates] == ["fp32", "fp16", "int8"]
    (kept,) = [c for c in manifest.candidates if c.reason.startswith("kept")]
    assert kept.precision == manifest.precision
    # The machine that decided is the device, by the name that the user gave it.
    assert all(c.machine.endswith(f"({device.host})") for c in manifest.candidates)
    assert all(c.median_ms for c in manifest.candidates if "bounds" not in c.reason)
    assert f"verify {out} --on {device.host}" in result.stdout.splitlines()[-1]
    assert run_json("verify", out, "--on", device.host)["verdict"] == "pass"
    assert left_in_work(device) == []


def test_a_precision_that_misses_its_bounds_on_the_device_is_not_kept(
    device: Sshd, calm_run: Path, micro_pictures: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from gft_edge.cli import bench_there

    # What another processor's kernels would do to the kept patches.
    judged = bench_there.Device.misses

    def misses(bench: bench_there.Device, bundle: Path, *rest: object) -> tuple[str, ...]:
        found = judged(bench, bundle, *rest)  # type: ignore[arg-type]
        return ("kept patches 0.5",) if bundle.name == "int8" else found

    monkeypatch.setattr(bench_there.Device, "misses", misses)
    out = tmp_path / "auto"
    exported(calm_run, micro_pictures, device, out)
    (int8,) = [c for c in read_bundle(out).manifest.candidates if c.precision == "int8"]
    assert int8.median_ms is None
    assert device.host in int8.reason
    assert "kept patches 0.5" in int8.reason


def test_a_benchmark_measures_on_the_device(
    device: Sshd, micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "benchmark"
    given = (
        "benchmark", micro_run, "--data", micro_data, "--targets", "onnx", "--precisions", "fp32",
        "--duration", 0.2, "--min-samples", 20, "--warmup-ms", 10, "--no-layers", "--on", device.host,
        "--out", out,
    )  # fmt: skip
    result = run(*given)
    assert result.exit_code == 0, result.output
    profile = json.loads((out / "profile.json").read_text())
    assert profile["host"] == device.host
    told = json.loads((out / "benchmark.json").read_text())
    assert told["machine"] == profile["machine"]
    (row,) = told["rows"]
    assert row["measured"]["engine_p50_ms"] > 0


def test_one_device_decides(calm_run: Path, tmp_path: Path) -> None:
    given = ("export", calm_run, "--target", "onnx", "--out", tmp_path / "out")
    refused(run(*given, "--precision", "auto", "--on", "a", "--on", "b"), "--on once")
    refused(run(*given, "--precision", "int8", "--on", "a"), "--precision auto")
    refused(run("benchmark", calm_run, "--on", "a", "--on", "b"), "--on once")
