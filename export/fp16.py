"""FP16 decided in one place: the network itself is cast before it is exported, its score branch not."""

from __future__ import annotations

import copy

import torch

from gft_edge.errors import PipelineError
from gft_edge.model.network import Network

FP16_MAX = torch.finfo(torch.float16).max


def half(model: Network) -> Network:
    """A copy that computes in FP16; the selections rank in FP32, as they do in any precision.

    Exported, it is strongly typed: no converter inserts Casts, clamps constants or splits a
    LayerNormalization. Raises PipelineError naming a weight that FP16 cannot hold.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        # Counts stay integers.
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        if not (largest := float(tensor.detach().abs().max())) <= FP16_MAX:
            raise PipelineError(
                f"tensor {name} reaches {largest:g}, FP16 ends at {FP16_MAX:g}: "
                "export with --precision fp32"
            )
    network = copy.deepcopy(model).half()
    # As they were, not back from FP16: that would round the smoothing kernel.
    network.selections = copy.deepcopy(model.selections)
    return network
