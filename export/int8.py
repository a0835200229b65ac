"""The steps that INT8 adds: calibration images, the order of the layers, smoothing, the search."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gft_edge.bundle.manifest import Quantization
from gft_edge.bundle.reports import Tolerance
from gft_edge.calibration.image_set import unfit_pixels
from gft_edge.calibration.layers import quantizable_layers
from gft_edge.calibration.search import fewest_high_precision, with_reserve
from gft_edge.calibration.sensitivity import (
    COSINE_WEIGHT,
    sensitivity,
    unmeasured,
)
from gft_edge.calibration.smoothing import STRENGTHS, can_smooth, least_damage, smoothed
from gft_edge.errors import UsageError
from gft_edge.export.judge import Judge, Made
from gft_edge.export.request import CalibrationRequest
from gft_edge.fidelity.compare import NO_BOUND, compare
from gft_edge.fidelity.metrics import accuracy_of
from gft_edge.model.network import Network
from gft_edge.model.reference import BATCH, pixels_of, torch_outputs
from gft_edge.runtime.outputs import Outputs

# What the ranking and the choice of a smoothing strength are measured on; the ranges that are
# shipped come from all calibration images.
MEASURED_IMAGES = 32
BATCHES_MEASURED = MEASURED_IMAGES // BATCH

# Of the share of verification images that FP32 recognises: calibration images below may not be of the
# network's classes.
LEAST_KNOWN = 0.5


def calibration_pixels(
    judge: Judge, network: Network, calibration: CalibrationRequest
) -> npt.NDArray[np.uint8]:
    """Load the calibration images, (images,S,S,3), and say what looks wrong with them."""
    images, spec = calibration.images, judge.spec.preprocessing
    with judge.steps("calibration images"):
        pixels = pixels_of(images, spec)
        if not judge.request.judged:
            return pixels
        warnings = unfit_pixels(pixels, images.paths)
        some = slice(0, 2 * MEASURED_IMAGES)
        logits = torch_outputs(network, pixels[some], spec).logits
        known = accuracy_of(logits, images.targets[some])
        expected = judge.accuracy(judge.reference)
        if known is not None and expected is not None and known < LEAST_KNOWN * expected:
            warnings.append(
                f"the FP32 network recognises {known:.0%} of the calibration images and "
                f"{expected:.0%} of those it is verified on"
            )
        for warning in warnings:
            judge.steps.say(f"Warning: {warning}: calibrate on images like those of the device")
    return pixels


def smoothed_network(
    judge: Judge, network: Network, batches: list[Tensor], few: list[Tensor]
) -> tuple[Network, float | None]:
    """Smooth the network itself, as a QDQ graph needs it; return the strength too."""
    if not judge.request.judged:
        return network, None
    with judge.steps("smooth-quant"):
        advance = judge.steps.counter("smooth-quant", sum(map(len, batches)))
        return smoothed(network, batches, few, judge.steps.say, advance)


def strength_in_openvino(
    judge: Judge,
    network: Network,
    pixels: npt.NDArray[np.uint8],
    calibration: CalibrationRequest,
    outputs_at: Callable[[float | None], Outputs],
) -> float | None:
    """Choose how strongly NNCF smooths, by what `outputs_at` a strength gives for `pixels`."""
    if not (judge.request.judged and can_smooth(network)):
        return calibration.smooth_quant
    with judge.steps("smooth-quant"):
        reference = torch_outputs(network, pixels, judge.spec.preprocessing)
        damages = {}
        for number, strength in enumerate(STRENGTHS, start=1):
            report = compare("smooth-quant", reference, outputs_at(strength), NO_BOUND)
            lost = sum(1 - overlap for overlap in report.kept_overlap)
            damages[strength] = lost + COSINE_WEIGHT * (1 - report.cosine)
            judge.steps.progress("smooth-quant", number, len(STRENGTHS))
        return least_damage(damages, judge.steps.say)


def asked_layers(network: Network, keep_high_precision: Sequence[str]) -> list[str]:
    """Return the layers that INT8 is asked for: all but those that are to stay in high precision.

    Raises UsageError for names that are no layers, and where none is left.
    """
    layers = quantizable_layers(network)
    if set(layers) <= set(keep_high_precision):
        raise UsageError(
            f"--keep-high-precision names all {len(layers)} layers: leave some to INT8, or use "
            "another --precision"
        )
    unknown = sorted(set(keep_high_precision) - set(layers))
    if unknown:
        close = difflib.get_close_matches(unknown[0], layers, n=1)
        hint = f", did you mean {close[0]}" if close else ""
        raise UsageError(
            f"--keep-high-precision: the network has no layer {unknown[0]!r}{hint}: "
            "gft-edge sensitivity RUN lists them"
        )
    return [name for name in layers if name not in keep_high_precision]


def quantized(
    judge: Judge,
    network: Network,
    batches: list[Tensor],
    calibration: CalibrationRequest,
    strength: float | None,
    build: Callable[[list[str], bool, Tolerance], Made],
) -> tuple[Made, Quantization]:
    """Give layers back to high precision until what `build` makes of the others holds its bounds.

    They are ranked by what INT8 costs each on `batches`, once there is a reason to. `build` takes the
    layers for INT8, whether the graph is to be shipped, and the bounds.
    """
    bound, judged = judge.request.tolerance, judge.request.judged
    work = {row.layer: row.macs for row in unmeasured(network)}

    def with_high(high: tuple[str, ...], final: bool) -> Made:
        layers = [name for name in work if name not in high]
        return build(layers, final, with_reserve(bound) if judged else bound)

    def ranking() -> list[str]:
        with judge.steps("sensitivity"):
            targets = calibration.images.targets[:MEASURED_IMAGES]
            advance = judge.steps.counter("sensitivity", len(work))
            return [row.layer for row in sensitivity(network, batches, targets, advance)]

    with judge.steps("int8"):
        high, say = calibration.keep_high_precision, judge.steps.say
        if judged:
            high, made = fewest_high_precision([*work], high, ranking, with_high, say)
        else:
            made = with_high(high, True)
    return made, Quantization(
        method=calibration.method,
        smooth_quant=strength,
        calibrated_on=calibration.images.record,
        high_precision=high,
        int8_layers=len(work) - len(high),
        int8_macs=sum(macs for name, macs in work.items() if name not in high),
        weights_range=judge.request.weights_range,
    )
