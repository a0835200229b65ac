"""What selecting patches saves in INT8: GFTs and the dense ViT of their size, measured in turn.

python benchmarks/selection_latency.py --images FOLDER --out FOLDER [--size base]

Random weights, every layer in INT8 on OpenVINO, batch 1: the time of a network does not depend on what
it has learned. Bundles already in --out are used again. `gft-edge profile` measures them, each in a
process of its own; the ratio to dense is what to quote.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from gft_edge.bundle.specs import ModelSpec
from gft_edge.model.named_networks import spec_from_name
from gft_edge.runtime.preprocess import rgb_from_bytes
from gft_edge.runtime.sources import images_below
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
    given = parser.parse_args()
    networks = {
        "dense": spec_from_name(f"deit_{given.size}_patch16_224", CLASSES),
        **{
            name: spec_from_name(name, CLASSES)
            for name in (f"gft_{given.size}", f"gft_{given.size}_d8", f"gft_{given.size}_edge")
        },
        "edge-gala": spec_from_name(f"gft_{given.size}_edge", CLASSES, score="gala"),
    }
    folders = {name: given.out / f"{given.size}-{name}" for name in networks}
    for name, spec in networks.items():
        if not folders[name].exists():
            _export(spec, folders[name], given.images)
    command = [
        sys.executable, "-m", "gft_edge", "profile", *(folders[name] for name in networks if name != "dense"),
        "--baseline", folders["dense"], "--photos", given.images, "--duration", given.duration,
    ]  # fmt: skip
    subprocess.run([str(word) for word in command], check=True)


def _export(spec: ModelSpec, folder: Path, images: Path) -> None:
    paths = images_below(images)
    chosen = paths[:: max(1, len(paths) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES]
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True)
    random_bundle(spec, [rgb_from_bytes(path.read_bytes()) for path in chosen], partial)
    partial.rename(folder)


if __name__ == "__main__":
    main()
