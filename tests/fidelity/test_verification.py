"""verify passes what an export wrote, and fails what has changed since, saying which check."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gft_edge.bundle.store import read_bundle, read_manifest, write_manifest
from gft_edge.datasets import Split, read_split
from gft_edge.errors import BundleError
from gft_edge.fidelity.compare import FIDELITIES
from gft_edge.fidelity.verify import (
    CHUNK_IMAGES,
    golden_tolerance,
    split_outputs,
    verify,
)
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.golden import read_golden
from gft_edge.runtime.outputs import Outputs
from tests.support.bundles import Change, alter_head, sign
from tests.support.refusals import refusal_of


@pytest.fixture(scope="module")
def split(micro_data: Path, micro_bundles: dict[str, Path]) -> Split:
    """The images of the micro data, in the bundle's classes."""
    labels = read_bundle(micro_bundles["onnx"]).manifest.model.labels
    return read_split(micro_data, "test", labels)


@pytest.fixture
def bundle(tmp_path: Path, micro_bundles: dict[str, Path]) -> Path:
    """A copy of the ONNX bundle to damage."""
    return Path(shutil.copytree(micro_bundles["onnx"], tmp_path / "bundle"))


def alter_weights(bundle: Path, change: Change) -> None:
    """Change the classifier's weights, and sign the file."""
    alter_head(bundle / "model.onnx", change)
    sign(bundle, "model.onnx")


def alter_golden(bundle: Path, **changes: npt.NDArray[Any] | None) -> None:
    """Replace arrays of the golden file, or take them out, and sign the file."""
    with np.load(bundle / "golden/golden.npz") as arrays:
        content = {**arrays, **changes}
    kept: dict[str, Any] = {name: value for name, value in content.items() if value is not None}
    np.savez(bundle / "golden/golden.npz", **kept)
    sign(bundle, "golden/golden.npz")


@pytest.mark.parametrize(
    ("target", "backend"), [("onnx", None), ("openvino", None), ("onnx", "openvino")]
)
def test_an_untouched_bundle_passes(
    target: str, backend: str | None, micro_bundles: dict[str, Path]
) -> None:
    report = verify(micro_bundles[target], backend)
    assert report.verdict == "pass"
    assert report.failures == ()
    assert report.images == 8
    assert report.golden is not None
    assert report.golden.kept_overlap == (1, 1, 1)
    assert report.golden.max_abs < 1e-4
    # None was asked for.
    assert (report.top1, report.reference_top1, report.top1_agreement) == (None, None, None)
    assert (report.cosine, report.max_abs, report.kept_overlap) == (None, None, None)


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_with_data_the_accuracy_is_counted(
    target: str, micro_bundles: dict[str, Path], split: Split
) -> None:
    seen: list[int] = []
    report = verify(micro_bundles[target], split=split, advance=seen.append)
    with Classifier.load(micro_bundles[target]) as classifier:
        best = [answer[0].index for answer in classifier.predict(split.paths, top_k=1)]
    expected = sum(ours == target for ours, target in zip(best, split.targets, strict=True)) / 12
    assert report.verdict == "pass"
    assert report.top1 == pytest.approx(expected)
    assert report.images == sum(seen) == 12
    assert report.reference_top1 is None


def test_a_reference_that_decides_otherwise_fails_the_bundle(
    micro_bundles: dict[str, Path], split: Split
) -> None:
    with Classifier.load(micro_bundles["onnx"], kept=True) as classifier:

        def opposite(pixels: npt.NDArray[np.uint8]) -> Outputs:
            outputs = classifier.outputs(pixels)
            return Outputs(-outputs.logits, outputs.kept)

        report = verify(micro_bundles["onnx"], split=split, reference=opposite)
    assert report.verdict == "fail"
    assert report.top1_agreement == 0
    assert report.cosine == pytest.approx(-1)
    assert report.failures[0] == "against the reference: top-1 agreement 0.0000 is under 1"
    assert report.golden is not None
    assert report.golden.verdict == "pass"


def test_a_damaged_file_is_a_failed_verdict_with_the_reason(bundle: Path) -> None:
    with (bundle / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff" * 8)
    report = verify(bundle)
    assert report.verdict == "fail"
    assert report.failures == (
        f"{bundle / 'model.onnx'} is not the file the manifest describes (sha256 differs): "
        "copy the bundle again or export it anew",
    )
    assert (report.images, report.golden, report.top1) == (0, None, None)


def test_altered_weights_with_a_fresh_sha256_fail_the_golden_outputs(bundle: Path) -> None:
    alter_weights(bundle, lambda weights: weights[::-1])
    report = verify(bundle)
    assert report.verdict == "fail"
    assert all(failure.startswith("golden outputs: ") for failure in report.failures)
    assert any("top-1 agreement" in failure for failure in report.failures)
    alter_weights(bundle, lambda weights: weights * np.nan)
    assert "golden outputs: the logits hold NaN or infinity" in verify(bundle).failures


def test_golden_patches_that_differ_are_named_by_stage(bundle: Path) -> None:
    _, expected = read_golden(read_bundle(bundle))
    other = np.tile(np.arange(16), (8, 1))
    assert not np.array_equal(other, expected.kept[2])
    alter_golden(bundle, kept_3=other)
    (failure,) = verify(bundle).failures
    assert failure.startswith("golden outputs: stage 3 keeps 0.")


def test_a_golden_file_that_is_none_is_a_failed_verdict(bundle: Path) -> None:
    for content in (b"", b"text", b"PK\x03\x04 cut"):
        (bundle / "golden/golden.npz").write_bytes(content)
        sign(bundle, "golden/golden.npz")
        report = verify(bundle)
        assert report.verdict == "fail"
        assert "golden.npz" in report.failures[0]
        assert "\n" not in report.failures[0]


@pytest.mark.parametrize(
    ("array", "content"),
    [
        ("kept_2", None),
        ("images", np.zeros((8, 32, 32, 3), np.uint8)),
        ("logits", np.zeros((8, 7), np.float32)),
    ],
)
def test_a_golden_array_that_does_not_fit_is_a_failed_verdict_that_names_it(
    bundle: Path, array: str, content: npt.NDArray[Any] | None
) -> None:
    alter_golden(bundle, **{array: content})
    report = verify(bundle)
    assert report.verdict == "fail"
    assert array in report.failures[0]


def test_a_folder_that_is_no_bundle_has_no_verdict(tmp_path: Path) -> None:
    refusal_of(BundleError, lambda: verify(tmp_path), "manifest")
    refusal_of(BundleError, lambda: verify(tmp_path / "nowhere"), "nowhere")


def test_the_golden_bound_leaves_room_for_one_patch(micro_bundles: dict[str, Path]) -> None:
    bundle = read_bundle(micro_bundles["onnx"])
    keep = bundle.manifest.model.stages[-1].keep
    reportless = dataclasses.replace(bundle.manifest, reports=())
    # One of the fewest kept patches exchanged in one image, however many were recorded; not two.
    for images in (1, 3, len(read_golden(bundle)[0])):
        bound = golden_tolerance(bundle.manifest, images)
        assert bound.top1_agreement == 1
        assert bound.kept_overlap[0] <= (images - 1 + (keep - 1) / (keep + 1)) / images
        assert bound.kept_overlap[0] > (images - 1 + (keep - 2) / (keep + 2)) / images
        assert golden_tolerance(reportless, images).cosine == bound.cosine


def test_a_split_longer_than_a_chunk_keeps_its_order(
    micro_bundles: dict[str, Path], split: Split
) -> None:
    repeats = CHUNK_IMAGES // len(split.paths) + 2
    longer = dataclasses.replace(split, paths=split.paths * repeats)
    with Classifier.load(micro_bundles["openvino"], kept=True) as classifier:
        once, _ = split_outputs(classifier, split)
        several, none = split_outputs(classifier, longer)
    assert none is None
    assert len(several) == repeats * 12 > CHUNK_IMAGES
    np.testing.assert_allclose(several.logits, np.tile(once.logits, (repeats, 1)), atol=1e-5)


def test_a_reference_is_asked_once_more_for_each_change_of_the_images(
    micro_bundles: dict[str, Path], split: Split
) -> None:
    with Classifier.load(micro_bundles["onnx"], kept=True) as reference:
        report = verify(
            micro_bundles["openvino"],
            None,
            split,
            reference.outputs,
            changes=("shift", "brightness"),
        )
    assert [floor.change for floor in report.noise_floors] == ["shift", "brightness"]
    shifted, brighter = report.noise_floors
    assert shifted.kept_overlap[0] < 1
    # Two grey levels of a hundred move less than a pixel does.
    assert shifted.cosine < brighter.cosine < 1
    assert report.kept_overlap == (1, 1, 1)
    assert report.noise_floor is None


def test_one_image_is_compared_and_not_judged(bundle: Path, split: Split) -> None:
    """An interval of one image is none; several images are judged."""
    manifest = read_manifest(bundle)
    last = dataclasses.replace(manifest.reports[-1], tolerance=FIDELITIES["photo"]["int8"])
    reports = (*manifest.reports[:-1], last)
    write_manifest(bundle, dataclasses.replace(manifest, reports=reports))
    with Classifier.load(bundle, kept=True) as classifier:

        def other(pixels: npt.NDArray[np.uint8]) -> Outputs:
            """A reference that looks at what lies in the mirror, and does not mind JPEG."""
            return classifier.outputs(np.ascontiguousarray(pixels // 64 * 64)[:, :, ::-1])

        def first(images: int) -> Split:
            some = slice(0, images)
            return dataclasses.replace(split, paths=split.paths[some], targets=split.targets[some])

        one, several = (verify(bundle, None, first(images), other) for images in (1, 12))
    assert one.verdict == "pass"
    assert any("1 image" in reason for reason in one.skipped)
    assert one.top1_agreement is not None
    assert several.verdict == "fail"
    assert not any("image" in reason for reason in several.skipped)
