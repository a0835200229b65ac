"""Patch scores and patch selection as pure tensor functions (GFT, arXiv 2504.09852, Eq. 1-5).

Shape letters: B batch, H heads, N patches still present, P prefix tokens (class, distillation,
register), T = P + N tokens, D channels a head, C = H * D channels, K kept patches.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean_attention_scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Eq. 1 on the raw scores S = scale * q k^T: the mean over the keys, (B,H,N,D) x2 -> (B,H,N).

    mean_j (q_i . k_j) = q_i . mean_j k_j, so the N x N scores are never formed. The softmaxed scores
    would not do: their rows sum to 1 and every mean is 1/N.
    """
    return scale * (q * k.mean(dim=2, keepdim=True)).sum(dim=-1)


def token_gradient(values: Tensor) -> Tensor:
    """Eq. 2, the first derivative along the last axis, (...,N) -> (...,N), N >= 2.

    One-sided at both ends, central differences between them.
    """
    first = values[..., 1:2] - values[..., :1]
    inner = (values[..., 2:] - values[..., :-2]) / 2
    last = values[..., -1:] - values[..., -2:-1]
    return torch.cat([first, inner, last], dim=-1)


def smooth(importance: Tensor, kernel: Tensor) -> Tensor:
    """The learned 1-D smoothing, (B,N) with kernel (3,) -> (B,N); ends are repeated outwards.

    Written as three shifted products: no weighted operator that a quantizer or autocast would
    lower to fewer bits.
    """
    left = torch.cat([importance[:, :1], importance[:, :-1]], dim=1)
    right = torch.cat([importance[:, 1:], importance[:, -1:]], dim=1)
    return kernel[0] * left + kernel[1] * importance + kernel[2] * right


def class_scores(q_class: Tensor, k: Tensor, prefix: int, scale: float) -> Tensor:
    """The class token's row of the raw scores, q_class (B,H,1,D), k (B,H,T,D) -> (B,H,N)."""
    return (scale * (q_class * k).sum(dim=-1))[..., prefix:]


def class_attention(q_class: Tensor, k: Tensor, prefix: int, scale: float) -> Tensor:
    """The class token's softmaxed attention to each patch, EViT's score (arXiv 2202.07800).

    q_class (B,H,1,D), k (B,H,T,D) with the `prefix` tokens first -> (B,H,N).
    """
    return class_scores(q_class, k, 0, scale).softmax(dim=-1)[..., prefix:]


def received_attention(q: Tensor, k: Tensor, prefix: int, scale: float) -> Tensor:
    """Eq. 1 along the other axis, after the softmax: what each patch receives, mean over all queries.

    q, k (B,H,T,D) with the `prefix` tokens first -> (B,H,N). Forms the T x T attention, beside the fused
    one that the block computes.
    """
    # Autocast multiplies in bf16; a softmax of that is bf16 too, whose means tie.
    logits = (scale * q @ k.transpose(-1, -2)).float()
    return logits.softmax(dim=-1).mean(dim=2)[..., prefix:]


def gradient_scores(attention: Tensor, kernel: Tensor) -> Tensor:
    """Eq. 2 and 5 and the smoothing, (B,H,N) with kernel (3,) -> (B,N).

    The ranking needs no Eq. 3: normalisation and softmax increase strictly within an image.
    """
    return smooth(token_gradient(attention).abs().mean(dim=1), kernel)


def laplacian_scores(attention: Tensor, positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """How far attention stands out from around it, (B,H,N) at ascending grid positions (B,N) -> (B,N).

    The Laplacian on the patch grid with its sign turned: the mean over heads, less that of the
    neighbours along rows and columns that are still there; where none is, less that of all patches.
    """
    values = attention.mean(dim=1, keepdim=True)
    values, present = on_grid(values - values.mean(dim=2, keepdim=True), positions, grid)
    total, count = torch.zeros_like(values), torch.zeros_like(present)
    for axis in (2, 3):
        before, after = _neighbours(values * present, axis)
        has_before, has_after = _neighbours(present, axis)
        total, count = total + before + after, count + has_before + has_after
    contrast = values - total / count.clamp(min=1)
    return take_rows(contrast.flatten(2).transpose(1, 2), positions).squeeze(2)


def on_grid(values: Tensor, positions: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Lay values (B,H,N) at ascending positions (B,N) on the grid, (B,H,R,C), and 1 where there is one.

    The second is (B,1,R,C), 0 where no patch is left; the values there mean nothing. A Gather at the
    place that each cell has among the positions: engines refuse a scatter.
    """
    rows, columns = grid
    batch, heads, patches = values.shape
    if patches == rows * columns:
        laid = values.reshape(batch, heads, rows, columns)
        return laid, torch.ones_like(laid[:, :1])
    cells = torch.arange(rows * columns, device=values.device)
    before = torch.where(positions.unsqueeze(1) < cells.unsqueeze(1), 1, 0).sum(dim=2)
    here = positions.unsqueeze(1) == cells.unsqueeze(1)
    present = torch.where(here, 1.0, 0.0).sum(dim=2)
    laid = take_rows(values.transpose(1, 2), before.clamp(max=patches - 1)).transpose(1, 2)
    return (
        laid.reshape(batch, heads, rows, columns),
        present.reshape(batch, 1, rows, columns),
    )


def _neighbours(grid: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """What lies before and behind each cell along an axis, 0 outside."""
    size = grid.shape[axis]
    edge = torch.zeros_like(grid.narrow(axis, 0, 1))
    before = torch.cat([edge, grid.narrow(axis, 0, size - 1)], dim=axis)
    after = torch.cat([grid.narrow(axis, 1, size - 1), edge], dim=axis)
    return before, after


def importance_distribution(importance: Tensor, temperature: float) -> Tensor:
    """Eq. 3: softmax of the importance over the patches at a temperature, (B,N) -> (B,N)."""
    return (importance / temperature).softmax(dim=1)


def standardise(importance: Tensor) -> Tensor:
    """Zero mean and unit deviation over the patches of each image, (B,N) -> (B,N)."""
    centred = importance - importance.mean(dim=1, keepdim=True)
    # Under the root: of two patches the scores are equal, and the root's slope at 0 is infinite.
    return centred / (centred.square().mean(dim=1, keepdim=True) + 1e-12).sqrt()


def top_k_in_grid_order(scores: Tensor, k: int) -> Tensor:
    """Indices of the k highest scores in ascending order, (B,N) -> (B,k) int64. Eq. 4.

    k is a Python int, so ONNX gets a constant. Eq. 2 needs the grid order at the next stage. The
    sort compares all pairs of the k indices, because ONNX has no sort but a second TopK.
    """
    best_first = scores.topk(k, dim=1).indices
    smaller = best_first.unsqueeze(1) < best_first.unsqueeze(2)  # (B,k,k)
    rank = torch.where(smaller, 1, 0).sum(dim=2)  # (B,k): where each index belongs
    here = rank.unsqueeze(1) == torch.arange(k, device=scores.device).unsqueeze(1)
    return torch.where(here, best_first.unsqueeze(1), 0).sum(dim=2)


def take_rows(x: Tensor, indices: Tensor) -> Tensor:
    """x (B,N,C) and indices (B,K) -> (B,K,C).

    One Gather over flattened rows; torch.gather would export an index per element.
    """
    batch, rows, channels = x.shape
    flat = indices
    if batch > 1:
        flat = indices + rows * torch.arange(batch, device=x.device).unsqueeze(1)
    taken = x.reshape(batch * rows, channels).index_select(0, flat.reshape(-1))
    return taken.reshape(batch, indices.shape[1], channels)


def keep_patches(tokens: Tensor, kept: Tensor, prefix: int) -> Tensor:
    """Prefix tokens and the kept patches: (B,T,C), kept (B,K) -> (B,P+K,C)."""
    return torch.cat([tokens[:, :prefix], take_rows(tokens[:, prefix:], kept)], dim=1)
