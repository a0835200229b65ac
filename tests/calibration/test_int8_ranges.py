"""Weights and ranges at the ends of what FP16 and INT8 hold: kept, or refused by their layer's name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from gft_edge.calibration.int8_onnx import quantize_onnx, weighted_nodes
from gft_edge.errors import PipelineError
from gft_edge.export.fp16 import half
from tests.calibration.graphs import (
    EMBEDDING,
    FC1,
    TINIEST,
    UNKNOWN,
    Exported,
    quantized,
)
from tests.support.networks import wide_network
from tests.support.refusals import refusal_of


def test_half_casts_the_network_and_not_what_its_stages_rank_by() -> None:
    _, model = wide_network("0:20", depth=2)
    # No FP16 number.
    model.selections[0].kernel.data = torch.tensor([0.1, 0.7001, 0.2])
    halved = half(model)
    assert halved.backbone.blocks[0].mlp.fc1.weight.dtype == torch.float16
    assert torch.equal(halved.selections[0].kernel, model.selections[0].kernel)
    assert model.backbone.blocks[0].mlp.fc1.weight.dtype == torch.float32
    model.backbone.blocks[1].mlp.fc2.weight.data[0, 0] = 7e4
    refusal_of(PipelineError, lambda: half(model), "blocks.1.mlp.fc2.weight", "70000", "65504")


def test_what_cannot_be_quantized_is_named(in_fp32: Exported, tmp_path: Path) -> None:
    def work(source: Path, layers: Collection[str]) -> None:
        quantize_onnx(onnx.load(source), in_fp32.peaks, layers, EMBEDDING)

    quantized(in_fp32, tmp_path, in_fp32.layers[:2])
    again = functools.partial(work, tmp_path / "int8.onnx", in_fp32.layers)
    refusal_of(PipelineError, again, "quantized already", "FP32")
    refusal_of(PipelineError, lambda: work(in_fp32.path, [*in_fp32.layers, UNKNOWN]), UNKNOWN)
    # ONNX Runtime would take an empty list for every node of the graph.
    refusal_of(PipelineError, lambda: work(in_fp32.path, []), "no layer")


def with_channel(exported: Exported, value: float, folder: Path) -> Exported:
    """The graph with weights of `value` in one output channel of FC1."""
    model = onnx.load(exported.path)
    name = weighted_nodes(model)[FC1].input[1]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    weight = numpy_helper.to_array(tensor).copy()
    weight[:, 17] = value
    tensor.CopyFrom(numpy_helper.from_array(weight, name))
    onnx.save(model, folder / "float.onnx")
    return dataclasses.replace(exported, path=folder / "float.onnx")


def test_an_output_channel_too_small_for_fp16_scales_is_refused_by_its_layers_name(
    in_fp16: Exported, tmp_path: Path
) -> None:
    """ONNX Runtime would write a scale of 1 in place of 8e-6, and the channel would be 0."""
    small = with_channel(in_fp16, 1e-3, tmp_path)
    refusal_of(
        PipelineError, lambda: quantized(small, tmp_path),
        f"layer {FC1}", "0.001", "0.0078", "6.6e+04", f"--keep-high-precision {FC1}",
    )  # fmt: skip
    others = [name for name in small.layers if name != FC1]
    assert quantized(small, tmp_path, others).quantized_layers() == set(others)


@pytest.mark.parametrize("value", [0.0, 127 * TINIEST])
def test_a_channel_of_zeros_and_the_smallest_that_fits_are_kept(
    value: float, in_fp16: Exported, tmp_path: Path
) -> None:
    graph = quantized(with_channel(in_fp16, value, tmp_path), tmp_path, [FC1])
    weight, scale, _ = graph.read_by(graph.dequantizer(graph.layer_nodes()[FC1], 1))
    assert (weight[:, 17] * scale[17].astype(np.float64)).tolist() == [value] * 48


@pytest.mark.parametrize("peak", [1e-3, 0.99 * 127 * TINIEST, 7e4, float("nan")])
def test_a_peak_that_fp16_cannot_scale_is_refused_by_its_layers_name(
    peak: float, in_fp16: Exported, tmp_path: Path
) -> None:
    refusal_of(
        PipelineError, lambda: quantized(in_fp16, tmp_path, None, **{FC1: peak}),
        f"layer {FC1}", f"--keep-high-precision {FC1}",
    )  # fmt: skip


@pytest.mark.parametrize("peak", [127 * TINIEST, 127.01 * TINIEST, 65504.0])
def test_the_ends_of_what_fp16_can_scale_are_scaled(
    peak: float, in_fp16: Exported, tmp_path: Path
) -> None:
    graph = quantized(in_fp16, tmp_path, [FC1], **{FC1: peak})
    (quantize,) = graph.of("QuantizeLinear")
    assert float(graph.constants[quantize.input[1]]) == pytest.approx(peak / 127, rel=1e-3)


def test_fp32_scales_what_fp16_cannot(in_fp32: Exported, tmp_path: Path) -> None:
    graph = quantized(with_channel(in_fp32, 1e-3, tmp_path), tmp_path, [FC1])
    _, scale, _ = graph.read_by(graph.dequantizer(graph.layer_nodes()[FC1], 1))
    assert scale[17] == pytest.approx(1e-3 / 127)
