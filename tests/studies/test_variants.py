"""Variants: which ones a machine can have, the images they are made with, and the best of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gft_edge.bundle.images import DataSource
from gft_edge.errors import DataError, UsageError
from gft_edge.runtime.backends import backend_for
from gft_edge.studies.drawn_images import calibration_images
from gft_edge.studies.grid import grid
from gft_edge.studies.results import best_rows
from gft_edge.studies.variants import Accuracy, Variant
from tests.support.refusals import refusal_of


def test_a_target_without_its_engine_is_a_row_with_the_reason() -> None:
    reason = backend_for("tensorrt").missing()
    if reason is None:
        pytest.skip("an engine of TensorRT runs here")
    found = grid(("onnx", "trt"), ("fp32", "int8"), "nothing to calibrate on")
    assert [(variant.name, variant.status, variant.reason) for variant in found] == [
        ("onnx fp32", "done", None),
        ("onnx int8", "absent", "nothing to calibrate on"),
        ("tensorrt fp32", "absent", reason),
        ("tensorrt int8", "absent", reason),
    ]
    refusal_of(UsageError, lambda: grid(("tensorrt",), None, None), "tensorrt: ")


def test_int8_is_calibrated_on_train_where_there_is_one(
    micro_data: Path, micro_pictures: Path
) -> None:
    labels = tuple(sorted(path.name for path in (micro_pictures / "train").iterdir()))
    drawn = calibration_images(None, DataSource(micro_pictures), labels, print)
    assert all(f"{micro_pictures}/train/" in path for path in drawn.paths)
    refusal_of(
        DataError,
        lambda: calibration_images(None, DataSource(micro_data), labels, print),
        "--calibration-data",
    )


def variant(precision: str, top1: float, files_mb: float, missed: tuple[str, ...] = ()) -> Variant:
    accuracy = Accuracy(top1, 0.9, 0.9 - top1, 1.0, (), missed, ())
    return Variant("onnx", precision, files_mb=files_mb, accuracy=accuracy)


def test_a_variant_out_of_bounds_is_best_at_nothing() -> None:
    rows = [
        variant("fp32", 0.9, 20), variant("fp16", 0.9, 10), variant("int8", 0.95, 5, ("falls",)),
    ]  # fmt: skip
    best = {found.goal: found for found in best_rows(rows, 100, None)}
    assert set(best) == {"most accurate", "smallest"}
    assert (best["smallest"].row, best["smallest"].value) == ("onnx fp16", "10.0 MiB")
    assert (best["most accurate"].row, best["most accurate"].value) == (
        "onnx fp32", "90.00 % top-1",
    )  # fmt: skip
    assert best["most accurate"].note == "as good: onnx fp16"


def test_a_lead_of_one_image_is_said_to_be_one() -> None:
    best = best_rows([variant("fp32", 0.90, 20), variant("fp16", 0.91, 10)], 100, None)
    assert best[0].row == "onnx fp16"
    assert best[0].note == "1 of 100 images more than onnx fp32"
