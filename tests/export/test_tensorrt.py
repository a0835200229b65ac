"""NVIDIA's own parser and builder take the project's graphs, in the precision each was exported in."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from gft_edge.bundle.specs import InputSpec, ModelSpec
from gft_edge.calibration.int8_onnx import quantize_onnx
from gft_edge.calibration.layers import quantizable_layers
from gft_edge.calibration.sampling import activation_peaks
from gft_edge.errors import PipelineError
from gft_edge.export.fp16 import half
from gft_edge.export.graph import finish, kept_names, simplify
from gft_edge.export.onnx_from_torch import onnx_from_torch
from gft_edge.model.gft import GFT, build_gft
from gft_edge.model.named_networks import spec_from_name
from gft_edge.nvidia.build import memory_bytes
from gft_edge.nvidia.library import builder_library, parse
from gft_edge.runtime.backends import BuildRequest, trt
from tests.support.networks import WIDE_LABELS, wide_network
from tests.support.paths import ROOT
from tests.support.refusals import refusal_of

PRECISIONS = ("fp32", "fp16", "int8")
# Variant -> its patches. The first is small: it stands for the others in the default tests.
PATCHES = {"micro": 36, "gft_tiny": 196, "gft_tiny_edge": 196}
CLASSES = 3

slow = pytest.mark.slow

# (variant, precision, batch) -> an ONNX file, or what TensorRT reads in it.
GraphOf = Callable[[str, str, int], Path]
ParsedOf = Callable[[str, str, int], "Parsed"]


@dataclass(frozen=True)
class Parsed:
    """A graph, the network TensorRT made of it, and the PyTorch network it came from."""

    variant: str
    precision: str
    path: Path
    network: Any
    builder: Any
    spec: ModelSpec
    model: GFT

    def layers(self, kind: Any) -> list[Any]:
        """The network's layers of a LayerType, in order."""
        every = (self.network.get_layer(number) for number in range(self.network.num_layers))
        return [layer for layer in every if layer.type == kind]


@functools.cache
def network_of(variant: str) -> tuple[ModelSpec, GFT]:
    """A variant at its real size; weights are moved, for fresh extra layers project to zero."""
    if variant == "micro":
        return wide_network("1:20,2:15,3:10", "layer")
    spec = spec_from_name(variant, WIDE_LABELS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_gft(spec).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.add_(0.02 * torch.randn(parameter.shape))
    return spec, model


@pytest.fixture(scope="module")
def graph_of(tmp_path_factory: pytest.TempPathFactory) -> GraphOf:
    """Exports a graph for TensorRT, each once."""
    folder = tmp_path_factory.mktemp("graphs")

    @functools.cache
    def simplified(variant: str, precision: str, batch: int) -> onnx.ModelProto:
        spec, model = network_of(variant)
        network = half(model) if precision == "fp16" else model
        given = InputSpec("uint8", batch)
        return simplify(onnx_from_torch(network, spec, given, 20, centred=precision == "fp16"))

    @functools.cache
    def graph(variant: str, precision: str, batch: int) -> Path:
        made = simplified(variant, "fp32" if precision == "fp32" else "fp16", batch)
        spec, model = network_of(variant)
        if precision == "int8":
            generator = torch.Generator().manual_seed(0)
            shape = InputSpec("float32", 2).shape(spec.preprocessing.image_size_px)
            peaks = activation_peaks(model, [torch.randn(shape, generator=generator)])
            made = quantize_onnx(made, peaks, list(peaks), "backbone.patch_embed.proj")
        path = folder / f"{variant}-{precision}-{batch}.onnx"
        metadata = {"model_type": "Classification"}
        onnx.save(finish(made, metadata, kept_names(spec)), path)
        return path

    return graph


def parse_file(path: Path) -> tuple[Any, Any]:
    """The network and its builder."""
    network, builder, _ = parse(builder_library("tensorrt-rtx"), path.read_bytes(), path)
    return network, builder


@pytest.fixture(scope="module")
def parsed_of(rtx: Any, graph_of: GraphOf) -> ParsedOf:
    """Parses a graph, each once. A graph that TensorRT refuses raises here."""

    @functools.cache
    def parsed(variant: str, precision: str, batch: int) -> Parsed:
        path = graph_of(variant, precision, batch)
        network, builder = parse_file(path)
        return Parsed(variant, precision, path, network, builder, *network_of(variant))

    return parsed


# FP32 is what the shared bundle is in (test_tensorrt_bundle.py).
QUICK = (("micro", "fp16"), ("micro", "int8"))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((variant, precision), marks=slow if (variant, precision) not in QUICK else ())
        for variant in PATCHES
        for precision in PRECISIONS
    ],
    ids="-".join,
)
def parsed(request: pytest.FixtureRequest, parsed_of: ParsedOf) -> Parsed:
    """Every graph, for one image at a time."""
    variant, precision = request.param
    return parsed_of(variant, precision, 1)


@pytest.fixture
def dtype(parsed: Parsed, rtx: Any) -> Any:
    """What the graph computes in outside of its scores."""
    return rtx.float32 if parsed.precision == "fp32" else rtx.float16


def test_the_network_takes_pixels_and_gives_float_logits(parsed: Parsed, rtx: Any) -> None:
    network, size = parsed.network, parsed.spec.preprocessing.image_size_px
    assert (network.num_inputs, network.num_outputs) == (1, 1)
    images, logits = network.get_input(0), network.get_output(0)
    assert (images.name, logits.name) == ("images", "logits")
    assert (images.dtype, tuple(images.shape)) == (rtx.uint8, (1, size, size, 3))
    assert (logits.dtype, tuple(logits.shape)) == (rtx.float32, (1, CLASSES))


def test_every_stage_ranks_its_patches_in_fp32(parsed: Parsed, rtx: Any) -> None:
    ranking = parsed.layers(rtx.LayerType.TOPK)
    kept = [stage.keep for stage in parsed.spec.stages]
    patches = [PATCHES[parsed.variant], *kept[:-1]]
    assert [tuple(layer.get_input(0).shape) for layer in ranking] == [(1, n) for n in patches]
    assert [layer.get_output(0).shape[1] for layer in ranking] == kept
    assert {layer.get_input(0).dtype for layer in ranking} == {rtx.float32}


def test_the_score_branch_computes_in_fp32_from_end_to_end(parsed: Parsed, rtx: Any) -> None:
    kinds = rtx.LayerType
    computing = [
        layer
        for kind in (kinds.ELEMENTWISE, kinds.REDUCE, kinds.UNARY)
        for layer in parsed.layers(kind)
        # Indices are integers and masks are booleans in any precision.
        if layer.name.startswith("selections.") and layer.get_output(0).dtype != rtx.bool
        and layer.get_input(0).dtype not in (rtx.int32, rtx.int64)
    ]  # fmt: skip
    assert len(computing) > 3 * len(parsed.spec.stages)
    assert {layer.get_output(0).dtype for layer in computing} == {rtx.float32}


def test_every_layer_normalization_stays_whole(parsed: Parsed, dtype: Any, rtx: Any) -> None:
    layers = parsed.layers(rtx.LayerType.NORMALIZATION)
    assert len(layers) == sum(isinstance(each, nn.LayerNorm) for each in parsed.model.modules())
    assert {layer.get_output(0).dtype for layer in layers} == {dtype}


def test_every_layer_with_a_weight_computes_in_the_precision_asked_for(
    parsed: Parsed, dtype: Any, rtx: Any
) -> None:
    kinds = rtx.LayerType
    named = {
        layer.name.rpartition("/")[0]: layer
        for layer in (*parsed.layers(kinds.MATRIX_MULTIPLY), *parsed.layers(kinds.CONVOLUTION))
    }
    weighted = [named[name] for name in quantizable_layers(parsed.model)]
    assert {layer.get_input(0).dtype for layer in weighted} == {dtype}
    assert {layer.get_output(0).dtype for layer in weighted} == {dtype}


def test_int8_quantizes_what_each_layer_reads_and_nothing_else(parsed: Parsed, rtx: Any) -> None:
    layers = len(quantizable_layers(parsed.model)) if parsed.precision == "int8" else 0
    quantizing = parsed.layers(rtx.LayerType.QUANTIZE)
    assert len(quantizing) == layers
    # Weights are stored quantized: each has a DEQUANTIZE alone.
    assert len(parsed.layers(rtx.LayerType.DEQUANTIZE)) == 2 * layers
    assert {layer.get_output(0).dtype for layer in quantizing} == ({rtx.int8} if layers else set())


def test_casts_stand_at_the_ends_and_around_each_score_alone(parsed: Parsed) -> None:
    kinds = [node.op_type for node in onnx.load(parsed.path).graph.node]
    assert kinds.count("Cast") == (1 if parsed.precision == "fp32" else 8)


def engine_bytes(parsed: Parsed) -> int:
    """The size of the engine that the ahead-of-time builder makes of a network."""
    plan = parsed.builder.build_serialized_network(
        parsed.network, parsed.builder.create_builder_config()
    )
    assert plan is not None
    return int(plan.nbytes)


@slow
@pytest.mark.parametrize("variant", ["gft_tiny", "gft_tiny_edge"])
def test_engines_build_ahead_of_time_and_fp16_halves_them(
    variant: str, parsed_of: ParsedOf
) -> None:
    sizes = {name: engine_bytes(parsed_of(variant, name, 1)) for name in PRECISIONS}
    assert min(sizes.values()) > 1e6
    assert max(sizes["fp16"], sizes["int8"]) < 0.7 * sizes["fp32"]


@slow
@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_largest_network_builds_in_the_memory_that_a_build_announces(
    precision: str, graph_of: GraphOf
) -> None:
    """93 million weights, in a process of their own."""
    script = ROOT / "benchmarks" / "engine_build.py"
    done = subprocess.run(
        [sys.executable, str(script), "--build", str(graph_of("gft_base", precision, 1))],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(script.parent.parent)},
    )  # fmt: skip
    measured = json.loads(done.stdout)
    assert measured["engine"] > 100e6
    assert 0.6 < measured["peak"] / memory_bytes(measured["graph"]) < 1.05


@slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_batch_is_static_through_the_whole_network(
    precision: str, parsed_of: ParsedOf, rtx: Any
) -> None:
    parsed = parsed_of("gft_tiny_edge", precision, 8)
    assert tuple(parsed.network.get_input(0).shape) == (8, 224, 224, 3)
    assert tuple(parsed.network.get_output(0).shape) == (8, CLASSES)
    ranking = parsed.layers(rtx.LayerType.TOPK)
    assert [tuple(layer.get_input(0).shape) for layer in ranking] == [(8, 196), (8, 143), (8, 95)]
    assert engine_bytes(parsed) > 1e6


def test_nothing_is_printed_over_a_good_graph(
    graph_of: GraphOf, rtx: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    path = graph_of("micro", "int8", 1)
    capfd.readouterr()
    parse_file(path)
    assert capfd.readouterr() == ("", "")


def write_pixel_graph(path: Path, first: str) -> Path:
    """UINT8 (1,4,4,3) -> FLOAT (1,3,4,4), with a Transpose or a Cast as the `first` node."""
    transpose = {"op_type": "Transpose", "name": "patch_embed/Transpose", "perm": [0, 3, 1, 2]}
    cast = {"op_type": "Cast", "name": "patch_embed/Cast", "to": TensorProto.FLOAT}
    order = (transpose, cast) if first == "Transpose" else (cast, transpose)
    ends = (("images", "inner"), ("inner", "logits"))
    nodes = [
        helper.make_node(inputs=[given], outputs=[made], **arguments)
        for arguments, (given, made) in zip(order, ends, strict=True)
    ]
    graph = helper.make_graph(
        nodes,
        "pixels",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 4, 4, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3, 4, 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def test_pixels_that_are_transposed_before_they_are_cast_are_refused_by_node(
    rtx: Any, tmp_path: Path
) -> None:
    """Why the exported graph casts first."""
    parse_file(write_pixel_graph(tmp_path / "cast.onnx", "Cast"))
    path = write_pixel_graph(tmp_path / "transpose.onnx", "Transpose")
    refusal_of(PipelineError, lambda: parse_file(path), "'patch_embed/Transpose'", "UInt8")


def test_an_operator_that_tensorrt_lacks_is_refused_by_node(
    rtx: Any, graph_of: GraphOf, tmp_path: Path
) -> None:
    model = onnx.load(graph_of("micro", "fp16", 1))
    next(node for node in model.graph.node if node.op_type == "TopK").op_type = "Nonsense"
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    refusal_of(PipelineError, lambda: parse_file(path), "'selections.0/TopK'")


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_a_broken_file_is_refused_by_name(
    damage: str, rtx: Any, graph_of: GraphOf, tmp_path: Path
) -> None:
    whole = graph_of("micro", "fp16", 1).read_bytes()
    content = {"empty": b"", "text": b"not a model\nat all", "cut": whole[: len(whole) // 2]}
    path = tmp_path / "model.onnx"
    path.write_bytes(content[damage])
    refusal_of(PipelineError, lambda: parse_file(path), str(path))


BUILD = BuildRequest("fp16", False, {}, "0" * 64)


@pytest.mark.usefixtures("rtx")
def test_with_tensorrt_only_a_graph_it_reads_is_copied(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    bad = write_pixel_graph(tmp_path / "bad.onnx", "Transpose")
    refusal_of(PipelineError, lambda: trt.build(bad, folder, BUILD), "'patch_embed/Transpose'")
    assert not list(folder.iterdir())
    good = write_pixel_graph(tmp_path / "good.onnx", "Cast")
    trt.build(good, folder, BUILD)
    assert (folder / "model.onnx").read_bytes() == good.read_bytes()
