"""Gradient norms a layer: the numbers autograd has, over steps and epochs, and the file they are kept in."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from gft_edge.errors import UsageError
from gft_edge.model.gft import GFT, build_gft
from gft_edge.training.gradients import (
    GRADIENTS_FILE,
    GradientNorms,
    chosen_epochs,
    layers_of,
    read_norms,
    write_norms,
)
from tests.support.networks import micro_spec
from tests.support.refusals import refusal_of


def network(stages: str = "1:20,2:15,3:10") -> GFT:
    torch.manual_seed(0)
    return build_gft(micro_spec(("a", "b", "c"), stages, 48))


def step(model: nn.Module, amp: bool = False, seed: int = 1, size: int = 48) -> None:
    """Leave the gradients of one training step."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, size, size, generator=generator)
    model.train()
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        logits = model(images)
    loss: torch.Tensor = nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1, 2, 0]))
    torch.autograd.backward(loss)


def norm_of(parameters: list[nn.Parameter]) -> float:
    """Written out: every element of every gradient."""
    elements = torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None])
    return float(elements.square().sum().sqrt())


@pytest.mark.parametrize("amp", [False, True])
def test_norms_are_those_of_the_gradients_layer_by_layer(amp: bool) -> None:
    model = network()
    norms = GradientNorms(model)
    step(model, amp)
    norms.add()
    expected = {name: norm_of(parameters) for name, parameters in layers_of(model).items()}
    assert norms.means() == pytest.approx(expected, rel=1e-5)
    assert all(norm > 0 for norm in expected.values())
    total = sum(norm**2 for norm in expected.values()) ** 0.5
    assert total == pytest.approx(norm_of([*model.parameters()]))


def test_a_mean_is_over_the_steps() -> None:
    model = network()
    norms, single = GradientNorms(model), []
    for seed in (1, 2, 3):
        step(model, seed=seed)
        norms.add()
        single.append(norm_of([*model.backbone.head.parameters()]))
    assert norms.means()["head"] == pytest.approx(sum(single) / 3, rel=1e-5)


def test_layers_stand_in_the_order_of_the_forward_pass() -> None:
    assert GradientNorms(network()).layers == (
        "patch embedding", "block 0", "GALA layer 1", "block 1", "GALA layer 2", "block 2",
        "GALA layer 3", "block 3", "norm", "head",
    )  # fmt: skip
    spec = dataclasses.replace(micro_spec(("a", "b", "c"), "1:20,2:15", 48), gala="block")
    assert GradientNorms(build_gft(spec)).layers == (
        "patch embedding", "block 0", "block 1", "selection 1", "block 2", "selection 2",
        "block 3", "norm", "head",
    )  # fmt: skip


def test_every_parameter_is_in_exactly_one_layer() -> None:
    for model in (network(), timm.create_model("resnet18"), timm.create_model("densenet121")):
        grouped = [p for parameters in layers_of(model).values() for p in parameters]
        assert len(grouped) == len({*map(id, grouped)}) == len([*model.parameters()])


def test_other_networks_have_the_layers_that_their_authors_name() -> None:
    assert GradientNorms(timm.create_model("resnet18")).layers == (
        "stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1",
        "layer4.0", "layer4.1", "fc",
    )  # fmt: skip
    dense = timm.create_model("vit_tiny_patch16_224", depth=2)
    assert GradientNorms(dense).layers == ("patch embedding", "block 0", "block 1", "norm", "head")
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(3))
    plain(torch.zeros(1, 3, 8, 8))
    assert GradientNorms(plain).layers == ("0", "2")
    step(plain, size=8)
    norms = GradientNorms(plain)
    norms.add()
    assert norms.means()["2"] == pytest.approx(norm_of([*plain[2].parameters()]), rel=1e-5)


def test_a_layer_without_gradient_counts_as_zero_and_a_frozen_one_is_no_layer() -> None:
    model = network()
    assert set(GradientNorms(model).means().values()) == {0.0}
    for parameter in model.backbone.patch_embed.parameters():
        parameter.requires_grad_(False)
    model.backbone.cls_token.requires_grad_(False)
    model.backbone.pos_embed.requires_grad_(False)
    norms = GradientNorms(model)
    step(model)
    for parameter in model.backbone.blocks[0].parameters():
        parameter.grad = None
    norms.add()
    assert "patch embedding" not in norms.means()
    assert norms.means()["block 0"] == 0.0
    assert norms.means()["block 1"] > 0


def test_a_gradient_that_is_not_finite_shows() -> None:
    model = network()
    step(model)
    grad = model.backbone.head.weight.grad
    assert grad is not None
    grad[0, 0] = float("nan")
    norms = GradientNorms(model)
    norms.add()
    assert norms.means()["head"] != norms.means()["head"]
    assert norms.means()["block 0"] > 0


def test_epochs_are_five_from_first_to_last_or_those_asked_for() -> None:
    assert chosen_epochs(None, 50) == (1, 13, 25, 38, 50)
    assert chosen_epochs(None, 3) == (1, 2, 3)
    assert chosen_epochs(None, 1) == (1,)
    assert chosen_epochs("all", 4) == (1, 2, 3, 4)
    assert chosen_epochs("41, 1,11,21,31", 50) == (1, 11, 21, 31, 41)


def test_epochs_that_are_none_are_refused() -> None:
    for text, word in (("0,1", "epoch 0:"), ("1,7", "epoch 7:"), ("first", "first"), ("", "all")):
        refusal_of(UsageError, partial(chosen_epochs, text, 6), word)


def test_norms_are_appended_and_an_epoch_trained_again_is_replaced(tmp_path: Path) -> None:
    write_norms(tmp_path, 1, {"patch embedding": 2.0, "head": 0.25})
    write_norms(tmp_path, 3, {"patch embedding": 1.0, "head": float("nan")})
    assert (tmp_path / GRADIENTS_FILE).read_text() == (
        "epoch,layer,norm\n1,patch embedding,2\n1,head,0.25\n3,patch embedding,1\n3,head,nan\n"
    )
    # The run was interrupted in epoch 3 or 4 and resumed from an earlier state.
    write_norms(tmp_path, 3, {"patch embedding": 1.5, "head": 0.5})
    assert read_norms(tmp_path / GRADIENTS_FILE) == {
        1: {"patch embedding": 2.0, "head": 0.25},
        3: {"patch embedding": 1.5, "head": 0.5},
    }


def test_a_damaged_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / GRADIENTS_FILE).write_text("epoch,layer,norm\n1,head,0.5\n2,head,much\n")
    refusal_of(UsageError, partial(read_norms, tmp_path / GRADIENTS_FILE), "gradients.csv, line 3")
