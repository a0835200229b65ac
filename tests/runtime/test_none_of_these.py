"""A label may be none of the classes: probabilities at a temperature, and a least one for a label."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gft_edge.bundle.manifest import Confidence
from gft_edge.bundle.store import read_manifest, write_manifest
from gft_edge.errors import UsageError
from gft_edge.fidelity.confidence import probabilities
from gft_edge.runtime.classifier import Classifier
from tests.support.cli import refusal, run, run_json
from tests.support.pictures import MICRO_LABELS
from tests.support.refusals import refusal_of

Confident = Callable[..., Path]


@pytest.fixture
def confident(micro_bundles: dict[str, Path], tmp_path: Path) -> Confident:
    """A copy of a bundle with another temperature and least probability."""

    def make(temperature: float, min_probability: float = 0.0) -> Path:
        out = tmp_path / "confident"
        shutil.copytree(micro_bundles["onnx"], out, dirs_exist_ok=True)
        confidence = Confidence(temperature, min_probability)
        write_manifest(out, dataclasses.replace(read_manifest(out), confidence=confidence))
        return out

    return make


@pytest.fixture(scope="module")
def photographs(micro_data: Path) -> list[Path]:
    return sorted((micro_data / "test").rglob("*.png"))


@pytest.mark.parametrize("temperature", [0.2, 1.0, 4.0])
def test_probabilities_are_the_softmax_at_the_temperature(
    confident: Confident, photographs: list[Path], temperature: float
) -> None:
    with Classifier.load(confident(temperature)) as classifier:
        expected = probabilities(classifier.logits(photographs), temperature)
        for row, found in zip(expected, classifier.predict(photographs, top_k=4), strict=True):
            assert [each.probability for each in found] == pytest.approx(sorted(row, reverse=True))
            assert [each.index for each in found] == np.argsort(-row).tolist()


def test_an_image_under_the_least_probability_has_no_label_and_the_others_have(
    confident: Confident, photographs: list[Path]
) -> None:
    with Classifier.load(confident(1.0)) as classifier:
        whole = classifier.predict(photographs, top_k=2)
    least = sorted(found[0].probability for found in whole)[len(whole) // 2]
    bundle = confident(1.0, least)
    with Classifier.load(bundle) as classifier:
        for before, after in zip(whole, classifier.predict(photographs, top_k=2), strict=True):
            accepted = before[0].probability >= least
            assert [each.label for each in after] == [
                each.label if accepted else None for each in before
            ]
            assert [each.index for each in after] == [each.index for each in before]
    # What is asked for comes before what the bundle says.
    with Classifier.load(bundle, min_probability=0) as classifier:
        assert classifier.predict(photographs, top_k=2) == whole
    with Classifier.load(bundle, min_probability=1) as classifier:
        assert classifier.predict(photographs[0])[0].label is None


@pytest.mark.parametrize("given", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_of_0_to_1_is_refused(
    micro_bundles: dict[str, Path], given: float
) -> None:
    refusal_of(
        UsageError,
        lambda: Classifier.load(micro_bundles["onnx"], min_probability=given),
        "least probability",
    )


def test_predict_says_null_in_json_and_none_of_these_to_a_person(
    confident: Confident, photographs: list[Path]
) -> None:
    bundle = confident(1.0, 1.0)
    (line,) = run("predict", bundle, photographs[0], "--json").stdout.splitlines()
    told = json.loads(line)
    assert told["label"] is None
    assert {each["label"] for each in told["predictions"]} == {None}
    likeliest = MICRO_LABELS[told["predictions"][0]["index"]]
    printed = run("predict", bundle, photographs[0], "--top-k", 1).stdout
    assert f"none of these ({likeliest})" in printed
    answered = run("predict", bundle, photographs[0], "--min-probability", 0, "--json").stdout
    assert json.loads(answered)["label"] == likeliest


@pytest.mark.parametrize("given", ["-0.1", "1.5", "nan", "half"])
def test_a_threshold_of_predict_that_is_none_is_one_line(
    micro_bundles: dict[str, Path], photographs: list[Path], given: str
) -> None:
    line = refusal("predict", micro_bundles["onnx"], photographs[0], f"--min-probability={given}")
    assert "--min-probability" in line


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_explain_gives_the_probabilities_of_predict(
    micro_bundles: dict[str, Path], photographs: list[Path], tmp_path: Path, target: str
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(micro_bundles[target], bundle)
    confidence = Confidence(2.5)
    write_manifest(bundle, dataclasses.replace(read_manifest(bundle), confidence=confidence))
    told = run_json("explain", bundle, photographs[0], "--cover", 0, "--out", tmp_path / "looks")
    (line,) = run("predict", bundle, photographs[0], "--json").stdout.splitlines()
    predicted = json.loads(line)["predictions"]
    explained = told["images"][0]["predictions"]
    assert [each["probability"] for each in explained] == pytest.approx(
        [each["probability"] for each in predicted[: len(explained)]], abs=1e-5
    )
