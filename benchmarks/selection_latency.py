"""What selecting patches saves in INT8: GFTs, the dense ViT of their size, and what NNCF makes of that.

python benchmarks/selection_latency.py --images FOLDER --out FOLDER [--size base]

Random weights, every layer in INT8 on OpenVINO, batch 1: the time of a network does not depend on what
it has learned. The baseline is plain `nncf.quantize` of the dense network; where the CPU has bf16, each
network is measured with its remainder in bf16 too. Bundles already in --out are used again. `gft-edge
profile` measures them, each in a process of its own; the ratio to the baseline is what to quote.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from gft_edge.bundle.specs import ModelSpec
from gft_edge.model.named_networks import spec_from_name
from gft_edge.runtime.backends import backend_for
from gft_edge.runtime.preprocess import rgb_from_bytes
from gft_edge.runtime.sources.images import images_below
from random_network import random_bundle

CALIBRATION_IMAGES = 8
CLASSES = tuple(f"class {number}" for number in range(81))


def main() -> None:
    """Export what is missing, then profile."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="base")
    parser.add_argument("--duration", default="10")
    parser.add_argument("--only", help="comma-separated networks, such as dense,gft_base_edge")
    given = parser.parse_args()
    networks = {
        "dense": spec_from_name(f"deit_{given.size}_patch16_224", CLASSES),
        **{
            name: spec_from_name(name, CLASSES)
            for name in (f"gft_{given.size}", f"gft_{given.size}_d8", f"gft_{given.size}_edge")
        },
        "edge-gala": spec_from_name(f"gft_{given.size}_edge", CLASSES, score="gala"),
    }
    if given.only:
        networks = {name: networks[name] for name in given.only.split(",")}
    precisions = ["int8"]
    if backend_for("openvino").unsupported("int8-bf16") is None:
        precisions.append("int8-bf16")
    folders = [
        _exported(spec, precision, given, given.out / f"{given.size}-{name}-{precision}")
        for name, spec in networks.items()
        for precision in precisions
    ]
    dense = spec_from_name(f"deit_{given.size}_patch16_224", CLASSES)
    peer = _exported(dense, "int8", given, given.out / f"{given.size}-nncf", plain=True)
    command = [
        sys.executable, "-m", "gft_edge", "profile", *folders,
        "--baseline", peer, "--photos", given.images, "--duration", given.duration,
    ]  # fmt: skip
    subprocess.run([str(word) for word in command], check=True)


def _exported(
    spec: ModelSpec, precision: str, given: argparse.Namespace, folder: Path, plain: bool = False
) -> Path:
    if folder.exists():
        return folder
    paths = images_below(given.images)
    chosen = paths[:: max(1, len(paths) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES]
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True)
    images = [rgb_from_bytes(path.read_bytes()) for path in chosen]
    random_bundle(spec, images, partial, precision, plain)
    return partial.rename(folder)


if __name__ == "__main__":
    main()
