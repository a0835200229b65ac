"""Attention written as products trains like the fused kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gft_edge.model.named_networks import build_network, spec_from_name
from gft_edge.training.objective import Objective
from gft_edge.training.product_attention import ProductAttention
from gft_edge.training.recipes import Recipe


def test_attention_as_products_has_the_values_and_gradients_of_the_fused_kernel() -> None:
    def attend(dtype: torch.dtype, **settings: Any) -> list[Tensor]:
        drawn = torch.Generator().manual_seed(0)
        q, k, v = torch.randn(3, 2, 3, 9, 8, generator=drawn).to(dtype).requires_grad_().unbind()
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, **settings)
        assert out.dtype == dtype
        gradients = torch.autograd.grad(out.square().sum(), (q, k, v))
        return [part.detach().float() for part in (out, *gradients)]

    exact = attend(torch.float32)
    with ProductAttention(), torch.autocast("cpu", dtype=torch.bfloat16):
        products = attend(torch.bfloat16)
        causal = attend(torch.bfloat16, is_causal=True)
    with ProductAttention():
        unchanged = attend(torch.float32)
    for part, expected in zip(products, exact, strict=True):
        torch.testing.assert_close(part, expected, rtol=0.05, atol=0.1)
    for part, fused in zip(causal, attend(torch.bfloat16, is_causal=True), strict=True):
        torch.testing.assert_close(part, fused, rtol=0, atol=0)
    for part, fused in zip(unchanged, exact, strict=True):
        torch.testing.assert_close(part, fused, rtol=0, atol=0)


def test_a_training_in_bf16_on_a_cpu_leaves_the_fused_kernel() -> None:
    spec = spec_from_name("test_vit", ("a", "b", "c"))
    objective = Objective(build_network(spec), Recipe(), amp=True).train()
    size = spec.preprocessing.image_size_px
    with torch.profiler.profile() as profiled:
        objective(torch.randn(2, 3, size, size), torch.tensor([0, 1])).backward()
    called = {event.key for event in profiled.key_averages()}
    assert "aten::_softmax" in called
    assert not any("flash_attention" in name for name in called)
