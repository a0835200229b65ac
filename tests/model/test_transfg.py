"""TransFG: the parts that it chooses, its loss, and its start from a ViT's weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from gft_edge.model.checkpoint import load_backbone
from gft_edge.model.transfg import MARGIN, PartSelection, TransFG, contrastive_loss, run_block
from tests.support.networks import VIT_OF_TRANSFG, noise, seeded, small_spec


def test_the_parts_are_what_multiplying_all_attention_maps_says() -> None:
    batch, heads, tokens, prefix = 2, 3, 7, 1
    maps = [noise(batch, heads, tokens, tokens, seed=n).softmax(dim=-1) for n in range(3)]
    expected = [[0] * heads for _ in range(batch)]
    for image in range(batch):
        for head in range(heads):
            product = torch.eye(tokens)
            for block in maps:  # a later block's map stands on the left
                product = block[image, head] @ product
            expected[image][head] = int(product[0, prefix:].argmax())
    assert PartSelection()(maps, prefix).tolist() == expected


def test_the_last_block_sees_the_class_token_and_the_parts_alone() -> None:
    model = seeded(small_spec("transfg_tiny"))
    assert isinstance(model, TransFG)
    read: list[Tensor] = []
    model.backbone.blocks[-1].register_forward_pre_hook(lambda _, given: read.append(given[0]))
    chosen: list[Tensor] = []
    model.parts.register_forward_hook(lambda _, given, parts: chosen.append(parts))
    x = model.backbone._pos_embed(model.backbone.patch_embed(noise(2, 3, 64, 64)))
    assert x.shape[1] == 7 * 7 + 1  # (64 - 16) / 8 + 1 patches a side
    for block in model.backbone.blocks[:-1]:
        x = block(x)
    model(noise(2, 3, 64, 64))
    for image in range(2):
        rows = [0, *(1 + int(part) for part in chosen[0][image])]
        torch.testing.assert_close(read[0][image], x[image, rows], rtol=1e-4, atol=1e-5)


def test_attention_written_out_is_the_blocks_own() -> None:
    block = seeded(small_spec("transfg_tiny")).backbone.blocks[0]
    x = noise(2, 50, 48)
    written, maps = run_block(block, x)
    torch.testing.assert_close(written, block(x))
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(2, 3, 50))


def test_the_contrastive_loss_is_the_papers() -> None:
    features, targets = noise(5, 8), [0, 1, 0, 2, 1]
    total = 0.0
    for i in range(5):
        for j in range(5):
            a, b = features[i].tolist(), features[j].tolist()
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            cosine = dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
            total += 1 - cosine if targets[i] == targets[j] else max(cosine - 0.4, 0)
    assert MARGIN == 0.4
    loss = contrastive_loss(features, torch.tensor(targets))
    assert float(loss) == pytest.approx(total / 25, abs=1e-6)


def test_transfg_adds_its_term_to_the_cross_entropy_and_others_do_not() -> None:
    targets = torch.tensor([0, 1, 1])
    images = noise(3, 3, 64, 64)
    plain, parts = seeded(small_spec("test_resnet")), seeded(small_spec("transfg_tiny"))
    assert isinstance(parts, TransFG)
    expected = F.cross_entropy(plain(images), targets)
    torch.testing.assert_close(plain.training_loss(images, targets, F.cross_entropy), expected)
    expected = F.cross_entropy(parts(images), targets)
    expected += contrastive_loss(parts.features(images)[:, 0], targets)
    loss = parts.training_loss(images, targets, F.cross_entropy)
    torch.testing.assert_close(loss, expected)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in parts.parameters() if p.requires_grad)


def test_a_vits_weights_start_transfg_on_its_own_grid(tmp_path: Path) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=9, **VIT_OF_TRANSFG)
    safetensors.torch.save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    spec = small_spec("transfg_tiny")
    model = seeded(spec)
    fresh = load_backbone(model, spec, tmp_path / "vit.safetensors")
    assert sorted(fresh) == ["head.bias", "head.weight"]
    resampled = timm.layers.resample_abs_pos_embed(vit.pos_embed, [7, 7], num_prefix_tokens=1)
    torch.testing.assert_close(model.backbone.pos_embed, resampled)
    assert torch.equal(model.backbone.blocks[2].mlp.fc1.weight, vit.blocks[2].mlp.fc1.weight)
