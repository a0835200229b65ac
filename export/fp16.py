"""FP16 decided in one place: the network itself is cast before it is exported, its score branch not."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from gft_edge.errors import PipelineError
from gft_edge.model.network import Network

FP16_MAX = torch.finfo(torch.float16).max


def half(model: Network) -> Network:
    """A copy that computes in FP16; the selections rank in FP32, as they do in any precision.

    Exported, it is strongly typed: no converter inserts Casts, clamps constants or splits a
    LayerNormalization. Raises PipelineError naming a weight that FP16 cannot hold.
    """
    check_range(model)
    network = copy.deepcopy(model).half()
    # As they were, not back from FP16: that would round the smoothing kernel.
    network.selections = copy.deepcopy(model.selections)
    return network


def check_range(model: Network) -> None:
    """Raise PipelineError naming the first tensor with a value beyond FP16's largest, 65504."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        largest = _largest(tensor)
        if not largest <= FP16_MAX:
            raise PipelineError(
                f"tensor {name} reaches {largest:g}, FP16 ends at {FP16_MAX:g}: "
                "export with --precision fp32"
            )


def _largest(tensor: Tensor) -> float:
    return (
        float(tensor.detach().abs().max()) if tensor.is_floating_point() and tensor.numel() else 0.0
    )
