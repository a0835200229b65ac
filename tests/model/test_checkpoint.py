"""Weights on disk: pretrained in, runs out and in, and every file that is not what it should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from gft_edge.bundle.specs import ModelSpec
from gft_edge.errors import CheckpointError
from gft_edge.model.checkpoint import load_backbone, load_run, save_network
from gft_edge.model.gft import GFT, build_backbone, build_gft
from gft_edge.model.variants import spec_from_name

SMALL = {"embed_dim": 48, "depth": 4, "num_heads": 3, "patch_size": 8}


def small_spec(stages: str = "1:20,2:15,4:10", depth: int = 4, size: int = 48) -> ModelSpec:
    return spec_from_name(
        "vit_tiny_patch16_224",
        ("a", "b", "c"),
        image_size_px=size,
        stages=stages,
        backbone_args={**SMALL, "depth": depth},
    )


def donor(depth: int = 4) -> GFT:
    torch.manual_seed(3)
    return build_gft(small_spec("none", depth))


def save_donor(path: Path, depth: int = 4, classes: int | None = None) -> dict[str, torch.Tensor]:
    state = dict(donor(depth).backbone.state_dict())
    if classes is not None:
        state["head.weight"], state["head.bias"] = torch.ones(classes, 48), torch.ones(classes)
    safetensors.torch.save_file(state, path)
    return state


def test_gala_layers_start_from_the_pretrained_block_they_precede(tmp_path: Path) -> None:
    state = save_donor(tmp_path / "w.safetensors")
    spec = small_spec()
    model = build_gft(spec)
    assert load_backbone(model, spec, tmp_path / "w.safetensors") == []
    for layer, block in zip(model.layers, (1, 2, 3), strict=True):
        assert torch.equal(layer.attn.qkv.weight, state[f"blocks.{block}.attn.qkv.weight"])
        assert torch.equal(layer.norm.weight, state[f"blocks.{block}.norm1.weight"])
        assert not layer.attn.proj.weight.any()


def test_a_shallower_network_takes_its_layers_from_the_blocks_it_leaves_out(tmp_path: Path) -> None:
    state = save_donor(tmp_path / "w.safetensors", depth=6)
    spec = small_spec("4:20,4:15")
    model = build_gft(spec)
    load_backbone(model, spec, tmp_path / "w.safetensors")
    for layer, block in zip(model.layers, (4, 5), strict=True):
        assert torch.equal(layer.attn.qkv.weight, state[f"blocks.{block}.attn.qkv.weight"])


def test_a_fresh_gft_without_selection_equals_its_pretrained_backbone(tmp_path: Path) -> None:
    save_donor(tmp_path / "w.safetensors")
    spec = small_spec("1:36,2:36,3:36")
    model = build_gft(spec).eval()
    load_backbone(model, spec, tmp_path / "w.safetensors")
    images = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(model(images), donor().eval()(images))


def test_another_class_count_leaves_the_head_fresh(tmp_path: Path) -> None:
    save_donor(tmp_path / "w.safetensors", classes=1000)
    spec = small_spec()
    fresh = load_backbone(build_gft(spec), spec, tmp_path / "w.safetensors")
    assert sorted(fresh) == ["head.bias", "head.weight"]


def test_position_embeddings_are_resampled_to_another_image_size(tmp_path: Path) -> None:
    save_donor(tmp_path / "w.safetensors")
    spec = small_spec("none", size=64)
    model = build_gft(spec)
    load_backbone(model, spec, tmp_path / "w.safetensors")
    assert model.backbone.pos_embed.shape == (1, 65, 48)
    assert torch.equal(model.backbone.cls_token, donor().backbone.cls_token)


def test_a_pytorch_state_dict_is_read_too(tmp_path: Path) -> None:
    torch.save({"state_dict": donor().backbone.state_dict()}, tmp_path / "w.pt")
    spec = small_spec("none")
    model = build_gft(spec)
    load_backbone(model, spec, tmp_path / "w.pt")
    assert torch.equal(model.backbone.cls_token, donor().backbone.cls_token)


class Trap:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must not run",))


def test_a_pickle_with_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Trap()}, tmp_path / "trap.pt")
    spec = small_spec("none")
    with pytest.raises(CheckpointError, match=r"could run code on loading.*safetensors"):
        load_backbone(build_gft(spec), spec, tmp_path / "trap.pt")
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x04 broken pickle"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    spec = small_spec("none")
    with pytest.raises(CheckpointError, match=r"w.pt"):
        load_backbone(build_gft(spec), spec, tmp_path / "w.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    spec = small_spec("none")
    with pytest.raises(CheckpointError, match="no such weights file"):
        load_backbone(build_gft(spec), spec, tmp_path / "absent.safetensors")


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    state = timm.create_model("resnet18", num_classes=3).state_dict()
    safetensors.torch.save_file(dict(state), tmp_path / "resnet.safetensors")
    spec = small_spec("none")
    with pytest.raises(CheckpointError, match=r"is no checkpoint of vit_tiny_patch16_224"):
        load_backbone(build_gft(spec), spec, tmp_path / "resnet.safetensors")


def test_a_checkpoint_of_another_width_names_the_tensor(tmp_path: Path) -> None:
    wide = build_backbone(small_spec("none"), embed_dim=96)
    safetensors.torch.save_file(dict(wide.state_dict()), tmp_path / "wide.safetensors")
    spec = small_spec("none")
    with pytest.raises(CheckpointError, match=r"\(1, 1, 96\), expected \(1, 1, 48\)"):
        load_backbone(build_gft(spec), spec, tmp_path / "wide.safetensors")


def test_nan_weights_are_refused_by_tensor(tmp_path: Path) -> None:
    state = save_donor(tmp_path / "w.safetensors")
    state["blocks.2.mlp.fc1.weight"][3, 5] = float("nan")
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    spec = small_spec("none")
    with pytest.raises(CheckpointError, match=r"blocks.2.mlp.fc1.weight holds NaN"):
        load_backbone(build_gft(spec), spec, tmp_path / "w.safetensors")


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    spec = small_spec()
    model = build_gft(spec).eval()
    save_network(tmp_path, model, spec)
    loaded_spec, loaded = load_run(tmp_path)
    images = torch.randn(2, 3, 48, 48)
    assert loaded_spec == spec
    assert torch.equal(loaded(images), model(images))


def test_a_run_whose_weights_do_not_fit_its_spec_is_refused(tmp_path: Path) -> None:
    spec = small_spec()
    save_network(tmp_path, build_gft(spec), spec)
    content = json.loads((tmp_path / "model.json").read_text())
    content["labels"].append("d")
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"head.*\(3.*expected \(4"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be used"), ("{}", "lacks the field"), ("[]", "is not an object")],
)
def test_a_damaged_model_json_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_run(tmp_path)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is no run: it has no model.json"):
        load_run(tmp_path)
