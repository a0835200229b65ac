"""The specs survive JSON, and a wrong file or stage list is refused by name."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from gft_edge.bundle.images import ImageRecord
from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.bundle.manifest import Artifact, Manifest
from gft_edge.bundle.reports import FidelityReport, Tolerance
from gft_edge.bundle.scores import SCORES
from gft_edge.bundle.specs import (
    GalaMode,
    InputSpec,
    ModelSpec,
    Preprocessing,
    Score,
    Stage,
)
from gft_edge.bundle.stages import check_stages, parse_keep, parse_stages
from gft_edge.errors import SpecError

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


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("8:147,9:98", (Stage(8, 147), Stage(9, 98))),
        (" 8:75% , 9: 0.5", (Stage(8, 147), Stage(9, 98))),
        ("8:.75,9:50.0 %", (Stage(8, 147), Stage(9, 98))),
        ("8:0.1%", (Stage(8, 1),)),
        ("8:1.0,9:1", (Stage(8, 196), Stage(9, 1))),
        ("None", ()),
        ("3:auto:1,6:auto:1,9:auto:1", (Stage(3, 147), Stage(6, 98), Stage(9, 49))),
        ("3:auto:16,6:AUTO:16,9:auto:16", (Stage(3, 143), Stage(6, 95), Stage(9, 47))),
        # The straight line of two stages, and of a list that mixes all kinds.
        ("3:auto:1,6:auto:1", (Stage(3, 130), Stage(6, 65))),
        ("3:180,6:auto:8,9:20%", (Stage(3, 180), Stage(6, 95), Stage(9, 39))),
    ],
)
def test_a_keep_count_is_a_number_a_share_of_all_patches_or_fills_tiles(
    text: str, stages: tuple[Stage, ...]
) -> None:
    assert parse_stages(text, 196, 1) == stages


def test_token_totals_count_every_prefix_token() -> None:
    for prefix in (1, 2, 5):
        for stage in parse_stages("3:auto:16,6:auto:16,9:auto:16", 196, prefix):
            assert (stage.keep + prefix) % 16 == 0
    assert [s.keep for s in parse_stages("3:auto:16", 196, 5)] == [91]


def test_a_share_is_exact() -> None:
    # int(0.29 * 100) is 28.
    assert parse_stages("1:0.29,2:29%", 100, 1) == (Stage(1, 29), Stage(2, 29))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8", r"stage 1 \(8\) is not POSITION:KEEP: write for example --stages 8:147,9:98"),
        ("8:147,", r"stage 2 \(\) is not POSITION:KEEP"),
        ("", "is not POSITION:KEEP"),
        (":5", "is not POSITION:KEEP"),
        ("8.0:4", "is not POSITION:KEEP"),
        ("8:", r"stage 1 \(8:\): '' is no keep count: write for example --stages .* 3:auto:16"),
        ("8:x", "'x' is no keep count"),
        ("8:nan%", "'nan%' is no keep count"),
        ("8:1e-1", "'1e-1' is no keep count"),
        ("8:3/4", "'3/4' is no keep count"),
        ("8:auto", "'auto' is no keep count"),
        ("8:auto:-8", "'auto:-8' is no keep count"),
        ("8:" + "9" * 5000, "is no keep count"),
        ("8:101%", r"101% is no share of the patches: give more than 0, up to 100%"),
        ("8:0%", "0% is no share of the patches"),
        ("8:0.0", r"0\.0 is no share of the patches"),
        ("8:1.5", r"1\.5 is no share of the patches"),
        ("8:auto:0", r"stage 1 \(8:auto:0\): auto:0 is no multiple: give 1 or more, as auto:16"),
        (
            "3:auto:64,6:auto:64,9:auto:64",
            r"stage 3 \(9:auto:64\): 50 tokens \(1 of them no patches\) hold no multiple of 64 with a "
            "patch in it: give a smaller one",
        ),
    ],
)
def test_a_stage_list_that_cannot_be_read_says_how_to_write_one(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as raised:
        parse_stages(text, 196, 1)
    assert "\n" not in str(raised.value)


def test_keep_counts_go_to_the_stages_that_a_network_has() -> None:
    stages = (Stage(3, 143), Stage(6, 95), Stage(9, 47))
    for text, keeps in (
        ("120,80,40", (120, 80, 40)),
        ("60%, 0.4,20%", (117, 78, 39)),
        ("auto:16,auto:16,auto:16", (143, 95, 47)),
    ):
        found = parse_keep(text, stages, 196, 1)
        assert found == tuple(map(Stage, (3, 6, 9), keeps))


@pytest.mark.parametrize(
    ("text", "stages", "message"),
    [
        ("120,80", 3, "--keep 120,80 has 2 counts for 3 stages: give 3 with commas between"),
        (
            "3:120",
            1,
            "--keep 3:120, stage 1: '3:120' is no keep count: write for example --keep 120",
        ),
        ("none", 1, "'none' is no keep count"),
        ("50", 0, "--keep 50 is for a network with stages, and this one keeps all: leave it out"),
    ],
)
def test_keep_counts_that_do_not_fit_the_stages_are_refused(
    text: str, stages: int, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        parse_keep(text, tuple(Stage(n, 4) for n in range(stages)), 196, 1)


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
        check_stages(parse_stages(stages, 64, 1), mode, depth=4, patch_count=64)


@pytest.mark.parametrize(
    ("stages", "mode"),
    [("4:1", "layer"), ("2:64,2:64,2:64", "layer"), ("0:64,2:1", "block"), ("none", "block")],
)
def test_stages_at_the_limits_are_accepted(stages: str, mode: GalaMode) -> None:
    check_stages(parse_stages(stages, 64, 1), mode, depth=4, patch_count=64)


def test_every_score_has_its_rule() -> None:
    assert get_args(Score) == (*SCORES,)
