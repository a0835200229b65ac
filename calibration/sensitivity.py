"""What each layer costs in INT8: accuracy, logits and, above all, which patches are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from gft_edge.calibration.layers import (
    Layer,
    finite_peak,
    layer_macs,
    quantizable_layers,
    read_all,
    reading,
)
from gft_edge.errors import FailedError
from gft_edge.fidelity.compare import kept_overlap
from gft_edge.fidelity.metrics import accuracy_of
from gft_edge.model.gala import top_k_in_grid_order
from gft_edge.model.network import Network
from gft_edge.model.reference import recorded_scores

# A logit cosine lost weighs as much as five times that share of score noise: measured on
# gft_tiny, both then reach their bounds at about the same number of layers given back.
COSINE_WEIGHT = 5.0


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer in INT8, all others in FP32, against the network in FP32.

    Every stage is given the patches that FP32 keeps, so that its loss is its own and not what an
    earlier stage lost. `overlap_loss`, one number a stage, is 1 less the Jaccard overlap of what it
    would keep; `score_noise` the variance of the error of its scores relative to that of the scores,
    which tells layers apart long before a patch changes sides. `damage` is what layers are ranked
    by, in all; `macs` the share of the layers' work that this one does. `accuracy_drop` is None where no
    class is known.
    """

    layer: str
    accuracy_drop: float | None
    cosine_drop: float
    overlap_loss: tuple[float, ...]
    score_noise: tuple[float, ...]
    damage: float
    macs: float


def sensitivity(
    model: Network,
    batches: Sequence[Tensor],
    targets: Sequence[int | None],
    advance: Callable[[int], object] = lambda layers: None,
) -> list[LayerSensitivity]:
    """Each layer alone in INT8 on normalised (B,3,S,S) batches, most damage per work first.

    Weights symmetric by output channel, activations symmetric by tensor, ranges from the extremes:
    what the QDQ graphs hold. Raises FailedError naming a layer that reads NaN or infinity, and for
    logits that hold them.
    """
    layers = quantizable_layers(model)
    macs = layer_macs(model, layers)
    peaks = tensor_peaks(model, layers, batches)
    reference = _run(model, batches, None)
    correct = accuracy_of(reference.logits.numpy(), targets)
    results = []
    for name, layer in layers.items():
        with in_int8({name: layer}, peaks):
            noisy = _run(model, batches, reference.kept)
        cosine_drop, stages = _losses(reference, noisy)
        right = accuracy_of(noisy.logits.numpy(), targets)
        noise = tuple(noise for _, noise in stages)
        results.append(
            LayerSensitivity(
                name,
                None if correct is None or right is None else correct - right,
                cosine_drop,
                tuple(overlap_loss for overlap_loss, _ in stages),
                noise,
                sum(noise) + COSINE_WEIGHT * cosine_drop,
                macs[name] / sum(macs.values()),
            )
        )
        advance(1)
    return sorted(results, key=lambda row: row.damage / row.macs, reverse=True)


def unmeasured(model: Network) -> list[LayerSensitivity]:
    """Every layer with its share of the work and no damage: for a network whose outputs mean nothing."""
    layers = quantizable_layers(model)
    macs = layer_macs(model, layers)
    return [
        LayerSensitivity(name, 0.0, 0.0, (), (), 0.0, macs[name] / sum(macs.values()))
        for name in layers
    ]


def damage_of_all(model: Network, batches: Sequence[Tensor]) -> float:
    """The damage, as in LayerSensitivity, of all layers in INT8 at once."""
    layers = quantizable_layers(model)
    peaks = tensor_peaks(model, layers, batches)
    reference = _run(model, batches, None)
    with in_int8(layers, peaks):
        noisy = _run(model, batches, reference.kept)
    cosine_drop, stages = _losses(reference, noisy)
    return sum(noise for _, noise in stages) + COSINE_WEIGHT * cosine_drop


def tensor_peaks(
    model: Network, layers: dict[str, Layer], batches: Sequence[Tensor]
) -> dict[str, float]:
    """The largest magnitude each layer reads. Raises FailedError where it is not finite."""
    peaks: dict[str, float] = dict.fromkeys(layers, 0.0)

    def note(name: str, read: Tensor) -> None:
        peaks[name] = max(peaks[name], finite_peak(name, read))

    read_all(model, layers, batches, note)
    return peaks


@contextmanager
def in_int8(
    layers: dict[str, Layer], peaks: dict[str, float], weight_levels: int = 127
) -> Iterator[None]:
    """While open, `layers` compute with weights and inputs rounded to INT8, symmetric.

    Weights reach `weight_levels`: 64 is half of their range.
    """
    weights = {name: layer.weight.data for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.weight.data = rounded_weight(weights[name], weight_levels)
        with reading(layers, lambda name, x: _rounded(x, peaks[name])):
            yield
    finally:
        for name, layer in layers.items():
            layer.weight.data = weights[name]


def _rounded(x: Tensor, peak: float) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, max(peak, 1e-12) / 127, 0, -127, 127)


def rounded_weight(weight: Tensor, levels: int = 127) -> Tensor:
    """A weight as symmetric INT8 holds it, one scale an output channel (the first axis)."""
    scales = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / levels
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -levels, levels)


@dataclass(frozen=True)
class _Run:
    """Logits (images,classes); scores (images,N) and kept patches (images,K) of each stage."""

    logits: Tensor
    scores: list[Tensor]
    kept: list[Tensor]


def _run(model: Network, batches: Sequence[Tensor], kept: list[Tensor] | None) -> _Run:
    """All batches through the network; `kept` overrules what its stages choose."""
    logits, scores = [], []
    done = 0
    with torch.inference_mode(), recorded_scores(model) as record:
        for batch in batches:
            record.clear()
            part = slice(done, done + len(batch))
            with _overruled(model, [stage[part] for stage in kept]) if kept else nullcontext():
                logits.append(model(batch))
            scores.append([score for _, score in record])
            done += len(batch)
    if not torch.cat(logits).isfinite().all():
        # Damage would be NaN, which sorts anywhere: a ranking of nothing.
        raise FailedError(
            "the logits hold NaN or infinity on the calibration images: "
            "quantization needs a sound FP32 network"
        )
    joined = [torch.cat(stage) for stage in zip(*scores, strict=True)]
    keeps = [selection.keep for selection in model.selections]
    chosen = [top_k_in_grid_order(s, keep) for s, keep in zip(joined, keeps, strict=True)]
    return _Run(torch.cat(logits), joined, chosen)


@contextmanager
def _overruled(model: Network, kept: list[Tensor]) -> Iterator[None]:
    with ExitStack() as stack:
        for selection, chosen in zip(model.selections, kept, strict=True):
            hook = selection.register_forward_hook(lambda *_, chosen=chosen: (chosen, None))
            stack.enter_context(hook)
        yield


def _losses(reference: _Run, noisy: _Run) -> tuple[float, list[tuple[float, float]]]:
    """Cosine lost, and per stage the overlap lost and the score noise."""
    stages = []
    for number, (a, b) in enumerate(zip(reference.scores, noisy.scores, strict=True)):
        overlap = kept_overlap(reference.kept[number].numpy(), noisy.kept[number].numpy())
        spread = (a - a.mean(dim=1, keepdim=True)).square().mean().clamp(min=1e-30)
        stages.append((1 - overlap, float((b - a).var() / spread)))
    cosine = float(cosine_similarity(reference.logits, noisy.logits).mean())
    return 1 - cosine, stages
