"""A dense backbone is exported like the bundle it is measured beside, whatever that bundle's precision."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest

from gft_edge.bundle.images import ImageRecord
from gft_edge.bundle.manifest import Quantization
from gft_edge.bundle.store import Bundle, read_bundle
from gft_edge.errors import UsageError
from gft_edge.export.baseline import dense_bundle
from tests.support.cli import run
from tests.support.refusals import refusal_of

BACKBONE = "deit_tiny_patch16_224"
HIGH = ("backbone.patch_embed.proj", "selections.0.smooth")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_baseline_is_exported_as_the_bundle_was_and_drops_nothing(
    target: str, micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle = read_bundle(micro_bundles[target])
    quantization = Quantization("minmax", 0.5, ImageRecord(8, 0, "0"), HIGH, 3, 0.5)
    manifest = dataclasses.replace(bundle.manifest, precision="int8", quantization=quantization)
    made = dense_bundle(Bundle(bundle.folder, manifest), BACKBONE, tmp_path / "dense").manifest
    assert (made.target, made.precision, made.input) == (target, "int8", manifest.input)
    assert made.model.labels == manifest.model.labels
    assert made.model.preprocessing == manifest.model.preprocessing
    assert (made.model.stages, made.kept_outputs) == ((), ())
    assert made.quantization is not None
    # A dense network has no selection to leave out.
    assert made.quantization.high_precision == HIGH[:1]
    assert 0.9 < made.quantization.int8_macs < 1


# A name that timm does not have, and patches that tile no image of the bundle's size.
@pytest.mark.parametrize("name", ["deit_tiny", "vit_small_patch14_dinov2"])
def test_a_baseline_that_is_no_network_of_the_bundles_images_is_refused(
    name: str, micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    like = read_bundle(micro_bundles["onnx"])
    work = partial(dense_bundle, like, name, tmp_path / "dense")
    refusal_of(UsageError, work, f"--baseline {name}")
    assert not (tmp_path / "dense").exists()


@pytest.mark.slow
def test_a_profile_says_whether_selecting_pays(
    micro_bundles: dict[str, Path], tmp_path: Path
) -> None:
    kept, like = tmp_path / "dense", micro_bundles["openvino"]
    given = ("profile", like, "--duration", 0.1, "--min-samples", 20, "--warmup-ms", 10)
    first = run(*given, "--baseline", BACKBONE, "--baseline-out", kept)
    assert first.exit_code == 0, first.output
    # The baseline is a much larger network here.
    assert f"{like}: selection against {BACKBONE}: engine: pays x " in first.stdout
    assert "random weights" in first.stderr
    again = run(*given, "--baseline", kept)
    assert again.exit_code == 0, again.output
    assert "engine: pays x " in again.stdout
