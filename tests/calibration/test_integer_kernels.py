"""Whether a plain session of ONNX Runtime computes every quantized layer of a graph in integers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from gft_edge.bundle.specs import InputDtype, InputSpec
from gft_edge.calibration.int8_onnx import quantize_onnx
from gft_edge.calibration.integer_kernels import with_integer_kernels
from gft_edge.calibration.layers import quantizable_layers
from gft_edge.calibration.sampling import activation_peaks
from gft_edge.export.graph import simplify
from gft_edge.export.onnx_from_torch import folds_normalisation, onnx_from_torch
from gft_edge.model.named_networks import build_network, spec_from_name
from gft_edge.model.network import Network
from tests.calibration.graphs import EMBEDDING, Exported, Graph, Pixels, cosine, logits_of
from tests.support.networks import MICRO_BACKBONE, VIT_OF_TRANSFG
from tests.support.pictures import MICRO_LABELS

INTEGER = ("MatMulIntegerToFloat", "QGemm", "ConvInteger", "MatMulInteger", "QLinearConv")
FLOAT = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv")


def operators(graph: onnx.ModelProto, folder: Path) -> Counter[str]:
    """What ONNX Runtime makes of a graph with default options."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def in_integers(found: Counter[str]) -> int:
    return sum(found[name] for name in INTEGER)


def with_biases(model: Network) -> Network:
    """Biases of zero fold away, and hide what ONNX Runtime does with others."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
        elif not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def test_every_layer_asked_for_and_no_other_is_computed_in_integers(
    in_fp32: Exported, tmp_path: Path
) -> None:
    graph = onnx.load(in_fp32.path)
    for layers in (in_fp32.layers, in_fp32.layers[::3]):
        made = quantize_onnx(graph, in_fp32.peaks, layers, EMBEDDING)
        before = operators(made, tmp_path)
        assert in_integers(before) == 0, "this ONNX Runtime needs no other form"
        rewritten = with_integer_kernels(made)
        onnx.checker.check_model(rewritten, full_check=True)
        after = operators(rewritten, tmp_path)
        assert in_integers(after) == len(layers)
        floats = sum(before[name] for name in FLOAT) - len(layers)
        assert sum(after[name] for name in FLOAT) == floats


def test_one_file_serves_x86_and_arm(in_fp32: Exported, tmp_path: Path) -> None:
    """Signed INT8 by ONNX's own operators: what one processor makes of it stands in no file."""
    made = quantize_onnx(onnx.load(in_fp32.path), in_fp32.peaks, in_fp32.layers, EMBEDDING)
    onnx.save(with_integer_kernels(made), tmp_path / "int8.onnx")
    assert Graph(tmp_path / "int8.onnx").of_one_processor() == []
    operators(with_integer_kernels(made), tmp_path)
    optimized = Graph(tmp_path / "optimized.onnx", check=False)
    assert len(optimized.of_one_processor()) >= len(in_fp32.layers)


def test_it_computes_what_the_graph_before_computed(
    in_fp32: Exported, pixels: Pixels, tmp_path: Path
) -> None:
    graph = onnx.load(in_fp32.path)
    made = quantize_onnx(graph, in_fp32.peaks, in_fp32.layers, EMBEDDING, half_range=True)
    onnx.save(made, tmp_path / "qdq.onnx")
    onnx.save(with_integer_kernels(made), tmp_path / "integer.onnx")
    ours, theirs = (
        logits_of(tmp_path / name, pixels, in_fp32.batch) for name in ("qdq.onnx", "integer.onnx")
    )
    # On AVX2 alone, at full range, sums of 16 bits saturate: 0.81. A tie may go to another patch.
    assert cosine(ours, theirs) > 0.99


def test_a_layer_that_reads_vectors_too(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(5, 8)), random.normal(size=5)
    graph = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 20]>
        vectors (float[2, 8] images) => (float[2, 5] logits) {
            logits = Gemm <transB: int = 1> (images, weight, bias)
        }""")
    graph.graph.node[0].name = "fc/Gemm"
    for name, values in (("weight", weight), ("bias", bias)):
        graph.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    made = with_integer_kernels(quantize_onnx(graph, {"fc": 4.0}, ["fc"], None, half_range=True))
    assert operators(made, tmp_path)["QGemm"] == 1
    read = np.clip(random.normal(size=(2, 8)), -4, 4).astype(np.float32)
    session = onnxruntime.InferenceSession(made.SerializeToString())
    (logits,) = session.run(None, {"images": read})
    np.testing.assert_allclose(logits, read @ weight.T + bias, atol=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("transfg_tiny", VIT_OF_TRANSFG),
        ("deit_tiny_patch16_224", MICRO_BACKBONE),
        ("resnet18", {}),
        ("mobilenetv3_small_100", {}),
        ("convnext_atto", {}),
    ],
)
def test_other_networks_too(
    name: str, arguments: dict[str, int], dtype: InputDtype, tmp_path: Path
) -> None:
    spec = spec_from_name(name, MICRO_LABELS, image_size_px=64, backbone_args=arguments)
    model, given = with_biases(build_network(spec)), InputSpec(dtype, 1)
    centred = dtype == "uint8" and folds_normalisation(model)
    graph = simplify(onnx_from_torch(model, spec, given, 20, centred))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    layers = quantizable_layers(model)
    pixel_layer = model.first_convolution()[0] if centred else None
    peaks = activation_peaks(model, [images])
    made = quantize_onnx(graph, peaks, layers, pixel_layer, half_range=True)
    rewritten = with_integer_kernels(made)
    onnx.checker.check_model(rewritten, full_check=True)
    assert in_integers(operators(rewritten, tmp_path)) == len(layers)
    example = np.random.default_rng(0).integers(0, 256, given.shape(64)).astype(np.uint8)
    image = example if dtype == "uint8" else images[:1].numpy()
    ours, theirs = (
        onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"])
        .run(["logits"], {"images": image})[0]
        .ravel()
        for one in (made, rewritten)
    )
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.999
