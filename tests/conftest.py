"""The runs, bundles and reports that several rooms' tests read. Copy one before altering it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import networks, pictures
from tests.support.cli import run
from tests.support.fake_cudart import FakeCudart
from tests.support.fake_tensorrt import FakeTensorrt
from tests.support.paths import SHARED
from tests.support.studies import Shortcut

TARGETS = ("onnx", "openvino")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep compiled models below a folder of the tests, not in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def grocery() -> Path:
    """Real photographs, where the machine has them."""
    folder = SHARED / "data" / "grocery"
    if not folder.is_dir():
        pytest.skip("the grocery photographs are not on this machine")
    return folder


@pytest.fixture(scope="session")
def rtx() -> Any:
    """TensorRT for RTX GPUs, which parses and builds without a GPU."""
    reason = "tensorrt_rtx cannot be imported here: its wheels are for x86-64"
    return pytest.importorskip("tensorrt_rtx", reason=reason, exc_type=ImportError)


# Images.


@pytest.fixture(scope="session")
def micro_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a test split: blots and noise, three images a class, not square."""
    folder = tmp_path_factory.mktemp("micro_data")
    pictures.write_noisy(folder)
    return folder


@pytest.fixture(scope="session")
def micro_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth pictures in train/ to calibrate on, val/ to verify on and test/ to keep apart."""
    folder = tmp_path_factory.mktemp("micro_pictures")
    pictures.write_smooth(folder)
    return folder


@pytest.fixture(scope="session")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that differ in hue, to train on in seconds; val has two of them."""
    folder = tmp_path_factory.mktemp("coloured")
    pictures.write_coloured(folder)
    return folder


# Runs.


@pytest.fixture(scope="session")
def converted_once() -> Iterator[None]:
    """From here on a network is converted to ONNX once, whatever targets it is exported for."""
    with pytest.MonkeyPatch.context() as patch:
        networks.convert_once(patch)
        yield


@pytest.fixture(scope="session")
def micro_run(
    tmp_path_factory: pytest.TempPathFactory, micro_data: Path, converted_once: None
) -> Path:
    """The run folder of a 4-block GFT at 64 px with three live stages and seeded random weights."""
    folder = tmp_path_factory.mktemp("micro_run")
    networks.save_micro_network(folder, micro_data, "test", spread=0.15)
    return folder


@pytest.fixture(scope="session")
def calm_run(
    tmp_path_factory: pytest.TempPathFactory, micro_pictures: Path, converted_once: None
) -> Path:
    """A run like micro_run that rounding disturbs no more than a trained network."""
    folder = tmp_path_factory.mktemp("calm_run")
    networks.save_calm_network(folder, micro_pictures)
    return folder


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, coloured: Path) -> Path:
    """A run trained on the coloured pictures for three epochs: history, last state and gradients."""
    from tests.support.training import training

    run = tmp_path_factory.mktemp("trained_run") / "run"
    training(run, coloured, log_gradients=(1, 3))()
    return run


# Bundles.


@pytest.fixture(scope="session")
def micro_bundles(
    tmp_path_factory: pytest.TempPathFactory, micro_run: Path, micro_data: Path
) -> dict[str, Path]:
    """Target -> the FP32 bundle that the micro run exports to."""
    from gft_edge.export.request import ExportRequest

    folder = tmp_path_factory.mktemp("micro_bundles")
    return {
        target: networks.export_run(micro_run, micro_data, folder / target, ExportRequest(target))
        for target in TARGETS
    }


@pytest.fixture(scope="session")
def trt_bundle(tmp_path_factory: pytest.TempPathFactory, micro_run: Path, micro_data: Path) -> Path:
    """The micro run exported for TensorRT in FP32, one image at a time, without an engine."""
    from gft_edge.export.request import ExportRequest

    out = tmp_path_factory.mktemp("trt") / "bundle"
    return networks.export_run(micro_run, micro_data, out, ExportRequest("tensorrt"))


# Measurements.


@pytest.fixture(scope="session")
def profile_file(
    tmp_path_factory: pytest.TempPathFactory, micro_bundles: dict[str, Path], micro_data: Path
) -> Path:
    """The JSON of both micro bundles profiled together; what was printed lies beside it, as .txt."""
    file = tmp_path_factory.mktemp("profile") / "both.json"
    result = run(
        "profile", *micro_bundles.values(), "--photos", micro_data / "test", "--out", file,
        "--duration", 0.3, "--min-samples", 20, "--warmup-ms", 20,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    file.with_suffix(".txt").write_text(result.output)
    return file


@pytest.fixture(scope="session")
def profile_data(profile_file: Path) -> dict[str, Any]:
    """The content of that JSON."""
    content: dict[str, Any] = json.loads(profile_file.read_text())
    return content


@pytest.fixture
def altered(
    profile_data: dict[str, Any], tmp_path: Path
) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """That JSON again in a file of its own, after a change."""

    def write(change: Callable[[dict[str, Any]], object]) -> Path:
        content = copy.deepcopy(profile_data)
        change(content)
        path = tmp_path / "altered.json"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def shortcut(
    micro_bundles: dict[str, Path], profile_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Shortcut:
    """Studies that copy the micro bundles where they would export, and measure nothing."""
    return Shortcut(micro_bundles, profile_file).use(monkeypatch)


@pytest.fixture(scope="session")
def micro_benchmark(
    tmp_path_factory: pytest.TempPathFactory,
    micro_run: Path,
    micro_data: Path,
    micro_bundles: dict[str, Path],
    profile_file: Path,
) -> Path:
    """The folder of a benchmark of the micro run in FP32, done, and FP16, failed; nothing exported."""
    out = tmp_path_factory.mktemp("benchmark") / "out"
    with pytest.MonkeyPatch.context() as patch:
        Shortcut(micro_bundles, profile_file).use(patch)
        result = run(
            "benchmark", micro_run, "--data", micro_data, "--out", out,
            "--targets", "onnx,openvino", "--precisions", "fp32,fp16",
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    (out / ".printed.txt").write_text(result.output)
    return out


# A GPU's doubles.


@pytest.fixture
def fake_cudart() -> FakeCudart:
    """A CUDA runtime over host memory, fresh; its file says what it can do."""
    return FakeCudart()


@pytest.fixture
def fake_tensorrt(fake_cudart: FakeCudart) -> FakeTensorrt:
    """A TensorRT that computes in that runtime's memory; its file says what it can do."""
    return FakeTensorrt(fake_cudart)
