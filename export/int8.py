"""The stages that INT8 adds: calibrate, rank the layers, quantize, give layers back until it holds."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gft_edge.bundle.images import ImageRecord, ImageSet
from gft_edge.bundle.manifest import Quantization
from gft_edge.bundle.reports import FidelityReport, Tolerance
from gft_edge.bundle.specs import Preprocessing, Say
from gft_edge.calibration.image_set import refuse_unfit_pixels
from gft_edge.calibration.int8_onnx import quantize_onnx
from gft_edge.calibration.int8_openvino import quantize_openvino
from gft_edge.calibration.layers import quantizable_layers
from gft_edge.calibration.sampling import activation_peaks
from gft_edge.calibration.sensitivity import (
    COSINE_WEIGHT,
    LayerSensitivity,
    damage_of_all,
    sensitivity,
    unmeasured,
)
from gft_edge.calibration.smoothing import can_smooth, channel_peaks, smooth
from gft_edge.errors import DataError, UsageError
from gft_edge.export.graphs import finished_graph, verified_graph
from gft_edge.export.onnx_from_torch import folds_normalisation
from gft_edge.export.search import fewest_high_precision, with_reserve
from gft_edge.export.verify import pixels_of, torch_outputs
from gft_edge.export.workbench import Workbench
from gft_edge.fidelity.compare import NO_BOUND, TOLERANCES, compare
from gft_edge.model.networks import Network
from gft_edge.runtime.preprocess import batch_from_pixels

# None is off. NNCF's default is 0.95, its own conformance tests of ViTs use the others.
SMOOTH_QUANT = (None, 0.15, 0.5, 0.95)

# What the ranking and the choice of a smoothing strength are measured on; the ranges that are
# shipped come from all calibration images.
MEASURED_IMAGES = 32
BATCH = 16

# Of the share of verification images that FP32 recognises: calibration images below are not of the
# network's classes, whatever they look like.
LEAST_KNOWN = 0.5


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate on, and how. `keep_high_precision` names layers that must not be quantized.

    Without `judged` these and no others stay out, whatever that costs, and OpenVINO smooths by
    `smooth_quant`: for a network whose weights mean nothing (see baseline).
    """

    images: ImageSet
    method: str = "minmax"
    keep_high_precision: tuple[str, ...] = ()
    judged: bool = True
    smooth_quant: float | None = None


def int8_onnx(
    work: Workbench,
    request: CalibrationRequest,
    remainder: str,
    opset: int,
    simplified: bool,
) -> tuple[Path, Quantization]:
    """An ONNX graph with QDQ layers and the rest in `remainder`, fp32 or fp16, that holds its bounds."""
    pixels = _calibration_pixels(work, request)
    batches = normalised_batches(pixels, work.spec.preprocessing)
    few = batches[: MEASURED_IMAGES // BATCH]
    network, strength = work.model, None
    if request.judged:
        with work.stage("smooth-quant"):
            advance = work.counter("smooth-quant", len(pixels))
            network, strength = smoothed(work.model, batches, few, advance, work.say)
    ranking = _ranking(work, network, few, request)
    with work.stage("calibrate"):
        peaks = activation_peaks(
            network, batches, request.method, work.counter("calibrate", len(pixels))
        )
    centred = work.given.dtype == "uint8" and folds_normalisation(network)
    pixel_layer = network.first_convolution()[0] if centred else None
    bound = dataclasses.replace(TOLERANCES[remainder], max_drop=work.tolerance.max_drop)
    base = verified_graph(work, network, remainder, opset, simplified, bound, centred)
    path = work.scratch / "int8.onnx"

    def build(high: tuple[str, ...], final: bool) -> FidelityReport:
        layers = [row.layer for row in ranking if row.layer not in high]
        quantize_onnx(base, path, peaks, layers, pixel_layer)
        return work.measure("int8", "onnx", "f32", path, _held_to(work, request))

    quantization = _search(work, ranking, request, strength, build)
    work.record(path, "onnx", "int8")
    return finished_graph(work, path, "int8"), quantization


def int8_openvino(
    work: Workbench, request: CalibrationRequest, opset: int, simplified: bool
) -> tuple[Path, Quantization]:
    """An OpenVINO IR quantized by NNCF, the rest in FP32, that holds its bounds."""
    pixels = _calibration_pixels(work, request)
    few = normalised_batches(pixels[:MEASURED_IMAGES], work.spec.preprocessing)
    ranking = _ranking(work, work.model, few, request)
    graph = verified_graph(work, work.model, "fp32", opset, simplified, TOLERANCES["fp32"])
    graph = finished_graph(work, graph, "fp32")
    path = work.scratch / "int8.xml"

    def quantize(high: Sequence[str], strength: float | None, images: int) -> None:
        layers = [row.layer for row in ranking if row.layer not in high]
        inputs = batch_from_pixels(pixels[:images], work.spec.preprocessing, work.given.dtype)
        quantize_openvino(graph, path, inputs, work.given.batch, layers, strength, request.method)

    strength = request.smooth_quant
    if request.judged and can_smooth(work.model):
        with work.stage("smooth-quant"):
            strength = _strength_in_openvino(
                work, pixels[:MEASURED_IMAGES], path, quantize, request
            )

    def build(high: tuple[str, ...], final: bool) -> FidelityReport:
        quantize(high, strength, len(pixels) if final else 2 * MEASURED_IMAGES)
        return work.measure("int8", "openvino", "f32", path, _held_to(work, request))

    quantization = _search(work, ranking, request, strength, build)
    work.record(path, "openvino-ir", "int8")
    return path, quantization


def _calibration_pixels(work: Workbench, request: CalibrationRequest) -> npt.NDArray[np.uint8]:
    """The calibration images, (images,S,S,3). Raises DataError for what the network cannot know."""
    images = request.images
    with work.stage("calibration images"):
        pixels = pixels_of(images, work.spec.preprocessing)
        if not request.judged:
            return pixels
        refuse_unfit_pixels(pixels, images.paths)
        some = slice(0, 2 * MEASURED_IMAGES)
        logits = torch_outputs(work.model, pixels[some], work.spec.preprocessing).logits
        known = float(np.mean(logits.argmax(axis=1) == np.asarray(images.targets[some])))
        targets = np.asarray(work.images.targets)
        expected = float(np.mean(work.reference.logits.argmax(axis=1) == targets))
        if known < LEAST_KNOWN * expected:
            raise DataError(
                f"the FP32 network recognises {known:.0%} of the calibration images and "
                f"{expected:.0%} of those it is verified on: these are not images of its classes"
            )
    return pixels


def normalised_batches(pixels: npt.NDArray[np.uint8], spec: Preprocessing) -> list[Tensor]:
    """uint8 (images,S,S,3) -> normalised (B,3,S,S), at most BATCH at a time."""
    return [
        torch.from_numpy(batch_from_pixels(pixels[start : start + BATCH], spec, "float32"))
        for start in range(0, len(pixels), BATCH)
    ]


def _ranking(
    work: Workbench, network: Network, batches: list[Tensor], request: CalibrationRequest
) -> list[LayerSensitivity]:
    layers = quantizable_layers(network)
    if set(layers) <= set(request.keep_high_precision):
        raise UsageError(
            f"--keep-high-precision names all {len(layers)} layers: leave some to INT8, or use "
            "another --precision"
        )
    unknown = sorted(set(request.keep_high_precision) - set(layers))
    if unknown:
        close = difflib.get_close_matches(unknown[0], layers, n=1)
        hint = f", did you mean {close[0]}" if close else ""
        raise UsageError(
            f"--keep-high-precision: the network has no layer {unknown[0]!r}{hint}: "
            "gft-edge sensitivity RUN lists them"
        )
    if not request.judged:
        return unmeasured(network)
    with work.stage("sensitivity"):
        targets = request.images.targets[:MEASURED_IMAGES]
        return sensitivity(network, batches, targets, work.counter("sensitivity", len(layers)))


def smoothed(
    model: Network,
    batches: Sequence[Tensor],
    few: Sequence[Tensor],
    advance: Callable[[int], None] | None,
    say: Say,
) -> tuple[Network, float | None]:
    """The network smoothed against the peaks of all `batches`, and the strength that costs it least.

    The strengths are compared by what all layers in INT8 cost on `few`. None is off: a network of
    other blocks than a ViT's stays as it is.
    """
    if not can_smooth(model):
        return model, None
    reads = channel_peaks(model, batches, advance)
    damages = {
        strength: damage_of_all(smooth(model, reads, strength), few) for strength in SMOOTH_QUANT
    }
    strength = _least(damages, say)
    return smooth(model, reads, strength), strength


def _strength_in_openvino(
    work: Workbench,
    pixels: npt.NDArray[np.uint8],
    path: Path,
    quantize: Callable[[Sequence[str], float | None, int], None],
    request: CalibrationRequest,
) -> float | None:
    reference = torch_outputs(work.model, pixels, work.spec.preprocessing)
    damages = {}
    for number, strength in enumerate(SMOOTH_QUANT, start=1):
        quantize(request.keep_high_precision, strength, len(pixels))
        outputs = work.outputs("smooth-quant", "openvino", "f32", path, pixels)
        report = compare("smooth-quant", reference, outputs, NO_BOUND)
        lost = sum(1 - overlap for overlap in report.kept_overlap)
        damages[strength] = lost + COSINE_WEIGHT * (1 - report.cosine)
        work.progress("smooth-quant", number, len(SMOOTH_QUANT))
    return _least(damages, work.say)


def _least(damages: dict[float | None, float], say: Say) -> float | None:
    best = min(damages, key=lambda strength: damages[strength])
    tried = ", ".join(f"{_name(strength)} {damages[strength]:.3f}" for strength in damages)
    say(f"smooth-quant {_name(best)} (damage of all layers in INT8: {tried})")
    return best


def _name(strength: float | None) -> str:
    return "off" if strength is None else f"{strength:g}"


def _held_to(work: Workbench, request: CalibrationRequest) -> Tolerance:
    return with_reserve(work.tolerance) if request.judged else work.tolerance


def _search(
    work: Workbench,
    ranking: list[LayerSensitivity],
    request: CalibrationRequest,
    strength: float | None,
    build: Callable[[tuple[str, ...], bool], FidelityReport],
) -> Quantization:
    with work.stage("int8"):
        high = request.keep_high_precision
        if request.judged:
            high, report = fewest_high_precision(ranking, high, build, work.say)
        else:
            report = build(high, True)
    work.reports.append(report)
    images = request.images
    return Quantization(
        method=request.method,
        smooth_quant=strength,
        calibrated_on=ImageRecord(len(images.paths), images.seed, images.digest),
        high_precision=high,
        int8_layers=len(ranking) - len(high),
        int8_macs=sum(row.macs for row in ranking if row.layer not in high),
    )
