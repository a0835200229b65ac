"""Exported graphs: static, named by modules, holding what every engine takes, keeping what PyTorch keeps."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch

from gft_edge.bundle.scores import SCORES
from gft_edge.bundle.specs import GalaMode, InputSpec, Score
from gft_edge.errors import PipelineError
from gft_edge.export.fp16 import half
from gft_edge.export.onnx_from_torch import fold_normalisation, onnx_from_torch
from gft_edge.fidelity.structure import check_structure, expected_casts
from tests.support.bundles import keep_the_worst
from tests.support.networks import (
    micro_spec,
    wide_network,
)
from tests.support.refusals import refusal_of

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def micro_graph(micro_bundles: dict[str, Path]) -> onnx.ModelProto:
    return onnx.load(micro_bundles["onnx"] / "model.onnx")


@slow
@pytest.mark.parametrize("score", SCORES)
def test_every_score_exports_statically_and_keeps_what_pytorch_keeps(
    score: Score,
) -> None:
    spec, model = wide_network("1:20,2:10", "block", score)
    given = InputSpec("float32", 2)
    graph = onnx_from_torch(model, spec, given, 20)
    check_structure(graph, spec, expected_casts(spec, given, half=False))
    pixels = torch.randn(given.shape(48), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        logits, kept = model.forward_with_kept(pixels)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {"images": pixels.numpy()})
    np.testing.assert_allclose(found[0], logits.numpy(), atol=1e-3)
    for ours, theirs in zip(found[1:], kept, strict=True):
        assert np.array_equal(ours, theirs.numpy())


@slow
@pytest.mark.parametrize("gala", ["block", "layer"])
@pytest.mark.parametrize("score", ["class-laplacian", "received"])
def test_in_fp16_a_score_reads_its_attention_in_fp32(gala: GalaMode, score: Score) -> None:
    spec, model = wide_network("1:20,2:10", gala, score)
    given = InputSpec("uint8", 1)
    graph = onnx_from_torch(half(model), spec, given, 20)
    check_structure(graph, spec, expected_casts(spec, given, half=True))


def test_the_graph_takes_pixels_and_gives_logits_alone(micro_graph: onnx.ModelProto) -> None:
    graph = micro_graph.graph
    assert [value.name for value in graph.input] == ["images"]
    assert [value.name for value in graph.output] == ["logits"]
    dims = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert dims == [1, 64, 64, 3]
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    counts = Counter(node.op_type for node in graph.node)
    assert counts["TopK"] == 3
    assert counts["Cast"] == 1
    assert graph.node[0].op_type == "Cast", "TensorRT refuses a UINT8 Transpose"
    assert counts["LayerNormalization"] == 12
    assert counts["Gelu"] == 4


def test_node_names_are_module_paths_and_nothing_names_this_machine(
    micro_graph: onnx.ModelProto,
) -> None:
    names = [node.name for node in micro_graph.graph.node]
    assert len(set(names)) == len(names)
    assert any(name.startswith("backbone.blocks.2.mlp.fc1/") for name in names)
    assert any(name.startswith("selections.1/TopK") for name in names)
    data = micro_graph.SerializeToString()
    for trace in (b"site-packages", str(Path.home()).encode() + b"/", b"stack_trace", b"tests/"):
        assert trace not in data


def test_simplifying_leaves_linear_layers_as_matmul_and_add(micro_graph: onnx.ModelProto) -> None:
    """Quantizers find layers by these nodes' names, and engines fuse MatMul-Add, not Gemm."""
    nodes = micro_graph.graph.node
    assert [node.name for node in nodes if node.op_type == "Gemm"] == ["backbone.head/Gemm"]
    names = {node.name for node in nodes if node.op_type == "MatMul"}
    for block in range(4):
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            assert f"backbone.blocks.{block}.{layer}/MatMul" in names


def test_both_formats_carry_the_same_metadata(
    micro_bundles: dict[str, Path], micro_graph: onnx.ModelProto
) -> None:
    in_onnx = {entry.key: entry.value for entry in micro_graph.metadata_props}
    ir = openvino.Core().read_model(micro_bundles["openvino"] / "model.xml")
    in_ir = {key: ir.get_rt_info(["model_info", key]).astype(str) for key in in_onnx}
    assert in_ir == in_onnx
    assert in_onnx["labels"] == "apple brown_bread café dill"
    assert in_onnx["model_type"] == "Classification"
    assert json.loads(in_onnx["gft_edge_model"])["stages"][0] == {"position": 1, "keep": 48}


def test_folding_the_normalisation_is_exact() -> None:
    spec, model = wide_network()
    projection = model.backbone.patch_embed.proj
    pixels = torch.randint(0, 256, (2, 3, 48, 48)).float()
    mean = torch.tensor(spec.preprocessing.mean).reshape(1, 3, 1, 1)
    std = torch.tensor(spec.preprocessing.std).reshape(1, 3, 1, 1)
    expected = projection((pixels / 255 - mean) / std)
    fold_normalisation(projection, spec)
    torch.testing.assert_close(projection(pixels), expected, atol=2e-5, rtol=1e-5)


def test_keeping_other_patches_changes_what_the_exported_graph_answers(
    micro_graph: onnx.ModelProto,
) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(micro_graph)
    keep_the_worst(changed)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    answers = [
        onnxruntime.InferenceSession(m.SerializeToString()).run(["logits"], {"images": pixels})[0]
        for m in (micro_graph, changed)
    ]
    assert np.abs(answers[0] - answers[1]).max() > 1e-3


def add_nonzero(graph: onnx.GraphProto) -> None:
    graph.node.append(onnx.helper.make_node("NonZero", ["logits"], ["indices"], name="added"))


def add_loose_node(graph: onnx.GraphProto) -> None:
    graph.node.append(onnx.helper.make_node("Abs", ["nowhere"], ["nothing"]))


def make_dynamic(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


@pytest.mark.parametrize(
    ("change", "casts", "stages", "words"),
    [
        (None, 0, 3, ("1 Cast", "0")),
        (None, 1, 2, ("[48, 32, 16]", "[48, 32]")),
        (add_nonzero, 1, 3, ("NonZero",)),
        (add_loose_node, 1, 3, ("not valid ONNX",)),
        (make_dynamic, 1, 3, ("images", "dynamic")),
    ],
)
def test_the_structure_check_refuses_what_an_engine_would(
    change: Callable[[onnx.GraphProto], None] | None, casts: int, stages: int,
    words: tuple[str, ...], micro_graph: onnx.ModelProto,
) -> None:  # fmt: skip
    spec, model = micro_spec(), onnx.ModelProto()
    model.CopyFrom(micro_graph)
    check_structure(model, spec, casts=1)
    if change is not None:
        change(model.graph)
    asked = dataclasses.replace(spec, stages=spec.stages[:stages])
    refusal_of(PipelineError, lambda: check_structure(model, asked, casts), *words)
