"""What Classifier.predict_pixels adds to the plain call of its engine.

python benchmarks/overhead.py BUNDLE [BUNDLE...] [--rounds 40]

BUNDLEs are for OpenVINO or ONNX Runtime. Beside each a second engine is opened by that vendor's own
few lines, with the same properties, and the two are called in turn. The bound is 3 % or 0.15 ms,
whichever is larger.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gft_edge.bundle.store import Bundle
from gft_edge.profiling.machine import summary, this_machine
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.preprocess import batch_from_pixels

# An engine's threads go on spinning after a call (ONNX Runtime's intra_op pool, some milliseconds) and
# would take the cores from the other engine's. So each has a phase of its own, after a pause in which
# the other's threads fall asleep, and its first calls there, cold after the pause, are not counted.
PAUSE_S = 0.05
PHASE_CALLS = 25
PHASE_WARM_UP = 5

BOUND_MS, BOUND = 0.15, 0.03


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    print(f"{summary(this_machine())}\n")
    print("| bundle | raw ms | ours ms | added ms | added | bound |")
    print("|---|---|---|---|---|---|")
    for folder in given.bundles:
        with Classifier.load(folder) as classifier:
            print(_row(classifier, given.rounds), flush=True)


def _row(classifier: Classifier, rounds: int) -> str:
    bundle = classifier.bundle
    raw = {"openvino": plain_openvino, "onnx": plain_onnxruntime}[bundle.manifest.target](bundle)
    size = bundle.manifest.model.preprocessing.image_size_px
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    calls = (raw, lambda: classifier.predict_pixels(pixels))
    phases_ms: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        # Whichever comes first in a round comes second in the next.
        for which in (0, 1) if number % 2 else (1, 0):
            phases_ms[which].append(_phase_ms(calls[which]))
    raw_ms, ours_ms = map(statistics.median, phases_ms)
    # Round by round: the machine's drift is larger than what is looked for.
    added_ms = statistics.median(b - a for a, b in zip(*phases_ms, strict=True))
    held = added_ms <= max(BOUND_MS, BOUND * raw_ms)
    return (
        f"| {bundle.folder.name} | {raw_ms:.3f} | {ours_ms:.3f} | {added_ms:.3f} "
        f"| {added_ms / raw_ms:.2%} | {'held' if held else 'MISSED'} |"
    )


def _phase_ms(call: Callable[[], object]) -> float:
    time.sleep(PAUSE_S)
    for _ in range(PHASE_WARM_UP):
        call()
    samples_ms = []
    for _ in range(PHASE_CALLS):
        started = time.perf_counter()
        call()
        samples_ms.append((time.perf_counter() - started) * 1000)
    return statistics.median(samples_ms)


def plain_openvino(bundle: Bundle) -> Callable[[], object]:
    """One inference in OpenVINO's own words."""
    import openvino

    precision = bundle.manifest.runtime_precision.replace("typed", "f32")
    compiled = openvino.Core().compile_model(
        bundle.artifact_path,
        "CPU",
        {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"},
    )
    request = compiled.create_infer_request()
    images = _images(bundle)
    return lambda: request.infer({0: images})


def plain_onnxruntime(bundle: Bundle) -> Callable[[], object]:
    """One inference in ONNX Runtime's own words."""
    import onnxruntime

    session = onnxruntime.InferenceSession(bundle.artifact_path, providers=["CPUExecutionProvider"])
    images = _images(bundle)
    return lambda: session.run(["logits"], {"images": images})


def _images(bundle: Bundle) -> np.ndarray:
    spec = bundle.manifest.model.preprocessing
    pixels = np.random.default_rng(0).integers(
        0, 256, (1, spec.image_size_px, spec.image_size_px, 3), dtype=np.uint8
    )
    return batch_from_pixels(pixels, spec, bundle.manifest.input.dtype)


if __name__ == "__main__":
    main()
