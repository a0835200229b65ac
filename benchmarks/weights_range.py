"""What the eighth bit of INT8 weights is worth: the whole range against half of it, on a test split.

python benchmarks/weights_range.py RUN... --data DATA

RUN is a run of `gft-edge train`, such as one a seed; DATA a class folder with train/ and test/. Half of the
range is what CPUs without VNNI need, whose products of two would saturate in 16 bits. INT8 is computed in
PyTorch, every layer but the head, as an export smooths it: so the answer is the same on every machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from gft_edge.calibration.image_set import draw_image_set
from gft_edge.calibration.layers import quantizable_layers
from gft_edge.calibration.sensitivity import in_int8, tensor_peaks
from gft_edge.calibration.smoothing import smoothed
from gft_edge.datasets import read_split
from gft_edge.export.int8 import BATCHES_MEASURED
from gft_edge.fidelity.compare import NO_BOUND, compare
from gft_edge.model.checkpoint import load_run
from gft_edge.model.plain_weights import with_plain_weights
from gft_edge.model.reference import normalised_batches, pixels_of, torch_outputs
from gft_edge.model.remembered import Remembered
from gft_edge.runtime.classifier import load_pixels

LEVELS = {"full": 127, "half": 64}


def main() -> None:
    """Print one row a run and range, as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    print(f"PyTorch {torch.__version__}\n")
    print("| run | range | accuracy (FP32) | drop, 95 % | agreement | kept patches |")
    print("|---|---|---|---|---|---|")
    for run in given.runs:
        _rows(run, given.data)


def _rows(run: Path, data: Path) -> None:
    spec, trained = load_run(run)
    drawn = draw_image_set(read_split(data, "train", spec.labels), 300, 0)
    batches = normalised_batches(pixels_of(drawn, spec.preprocessing), spec.preprocessing)
    few = batches[:BATCHES_MEASURED]
    model, _ = smoothed(with_plain_weights(trained.eval()), batches, few, lambda text: None)
    layers = quantizable_layers(model)
    peaks = tensor_peaks(model, layers, batches)
    split = read_split(data, "test", spec.labels)
    pixels = np.stack(
        [load_pixels(path, spec.preprocessing, split.crop_bottom_px) for path in split.paths]
    )
    reference = Remembered(trained, spec).outputs(pixels)
    for name, levels in LEVELS.items():
        with in_int8(layers, peaks, levels):
            outputs = torch_outputs(model, pixels, spec.preprocessing)
        found = compare(name, reference, outputs, NO_BOUND, split.targets)
        assert found.drop is not None
        print(
            f"| {run.name} | {name} | {found.accuracy:.2%} ({found.reference_accuracy:.2%}) "
            f"| {100 * found.drop[0]:+.1f} to {100 * found.drop[1]:+.1f} | {found.top1_agreement:.3f} "
            f"| {' / '.join(f'{kept:.3f}' for kept in found.kept_overlap) or '-'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
