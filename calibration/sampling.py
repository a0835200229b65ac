"""The range of what each layer reads on the calibration images, by an estimator's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO

import torch
from torch import Tensor, nn

from gft_edge.calibration.layers import finite_peak, quantizable_layers, read_all
from gft_edge.errors import FailedError, MissingDependencyError
from gft_edge.model.network import Network

METHODS = ("minmax", "percentile", "entropy", "mse")

PERCENTILE = 99.999  # ONNX Runtime's and ModelOpt's default


def activation_peaks(
    model: Network,
    batches: Sequence[Tensor],
    method: str = "minmax",
    advance: Callable[[int], object] = lambda images: None,
) -> dict[str, float]:
    """Layer -> the magnitude that INT8's 127 shall stand for, on normalised (B,3,S,S) batches.

    `minmax` is the extreme; `percentile` and `entropy` (Kullback-Leibler) are ONNX Runtime's
    histograms (onnxruntime.ai/docs/performance/model-optimizations/quantization.html), `mse`
    PyTorch's HistogramObserver, which searches for the least squared error. Raises FailedError naming
    a layer that reads NaN, infinity or nothing but zeros.
    """
    layers = quantizable_layers(model)
    peaks = dict.fromkeys(layers, 0.0)
    estimators = {} if method == "minmax" else {name: _estimator(method) for name in layers}

    def note(name: str, read: Tensor) -> None:
        peaks[name] = max(peaks[name], finite_peak(name, read))
        if name in estimators:
            estimators[name].collect(read)

    read_all(model, layers, batches, note, advance)
    for name, peak in peaks.items():
        if peak == 0:
            raise FailedError(
                f"layer {name} reads nothing but zeros on the calibration images: "
                "there is no range to quantize"
            )
    return peaks | {name: min(peaks[name], made.peak()) for name, made in estimators.items()}


class _Histogram:
    """ONNX Runtime's percentile or entropy of a histogram of magnitudes."""

    def __init__(self, method: str):
        try:
            from onnxruntime.quantization.calibrate import HistogramCollector
        except ImportError as error:
            raise MissingDependencyError("ONNX Runtime", "export") from error
        bins = 2048 if method == "percentile" else 128
        self._collector = HistogramCollector(method, True, bins, 128, PERCENTILE, "same")

    def collect(self, read: Tensor) -> None:
        """Add to the histogram."""
        with redirect_stdout(StringIO()):  # it prints its progress
            self._collector.collect({"x": read.numpy().ravel()})

    def peak(self) -> float:
        """See the class."""
        with redirect_stdout(StringIO()):
            low, high, *_ = self._collector.compute_collection_result()["x"]
        return float(max(abs(low), abs(high)))


class _LeastSquares:
    """PyTorch's HistogramObserver."""

    def __init__(self) -> None:
        from torch.ao.quantization import HistogramObserver

        self._observer: nn.Module = HistogramObserver(
            dtype=torch.qint8, qscheme=torch.per_tensor_symmetric, quant_min=-127, quant_max=127
        )

    def collect(self, read: Tensor) -> None:
        """Add to the histogram."""
        self._observer(read)

    def peak(self) -> float:
        """See the class."""
        scale, _ = self._observer.calculate_qparams()  # type: ignore[operator]
        return float(scale) * 127


def _estimator(method: str) -> _Histogram | _LeastSquares:
    return _LeastSquares() if method == "mse" else _Histogram(method)
