"""The network: what it wraps, what it keeps, and that what it keeps matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from gft_edge.bundle.scores import SCORES
from gft_edge.bundle.specs import ModelSpec, Score, Stage
from gft_edge.errors import SpecError
from gft_edge.model.cost import cost_of
from gft_edge.model.gft import GFT, build_gft
from gft_edge.model.named_networks import NETWORKS, spec_from_name
from gft_edge.model.reference import recorded_scores, selection_reaches_logits
from gft_edge.runtime.outputs import grid_positions
from tests.support.networks import MICRO_BACKBONE
from tests.support.refusals import refusal_of

LABELS = tuple(f"class {number}" for number in range(5))
STAGES = (Stage(1, 30), Stage(2, 20), Stage(3, 10))
BLOCK_STAGES = (Stage(0, 30), Stage(1, 20), Stage(2, 10))


def backbone(name: str = "vit_tiny_patch16_224", **changes: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(
        name, num_classes=5, img_size=48, **{**MICRO_BACKBONE, **changes}
    ).eval()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 48, 48, generator=torch.Generator().manual_seed(1))


def live(model: GFT) -> GFT:
    """A network whose GALA layers add something, as after training."""
    generator = torch.Generator().manual_seed(2)
    for layer in model.layers:
        weight = layer.attn.proj.weight
        weight.data = 0.05 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def test_without_stages_it_is_its_backbone() -> None:
    plain = backbone()
    assert torch.equal(GFT(plain, ())(images()), plain(images()))


@pytest.mark.parametrize(("mode", "stages"), [("layer", STAGES), ("block", BLOCK_STAGES)])
def test_final_tokens_are_those_of_the_kept_patches_where_these_lie(
    mode: Any, stages: tuple[Stage, ...]
) -> None:
    model = live(GFT(backbone(), stages, mode))
    with torch.inference_mode():
        logits, kept = model.forward_with_kept(images())
        tokens = model.forward_with_tokens(images())
        assert torch.equal(tokens.logits, logits)
        assert torch.equal(model.backbone.head(tokens.class_token), logits)
    assert tokens.patches.shape == (2, 10, 48)
    last = grid_positions([indices.numpy() for indices in kept])[-1]
    np.testing.assert_array_equal(tokens.positions.numpy(), last)


def test_fresh_gala_layers_that_keep_everything_change_nothing() -> None:
    plain = backbone()
    everything = (Stage(1, 36), Stage(2, 36), Stage(4, 36))
    torch.testing.assert_close(GFT(plain, everything)(images()), plain(images()))


def test_blocks_that_keep_everything_change_nothing() -> None:
    plain = backbone(init_values=0.1, qk_norm=True)
    everything = (Stage(0, 36), Stage(1, 36), Stage(2, 36))
    torch.testing.assert_close(GFT(plain, everything, "block")(images()), plain(images()))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("mode", "stages"), [("layer", STAGES), ("block", BLOCK_STAGES)])
def test_each_stage_keeps_its_count_and_reaches_the_logits(
    mode: Any, stages: tuple[Stage, ...], score: Score
) -> None:
    model = live(GFT(backbone(), stages, mode, score))
    with torch.inference_mode():
        _, kept = model.forward_with_kept(images())
    assert [tuple(indices.shape) for indices in kept] == [(2, 30), (2, 20), (2, 10)]
    for positions in grid_positions([indices.numpy() for indices in kept]):
        assert (np.diff(positions, axis=1) > 0).all(), "kept patches left the grid order"
    assert selection_reaches_logits(model, images()) == [True, True, True]


def test_a_selection_behind_the_last_block_reaches_the_logits_once_trained() -> None:
    stages = (Stage(4, 30), Stage(4, 20), Stage(4, 10))
    fresh = GFT(backbone(), stages).eval()
    assert selection_reaches_logits(fresh, images()) == [False, False, False]
    assert selection_reaches_logits(live(fresh), images()) == [True, True, True]


@pytest.mark.parametrize(
    ("name", "changes", "prefix"),
    [
        ("deit_tiny_distilled_patch16_224", {}, 2),
        ("vit_tiny_patch16_224", {"reg_tokens": 4}, 5),
        ("vit_tiny_patch16_224", {"reg_tokens": 4, "no_embed_class": True}, 5),
        ("vit_tiny_patch16_224", {"pre_norm": True}, 1),
    ],
)
def test_prefix_tokens_are_never_dropped(name: str, changes: dict[str, Any], prefix: int) -> None:
    model = live(GFT(backbone(name, **changes), STAGES))
    assert model.prefix == prefix
    seen: list[int] = []
    model.backbone.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    assert model(images()).shape == (2, 5)
    assert seen == [prefix + 10]


def test_images_of_a_batch_do_not_mix() -> None:
    model = live(GFT(backbone(), STAGES))
    with torch.inference_mode():
        together = model(images(4))
        alone = torch.cat([model(image[None]) for image in images(4)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(
    ("mode", "stages", "amp"),
    [("layer", STAGES, False), ("block", BLOCK_STAGES, False), ("block", BLOCK_STAGES, True)],
)
def test_training_sends_a_gradient_to_the_kernels_and_leaves_the_output_alone(
    mode: Any, stages: tuple[Stage, ...], amp: bool
) -> None:
    model = live(GFT(backbone(), stages, mode, "gala"))
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        expected = model(images())
        output = model.train()(images())
    torch.testing.assert_close(output, expected)
    output.float().square().sum().backward()
    for selection in model.selections:
        assert selection.kernel.grad is not None
        assert selection.kernel.grad.abs().max() > 0


@pytest.mark.parametrize("score", SCORES)
def test_patches_are_ranked_in_float32_under_autocast(score: Score) -> None:
    model = GFT(backbone(), BLOCK_STAGES, "block", score).eval()
    with torch.autocast("cpu", torch.bfloat16), recorded_scores(model) as record:
        model(images())
    assert [scores.dtype for _, scores in record] == [torch.float32] * 3


def test_a_random_order_is_one_for_all_images_and_drawn_by_the_seed() -> None:
    plain = backbone()

    def kept(seed: int) -> Tensor:
        torch.manual_seed(seed)
        model = GFT(plain, BLOCK_STAGES, "block", "random").eval()
        return model.forward_with_kept(images())[1][0]

    assert (kept(1) == kept(1)[0]).all(), "the order is that of the grid, in every image"
    assert not torch.equal(kept(1), kept(2))


def test_the_running_mean_is_kept_per_grid_position_and_saved() -> None:
    model = live(GFT(backbone(), STAGES)).train()
    model(images())
    last = model.selections[2].ema
    assert last.shape == (36,)
    seen = int((last != 0).sum())
    assert 10 <= seen <= 36
    assert "selections.2.ema" in model.state_dict()
    model.eval()
    before = last.clone()
    model(images(1))
    assert torch.equal(last, before)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("swin_tiny_patch4_window7_224", {}, "SwinTransformer "),
        ("resnet18", {}, "ResNet "),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, "class token"),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, "'avg'"),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}, "token count"),
        ("vit_tiny_patch16_224", {"patch_drop_rate": 0.5}, "token count"),
        ("vit_relpos_small_patch16_224", {}, "VisionTransformerRelPos "),
    ],
)
def test_a_network_it_cannot_wrap_is_refused_by_the_property_it_lacks(
    name: str, arguments: dict[str, Any], words: str
) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **arguments)
    refusal_of(SpecError, lambda: GFT(model, ()), words)


@pytest.mark.parametrize("name", [n for n, named in NETWORKS.items() if named.family == "gft"])
def test_every_named_gft_has_three_stages_of_the_papers_ratios(name: str) -> None:
    spec = spec_from_name(name, LABELS)
    keeps = [stage.keep for stage in spec.stages]
    assert keeps == ([143, 95, 47] if name.endswith("_edge") else [147, 98, 49])
    positions = [stage.position for stage in spec.stages]
    expected = {"edge": [3, 6, 9], "d8": [8, 8, 8]}.get(name.rpartition("_")[2], [8, 9, 10])
    assert positions == expected
    assert spec.score == ("class-laplacian" if name.endswith("_edge") else "gala")


def test_counts_that_were_not_given_as_plain_numbers_are_said() -> None:
    said: list[str] = []
    spec_from_name("gft_tiny_edge", LABELS, say=said.append)
    assert said == ["stages 3:143, 6:95, 9:47: token totals 144, 96, 48"]
    spec_from_name("gft_tiny_edge", LABELS, stages="3: 143,6:95", say=said.append)
    spec_from_name("vit_tiny_patch16_224", LABELS, say=said.append)
    assert len(said) == 1
    spec_from_name("deit_tiny_distilled_patch16_224", LABELS, stages="3:auto:16", say=said.append)
    assert said[1:] == ["stages 3:94: token totals 96"]


def base(name: str, **options: Any) -> tuple[ModelSpec, GFT]:
    spec = spec_from_name(name, tuple(map(str, range(100))), **options)
    with torch.device("meta"):
        return spec, build_gft(spec)


def test_gft_base_has_the_papers_93_million_parameters() -> None:
    _, model = base("gft_base")
    cost = cost_of(model)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert abs(cost.parameters - 93e6) < 0.5e6
    assert cost.dense_gflops == pytest.approx(35.1, abs=0.1)


def test_the_edge_variant_has_no_extra_layer_and_does_two_thirds_of_the_work() -> None:
    spec, model = base("gft_base_edge", score="random")
    assert spec.score == "random"
    cost = cost_of(model)
    assert not model.layers
    assert cost.dense_gflops is not None
    assert cost.gflops / cost.dense_gflops == pytest.approx(0.635, abs=0.01)
    left = [row.tokens_out for row in cost.rows if row.tokens_out is not None]
    assert [tokens for tokens in left if tokens % 16 == 0] == [144] * 3 + [96] * 3 + [48] * 3


def test_the_cost_counts_the_columns_that_a_score_reads() -> None:
    def gflops(score: Score) -> float:
        return cost_of(GFT(backbone(), BLOCK_STAGES, "block", score)).gflops

    tokens = (37, 31, 21)
    extra = sum(2 * n * (n - 1) * 48 for n in tokens) / 1e9
    assert gflops("received") - gflops("class") == pytest.approx(extra)
