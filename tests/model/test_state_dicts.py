"""Checkpoints with other projects' names: the same logits as from timm's own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
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
from tests.support.networks import MICRO_BACKBONE, micro_spec
from tests.support.refusals import refusal_of

PLAIN, DISTILLED = "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"
IMAGES = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))

# timm's name -> the one that transformers saves; N is the block, W is weight or bias.
HUGGING_FACE = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.W": "embeddings.patch_embeddings.projection.W",
    "blocks.N.norm1.W": "encoder.layer.N.layernorm_before.W",
    "blocks.N.attn.q.W": "encoder.layer.N.attention.attention.query.W",
    "blocks.N.attn.k.W": "encoder.layer.N.attention.attention.key.W",
    "blocks.N.attn.v.W": "encoder.layer.N.attention.attention.value.W",
    "blocks.N.attn.proj.W": "encoder.layer.N.attention.output.dense.W",
    "blocks.N.norm2.W": "encoder.layer.N.layernorm_after.W",
    "blocks.N.mlp.fc1.W": "encoder.layer.N.intermediate.dense.W",
    "blocks.N.mlp.fc2.W": "encoder.layer.N.output.dense.W",
    "norm.W": "layernorm.W",
}
# The names of transformers 5 in memory, which torch.save(model.state_dict()) writes.
HUGGING_FACE_5 = {
    **HUGGING_FACE,
    "blocks.N.norm1.W": "layers.N.layernorm_before.W",
    "blocks.N.attn.q.W": "layers.N.attention.q_proj.W",
    "blocks.N.attn.k.W": "layers.N.attention.k_proj.W",
    "blocks.N.attn.v.W": "layers.N.attention.v_proj.W",
    "blocks.N.attn.proj.W": "layers.N.attention.o_proj.W",
    "blocks.N.norm2.W": "layers.N.layernorm_after.W",
    "blocks.N.mlp.fc1.W": "layers.N.mlp.fc1.W",
    "blocks.N.mlp.fc2.W": "layers.N.mlp.fc2.W",
}
VIT_HEADS = {"head.W": "classifier.W"}
DEIT_HEADS = {"head.W": "cls_classifier.W", "head_dist.W": "distillation_classifier.W"}


def small_spec(backbone: str = PLAIN, stages: str = "none") -> ModelSpec:
    return micro_spec(("a", "b", "c"), stages, 48, name=backbone, depth=3)


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
    prefix: str,
    names: Mapping[str, str] = HUGGING_FACE,
    heads: Mapping[str, str] = VIT_HEADS,
) -> dict[str, Tensor]:
    """A timm state dict under Hugging Face's names."""
    apart: dict[str, Tensor] = {}
    for name, tensor in state.items():
        parts = zip("qkv", tensor.chunk(3), strict=True) if ".qkv." in name else [("qkv", tensor)]
        apart |= {name.replace("qkv", letter): part.contiguous() for letter, part in parts}
    result = {}
    for name, tensor in apart.items():
        _, _, rest = name.partition(".")
        block, leaf = rest.partition(".")[0], name.rpartition(".")[2]
        pattern = re.sub(r"^blocks\.\d+", "blocks.N", re.sub(r"\.(weight|bias)$", ".W", name))
        theirs = heads[pattern] if pattern in heads else prefix + names[pattern]
        result[theirs.replace(".N.", f".{block}.").replace(".W", f".{leaf}")] = tensor
    return result


def assert_same_logits(model: GFT, spec: ModelSpec, path: Path) -> None:
    loaded = build_gft(spec).eval()
    assert load_backbone(loaded, spec, path) == []
    with torch.inference_mode():
        torch.testing.assert_close(loaded(IMAGES), model(IMAGES), rtol=0, atol=1e-6)


def refused(path: Path, *words: str) -> None:
    spec = small_spec()
    refusal_of(CheckpointError, partial(load_backbone, build_gft(spec), spec, path), *words)


@pytest.mark.parametrize("prefix", ["", "vit.", "deit."])
@pytest.mark.parametrize("names", [HUGGING_FACE, HUGGING_FACE_5], ids=["saved", "version 5"])
def test_a_hugging_face_vit_gives_timms_logits(
    tmp_path: Path, prefix: str, names: dict[str, str]
) -> None:
    # A DeiT's is distilled: its second token and head are kept.
    distilled = prefix == "deit."
    spec = small_spec(DISTILLED if distilled else PLAIN)
    model = network(spec)
    heads = DEIT_HEADS if distilled else VIT_HEADS
    state = renamed(model.backbone.state_dict(), prefix, names, heads)
    assert (f"{prefix}embeddings.distillation_token" in state) == distilled
    if distilled:
        torch.save(state, tmp_path / "pytorch_model.bin")
        assert_same_logits(model, spec, tmp_path)
        return
    # ViTModel's own, which no classifier uses.
    state[f"{prefix}pooler.dense.weight"] = torch.ones(48, 48)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    assert_same_logits(model, spec, tmp_path / "model.safetensors")


def test_a_checkpoint_that_does_not_fit_is_refused_by_what_it_holds_or_lacks(
    tmp_path: Path,
) -> None:
    distilled = network(small_spec(DISTILLED)).backbone.state_dict()
    keyless = renamed(network(small_spec()).backbone.state_dict(), "vit.")
    del keyless["vit.encoder.layer.1.attention.attention.key.bias"]
    swin = {"swin.embeddings.patch_embeddings.projection.weight": torch.ones(48, 3, 4, 4)}
    for state, words in (
        (renamed(distilled, "deit.", heads=DEIT_HEADS), ("distilled_patch16",)),
        (keyless, ("1 tensors", "blocks.1.attn.qkv.bias")),
        (swin, ("w.safetensors", PLAIN)),
    ):
        safetensors.torch.save_file(state, tmp_path / "w.safetensors")
        refused(tmp_path / "w.safetensors", *words)


def test_a_checkpoint_without_a_classifier_leaves_the_head_fresh(tmp_path: Path) -> None:
    spec = small_spec()
    model = network(spec)
    state = renamed(model.backbone.state_dict(), "")
    del state["classifier.weight"], state["classifier.bias"]
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    loaded = build_gft(spec)
    assert sorted(load_backbone(loaded, spec, tmp_path / "w.safetensors")) == [
        "head.bias", "head.weight",
    ]  # fmt: skip
    assert torch.equal(loaded.backbone.norm.weight, model.backbone.norm.weight)


@pytest.mark.parametrize(
    ("key", "wrapper"),
    [
        ("state_dict", "module."),
        ("model", "_orig_mod."),
        ("model_state_dict", "_orig_mod.module."),
        ("state_dict", "model."),
        ("state_dict", "model._orig_mod."),
        ("state_dict", "net.module."),
        ("state_dict", "network."),
    ],
)
def test_a_wrapped_networks_state_dict_is_read_as_the_networks(
    tmp_path: Path, key: str, wrapper: str
) -> None:
    spec = small_spec()
    model = network(spec)
    state = {f"{wrapper}{name}": t for name, t in model.backbone.state_dict().items()}
    torch.save({key: state, "epoch": 3}, tmp_path / "w.pt")
    assert_same_logits(model, spec, tmp_path / "w.pt")


def test_what_a_lightning_module_holds_beside_its_network_is_left_out(tmp_path: Path) -> None:
    spec = small_spec()
    model = network(spec)
    state = {f"model.{name}": t for name, t in model.backbone.state_dict().items()}
    state["criterion.weight"] = torch.ones(3)
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.5"}, tmp_path / "w.ckpt")
    assert_same_logits(model, spec, tmp_path / "w.ckpt")


@pytest.mark.parametrize(
    ("average", "plain"), [("state_dict_ema", "state_dict"), ("model_ema", "model")]
)
def test_averaged_weights_are_taken_as_timm_takes_them_which_is_said(
    tmp_path: Path, average: str, plain: str
) -> None:
    spec, said = small_spec(), list[str]()
    model = network(spec)
    state = model.backbone.state_dict()
    others = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({plain: others, average: state, "arch": "vit"}, tmp_path / "w.pt")
    assert_same_logits(model, spec, tmp_path / "w.pt")
    load_backbone(build_gft(spec), spec, tmp_path / "w.pt", said.append)
    (line,) = said
    assert average in line


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.json", {"labels": ["c", "a", "b"]}),
        ("config.json", {"label_names": ["c", "a", "b"]}),
        ("config.json", {"id2label": {"0": "c", "1": "a", "2": "b"}}),
        ("config.json", {"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}),
        ("config.json", {"label_names": {"c": 0, "a": 1, "b": 2}}),
    ],
)
def test_the_rows_of_a_head_follow_the_classes_that_the_checkpoint_names(
    file: str, content: dict[str, object], tmp_path: Path
) -> None:
    spec = small_spec()
    model, loaded = network(spec), build_gft(spec)
    safetensors.torch.save_file(model.backbone.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / file).write_text(json.dumps(content))
    assert load_backbone(loaded, spec, tmp_path) == []
    named = "'c', 'a', 'b'" in str(content) or "'2': 'b'" in str(content)
    order = [1, 2, 0] if named else [0, 1, 2]
    for part in ("weight", "bias"):
        ours, theirs = getattr(loaded.backbone.head, part), getattr(model.backbone.head, part)
        assert torch.equal(ours, theirs[order])


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
    state = renamed(model.backbone.state_dict(), "vit.")
    assert_same_logits(model, spec, sharded(tmp_path, state))


def test_a_folder_without_its_weights_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path, dict(network(small_spec()).backbone.state_dict()))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    refused(tmp_path, "model-00002-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for text in ("", "{}", "[]", '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        refused(tmp_path, "model.safetensors.index.json")
    index.unlink()
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    refused(tmp_path, str(tmp_path), "model.safetensors")


def test_a_folder_gives_its_one_weights_file(tmp_path: Path) -> None:
    spec = small_spec()
    model = network(spec)
    state = dict(model.backbone.state_dict())
    torch.save(state, tmp_path / "vit.pth")
    (tmp_path / "notes.txt").write_text("not weights")
    assert_same_logits(model, spec, tmp_path)
    torch.save(state, tmp_path / "another.pth")
    refused(tmp_path, "2 weights files", "another.pth, vit.pth")
    # Of both formats the one that cannot run code counts.
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    assert_same_logits(model, spec, tmp_path)


def test_timm_safetensors_in_half_precision_are_read_in_full(tmp_path: Path) -> None:
    model = timm.create_model(
        PLAIN, img_size=48, num_classes=3, **{**MICRO_BACKBONE, "depth": 3}
    ).half()
    safetensors.torch.save_file(dict(model.state_dict()), tmp_path / "w.safetensors")
    spec = small_spec()
    loaded = build_gft(spec)
    assert load_backbone(loaded, spec, tmp_path / "w.safetensors") == []
    assert loaded.backbone.head.weight.dtype == torch.float32
