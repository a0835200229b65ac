"""Export: static graphs that keep what PyTorch keeps, gates that fail, bundles that survive a failure."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.scores import SCORES
from gft_edge.bundle.specs import InputSpec, ModelSpec, Score, Stage
from gft_edge.bundle.store import read_bundle, sha256_of
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.cli import main
from gft_edge.datasets import read_split
from gft_edge.errors import BundleError, GateError, PipelineError, SpecError, UsageError
from gft_edge.export import graphs as graphs_module
from gft_edge.export import recipe as recipe_module
from gft_edge.export import simplify as simplify_module
from gft_edge.export.fp16 import half
from gft_edge.export.onnx_from_torch import fold_normalisation, onnx_from_torch
from gft_edge.export.recipe import ExportRequest, export
from gft_edge.export.structure import check_structure, expected_casts, top_k_constant
from gft_edge.export.verify import pixels_of, torch_outputs
from gft_edge.model.checkpoint import load_run, save_network
from gft_edge.model.gft import GFT, build_gft
from gft_edge.model.schedule import at_stages, dense_stages, stages_from_keep
from gft_edge.model.variants import spec_from_name
from gft_edge.runtime.classifier import Classifier
from gft_edge.studies.latency import assign

LABELS = ("ash", "birch", "cherry tree")


def network(stages: str = "0:20,1:15,2:10", gala: Any = "block", score: Score = "gala") -> Any:
    """A spec and a network whose random weights are wide enough to tell images apart."""
    selects = stages != "none"
    spec = spec_from_name(
        "vit_tiny_patch16_224",
        LABELS,
        image_size_px=48,
        stages=stages,
        gala=gala if selects else None,
        score=score if selects else None,
        backbone_args={"embed_dim": 48, "depth": 4, "num_heads": 3, "patch_size": 8},
    )
    torch.manual_seed(0)
    model = build_gft(spec)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "pos_embed" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 6
    return spec, model.eval()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Smooth random pictures, so that neighbouring patches differ clearly."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for label in LABELS:
        (folder / "val" / label).mkdir(parents=True)
        for number in range(5):
            small = Image.fromarray(generator.integers(0, 256, (7, 7, 3), dtype=np.uint8))
            small.resize((64, 56), Image.Resampling.BICUBIC).save(
                folder / "val" / label / f"{number}.png"
            )
    return draw_image_set(read_split(folder, "val"), 12, seed=0)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
@pytest.mark.parametrize(
    ("gala", "stages", "score", "given"),
    [
        ("block", "0:20,1:15,2:10", "gala", InputSpec("uint8", 1)),
        ("layer", "1:20,2:15,4:10", "gala", InputSpec("uint8", 1)),
        ("block", "0:20,1:15,2:10", "class", InputSpec("float32", 1)),
        ("layer", "4:20,4:15,4:10", "random", InputSpec("uint8", 5)),
        ("block", "none", "gala", InputSpec("uint8", 1)),
    ],
)
def test_every_configuration_exports_and_keeps_what_pytorch_keeps(
    target: str, gala: str, stages: str, score: Score, given: InputSpec,
    images: ImageSet, tmp_path: Path,
) -> None:  # fmt: skip
    spec, model = network(stages, gala, score)
    request = ExportRequest(target, input=given)
    bundle = export(model, spec, images, request, tmp_path / "bundle")
    steps_run = [report.step for report in bundle.manifest.reports]
    assert steps_run == ["onnx_from_torch", "simplify", f"build for {target}"]
    for report in bundle.manifest.reports:
        assert report.verdict == "pass"
        assert report.top1_agreement == 1.0
        assert all(overlap == 1.0 for overlap in report.kept_overlap)
        assert len(report.kept_overlap) == len(spec.stages)
        assert report.images == 12
    lineage = (*bundle.manifest.lineage, bundle.manifest.artifact)
    for parent, child in itertools.pairwise(lineage):
        assert child.parent_sha256 == parent.sha256


@pytest.mark.parametrize("score", SCORES)
def test_every_score_exports_statically_and_keeps_what_pytorch_keeps(
    score: Score, tmp_path: Path
) -> None:
    spec, model = network("1:20,2:10", "block", score)
    given, path = InputSpec("float32", 2), tmp_path / "model.onnx"
    onnx_from_torch(model, spec, given, 20, path)
    check_structure(path, spec, expected_casts(spec, given, half=False))
    pixels = torch.randn(given.shape(48), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        logits, kept = model.forward_with_kept(pixels)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": pixels.numpy()})
    np.testing.assert_allclose(found[0], logits.numpy(), atol=1e-3)
    for ours, theirs in zip(found[1:], kept, strict=True):
        assert np.array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("gala", ["block", "layer"])
@pytest.mark.parametrize("score", ["class-laplacian", "received"])
def test_in_fp16_a_score_reads_its_attention_in_fp32(
    gala: str, score: Score, tmp_path: Path
) -> None:
    spec, model = network("1:20,2:10", gala, score)
    given, path = InputSpec("uint8", 1), tmp_path / "model.onnx"
    onnx_from_torch(half(model), spec, given, 20, path)
    check_structure(path, spec, expected_casts(spec, given, half=True))


def exported_graph(tmp_path: Path, images: ImageSet, **request: Any) -> onnx.ModelProto:
    spec, model = network()
    bundle = export(model, spec, images, ExportRequest("onnx", **request), tmp_path / "bundle")
    return onnx.load(bundle.artifact_path)


def test_the_graph_takes_pixels_and_gives_logits_alone(tmp_path: Path, images: ImageSet) -> None:
    graph = exported_graph(tmp_path, images).graph
    assert [value.name for value in graph.input] == ["images"]
    assert [value.name for value in graph.output] == ["logits"]
    dims = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert dims == [1, 48, 48, 3]
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    counts = Counter(node.op_type for node in graph.node)
    assert counts["TopK"] == 3
    assert counts["Cast"] == 1
    assert graph.node[0].op_type == "Cast", "TensorRT refuses a UINT8 Transpose"
    assert counts["LayerNormalization"] == 9
    assert counts["Gelu"] == 4


def test_node_names_are_module_paths_and_nothing_names_this_machine(
    tmp_path: Path, images: ImageSet
) -> None:
    model = exported_graph(tmp_path, images)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert any(name.startswith("backbone.blocks.2.mlp.fc1/") for name in names)
    assert any(name.startswith("selections.1/TopK") for name in names)
    data = model.SerializeToString()
    for trace in (b"site-packages", str(Path.home()).encode() + b"/", b"stack_trace", b"tests/"):
        assert trace not in data


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_two_exports_of_one_run_are_equal_byte_for_byte(
    target: str, tmp_path: Path, images: ImageSet
) -> None:
    spec, model = network()
    for name in "ab":
        export(model, spec, images, ExportRequest(target), tmp_path / name)
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert {"manifest.json", "labels.txt", "golden/golden.npz"} < set(a)
    for name in a:
        assert a[name] == b[name], f"{name} differs between two exports"


def test_both_formats_carry_the_same_metadata(tmp_path: Path, images: ImageSet) -> None:
    import openvino

    spec, model = network()
    for target in ("onnx", "openvino"):
        export(model, spec, images, ExportRequest(target), tmp_path / target)
    graph = onnx.load(tmp_path / "onnx" / "model.onnx")
    in_onnx = {entry.key: entry.value for entry in graph.metadata_props}
    ir = openvino.Core().read_model(tmp_path / "openvino" / "model.xml")
    in_ir = {key: ir.get_rt_info(["model_info", key]).astype(str) for key in in_onnx}
    assert in_ir == in_onnx
    assert in_onnx["labels"] == "ash birch cherry_tree"
    assert in_onnx["model_type"] == "Classification"
    assert json.loads(in_onnx["gft_edge_model"])["stages"][0] == {"position": 0, "keep": 20}


def test_folding_the_normalisation_is_exact() -> None:
    spec, model = network()
    projection = model.backbone.patch_embed.proj
    pixels = torch.randint(0, 256, (2, 3, 48, 48)).float()
    mean = torch.tensor(spec.preprocessing.mean).reshape(1, 3, 1, 1)
    std = torch.tensor(spec.preprocessing.std).reshape(1, 3, 1, 1)
    expected = projection((pixels / 255 - mean) / std)
    fold_normalisation(projection, spec)
    torch.testing.assert_close(projection(pixels), expected, atol=2e-5, rtol=1e-5)


def test_keeping_other_patches_changes_what_the_exported_graph_answers(tmp_path: Path) -> None:
    spec, model = network()
    path = tmp_path / "model.onnx"
    onnx_from_torch(model, spec, InputSpec("uint8", 1), 20, path)
    graph = onnx.load(path)
    for node in graph.graph.node:
        if node.op_type == "TopK":
            largest = next(a for a in node.attribute if a.name == "largest")
            largest.i = 0
    pixels = np.random.default_rng(0).integers(0, 256, (1, 48, 48, 3), dtype=np.uint8)
    answers = [
        onnxruntime.InferenceSession(m.SerializeToString()).run(["logits"], {"images": pixels})[0]
        for m in (onnx.load(path), graph)
    ]
    assert np.abs(answers[0] - answers[1]).max() > 1e-3


def test_an_inert_selection_is_refused_with_the_reason(tmp_path: Path, images: ImageSet) -> None:
    spec = spec_from_name(
        "vit_tiny_patch16_224", LABELS, image_size_px=48, stages="4:20",
        backbone_args={"embed_dim": 48, "depth": 4, "num_heads": 3, "patch_size": 8},
    )  # fmt: skip
    with pytest.raises(GateError, match=r"stage 1 is inert.*Train the network"):
        export(build_gft(spec), spec, images, ExportRequest("onnx"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_stage_that_keeps_everything_is_refused_for_what_it_is(
    tmp_path: Path, images: ImageSet
) -> None:
    spec, model = network("0:20,1:20")
    with pytest.raises(GateError, match="stage 2 keeps all 20 patches there are: leave it out"):
        export(model, spec, images, ExportRequest("onnx"), tmp_path / "bundle")


def good_bundle(tmp_path: Path, images: ImageSet) -> tuple[ModelSpec, GFT, dict[str, bytes]]:
    spec, model = network()
    export(model, spec, images, ExportRequest("onnx"), tmp_path / "bundle")
    return spec, model, contents(tmp_path / "bundle")


def contents(folder: Path) -> dict[str, bytes]:
    written = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in written}


def test_a_graph_that_decides_otherwise_fails_its_gate_and_replaces_nothing(
    tmp_path: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, model, before = good_bundle(tmp_path, images)
    honest = simplify_module.simplify

    def damaging(source: Path, path: Path) -> None:
        """What a faulty optimiser would do: the graph stays valid and keeps the worst patches."""
        honest(source, path)
        graph = onnx.load(path)
        node = next(n for n in graph.graph.node if n.op_type == "TopK")
        next(a for a in node.attribute if a.name == "largest").i = 0
        onnx.save(graph, path)

    monkeypatch.setattr(graphs_module, "simplify", damaging)
    with pytest.raises(GateError, match=r"step 'simplify' differs.*stage 1 keeps 0\.\d+"):
        export(model, spec, images, ExportRequest("onnx"), tmp_path / "bundle")
    assert contents(tmp_path / "bundle") == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_or_starved_export_leaves_the_old_bundle(
    failure: BaseException, tmp_path: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, model, before = good_bundle(tmp_path, images)

    def failing(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(recipe_module, "write_manifest", failing)
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else BundleError
    with pytest.raises(expected):
        export(model, spec, images, ExportRequest("onnx"), tmp_path / "bundle")
    assert contents(tmp_path / "bundle") == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_failing_stage_names_itself_and_what_ran_before(
    tmp_path: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, model = network()

    def failing(source: Path, path: Path) -> None:
        raise RuntimeError("no such operator\nand a long story")

    monkeypatch.setattr(graphs_module, "simplify", failing)
    message = (
        r"step 'simplify' failed \(finished before it: reference in PyTorch, onnx_from_torch\): "
        r"no such operator$"
    )
    with pytest.raises(PipelineError, match=message):
        export(model, spec, images, ExportRequest("onnx"), tmp_path / "bundle")


def test_without_onnxsim_it_says_so_and_goes_on(
    tmp_path: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, model = network()
    monkeypatch.setitem(sys.modules, "onnxsim", None)
    said: list[str] = []
    bundle = export(
        model, spec, images, ExportRequest("onnx"), tmp_path / "bundle", say=said.append
    )
    assert [r.step for r in bundle.manifest.reports] == ["onnx_from_torch", "build for onnx"]
    assert any("onnxsim is not installed here" in text for text in said)


def test_simplifying_leaves_linear_layers_as_matmul_and_add(
    tmp_path: Path, images: ImageSet
) -> None:
    """Quantizers find layers by these nodes' names, and engines fuse MatMul-Add, not Gemm."""
    graph = exported_graph(tmp_path, images).graph
    assert [node.name for node in graph.node if node.op_type == "Gemm"] == ["backbone.head/Gemm"]
    names = {node.name for node in graph.node if node.op_type == "MatMul"}
    for block in range(4):
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            assert f"backbone.blocks.{block}.{layer}/MatMul" in names


def test_no_simplify_leaves_onnxsim_out(tmp_path: Path, images: ImageSet) -> None:
    graph = exported_graph(tmp_path, images, simplify=False).graph
    assert Counter(node.op_type for node in graph.node)["TopK"] == 3


def test_compressed_weights_are_half_the_size_and_still_computed_in_f32(
    tmp_path: Path, images: ImageSet
) -> None:
    # One patch to drop: what FP16 weights may move stays within the bound on a dozen images.
    spec, model = network("0:35")
    for name, compress in (("plain", False), ("compressed", True)):
        request = ExportRequest("openvino", compress_weights=compress)
        export(model, spec, images, request, tmp_path / name)
    sizes = [(tmp_path / n / "model.bin").stat().st_size for n in ("plain", "compressed")]
    assert sizes[1] < 0.55 * sizes[0]
    manifest = read_bundle(tmp_path / "compressed").manifest
    assert manifest.artifact.precision == "fp32-fp16-weights"
    assert manifest.runtime_precision == "f32"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            ExportRequest("tensorflow"),
            "there is no target 'tensorflow': choose from onnx, openvino",
        ),
        (ExportRequest("fake"), "not deployable"),
        (
            ExportRequest("onnx", precision="int4"),
            "int4 is not available for onnx: choose from fp32",
        ),
        (ExportRequest("onnx", compress_weights=True), "use it with --target openvino"),
        (ExportRequest("onnx", input=InputSpec("uint8", 0)), "--batch is 0"),
        (ExportRequest("onnx", opset=25), "--opset 25 is not from 18 to 20"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    request_: ExportRequest, message: str, tmp_path: Path, images: ImageSet
) -> None:
    spec, model = network()
    with pytest.raises(UsageError, match=message):
        export(model, spec, images, request_, tmp_path / "bundle")


@pytest.mark.parametrize("opset", [18, 19])
def test_older_opsets_export_too(opset: int, tmp_path: Path, images: ImageSet) -> None:
    model = exported_graph(tmp_path, images, opset=opset)
    assert max(entry.version for entry in model.opset_import if not entry.domain) == opset


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path: Path, images: ImageSet) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    spec, model = network()
    with pytest.raises(BundleError, match="exists and is no bundle"):
        export(model, spec, images, ExportRequest("onnx"), tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_the_structure_check_refuses_what_an_engine_would(tmp_path: Path) -> None:
    spec, model = network()
    path = tmp_path / "model.onnx"
    onnx_from_torch(model, spec, InputSpec("uint8", 1), 20, path)
    check_structure(path, spec, casts=1)
    with pytest.raises(PipelineError, match="1 Cast nodes, expected 0"):
        check_structure(path, spec, casts=0)
    fewer = dataclasses.replace(spec, stages=spec.stages[:2])
    with pytest.raises(PipelineError, match=r"keeps \[20, 15, 10\].*says \[20, 15\]"):
        check_structure(path, fewer, casts=1)
    scattering = onnx.load(path)
    scattering.graph.node.append(
        onnx.helper.make_node("NonZero", ["logits"], ["indices"], name="added")
    )
    onnx.save(scattering, tmp_path / "nonzero.onnx")
    with pytest.raises(PipelineError, match="the graph holds NonZero"):
        check_structure(tmp_path / "nonzero.onnx", spec, casts=1)
    invalid = onnx.load(path)
    invalid.graph.node.append(onnx.helper.make_node("Abs", ["nowhere"], ["nothing"]))
    onnx.save(invalid, tmp_path / "invalid.onnx")
    with pytest.raises(PipelineError, match="the graph is not valid ONNX"):
        check_structure(tmp_path / "invalid.onnx", spec, casts=1)
    graph = onnx.load(path)
    graph.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_value")
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(graph, path)
    with pytest.raises(PipelineError, match="images has a dynamic dimension"):
        check_structure(path, spec, casts=1)


def top_k_constants(path: Path) -> list[int | None]:
    graph = onnx.load(path).graph
    return [top_k_constant(node, graph) for node in graph.node if node.op_type == "TopK"]


@pytest.mark.parametrize("gala", ["block", "layer"])
def test_other_keep_counts_are_the_graphs_constants_and_cost_what_was_measured(
    gala: str, images: ImageSet, tmp_path: Path
) -> None:
    spec, model = network(gala=gala)
    stages = stages_from_keep("50%,12,0.2", spec, model)
    assert [stage.keep for stage in stages] == [18, 12, 7]
    request = ExportRequest("onnx", stages=stages)
    bundle = export(model, spec, images, request, tmp_path / "bundle")
    assert top_k_constants(bundle.artifact_path) == [18, 12, 7]
    manifest = bundle.manifest
    assert manifest.model == dataclasses.replace(spec, stages=stages)
    assert manifest.trained_stages == spec.stages
    assert manifest.rescheduled is not None
    deployed, changed = at_stages(spec, model, stages)
    pixels = pixels_of(images, spec.preprocessing)
    for of, found in (
        (model, manifest.rescheduled.trained_accuracy),
        (changed, manifest.rescheduled.accuracy),
    ):
        logits = torch_outputs(of, pixels, spec.preprocessing).logits
        assert found == float((logits.argmax(axis=1) == np.asarray(images.targets)).mean())
    assert deployed == manifest.model
    for number, selection in enumerate(model.selections):
        assert selection.keep == spec.stages[number].keep


def test_the_counts_of_the_training_are_nothing_to_be_told(
    images: ImageSet, tmp_path: Path
) -> None:
    spec, model = network()
    request = ExportRequest("onnx", stages=stages_from_keep("20,15,10", spec, model))
    export(model, spec, images, request, tmp_path / "same")
    assert "rescheduled" not in json.loads((tmp_path / "same" / "manifest.json").read_text())


def test_nothing_dropped_is_the_dense_network() -> None:
    """In blocks that is the backbone; layers of their own stay, and keep all at each stage."""
    for gala, stages in (("block", ()), ("layer", (Stage(0, 36), Stage(1, 36), Stage(2, 36)))):
        spec, model = network(gala=gala)
        assert dense_stages(spec) == stages
        _, dense = at_stages(spec, model, stages)
        pixels = torch.randn(2, 3, 48, 48)
        with torch.inference_mode():
            assert dense(pixels).shape == (2, 3)
            if gala == "block":
                torch.testing.assert_close(dense(pixels), model.backbone(pixels))


def test_a_dense_bundle_of_a_run_is_held_to_the_run_without_its_stages(
    images: ImageSet, tmp_path: Path
) -> None:
    spec, model = network()
    (tmp_path / "run").mkdir()
    save_network(tmp_path / "run", model, spec)
    request = ExportRequest("onnx", stages=())
    bundle = export(model, spec, images, request, tmp_path / "bundle")
    assert top_k_constants(bundle.artifact_path) == []
    data = Path(images.paths[0]).parents[2]
    given = ("--data", data, "--split", "val", "--reference", tmp_path / "run")
    found = cli_json("verify", tmp_path / "bundle", *given)
    assert (found["verdict"], found["top1_agreement"], found["kept_overlap"]) == ("pass", 1, [])


def cli_json(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.stderr
    content: dict[str, Any] = json.loads(result.stdout)
    return content


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory, micro_run: Path, micro_data: Path) -> Path:
    """The micro run's bundle at other counts than its own."""
    out = tmp_path_factory.mktemp("slim") / "bundle"
    content = cli_json(
        "export", micro_run, "--target", "onnx", "--data", micro_data, "--split", "test",
        "--keep", "40,auto:8,10", "--out", out,
    )  # fmt: skip
    assert content["rescheduled"] == to_json(read_bundle(out).manifest.rescheduled)
    assert content["rescheduled"]["trained_stages"][0] == {"position": 1, "keep": 48}
    return out


def test_a_bundle_at_other_counts_is_held_to_its_run_at_these_counts(
    slim: Path, micro_run: Path, micro_data: Path, micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    assert top_k_constants(slim / "model.onnx") == [40, 31, 10]
    found = cli_json("verify", slim, "--data", micro_data, "--reference", micro_run)
    assert found["verdict"] == "pass"
    assert found["kept_overlap"] == [1, 1, 1]
    assert found["reference_top1"] == read_bundle(slim).manifest.rescheduled.accuracy  # type: ignore[union-attr]
    assert found["top1_agreement"] == 1
    # Another run's, trained at these very counts, is another network.
    other = Path(shutil.copytree(micro_run, tmp_path / "other"))
    spec, model = load_run(micro_run)
    changed, network_there = at_stages(spec, model, read_bundle(slim).manifest.model.stages)
    save_network(other, network_there, changed)
    whole = micro_bundles["onnx"]
    for path, message in (
        (other, f"{other} has other stages than {slim}"),
        (whole, f"{whole} keeps 48,32,16 patches and {slim} 40,31,10: give the run as the ref"),
    ):
        result = CliRunner().invoke(
            main, ["verify", str(slim), "--data", str(micro_data), "--reference", str(path)]
        )
        assert result.exit_code == 2
        assert message in result.stderr


def test_inspect_shows_what_other_counts_cost(slim: Path) -> None:
    content = cli_json("inspect", slim)
    assert content["rescheduled"]["trained_accuracy"] >= 0
    shown = CliRunner().invoke(main, ["inspect", str(slim)]).stdout
    assert "Keep counts, PyTorch's accuracy on 12 images" in shown
    assert "1:48, 2:32, 3:16" in shown
    assert "1:40, 2:31, 3:10" in shown


def test_a_bundle_at_other_counts_is_explained_and_stays_out_of_its_runs_row(
    slim: Path, micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    photo = next((micro_data / "test").rglob("*.png"))
    content = cli_json("explain", slim, photo, "--out", tmp_path)
    kept = [len(stage["kept"]) for stage in content["images"][0]["stages"]]
    assert kept == [40, 31, 10]
    runs = [(micro_run, sha256_of(micro_run / "model.safetensors"), load_run(micro_run)[0])]
    with pytest.raises(
        UsageError, match=r"keeps other numbers of patches than .* sweep shows both"
    ):
        assign([slim], runs, lambda text: None)
    said: list[str] = []
    assert assign([slim.parent], runs, said.append) == {}
    assert len(said) == 1
    assert "left out" in said[0]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("40,20", "--keep 40,20 has 2 counts for 3 stages"),
        ("40,41,10", r"stage 2 \(2:41\) keeps 41 patches and 40 are left there"),
        ("65,20,10", r"stage 1 \(1:65\) keeps 65 patches and 64 are left there"),
        ("120%,20,10", "120% is no share of the patches"),
        ("auto:0,20,10", "auto:0 is no multiple"),
        ("", "--keep  has 1 counts for 3 stages"),
    ],
)
def test_keep_counts_that_no_export_can_have_are_one_line(
    keep: str, message: str, micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    arguments = ["export", micro_run, "--target", "onnx", "--data", micro_data, "--keep", keep]
    result = CliRunner().invoke(main, [*map(str, arguments), "--out", str(tmp_path / "bundle")])
    assert result.exit_code == 2
    assert re.search(rf"^Error: .*{message}", result.stderr)
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "bundle").exists()


def test_keep_counts_of_a_network_without_stages_are_refused() -> None:
    spec, model = network("none")
    with pytest.raises(SpecError, match="--keep 40 is for a network with stages"):
        stages_from_keep("40", spec, model)


def test_counts_of_all_that_is_left_are_exported_where_they_are_named(
    images: ImageSet, micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    spec, model = network()
    request = ExportRequest("onnx", stages=stages_from_keep("36,15,10", spec, model))
    with pytest.raises(GateError, match=r"stage 1 keeps all 36 patches .* with --keep to export"):
        export(model, spec, images, request, tmp_path / "bundle")
    cli_json(
        "export", micro_run, "--target", "onnx", "--data", micro_data, "--keep", "64,32,32",
        "--out", tmp_path / "bundle",
    )  # fmt: skip
    assert top_k_constants(tmp_path / "bundle" / "model.onnx") == [64, 32, 32]


def test_an_onnx_bundle_runs_on_openvino_too(tmp_path: Path, images: ImageSet) -> None:
    spec, model = network()
    export(model, spec, images, ExportRequest("onnx"), tmp_path / "bundle")
    answers = []
    for backend in ("onnx", "openvino"):
        with Classifier.load(tmp_path / "bundle", backend) as classifier:
            answers.append(classifier.logits(list(images.paths)))
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-4)
