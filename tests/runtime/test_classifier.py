"""One call classifies any kind of image, from any thread, in whatever batch the graph was built for."""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gft_edge import Classifier, Prediction
from gft_edge.bundle.store import read_bundle
from gft_edge.datasets import read_split
from gft_edge.errors import ImageError, UsageError
from gft_edge.runtime.engine_cache import keep_entry, read_entry
from gft_edge.runtime.image_inputs import ImageLike
from gft_edge.runtime.preprocess import open_rgb
from tests.support.bundles import sign
from tests.support.refusals import refusal_of

TARGETS = ["onnx", "openvino"]
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def images(micro_data: Path) -> list[Path]:
    """Twelve images of four classes."""
    return list(read_split(micro_data, "test").paths)


@pytest.fixture(scope="module", params=TARGETS)
def classifier(
    request: pytest.FixtureRequest, micro_bundles: dict[str, Path]
) -> Iterator[Classifier]:
    """On each engine in turn."""
    with Classifier.load(micro_bundles[request.param]) as loaded:
        yield loaded


def assert_same(ours: list[Prediction], theirs: list[Prediction]) -> None:
    assert [p.label for p in ours] == [p.label for p in theirs]
    np.testing.assert_allclose(
        [p.probability for p in ours], [p.probability for p in theirs], atol=1e-4
    )


def test_predictions_are_labelled_sorted_and_sum_to_one(
    classifier: Classifier, images: list[Path]
) -> None:
    predictions = classifier.predict(images[0])
    assert {p.label for p in predictions} == set(classifier.labels)
    assert all(classifier.labels[p.index] == p.label for p in predictions)
    probabilities = [p.probability for p in predictions]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-9)
    assert type(probabilities[0]) is float


def test_a_path_a_string_a_pillow_image_and_a_frame_are_the_same_image(
    classifier: Classifier, images: list[Path]
) -> None:
    expected = classifier.predict(images[0])
    image = open_rgb(images[0])
    assert classifier.predict(str(images[0])) == expected
    assert classifier.predict(image) == expected
    assert classifier.predict(np.asarray(image)) == expected
    assert classifier.predict(image.convert("RGBA")) == expected


def test_whatever_holds_an_image_file_is_that_image(
    classifier: Classifier, images: list[Path]
) -> None:
    expected, content = classifier.predict(images[0]), images[0].read_bytes()
    read_already = io.BytesIO(content)
    read_already.read()

    class Answer:
        """A server's answer, which cannot be sought."""

        def read(self) -> bytes:
            return content

    (entry,) = [each for each in os.scandir(images[0].parent) if each.name == images[0].name]
    with (
        images[0].open("rb") as file,
        images[0].open("rb", buffering=0) as raw,
        mmap(file.fileno(), 0, access=ACCESS_READ) as mapped,
    ):
        holders: tuple[Any, ...] = (
            content, bytearray(content), memoryview(content), io.BytesIO(content), read_already, file, raw,
            entry, mapped, Answer(),
        )  # fmt: skip
        for image in holders:
            assert classifier.predict(image) == expected
            assert classifier.predict([image]) == [expected]


def test_anything_that_yields_images_in_order_is_a_list_of_them(
    classifier: Classifier, images: list[Path]
) -> None:
    expected = classifier.predict(images[:3])
    for several in (
        (path for path in images[:3]),
        map(str, images[:3]),
        iter(images[:3]),
        dict.fromkeys(images[:3]).keys(),
    ):
        assert classifier.predict(several) == expected
    assert classifier.predict(iter(())) == []


def test_what_is_no_image_is_named_with_what_to_give(
    classifier: Classifier, images: list[Path]
) -> None:
    import torch

    class Upload:
        """An upload of a web framework."""

        async def read(self) -> bytes:
            return b""

    text = images[0].open(encoding="latin-1")
    closed = images[0].open("rb")
    closed.close()
    cases: list[tuple[Any, str]] = [
        (torch.zeros(3, 8, 8), "permute"),
        (torch.zeros(2, 3, 8, 8), "permute"),
        ({"image": images[0]}, "dict"),
        ({images[0]}, "set"),
        (3, "int"),
        (None, "NoneType"),
        (object(), "object"),
        (text, "'rb'"),
        (closed, "closed"),
        (Upload(), "await"),
    ]
    with text:
        for given, word in cases:
            refusal_of(ImageError, partial(classifier.predict, given), word)
            line = refusal_of(ImageError, partial(classifier.predict, [images[0], given]), word)
            assert line.startswith("image 2 of 2: ")


def test_a_list_gives_one_answer_an_image_in_order(
    classifier: Classifier, images: list[Path]
) -> None:
    mixed: list[ImageLike] = [images[0], open_rgb(images[4]), np.asarray(open_rgb(images[8]))]
    answers = classifier.predict(mixed)
    assert len(answers) == 3
    for answer, path in zip(answers, (images[0], images[4], images[8]), strict=True):
        assert_same(answer, classifier.predict(path))
    assert classifier.predict((images[0],)) == [classifier.predict(images[0])]
    assert classifier.predict([]) == []
    # Answers that are all alike would be in any order.
    assert len({answer[0].label for answer in classifier.predict(images)}) > 1


@pytest.mark.parametrize(("top_k", "expected"), [(1, 1), (3, 3), (4, 4), (99, 4)])
def test_top_k_counts_the_answers_up_to_the_classes(
    classifier: Classifier, images: list[Path], top_k: int, expected: int
) -> None:
    assert classifier.predict(images[0], top_k) == classifier.predict(images[0])[:expected]


def test_no_answer_at_all_cannot_be_asked_for(classifier: Classifier, images: list[Path]) -> None:
    refusal_of(UsageError, lambda: classifier.predict(images[0], 0), "top_k", "0")


def test_one_broken_image_among_several_is_named(
    classifier: Classifier, images: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").touch()
    mixed = [images[0], tmp_path / "broken.jpg"]
    refusal_of(ImageError, lambda: classifier.predict(mixed), "broken.jpg", "image 2 of 2")
    unnamed: list[ImageLike] = [images[0].read_bytes(), np.zeros((4, 4), np.uint8), b"no image"]
    refusal_of(ImageError, lambda: classifier.predict(unnamed), "image 3 of 3", "8 bytes")


def test_a_damaged_pillow_image_is_refused_like_a_damaged_file(
    classifier: Classifier, images: list[Path], tmp_path: Path
) -> None:
    content = images[0].read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "a.png") as lazy, pytest.raises(ImageError):
        classifier.predict(lazy)


def test_eight_threads_get_the_answers_of_one(classifier: Classifier, images: list[Path]) -> None:
    expected = [classifier.predict(path) for path in images]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(classifier.predict, images * 8))
    for number, answer in enumerate(answers):
        assert_same(answer, expected[number % len(images)])


def test_outputs_are_those_of_preprocessed_pixels(
    micro_bundles: dict[str, Path], images: list[Path]
) -> None:
    from gft_edge.runtime.preprocess import resize_and_crop

    seen: list[int] = []
    with Classifier.load(micro_bundles["onnx"], kept=True) as loaded:
        spec = loaded.bundle.manifest.model.preprocessing
        pixels = np.stack([resize_and_crop(open_rgb(path), spec) for path in images[:3]])
        outputs = loaded.outputs(pixels, seen.append)
        np.testing.assert_array_equal(outputs.logits, loaded.logits(images[:3]))
    assert [stage.shape for stage in outputs.kept] == [(3, 48), (3, 32), (3, 16)]
    assert seen == [1, 1, 1]


@pytest.mark.parametrize("shape", [(1, 64, 64, 3), (1, 32, 32, 3), (64, 64, 3), (1, 3, 64, 64)])
def test_pixels_of_another_shape_or_type_are_refused(
    classifier: Classifier, shape: tuple[int, ...]
) -> None:
    # Floats from 0 to 1 would be truncated to black by an engine that converts in silence.
    pixels: Any = np.ones(shape, np.float32 if shape == (1, 64, 64, 3) else np.uint8)
    refusal_of(UsageError, lambda: classifier.outputs(pixels), "uint8 (images, 64, 64, 3)")


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_static_batch_is_padded_and_the_padding_never_seen(
    batch_of_three: Path, micro_bundles: dict[str, Path], images: list[Path], count: int
) -> None:
    with (
        Classifier.load(micro_bundles["onnx"], kept=True) as one_by_one,
        Classifier.load(batch_of_three, "onnx", kept=True) as loaded,
    ):
        assert loaded.bundle.manifest.input.batch == 3
        pixels = np.stack([loaded.prepare(path) for path in images[:count]])
        outputs, expected = loaded.outputs(pixels), one_by_one.outputs(pixels)
        assert len(loaded.predict(images[:count])) == count
    np.testing.assert_allclose(outputs.logits, expected.logits, atol=1e-4)
    for stage, kept in zip(outputs.kept, expected.kept, strict=True):
        np.testing.assert_array_equal(stage, kept)


def test_a_closed_classifier_says_so(micro_bundles: dict[str, Path], images: list[Path]) -> None:
    with Classifier.load(micro_bundles["onnx"]) as loaded:
        loaded.predict(images[0])
    loaded.close()
    refusal_of(UsageError, lambda: loaded.predict(images[0]), "closed")


@pytest.mark.parametrize("threads", [0, -1, 1_000_000])
def test_a_number_of_threads_that_cannot_be_is_refused(
    micro_bundles: dict[str, Path], threads: int
) -> None:
    bundle = micro_bundles["onnx"]
    loading = partial(Classifier.load, bundle, threads=threads)
    refusal_of(UsageError, loading, "threads", f"{threads:,}".replace(",", ""))


def test_an_onnx_bundle_runs_on_openvino_when_asked(
    micro_bundles: dict[str, Path], images: list[Path]
) -> None:
    with (
        Classifier.load(micro_bundles["onnx"], backend="ov") as ours,
        Classifier.load(micro_bundles["onnx"]) as theirs,
    ):
        assert_same(ours.predict(images[0]), theirs.predict(images[0]))


def test_an_openvino_bundle_does_not_run_on_onnx_runtime_and_says_so(
    micro_bundles: dict[str, Path],
) -> None:
    loading = partial(Classifier.load, micro_bundles["openvino"], backend="onnx")
    refusal_of(UsageError, loading, "--target onnx", "model.xml")


def test_the_parts_of_a_timed_prediction_sum_to_it(
    micro_bundles: dict[str, Path], images: list[Path]
) -> None:
    with Classifier.load(micro_bundles["onnx"]) as classifier:
        predictions, timing = classifier.predict_timed([images[0].read_bytes()])
        assert predictions == [classifier.predict(images[0])]
        refusal_of(UsageError, lambda: classifier.predict_timed(images[:2]), "2 images", "of 1")
    assert min(dataclasses.astuple(timing)) >= 0
    assert timing.total_ms == sum(dataclasses.astuple(timing))
    # An engine on the CPU copies to no device.
    assert timing.host_to_device_ms == timing.device_to_host_ms == 0
    assert min(timing.decode_ms, timing.preprocess_ms, timing.compute_ms) > 0


def test_prepared_pixels_are_predicted_like_the_image_they_come_from(
    micro_bundles: dict[str, Path], images: list[Path]
) -> None:
    with Classifier.load(micro_bundles["openvino"]) as classifier:
        pixels = classifier.prepare(images[0])
        assert classifier.predict_pixels(pixels[None]) == [classifier.predict(images[0])]
        refusal_of(UsageError, lambda: classifier.predict_pixels(pixels[None], top_k=0), "top_k")


def test_a_session_says_what_its_engine_was_told(micro_bundles: dict[str, Path]) -> None:
    with Classifier.load(micro_bundles["openvino"], threads=1) as classifier:
        flags = classifier.session.flags()
    assert "INFERENCE_PRECISION_HINT=float32" in flags
    assert "PERFORMANCE_HINT=LATENCY" in flags
    assert "INFERENCE_NUM_THREADS=1" in flags
    with Classifier.load(micro_bundles["onnx"], threads=1) as classifier:
        assert classifier.session.flags() == (
            "providers=CPUExecutionProvider",
            "intra_op_num_threads=1",
        )


def test_a_list_is_classified_alike_under_either_hint(
    micro_bundles: dict[str, Path], images: list[Path]
) -> None:
    folder = micro_bundles["openvino"]
    with (
        Classifier.load(folder, kept=True) as latency,
        Classifier.load(folder, kept=True, hint="throughput") as throughput,
    ):
        assert "PERFORMANCE_HINT=THROUGHPUT" in throughput.session.flags()
        for ours, theirs in zip(throughput.predict(images), latency.predict(images), strict=True):
            assert_same(ours, theirs)
        pixels = np.stack([latency.prepare(path) for path in images])
        seen: list[int] = []
        outputs, expected = throughput.outputs(pixels, seen.append), latency.outputs(pixels)
        assert_same(throughput.predict(images[0]), latency.predict(images[0]))
    assert sum(seen) == len(images)
    np.testing.assert_allclose(outputs.logits, expected.logits, atol=1e-5)
    for stage, kept in zip(outputs.kept, expected.kept, strict=True):
        np.testing.assert_array_equal(stage, kept)


@pytest.mark.parametrize("backend", ["onnx", "openvino", "tensorrt"])
def test_an_option_of_one_engine_is_refused_for_another_and_an_unknown_hint_for_all(
    micro_bundles: dict[str, Path], tmp_path: Path, backend: str
) -> None:
    loading = partial(Classifier.load, micro_bundles["onnx"], backend)
    if backend != "openvino":
        refusal_of(UsageError, partial(loading, hint="throughput"), "throughput", backend)
        refusal_of(UsageError, partial(loading, cache_dir=tmp_path), "cache_dir", backend)
    if backend != "tensorrt":
        refusal_of(UsageError, partial(loading, cuda_graph=True), "cuda_graph", backend)
    refusal_of(UsageError, partial(loading, hint="speed"), "'speed'", "latency", "throughput")


def cached_answer(
    folder: Path, cache: Path, image: Path, hit: bool, **options: Any
) -> list[Prediction]:
    """Load through the cache, check where it came from, predict."""
    with Classifier.load(folder, cache_dir=cache, **options) as classifier:
        session: Any = classifier.session
        assert (session._open().mapping is not None) == hit
        return classifier.predict(image)


@pytest.mark.slow
def test_a_model_is_compiled_once_and_then_read_from_the_cache(
    micro_bundles: dict[str, Path], images: list[Path], tmp_path: Path
) -> None:
    folder, cache = micro_bundles["openvino"], tmp_path / "new" / "cache"
    with Classifier.load(folder) as plain:
        expected = plain.predict(images[0])
    assert cached_answer(folder, cache, images[0], hit=False) == expected
    assert cached_answer(folder, cache, images[0], hit=True) == expected
    assert cache.stat().st_mode & 0o777 == 0o700
    # A copy elsewhere is the same model; other threads are another compilation.
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert cached_answer(copy, cache, images[0], hit=True) == expected
    assert_same(cached_answer(folder, cache, images[0], hit=False, threads=1), expected)
    assert_same(cached_answer(folder, cache, images[0], hit=False, hint="throughput"), expected)
    assert_same(cached_answer(folder, cache, images[0], hit=False, kept=True), expected)
    assert len(list(cache.iterdir())) == 4


def replaced_weights(source: Path, out: Path) -> Path:
    """Another export of the same structure: the graph byte for byte alike, half of the weights off."""

    shutil.copytree(source, out)
    weights = np.fromfile(out / "model.bin", dtype=np.uint8)
    values = weights[: weights.size // 4 * 4].view(np.float32)
    # The last floats are the head's: its classes swap.
    values[-4:] = values[-4:][::-1] + np.array([9, -9, 9, -9], np.float32)
    weights.tofile(out / "model.bin")
    sign(out, "model.bin")
    return out


def test_a_bundle_replaced_at_its_path_never_runs_the_model_that_was_there(
    micro_bundles: dict[str, Path], images: list[Path], tmp_path: Path
) -> None:
    path, cache = tmp_path / "bundle", tmp_path / "cache"
    other = replaced_weights(micro_bundles["openvino"], tmp_path / "other")
    for source in (micro_bundles["openvino"], other, micro_bundles["openvino"]):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(source, path)
        # Path, size and time are alike, and so is model.xml.
        for file in path.rglob("*"):
            os.utime(file, (1_700_000_000, 1_700_000_000))
        with Classifier.load(source) as plain:
            expected = plain.predict(images[0])
        with Classifier.load(path, cache_dir=cache) as cached:
            assert cached.predict(images[0]) == expected
    assert (path / "model.xml").read_bytes() == (other / "model.xml").read_bytes()
    assert len(list(cache.iterdir())) == 2


def test_a_bundle_replaced_while_it_loads_is_not_kept_under_the_old_ones_name(
    micro_bundles: dict[str, Path], images: list[Path], tmp_path: Path
) -> None:
    first, cache = micro_bundles["openvino"], tmp_path / "cache"
    path = Path(shutil.copytree(first, tmp_path / "bundle"))
    opened = read_bundle(path)
    shutil.rmtree(path)
    replaced_weights(first, path)
    with Classifier.load(opened, cache_dir=cache):
        assert list(cache.iterdir()) == []
    with Classifier.load(first) as plain:
        assert cached_answer(first, cache, images[0], hit=False) == plain.predict(images[0])


@pytest.mark.parametrize(
    "damage",
    ["altered", "folder", *(slow(each) for each in ("truncated", "empty", "noise", "cut"))],
)
def test_a_damaged_cache_is_compiled_anew(
    micro_bundles: dict[str, Path], images: list[Path], tmp_path: Path, damage: str
) -> None:
    folder, cache = micro_bundles["openvino"], tmp_path / "cache"
    expected = cached_answer(folder, cache, images[0], hit=False)
    (entry,) = cache.iterdir()
    content = bytearray(entry.read_bytes())
    altered = content.copy()
    # In the weights, where OpenVINO itself does not look.
    altered[len(content) // 2] ^= 0x40
    if damage == "folder":
        entry.unlink()
        (entry / "inside").mkdir(parents=True)
    else:
        damaged: dict[str, bytes] = {
            "truncated": bytes(content[: len(content) // 2]),
            "empty": b"",
            "altered": bytes(altered),
            "noise": np.random.default_rng(0).bytes(len(content)),
            "cut": bytes(4),
        }
        entry.write_bytes(damaged[damage])
    assert cached_answer(folder, cache, images[0], hit=False) == expected
    if damage != "folder":
        assert cached_answer(folder, cache, images[0], hit=True) == expected


def test_what_another_openvino_compiled_is_not_read(
    micro_bundles: dict[str, Path],
    images: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import openvino

    folder, cache = micro_bundles["openvino"], tmp_path / "cache"
    cached_answer(folder, cache, images[0], hit=False)
    monkeypatch.setattr(openvino, "__version__", "2031.0.0-1-next")
    cached_answer(folder, cache, images[0], hit=False)
    cached_answer(folder, cache, images[0], hit=True)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("{tmp}/file", "File exists"),
        ("{tmp}/shared", "other users may write to it"),
        slow("{tmp}/file/below", "Not a directory"),
        slow("/proc/nowhere", "No such file or directory"),
        slow("{tmp}/nul\0", "null"),
    ],
)
def test_a_cache_that_cannot_be_does_not_stop_a_prediction_and_is_remarked_once(
    place: str,
    reason: str,
    micro_bundles: dict[str, Path],
    images: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, cache = micro_bundles["openvino"], Path(place.format(tmp=tmp_path))
    with Classifier.load(folder) as plain:
        expected = plain.predict(images[0])
    (tmp_path / "file").touch()
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert cached_answer(folder, cache, images[0], hit=False) == expected
    (record,) = caplog.records
    assert str(cache) in record.getMessage()
    assert reason in record.getMessage()
    assert list(shared.iterdir()) == []


@pytest.mark.slow
def test_a_full_disk_does_not_stop_a_prediction(
    micro_bundles: dict[str, Path], images: list[Path], tmp_path: Path
) -> None:
    code = """
import resource, signal, sys
from gft_edge import Classifier
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
print(Classifier.load(sys.argv[1], cache_dir=sys.argv[2]).predict(sys.argv[3])[0].label)
"""
    folder, cache = micro_bundles["openvino"], tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-c", code, folder, cache, images[0]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with Classifier.load(folder) as plain:
        assert done.stdout.strip() == plain.predict(images[0])[0].label
    (remark,) = done.stderr.splitlines()
    assert remark == f"the compiled model is not kept in {cache}: File too large"
    assert list(cache.iterdir()) == []


def test_the_cache_forgets_what_was_longest_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Room for eight of five bytes and their check.
    monkeypatch.setattr("gft_edge.runtime.engine_cache.MOST_BYTES", 8 * (5 + 4))
    other = tmp_path / "gft-edge.txt"
    other.touch()
    keys = [f"{number:064x}" for number in range(10)]
    for number, key in enumerate(keys[:-1]):
        keep_entry(tmp_path, key, b"model")
        for path in tmp_path.glob(f"*{key}*"):
            os.utime(path, (number, number))
    assert read_entry(tmp_path, keys[0]) is None
    assert read_entry(tmp_path, keys[1]) is not None, "reading makes it the newest"
    keep_entry(tmp_path, keys[-1], b"model")
    kept = [key for key in keys if read_entry(tmp_path, key) is not None]
    assert kept == [keys[1], *keys[3:]]
    assert other.exists()
