"""Checkpoints with other projects' names: the same logits as from timm's own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from gft_edge.bundle.specs import ModelSpec
from gft_edge.errors import CheckpointError
from gft_edge.model.checkpoint import load_backbone, save_network
from gft_edge.model.gft import GFT, build_gft
from gft_edge.model.variants import spec_from_name

SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3, "patch_size": 8}
PLAIN, DISTILLED = "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"
IMAGES = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))

# timm's name -> the one that transformers saves; N is the block, W is weight or bias.
HUGGING_FACE = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.W": "embeddings.patch_embeddings.projection.W",
    "blocks.N.norm1.W": "encoder.layer.N.layernorm_before.W",
    "blocks.N.attn.proj.W": "encoder.layer.N.attention.output.dense.W",
    "blocks.N.norm2.W": "encoder.layer.N.layernorm_after.W",
    "blocks.N.mlp.fc1.W": "encoder.layer.N.intermediate.dense.W",
    "blocks.N.mlp.fc2.W": "encoder.layer.N.output.dense.W",
    "norm.W": "layernorm.W",
}
QKV = ("encoder.layer.N.attention.attention.query.W",
       "encoder.layer.N.attention.attention.key.W",
       "encoder.layer.N.attention.attention.value.W")  # fmt: skip
# The names of transformers 5 in memory, which torch.save(model.state_dict()) writes.
HUGGING_FACE_5 = {
    **HUGGING_FACE,
    "blocks.N.norm1.W": "layers.N.layernorm_before.W",
    "blocks.N.attn.proj.W": "layers.N.attention.o_proj.W",
    "blocks.N.norm2.W": "layers.N.layernorm_after.W",
    "blocks.N.mlp.fc1.W": "layers.N.mlp.fc1.W",
    "blocks.N.mlp.fc2.W": "layers.N.mlp.fc2.W",
}
QKV_5 = ("layers.N.attention.q_proj.W", "layers.N.attention.k_proj.W",
         "layers.N.attention.v_proj.W")  # fmt: skip
VIT_HEADS = {"head.W": "classifier.W"}
DEIT_HEADS = {"head.W": "cls_classifier.W", "head_dist.W": "distillation_classifier.W"}


def small_spec(backbone: str = PLAIN, depth: int = 3, stages: str = "none") -> ModelSpec:
    arguments = {**SMALL, "depth": depth}
    labels = ("a", "b", "c")
    return spec_from_name(
        backbone, labels, image_size_px=48, stages=stages, backbone_args=arguments
    )


def network(spec: ModelSpec) -> GFT:
    """Random weights, biases and norms too: a fresh network's zeros would hide a wrong name."""
    torch.manual_seed(3)
    model = build_gft(spec).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def renamed(
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    qkv: tuple[str, ...],
    heads: Mapping[str, str],
    prefix: str,
) -> dict[str, Tensor]:
    """A timm state dict under Hugging Face's names."""
    result = {}
    for name, tensor in state.items():
        words = name.split(".")
        block = words[1] if words[0] == "blocks" else ""
        leaf = words[-1] if words[-1] in ("weight", "bias") else ""
        pattern = name.replace(f".{block}.", ".N.", 1) if block else name
        pattern = f"{pattern.removesuffix(leaf)}W" if leaf else pattern

        def real(theirs: str, block: str = block, leaf: str = leaf) -> str:
            return theirs.replace(".N.", f".{block}.").replace(".W", f".{leaf}")

        if pattern == "blocks.N.attn.qkv.W":
            for theirs, part in zip(qkv, tensor.chunk(3), strict=True):
                result[prefix + real(theirs)] = part.contiguous()
        elif pattern in heads:
            result[real(heads[pattern])] = tensor
        else:
            result[prefix + real(names[pattern])] = tensor
    return result


def assert_same_logits(model: GFT, spec: ModelSpec, path: Path) -> None:
    loaded = build_gft(spec).eval()
    assert load_backbone(loaded, spec, path) == []
    with torch.inference_mode():
        torch.testing.assert_close(loaded(IMAGES), model(IMAGES), rtol=0, atol=1e-6)


@pytest.mark.parametrize("prefix", ["", "vit.", "deit."])
@pytest.mark.parametrize(
    ("names", "qkv"), [(HUGGING_FACE, QKV), (HUGGING_FACE_5, QKV_5)], ids=["saved", "version 5"]
)
def test_a_hugging_face_vit_gives_timms_logits(
    tmp_path: Path, prefix: str, names: dict[str, str], qkv: tuple[str, ...]
) -> None:
    spec = small_spec()
    model = network(spec)
    state = renamed(model.backbone.state_dict(), names, qkv, VIT_HEADS, prefix)
    # ViTModel's own, which no classifier uses.
    state[f"{prefix}pooler.dense.weight"] = torch.ones(48, 48)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    assert_same_logits(model, spec, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("names", "qkv"), [(HUGGING_FACE, QKV), (HUGGING_FACE_5, QKV_5)], ids=["saved", "version 5"]
)
def test_a_distilled_hugging_face_deit_keeps_its_second_token_and_head(
    tmp_path: Path, names: dict[str, str], qkv: tuple[str, ...]
) -> None:
    spec = small_spec(DISTILLED)
    model = network(spec)
    state = renamed(model.backbone.state_dict(), names, qkv, DEIT_HEADS, "deit.")
    assert "deit.embeddings.distillation_token" in state
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same_logits(model, spec, tmp_path)


def test_a_distilled_checkpoint_is_refused_by_a_network_without_the_second_token(
    tmp_path: Path,
) -> None:
    state = network(small_spec(DISTILLED)).backbone.state_dict()
    state = renamed(state, HUGGING_FACE, QKV, DEIT_HEADS, "deit.")
    safetensors.torch.save_file(state, tmp_path / "deit.safetensors")
    spec = small_spec()
    with pytest.raises(CheckpointError, match=r"holds a distillation token.*distilled_patch16"):
        load_backbone(build_gft(spec), spec, tmp_path / "deit.safetensors")


def test_a_checkpoint_without_a_classifier_leaves_the_head_fresh(tmp_path: Path) -> None:
    spec = small_spec()
    model = network(spec)
    state = renamed(model.backbone.state_dict(), HUGGING_FACE, QKV, VIT_HEADS, "")
    del state["classifier.weight"], state["classifier.bias"]
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    loaded = build_gft(spec)
    assert sorted(load_backbone(loaded, spec, tmp_path / "w.safetensors")) == [
        "head.bias", "head.weight",
    ]  # fmt: skip
    assert torch.equal(loaded.backbone.norm.weight, model.backbone.norm.weight)


def test_a_block_without_its_key_is_refused_by_the_tensor_it_lacks(tmp_path: Path) -> None:
    spec = small_spec()
    state = renamed(network(spec).backbone.state_dict(), HUGGING_FACE, QKV, VIT_HEADS, "vit.")
    del state["vit.encoder.layer.1.attention.attention.key.bias"]
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensors are missing \(blocks.1.attn.qkv.bias"):
        load_backbone(build_gft(spec), spec, tmp_path / "w.safetensors")


def test_another_hugging_face_architecture_is_refused(tmp_path: Path) -> None:
    swin = {"swin.embeddings.patch_embeddings.projection.weight": torch.ones(48, 3, 4, 4)}
    safetensors.torch.save_file(swin, tmp_path / "swin.safetensors")
    spec = small_spec()
    with pytest.raises(CheckpointError, match=r"swin.safetensors is no checkpoint of vit_tiny"):
        load_backbone(build_gft(spec), spec, tmp_path / "swin.safetensors")


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_a_wrapped_networks_state_dict_is_read_as_the_networks(
    tmp_path: Path, wrapper: str
) -> None:
    spec = small_spec()
    model = network(spec)
    state = {f"{wrapper}{name}": t for name, t in model.backbone.state_dict().items()}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "w.pt")
    assert_same_logits(model, spec, tmp_path / "w.pt")


def test_a_run_gives_its_backbone(tmp_path: Path) -> None:
    spec = small_spec(stages="1:20,2:10")
    trained = network(spec)
    save_network(tmp_path, trained, spec)
    dense = small_spec()
    loaded = build_gft(dense)
    assert load_backbone(loaded, dense, tmp_path) == []
    for name, tensor in trained.backbone.state_dict().items():
        assert torch.equal(loaded.backbone.state_dict()[name], tensor), name


def sharded(folder: Path, state: dict[str, Tensor]) -> Path:
    """Two shards and their index, as save_pretrained writes them."""
    names = sorted(state)
    places: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        safetensors.torch.save_file({name: state[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return folder


def test_the_shards_of_a_folder_are_one_checkpoint(tmp_path: Path) -> None:
    spec = small_spec()
    model = network(spec)
    state = renamed(model.backbone.state_dict(), HUGGING_FACE, QKV, VIT_HEADS, "vit.")
    assert_same_logits(model, spec, sharded(tmp_path, state))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path, dict(network(small_spec()).backbone.state_dict()))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    spec = small_spec()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors is missing"):
        load_backbone(build_gft(spec), spec, tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": {"a": 3}}'])
def test_an_index_without_a_map_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    spec = small_spec()
    with pytest.raises(CheckpointError, match="is no index of weights"):
        load_backbone(build_gft(spec), spec, tmp_path)


def test_a_folder_gives_its_one_weights_file(tmp_path: Path) -> None:
    spec = small_spec()
    model = network(spec)
    state = dict(model.backbone.state_dict())
    torch.save(state, tmp_path / "vit.pth")
    (tmp_path / "notes.txt").write_text("not weights")
    assert_same_logits(model, spec, tmp_path)
    torch.save(state, tmp_path / "another.pth")
    with pytest.raises(CheckpointError, match=r"2 weights files \(another.pth, vit.pth\): name"):
        load_backbone(build_gft(spec), spec, tmp_path)
    # Of both formats the one that cannot run code counts.
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    assert_same_logits(model, spec, tmp_path)


def test_a_folder_without_weights_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    spec = small_spec()
    with pytest.raises(CheckpointError, match=r"holds no weights: expected model.safetensors"):
        load_backbone(build_gft(spec), spec, tmp_path)


def test_heads_that_only_the_config_tells_are_compared(tmp_path: Path) -> None:
    spec = small_spec()
    model = network(spec)
    state = renamed(model.backbone.state_dict(), HUGGING_FACE, QKV, VIT_HEADS, "vit.")
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 3}')
    assert_same_logits(model, spec, tmp_path)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 6}')
    with pytest.raises(CheckpointError, match="says 6 attention heads, expected 3"):
        load_backbone(build_gft(spec), spec, tmp_path)


def test_timm_safetensors_in_half_precision_are_read_in_full(tmp_path: Path) -> None:
    model = timm.create_model(PLAIN, img_size=48, num_classes=3, **SMALL).half()
    safetensors.torch.save_file(dict(model.state_dict()), tmp_path / "w.safetensors")
    spec = small_spec()
    loaded = build_gft(spec)
    assert load_backbone(loaded, spec, tmp_path / "w.safetensors") == []
    assert loaded.backbone.head.weight.dtype == torch.float32
