"""INT8 graphs that are broken in ways a verdict has to see, beside the sound one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from gft_edge.bundle.images import DataSource
from gft_edge.export.judge import Judge, Steps, judge_by
from gft_edge.export.request import ExportRequest
from gft_edge.model.checkpoint import load_run
from gft_edge.studies.drawn_images import verification_images
from tests.support.cli import run_json

Change = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]

# What a name of the graph's constants ends with -> what becomes of each of them.
WRECKS: dict[str, tuple[tuple[str, ...], Change]] = {
    "a LayerNorm's gain a thousandfold": (("backbone.norm.weight",), lambda a: a * 1000),
    "a layer's scales tenfold": (("patch_embed.proj.weight_scale",), lambda a: a * 10),
    "channels in another order": (
        ("patch_embed.proj/weight",),
        lambda a: np.roll(a, 1, axis=1),
    ),
    "a wrong zero point of the weights": (
        ("patch_embed.proj.weight_zero_point",),
        lambda a: a + 40,
    ),
    "classes in another order": (("head.weight", "head.bias"), lambda a: np.roll(a, 1, axis=0)),
    "a saturated head": (("head.weight",), lambda a: np.clip(a, -0.01, 0.01)),
    "logits a thousandfold": (("head.weight", "head.bias"), lambda a: a * 1000),
    "weights of NaN": (("head.weight",), lambda a: a * np.nan),
}


@pytest.fixture(scope="module")
def judged(
    tmp_path_factory: pytest.TempPathFactory, calm_run: Path, micro_pictures: Path
) -> tuple[Judge, onnx.ModelProto]:
    """The judge of an INT8 export, and the graph that it wrote."""
    out = tmp_path_factory.mktemp("sound") / "bundle"
    run_json("export", calm_run, "--data", micro_pictures, "--out", out, "--target", "onnx",
             "--precision", "int8", "--subset-size", 40)  # fmt: skip
    spec, model = load_run(calm_run)
    images = verification_images(DataSource(micro_pictures), spec.labels)
    steps = Steps(lambda text, done, total: None, lambda text: None)
    judge = judge_by(model, spec, ExportRequest("onnx", "int8"), images, steps)
    return judge, onnx.load(out / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("wreck", WRECKS)
def test_a_wreck_fails_where_the_sound_graph_passes(
    wreck: str, judged: tuple[Judge, onnx.ModelProto]
) -> None:
    judge, sound = judged
    bound = judge.request.tolerance
    assert judge.measured("sound", sound, bound).report.verdict == "pass"
    endings, change = WRECKS[wreck]
    broken = copy.deepcopy(sound)
    found = [t for t in broken.graph.initializer if t.name.endswith(endings)]
    assert len(found) == len(endings)
    for tensor in found:
        values = numpy_helper.to_array(tensor)
        altered = np.ascontiguousarray(change(values).astype(values.dtype))
        tensor.CopyFrom(numpy_helper.from_array(altered, tensor.name))
    assert judge.measured(wreck, broken, bound).report.verdict == "fail"
