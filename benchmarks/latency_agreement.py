"""Does the profile's engine latency match a loop of the user's own, and benchmark_app on the same file?

    python benchmarks/latency_agreement.py BUNDLE... [--rounds 5] [--seconds 5]

Each in a process of its own, in turn: gft-edge profile, a plain loop of the engine's Python API without
any of this project's code, and for OpenVINO benchmark_app (synchronous, latency hint). Medians over the
rounds of each one's median latency, as ratios to the plain loop.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from gft_edge.bundle import Bundle, read_bundle

OPENVINO_LOOP = """
import sys, time, statistics, numpy, openvino
path, precision, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()
call = request.infer
"""

ONNX_LOOP = """
import sys, time, statistics, numpy, onnxruntime
path, precision, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
call = lambda images: session.run(None, {"images": images[0]})
"""

# The input is noise, as benchmark_app's: no engine here is faster or slower for what it sees.
LOOP = """
shape = tuple(map(int, sys.argv[4].split(",")))
images = {0: numpy.random.default_rng(0).integers(0, 256, shape).astype(sys.argv[5])}
def spin(seconds, samples):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        call(images)
        samples.append(time.perf_counter() - started)
    return samples
spin(1, [])
print(statistics.median(spin(seconds, [])) * 1000)
"""


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    given = parser.parse_args()
    print("| bundle | measured by | median ms | to the plain loop |\n|---|---|---|---|")
    for folder in given.bundles:
        bundle = read_bundle(folder)
        ways = {"plain loop": _loop_ms, "gft-edge profile": _profile_ms}
        if bundle.manifest.target == "openvino":
            ways["benchmark_app"] = _benchmark_app_ms
        medians_ms: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(given.rounds):
            for name, way in ways.items():
                medians_ms[name].append(way(bundle, given.seconds))
        for name, values in medians_ms.items():
            ratios = [a / b for a, b in zip(values, medians_ms["plain loop"], strict=True)]
            print(
                f"| {folder.name} | {name} | {statistics.median(values):.3f} | "
                f"{statistics.median(ratios):.3f} |",
                flush=True,
            )


def _loop_ms(bundle: Bundle, seconds: float) -> float:
    manifest = bundle.manifest
    code = (OPENVINO_LOOP if manifest.target == "openvino" else ONNX_LOOP) + LOOP
    shape = manifest.input.shape(manifest.model.preprocessing.image_size_px)
    arguments = [
        bundle.artifact_path, manifest.runtime_precision.replace("typed", "f32"), seconds,
        ",".join(map(str, shape)), manifest.input.dtype,
    ]  # fmt: skip
    return float(_run(sys.executable, "-c", code, *map(str, arguments)))


def _profile_ms(bundle: Bundle, seconds: float) -> float:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "profile.json"
        _run(
            sys.executable, "-m", "gft_edge", "profile", str(bundle.folder),
            "--duration", str(seconds), "--min-samples", "64", "--json", str(file),
        )  # fmt: skip
        boundaries = json.loads(file.read_text())["reports"][0]["boundaries"]
    return float(boundaries["engine"]["p50_ms"])


def _benchmark_app_ms(bundle: Bundle, seconds: float) -> float:
    tool = shutil.which("benchmark_app") or str(Path(sys.executable).parent / "benchmark_app")
    printed = _run(
        tool, "-m", str(bundle.artifact_path), "-api", "sync", "-hint", "latency",
        "-infer_precision", bundle.manifest.runtime_precision, "-t", str(max(1, round(seconds))),
    )  # fmt: skip
    found = re.search(r"Median:\s+([\d.]+) ms", printed)
    assert found is not None, printed
    return float(found[1])


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
