"""What a network costs: tokens, parameters and GFLOPs a block, beside the dense backbone and Eq. 6."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gft_edge.bundle.placement import group_of
from gft_edge.model.gft import GFT, Selection
from gft_edge.model.network import Network
from gft_edge.model.transfg import TransFG


@dataclass(frozen=True)
class BlockCost:
    """One row. Tokens include the prefix tokens; a multiply-accumulate counts as two operations.

    The tokens are None where the network has none.
    """

    name: str
    tokens_in: int | None
    tokens_out: int | None
    parameters: int
    gflops: float


@dataclass(frozen=True)
class Cost:
    """All rows, the dense backbone's total, and Eq. 6's estimate of the GFT's total.

    The latter two are None where there is no such backbone, or no stage that Eq. 6 speaks of.
    """

    rows: tuple[BlockCost, ...]
    dense_gflops: float | None = None
    eq6_gflops: float | None = None

    @property
    def gflops(self) -> float:
        """The exact total."""
        return sum(row.gflops for row in self.rows)

    @property
    def parameters(self) -> int:
        """The exact total."""
        return sum(row.parameters for row in self.rows)


def cost_of(model: Network) -> Cost:
    """Count matrix products and convolutions; element-wise work is left out, as is usual for GFLOPs."""
    if isinstance(model, GFT):
        return _cost_of_gft(model)
    if isinstance(model, TransFG):
        return _cost_of_transfg(model)
    return _counted(model)


def _counted(model: Network) -> Cost:
    """Count by torch's own counter, in one run on shapes alone; a row for each part of the backbone."""
    network = copy.deepcopy(model).to("meta").eval()
    size = model.image_size_px
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size, device="meta"))
    inclusive = {
        path.partition(".")[2]: sum(operations.values())
        for path, operations in counter.get_flop_counts().items()
        if path != "Global"
    }
    own = dict(inclusive)
    for path in filter(None, inclusive):
        above = path.rpartition(".")[0]
        while above not in inclusive:  # a list of modules is not called itself
            above = above.rpartition(".")[0]
        own[above] -= inclusive[path]
    flops: dict[str, float] = defaultdict(float)
    parameters: dict[str, int] = defaultdict(int)
    for path, module in network.named_modules():
        part = group_of([f"{path}/"]) or "other"
        parameters[part] += sum(p.numel() for p in module.parameters(recurse=False))
        flops[part] += own.get(path, 0)
    return Cost(
        tuple(
            BlockCost(part, None, None, parameters[part], flops[part] / 1e9)
            for part in parameters
            if parameters[part] or flops[part]
        )
    )


def _cost_of_transfg(model: TransFG) -> Cost:
    """Count, beside the blocks, one row of attention times a map for each block before the last."""
    *first, last = model.backbone.blocks
    width, prefix = model.backbone.embed_dim, model.backbone.num_prefix_tokens
    heads = last.attn.num_heads
    tokens, left = model.backbone.patch_embed.num_patches + prefix, prefix + heads
    rows = [
        _row(f"block {number}", tokens, tokens, _block(tokens, width, _mlp(block)), block)
        for number, block in enumerate(first)
    ]
    product = 2 * (len(first) - 1) * heads * tokens * tokens
    rows.append(_row("part selection", tokens, left, product))
    rows.append(_row(f"block {len(first)}", left, left, _block(left, width, _mlp(last)), last))
    return _with_ends(model.backbone, rows)


def _cost_of_gft(model: GFT) -> Cost:
    """Eq. 6 reads C_base * (1 - sum_i alpha_i (1 - k_i)), with alpha_i the share of the base cost in
    the blocks that run at keep ratio k_i.
    """
    backbone, prefix = model.backbone, model.prefix
    width, patches = backbone.embed_dim, backbone.patch_embed.num_patches
    rows = []
    tokens = patches + prefix
    eq6 = 0.0
    for number in range(len(backbone.blocks) + 1):
        stages = model._stages_at.get(number, ())
        if model.mode == "layer":
            for stage in stages:
                selection = model.selections[stage]
                left = selection.keep + prefix
                flops = _qkv(tokens, width) + _product(left, width)
                flops += _score(selection, tokens, width)
                name = f"GALA layer {stage + 1}"
                rows.append(_row(name, tokens, left, flops, model.layers[stage], selection))
                tokens = left
        if number == len(backbone.blocks):
            break
        block = backbone.blocks[number]
        mlp, left, parts = _mlp(block), tokens, [block]
        flops = _qkv(tokens, width) + _product(tokens, width)
        if model.mode == "block" and stages:
            selection = model.selections[stages[0]]
            left = selection.keep + prefix
            flops += _score(selection, tokens, width)
            parts.append(selection)
        rows.append(_row(f"block {number}", tokens, left, flops + left * mlp, *parts))
        eq6 += _block(patches + prefix, width, mlp) * (left - prefix) / patches / 1e9
        tokens = left
    return _with_ends(backbone, rows, eq6)


def _with_ends(backbone: Any, rows: list[BlockCost], eq6: float | None = None) -> Cost:
    """Put patch embedding and head around the rows of the blocks, and the dense backbone beside all."""
    patches, prefix = backbone.patch_embed.num_patches, backbone.num_prefix_tokens
    tokens = patches + prefix
    heads = _heads(backbone)
    flops = 2 * patches * backbone.patch_embed.proj.weight.numel()
    inside = _count(backbone.blocks, backbone.norm, *heads)
    first = BlockCost("patch embedding", patches, tokens, _count(backbone) - inside, flops / 1e9)
    flops = 2 * sum(head.weight.numel() for head in heads)
    last = _row("norm and head", rows[-1].tokens_out, prefix, flops, backbone.norm, *heads)
    ends = first.gflops + last.gflops
    dense = sum(_block(tokens, backbone.embed_dim, _mlp(block)) for block in backbone.blocks) / 1e9
    return Cost((first, *rows, last), ends + dense, None if eq6 is None else ends + eq6)


def _row(
    name: str, tokens_in: int | None, tokens_out: int, flops: int, *modules: nn.Module
) -> BlockCost:
    return BlockCost(name, tokens_in, tokens_out, _count(*modules), flops / 1e9)


def _heads(backbone: Any) -> list[nn.Linear]:
    return [backbone.head, *([backbone.head_dist] if hasattr(backbone, "head_dist") else [])]


def _count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def _qkv(tokens: int, width: int) -> int:
    return 6 * tokens * width * width


def _product(tokens: int, width: int) -> int:
    """q k^T, attention times v, and the output projection."""
    return 4 * tokens * tokens * width + 2 * tokens * width * width


def _score(selection: Selection, tokens: int, width: int) -> int:
    """One product a query and head, or one with every key where whole columns of the attention count."""
    columns = selection.rule.attention == "received"
    return 2 * tokens * (tokens if columns else 1) * width


def _mlp(block: Block) -> int:
    """Operations a token."""
    return 2 * sum(m.weight.numel() for m in block.mlp.modules() if isinstance(m, nn.Linear))


def _block(tokens: int, width: int, mlp: int) -> int:
    return _qkv(tokens, width) + _product(tokens, width) + tokens * mlp
