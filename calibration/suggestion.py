"""What INT8 costs each layer of a network, and which layers an export would have to leave alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from gft_edge.bundle.reports import FidelityReport
from gft_edge.bundle.specs import ModelSpec, Progress, Say, counter
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.calibration.layers import quantizable_layers
from gft_edge.calibration.search import fewest_high_precision
from gft_edge.calibration.sensitivity import LayerSensitivity, in_int8, sensitivity, tensor_peaks
from gft_edge.calibration.smoothing import smoothed
from gft_edge.datasets import Photographs
from gft_edge.errors import GateError
from gft_edge.fidelity.compare import PHOTO_TOLERANCES, compare
from gft_edge.fidelity.noise_floor import changed
from gft_edge.model.network import Network
from gft_edge.model.plain_weights import with_plain_weights
from gft_edge.model.reference import normalised_batches, pixels_of, torch_outputs

# Channels are levelled on this many times the images that layers are measured on: on the same few,
# a strong smoothing would look better than it is.
SMOOTHING_SHARE = 4


@dataclass(frozen=True)
class Suggestion:
    """The layers, most damage per work first, and those that an INT8 export should keep out.

    `with_it` is how the network does with them in high precision, None where not even one layer in
    INT8 holds the bounds. `smooth_quant` is the strength of the smoothing, None for off.
    """

    smooth_quant: float | None
    images: int
    layers: tuple[LayerSensitivity, ...]
    keep_high_precision: tuple[str, ...]
    with_it: FidelityReport | None


class _Measured(NamedTuple):
    report: FidelityReport


def suggest_high_precision(
    model: Network,
    spec: ModelSpec,
    split: Photographs,
    images: int = 32,
    seed: int = 0,
    progress: Progress = lambda text, done, total: None,
    say: Say = lambda text: None,
) -> Suggestion:
    """Measure each layer alone in INT8 on `images` of a split, and search the fewest to keep out.

    The network is computed in PyTorch as an INT8 export smooths it. Raises ImageError, and
    FailedError for a network whose outputs are not finite.
    """
    given = spec.preprocessing
    model = with_plain_weights(model)
    several = draw_image_set(split, SMOOTHING_SHARE * images, seed)
    drawn = draw_image_set(split, images, seed)
    pixels = pixels_of(drawn, given)
    batches = normalised_batches(pixels, given)
    everything = normalised_batches(pixels_of(several, given), given)
    network, strength = smoothed(model, everything, batches, say)
    layers = quantizable_layers(network)
    ranking = sensitivity(
        network, batches, drawn.targets, counter(progress, "sensitivity", len(layers))
    )
    peaks = tensor_peaks(network, layers, batches)
    reference = torch_outputs(model, pixels, given)
    # On a few dozen images one decision is percents: the suggestion goes by patches and logits.
    bound = dataclasses.replace(PHOTO_TOLERANCES["int8"], max_drop=None)
    assert bound.change is not None
    floor = torch_outputs(model, changed(pixels, bound.change), given)

    def build(high: tuple[str, ...], final: bool) -> _Measured:
        low = {name: layer for name, layer in layers.items() if name not in high}
        with in_int8(low, peaks):
            outputs = torch_outputs(network, pixels, given)
        return _Measured(
            compare("sensitivity", reference, outputs, bound, drawn.targets, floor, split.labels)
        )

    high: tuple[str, ...] = ()
    report = None
    try:
        order = [row.layer for row in ranking]
        high, made = fewest_high_precision(order, (), lambda: order, build, lambda text: None)
        report = made.report
    except GateError:
        pass
    return Suggestion(strength, len(drawn.paths), tuple(ranking), high, report)
