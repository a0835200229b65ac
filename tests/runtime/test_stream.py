"""Classifier.stream: the frames of videos through one engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from gft_edge import Classifier
from gft_edge.bundle.specs import InputSpec, Prediction
from gft_edge.errors import GftEdgeError, SourceError, UsageError
from gft_edge.runtime import stream
from gft_edge.runtime.sources import is_live
from gft_edge.runtime.sources import video as sources_video
from gft_edge.runtime.sources.frames import Source
from gft_edge.runtime.sources.video import opened_file
from gft_edge.runtime.stream import Smoothing
from tests.runtime.scripted import Scripted
from tests.support.networks import export_run
from tests.support.refusals import refusal_of
from tests.support.videos import write_video


@pytest.fixture(scope="module")
def classifier(micro_bundles: dict[str, Path]) -> Iterator[Classifier]:
    with Classifier.load(micro_bundles["onnx"], kept=True, spin=False) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def photos(micro_data: Path) -> list[Image.Image]:
    found = sorted((micro_data / "test").rglob("0.png"))
    return [Image.open(path).convert("RGB").resize((96, 64)) for path in found] * 3


@pytest.fixture(scope="module")
def video(photos: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "a.mkv"
    return write_video(path, photos, codec="ffv1", pix_fmt="bgr0")


def test_a_frame_gets_the_predictions_and_patches_of_its_picture(
    classifier: Classifier, video: Path, photos: list[Image.Image]
) -> None:
    seen = [*classifier.stream(video, top_k=2)]
    assert [each.predictions for each in seen] == classifier.predict(photos, top_k=2)
    assert [each.frame for each in seen] == [*range(12)]
    assert [each.time_s for each in seen] == pytest.approx([number / 10 for number in range(12)])
    assert {(each.source, each.dropped, each.latency_ms) for each in seen} == {
        (str(video), 0, None)
    }
    stages = classifier.bundle.manifest.model.stages
    for each, photo in zip(seen, photos, strict=True):
        assert each.image.tobytes() == photo.tobytes()
        assert [len(kept) for kept in each.kept] == [stage.keep for stage in stages]
        assert {*each.kept[1]} < {*each.kept[0]}


def test_fewer_frames_are_labelled_when_asked_for(classifier: Classifier, video: Path) -> None:
    assert [seen.frame for seen in classifier.stream(video, every=5)] == [0, 5, 10]
    assert [seen.frame for seen in classifier.stream(video, fps=2)] == [0, 5, 10]


def test_probabilities_are_means_over_the_seconds_asked_for(
    classifier: Classifier, video: Path
) -> None:
    alone = [seen.predictions for seen in classifier.stream(video, top_k=4)]
    smooth = [seen.predictions for seen in classifier.stream(video, top_k=1, smooth_s=0.25)]
    for number, found in enumerate(smooth):
        rows = alone[max(0, number - 2) : number + 1]
        means = {
            p.label: sum(q.probability for row in rows for q in row if q.label == p.label)
            / len(rows)
            for p in alone[0]
        }
        assert len(found) == 1
        assert found[0].label == max(means, key=lambda label: means[label])
        assert found[0].probability == pytest.approx(means[found[0].label], abs=1e-6)


def test_a_smoothing_begins_anew_where_time_goes_back() -> None:
    smoothing = Smoothing(10)
    one, other = ([Prediction("a", 0, p), Prediction("b", 1, 1 - p)] for p in (1.0, 0.25))
    smoothing.mean(5, one)
    assert smoothing.mean(6, other)[0] == Prediction("a", 0, 0.625)
    assert smoothing.mean(1, other)[0] == Prediction("b", 1, 0.75)


def test_files_come_one_after_another_and_one_that_fails_leaves_the_others(
    classifier: Classifier, video: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_text("none")
    given = [tmp_path / "bad.mp4", video, tmp_path / "gone.mp4", video]
    failures = list[tuple[str, GftEdgeError]]()
    seen = [*classifier.stream(given, failed=lambda name, error: failures.append((name, error)))]
    assert [each.frame for each in seen] == [*range(12)] * 2
    assert [name for name, _ in failures] == [str(tmp_path / "bad.mp4"), str(tmp_path / "gone.mp4")]
    refusal_of(SourceError, lambda: [*classifier.stream(given)], "bad.mp4")


def test_a_stream_that_is_left_ends_its_thread(classifier: Classifier, video: Path) -> None:
    import threading

    stream = classifier.stream(video)
    next(stream)
    stream.close()
    until = time.monotonic() + 5
    while any(thread.name == str(video) for thread in threading.enumerate()):
        assert time.monotonic() < until


def test_settings_out_of_range_are_refused_before_anything_is_read(classifier: Classifier) -> None:
    for settings, word in (
        ({"top_k": 0}, "top_k is 0"),
        ({"every": 0}, "every is 0"),
        ({"fps": -1.0}, "fps is -1"),
        ({"smooth_s": -1.0}, "smooth_s is -1"),
    ):
        refusal_of(UsageError, lambda s=settings: classifier.stream("gone.mp4", **s), word)  # type: ignore[misc]


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_every_engine_labels_a_video(
    target: str, micro_bundles: dict[str, Path], video: Path
) -> None:
    with Classifier.load(micro_bundles[target], spin=False) as loaded:
        assert len([*loaded.stream(video)]) == 12


@pytest.mark.slow
def test_a_static_batch_takes_as_many_frames_as_are_there(
    micro_run: Path, micro_data: Path, video: Path, classifier: Classifier, tmp_path: Path
) -> None:
    from gft_edge.export.request import ExportRequest

    request = ExportRequest("onnx", input=InputSpec("uint8", 5))
    bundle = export_run(micro_run, micro_data, tmp_path / "bundle", request)
    with Classifier.load(bundle, spin=False) as batched:
        found = [*batched.stream(video, top_k=1)]
    expected = [*classifier.stream(video, top_k=1)]
    assert [each.frame for each in found] == [*range(12)]
    for one, other in zip(found, expected, strict=True):
        (ours,), (theirs,) = one.predictions, other.predictions
        assert ours.label == theirs.label
        assert ours.probability == pytest.approx(theirs.probability, abs=1e-4)


def test_a_frame_that_cannot_be_prepared_ends_its_source_alone(
    classifier: Classifier, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's is prepared by the thread that reads, a live one's when its turn comes."""

    def opened(text: str, say: object) -> Source:
        bad = text == "camera:0"
        return Scripted(3, bad=bad, name=text) if is_live(text) else opened_file(text)

    monkeypatch.setattr(stream, "opened", opened)
    monkeypatch.setattr(sources_video, "MAX_PIXELS", 1000)
    failures = list[str]()
    given = [str(video), "camera:0", "camera:1"]
    seen = [*classifier.stream(given, failed=lambda name, error: failures.append(name))]
    assert {each.source for each in seen} == {"camera:1"}
    assert sorted(failures) == sorted([str(video), "camera:0"])
