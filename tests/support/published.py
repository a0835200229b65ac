"""The network of the published scripts, restated, small and as after a training."""

from __future__ import annotations

import functools

import timm
import torch
from torch import Tensor, nn

from tests.support.pictures import MICRO_LABELS

WIDTH, HEADS, DEPTH, PATCH, SIZE = 48, 3, 10, 8, 48
KEEP = (27, 18, 9)  # 75, 50, 25 % of 36


class Stage(nn.Module):
    """One GALA layer as the published code computes it: patches in, kept patches in score order out."""

    ema_grad: Tensor | None

    def __init__(self, width: int, heads: int, keep: int):
        super().__init__()
        self.heads, self.keep, self.scale = heads, keep, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.smooth = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.register_buffer("ema_grad", None)

    def forward(self, x: Tensor, shuffle: bool) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = q @ k.transpose(-2, -1) * self.scale
        mean = attention.mean(dim=-1)
        slope = torch.zeros_like(mean)
        slope[..., 0] = mean[..., 1] - mean[..., 0]
        slope[..., -1] = mean[..., -1] - mean[..., -2]
        slope[..., 1:-1] = (mean[..., 2:] - mean[..., :-2]) / 2
        importance = self.smooth(slope.abs().mean(dim=1, keepdim=True)).squeeze(1)
        centred = importance - importance.mean(dim=1, keepdim=True)
        importance = centred / (importance.std(dim=1, keepdim=True) + 1e-6)
        if self.training:
            before = importance if self.ema_grad is None else self.ema_grad
            importance = 0.9 * before + 0.1 * importance
            self.ema_grad = importance.detach()
        scores = torch.softmax(importance / 0.1, dim=-1)
        out = self.proj((attention.softmax(dim=-1) @ v).transpose(1, 2).reshape(x.shape))
        chosen = scores.topk(self.keep, dim=1).indices
        if shuffle:
            chosen = torch.randperm(tokens)[: self.keep].expand(batch, -1)
        kept: Tensor = out.gather(1, chosen.unsqueeze(-1).expand(-1, -1, width))
        return kept


class PublishedGFT(nn.Module):
    """The published network, restated: its class token skips the stages."""

    def __init__(
        self, width: int, heads: int, depth: int, classes: int, patch: int = PATCH, size: int = SIZE
    ):
        super().__init__()
        self.base_model = timm.create_model(
            "vit_tiny_patch16_224", img_size=size, patch_size=patch, embed_dim=width,
            num_heads=heads, depth=depth, num_classes=1000,
        )  # fmt: skip
        self.hierarchical_blocks = nn.ModuleList(Stage(width, heads, keep) for keep in KEEP)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor, shuffle: bool = False) -> Tensor:
        base = self.base_model
        x = base.patch_embed(images)
        x = torch.cat([base.cls_token.expand(len(x), -1, -1), x], dim=1) + base.pos_embed
        for block in base.blocks[:8]:
            x = block(x)
        class_token, patches = x[:, :1], x[:, 1:]
        for stage in self.hierarchical_blocks:
            patches = stage(patches, shuffle)
        logits: Tensor = self.classifier(torch.cat([class_token, patches], dim=1)[:, 0])
        return logits


@functools.cache
def published(width: int = WIDTH, heads: int = HEADS, depth: int = DEPTH) -> PublishedGFT:
    """The network as after a training: seeded random weights, an ema_grad of the last batch's shape."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = PublishedGFT(width, heads, depth, len(MICRO_LABELS))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        model.train()(torch.randn(5, 3, SIZE, SIZE))
    return model.eval()


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
