"""Weights on disk: pretrained in, runs out and in, and every file that is not what it should be."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from gft_edge.bundle.specs import ModelSpec
from gft_edge.errors import CheckpointError
from gft_edge.model.checkpoint import load_backbone, load_run, save_network
from gft_edge.model.gft import GFT, build_backbone, build_gft
from tests.support import unprivileged
from tests.support.files import Trap
from tests.support.networks import micro_spec, seeded
from tests.support.networks import small_spec as transfg_spec
from tests.support.refusals import refusal_of


def small_spec(stages: str = "1:20,2:15,4:10", depth: int = 4) -> ModelSpec:
    return micro_spec(("a", "b", "c"), stages, 48, depth=depth)


def donor(depth: int = 4) -> GFT:
    torch.manual_seed(3)
    return build_gft(small_spec("none", depth))


def save_donor(path: Path, depth: int = 4) -> dict[str, torch.Tensor]:
    state = dict(donor(depth).backbone.state_dict())
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


def refused(path: Path, *words: str) -> None:
    spec = small_spec("none")
    refusal_of(CheckpointError, partial(load_backbone, build_gft(spec), spec, path), *words)


def test_a_pickle_with_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Trap()}, tmp_path / "trap.pt")
    refused(tmp_path / "trap.pt", "trap.pt", "code", "safetensors")
    assert "must not run" not in capsys.readouterr().out


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "absent.safetensors", "absent.safetensors")
    for content in (b"", b"not a checkpoint", b"\x80\x04 broken pickle"):
        (tmp_path / "w.pt").write_bytes(content)
        refused(tmp_path / "w.pt", "w.pt")


def test_a_checkpoint_of_another_network_is_refused_by_its_tensor(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    resnet = timm.create_model("resnet18", num_classes=3).state_dict()
    wide = build_backbone(small_spec("none"), embed_dim=96).state_dict()
    spoilt = donor().backbone.state_dict()
    spoilt["blocks.2.mlp.fc1.weight"][3, 5] = float("nan")
    for state, words in (
        (resnet, ("w.safetensors", "vit_tiny_patch16_224")),
        (wide, ("(1, 1, 96)", "(1, 1, 48)")),
        (spoilt, ("blocks.2.mlp.fc1.weight", "NaN")),
    ):
        safetensors.torch.save_file(dict(state), file)
        refused(file, *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.to(torch.int8), ("int8", "float32")),
        (lambda t: t.to(torch.uint8), ("uint8", "float32")),
        (lambda t: t.to(torch.float8_e4m3fn), ("float8", "float32")),
        (lambda t: t.to(torch.complex64), ("complex64", "float32")),
        (lambda t: t.to("meta"), ("meta",)),
        (lambda t: t.to_sparse(), ("sparse",)),
    ],
)
def test_weights_that_are_no_plain_numbers_are_refused_by_their_tensor(
    change: Callable[[torch.Tensor], torch.Tensor], words: tuple[str, ...], tmp_path: Path
) -> None:
    state = dict(donor().backbone.state_dict())
    state["blocks.1.mlp.fc1.weight"] = change(state["blocks.1.mlp.fc1.weight"])
    torch.save({"model": state}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "w.pt", "blocks.1.mlp.fc1.weight", *words)


def test_what_stands_beside_the_tensors_of_a_checkpoint_is_named(tmp_path: Path) -> None:
    state = dict(donor().backbone.state_dict())
    torch.save({"weights": state, "epoch": 3}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "weights", "epoch", "state_dict")


@pytest.mark.slow
def test_weights_that_may_not_be_read_are_no_damaged_weights(tmp_path: Path) -> None:
    closed = list[tuple[str, Path]]()
    for given, place in (
        ("w.safetensors", "w.safetensors"),
        ("run", "run/model.safetensors"),
        ("folder", "folder"),
    ):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        save_donor(tmp_path / place) if "." in place else (tmp_path / place).mkdir()
        closed.append((str(tmp_path / given), tmp_path / place))
    code = f"""
from pathlib import Path
from gft_edge.errors import CheckpointError
from gft_edge.model.checkpoint import read_weights
for given in {[given for given, _ in closed]!r}:
    try:
        read_weights(Path(given))
    except CheckpointError as error:
        print(error)
"""
    for _, file in closed:
        file.chmod(0)
    try:
        lines = unprivileged.python("-c", code).stdout.splitlines()
    finally:
        for _, file in closed:
            file.chmod(0o700)
    assert len(lines) == 3
    for line, (_, file) in zip(lines, closed, strict=True):
        assert line.startswith(f"{file} cannot be read: Permission denied")


@pytest.mark.parametrize("make", [small_spec, partial(transfg_spec, "transfg_tiny")])
def test_a_run_comes_back_as_it_was(tmp_path: Path, make: Callable[[], ModelSpec]) -> None:
    spec = make()
    model = seeded(spec)
    save_network(tmp_path, model, spec)
    loaded_spec, loaded = load_run(tmp_path)
    size = spec.preprocessing.image_size_px
    images = torch.randn(2, 3, size, size)
    assert loaded_spec == spec
    assert torch.equal(loaded(images), model(images))


def test_a_run_whose_weights_do_not_fit_its_spec_is_refused(tmp_path: Path) -> None:
    spec = small_spec()
    save_network(tmp_path, build_gft(spec), spec)
    content = json.loads((tmp_path / "model.json").read_text())
    content["labels"].append("d")
    (tmp_path / "model.json").write_text(json.dumps(content))
    refusal_of(CheckpointError, partial(load_run, tmp_path), "head", "(3", "(4")


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    refusal_of(CheckpointError, partial(load_run, tmp_path), str(tmp_path), "model.json")
    for content in ("{", "{}", "[]"):
        (tmp_path / "model.json").write_text(content)
        refusal_of(CheckpointError, partial(load_run, tmp_path), str(tmp_path))
