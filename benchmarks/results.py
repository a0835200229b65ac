"""The tables of docs/results.md: accuracy, kept patches and time of every precision that runs here.

python benchmarks/results.py --data DATA --runs FOLDER --out FOLDER

DATA is a class folder with train/ val/ test/ (the Grocery Store data set in the README), --runs the
folder `runs` that benchmarks/grocery.py made: dense, gft_tiny, gft_tiny_edge. Each is exported as a user
does, by `gft-edge export`, for ONNX Runtime and OpenVINO in every precision of theirs that this machine
computes; bundles already in --out are used again. Accuracy and kept patches are of all of test/, the drop
to PyTorch with its paired 95 % interval; time is the median at batch 1, all bundles in turn in one run, by
that of the dense network in FP32 on the same engine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from gft_edge.bundle.store import Bundle, read_bundle
from gft_edge.datasets import read_split
from gft_edge.fidelity.compare import NO_BOUND, compare, noise_floor_of
from gft_edge.fidelity.noise_floor import changed
from gft_edge.fidelity.verify import verify
from gft_edge.model.checkpoint import load_run
from gft_edge.model.remembered import Remembered
from gft_edge.profiling.machine import summary, this_machine
from gft_edge.runtime.backends import backend_for
from gft_edge.runtime.classifier import Classifier, load_pixels
from gft_edge.studies.run_latencies import engine_reports

NETWORKS = ("dense", "gft_tiny", "gft_tiny_edge")
TARGETS = ("onnx", "openvino")


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--duration", type=float, default=5.0, help="seconds of each bundle")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    bundles = {}
    for network in given.networks.split(","):
        for target in TARGETS:
            for precision in backend_for(target).PRECISIONS:
                bundle = _bundle(given, network, target, precision)
                if bundle is not None:
                    bundles[network, target, precision] = bundle
    versions = ", ".join(backend_for(target).version() for target in TARGETS)
    print(f"\n{summary(this_machine())}; {versions}\n")
    medians_ms = _medians_ms(bundles, given.duration)
    print(
        "| network | engine | precision | accuracy | drop, 95 % | kept patches | "
        "exchanged / by JPEG | INT8 layers in integers | time / dense FP32 |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for network in given.networks.split(","):
        _rows(given, network, bundles, medians_ms)


Key = tuple[str, str, str]


def _bundle(given: argparse.Namespace, network: str, target: str, precision: str) -> Bundle | None:
    folder = given.out / f"{network}-{target}-{precision}"
    if backend_for(target).unsupported(precision):
        return None
    if not folder.exists():
        command = (
            "export", given.runs / network, "--target", target, "--precision", precision,
            "--data", given.data, "--out", folder,
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "gft_edge", *map(str, command)],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            lines = done.stderr.splitlines()
            print(f"{network} {target} {precision}: {lines[-1]}", file=sys.stderr)
            return None
    return read_bundle(folder)


def _medians_ms(bundles: dict[Key, Bundle], duration_s: float) -> dict[Key, float]:
    """Each bundle in a process of its own, all in turn."""
    found = engine_reports([bundle.folder for bundle in bundles.values()], duration_s, _silent)
    if not found.stable:
        print(f"UNSTABLE: {', '.join(found.causes)}", file=sys.stderr)
    reports = zip(bundles, found.reports, strict=True)
    return {key: report.boundaries.engine.p50_ms or float("nan") for key, report in reports}


def _silent(text: str, done: int, total: int) -> None:
    pass


def _rows(
    given: argparse.Namespace,
    network: str,
    bundles: dict[Key, Bundle],
    medians_ms: dict[Key, float],
) -> None:
    spec, model = load_run(given.runs / network)
    split = read_split(given.data, "test", spec.labels)
    pixels = np.stack(
        [load_pixels(path, spec.preprocessing, split.crop_bottom_px) for path in split.paths]
    )
    remembered = Remembered(model, spec)
    reference = remembered.outputs(pixels)
    floor = noise_floor_of("jpeg75", reference, remembered.outputs(changed(pixels, "jpeg75")))
    for key, bundle in bundles.items():
        if key[0] != network:
            continue
        with Classifier.load(bundle, kept=True) as classifier:
            outputs = classifier.outputs(pixels)
        report = compare(network, reference, outputs, NO_BOUND, split.targets)
        assert report.drop is not None
        least, most = (100 * bound for bound in report.drop)
        dense = medians_ms.get(("dense", key[1], "fp32"))
        ratio = "-" if dense is None else f"{medians_ms[key] / dense:.2f}"
        exchanged = " / ".join(
            f"{ours:.1f} of {theirs:.1f}"
            for ours, theirs in zip(report.patches_lost, floor.patches_lost, strict=True)
        )
        integers = verify(bundle.folder).integer_layers
        print(
            f"| {network} | {key[1]} | {bundle.manifest.precision} | {report.accuracy:.2%} "
            f"| {least:+.1f} to {most:+.1f} "
            f"| {' / '.join(f'{kept:.3f}' for kept in report.kept_overlap) or '-'} "
            f"| {exchanged or '-'} | {'-' if integers is None else integers} | {ratio} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
