"""ONNX graphs for the tests of INT8: a float graph, and a quantized one read by what writes each tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper

from gft_edge.bundle.specs import ModelSpec
from gft_edge.calibration.int8_onnx import quantize_onnx
from gft_edge.model.gft import GFT

EMBEDDING = "backbone.patch_embed.proj"
FC1 = "backbone.blocks.1.mlp.fc1"
TINIEST = float(np.finfo(np.float16).tiny)

Pixels = npt.NDArray[np.uint8]
UNKNOWN = "backbone.blocks.7.mlp.fc1"


@dataclasses.dataclass
class Exported:
    """A float graph, simplified, and what its layers read."""

    path: Path
    spec: ModelSpec
    model: GFT
    peaks: dict[str, float]
    dtype: Any
    batch: int

    @property
    def layers(self) -> list[str]:
        return list(self.peaks)


class Graph:
    """An ONNX graph by what writes each tensor."""

    def __init__(self, path: Path, check: bool = True):
        self.model = onnx.load(path)
        if check:
            onnx.checker.check_model(self.model, full_check=True)
        self.nodes = list(self.model.graph.node)
        self.constants = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer
        }
        self.writers = {name: node for node in self.nodes for name in node.output}

    def of(self, *kinds: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in kinds]

    def dequantizer(self, node: onnx.NodeProto, number: int) -> onnx.NodeProto | None:
        """The DequantizeLinear that writes an input of a node, if one does."""
        writer = self.writers.get(node.input[number])
        return writer if writer is not None and writer.op_type == "DequantizeLinear" else None

    def read_by(self, node: onnx.NodeProto | None) -> list[npt.NDArray[Any]]:
        """The constants that a node reads, in order."""
        assert node is not None
        return [self.constants[name] for name in node.input if name in self.constants]

    def layer_nodes(self) -> dict[str, onnx.NodeProto]:
        """Layer -> its node: weights are constants, plain or dequantized."""
        found = {}
        for node in self.of("MatMul", "Gemm", "Conv"):
            writer = self.dequantizer(node, 1)
            if (node.input[1] if writer is None else writer.input[0]) in self.constants:
                found[node.name.rpartition("/")[0]] = node
        return found

    def of_one_processor(self) -> list[str]:
        """The nodes that not every processor computes as well: private operators, and INT8 that is
        unsigned or not around 0.

        ONNX Runtime fuses signed INT8 around 0 as it is on Arm, and makes its own form of it on x86.
        """
        private = [node.name for node in self.nodes if node.domain]
        quantized = [
            node.name
            for node in self.of("QuantizeLinear", "DequantizeLinear")
            for zero in [self.constants[name] for name in node.input[2:]] or [None]
            if zero is None or zero.dtype != np.int8 or zero.any()
        ]
        return private + [name for name in quantized if name not in self._biases()]

    def _biases(self) -> set[str]:
        """The nodes that dequantize a bias, which is INT32 without a zero point."""
        return {
            node.name
            for node in self.of("DequantizeLinear")
            if len(node.input) == 2
            and node.input[0] in self.constants
            and self.constants[node.input[0]].dtype == np.int32
        }

    def quantized_layers(self) -> set[str]:
        return {name for name, node in self.layer_nodes().items() if self.dequantizer(node, 1)}


def quantized(
    exported: Exported, folder: Path, layers: Collection[str] | None = None, **changes: float
) -> Graph:
    chosen = exported.layers if layers is None else layers
    graph = onnx.load(exported.path)
    made = quantize_onnx(graph, {**exported.peaks, **changes}, chosen, EMBEDDING)
    onnx.save(made, folder / "int8.onnx")
    return Graph(folder / "int8.onnx")


def logits_of(path: Path, pixels: Pixels, batch: int) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answers = [
        session.run(["logits"], {"images": pixels[start : start + batch]})[0]
        for start in range(0, len(pixels), batch)
    ]
    return np.concatenate(answers)


def cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Mean over images, of logits centred over them: what tells one image from another."""
    a, b = a - a.mean(axis=0), b - a.mean(axis=0)
    return float(np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))
