"""Load time of an OpenVINO model with and without the cache of compiled models, in fresh processes.

python benchmarks/load_time.py MODEL.xml [MODEL.xml...] [--rounds 7]

Each process imports OpenVINO, opens the model with gft_edge's backend and runs it once. The files are
in the page cache for both. First is the process that compiles and keeps, then both in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from gft_edge.bundle.store import sha256_of
from gft_edge.profiling.machine import summary, this_machine

ONE = """
import sys, time
from pathlib import Path
import numpy as np, openvino
from gft_edge.runtime.backends import OpenRequest, backend_for
path, folder, shas = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
shape = tuple(int(length) for length in sys.argv[4].split(","))
started = time.perf_counter()
request = OpenRequest(
    shape, int(sys.argv[5]), "f32", cache_dir=Path(folder) if folder else None,
    files=tuple(zip((path, path.with_suffix(".bin")), shas)),
)
session = backend_for("openvino").open_session(path, request)
session.run(np.zeros(shape, np.uint8))
print(time.perf_counter() - started)
"""


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    print(f"{summary(this_machine())}\n")
    print("| model | MB kept | compiled and kept s | compiled s | from the cache s | ratio |")
    print("|---|---|---|---|---|---|")
    for path in given.models:
        print(_row(path, given.rounds), flush=True)


def _row(path: Path, rounds: int) -> str:
    import openvino

    model = openvino.Core().read_model(path)
    shape = ",".join(str(length) for length in model.input().shape)
    classes = str(model.output().shape[-1])
    shas = ",".join(sha256_of(file) for file in (path, path.with_suffix(".bin")))
    with tempfile.TemporaryDirectory() as cache:

        def seconds(folder: str) -> float:
            command = [sys.executable, "-c", ONE, str(path), folder, shas, shape, classes]
            return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

        first_s = seconds(cache)
        kept_mb = sum(entry.stat().st_size for entry in os.scandir(cache)) / 1e6
        without_s, with_s = [], []
        for _ in range(rounds):
            without_s.append(seconds(""))
            with_s.append(seconds(cache))
    ratio = statistics.median(b / a for a, b in zip(without_s, with_s, strict=True))
    return (
        f"| {path} | {kept_mb:.0f} | {first_s:.2f} | {statistics.median(without_s):.2f} "
        f"| {statistics.median(with_s):.2f} | {ratio:.2f} |"
    )


if __name__ == "__main__":
    main()
