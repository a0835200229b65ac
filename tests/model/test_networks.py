"""Networks that are no GFT: timm's classifiers and TransFG, from a name to a verified bundle."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
from click.testing import CliRunner
from timm.layers import StdConv2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn
from torch.nn import functional as F

from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.bundle.specs import InputSpec, ModelSpec
from gft_edge.bundle.store import read_bundle, write_manifest
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.calibration.int8_onnx import quantize_onnx
from gft_edge.calibration.layers import layer_macs, quantizable_layers
from gft_edge.calibration.sampling import activation_peaks
from gft_edge.cli import main
from gft_edge.datasets import read_split
from gft_edge.errors import CheckpointError, SpecError
from gft_edge.export.int8 import CalibrationRequest
from gft_edge.export.onnx_from_torch import FromPixels, folds_normalisation, onnx_from_torch
from gft_edge.export.plain_weights import with_plain_weights
from gft_edge.export.recipe import ExportRequest, export
from gft_edge.export.simplify import simplify
from gft_edge.model.checkpoint import load_backbone, load_run, save_network
from gft_edge.model.cost import _counted, cost_of
from gft_edge.model.dense import Dense
from gft_edge.model.networks import Network, build_network
from gft_edge.model.transfg import MARGIN, PartSelection, TransFG, contrastive_loss, run_block
from gft_edge.model.variants import spec_from_name
from gft_edge.profiling.layers import layer_profile
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.preprocess import batch_from_pixels
from gft_edge.training.loop import RunConfig, logits_and_targets, train
from gft_edge.training.recipes import Recipe

LABELS = ("apple", "brown bread", "café", "dill")
MICRO_VIT = {"patch_size": 16, "embed_dim": 48, "depth": 4, "num_heads": 3, "patch_stride": 8}
SMALL = ("test_resnet", "test_convnext", "transfg_tiny")


def small_spec(name: str, labels: tuple[str, ...] = LABELS) -> ModelSpec:
    given = MICRO_VIT if name.startswith("transfg") else None
    return spec_from_name(name, labels, image_size_px=64, backbone_args=given)


def network(spec: ModelSpec) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_network(spec).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    # The paper's table. Its densenet169 is counted with the head of ImageNet's 1000 classes.
    [("resnet18", 100, 11), ("densenet169", 1000, 14), ("resnetv2_101x3_bit", 100, 382)],
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
    spec = spec_from_name("deit_tiny_patch16_224", LABELS, backbone_args=arguments)
    assert (spec.family, spec.stages) == ("gft", ())
    model = network(spec)
    images = noise(2, 3, 224, 224)
    torch.testing.assert_close(model(images), model.backbone(images))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, r"'resnet81' is no GFT variant .* no timm model: did you mean resnet"),
        ("xyzzy", {}, r"no timm model: see timm\.list_models\(\)"),
        ("resnet18", {"stages": "8:50%"}, "--stages 8:50%: ResNet is not a VisionTransformer"),
        ("transfg", {"stages": "8:50%"}, "TransFG chooses its parts by itself: leave it out"),
        ("resnet18", {"score": "class"}, "resnet18 has no stages: leave --score out"),
        ("vit_tiny_patch16_224", {"gala": "block"}, "has no stages: leave --gala out"),
        ("test_vit", {"image_size_px": 100}, "test_vit takes no images of 100 px .* give .* 160"),
        ("vit_base_patch16_sapiens2", {}, "1024 px high and 768 px wide, .* --image-size, .* 768"),
        ("transfg_tiny", {"image_size_px": 20}, "image size 20 holds one patch: give 28 px"),
        ("transfg_tiny", {"backbone_args": {"patch_stride": 17}}, "patch_stride is 17: give 1 to"),
    ],
)
def test_a_request_that_names_no_network_is_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        spec_from_name(name, LABELS, **options)


def test_a_network_made_for_oblong_images_takes_a_square_that_is_asked_for() -> None:
    spec = spec_from_name("vit_base_patch16_sapiens2", LABELS, image_size_px=768)
    assert spec.preprocessing.image_size_px == 768


def test_a_model_without_a_classifier_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # A tower of a CLIP gives features whatever it is asked for.
    real = timm.create_model
    monkeypatch.setattr(
        "gft_edge.model.timm_models.timm.create_model",
        lambda name, **given: real(name, **{**given, "num_classes": 0}),
    )
    with pytest.raises(SpecError, match="resnet18 has no classifier to train"):
        spec_from_name("resnet18", LABELS)


def test_the_family_is_left_out_of_what_a_gft_writes_and_kept_of_others() -> None:
    gft = spec_from_name("gft_tiny", LABELS)
    assert "family" not in to_json(gft)
    assert from_json(ModelSpec, to_json(gft), "model.json") == gft
    other = small_spec("test_resnet")
    assert to_json(other)["family"] == "timm"
    assert from_json(ModelSpec, to_json(other), "model.json") == other


# TransFG


def test_the_parts_are_what_multiplying_all_attention_maps_says() -> None:
    batch, heads, tokens, prefix = 2, 3, 7, 1
    maps = [noise(batch, heads, tokens, tokens, seed=n).softmax(dim=-1) for n in range(3)]
    expected = [[0] * heads for _ in range(batch)]
    for image in range(batch):
        for head in range(heads):
            product = [[float(i == j) for j in range(tokens)] for i in range(tokens)]
            for block in maps:  # a later block's map stands on the left
                left = block[image, head].tolist()
                product = [
                    [sum(left[i][k] * product[k][j] for k in range(tokens)) for j in range(tokens)]
                    for i in range(tokens)
                ]
            seen = product[0][prefix:]
            expected[image][head] = seen.index(max(seen))
    assert PartSelection()(maps, prefix).tolist() == expected


def test_the_last_block_sees_the_class_token_and_the_parts_alone() -> None:
    model = network(small_spec("transfg_tiny"))
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
    block = network(small_spec("transfg_tiny")).backbone.blocks[0]
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
    plain, parts = network(small_spec("test_resnet")), network(small_spec("transfg_tiny"))
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
    plain = {name: value for name, value in MICRO_VIT.items() if name != "patch_stride"}
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=9, **plain)
    safetensors.torch.save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    spec = small_spec("transfg_tiny")
    model = network(spec)
    fresh = load_backbone(model, spec, tmp_path / "vit.safetensors")
    assert sorted(fresh) == ["head.bias", "head.weight"]
    resampled = timm.layers.resample_abs_pos_embed(vit.pos_embed, [7, 7], num_prefix_tokens=1)
    torch.testing.assert_close(model.backbone.pos_embed, resampled)
    assert torch.equal(model.backbone.blocks[2].mlp.fc1.weight, vit.blocks[2].mlp.fc1.weight)


def test_heads_that_config_json_states_are_compared_for_any_vit(tmp_path: Path) -> None:
    """Beside a file as in a folder, and where the whole network is loaded as it is."""
    plain = {name: value for name, value in MICRO_VIT.items() if name != "patch_stride"}
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=9, **plain)
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(vit.state_dict(), file)
    specs = [
        small_spec("transfg_tiny"),
        spec_from_name(
            "vit_tiny_patch16_224", LABELS, image_size_px=64, stages="1:8", backbone_args=plain
        ),
    ]
    for heads in ("{}", '{"num_attention_heads": 3}', '{"num_attention_heads": 4}'):
        (tmp_path / "config.json").write_text(heads)
        for spec in specs:
            for path in (file, tmp_path):
                if "4" not in heads:
                    load_backbone(network(spec), spec, path)
                    continue
                with pytest.raises(CheckpointError, match="says 4 attention heads, expected 3"):
                    load_backbone(network(spec), spec, path)


# Weights of timm's classifiers


def test_a_network_that_timm_names_no_classifier_of_is_loaded_whole(tmp_path: Path) -> None:
    spec = small_spec("test_resnet")
    donor, model = network(spec), network(spec)
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
    model = network(spec)
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
    with pytest.raises(CheckpointError, match=rf"is no checkpoint of {spec.backbone}: "):
        load_backbone(network(spec), spec, tmp_path / "w.safetensors")


# Cost


def test_torchs_counter_and_the_formulas_agree_on_a_dense_vit_and_on_transfg() -> None:
    arguments = {"embed_dim": 48, "depth": 3, "num_heads": 3}
    vit = spec_from_name("vit_tiny_patch16_224", LABELS, backbone_args=arguments)
    for spec in (vit, small_spec("transfg_tiny")):
        model = network(spec)
        by_formula, counted = cost_of(model), _counted(model)
        parameters = sum(p.numel() for p in model.parameters())
        assert by_formula.parameters == counted.parameters == parameters
        assert by_formula.gflops == pytest.approx(counted.gflops, rel=1e-9)


def test_a_resnets_cost_is_a_row_a_part() -> None:
    cost = cost_of(network(spec_from_name("resnet18", tuple(map(str, range(1000))))))
    assert [row.name for row in cost.rows] == [
        "conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"
    ]  # fmt: skip
    assert cost.gflops == pytest.approx(2 * 1.81, abs=0.02)
    assert cost.parameters == 11_689_512
    assert cost.dense_gflops is None


def test_a_convolutions_work_is_counted_at_every_place_it_writes() -> None:
    model = network(small_spec("test_resnet"))
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
    model = network(spec)
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
            conv_layer=functools.partial(StdConv2d, eps=1e-8),
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


# The whole way


@pytest.fixture(scope="module", params=SMALL)
def run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    micro_pictures: Path,
) -> Path:
    """A run folder of one epoch on the pictures."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    recipe = Recipe(epochs=1, batch_size=8, lr=2e-3, augmentation="none", warmup=0.0)
    config = RunConfig(str(micro_pictures), recipe, False, 0, "cpu")
    train(folder, small_spec(request.param), config, None)
    return folder


@pytest.fixture(scope="module")
def bundles(run: Path, micro_pictures: Path) -> dict[str, Path]:
    """Target -> bundle, verified on the pictures of val/."""
    spec, model = load_run(run)
    images = draw_image_set(read_split(micro_pictures, "val", spec.labels), 24, 0)
    for target in ("onnx", "openvino"):
        export(model, spec, images, ExportRequest(target), run.parent / target)
    return {target: run.parent / target for target in ("onnx", "openvino")}


@pytest.fixture
def invoke() -> Callable[..., str]:
    def command(*arguments: object) -> str:
        result = CliRunner().invoke(main, [str(one) for one in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    return command


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_bundle_answers_as_pytorch_does(
    bundles: dict[str, Path], run: Path, micro_pictures: Path, target: str
) -> None:
    spec, model = load_run(run)
    bundle = read_bundle(bundles[target])
    assert bundle.manifest.model == spec
    assert bundle.manifest.reports[-1].verdict == "pass"
    logits, _ = logits_and_targets(model, spec, micro_pictures, "test")
    with Classifier.load(bundles[target]) as classifier:
        found = [classifier.predict(p)[0].index for p in read_split(micro_pictures, "test").paths]
    assert found == logits.argmax(axis=1).tolist()


def test_the_manifest_of_a_gft_is_sealed_as_before_there_were_families(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    manifest = read_bundle(bundles["onnx"]).manifest
    for family in ("gft", "transfg"):
        model = dataclasses.replace(manifest.model, family=family)
        write_manifest(tmp_path, dataclasses.replace(manifest, model=model))
        content = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
        assert content["model"].get("family", "gft") == family
        assert ("family" in content["model"]) == (family != "gft")
        # Empty, they are left out, so that a gft-edge of before they came reads the manifest.
        assert not {"score_outputs", "attention_outputs"} & set(content)
        unsealed = json.dumps({**content, "seal": ""}, sort_keys=True)
        assert content["seal"] == hashlib.sha256(unsealed.encode()).hexdigest()


def test_the_commands_take_such_a_bundle(
    bundles: dict[str, Path], run: Path, micro_pictures: Path, invoke: Callable[..., str]
) -> None:
    bundle = bundles["onnx"]
    verified = invoke("verify", bundle, "--data", micro_pictures, "--reference", run, "--json")
    assert json.loads(verified)["verdict"] == "pass"
    compared = invoke("compare", run, bundle, "--data", micro_pictures, "--json")
    assert json.loads(compared)["top1_agreement"] == 1
    assert json.loads(compared)["kept_overlap"] == []
    top1 = [
        json.loads(invoke("evaluate", what, "--data", micro_pictures, "--json"))["top1"]
        for what in (run, bundle)
    ]
    assert top1[0] == top1[1]
    shown = invoke("inspect", bundle)
    parts = "transfg" in str(run)
    assert ("chooses parts before its last block" in shown) == parts
    assert ("selects no patches" in shown) == (not parts)
    assert "parameters" in invoke("inspect", run)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_its_time_is_told_by_the_parts_it_has(bundles: dict[str, Path], target: str) -> None:
    found = layer_profile(bundles[target], runs=2)
    names = [part.name for part in found.parts]
    family = read_bundle(bundles[target]).manifest.model
    if family.name == "test_resnet":
        assert {"layer1", "layer2", "layer3", "layer4"} <= set(names)
        assert found.attention == ()
    if family.name == "test_convnext":
        assert {"stem.0", "stages.0", "head"} <= set(names)
    if family.family == "transfg":
        assert names[:4] == ["patch embedding", "base blocks", "part selection", "head"]
    assert sum(part.share for part in found.parts) == pytest.approx(1)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_convolutions_are_quantized_and_named(
    target: str, tmp_path: Path, micro_pictures: Path
) -> None:
    spec = small_spec("test_resnet")
    model = network(spec)
    images = draw_image_set(read_split(micro_pictures, "val", LABELS), 24, 0)
    calibration = draw_image_set(read_split(micro_pictures, "train", LABELS), 32, 0)
    high = ("backbone.layer2.0.conv1",)
    request = ExportRequest(
        target,
        "int8",
        calibration=CalibrationRequest(calibration, keep_high_precision=high, judged=False),
        judged=False,
    )
    bundle = export(model, spec, images, request, tmp_path / "bundle")
    quantization = bundle.manifest.quantization
    assert quantization is not None
    assert quantization.int8_layers == len(quantizable_layers(model)) - 1
    assert quantization.high_precision == high
    report = bundle.manifest.reports[-1]
    assert report.cosine > 0.99
    assert report.max_abs > 1e-6  # something was rounded


@pytest.mark.parametrize("chosen", ["layer2.0.conv1", "layer2.1.conv1", "all but one"])
def test_only_the_chosen_convolutions_read_int8(chosen: str, tmp_path: Path) -> None:
    """What they read is read by residual sums too, and by convolutions on the way past them."""
    spec = small_spec("resnet18")
    model = network(spec)
    onnx_from_torch(model, spec, InputSpec("uint8", 1), 20, tmp_path / "a.onnx", centred=True)
    simplify(tmp_path / "a.onnx", tmp_path / "float.onnx")
    peaks = activation_peaks(model, [noise(2, 3, 64, 64)])
    layers = [f"backbone.{chosen}"]
    if chosen == "all but one":
        layers = [name for name in peaks if name != "backbone.layer2.0.downsample.0"]
    quantize_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", peaks, layers, None)
    found = onnx.load(tmp_path / "int8.onnx")
    onnx.checker.check_model(found, full_check=True)
    dequantized = {
        name for n in found.graph.node if n.op_type == "DequantizeLinear" for name in n.output
    }
    readers = [n for n in found.graph.node if dequantized & set(n.input)]
    assert {n.name.rpartition("/")[0] for n in readers} == set(layers)
    assert {n.op_type for n in readers} == {"Conv"}
    assert all(set(n.input[:2]) <= dequantized for n in readers)
    session = onnxruntime.InferenceSession(
        tmp_path / "int8.onnx", providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(["logits"], {"images": np.zeros((1, 64, 64, 3), np.uint8)})
    assert np.isfinite(logits).all()


def test_fp16_holds_and_standardises_no_weights(tmp_path: Path, micro_pictures: Path) -> None:
    for name in ("test_resnet", "transfg_tiny"):
        spec = small_spec(name)
        images = draw_image_set(read_split(micro_pictures, "val", LABELS), 8, 0)
        request = ExportRequest("onnx", "fp16", judged=False)
        bundle = export(network(spec), spec, images, request, tmp_path / name)
        assert bundle.manifest.reports[-1].cosine > 0.999


def test_inspect_counts_a_network_by_name(invoke: Callable[..., str]) -> None:
    content = json.loads(invoke("inspect", "resnet18", "--classes", "10", "--json"))
    assert content["family"] == "timm"
    assert content["parameters"] == 11_181_642
    assert content["gflops"] == pytest.approx(3.63, abs=0.01)
    assert content["dense_gflops"] is None
    shown = " ".join(invoke("inspect", "resnet18").split())
    assert "11.23 M parameters" in shown
    assert "Eq. 6" not in shown


def test_a_run_folder_rebuilds_its_network(tmp_path: Path) -> None:
    spec = small_spec("transfg_tiny")
    model = network(spec)
    save_network(tmp_path, model, spec)
    read, loaded = load_run(tmp_path)
    assert read == spec
    assert read.backbone_args["patch_stride"] == 8
    assert read.patch_grid == (7, 7)
    images = noise(1, 3, 64, 64)
    assert torch.equal(loaded(images), model(images))
