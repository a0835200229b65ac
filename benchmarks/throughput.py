"""Images a second of run_many against OpenVINO's benchmark_app on the same model file.

python benchmarks/throughput.py BUNDLE [--rounds 7] [--seconds 5]

BUNDLE is one for OpenVINO. Both run with the hint throughput, the bundle's precision and equally many
requests, in turn, so that a drift of the machine meets them alike: quote the ratio, not the images a
second. benchmark_app fills its inputs once; ours takes another image for each run and copies the
logits out.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.profiling.machine import summary, this_machine
from gft_edge.runtime.backends import Session
from gft_edge.runtime.classifier import Classifier

IMAGES = 32


def main() -> None:
    """Print one line a round, then the medians and their ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=5)
    given = parser.parse_args()
    print(summary(this_machine()))
    with Classifier.load(given.bundle, hint="throughput") as classifier:
        manifest = classifier.bundle.manifest
        shape = manifest.input.shape(manifest.model.preprocessing.image_size_px)
        batches = [
            np.random.default_rng(number).integers(0, 256, shape).astype(manifest.input.dtype)
            for number in range(IMAGES)
        ]
        flags = dict(flag.split("=") for flag in classifier.session.flags())
        print(", ".join(f"{name}={value}" for name, value in flags.items()))
        # On a CPU one request a stream is OPTIMAL_NUMBER_OF_INFER_REQUESTS.
        requests = flags["NUM_STREAMS"]
        precision = manifest.runtime_precision.replace("typed", "f32")
        command = [
            sys.executable, "-c", "from openvino.tools.benchmark.main import main; main()",
            "-m", str(classifier.bundle.artifact_path), "-d", "CPU", "-hint", "throughput",
            "-infer_precision", precision, "-nireq", requests, "-t", str(given.seconds),
        ]  # fmt: skip
        ours, theirs = [], []
        for _ in range(given.rounds):
            ours.append(images_per_second(classifier.session, batches, given.seconds))
            theirs.append(benchmark_app(command))
            print(f"ours {ours[-1]:.1f}/s, benchmark_app {theirs[-1]:.1f}/s", flush=True)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"medians: ours {statistics.median(ours):.1f}/s, benchmark_app "
        f"{statistics.median(theirs):.1f}/s, ratio round by round {ratio:.3f}"
    )


def images_per_second(session: Session, batches: list[npt.NDArray[Any]], seconds: float) -> float:
    """From the start of the first run to the end of the last, after one pass to warm up."""
    for _ in session.run_many(batches):
        pass
    images = 0
    started = time.perf_counter()
    for finished in session.run_many(until(batches, started + seconds)):
        images += len(finished.outputs[0])
    return images / (time.perf_counter() - started)


def until(batches: list[npt.NDArray[Any]], end: float) -> Iterator[npt.NDArray[Any]]:
    """The batches over and over until the time has come."""
    number = 0
    while time.perf_counter() < end:
        yield batches[number % len(batches)]
        number += 1


def benchmark_app(command: list[str]) -> float:
    """Images a second by its own account, without its loading and its first inference."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"Throughput:\s+([\d.]+) FPS", done.stdout)
    if found is None:
        raise SystemExit(f"benchmark_app names no throughput:\n{done.stdout[-2000:]}")
    return float(found[1])


if __name__ == "__main__":
    main()
