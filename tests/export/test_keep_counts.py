"""A run exported at other keep counts than it was trained at: what the bundle holds, and what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from gft_edge.bundle.images import DataSource
from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.specs import GalaMode, Stage
from gft_edge.bundle.store import read_bundle
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.datasets import read_split
from gft_edge.errors import GateError, UsageError
from gft_edge.export.pipeline import export
from gft_edge.export.request import ExportRequest
from gft_edge.fidelity.structure import top_k_constant
from gft_edge.model.checkpoint import load_run, save_network
from gft_edge.model.reference import pixels_of, torch_outputs
from gft_edge.model.schedule import at_stages, dense_stages, stages_from_keep
from gft_edge.studies.evaluation import open_case
from gft_edge.studies.run_latencies import assign
from tests.support import pictures
from tests.support.cli import refusal, run, run_json
from tests.support.networks import (
    WIDE_LABELS,
    export_run,
    micro_spec,
    save_micro_network,
    wide_network,
)
from tests.support.refusals import refusal_of


def top_k_constants(bundle: Path) -> list[int | None]:
    graph = onnx.load(bundle / "model.onnx").graph
    return [top_k_constant(node, graph) for node in graph.node if node.op_type == "TopK"]


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory, micro_run: Path, micro_data: Path) -> Path:
    """The micro run's bundle at other counts than its own."""
    out = tmp_path_factory.mktemp("slim") / "bundle"
    content = run_json(
        "export", micro_run, "--target", "onnx", "--data", micro_data, "--split", "test",
        "--keep", "40,auto:8,10", "--out", out,
    )  # fmt: skip
    assert content["rescheduled"] == to_json(read_bundle(out).manifest.rescheduled)
    return out


def test_other_keep_counts_are_the_graphs_constants_and_cost_what_was_measured(
    slim: Path, micro_run: Path, micro_bundles: dict[str, Path]
) -> None:
    assert top_k_constants(slim) == [40, 31, 10]
    manifest, spec = read_bundle(slim).manifest, load_run(micro_run)[0]
    stages = tuple(Stage(number, keep) for number, keep in ((1, 40), (2, 31), (3, 10)))
    assert manifest.model == dataclasses.replace(spec, stages=stages)
    assert manifest.trained_stages == spec.stages
    assert manifest.rescheduled is not None
    whole = read_bundle(micro_bundles["onnx"]).manifest
    assert manifest.rescheduled.trained_accuracy == whole.reports[-1].reference_accuracy
    assert manifest.rescheduled.accuracy == manifest.reports[-1].reference_accuracy


@pytest.mark.slow
def test_layers_of_their_own_are_exported_at_other_counts_too(tmp_path: Path) -> None:
    gala: GalaMode = "layer"
    spec, model = wide_network(gala=gala)
    pictures.write_smooth(tmp_path, WIDE_LABELS, 5)
    images = draw_image_set(read_split(tmp_path, "val"), 12, seed=0)
    stages = stages_from_keep("50%,12,0.2", spec, model)
    assert [stage.keep for stage in stages] == [18, 12, 7]
    request = ExportRequest("onnx", stages=stages)
    rescheduled = export(model, spec, images, request, tmp_path / "bundle").manifest.rescheduled
    assert top_k_constants(tmp_path / "bundle") == [18, 12, 7]
    assert rescheduled is not None
    pixels = pixels_of(images, spec.preprocessing)
    for network, found in (
        (model, rescheduled.trained_accuracy),
        (at_stages(spec, model, stages)[1], rescheduled.accuracy),
    ):
        logits = torch_outputs(network, pixels, spec.preprocessing).logits
        assert found == float((logits.argmax(axis=1) == np.asarray(images.targets)).mean())
    # The network itself keeps what it kept.
    assert [each.keep for each in model.selections] == [stage.keep for stage in spec.stages]


def test_nothing_dropped_is_the_dense_network() -> None:
    """In blocks that is the backbone; layers of their own stay, and keep all at each stage."""
    all_kept = (Stage(0, 36), Stage(1, 36), Stage(2, 36))
    cases: tuple[tuple[GalaMode, tuple[Stage, ...]], ...] = (("block", ()), ("layer", all_kept))
    for gala, stages in cases:
        spec, model = wide_network(gala=gala)
        assert dense_stages(spec) == stages
        _, dense = at_stages(spec, model, stages)
        pixels = torch.randn(2, 3, 48, 48)
        with torch.inference_mode():
            assert dense(pixels).shape == (2, 3)
            if gala == "block":
                torch.testing.assert_close(dense(pixels), model.backbone(pixels))


@pytest.mark.slow
def test_a_dense_bundle_of_a_run_is_held_to_the_run_without_its_stages(
    micro_data: Path, tmp_path: Path
) -> None:
    """A network that scores by its own blocks' attention computes the same without its stages."""
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    run.mkdir()
    spec = dataclasses.replace(micro_spec(stages="0:48,1:32,2:16"), gala="block")
    save_micro_network(run, micro_data, "test", 0.15, spec)
    export_run(run, micro_data, bundle, ExportRequest("onnx", stages=()))
    assert top_k_constants(bundle) == []
    given = ("--data", micro_data, "--split", "test", "--reference", run)
    found = run_json("verify", bundle, *given)
    assert (found["verdict"], found["top1_agreement"], found["kept_overlap"]) == ("pass", 1, [])


def test_a_bundle_at_other_counts_is_held_to_its_run_at_these_counts(
    slim: Path, micro_run: Path, micro_data: Path, micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    given = ("verify", slim, "--data", micro_data, "--reference")
    found = run_json(*given, micro_run)
    assert found["verdict"] == "pass"
    assert found["top1_agreement"] == 1
    assert found["kept_overlap"] == [1, 1, 1]
    rescheduled = read_bundle(slim).manifest.rescheduled
    assert rescheduled is not None
    assert found["reference_top1"] == rescheduled.accuracy
    # Another run's, trained at these very counts, is another network.
    other = Path(shutil.copytree(micro_run, tmp_path / "other"))
    spec, model = load_run(micro_run)
    changed, network_there = at_stages(spec, model, read_bundle(slim).manifest.model.stages)
    save_network(other, network_there, changed)
    whole = micro_bundles["onnx"]
    for reference, words in (
        (other, (str(other), str(slim), "stages")),
        (whole, (str(whole), "48,32,16", str(slim), "40,31,10")),
    ):
        line = refusal(*given, reference)
        assert all(word in line for word in words)


def test_inspect_shows_what_other_counts_cost(slim: Path) -> None:
    assert run_json("inspect", slim)["rescheduled"]["trained_accuracy"] >= 0
    shown = run("inspect", slim).stdout
    for words in ("12 images", "1:48, 2:32, 3:16", "1:40, 2:31, 3:10"):
        assert words in shown


def test_a_bundle_at_other_counts_is_explained_and_stays_out_of_its_runs_row(
    slim: Path, micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    photo = next((micro_data / "test").rglob("*.png"))
    content = run_json("explain", slim, photo, "--out", tmp_path)
    kept = [len(stage["kept"]) for stage in content["images"][0]["stages"]]
    assert kept == [40, 31, 10]
    case, _ = open_case(micro_run, DataSource(micro_data), "test")
    said: list[str] = []
    refusal_of(UsageError, lambda: assign([slim], [case], said.append), str(slim))
    assert assign([slim.parent], [case], said.append) == {}
    assert len(said) == 1
    assert str(slim) in said[0]


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ("40,20", ("--keep 40,20", "2 counts", "3 stages")),
        ("40,41,10", ("stage 2", "2:41", "40")),
        ("120%,20,10", ("120%",)),
    ],
)
def test_keep_counts_that_no_export_can_have_are_one_line(
    keep: str, words: tuple[str, ...], micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    line = refusal(
        "export", micro_run, "--target", "onnx", "--data", micro_data, "--keep", keep,
        "--out", tmp_path / "bundle",
    )  # fmt: skip
    assert all(word in line for word in words)
    assert not (tmp_path / "bundle").exists()


def test_counts_of_all_that_is_left_have_to_be_named(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    request = ExportRequest("onnx", stages=(Stage(1, 64), Stage(2, 32), Stage(3, 16)))
    work = partial(export_run, micro_run, micro_data, tmp_path / "bundle", request)
    refusal_of(GateError, work, "stage 1", "64", "--keep")


@pytest.mark.slow
def test_counts_of_all_that_is_left_are_exported_where_they_are_named(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    run_json(
        "export", micro_run, "--target", "onnx", "--data", micro_data, "--keep", "64,32,32",
        "--out", tmp_path / "bundle",
    )  # fmt: skip
    assert top_k_constants(tmp_path / "bundle") == [64, 32, 32]
