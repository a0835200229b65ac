"""Networks that are no GFT: what a name means, which weights start it, what it costs, its graph."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.layers import StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn
from torch.nn import functional as F

from gft_edge.calibration.layers import layer_macs, quantizable_layers
from gft_edge.errors import CheckpointError, SpecError
from gft_edge.export.onnx_from_torch import FromPixels, folds_normalisation
from gft_edge.model.checkpoint import load_backbone
from gft_edge.model.cost import _counted, cost_of
from gft_edge.model.dense import Dense
from gft_edge.model.named_networks import build_network, spec_from_name
from gft_edge.model.plain_weights import with_plain_weights
from gft_edge.runtime.preprocess import batch_from_pixels
from tests.support.cli import run, run_json
from tests.support.networks import VIT_OF_TRANSFG, micro_spec, noise, seeded, small_spec
from tests.support.pictures import MICRO_LABELS
from tests.support.refusals import refusal_of


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    # The paper's table. Its densenet169 is counted with the head of ImageNet's 1000 classes.
    [
        ("resnet18", 100, 11),
        pytest.param("densenet169", 1000, 14, marks=pytest.mark.slow),
        pytest.param("resnetv2_101x3_bit", 100, 382, marks=pytest.mark.slow),
    ],
)
def test_the_papers_baselines_have_the_papers_size(name: str, classes: int, millions: int) -> None:
    spec = spec_from_name(name, tuple(map(str, range(classes))))
    with torch.device("meta"):
        model = build_network(spec)
    assert spec.family == "timm"
    assert spec.stages == ()
    assert spec.patch_grid == (0, 0)
    assert sum(p.numel() for p in model.parameters()) // 10**6 == millions


def test_a_plain_vit_without_stages_is_the_vit_itself() -> None:
    arguments = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    spec = spec_from_name("deit_tiny_patch16_224", MICRO_LABELS, backbone_args=arguments)
    assert (spec.family, spec.stages) == ("gft", ())
    model = seeded(spec)
    images = noise(2, 3, 224, 224)
    torch.testing.assert_close(model(images), model.backbone(images))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gft_tiny", {"image_size_px": 100}, ("100", "16", "96 or 112")),
        ("gft_huge", {}, ("gft_huge", "gft_base_edge", "transfg", "timm")),
        ("gft_huge", {"stages": "8:75%"}, ("'gft_huge'",)),
        *(
            ("gft_tiny", {"temperature": value}, (f"--temperature is {value:g}:",))
            for value in (0.0, -1.0, float("nan"), float("inf"))
        ),
        ("resnet81", {}, ("'resnet81'", "resnet18")),
        ("hf-hub:timm/resnet18", {}, ("hf-hub:timm/resnet18", "hub")),
        ("xyzzy", {}, ("xyzzy", "timm.list_models()")),
        ("resnet18", {"stages": "8:50%"}, ("--stages 8:50%", "ResNet")),
        ("transfg", {"stages": "8:50%"}, ("--stages 8:50%", "TransFG")),
        ("resnet18", {"score": "class"}, ("resnet18", "--score")),
        ("vit_tiny_patch16_224", {"gala": "block"}, ("--gala",)),
        ("test_vit", {"image_size_px": 100}, ("test_vit", "100 px", "160")),
        ("vit_base_patch16_sapiens2", {}, ("1024 px", "768 px", "--image-size")),
        ("transfg_tiny", {"image_size_px": 20}, ("20", "28 px")),
        ("transfg_tiny", {"backbone_args": {"patch_stride": 17}}, ("patch_stride is 17",)),
    ],
)
def test_a_request_that_names_no_network_is_refused(
    name: str, options: dict[str, Any], words: tuple[str, ...]
) -> None:
    refusal_of(SpecError, partial(spec_from_name, name, MICRO_LABELS, **options), *words)


@pytest.mark.parametrize("name", ["gft_tiny", "vit_tiny_patch16_224", "resnet18", "transfg_tiny"])
def test_a_size_of_images_that_none_can_have_is_refused(name: str) -> None:
    for size in (0, -16):
        work = partial(spec_from_name, name, MICRO_LABELS, image_size_px=size)
        refusal_of(SpecError, work, "--image-size", str(size))


@pytest.mark.parametrize(("size", "fitting"), [(8, "use 16"), (20, "use 16 or 32"), (15, "use 16")])
def test_a_size_that_patches_do_not_fill_is_refused_with_those_that_they_do(
    size: int, fitting: str
) -> None:
    work = partial(spec_from_name, "gft_tiny", MICRO_LABELS, image_size_px=size, stages="none")
    assert refusal_of(SpecError, work, str(size)).endswith(fitting)


def test_a_network_made_for_oblong_images_takes_a_square_that_is_asked_for() -> None:
    spec = spec_from_name("vit_base_patch16_sapiens2", MICRO_LABELS, image_size_px=768)
    assert spec.preprocessing.image_size_px == 768


def test_a_model_without_a_classifier_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # A tower of a CLIP gives features whatever it is asked for.
    real = timm.create_model
    monkeypatch.setattr(
        "gft_edge.model.timm_models.timm.create_model",
        lambda name, **given: real(name, **{**given, "num_classes": 0}),
    )
    refusal_of(SpecError, partial(spec_from_name, "resnet18", MICRO_LABELS), "resnet18")


def test_heads_that_config_json_states_are_compared_for_any_vit(tmp_path: Path) -> None:
    """They are read beside a file as in a folder, and where the whole network is loaded as it is."""
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=9, **VIT_OF_TRANSFG)
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(vit.state_dict(), file)
    gft = micro_spec(stages="1:8", patch_size=16)
    for spec in (small_spec("transfg_tiny"), gft):
        model = seeded(spec)
        for path, fitting in ((file, "{}"), (tmp_path, '{"num_attention_heads": 3}')):
            (tmp_path / "config.json").write_text(fitting)
            load_backbone(model, spec, path)
            (tmp_path / "config.json").write_text('{"num_attention_heads": 4}')
            work = partial(load_backbone, model, spec, path)
            refusal_of(CheckpointError, work, "4 attention heads", "expected 3")


# Weights of timm's classifiers


def test_a_network_that_timm_names_no_classifier_of_is_loaded_whole(tmp_path: Path) -> None:
    spec = small_spec("test_resnet")
    donor, model = seeded(spec), seeded(spec)
    safetensors.torch.save_file(donor.backbone.state_dict(), tmp_path / "w.safetensors")
    model.backbone.pretrained_cfg = {**model.backbone.pretrained_cfg, "classifier": None}
    with torch.no_grad():
        model.backbone.get_classifier().weight.zero_()
    assert load_backbone(model, spec, tmp_path / "w.safetensors") == []
    assert torch.equal(
        model.backbone.get_classifier().weight, donor.backbone.get_classifier().weight
    )


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_timms_weights_start_a_network_but_for_a_head_of_other_classes(
    name: str, tmp_path: Path
) -> None:
    donor = timm.create_model(name, num_classes=9)
    safetensors.torch.save_file(donor.state_dict(), tmp_path / "w.safetensors")
    spec = small_spec(name)
    model = seeded(spec)
    head = model.backbone.get_classifier().weight.clone()
    fresh = load_backbone(model, spec, tmp_path / "w.safetensors")
    assert {one.rpartition(".")[2] for one in fresh} == {"weight", "bias"}
    assert torch.equal(model.backbone.get_classifier().weight, head)
    for key, value in donor.state_dict().items():
        if key not in fresh:
            assert torch.equal(model.backbone.state_dict()[key], value)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("test_resnet", "test_convnext"),
        ("transfg_tiny", "test_resnet"),
        ("test_convnext", "test_convnext2"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(
    name: str, other: str, tmp_path: Path
) -> None:
    donor = timm.create_model(other, num_classes=4)
    safetensors.torch.save_file(donor.state_dict(), tmp_path / "w.safetensors")
    spec = small_spec(name)
    work = partial(load_backbone, seeded(spec), spec, tmp_path / "w.safetensors")
    refusal_of(CheckpointError, work, "w.safetensors", spec.backbone)


# Cost


def test_torchs_counter_and_the_formulas_agree_on_a_dense_vit_and_on_transfg() -> None:
    arguments = {"embed_dim": 48, "depth": 3, "num_heads": 3}
    vit = spec_from_name("vit_tiny_patch16_224", MICRO_LABELS, backbone_args=arguments)
    for spec in (vit, small_spec("transfg_tiny")):
        model = seeded(spec)
        by_formula, counted = cost_of(model), _counted(model)
        parameters = sum(p.numel() for p in model.parameters())
        assert by_formula.parameters == counted.parameters == parameters
        assert by_formula.gflops == pytest.approx(counted.gflops, rel=1e-9)


def test_a_resnets_cost_is_a_row_a_part() -> None:
    cost = cost_of(seeded(spec_from_name("resnet18", tuple(map(str, range(1000))))))
    assert [row.name for row in cost.rows] == [
        "conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"
    ]  # fmt: skip
    assert cost.gflops == pytest.approx(2 * 1.81, abs=0.02)
    assert cost.parameters == 11_689_512
    assert cost.dense_gflops is None


def test_a_convolutions_work_is_counted_at_every_place_it_writes() -> None:
    model = seeded(small_spec("test_resnet"))
    layers = quantizable_layers(model)
    assert "backbone.fc" not in layers
    total = 2e-9 * sum(layer_macs(model, layers).values())
    head = 2e-9 * model.backbone.fc.weight.numel()
    assert total + head == pytest.approx(cost_of(model).gflops, rel=1e-9)


# The graph


def pixels(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "folds"), [("test_resnet", False), ("test_convnext", True), ("transfg_tiny", True)]
)
def test_pixels_in_the_graph_are_prepared_as_on_the_way_there(name: str, folds: bool) -> None:
    spec = small_spec(name)
    model = seeded(spec)
    assert folds_normalisation(model) == folds
    with torch.inference_mode():
        logits, *_ = FromPixels(model, spec)(torch.from_numpy(pixels()))
        images = torch.from_numpy(batch_from_pixels(pixels(), spec.preprocessing, "float32"))
        torch.testing.assert_close(logits, model(images), rtol=1e-4, atol=1e-5)


def test_a_convolution_that_pads_or_that_something_pads_for_takes_no_pixels() -> None:
    class Bordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.pretrained_cfg = {"first_conv": "conv"}

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.conv(F.pad(images, (1, 1, 1, 1))).mean(dim=(2, 3))
            return logits

    assert not folds_normalisation(Dense(Bordered(), 8))


@pytest.mark.parametrize("name", ["bit", "test_nfnet"])
def test_standardised_weights_become_plain_ones_that_compute_the_same(name: str) -> None:
    if name == "bit":
        backbone = ResNetV2(
            layers=(1, 1, 1, 1), channels=(128, 128, 128, 128), num_classes=4, stem_type="fixed",
            conv_layer=partial(StdConv2d, eps=1e-8),
        )  # fmt: skip
        backbone.pretrained_cfg = {"first_conv": "stem.conv"}
    else:
        backbone = timm.create_model(name, num_classes=4)
    model = Dense(backbone, 64).eval()
    assert not folds_normalisation(model)
    plain = with_plain_weights(model)
    assert plain is not model
    kinds = {type(m).__name__ for m in plain.modules() if isinstance(m, nn.Conv2d)}
    assert kinds <= {"Conv2d", "Conv2dSame"}
    assert with_plain_weights(plain) is plain
    with torch.inference_mode():
        images = noise(1, 3, 64, 64)
        torch.testing.assert_close(plain(images), model(images), rtol=1e-3, atol=1e-5)


def test_inspect_counts_a_network_by_name() -> None:
    content = run_json("inspect", "resnet18", "--classes", 10)
    assert content["family"] == "timm"
    assert content["parameters"] == 11_181_642
    assert content["gflops"] == pytest.approx(3.63, abs=0.01)
    assert content["dense_gflops"] is None
    shown = " ".join(run("inspect", "resnet18").stdout.split())
    assert "11.23 M parameters" in shown
    assert "Eq. 6" not in shown
