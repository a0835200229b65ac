"""The specs survive JSON, and a wrong file or stage list is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gft_edge.errors import SpecError
from gft_edge.specs import (
    Artifact,
    FidelityReport,
    GalaMode,
    ImageRecord,
    InputSpec,
    Manifest,
    ModelSpec,
    Preprocessing,
    Stage,
    Tolerance,
    check_stages,
    from_json,
    parse_stages,
    to_json,
)

PREPROCESSING = Preprocessing(64, 0.9, "center", "bicubic", (0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
MODEL = ModelSpec(
    name="gft_micro",
    backbone="vit_tiny_patch16_224",
    backbone_args={"patch_size": 8, "depth": 4},
    stages=(Stage(1, 48), Stage(2, 32)),
    gala="layer",
    score="gala",
    temperature=1.0,
    patch_grid=(8, 8),
    preprocessing=PREPROCESSING,
    labels=("apple", "café"),
)
MANIFEST = Manifest(
    schema_version=1,
    target="openvino",
    precision="fp32",
    runtime_precision="f32",
    model=MODEL,
    input=InputSpec("uint8", 1),
    kept_outputs=("kept_1", "kept_2"),
    artifact=Artifact("model.xml", "openvino-ir", "fp32", "ab", "cd", ("model.bin",)),
    lineage=(Artifact("exported.onnx", "onnx", "fp32", "cd"),),
    verified_on=ImageRecord(12, 0, "01"),
    files={"model.xml": "ab", "model.bin": "ef"},
    tools={"python": "3.11"},
    reports=(
        FidelityReport(
            "build", 1e-6, 1.0, 1.0, (1.0, 0.5), 12, Tolerance(1, (0.9,), 0.9), ("why",)
        ),
    ),
)


@pytest.mark.parametrize("spec", [PREPROCESSING, MODEL, MANIFEST], ids=lambda s: type(s).__name__)
def test_a_spec_read_back_from_json_equals_itself(spec: Any) -> None:
    text = json.dumps(to_json(spec))
    assert from_json(type(spec), json.loads(text), "file.json") == spec


def test_an_integer_stands_for_a_float_and_becomes_one() -> None:
    data = {**to_json(PREPROCESSING), "crop_pct": 1}
    crop_pct = from_json(Preprocessing, data, "p").crop_pct
    assert crop_pct == 1.0
    assert isinstance(crop_pct, float)


def test_a_field_with_a_default_may_be_missing() -> None:
    data = to_json(MANIFEST)
    del data["reports"]
    assert from_json(Manifest, data, "manifest.json").reports == ()


def test_an_unknown_field_is_named() -> None:
    message = (
        r"^model\.json has unknown fields \(colour, flavour\), written by a newer gft-edge: "
        "upgrade it here$"
    )
    with pytest.raises(SpecError, match=message):
        from_json(ModelSpec, {**to_json(MODEL), "flavour": 1, "colour": 2}, "model.json")


def test_a_missing_field_is_named() -> None:
    data = to_json(MODEL)
    del data["gala"]
    with pytest.raises(SpecError, match=r"^model\.json lacks the field 'gala'$"):
        from_json(ModelSpec, data, "model.json")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", 3, r"model\.json: name is 3, expected str"),
        ("temperature", "hot", r"model\.json: temperature is 'hot', expected float"),
        ("temperature", True, r"model\.json: temperature is True, expected float"),
        ("gala", "lair", r"model\.json: gala is 'lair', expected one of layer, block"),
        ("labels", "apple", r"model\.json: labels is not a list"),
        ("labels", ["apple", None], r"model\.json: labels\[1\] is None, expected str"),
        ("patch_grid", [8], r"model\.json: patch_grid has 1 entries, expected 2"),
        ("patch_grid", [8, True], r"model\.json: patch_grid\[1\] is True, expected int"),
        ("backbone_args", [], r"model\.json: backbone_args is not an object"),
        ("backbone_args", {"depth": 4.5}, r"backbone_args\.depth is 4\.5, expected int"),
        ("stages", [{"position": 1}], r"stages\[0\] lacks the field 'keep'"),
        ("preprocessing", None, r"model\.json: preprocessing is not an object"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_field(
    field: str, value: Any, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        from_json(ModelSpec, {**to_json(MODEL), field: value}, "model.json")


def test_an_absent_parent_is_none() -> None:
    data = {**to_json(MANIFEST.artifact), "parent_sha256": None}
    assert from_json(Artifact, data, "a").parent_sha256 is None


def test_the_input_is_nhwc_for_pixels_and_nchw_for_floats() -> None:
    assert InputSpec("uint8", 2).shape(64) == (2, 64, 64, 3)
    assert InputSpec("float32", 2).shape(64) == (2, 3, 64, 64)


def test_stages_are_read_as_counts_or_as_percentages_of_all_patches() -> None:
    assert parse_stages("8:147,9:98", 196) == (Stage(8, 147), Stage(9, 98))
    assert parse_stages(" 8:75% , 9:50%", 196) == (Stage(8, 147), Stage(9, 98))
    assert parse_stages("8:0.1%", 196) == (Stage(8, 1),)
    assert parse_stages("None", 196) == ()


@pytest.mark.parametrize(
    "text", ["8", "8:", ":5", "8:x", "8:101%", "8:0%", "8:nan%", "8:147,", "", "8:1.5", "8.0:4"]
)
def test_a_stage_list_that_cannot_be_read_says_how_to_write_one(text: str) -> None:
    with pytest.raises(SpecError, match=r"is not POSITION:COUNT or POSITION:PERCENT%: write for"):
        parse_stages(text, 196)


@pytest.mark.parametrize(
    ("stages", "mode", "message"),
    [
        ("5:10", "layer", r"stage 1 \(5:10\) is out of range: .* positions 0 to 4 in layer mode"),
        ("-1:10", "layer", r"out of range"),
        ("3:10", "block", r"positions 0 to 2 in block mode"),
        ("2:10,1:5", "layer", r"stage 2 \(1:5\) follows position 2: positions must not descend"),
        ("1:10,1:5", "block", r"stage 2 \(1:5\) follows position 1: positions must ascend"),
        ("1:65", "layer", r"keeps 65 patches and 64 are left there: choose a count from 1 to 64"),
        ("1:10,2:11", "layer", r"stage 2 \(2:11\) keeps 11 patches and 10 are left"),
        ("1:0", "layer", r"keeps 0 patches"),
    ],
)
def test_stages_that_do_not_fit_the_network_are_refused(
    stages: str, mode: GalaMode, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        check_stages(parse_stages(stages, 64), mode, depth=4, patch_count=64)


@pytest.mark.parametrize(
    ("stages", "mode"),
    [("4:1", "layer"), ("2:64,2:64,2:64", "layer"), ("0:64,2:1", "block"), ("none", "block")],
)
def test_stages_at_the_limits_are_accepted(stages: str, mode: GalaMode) -> None:
    check_stages(parse_stages(stages, 64), mode, depth=4, patch_count=64)
