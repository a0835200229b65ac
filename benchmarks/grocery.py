"""The README's table of real photographs: train, export, verify on test/ and time, side by side.

python benchmarks/grocery.py --data DATA --weights WEIGHTS --out FOLDER

DATA is a class folder with train/ val/ test/ (the Grocery Store data set in the README), WEIGHTS a
timm deit_tiny_patch16_224 checkpoint. The dense network teaches the others. Runs and bundles already
in FOLDER are used again. Latency is measured in turn over all bundles in one run; its ratio to the
dense network is what to quote.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from gft_edge.datasets import read_split
from gft_edge.fidelity.verify import verify
from gft_edge.model.checkpoint import load_run
from gft_edge.model.reference import torch_outputs
from gft_edge.profiling.calls import interleaved_medians_ms
from gft_edge.profiling.machine import summary, this_machine
from gft_edge.runtime.classifier import Classifier, load_pixels

NETWORKS = {
    "dense": ("--model", "gft_tiny", "--stages", "none"),
    "gft_tiny": ("--model", "gft_tiny"),
    "gft_tiny_edge": ("--model", "gft_tiny_edge"),
}
TARGETS = ("onnx", "openvino")


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", default="6")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", help="comma-separated networks to train and then stop")
    given = parser.parse_args()
    for name in given.only.split(",") if given.only else NETWORKS:
        _prepare(given, name)
    if given.only:
        return
    medians_ms = _medians_ms(given)
    print(f"\n{summary(this_machine())}\n")
    print(
        "| network | target | top-1 | top-1 in PyTorch | agreement | kept patches | time / dense |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in NETWORKS:
        for target in TARGETS:
            print(_row(given, name, target, medians_ms))


def _prepare(given: argparse.Namespace, name: str) -> None:
    run = _run_folder(given, name)
    if not run.exists():
        # Renamed when whole: an interrupted run must not be tabled as a finished one.
        partial = run.with_name(f"{run.name}.partial")
        if partial.exists():
            _gft_edge("train", "--resume", partial)
        else:
            teacher = () if name == "dense" else ("--teacher", _run_folder(given, "dense"))
            _gft_edge(
                "train", "--data", given.data, "--weights", given.weights,
                "--epochs", given.epochs, *NETWORKS[name], *teacher, "--out", partial,
            )  # fmt: skip
        partial.rename(run)
    for target in TARGETS:
        if not _bundle_folder(given, name, target).exists():
            _gft_edge(
                "export", run, "--target", target, "--out", _bundle_folder(given, name, target)
            )


def _medians_ms(given: argparse.Namespace) -> dict[str, float]:
    calls = {}
    with ExitStack() as stack:
        for name in NETWORKS:
            for target in TARGETS:
                classifier = stack.enter_context(
                    Classifier.load(_bundle_folder(given, name, target))
                )
                split = read_split(given.data, "test", classifier.labels)
                spec = classifier.bundle.manifest.model.preprocessing
                pixels = np.stack([load_pixels(split.paths[0], spec, split.crop_bottom_px)])
                calls[f"{name} {target}"] = functools.partial(classifier.outputs, pixels)
        return interleaved_medians_ms(calls, given.rounds)


def _row(given: argparse.Namespace, name: str, target: str, medians_ms: dict[str, float]) -> str:
    spec, model = load_run(_run_folder(given, name))
    split = read_split(given.data, "test", spec.labels)
    report = verify(
        _bundle_folder(given, name, target),
        split=split,
        reference=lambda pixels: torch_outputs(model, pixels, spec.preprocessing),
    )
    if report.verdict != "pass":
        raise SystemExit(f"{name} {target}: {'; '.join(report.failures)}")
    overlap = " / ".join(f"{value:.4f}" for value in report.kept_overlap or ()) or "-"
    ratio = medians_ms[f"{name} {target}"] / medians_ms[f"dense {target}"]
    return (
        f"| {name} | {target} | {report.top1:.2%} | {report.reference_top1:.2%} "
        f"| {report.top1_agreement:.2%} | {overlap} | {ratio:.2f} |"
    )


def _run_folder(given: argparse.Namespace, name: str) -> Path:
    folder: Path = given.out / "runs" / name
    return folder


def _bundle_folder(given: argparse.Namespace, name: str, target: str) -> Path:
    folder: Path = given.out / "bundles" / f"{name}-{target}"
    return folder


def _gft_edge(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "gft_edge", *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
