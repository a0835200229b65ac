"""Where the time of a bundle goes, by the real engines' own counters."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from gft_edge.bundle.onnx_bytes import graph_nodes
from gft_edge.bundle.placement import groups_by_flow
from gft_edge.bundle.specs import ModelSpec, Stage
from gft_edge.bundle.store import read_bundle
from gft_edge.errors import UsageError
from gft_edge.profiling.layers import (
    AttentionKernel,
    Breakdown,
    attention_kernels,
    breakdown_of,
    layer_profile,
    part_names,
    part_of,
)
from gft_edge.runtime.backends import LayerRun, LayerTime, backend_for, precision_of
from gft_edge.runtime.opening import bundle_request
from tests.support.refusals import refusal_of

TARGETS = ("onnx", "openvino")
RUNS = 5


@pytest.fixture(scope="module")
def breakdowns(micro_bundles: dict[str, Path]) -> dict[str, Breakdown]:
    """Target -> where the micro bundle's time goes, on one thread."""
    return {t: layer_profile(folder, threads=1, runs=RUNS) for t, folder in micro_bundles.items()}


@pytest.fixture
def model(micro_bundles: dict[str, Path]) -> ModelSpec:
    """Four blocks with a GALA layer before the blocks 1, 2 and 3."""
    return read_bundle(micro_bundles["onnx"]).manifest.model


def timed(
    folder: Path,
    runs: int = RUNS,
    in_turn: Callable[[], object] = list,
    precision: str | None = None,
) -> LayerRun:
    """An instrumented run of a bundle by its own engine, told to compute in another precision."""
    bundle = read_bundle(folder)
    backend, request = bundle_request(bundle, None, threads=1)
    computed = precision or request.runtime_precision
    request = dataclasses.replace(request, runtime_precision=computed)
    images = np.zeros(request.input_shape, np.uint8)
    return backend.layer_times(bundle.artifact_path, request, images, runs, in_turn)


def layer(kind: str, *nodes: str, name: str = "", ms: float = 1.0) -> LayerTime:
    return LayerTime(name or nodes[0], kind, "fp32", nodes, (), (name,), "kernel", ms)


# What real engines tell.


def test_every_part_of_the_network_is_there_in_the_order_it_runs(
    breakdowns: dict[str, Breakdown], model: ModelSpec
) -> None:
    names = {target: [part.name for part in breakdowns[target].parts] for target in TARGETS}
    assert names["onnx"] == part_names(model)[:-1], "no layer is `other`"
    # OpenVINO counts whole microseconds: of a micro network some parts take none, and stay.
    assert names["openvino"] == names["onnx"]


@pytest.mark.parametrize("target", TARGETS)
def test_shares_are_of_all_layers_and_the_layers_are_about_the_whole(
    target: str, breakdowns: dict[str, Breakdown]
) -> None:
    breakdown = breakdowns[target]
    assert sum(part.share for part in breakdown.parts) == pytest.approx(1)
    for part in breakdown.parts:
        assert part.share == pytest.approx(part.mean_ms / breakdown.layers_ms)
    # The rest of an inference is spent between layers; counters are whole microseconds.
    assert 0.1 < breakdown.layers_ms / breakdown.instrumented_ms < 1.2
    assert breakdown.runs == RUNS
    assert breakdown.plain_ms > 0
    assert breakdown.engine == backend_for(target).version()


@pytest.mark.parametrize("target", TARGETS)
def test_each_selection_holds_its_topk_and_all_gathers(
    target: str, micro_bundles: dict[str, Path]
) -> None:
    layers = timed(micro_bundles[target]).layers
    places: dict[str, list[str]] = {}
    for one, group in zip(layers, groups_by_flow(layers), strict=True):
        places.setdefault(one.kind, []).append(group)
    selections = ["selection 1", "selection 2", "selection 3"]
    assert sorted(places["TopK"]) == selections
    # Tokens, q, k and v at every stage; behind the last block the class token is gathered too.
    for selection in selections:
        assert places["Gather"].count(selection) >= 4
    assert set(places["Gather"]) - set(selections) <= {"block 3", "head"}
    products = places["Gemm" if target == "onnx" else "FullyConnected"]
    assert not any(group.startswith("selection") for group in products)


@pytest.mark.parametrize("target", TARGETS)
def test_the_top_layers_tell_where_they_lie_and_in_what_they_compute(
    target: str, breakdowns: dict[str, Breakdown]
) -> None:
    top = breakdowns[target].top
    assert [one.mean_ms for one in top] == sorted((one.mean_ms for one in top), reverse=True)
    parts = {part.name: part for part in breakdowns[target].parts}
    for one in top:
        assert one.mean_ms <= parts[one.part].mean_ms
        assert one.precision in ("fp32", "uint8", "int32", "int64", "bool")
        assert bool(one.kernel) == (target != "onnx")
    convolution = next(one for one in top if one.kind.startswith("Conv"))
    assert convolution.part == "patch embedding"
    assert convolution.precision == "fp32"


def test_openvino_fuses_every_attention_and_onnx_runtime_none(
    breakdowns: dict[str, Breakdown],
) -> None:
    where = [
        "block 0", "GALA layer 1", "block 1", "GALA layer 2", "block 2", "GALA layer 3", "block 3",
    ]  # fmt: skip
    found = {target: breakdowns[target].attention for target in TARGETS}
    assert sorted(one.where for one in found["openvino"]) == sorted(where)
    assert sorted(one.where for one in found["onnx"]) == sorted(where)
    assert {one.verdict for one in found["openvino"]} == {"fused"}
    assert all(one.reason.startswith("one Subgraph, jit_") for one in found["openvino"])
    assert {(one.verdict, one.reason) for one in found["onnx"]} == {
        ("not fused", "its softmax runs apart from its products, as Softmax")
    }


@pytest.mark.parametrize("target", TARGETS)
def test_something_else_is_measured_in_turn_and_no_file_is_left(
    target: str, micro_bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = sorted(micro_bundles[target].iterdir())
    calls: list[int] = []
    run = timed(micro_bundles[target], 4, lambda: calls.append(1))
    assert len(calls) == len(run.samples_ms) == 4
    assert min(run.samples_ms) > 0
    assert list(tmp_path.iterdir()) == []
    assert sorted(micro_bundles[target].iterdir()) == before


def test_what_openvino_converts_once_at_load_is_no_layer(micro_bundles: dict[str, Path]) -> None:
    # In bf16, where the CPU has it, a weight is converted by a layer of its own.
    first, *others = timed(micro_bundles["openvino"], precision="bf16").layers
    assert first.name == "images"
    written = {first.name}
    for one in others:
        assert written.intersection(one.reads), one.name
        written.update(one.writes)


def test_openvino_profiles_an_onnx_bundle_too(micro_bundles: dict[str, Path]) -> None:
    found = layer_profile(micro_bundles["onnx"], "openvino", threads=1, runs=1)
    assert (found.target, found.runs) == ("openvino", 1)
    assert "stage 2: scoring" in [part.name for part in found.parts]


def test_onnx_runtimes_nodes_are_read_without_the_onnx_package(
    micro_bundles: dict[str, Path],
) -> None:
    path = read_bundle(micro_bundles["onnx"]).artifact_path
    expected = [
        (node.name, node.op_type, tuple(filter(None, node.input)), tuple(node.output))
        for node in onnx.load(path).graph.node
    ]
    nodes = graph_nodes(path.read_bytes())
    assert [(n.name, n.operator, n.reads, n.writes) for n in nodes] == expected


@pytest.mark.parametrize(
    ("kind", "types", "precision"),
    [
        ("FullyConnected", ["f32"], "fp32"),
        ("FullyConnected", ["u8"], "int8"),
        ("QLinearMatMul", ["float", "uint8", "int8"], "int8"),
        ("Transpose", ["uint8", "uint8"], "uint8"),
        ("QuantizeLinear", ["int8", "float"], "int8"),
        ("Subgraph", ["bf16"], "bf16"),
        ("Gemm", ["float16", "float16"], "fp16"),
        ("Reshape", [], "unknown"),
    ],
)
def test_precisions_have_one_name_whatever_an_engine_calls_them(
    kind: str, types: list[str], precision: str
) -> None:
    assert precision_of(kind, types) == precision


# The parts of a network.


def variant(model: ModelSpec, **changes: Any) -> ModelSpec:
    return dataclasses.replace(model, **changes)


def test_in_layer_mode_a_stage_starts_with_its_extra_layer(model: ModelSpec) -> None:
    paper = variant(model, stages=(Stage(8, 147), Stage(9, 98), Stage(9, 49)))
    parts = [part_of(group, paper) for group in ("block 7", "GALA layer 1", "selection 1",
        "block 8", "GALA layer 3", "block 9", "block 11", "head", "patch embedding", "other")]  # fmt: skip
    assert parts == [
        "base blocks", "stage 1: scoring", "stage 1: selection", "stage 1: refinement blocks",
        "stage 3: scoring", "stage 3: refinement blocks", "stage 3: refinement blocks", "head",
        "patch embedding", "other",
    ]  # fmt: skip
    assert set(parts) <= set(part_names(paper))


def test_in_block_mode_a_stage_starts_with_the_block_that_scores(model: ModelSpec) -> None:
    edge = variant(model, gala="block", stages=(Stage(3, 48), Stage(6, 32)))
    parts = [part_of(f"block {number}", edge) for number in (2, 3, 4, 6, 7)]
    assert parts == [
        "base blocks", "stage 1: scoring", "stage 1: refinement blocks", "stage 2: scoring",
        "stage 2: refinement blocks",
    ]  # fmt: skip


def test_a_network_without_stages_has_base_blocks_alone(model: ModelSpec) -> None:
    dense = variant(model, stages=())
    assert part_names(dense) == ["patch embedding", "base blocks", "head", "other"]
    assert part_of("block 11", dense) == "base blocks"


def test_a_layer_without_time_is_not_counted_and_its_part_stays(model: ModelSpec) -> None:
    layers = (
        layer("Conv", "backbone.patch_embed/Conv", ms=3),
        layer("Gemm", "backbone.blocks.0.mlp.fc1/Gemm", ms=1),
        layer("Reshape", "backbone.blocks.0/Reshape", ms=0),
        layer("TopK", "selections.0/TopK", ms=0),
        layer("Kernel", "kernel_7", ms=4),
    )
    breakdown = breakdown_of(LayerRun(layers, (10.0, 12.0)), [8.0, 10.0], model, "onnx", "engine 1")
    assert [(part.name, part.mean_ms, part.share, part.layers) for part in breakdown.parts] == [
        ("patch embedding", 3, 3 / 8, 1),
        ("base blocks", 1, 1 / 8, 1),
        ("stage 1: selection", 0, 0, 0),
        ("other", 4, 1 / 2, 1),
    ]
    assert [one.name for one in breakdown.top] == ["kernel_7", layers[0].name, layers[1].name]
    assert (breakdown.instrumented_ms, breakdown.plain_ms) == (11, 9)
    # Pair by pair: 1.25 and 1.2.
    assert breakdown.overhead == pytest.approx(0.225)


@pytest.mark.parametrize(
    ("layers", "verdict", "reason"),
    [
        ([layer("MultiHeadAttention", "backbone.blocks.0.attn/MatMul_2")],
         "fused", "one MultiHeadAttention"),
        ([layer("FUSED_ATTENTION", "backbone.blocks.0.attn/MatMul")],
         "fused", "one FUSED_ATTENTION"),
        ([layer("Subgraph", "Softmax_7", "backbone.blocks.0.attn/MatMul_2")],
         "fused", "one Subgraph, kernel"),
        ([layer("MatMul", "backbone.blocks.0.attn/MatMul"),
          layer("Subgraph", "Softmax_7", "backbone.blocks.0.attn/MatMul_2")],
         "not fused", "one of its products runs apart, as MatMul"),
        ([layer("Softmax", "backbone.blocks.0.attn/Softmax")],
         "not fused", "its softmax runs apart from its products, as Softmax"),
        ([layer("ReduceMax", "backbone.blocks.0.attn/ReduceMax", name="_inlfunc_Softmax_X")],
         "not fused", "its softmax runs apart from its products, as ReduceMax"),
        ([layer("FOREIGN_NODE", "backbone.blocks.0/Add")],
         "unknown", "no layer of it names a softmax"),
    ],
)  # fmt: skip
def test_an_attention_is_fused_when_its_softmax_runs_with_its_products(
    layers: list[LayerTime], verdict: Any, reason: str
) -> None:
    found = attention_kernels(layers, ["block 0"] * len(layers))
    assert found == (AttentionKernel("block 0", verdict, reason),)


def test_the_softmax_of_a_class_score_is_no_attention() -> None:
    softmax = layer("Softmax", "selections.0/Softmax")
    assert attention_kernels([softmax], ["selection 1"]) == ()


# What cannot be profiled.


@pytest.mark.parametrize(
    ("target", "given", "words"),
    [
        ("onnx", {"backend": "tensorrt", "threads": 1}, "threads"),
        ("openvino", {"backend": "onnx"}, "model.xml"),
    ],
)
def test_what_cannot_be_profiled_is_refused(
    target: str, given: dict[str, Any], words: str, micro_bundles: dict[str, Path]
) -> None:
    refusal_of(UsageError, lambda: layer_profile(micro_bundles[target], **given), words)


def test_an_engine_that_times_no_layer_is_refused(model: ModelSpec) -> None:
    run = LayerRun((layer("Conv", "backbone.patch_embed/Conv", ms=0),), (1.0,))
    refusal_of(
        UsageError,
        lambda: breakdown_of(run, [1.0], model, "onnx", "engine 1"),
        "engine 1",
        "--layers",
    )
