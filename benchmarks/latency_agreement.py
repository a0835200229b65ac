"""Does the profile's engine latency match a loop of the user's own, and benchmark_app on the same file?

    python benchmarks/latency_agreement.py BUNDLE... [--rounds 20] [--seconds 1]

Each in a process of its own, in turn: the worker that gft-edge profile measures with, a plain loop of the
engine's Python API without any of this project's code, and for OpenVINO benchmark_app (synchronous,
latency hint). Ratios to the plain loop's median are taken round by round, and their median is printed:
a machine that drifts by a third within seconds shows nothing in phases that are longer.
"""

from __future__ import annotations

import argparse
import functools
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from gft_edge.bundle.store import Bundle, read_bundle
from gft_edge.profiling.latency import Series, Worker

Way = Callable[[], float]

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
for line in sys.stdin:
    samples, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        call(images)
        samples.append(time.perf_counter() - started)
    print(statistics.median(samples) * 1000, flush=True)
"""


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1)
    given = parser.parse_args()
    print("| bundle | measured by | median ms | to the plain loop |\n|---|---|---|---|")
    for folder in given.bundles:
        bundle = read_bundle(folder)
        with ExitStack() as stack:
            ways = {
                "plain loop": _plain(stack, bundle, given.seconds),
                "gft-edge profile": _profile(stack, bundle, given.seconds),
            }
            if bundle.manifest.target == "openvino":
                ways["benchmark_app"] = functools.partial(_benchmark_app_ms, bundle, given.seconds)
            medians_ms: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(given.rounds + 1):
                for name, way in ways.items():
                    median_ms = way()
                    if number:  # the first warms up
                        medians_ms[name].append(median_ms)
        for name, values in medians_ms.items():
            ratios = [a / b for a, b in zip(values, medians_ms["plain loop"], strict=True)]
            print(
                f"| {folder.name} | {name} | {statistics.median(values):.3f} | "
                f"{statistics.median(ratios):.3f} |",
                flush=True,
            )


def _plain(stack: ExitStack, bundle: Bundle, seconds: float) -> Way:
    manifest = bundle.manifest
    code = (OPENVINO_LOOP if manifest.target == "openvino" else ONNX_LOOP) + LOOP
    shape = manifest.input.shape(manifest.model.preprocessing.image_size_px)
    arguments = [
        bundle.artifact_path, manifest.runtime_precision.replace("typed", "f32"), seconds,
        ",".join(map(str, shape)), manifest.input.dtype,
    ]  # fmt: skip
    child = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )

    def median_ms() -> float:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("turn\n")
        child.stdin.flush()
        return float(child.stdout.readline())

    return median_ms


def _profile(stack: ExitStack, bundle: Bundle, seconds: float) -> Way:
    worker = stack.enter_context(Worker(str(bundle.folder)))
    worker.ask("open", bundle=str(bundle.folder))

    def median_ms() -> float:
        series = Series(worker, "engine")
        series.take_turn(seconds)
        return statistics.median(series.samples_ms[0])

    return median_ms


def _benchmark_app_ms(bundle: Bundle, seconds: float) -> float:
    tool = shutil.which("benchmark_app") or str(Path(sys.executable).parent / "benchmark_app")
    command = [
        tool, "-m", str(bundle.artifact_path), "-api", "sync", "-hint", "latency",
        "-infer_precision", bundle.manifest.runtime_precision, "-t", str(max(1, round(seconds))),
    ]  # fmt: skip
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Median:\s+([\d.]+) ms", printed)
    assert found is not None, printed
    return float(found[1])


if __name__ == "__main__":
    main()
