"""What a network costs: tokens, parameters and GFLOPs a block, beside the dense backbone and Eq. 6."""

from __future__ import annotations

from dataclasses import dataclass

from timm.models.vision_transformer import Block
from torch import nn

from gft_edge.model.gft import GFT


@dataclass(frozen=True)
class BlockCost:
    """One row. Tokens include the prefix tokens; a multiply-accumulate counts as two operations."""

    name: str
    tokens_in: int
    tokens_out: int
    parameters: int
    gflops: float


@dataclass(frozen=True)
class Cost:
    """All rows, the dense backbone's total, and Eq. 6's estimate of the GFT's total."""

    rows: tuple[BlockCost, ...]
    dense_gflops: float
    eq6_gflops: float

    @property
    def gflops(self) -> float:
        """The exact total."""
        return sum(row.gflops for row in self.rows)

    @property
    def parameters(self) -> int:
        """The exact total."""
        return sum(row.parameters for row in self.rows)


def cost_of(model: GFT) -> Cost:
    """Count a GFT's matrix products; element-wise work is left out, as is usual for GFLOPs.

    Eq. 6 reads C_base * (1 - sum_i alpha_i (1 - k_i)), with alpha_i the share of the base cost in
    the blocks that run at keep ratio k_i.
    """
    backbone = model.backbone
    width = backbone.embed_dim
    patches = backbone.patch_embed.num_patches
    prefix = model.prefix
    dense_tokens = patches + prefix
    heads = [backbone.head, *([backbone.head_dist] if hasattr(backbone, "head_dist") else [])]
    rows = [
        BlockCost(
            "patch embedding",
            patches,
            dense_tokens,
            _count(backbone) - _count(backbone.blocks) - _count(backbone.norm, *heads),
            2e-9 * patches * backbone.patch_embed.proj.weight.numel(),
        )
    ]
    tokens = dense_tokens
    eq6 = rows[0].gflops
    for number in range(len(backbone.blocks) + 1):
        stages = model._stages_at.get(number, ())
        if model.mode == "layer":
            for stage in stages:
                left = model.selections[stage].keep + prefix
                flops = _qkv(tokens, width) + _product(left, width) + 2 * tokens * width
                rows.append(
                    BlockCost(
                        f"GALA layer {stage + 1}",
                        tokens,
                        left,
                        _count(model.layers[stage], model.selections[stage]),
                        flops / 1e9,
                    )
                )
                tokens = left
        if number == len(backbone.blocks):
            break
        block = backbone.blocks[number]
        mlp = _mlp(block)
        left, selection_parameters = tokens, 0
        if model.mode == "block" and stages:
            left = model.selections[stages[0]].keep + prefix
            selection_parameters = _count(model.selections[stages[0]])
        flops = _qkv(tokens, width) + _product(tokens, width) + left * mlp
        if left != tokens:
            flops += 2 * tokens * width
        rows.append(
            BlockCost(
                f"block {number}", tokens, left, _count(block) + selection_parameters, flops / 1e9
            )
        )
        eq6 += _block(dense_tokens, width, mlp) * (left - prefix) / patches / 1e9
        tokens = left
    head = BlockCost(
        "norm and head",
        tokens,
        prefix,
        _count(backbone.norm, *heads),
        2e-9 * sum(head.weight.numel() for head in heads),
    )
    dense = (
        rows[0].gflops
        + head.gflops
        + sum(_block(dense_tokens, width, _mlp(block)) / 1e9 for block in backbone.blocks)
    )
    return Cost((*rows, head), dense, eq6 + head.gflops)


def _count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def _qkv(tokens: int, width: int) -> int:
    return 6 * tokens * width * width


def _product(tokens: int, width: int) -> int:
    """q k^T, attention times v, and the output projection."""
    return 4 * tokens * tokens * width + 2 * tokens * width * width


def _mlp(block: Block) -> int:
    """Operations a token."""
    return 2 * sum(m.weight.numel() for m in block.mlp.modules() if isinstance(m, nn.Linear))


def _block(tokens: int, width: int, mlp: int) -> int:
    return _qkv(tokens, width) + _product(tokens, width) + tokens * mlp
