"""What TensorRT reads in the project's graphs, and what an engine's inspector says became of them."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from gft_edge.bundle.specs import GalaMode, InputSpec, ModelSpec
from gft_edge.calibration.int8_onnx import quantize_onnx
from gft_edge.calibration.layers import quantizable_layers
from gft_edge.calibration.sampling import activation_peaks
from gft_edge.errors import PipelineError
from gft_edge.export.fp16 import half
from gft_edge.export.graph import finish, kept_names, simplify
from gft_edge.export.onnx_from_torch import onnx_from_torch
from gft_edge.model.gft import GFT
from gft_edge.nvidia.attention import attention_in_network
from gft_edge.nvidia.layer_report import LayerReport, report_of
from gft_edge.nvidia.layers import PRODUCTS, Layer, engine_layers, network_layers
from gft_edge.nvidia.library import builder_library, parse
from tests.support.cli import refusal, run, run_json
from tests.support.networks import micro_spec, seeded
from tests.support.refusals import refusal_of

BLOCKS = 4
# A selection reads its own GALA layer, or in the slow run the block before it.
MODES: tuple[GalaMode, ...] = ("layer", "block")
every_graph = pytest.mark.parametrize(
    ("mode", "precision"),
    [
        pytest.param(mode, precision, marks=pytest.mark.slow if mode == "block" else ())
        for mode in MODES
        for precision in ("fp32", "fp16", "int8")
    ],
)

# (mode, precision) -> an ONNX file.
GraphOf = Callable[[GalaMode, str], Path]
ReportFor = Callable[[GalaMode, str], LayerReport]


@functools.cache
def network(mode: GalaMode = "layer") -> tuple[ModelSpec, GFT]:
    """Return four blocks of three heads; weights are moved, for fresh GALA layers project to zero."""
    # A selection inside the last block could not reach the logits.
    stages = "1:48,2:32,3:16" if mode == "layer" else "0:48,1:32,2:16"
    spec = dataclasses.replace(micro_spec(stages=stages, embed_dim=48), gala=mode)
    model = seeded(spec)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return spec, model


@pytest.fixture(scope="module")
def graph_of(tmp_path_factory: pytest.TempPathFactory, trt_bundle: Path) -> GraphOf:
    """Exports a graph for TensorRT, each once; that of the shared bundle is there."""
    folder = tmp_path_factory.mktemp("graphs")

    @functools.cache
    def simplified(mode: GalaMode, halved: bool) -> onnx.ModelProto:
        spec, model = network(mode)
        module = half(model) if halved else model
        return simplify(onnx_from_torch(module, spec, InputSpec("uint8", 1), 20, centred=halved))

    @functools.cache
    def graph(mode: GalaMode, precision: str) -> Path:
        if (mode, precision) == ("layer", "fp32"):
            return trt_bundle / "model.onnx"
        made = simplified(mode, precision != "fp32")
        spec, model = network(mode)
        path = folder / f"{mode}-{precision}.onnx"
        if precision == "int8":
            images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
            peaks = activation_peaks(model, [images])
            made = quantize_onnx(made, peaks, list(peaks), "backbone.patch_embed.proj")
        onnx.save(finish(made, {}, kept_names(spec)), path)
        return path

    return graph


def report_on(path: Path, mode: GalaMode = "layer") -> LayerReport:
    """Return the report on a graph's parsed network."""
    parsed, _builder, _ = parse(builder_library("tensorrt-rtx"), path.read_bytes(), path)
    return report_of(network_layers(parsed), network(mode)[0], "parsed network")


@pytest.fixture(scope="module")
def report_for(rtx: Any, graph_of: GraphOf) -> ReportFor:
    """Reports on an exported graph, each once."""
    return functools.cache(lambda mode, precision: report_on(graph_of(mode, precision), mode))


@every_graph
def test_each_weighted_layer_is_counted_in_the_precision_asked_for(
    mode: GalaMode, precision: str, report_for: ReportFor
) -> None:
    report = report_for(mode, precision)
    _, model = network(mode)
    attentions = BLOCKS + (3 if mode == "layer" else 0)
    weighted = len(quantizable_layers(model))
    # Two products an attention, and the head, are never quantized.
    others = 2 * attentions + 1
    assert report.source == "parsed network"
    assert report.products == {
        "fp32": {"fp32": weighted + others},
        "fp16": {"fp16": weighted + others},
        "int8": {"int8": weighted, "fp16": others},
    }[precision]  # fmt: skip
    assert report.int8_layers == (weighted if precision == "int8" else 0)
    assert (report.fp16_layers == 0) == (precision == "fp32")
    products = [layer for layer in report.layers if layer.kind in PRODUCTS]
    quantized = {one.name.rpartition("/")[0] for one in products if one.precision == "int8"}
    assert quantized == (set(quantizable_layers(model)) if precision == "int8" else set())


@every_graph
def test_each_stage_has_its_topk_its_gathers_and_its_casts(
    mode: GalaMode, precision: str, report_for: ReportFor
) -> None:
    rows = report_for(mode, precision).stages
    assert [row.stage for row in rows] == ["base", "stage 1", "stage 2", "stage 3"]
    assert [row.top_k for row in rows] == [0, 1, 1, 1]
    # A GALA layer gathers its q, k and v beside the tokens; the head takes the class token.
    each = 4 if mode == "layer" else 1
    assert [row.gather for row in rows] == [0, each, each, each + 1]
    assert [row.cast for row in rows] == ([1, 0, 0, 0] if precision == "fp32" else [1, 2, 2, 3])
    assert {row.reformat for row in rows} == {None}


@every_graph
def test_each_block_lies_behind_the_selections_before_it(
    mode: GalaMode, precision: str, report_for: ReportFor
) -> None:
    groups = {row.stage: row.groups for row in report_for(mode, precision).stages}
    expected = {
        f"stage {n}": {f"block {n}", f"GALA layer {n}", f"selection {n}"} for n in (1, 2, 3)
    }
    expected["base"] = {"block 0", "patch embedding"}
    if mode == "block":
        # A stage starts with the block whose attention scores.
        expected = {f"stage {n}": {f"block {n - 1}", f"selection {n}"} for n in (1, 2, 3)}
        expected["base"] = {"patch embedding"}
        expected["stage 3"].add("block 3")
    expected["stage 3"].add("head")
    assert {name: set(inside) for name, inside in groups.items()} == expected


@every_graph
def test_selections_hold_their_scores_topk_and_gathers(
    mode: GalaMode, precision: str, report_for: ReportFor
) -> None:
    layers = report_for(mode, precision).layers
    for number in (1, 2, 3):
        inside = [layer for layer in layers if layer.group == f"selection {number}"]
        assert {layer.kind for layer in inside} >= {"TOPK", "GATHER", "REDUCE"}
        scores = next(layer for layer in inside if layer.kind == "TOPK")
        assert scores.precision == "fp32"
        assert not any(layer.kind in ("SOFTMAX", "MATRIX_MULTIPLY") for layer in inside)


@every_graph
def test_attention_is_fusable_unless_it_computes_in_fp32(
    mode: GalaMode, precision: str, report_for: ReportFor
) -> None:
    report = report_for(mode, precision)
    blocks = [f"block {number}" for number in range(BLOCKS)]
    if mode == "layer":
        for number in (1, 2, 3):
            blocks.insert(blocks.index(f"block {number}"), f"GALA layer {number}")
    assert [one.group for one in report.attention] == blocks
    if precision == "fp32":
        reason = "it computes in FP32, and fused kernels in FP16, BF16 or INT8"
        assert {(one.verdict, one.reason) for one in report.attention} == {("not fusable", reason)}
        assert report.warnings == (f"attention is not fusable anywhere: {reason}",)
    else:
        assert {(one.verdict, one.reason) for one in report.attention} == {("fusable", "")}
        assert report.warnings == ()


@pytest.mark.usefixtures("rtx")
def test_a_second_reader_of_the_scores_is_the_reason(graph_of: GraphOf, tmp_path: Path) -> None:
    model = onnx.load(graph_of("layer", "fp16"))
    product = next(n for n in model.graph.node if n.name == "backbone.blocks.0.attn/MatMul")
    model.graph.node.append(
        helper.make_node("Identity", [product.output[0]], ["scores"], name="look/Identity")
    )
    model.graph.output.append(
        helper.make_tensor_value_info("scores", TensorProto.FLOAT16, [1, 3, 65, 65])
    )
    onnx.save(model, tmp_path / "model.onnx")
    report = report_on(tmp_path / "model.onnx")
    unfit = [one for one in report.attention if one.verdict != "fusable"]
    reason = "Q K^T is read by backbone.blocks.0.attn/Softmax and look/Identity"
    assert [(one.group, one.reason) for one in unfit] == [("block 0", reason)]
    assert report.warnings == (f"attention is not fusable in block 0: {reason}",)


def test_a_layer_quantized_on_one_side_falls_back(
    graph_of: GraphOf, report_for: ReportFor, tmp_path: Path
) -> None:
    model = onnx.load(graph_of("layer", "int8"))
    made = {output: node for node in model.graph.node for output in node.output}
    name = "backbone.blocks.3.mlp.fc1/MatMul"
    product = next(node for node in model.graph.node if node.name == name)
    quantize = made[made[product.input[0]].input[0]]
    assert quantize.op_type == "QuantizeLinear"
    product.input[0] = quantize.input[0]
    onnx.save(model, tmp_path / "model.onnx")
    report = report_on(tmp_path / "model.onnx")
    assert report.warnings == (f"{name} falls back to fp16: only one of its two inputs has Q/DQ",)
    assert report.int8_layers == report_for("layer", "int8").int8_layers - 1


def attention_layers(
    size: int = 64,
    tokens: int = 197,
    precisions: tuple[str, str] = ("int8", "int8"),
    behind: str = "QUANTIZE",
) -> list[Layer]:
    """Product, scale, softmax, Q, DQ, product, transpose, and a layer behind."""
    square, tall = (1, 3, tokens, tokens), (1, 3, tokens, size)
    chain = [
        ("qk", "MATRIX_MULTIPLY", precisions[0], square),
        ("scale", "ELEMENTWISE", "fp16", square),
        ("softmax", "SOFTMAX", "fp16", square),
        ("q", "QUANTIZE", "int8", square),
        ("dq", "DEQUANTIZE", "fp16", square),
        ("pv", "MATRIX_MULTIPLY", precisions[1], tall),
        ("transpose", "SHUFFLE", "fp16", tall),
        ("behind", behind, "fp16", tall),
    ]
    given = ["input", *(name for name, *_ in chain)]
    return [
        Layer(name, kind, precision, (name,), (before,), (name,), "", "block 0", shape)
        for (name, kind, precision, shape), before in zip(chain, given, strict=False)
    ]


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (attention_layers(), ""),
        (attention_layers(size=48), "head size 48 is not 16, 32 or 64, as INT8 asks"),
        (attention_layers(tokens=577), "577 tokens are more than the 512 that INT8 takes"),
        (
            attention_layers(behind="MATRIX_MULTIPLY"),
            "no Q/DQ stands behind its second product, as INT8 asks",
        ),
        (
            attention_layers(precisions=("int8", "fp16")),
            "only one of its two products is quantized",
        ),
        (attention_layers(size=264, precisions=("fp16", "fp16")),
         "head size 264 is no multiple of 8 from 16 to 256"),
        (attention_layers(precisions=("fp16", "fp16"))[1:],
         "its softmax reads no layer and not a matrix product"),
        (attention_layers()[:3], "no matrix product reads its softmax"),
        (attention_layers()[:2], "it has no softmax"),
    ],
)  # fmt: skip
def test_quantized_attention_has_conditions_of_its_own(layers: list[Layer], reason: str) -> None:
    (found,) = attention_in_network(layers)
    assert (found.verdict, found.reason) == ("not fusable" if reason else "fusable", reason)


# Shapes of an engine's layers as NVIDIA documents them: 10's "Format/Datatype" is two fields in 11.
# docs.nvidia.com/deeplearning/tensorrt/10.16.1/inference-library/engine-tools.html
# docs.nvidia.com/deeplearning/tensorrt/11.0.0/api/migration/tensorrt-10x-to-11x-IEngineInspector.html
def tensor(version: int, name: str, data_type: str) -> dict[str, Any]:
    layout = {
        "Int8": "Thirty-two wide channel vectorized row major Int8 format",
        "Half": "Row major linear FP16 format",
        "Float": "Row major linear FP32 format",
    }[data_type]
    if version == 10:
        return {"Name": name, "Dimensions": [1, 197, 192], "Format/Datatype": layout}
    return {"Name": name, "Dimensions": [1, 197, 192], "Format": layout, "DataType": data_type}


def entry(
    version: int, name: str, made: str, given: str, written: str, nodes: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": made,
        "Inputs": [tensor(version, "in", given)],
        "Outputs": [tensor(version, "out", written)],
        "TacticName": "sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize32x32x64",
        "StreamId": 0,
        # The parser of some versions says more behind the name.
        "Metadata": "\u001e".join(
            f"[ONNX Layer: {node}{' | Local Function: f' if version == 10 else ''}]"
            for node in nodes
        ),
    }


def information(version: int, layers: list[Any]) -> str:
    ends = (
        {"Bindings": ["images", "logits"]}
        if version == 10
        else {"I/O Tensors": [{"Name": "images", "IOMode": "Input", "DataType": "UInt8"}]}
    )
    return json.dumps({"Layers": layers, **ends})


both_versions = pytest.mark.parametrize("version", [10, 11])


@both_versions
def test_an_engine_s_layers_have_their_precision_and_place(version: int) -> None:
    rows: list[tuple[Any, ...]] = [
        (("MATRIX_MULTIPLY", "int8", "block 0"),
         "backbone.blocks.0.attn.qkv/MatMul_myl0_3", "gemm", "Int8", "Half",
         ("layer_norm_DequantizeLinear", "backbone.blocks.0.attn.qkv/MatMul")),
        (("KGEN", "fp32", "selection 1"), "__myl_SubAbsMea_myl0_9", "kgen", "Float", "Float",
         ("selections.0/Sub", "selections.0/Abs", "selections.0/ReduceMean")),
        (("KGEN", "fp16", "block 1"), "__myl_MulAdd_myl0_4", "kgen", "Half", "Half",
         ("backbone.blocks.1.mlp.fc2/MatMul", "backbone.blocks.1/Add_2")),
        (("REFORMAT", "int8", "other"),
         "Reformatting CopyNode for Input Tensor 0 to backbone.patch_embed.proj/Conv",
         "Reformat", "Half", "Int8", ()),
        (("TOPK", "fp32", "selection 3"), "selections.2/TopK", "TopK", "Float", "Float",
         ("selections.2/TopK",)),
        (("CAST", "fp32", "selection 3"), "__myl_Cast_myl0_1", "kgen", "Half", "Float",
         ("selections.2/Cast",)),
        (("QUANTIZE", "int8", "other"), "q", "kgen", "Half", "Int8",
         ("layer_norm_QuantizeLinear",)),
    ]  # fmt: skip
    layers = engine_layers(information(version, [entry(version, *made) for _, *made in rows]))
    for layer, (expected, *_) in zip(layers, rows, strict=True):
        assert (layer.kind, layer.precision, layer.group) == expected


def made_of(asked: LayerReport, layers: list[Any], version: int = 10) -> LayerReport:
    """Return the report on an engine of these layers, built from the network that was asked for."""
    made = engine_layers(information(version, layers))
    return report_of(made, network()[0], "engine", asked.layers)


def kernels(version: int, report: LayerReport, apart: str = "") -> list[Any]:
    """An engine in which each product and each attention of a network is one kernel.

    The attention of the group `apart` is left as it was: each of its nodes is a kernel of its own.
    """
    inner = {node for one in report.attention for node in one.nodes}
    made: list[Any] = []
    for layer in report.layers:
        if layer.kind in PRODUCTS and layer.nodes[0] not in inner:
            given = "Int8" if layer.precision == "int8" else "Half"
            made.append(entry(version, layer.name, "gemm", given, "Half", layer.nodes))
    for number, one in enumerate(report.attention):
        if one.group == apart:
            made += [entry(version, n, "kgen", "Half", "Half", (n,)) for n in one.nodes]
        else:
            name = f"_gemm_mha_v2_myl0_{number}"
            made.append(entry(version, name, "kgen", "Half", "Half", one.nodes))
    return made


@both_versions
def test_an_engine_is_compared_with_the_network_it_was_built_from(
    version: int, report_for: ReportFor
) -> None:
    asked = report_for("layer", "int8")
    report = made_of(asked, kernels(version, asked), version)
    assert report.source == "engine"
    assert report.int8_layers == asked.int8_layers
    assert {one.verdict for one in report.attention} == {"fused"}
    # Unnamed nodes find their GALA layer through the network.
    assert [one.group for one in report.attention] == [one.group for one in asked.attention]
    assert "other" not in {layer.group for layer in report.layers}
    assert [row.reformat for row in report.stages] == [0, 0, 0, 0]
    assert report.warnings == ()


def test_attention_that_an_engine_left_apart_is_warned_of(report_for: ReportFor) -> None:
    asked = report_for("layer", "fp16")
    report = made_of(asked, kernels(10, asked, apart="block 1"))
    reason = "its network allows it, and TensorRT chose other kernels"
    assert [one.group for one in report.attention if one.verdict != "fused"] == ["block 1"]
    assert report.warnings == (f"attention is not fused in block 1: {reason}",)


def test_attention_in_fp32_is_not_fused_for_the_reason_its_network_gives(
    report_for: ReportFor,
) -> None:
    asked = report_for("layer", "fp32")
    apart = [
        entry(10, node, "kgen", "Float", "Float", (node,))
        for one in asked.attention
        for node in one.nodes
    ]
    assert made_of(asked, apart).warnings == (
        "attention is not fused anywhere: "
        "it computes in FP32, and fused kernels in FP16, BF16 or INT8",
    )


def test_a_quantized_layer_that_runs_in_half_is_warned_of(report_for: ReportFor) -> None:
    asked = report_for("layer", "int8")
    made = kernels(11, asked)
    name = "backbone.blocks.2.attn.proj/MatMul"
    fallen = next(one for one in made if one["Name"] == name)
    fallen["Inputs"] = [tensor(11, "in", "Half")]
    report = made_of(asked, made, 11)
    assert report.int8_layers == asked.int8_layers - 1
    assert report.warnings == (
        f"{name} falls back to fp16: its network quantizes it, and TensorRT chose another kernel",
    )


def test_an_engine_of_names_alone_tells_fused_attention_by_its_count(
    report_for: ReportFor,
) -> None:
    asked = report_for("layer", "fp16")
    names = [one["Name"] for one in kernels(10, asked)]
    untold = "the engine tells no precisions: build it with detailed profiling verbosity"
    report = made_of(asked, names)
    assert {one.verdict for one in report.attention} == {"fused"}
    assert report.warnings == (untold,)
    fewer = made_of(asked, names[:-1])
    assert {(one.verdict, one.reason) for one in fewer.attention} == {
        ("unknown", "6 fused kernels for 7 of them")
    }


def test_a_foreign_node_hides_what_is_in_it(report_for: ReportFor) -> None:
    asked = report_for("layer", "fp16")
    box = "{ForeignNode[backbone.blocks.0.norm1/LayerNormalization...backbone.head/Gemm]}"
    report = made_of(asked, [box])
    (layer,) = report.layers
    assert (layer.kind, layer.precision) == ("FOREIGN_NODE", "unknown")
    assert {(one.verdict, one.reason) for one in report.attention} == {
        ("unknown", "a ForeignNode hides it")
    }


@pytest.mark.parametrize(
    "text",
    ["", "Layer(Reformat): a -> b", "[]", "{}", '{"Layers": 3}', '{"Layers": [3]}',
     '{"Layers": [{"Name": "a", "Inputs": ["b"]}]}', '{"Layers": [{"LayerType": "Cast"}]}'],
)  # fmt: skip
def test_what_is_no_inspector_json_is_refused_in_one_line(text: str) -> None:
    refusal_of(PipelineError, lambda: engine_layers(text), "LayerInformationFormat.JSON")


@pytest.mark.usefixtures("rtx")
def test_inspect_shows_what_tensorrt_makes_of_a_bundle(trt_bundle: Path) -> None:
    result = run("inspect", trt_bundle, "--engine")
    assert result.exit_code == 0
    assert "TensorRT, parsed network" in result.stdout
    assert "GALA layer 3, selection 3" in result.stdout
    source, warning = result.stderr.splitlines()
    assert source.startswith("the network as TensorRT parses it, for no engine loads here: ")
    assert warning.startswith("warning: attention is not fusable anywhere: ")
    content = run_json("inspect", trt_bundle, "--engine")
    engine = content["engine"]
    assert (content["kind"], engine["source"]) == ("bundle", "parsed network")
    assert [row["top_k"] for row in engine["stages"]] == [0, 1, 1, 1]
    names = {layer["name"]: layer["precision"] for layer in engine["layers"]}
    assert names["backbone.head/Gemm"] == "fp32"
    assert "engine" not in run_json("inspect", trt_bundle)


def test_inspect_needs_tensorrt_for_it(trt_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install 'gft-edge[tensorrt]'" in refusal("inspect", trt_bundle, "--engine")


def test_inspect_names_the_bundle_that_engine_needs(
    micro_bundles: dict[str, Path], trt_bundle: Path
) -> None:
    for what in (micro_bundles["onnx"], "gft_tiny", trt_bundle / "model.onnx"):
        line = refusal("inspect", what, "--engine")
        assert str(what) in line
        assert "--target tensorrt" in line
