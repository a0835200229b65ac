"""The specs survive JSON, and a wrong file or stage list is refused by name."""

from __future__ import annotations

import dataclasses
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
from tests.support.refusals import refusal_of

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


def test_a_report_holds_its_verdict_which_no_file_changes() -> None:
    data = to_json(MANIFEST.reports[0])
    assert data["verdict"] == "fail"
    assert to_json(dataclasses.replace(MANIFEST.reports[0], failures=()))["verdict"] == "pass"
    data["verdict"] = "pass"
    refusal_of(SpecError, lambda: from_json(FidelityReport, data, "report"), "report", "verdict")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flavour": 1, "colour": 2}, "colour, flavour"),
        ({"gala": ...}, "'gala'"),
        ({"family": ...}, "'family'"),
        ({"name": 3}, "name is 3"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": True}, "temperature is True"),
        ({"gala": "lair"}, "gala is 'lair'"),
        ({"labels": "apple"}, "labels"),
        ({"labels": ["apple", None]}, "labels[1] is None"),
        ({"patch_grid": [8]}, "patch_grid"),
        ({"patch_grid": [8, True]}, "patch_grid[1] is True"),
        ({"backbone_args": []}, "backbone_args"),
        ({"backbone_args": {"depth": 4.5}}, "backbone_args.depth is 4.5"),
        ({"stages": [{"position": 1}]}, "stages[0]"),
        ({"preprocessing": None}, "preprocessing"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(change: dict[str, Any], words: str) -> None:
    """`...` takes a field out."""
    data = {name: value for name, value in {**to_json(MODEL), **change}.items() if value is not ...}
    refusal_of(SpecError, lambda: from_json(ModelSpec, data, "model.json"), "model.json", words)


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
    ("text", "words"),
    [
        ("8", "stage 1 (8)"),
        ("8:147,", "stage 2 ()"),
        ("", "stage 1 ()"),
        (":5", "(:5)"),
        ("8.0:4", "(8.0:4)"),
        ("8:", "stage 1 (8:): ''"),
        ("8:x", "'x'"),
        ("8:nan%", "'nan%'"),
        ("8:1e-1", "'1e-1'"),
        ("8:3/4", "'3/4'"),
        ("8:auto", "'auto'"),
        ("8:auto:-8", "'auto:-8'"),
        ("8:" + "9" * 5000, "999"),
        ("8:101%", "101%"),
        ("8:0%", "0%"),
        ("8:0.0", "0.0"),
        ("8:1.5", "1.5"),
        ("8:auto:0", "auto:0"),
        ("3:auto:64,6:auto:64,9:auto:64", "stage 3 (9:auto:64): 50 tokens"),
    ],
)
def test_a_stage_list_that_cannot_be_read_is_named(text: str, words: str) -> None:
    refusal_of(SpecError, lambda: parse_stages(text, 196, 1), words)


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
    ("text", "stages", "words"),
    [
        ("120,80", 3, "--keep 120,80 has 2 counts for 3 stages"),
        ("3:120", 1, "--keep 3:120, stage 1: '3:120'"),
        ("none", 1, "'none'"),
        ("50", 0, "--keep 50"),
    ],
)
def test_keep_counts_that_do_not_fit_the_stages_are_refused(
    text: str, stages: int, words: str
) -> None:
    network = tuple(Stage(n, 4) for n in range(stages))
    refusal_of(SpecError, lambda: parse_keep(text, network, 196, 1), words)


@pytest.mark.parametrize(
    ("stages", "mode", "words"),
    [
        ("5:10", "layer", "positions 0 to 4"),
        ("-1:10", "layer", "(-1:10)"),
        ("3:10", "block", "positions 0 to 2"),
        ("2:10,1:5", "layer", "stage 2 (1:5)"),
        ("1:10,1:5", "block", "stage 2 (1:5)"),
        ("1:65", "layer", "1 to 64"),
        ("1:10,2:11", "layer", "stage 2 (2:11)"),
        ("1:0", "layer", "(1:0)"),
    ],
)
def test_stages_that_do_not_fit_the_network_are_refused(
    stages: str, mode: GalaMode, words: str
) -> None:
    given = parse_stages(stages, 64, 1)
    refusal_of(SpecError, lambda: check_stages(given, mode, depth=4, patch_count=64), words)


@pytest.mark.parametrize(
    ("stages", "mode"),
    [("4:1", "layer"), ("2:64,2:64,2:64", "layer"), ("0:64,2:1", "block"), ("none", "block")],
)
def test_stages_at_the_limits_are_accepted(stages: str, mode: GalaMode) -> None:
    check_stages(parse_stages(stages, 64, 1), mode, depth=4, patch_count=64)


def test_every_score_has_its_rule() -> None:
    assert get_args(Score) == (*SCORES,)
