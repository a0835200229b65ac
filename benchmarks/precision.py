"""The README's table of precisions, and the trade of INT8 layers against kept patches and time.

python benchmarks/precision.py --data DATA --runs FOLDER --out FOLDER [--curve NETWORK]

DATA is a class folder with train/ val/ test/ (the Grocery Store data set in the README), --runs the
folder `runs` that benchmarks/grocery.py made. Bundles already in --out are used again. Fidelity is on
all of test/; time is the median at batch 1, all bundles of an engine in turn in one run, and its ratio
to FP32 on that engine is what to quote. --curve quantizes more and more of NETWORK's layers with NNCF
and draws what that costs and buys.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from matplotlib.figure import Figure

from gft_edge.bundle.specs import InputSpec, ModelSpec
from gft_edge.bundle.store import read_bundle
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.calibration.int8_openvino import quantize_openvino
from gft_edge.calibration.sensitivity import sensitivity
from gft_edge.datasets import Split, read_split
from gft_edge.export.graph import finish, kept_names, simplify
from gft_edge.export.onnx_from_torch import onnx_from_torch
from gft_edge.fidelity.compare import NO_BOUND, compare
from gft_edge.model.checkpoint import load_run
from gft_edge.model.reference import normalised_batches, pixels_of, torch_outputs
from gft_edge.profiling.calls import interleaved_medians_ms
from gft_edge.profiling.machine import summary, this_machine
from gft_edge.runtime.backends import backend_for
from gft_edge.runtime.classifier import Classifier, load_pixels, open_request, session_outputs
from gft_edge.runtime.outputs import Outputs

NETWORKS = ("gft_tiny", "gft_tiny_edge")
# Target, precision, and the engine that runs it here.
ARTIFACTS = (
    ("onnx", "fp32", "onnx"),
    ("onnx", "fp16", "onnx"),
    ("onnx", "int8", "onnx"),
    ("tensorrt", "int8", "onnx"),
    ("openvino", "fp32", "openvino"),
    ("openvino", "bf16", "openvino"),
    ("openvino", "int8", "openvino"),
)


def main() -> None:
    """Print the table as Markdown, or draw the curve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--curve", metavar="NETWORK")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    print(f"\n{summary(this_machine())}\n")
    if given.curve:
        _curve(given)
        return
    print(
        "| network | artifact | accuracy (FP32) | agreement | kept patches "
        "| lost, near border | INT8 work | time / FP32 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for network in given.networks.split(","):
        _table(given, network)


def _table(given: argparse.Namespace, network: str) -> None:
    folders = {}
    for target, precision, engine in ARTIFACTS:
        folder = given.out / f"{network}-{target}-{precision}"
        if not folder.exists():
            _export(given, network, target, precision, folder)
        if folder.exists():
            folders[target, precision, engine] = folder
    _, split, pixels, reference = _reference(given, network)
    medians_ms = {}
    for engine in ("onnx", "openvino"):
        here = {key: folder for key, folder in folders.items() if key[2] == engine}
        with ExitStack() as stack:
            calls = {}
            for key, folder in here.items():
                classifier = stack.enter_context(Classifier.load(folder, engine))
                calls["-".join(key)] = functools.partial(classifier.outputs, pixels[:1])
            medians_ms.update(interleaved_medians_ms(calls, given.rounds))
    for (target, precision, engine), folder in folders.items():
        with Classifier.load(folder, engine, kept=True) as classifier:
            outputs = classifier.outputs(pixels)
        report = compare(network, reference, outputs, NO_BOUND, split.targets)
        quantization = read_bundle(folder).manifest.quantization
        ratio = medians_ms[f"{target}-{precision}-{engine}"] / medians_ms[f"{engine}-fp32-{engine}"]
        print(
            f"| {network} | {target} {precision} | {report.accuracy:.2%} "
            f"({report.reference_accuracy:.2%}) | {report.top1_agreement:.2%} "
            f"| {_row(report.kept_overlap, 4)} "
            f"| {_row(report.patches_lost, 2)}, {_row(report.lost_near_border, 2)} "
            f"| {'-' if quantization is None else f'{quantization.int8_macs:.0%}'} | {ratio:.2f} |",
            flush=True,
        )


def _export(
    given: argparse.Namespace, network: str, target: str, precision: str, folder: Path
) -> None:
    calibration = ("--calibration-data", given.data) if precision == "int8" else ()
    command = (
        "export", given.runs / network, "--target", target, "--precision", precision,
        "--data", given.data, *calibration, "--out", folder,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "gft_edge", *map(str, command)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        print(f"{network} {target} {precision}: {done.stderr.splitlines()[-1]}", file=sys.stderr)


def _reference(
    given: argparse.Namespace, network: str
) -> tuple[ModelSpec, Split, np.ndarray, Outputs]:
    spec, model = load_run(given.runs / network)
    split = read_split(given.data, "test", spec.labels)
    pixels = np.stack(
        [load_pixels(path, spec.preprocessing, split.crop_bottom_px) for path in split.paths]
    )
    return spec, split, pixels, torch_outputs(model.eval(), pixels, spec.preprocessing)


def _curve(given: argparse.Namespace) -> None:
    """Ever more layers in high precision, most damage per work first: patches kept, and time."""
    spec, split, pixels, reference = _reference(given, given.curve)
    _, model = load_run(given.runs / given.curve)
    train = draw_image_set(read_split(given.data, "train", spec.labels), 64, 0)
    calibration = pixels_of(train, spec.preprocessing)
    rows = []
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        graph, kept = Path(scratch) / "model.onnx", kept_names(spec)
        exported = onnx_from_torch(model.eval(), spec, InputSpec("uint8", 1), 20)
        onnx.save(finish(simplify(exported), {}, kept), graph)
        batches = normalised_batches(calibration[:32], spec.preprocessing)
        ranking = sensitivity(model, batches, train.targets[:32])
        names = [row.layer for row in ranking]
        engine = backend_for("openvino")
        calls = {}
        for high in sorted({*range(0, len(names), 8), len(names)}):
            path = Path(scratch) / f"{high}.xml"
            if high < len(names):
                quantize_openvino(graph, path, calibration, 1, names[high:], 0.95)
            else:
                path = graph
            request = open_request(spec, InputSpec("uint8", 1), "f32", kept)
            session = engine.open_session(path, request)
            stack.callback(session.close)
            outputs = session_outputs(session, pixels, InputSpec("uint8", 1), spec.preprocessing)
            report = compare(str(high), reference, outputs, NO_BOUND, split.targets)
            plain = engine.open_session(path, open_request(spec, InputSpec("uint8", 1), "f32"))
            stack.callback(plain.close)
            calls[str(high)] = functools.partial(plain.run, pixels[:1])
            share = sum(row.macs for row in ranking[high:])
            rows.append({"high": high, "int8_macs": share, "kept": report.kept_overlap,
                         "agreement": report.top1_agreement, "accuracy": report.accuracy})  # fmt: skip
        medians_ms = interleaved_medians_ms(calls, given.rounds)
    whole = medians_ms[str(len(names))]
    print("| layers in FP32 | INT8 work | accuracy | agreement | kept patches | time / FP32 |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        row["time"] = medians_ms[str(row["high"])] / whole
        print(
            f"| {row['high']} | {row['int8_macs']:.0%} | {row['accuracy']:.2%} "
            f"| {row['agreement']:.2%} | {_row(row['kept'], 4)} | {row['time']:.2f} |"
        )
    (given.out / f"{given.curve}-curve.json").write_text(json.dumps(rows, indent=1))
    _draw(rows, given.out / f"{given.curve}-curve.png", given.curve)


def _draw(rows: list[dict[str, Any]], path: Path, network: str) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for stage in range(len(rows[0]["kept"])):
        axes.plot([r["time"] for r in rows], [r["kept"][stage] for r in rows], "o-",
                  label=f"stage {stage + 1}")  # fmt: skip
    for row in rows:
        axes.annotate(f"{row['int8_macs']:.0%}", (row["time"], row["kept"][-1]), fontsize=7,
                      xytext=(0, -11), textcoords="offset points", ha="center")  # fmt: skip
    axes.set_xlabel("time / FP32 (OpenVINO, batch 1)")
    axes.set_ylabel("kept patches as in FP32 (Jaccard)")
    axes.set_title(f"{network}: share of the layers' work in INT8", fontsize=10)
    axes.legend()
    figure.savefig(path, dpi=110)


def _row(values: tuple[float, ...], digits: int) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values) or "-"


if __name__ == "__main__":
    main()
