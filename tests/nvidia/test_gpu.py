"""Real engines on a real GPU: built, compared with ONNX Runtime, and run for long."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gft_edge.bundle.manifest import EngineSettings
from gft_edge.bundle.specs import InputSpec
from gft_edge.bundle.store import read_bundle
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.datasets import read_split
from gft_edge.errors import GftEdgeError, UsageError
from gft_edge.export.pipeline import export
from gft_edge.export.request import CalibrationRequest, ExportRequest
from gft_edge.fidelity.compare import compare
from gft_edge.fidelity.verify import golden_tolerance, verify
from gft_edge.model.checkpoint import load_run
from gft_edge.nvidia.build import build_engine, builder_here
from gft_edge.nvidia.cuda import Cuda, open_cuda
from gft_edge.nvidia.engines import misfit
from gft_edge.runtime.classifier import Classifier, load_pixels
from tests.support.bundles import session_of
from tests.support.trt import Pixels, assert_same

pytestmark = pytest.mark.gpu

BATCH = 2
PRECISIONS = ("fp32", "fp16", "int8")
RUNS = 10_000
# What other programs may take meanwhile; a leak of 2 KiB a run is more.
NOISE_BYTES = 16 << 20


@pytest.fixture(scope="module")
def cuda() -> Cuda:
    """The GPU, or why there is none."""
    try:
        return open_cuda()
    except GftEdgeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def built(
    cuda: Cuda, tmp_path_factory: pytest.TempPathFactory, calm_run: Path, micro_pictures: Path
) -> Callable[[str], Path]:
    """Exports a precision with both of its engines, each once."""
    try:
        library, host = builder_here(EngineSettings())
    except UsageError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("gpu")

    def build(precision: str) -> Path:
        out = folder / precision
        if out.is_dir():
            return out
        spec, model = load_run(calm_run)
        images = {
            split: draw_image_set(read_split(micro_pictures, split, spec.labels), count=48, seed=0)
            for split in ("train", "val")
        }
        calibration = CalibrationRequest(images["train"]) if precision == "int8" else None
        request = ExportRequest(
            "trt",
            precision,
            InputSpec("uint8", BATCH),
            calibration=calibration,
            fidelity="strict",
        )
        export(model, spec, images["val"], request, out)
        for explain in (False, True):
            engine = build_engine(out, explain=explain).engine
            graph_sha256 = read_bundle(out).manifest.artifact.sha256
            reason = misfit(engine, graph_sha256, library, host)
            if library.flavor == "tensorrt-rtx" and reason is not None:
                pytest.skip(f"an engine of {library.name} {reason}")
            assert reason is None
        return out

    return build


@pytest.fixture(scope="module")
def bundle(built: Callable[[str], Path]) -> Path:
    """The bundle in FP16, what most devices run."""
    return built("fp16")


@pytest.fixture(scope="module")
def pictures(micro_pictures: Path, calm_run: Path) -> Pixels:
    """The images of the split val, as the network takes them."""
    spec, _ = load_run(calm_run)
    split = read_split(micro_pictures, "val", spec.labels)
    return np.stack([load_pixels(path, spec.preprocessing) for path in split.paths])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_engine_decides_and_keeps_as_onnx_runtime_does(
    precision: str, built: Callable[[str], Path], pictures: Pixels
) -> None:
    folder = built(precision)
    with (
        Classifier.load(folder, kept=True) as engine,
        Classifier.load(folder, "onnx", kept=True) as reference,
    ):
        outputs, expected = engine.outputs(pictures), reference.outputs(pictures)
        bound = golden_tolerance(engine.bundle.manifest, len(pictures))
    report = compare("gpu", expected, outputs, bound)
    assert report.failures == ()
    assert len(report.kept_overlap) == 3
    verified = verify(folder)
    assert (verified.verdict, verified.failures, verified.skipped) == ("pass", (), ())


def test_a_replayed_graph_gives_what_a_plain_launch_gives(bundle: Path, pictures: Pixels) -> None:
    plain, replaying = session_of(bundle), session_of(bundle, cuda_graph=True)
    for start in range(0, len(pictures), BATCH):
        images = pictures[start : start + BATCH]
        assert_same(replaying.run(images), plain.run(images))
    plain.close()
    replaying.close()


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_many_inferences_take_no_more_memory(
    cuda: Cuda, bundle: Path, pictures: Pixels, cuda_graph: bool
) -> None:
    session = session_of(bundle, kept=False, cuda_graph=cuda_graph)
    images = pictures[:BATCH]
    expected = session.run(images)
    for _ in range(100):
        session.run(images)
    before, _ = cuda.memory()
    for _ in range(RUNS):
        outputs = session.run(images)
    after, _ = cuda.memory()
    assert_same(outputs, expected)
    session.close()
    assert before - after < NOISE_BYTES


def test_opening_and_closing_gives_all_memory_back(
    cuda: Cuda, bundle: Path, pictures: Pixels
) -> None:
    def use() -> None:
        session = session_of(bundle, cuda_graph=True)
        session.run(pictures[:BATCH])
        session.close()

    # What the libraries load once.
    for _ in range(5):
        use()
    before, _ = cuda.memory()
    for _ in range(50):
        use()
    after, _ = cuda.memory()
    assert before - after < NOISE_BYTES


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_two_sessions_run_at_once(bundle: Path, pictures: Pixels, cuda_graph: bool) -> None:
    sessions = [session_of(bundle, cuda_graph=cuda_graph) for _ in range(2)]
    batches = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
    expected = [sessions[0].run(batch) for batch in batches]

    def work(number: int) -> None:
        for turn in range(500):
            place = (turn + 7 * number) % len(batches)
            assert_same(sessions[number % 2].run(batches[place]), expected[place])

    # Four threads: each session is shared by two.
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    for session in sessions:
        session.close()


def test_the_parts_of_a_run_are_about_the_whole(bundle: Path, pictures: Pixels) -> None:
    session = session_of(bundle, cuda_graph=True)
    images = pictures[:BATCH]
    for _ in range(100):
        session.run_split(images)
    shares = []
    for _ in range(200):
        started = time.perf_counter()
        _, split = session.run_split(images)
        wall_ms = (time.perf_counter() - started) * 1000
        parts = (split.host_to_device_ms, split.compute_ms, split.device_to_host_ms)
        assert min(parts) >= 0
        assert split.compute_ms > 0
        shares.append(sum(parts) / wall_ms)
    session.close()
    # The rest is Python's: images into the buffers, events, outputs out of them.
    assert 0.1 < statistics.median(shares) < 1.05


def test_only_a_gpu_that_shares_memory_is_not_copied_to(
    cuda: Cuda, bundle: Path, pictures: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []
    for name in ("copy_to_device", "copy_to_host"):
        copy = getattr(Cuda, name)

        def noted(self: Cuda, *inputs: int, copy: Any = copy) -> None:
            copied.append(inputs[2])
            copy(self, *inputs)

        monkeypatch.setattr(Cuda, name, noted)
    session = session_of(bundle)
    outputs = session.run(pictures[:BATCH])
    session.close()
    sizes = [pictures[:BATCH].nbytes, outputs[0].nbytes, *(kept.nbytes for kept in outputs[1:])]
    if cuda.gpu().integrated:
        assert copied == []
    else:
        # A byte a colour goes in. Logits may come back in FP16.
        assert copied[0] == sizes[0]
        assert len(copied) == len(sizes)
