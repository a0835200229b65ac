"""The tensor functions against the paper's equations written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gft_edge.model import gala

BATCH, HEADS, PATCHES, WIDTH = 3, 4, 25, 8
SCALE = WIDTH**-0.5


def queries_and_keys(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, HEADS, PATCHES, WIDTH)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def paper_scores(q: Tensor, k: Tensor, kernel: Tensor) -> Tensor:
    return gala.gradient_scores(gala.mean_attention_scores(q, k, SCALE), kernel)


def test_means_of_softmaxed_attention_would_all_be_equal() -> None:
    q, k = queries_and_keys()
    means = (SCALE * q @ k.transpose(-1, -2)).softmax(dim=-1).mean(dim=-1)
    torch.testing.assert_close(means, torch.full_like(means, 1 / PATCHES))
    assert gala.mean_attention_scores(q, k, SCALE).std() > 0.05


def test_gradient_is_one_sided_at_the_ends_and_central_between() -> None:
    values = torch.tensor([[1.0, 4.0, 9.0, 16.0]])
    assert gala.token_gradient(values).tolist() == [[3.0, 4.0, 6.0, 7.0]]
    assert gala.token_gradient(values[:, :2]).tolist() == [[3.0, 3.0]]


def test_smoothing_is_a_convolution_with_repeated_ends() -> None:
    importance, kernel = torch.rand(BATCH, PATCHES), torch.tensor([0.2, 0.5, 0.3])
    padded = torch.nn.functional.pad(importance.unsqueeze(1), (1, 1), mode="replicate")
    expected = torch.nn.functional.conv1d(padded, kernel.reshape(1, 1, 3)).squeeze(1)
    torch.testing.assert_close(gala.smooth(importance, kernel), expected)


def test_gala_scores_are_equations_one_two_and_five() -> None:
    q, k = queries_and_keys()
    kernel = torch.tensor([0.25, 0.5, 0.25])
    means = (SCALE * q @ k.transpose(-1, -2)).mean(dim=-1)
    expected = torch.zeros(BATCH, PATCHES)
    for i in range(PATCHES):
        before, after = max(i - 1, 0), min(i + 1, PATCHES - 1)
        slope = (means[:, :, after] - means[:, :, before]) / (after - before)
        expected[:, i] = slope.abs().mean(dim=1)
    torch.testing.assert_close(
        paper_scores(q, k, kernel), gala.smooth(expected, kernel), atol=1e-6, rtol=0
    )


def test_class_scores_are_the_class_row_of_the_attention() -> None:
    q, k = queries_and_keys()
    attention = (SCALE * q @ k.transpose(-1, -2)).softmax(dim=-1)
    torch.testing.assert_close(
        gala.class_attention(q[:, :, :1], k, 2, SCALE), attention[:, :, 0, 2:]
    )


def test_attention_received_is_the_mean_of_a_column() -> None:
    q, k = queries_and_keys()
    attention = (SCALE * q @ k.transpose(-1, -2)).softmax(dim=-1)
    torch.testing.assert_close(
        gala.received_attention(q, k, 1, SCALE), attention[..., 1:].mean(dim=2)
    )


def holes() -> tuple[Tensor, Tensor]:
    """Attention (B,H,N) of the patches that are left, at ascending positions (B,N) of a 5 x 5 grid."""
    generator = torch.Generator().manual_seed(3)
    positions = torch.stack(
        [torch.randperm(PATCHES, generator=generator)[:14].sort().values for _ in range(BATCH)]
    )
    return torch.rand(BATCH, HEADS, 14, generator=generator), positions


def test_what_is_laid_on_the_grid_lies_at_its_positions() -> None:
    values, positions = holes()
    laid, present = gala.on_grid(values, positions, (5, 5))
    flat = laid.flatten(2)
    for image in range(BATCH):
        assert torch.equal(flat[image][:, positions[image]], values[image])
        assert present[image].flatten().nonzero().flatten().tolist() == positions[image].tolist()


def test_the_laplacian_is_a_patch_less_its_neighbours_that_are_left() -> None:
    values, positions = holes()
    found = gala.laplacian_scores(values, positions, (5, 5))
    alone = 0
    for image in range(BATCH):
        mean = values[image].mean(dim=0)
        at = {divmod(int(p), 5): float(v) for p, v in zip(positions[image], mean, strict=True)}
        for n, ((row, column), value) in enumerate(at.items()):
            beside = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
            around = [at[cell] for cell in beside if cell in at]
            alone += not around
            expected = value - (sum(around) / len(around) if around else float(mean.mean()))
            assert float(found[image, n]) == pytest.approx(expected, abs=1e-6)
    assert alone


def test_the_laplacian_of_scores_is_that_of_the_logarithm_of_their_softmax() -> None:
    q, k = queries_and_keys()
    every = torch.arange(PATCHES).expand(BATCH, -1)
    attention = gala.class_attention(q[:, :, :1], k, 0, SCALE).log()
    torch.testing.assert_close(
        gala.laplacian_scores(gala.class_scores(q[:, :, :1], k, 0, SCALE), every, (5, 5)),
        gala.laplacian_scores(attention, every, (5, 5)),
    )


def test_the_whole_grid_needs_no_gather_and_gives_the_same() -> None:
    values = torch.rand(BATCH, HEADS, PATCHES)
    every = torch.arange(PATCHES).expand(BATCH, -1)
    laid, present = gala.on_grid(values, every, (5, 5))
    assert torch.equal(laid.flatten(2), values)
    assert present.min() == 1


def test_ranking_by_equation_three_selects_what_the_raw_score_selects() -> None:
    q, k = queries_and_keys()
    raw = paper_scores(q, k, torch.tensor([0.25, 0.5, 0.25]))
    soft = gala.importance_distribution(gala.standardise(raw), temperature=0.7)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(BATCH))
    assert torch.equal(gala.top_k_in_grid_order(raw, 9), gala.top_k_in_grid_order(soft, 9))


def test_top_k_indices_ascend_and_are_those_of_the_best() -> None:
    scores = torch.rand(BATCH, PATCHES)
    for k in (1, 7, PATCHES):
        expected = scores.topk(k, dim=1).indices.sort(dim=1).values
        assert torch.equal(gala.top_k_in_grid_order(scores, k), expected)


def test_kept_patches_follow_the_prefix_tokens_of_their_own_image() -> None:
    tokens = torch.arange(2 * 6 * 3.0).reshape(2, 6, 3)
    kept = torch.tensor([[0, 3], [1, 2]])
    result = gala.keep_patches(tokens, kept, prefix=2)
    assert torch.equal(result[0], tokens[0, [0, 1, 2, 5]])
    assert torch.equal(result[1], tokens[1, [0, 1, 3, 4]])
