"""From the network to a verified ONNX graph in FP32 or FP16: export, then simplify."""

from __future__ import annotations

from pathlib import Path

from gft_edge.bundle.reports import Tolerance
from gft_edge.export.explaining import name_scores
from gft_edge.export.fp16 import half
from gft_edge.export.onnx_from_torch import onnx_from_torch
from gft_edge.export.simplify import has_simplifier, simplify
from gft_edge.export.structure import expected_casts, finish
from gft_edge.export.workbench import Workbench
from gft_edge.model.networks import Network


def verified_graph(
    work: Workbench,
    network: Network,
    precision: str,
    opset: int,
    simplified: bool,
    tolerance: Tolerance,
    centred: bool = False,
) -> Path:
    """`network` as ONNX, verified on ONNX Runtime after each step; kept patches are outputs still.

    `precision` is fp32 or fp16; `centred` as in onnx_from_torch.
    """
    path = work.scratch / "exported.onnx"
    with work.stage("onnx_from_torch"):
        typed = half(network) if precision == "fp16" else network
        onnx_from_torch(typed, work.spec, work.given, opset, path, centred)
        _verify(work, "onnx_from_torch", precision, path, tolerance)
    work.record(path, "onnx", precision)
    if not simplified:
        return path
    if not has_simplifier():
        work.say(
            "onnxsim is not installed here, going on with the exporter's own optimisation "
            "(pip install 'gft-edge[export]' adds it)"
        )
        return path
    shorter = work.scratch / "simplified.onnx"
    with work.stage("simplify"):
        simplify(path, shorter)
        _verify(work, "simplify", precision, shorter, tolerance)
    work.record(shorter, "onnx", precision)
    return shorter


def finished_graph(work: Workbench, source: Path, precision: str) -> Path:
    """The deployable graph: `logits` alone as output, metadata inside."""
    path = work.scratch / "model.onnx"
    with work.stage("finish"):
        finish(source, path, work.metadata(), work.kept)
        name_scores(path, work.spec)
    work.record(path, "onnx", precision)
    return path


def _verify(work: Workbench, name: str, precision: str, path: Path, tolerance: Tolerance) -> None:
    work.check(path, expected_casts(work.spec, work.given, half=precision == "fp16"))
    work.verify(name, "onnx", "f32", path, tolerance)
