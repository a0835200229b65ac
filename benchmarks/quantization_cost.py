"""Time and memory of quantizing a ViT-B-sized GFT on 300 images, part by part.

python benchmarks/quantization_cost.py --data DATA [--model gft_base] [--images 300] --target onnx|openvino

DATA is a class folder with train/. The weights are random: what is measured is the work of quantizing all
layers, not accuracy. An export adds the ranking of the layers, timed here with --ranking, and the
verification of each graph on its engine. Absolute times are those of one machine: run it beside what
you compare with.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch

from gft_edge.bundle.specs import InputSpec
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.calibration.int8_onnx import quantize_onnx
from gft_edge.calibration.int8_openvino import quantize_openvino
from gft_edge.calibration.layers import quantizable_layers
from gft_edge.calibration.sampling import activation_peaks
from gft_edge.calibration.sensitivity import sensitivity
from gft_edge.calibration.smoothing import STRENGTHS, smoothed
from gft_edge.datasets import read_split
from gft_edge.export.graph import finish, kept_names, simplify
from gft_edge.export.int8 import BATCHES_MEASURED, MEASURED_IMAGES
from gft_edge.export.onnx_from_torch import onnx_from_torch
from gft_edge.model.gft import build_gft
from gft_edge.model.named_networks import spec_from_name
from gft_edge.model.reference import normalised_batches, pixels_of
from gft_edge.profiling.machine import summary, this_machine
from gft_edge.runtime.backends import backend_for
from gft_edge.runtime.batches import session_outputs
from gft_edge.runtime.opening import open_request

GIVEN = InputSpec("uint8", 1)
PIXEL_LAYER = "backbone.patch_embed.proj"


def main() -> None:
    """Print one line a part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="gft_base")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--target", choices=("onnx", "openvino"), required=True)
    parser.add_argument("--ranking", action="store_true", help="time the ranking of layers too")
    given = parser.parse_args()
    print(summary(this_machine()))
    split = read_split(given.data, "train")
    spec = spec_from_name(given.model, split.labels)
    torch.manual_seed(0)
    model = build_gft(spec).eval()
    for layer in model.layers:
        torch.nn.init.normal_(layer.attn.proj.weight, std=0.02)
    drawn = draw_image_set(split, given.images, 0)
    pixels = pixels_of(drawn, spec.preprocessing)
    batches = normalised_batches(pixels, spec.preprocessing)
    few = batches[:BATCHES_MEASURED]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        path, kept = Path(scratch) / "finished.onnx", kept_names(spec)
        with part("ONNX graph"):
            graph = simplify(onnx_from_torch(model, spec, GIVEN, 20, given.target == "onnx"))
            onnx.save(finish(graph, {}, kept), path)
        layers = list(quantizable_layers(model))
        if given.target == "onnx":
            with part("smooth-quant, four strengths"):
                network, _ = smoothed(model, batches, few, print)
            with part("calibrate"):
                peaks = activation_peaks(network, batches)
            with part("quantize"):
                onnx.save(
                    quantize_onnx(graph, peaks, layers, PIXEL_LAYER), Path(scratch) / "int8.onnx"
                )
        else:
            with part("smooth-quant, four strengths"):
                for strength in STRENGTHS:
                    some = pixels[:MEASURED_IMAGES]
                    low = Path(scratch) / "int8.xml"
                    quantize_openvino(path, low, some, 1, layers, strength)
                    session = backend_for("openvino").open_session(
                        low, open_request(spec, GIVEN, "f32", kept)
                    )
                    session_outputs(session, some, GIVEN, spec.preprocessing)
                    session.close()
            with part("calibrate and quantize"):
                quantize_openvino(path, Path(scratch) / "int8.xml", pixels, 1, layers, 0.95)
        print(f"in all {time.perf_counter() - started:.0f} s")
        if given.ranking:
            with part("ranking of the layers"):
                sensitivity(model, few, drawn.targets[:MEASURED_IMAGES])


@contextmanager
def part(name: str) -> Iterator[None]:
    """Time what runs inside; memory is the process's peak so far."""
    started = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name}: {time.perf_counter() - started:.0f} s, peak {peak:.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
