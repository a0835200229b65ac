"""INT8 for OpenVINO's CPU plugin, by NNCF."""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import MissingDependencyError, PipelineError
from gft_edge.runtime.openvino_model import save_ir
from gft_edge.runtime.signal_stack import kept_signal_stack

# By NNCF's names; it has no entropy estimator.
METHODS = ("minmax", "percentile", "mse")

WEIGHTED = ("MatMul", "Convolution", "GroupConvolution")


def quantize_openvino(
    source: Path,
    path: Path,
    inputs: npt.NDArray[Any],
    batch: int,
    layers: Collection[str],
    smooth_quant: float | None,
    method: str = "minmax",
    half_range: bool = True,
) -> None:
    """Write an ONNX graph as OpenVINO IR with `layers` in INT8 to `path`, calibrated on `inputs`.

    `source` gives logits alone: NNCF leaves whatever leads from a TopK to an output unquantized, and
    with kept patches as outputs that is most of the network. Everything that is not one of `layers`
    keeps its precision, the score branch above all. `inputs` (images, ...) are what the graph takes,
    `batch` at a time; `smooth_quant` is the strength of SmoothQuant, None for off; `half_range` keeps weights
    within 64. Raises
    PipelineError for a graph that is quantized already or lacks a layer.
    """
    try:
        import nncf
    except ImportError as error:
        raise MissingDependencyError("NNCF", "export") from error
    import openvino

    model = openvino.convert_model(source)
    operations = model.get_ordered_ops()
    if any(op.get_type_name() == "FakeQuantize" for op in operations):
        raise PipelineError("the graph is quantized already: start from an FP32 export")
    weighted = [op for op in operations if op.get_type_name() in WEIGHTED]
    missing = sorted(set(layers) - {_layer(op) for op in weighted})
    if missing:
        raise PipelineError(f"the graph has no layer {missing[0]}")
    ignored = [op.get_friendly_name() for op in weighted if _layer(op) not in layers]
    ignored += [
        op.get_friendly_name()
        for op in operations
        if op.get_type_name() not in (*WEIGHTED, "Constant", "Parameter", "Result")
    ]
    # The last batch is filled up with the first images.
    batches = [
        inputs[np.arange(start, start + batch) % len(inputs)]
        for start in range(0, len(inputs), batch)
    ]
    # NNCF logs and draws bars of its own between our lines.
    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), kept_signal_stack():
        quantized = nncf.quantize(
            model,
            nncf.Dataset(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=ignored, validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # Half the range of the weights: without VNNI a CPU adds products in 16 bits, which
                # saturate. On AVX2 the test network's logits were at a cosine of 0.77 without it.
                overflow_fix=nncf.OverflowFix.ENABLE if half_range else nncf.OverflowFix.DISABLE,
                activations_range_estimator_params=_estimator(method),
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(
                    matmul=-1 if smooth_quant is None else smooth_quant
                ),
            ),
        )
    save_ir(quantized, path, compress_to_fp16=False)


def _layer(op: Any) -> str:
    """Where its node was exported from; OpenVINO splits a bias off and keeps the name for the sum."""
    name: str = op.get_friendly_name()
    return name.removesuffix("/WithoutBiases").rpartition("/")[0]


def _estimator(method: str) -> Any:
    from nncf.quantization import range_estimator as ranges

    if method == "mse":
        return ranges.RangeEstimatorParametersSet.HISTOGRAM
    if method == "minmax":
        return ranges.RangeEstimatorParametersSet.MINMAX
    tail = ranges.StatisticsCollectorParameters(
        ranges.StatisticsType.QUANTILE, ranges.AggregatorType.MEAN, quantile_outlier_prob=1e-5
    )
    return ranges.RangeEstimatorParameters(min=tail, max=tail)
