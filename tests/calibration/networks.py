"""Small networks whose layers the tests of calibration round and smooth."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gft_edge.bundle.specs import GalaMode, Score
from gft_edge.model.gft import GFT
from gft_edge.model.network import Network
from tests.support.networks import wide_network

# 48 px in patches of 8: 36 patches and the class token.
PATCHES, WIDTH, PATCH_PX = 36, 48, 8
OUTLIER = "backbone.blocks.1.mlp.fc1"
EMBEDDING = "backbone.patch_embed.proj"


def network(
    stages: str = "0:20,1:15", gala: GalaMode = "block", score: Score = "gala", **changes: int
) -> GFT:
    """Three blocks of wide weights, biases and gains, so that each shows in the logits."""
    return wide_network(stages, gala, score, bias_spread=1 / 4, depth=3, **changes)[1]


def with_outlier(model: GFT, block: int = 1, gain: float = 1000) -> GFT:
    """The same function, but for one channel that fc1 of a block reads `gain` times as large."""
    changed = copy.deepcopy(model)
    chosen: Any = changed.backbone.blocks[block]
    chosen.norm2.weight.data[5] *= gain
    chosen.norm2.bias.data[5] *= gain
    chosen.mlp.fc1.weight.data[:, 5] /= gain
    return changed


def logits_of(model: GFT, batches: list[Tensor]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in batches])


def block_layers(*numbers: int) -> list[str]:
    return [
        f"backbone.blocks.{number}.{layer}"
        for number in numbers
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]


def hooks(model: GFT) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def equal_weights(model: Network, before: Mapping[str, Tensor]) -> bool:
    after = model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in after)
