"""Attention while training in bf16 on a CPU: as products, where PyTorch's fused kernel is slow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class ProductAttention(TorchFunctionMode):
    """Computes `scaled_dot_product_attention` of bf16 tensors on the CPU as two products and a softmax.

    The backward of torch 2.15's fused kernel takes 8 times its forward there, a third of a training
    step: `benchmarks/training_throughput.py` measures both. In float32, on a GPU, and with a mask or
    dropout, PyTorch's own is called.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and not any(kwargs.values()):
            q = args[0]
            if len(args) == 3 and q.device.type == "cpu" and q.dtype == torch.bfloat16:
                return _attention(*args)
        return func(*args, **kwargs)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # Autocast would widen the softmax, whose sums are float32 in either case.
    with torch.autocast("cpu", enabled=False):
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        made: Tensor = weights @ v
    return made
