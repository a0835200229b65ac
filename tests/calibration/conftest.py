"""Float graphs of two small networks, which the tests of INT8 quantize."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from gft_edge.bundle.specs import GalaMode, InputSpec, Score
from gft_edge.calibration.sampling import activation_peaks
from gft_edge.export.fp16 import half
from gft_edge.export.graph import simplify
from gft_edge.export.onnx_from_torch import onnx_from_torch
from gft_edge.runtime.preprocess import batch_from_pixels
from tests.calibration.graphs import (
    Exported,
    Pixels,
)
from tests.support.networks import wide_network
from tests.support.pictures import smooth_pixels

# Name -> stages, GALA mode, score, whether it is in FP16, batch.
CONFIGURATIONS: dict[str, tuple[str, GalaMode, Score, bool, int]] = {
    "fp32": ("1:20,2:10", "layer", "gala", False, 2),
    "fp16": ("0:20", "block", "class", True, 1),
}


@pytest.fixture(scope="session")
def pixels() -> Pixels:
    return smooth_pixels(16, 48)


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory, pixels: Pixels) -> dict[str, Exported]:
    """The float graphs of both configurations, of networks of two blocks."""
    found = {}
    for name, (stages, gala, score, halved, batch) in CONFIGURATIONS.items():
        folder = tmp_path_factory.mktemp(name)
        spec, model = wide_network(stages, gala, score, bias_spread=1 / 8, depth=2)
        network = half(model) if halved else model
        graph = onnx_from_torch(network, spec, InputSpec("uint8", batch), 20, centred=True)
        onnx.save(simplify(graph), folder / "float.onnx")
        normalised = torch.from_numpy(batch_from_pixels(pixels, spec.preprocessing, "float32"))
        peaks = activation_peaks(model, [normalised])
        dtype = np.float16 if halved else np.float32
        found[name] = Exported(folder / "float.onnx", spec, model, peaks, dtype, batch)
    return found


@pytest.fixture(scope="session", params=CONFIGURATIONS)
def exported(request: pytest.FixtureRequest, exports: dict[str, Exported]) -> Exported:
    return exports[request.param]


@pytest.fixture(scope="session")
def in_fp16(exports: dict[str, Exported]) -> Exported:
    return exports["fp16"]


@pytest.fixture(scope="session")
def in_fp32(exports: dict[str, Exported]) -> Exported:
    return exports["fp32"]


@pytest.fixture(scope="session")
def batches() -> list[Tensor]:
    images = torch.randn(8, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    return [images[:5], images[5:]]
