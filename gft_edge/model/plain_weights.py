"""Weights that a network standardises at each call (BiT, NFNet), standardised once and for all."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import Conv2dSame
from timm.layers.std_conv import (
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    StdConv2d,
    StdConv2dSame,
)
from torch import Tensor, nn
from torch.nn import functional as F

from gft_edge.model.network import Network

STANDARDISED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)


def with_plain_weights(model: Network) -> Network:
    """The network with plain convolutions alone: itself, or a copy that computes the same.

    Left in a graph, the standardisation of constants would run in FP16, whose sums over thousands
    of weights are off by percents, and hide the weights from INT8.
    """
    if not any(isinstance(module, STANDARDISED) for module in model.modules()):
        return model
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, STANDARDISED):
            parent, _, last = name.rpartition(".")
            setattr(plain.get_submodule(parent), last, _plain(module))
    return plain.eval()


def _plain(module: Any) -> nn.Conv2d:
    same = getattr(module, "same_pad", False)
    convolution: nn.Conv2d = (Conv2dSame if same else nn.Conv2d)(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        stride=module.stride,
        padding=0 if same else module.padding,
        dilation=module.dilation,
        groups=module.groups,
        bias=module.bias is not None,
    )
    with torch.no_grad():
        convolution.weight.copy_(_standardised(module))
        if convolution.bias is not None:
            convolution.bias.copy_(module.bias)
    return convolution


def _standardised(module: Any) -> Tensor:
    """timm's own formula (timm.layers.std_conv)."""
    gain = getattr(module, "gain", None)
    weight: Tensor = F.batch_norm(
        module.weight.reshape(1, module.out_channels, -1),
        None,
        None,
        weight=None if gain is None else (gain * module.scale).view(-1),
        training=True,
        momentum=0.0,
        eps=module.eps,
    )
    return weight.reshape_as(module.weight)
