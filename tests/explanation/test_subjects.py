"""What a run and a bundle show of themselves is what they rank, keep and answer."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from gft_edge.bundle.specs import GalaMode, Score
from gft_edge.bundle.store import read_bundle, read_manifest, write_manifest
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.datasets import read_split
from gft_edge.errors import BundleError, FailedError
from gft_edge.explanation.subject import BundleSubject, Pixels, Seen
from gft_edge.explanation.torch_subject import NetworkSubject, open_run
from gft_edge.export.graph import name_scores
from gft_edge.export.request import CalibrationRequest, ExportRequest
from gft_edge.model.checkpoint import load_run
from gft_edge.model.gala import smooth, token_gradient
from gft_edge.model.gft import build_gft, project_qkv
from gft_edge.model.reference import recorded_scores
from gft_edge.runtime.classifier import Classifier, load_pixels
from gft_edge.runtime.preprocess import batch_from_pixels
from tests.support.networks import export_run, micro_spec, save_micro_network
from tests.support.refusals import refusal_of

STAGES = 3
SMALL = micro_spec(stages="0:20,1:10", depth=3)
# What is exported without a judgement: random weights mean nothing, and rounding moves them far.
LOWERED = {
    "onnx-fp16": ExportRequest("onnx", "fp16", judged=False),
    "openvino-fp16-weights": ExportRequest("openvino", compress_weights=True),
}
INT8 = ("onnx-int8", "openvino-int8")


@pytest.fixture(scope="module")
def pixels(micro_run: Path, micro_data: Path) -> Pixels:
    """All of the micro data, (12,64,64,3)."""
    spec, _ = load_run(micro_run)
    paths = read_split(micro_data, "test").paths
    return np.stack([load_pixels(path, spec.preprocessing) for path in paths])


def seen_by(bundle: Path, pixels: Pixels) -> Seen:
    subject = BundleSubject(read_bundle(bundle))
    assert subject.unavailable == ()
    seen = subject.see(pixels)
    subject.close()
    return seen


def assert_shows_what_is_deployed(seen: Seen, bundle: Path, pixels: Pixels) -> None:
    """It keeps the best of what it shows; looking inside changes neither logits nor kept patches."""
    for importance, kept in zip(seen.importance, seen.kept, strict=True):
        for ranked, chosen in zip(importance, kept, strict=True):
            assert ranked[chosen].min() >= np.delete(ranked, chosen).max()
    with Classifier.load(bundle) as deployed:
        np.testing.assert_array_equal(seen.logits, deployed.outputs(pixels).logits)
    with Classifier.load(bundle, kept=True) as keeping:
        for mine, theirs in zip(seen.kept, keeping.outputs(pixels).kept, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert seen.difference.shape == (len(pixels),)
    assert seen.difference.max() < 1e-4


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_bundle_shows_the_importance_that_pytorch_computes_and_answers_as_deployed(
    micro_bundles: dict[str, Path], micro_run: Path, pixels: Pixels, target: str
) -> None:
    ours, theirs = seen_by(micro_bundles[target], pixels), open_run(micro_run).see(pixels)
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=2e-4)
    same = np.ones(len(pixels), bool)
    for stage in range(STAGES):
        # Behind a patch that rounding swapped, another set is ranked.
        assert same.sum() >= 11
        for mine, reference in (
            (ours.importance[stage], theirs.importance[stage]),
            (ours.attention[stage], theirs.attention[stage]),
        ):
            assert mine.shape == (len(pixels), (64, 48, 32)[stage])
            np.testing.assert_allclose(mine[same], reference[same], rtol=1e-3, atol=1e-3)
        same &= (ours.kept[stage] == theirs.kept[stage]).all(axis=1)
    assert_shows_what_is_deployed(ours, micro_bundles[target], pixels)


def test_pytorch_shows_its_own_scores_and_the_mean_of_eq_1(micro_run: Path, pixels: Pixels) -> None:
    spec, model = load_run(micro_run)
    seen = NetworkSubject(spec, model).see(pixels[:2])
    images = torch.from_numpy(batch_from_pixels(pixels[:2], spec.preprocessing, "float32"))
    with torch.inference_mode(), recorded_scores(model) as scores:
        model(images)
        for importance, (_, expected) in zip(seen.importance, scores, strict=True):
            np.testing.assert_array_equal(importance, expected.numpy())
        # By the letter of Eq. 1, over all pairs, for the first stage.
        backbone, layer = model.backbone, model.layers[0]
        x = backbone.blocks[0](backbone._pos_embed(backbone.patch_embed(images)))
        q, k, _, _ = project_qkv(layer.attn, layer.norm(x))
        pairs = layer.attn.scale * q[:, :, 1:] @ k[:, :, 1:].transpose(2, 3)
        means = pairs.mean(dim=3)
        np.testing.assert_allclose(seen.attention[0], means.mean(dim=1).numpy(), atol=1e-4)
        gradient = token_gradient(means).abs().mean(dim=1)
        smoothed = smooth(gradient, model.selections[0].kernel)
        np.testing.assert_allclose(seen.importance[0], smoothed.numpy(), atol=1e-4)


@pytest.mark.slow  # exports in FP16 and INT8
@pytest.mark.parametrize("name", ["onnx-fp16", "openvino-fp16-weights", *INT8])
def test_a_lowered_bundle_shows_its_own_ranking(
    calm_run: Path, micro_pictures: Path, tmp_path: Path, name: str
) -> None:
    if name in INT8:
        # Every layer: where a verdict had given back the first ones, it would be the run's own ranking.
        drawn = draw_image_set(read_split(micro_pictures, "train"), count=16, seed=0)
        calibration = CalibrationRequest(drawn)
        target = name.partition("-")[0]
        how = ExportRequest(target, "int8", calibration=calibration, judged=False)
    else:
        how = LOWERED[name]
    bundle = export_run(calm_run, micro_pictures, tmp_path / "bundle", how, "val", 8)
    spec, _ = load_run(calm_run)
    paths = read_split(micro_pictures, "test", spec.labels).paths[:8]
    pixels = np.stack([load_pixels(path, spec.preprocessing) for path in paths])
    seen, reference = seen_by(bundle, pixels), open_run(calm_run).see(pixels)
    assert_shows_what_is_deployed(seen, bundle, pixels)
    # Near the reference's, and not the reference's own.
    for shown, computed in (
        (seen.importance[0], reference.importance[0]),
        (seen.attention[0], reference.attention[0]),
    ):
        assert 0.98 < np.corrcoef(shown.ravel(), computed.ravel())[0, 1] < 1 - 1e-10


def test_naming_the_scores_changes_no_operation(micro_bundles: dict[str, Path]) -> None:
    bundle = read_bundle(micro_bundles["onnx"])
    graph = onnx.load(bundle.artifact_path).graph
    assert [value.name for value in graph.output] == ["logits"]
    written = {name for node in graph.node for name in node.output}
    names = {f"{kind}_{n}" for kind in ("kept", "score", "attention") for n in (1, 2, 3)}
    assert names <= written
    manifest = bundle.manifest
    assert manifest.score_outputs == ("score_1", "score_2", "score_3")
    assert manifest.attention_outputs == ("attention_1", "attention_2", "attention_3")
    graph = onnx.load(bundle.artifact_path)
    assert name_scores(graph, manifest.model) == graph


@pytest.mark.parametrize(
    ("gala", "score"),
    [
        ("block", "gala"),
        pytest.param("layer", "class", marks=pytest.mark.slow),
        pytest.param("block", "random", marks=pytest.mark.slow),
    ],
)
def test_every_score_is_shown_from_either_place(
    tmp_path: Path, micro_data: Path, pixels: Pixels, gala: GalaMode, score: Score
) -> None:
    spec = dataclasses.replace(SMALL, gala=gala, score=score)
    save_micro_network(tmp_path / "run", micro_data, "test", 0.1, spec)
    bundle = export_run(
        tmp_path / "run", micro_data, tmp_path / "bundle", ExportRequest("onnx"), count=6
    )
    seen, reference = seen_by(bundle, pixels[:3]), open_run(tmp_path / "run").see(pixels[:3])
    assert len(seen.attention) == len(reference.attention) == (2 if score == "gala" else 0)
    assert_shows_what_is_deployed(seen, bundle, pixels[:3])
    np.testing.assert_allclose(seen.importance[0], reference.importance[0], rtol=1e-3, atol=1e-4)


def test_another_score_in_the_same_place_ranks_as_a_network_of_that_score(
    tmp_path: Path, micro_data: Path, pixels: Pixels
) -> None:
    spec = dataclasses.replace(SMALL, score="class")
    save_micro_network(tmp_path / "run", micro_data, "test", 0.1, spec)
    subject = open_run(tmp_path / "run")
    gala = build_gft(SMALL)
    gala.load_state_dict(subject.network.state_dict(), strict=False)
    expected = NetworkSubject(SMALL, gala).see(pixels[:3])
    found = subject.ranking_by("gala").see(pixels[:3])
    for stage in range(2):
        np.testing.assert_array_equal(found.importance[stage], expected.importance[stage])
        np.testing.assert_array_equal(found.kept[stage], expected.kept[stage])
    back = subject.ranking_by("gala").ranking_by("class").see(pixels[:3])
    np.testing.assert_array_equal(back.importance[1], subject.see(pixels[:3]).importance[1])


def test_a_manifest_that_names_too_few_scores_is_refused(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(micro_bundles["onnx"], folder)
    manifest = read_manifest(folder)
    write_manifest(folder, dataclasses.replace(manifest, score_outputs=("score_1",)))
    refusal_of(BundleError, lambda: read_bundle(folder), "score_outputs", "1", "3")


def test_broken_logits_are_no_explanation(micro_run: Path, pixels: Pixels) -> None:
    subject = open_run(micro_run)
    with torch.no_grad():
        subject.network.backbone.head.bias.fill_(float("nan"))
    refusal_of(FailedError, lambda: subject.logits(pixels[:1]), "NaN")
