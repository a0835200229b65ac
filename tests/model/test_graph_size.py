"""A network that no ONNX file holds is refused before the work, with its size and the limit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from gft_edge.errors import SpecError
from gft_edge.export.pipeline import export
from gft_edge.export.request import ExportRequest
from gft_edge.model import graph_size
from gft_edge.model.graph_size import refuse_large_graph
from gft_edge.model.named_networks import build_network, spec_from_name
from tests.support.networks import wide_network
from tests.support.refusals import refusal_of
from tests.support.training import training


def described(name: str) -> torch.nn.Module:
    """Return a network without memory for its weights."""
    spec = spec_from_name(name, ("a", "b"))
    with torch.device("meta"):
        return build_network(spec)


def test_the_largest_vits_are_told_apart_by_the_bytes_of_a_weight() -> None:
    large, huge = described("vit_large_patch16_224"), described("vit_huge_patch14_224")
    refuse_large_graph(large, 4)
    refuse_large_graph(huge, 2)
    words = ("630,767,362", "2.35 GiB", "under 2 GiB", "fp16")
    refusal_of(SpecError, partial(refuse_large_graph, huge, 4), *words)


def test_a_network_over_the_limit_is_neither_trained_nor_exported(
    coloured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_size, "LIMIT_BYTES", (16 << 20) + 1000)
    refusal_of(SpecError, training(tmp_path / "run", coloured), "GiB", "smaller")
    spec, model = wide_network()
    images: object = None  # not looked at
    for target in ("onnx", "openvino", "tensorrt"):
        work = partial(export, model, spec, images, ExportRequest(target), tmp_path / "bundle")  # type: ignore[arg-type]
        refusal_of(SpecError, work, "GiB")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "precision", "expected"),
    [("onnx", "fp32", 4), ("onnx", "fp16", 2), ("onnx", "int8", 4), ("tensorrt", "fp16", 2),
     ("tensorrt", "int8", 2), ("openvino", "fp16", 4), ("openvino", "int8", 4)],
)  # fmt: skip
def test_a_weight_counts_as_the_first_graph_holds_it(
    target: str, precision: str, expected: int
) -> None:
    assert ExportRequest(target, precision).bytes_a_weight == expected
