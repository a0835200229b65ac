"""SmoothQuant: outliers moved from activations, which INT8 scales by tensor, into weights, by channel.

Xiao et al., arXiv 2211.10438, Eq. 3-4. The network computes the same; in a ViT three of four
scalings are free: they fold into the LayerNorm before `qkv` and `fc1` and into the rows of `qkv`
that make the values `proj` reads. Before `fc2` stands a GELU, so there one Mul per block stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from gft_edge.bundle.specs import Say
from gft_edge.calibration.layers import quantizable_layers, read_all
from gft_edge.calibration.sensitivity import damage_of_all
from gft_edge.model.dense import Dense
from gft_edge.model.network import Network

# None is off. NNCF's default is 0.95, its own conformance tests of ViTs use the others.
STRENGTHS = (None, 0.15, 0.5, 0.95)


class ChannelScale(nn.Module):
    """(..., C) times one factor a channel."""

    scale: Tensor

    def __init__(self, scale: Tensor):
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x * self.scale


def can_smooth(model: Network) -> bool:
    """Whether the network is of the blocks that smoothing folds into."""
    return isinstance(model.backbone, VisionTransformer) and not isinstance(model, Dense)


def smoothed(
    model: Network,
    batches: Sequence[Tensor],
    few: Sequence[Tensor],
    say: Say,
    advance: Callable[[int], object] = lambda images: None,
) -> tuple[Network, float | None]:
    """Smooth against the peaks of all `batches`; return the strength that costs the network least too.

    The strengths are compared by what all layers in INT8 cost on `few`. None is off: a network of
    other blocks than a ViT's stays as it is.
    """
    if not can_smooth(model):
        return model, None
    reads = channel_peaks(model, batches, advance)
    damages = {
        strength: damage_of_all(smooth(model, reads, strength), few) for strength in STRENGTHS
    }
    strength = least_damage(damages, say)
    return smooth(model, reads, strength), strength


def least_damage(damages: Mapping[float | None, float], say: Say) -> float | None:
    """Return the strength that does the least damage, and say what each does."""
    best = min(damages, key=lambda strength: damages[strength])
    tried = ", ".join(f"{_name(strength)} {damages[strength]:.3g}" for strength in damages)
    say(f"smooth-quant {_name(best)} (damage of all layers in INT8: {tried})")
    return best


def _name(strength: float | None) -> str:
    return "off" if strength is None else f"{strength:g}"


def smooth(model: Network, peaks: Mapping[str, Tensor], alpha: float | None) -> Network:
    """A copy with smoothing of strength `alpha` (0..1) against the `peaks` of each channel.

    None is off and gives the copy alone.
    """
    smoothed = copy.deepcopy(model)
    if alpha is None:
        return smoothed
    for prefix, norm1, attn, norm2, mlp in _blocks(smoothed):
        plain_gate = getattr(attn, "gate", None) is None
        if isinstance(norm1, nn.LayerNorm) and plain_gate:
            _into_norm(norm1, attn.qkv, peaks[f"{prefix}.attn.qkv"], alpha)
        if isinstance(attn.norm, nn.Identity) and plain_gate:
            _into_values(attn.qkv, attn.proj, peaks[f"{prefix}.attn.proj"], alpha)
        if mlp is not None and isinstance(norm2, nn.LayerNorm):
            _into_norm(norm2, mlp.fc1, peaks[f"{prefix}.mlp.fc1"], alpha)
        if mlp is not None and isinstance(mlp.norm, nn.Identity):
            factor = _factor(mlp.fc2, peaks[f"{prefix}.mlp.fc2"], alpha)
            mlp.norm = ChannelScale(1 / factor)
            mlp.fc2.weight.data *= factor
    return smoothed


def channel_peaks(
    model: Network,
    batches: Sequence[Tensor],
    advance: Callable[[int], object] = lambda images: None,
) -> dict[str, Tensor]:
    """The largest magnitude each layer reads, by channel (last axis), on (B,3,S,S) batches.

    All calibration images count: smoothing levels the channels on what it has seen, and a strong one
    makes outliers of what it has not.
    """
    peaks: dict[str, Tensor] = {}

    def note(name: str, read: Tensor) -> None:
        here = read.abs().flatten(0, -2).amax(dim=0)
        peaks[name] = torch.maximum(peaks[name], here) if name in peaks else here

    read_all(model, quantizable_layers(model), batches, note, advance)
    return {name: peak.clone() for name, peak in peaks.items()}


def _blocks(model: Network) -> list[tuple[str, Any, Any, Any, Any]]:
    """Name, norm1, attn, norm2 and mlp of each block; a GALA layer has the first two."""
    found: list[tuple[str, Any, Any, Any, Any]] = [
        (f"backbone.blocks.{number}", block.norm1, block.attn, block.norm2, block.mlp)
        for number, block in enumerate(model.backbone.blocks)
    ]
    found += [
        (f"layers.{number}", layer.norm, layer.attn, None, None)
        for number, layer in enumerate(model.layers)
    ]
    return found


def _factor(layer: nn.Linear, peak: Tensor, alpha: float) -> Tensor:
    """Eq. 4, of geometric mean 1 so that the layer's own range stays."""
    weights = layer.weight.detach().abs().amax(dim=0).clamp(min=1e-5)
    factor = peak.clamp(min=1e-5) ** alpha / weights ** (1 - alpha)
    return factor / factor.log().mean().exp()


def _into_norm(norm: nn.LayerNorm, layer: nn.Linear, peak: Tensor, alpha: float) -> None:
    factor = _factor(layer, peak, alpha)
    norm.weight.data /= factor
    if norm.bias is not None:
        norm.bias.data /= factor
    layer.weight.data *= factor


def _into_values(qkv: nn.Linear, proj: nn.Linear, peak: Tensor, alpha: float) -> None:
    factor = _factor(proj, peak, alpha)
    values = slice(-len(factor), None)  # q, k, v: the last third of the rows
    qkv.weight.data[values] /= factor.unsqueeze(1)
    if qkv.bias is not None:
        qkv.bias.data[values] /= factor
    proj.weight.data *= factor
