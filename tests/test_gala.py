"""The tensor functions against the paper's equations written out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gft_edge.fidelity import grid_positions
from gft_edge.model import gala

BATCH, HEADS, PATCHES, WIDTH = 3, 4, 25, 8
SCALE = WIDTH**-0.5


def queries_and_keys(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, HEADS, PATCHES, WIDTH)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_linear_time_means_equal_the_means_of_the_full_score_matrix() -> None:
    q, k = queries_and_keys()
    full = (SCALE * q @ k.transpose(-1, -2)).mean(dim=-1)
    torch.testing.assert_close(gala.mean_attention_scores(q, k, SCALE), full, atol=1e-6, rtol=0)


def test_means_of_softmaxed_attention_would_all_be_equal() -> None:
    q, k = queries_and_keys()
    means = (SCALE * q @ k.transpose(-1, -2)).softmax(dim=-1).mean(dim=-1)
    torch.testing.assert_close(means, torch.full_like(means, 1 / PATCHES))
    assert gala.mean_attention_scores(q, k, SCALE).std() > 0.05


def test_gradient_is_one_sided_at_the_ends_and_central_between() -> None:
    values = torch.tensor([[1.0, 4.0, 9.0, 16.0]])
    assert gala.token_gradient(values).tolist() == [[3.0, 4.0, 6.0, 7.0]]


def test_gradient_of_two_tokens_is_their_difference() -> None:
    assert gala.token_gradient(torch.tensor([[1.0, 4.0]])).tolist() == [[3.0, 3.0]]


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
        gala.gala_scores(q, k, SCALE, kernel), gala.smooth(expected, kernel), atol=1e-6, rtol=0
    )


def test_scores_are_float32_whatever_the_precision_of_the_rest() -> None:
    q, k = (tensor.bfloat16() for tensor in queries_and_keys())
    assert gala.gala_scores(q, k, SCALE, torch.ones(3)).dtype == torch.float32
    assert gala.class_attention_scores(q[:, :, :1], k, 1, SCALE).dtype == torch.float32


def test_class_scores_are_the_class_row_of_the_attention() -> None:
    q, k = queries_and_keys()
    attention = (SCALE * q @ k.transpose(-1, -2)).softmax(dim=-1)
    torch.testing.assert_close(
        gala.class_attention_scores(q[:, :, :1], k, 2, SCALE), attention[:, :, 0, 2:].mean(dim=1)
    )


def test_ranking_by_equation_three_selects_what_the_raw_score_selects() -> None:
    q, k = queries_and_keys()
    raw = gala.gala_scores(q, k, SCALE, torch.tensor([0.25, 0.5, 0.25]))
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


def test_grid_positions_follow_a_patch_through_all_stages() -> None:
    kept = [np.array([[1, 4, 6, 9]]), np.array([[0, 2, 3]]), np.array([[1]])]
    assert [p.tolist() for p in grid_positions(kept)] == [[[1, 4, 6, 9]], [[1, 6, 9]], [[6]]]
