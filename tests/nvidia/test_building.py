"""What TensorRT does while it builds: progress, an end on request, and reasons when it fails."""

from __future__ import annotations

import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gft_edge.bundle.manifest import EngineSettings
from gft_edge.bundle.store import read_bundle
from gft_edge.errors import PipelineError
from gft_edge.nvidia import build as build_room
from gft_edge.nvidia.build import build_engine
from gft_edge.nvidia.log import LogReader
from gft_edge.nvidia.watch import monitor_of
from tests.support.bundles import assert_untouched, files_of
from tests.support.refusals import refusal_of

QUICK = EngineSettings(builder_optimization_level=0, workspace_gib=2)

pytestmark = pytest.mark.usefixtures("no_gpu")


# What the user sees meanwhile.


def test_progress_never_falls_and_reaches_the_total_once(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_room, "available_bytes", lambda: 100 * 2**20)
    seen: list[tuple[str, int, int]] = []
    said: list[str] = []
    build_engine(bundle, QUICK, progress=lambda *step: seen.append(step), say=said.append)
    counts = [done for _, done, _ in seen]
    assert len(counts) > 100
    assert counts == sorted(counts)
    assert counts[0] < 100
    assert {total for _, _, total in seen} == {1000}
    assert counts.count(1000) == 1
    assert seen[-1] == ("build engine", 1000, 1000)
    # One task to the bar: what changes stands behind two spaces.
    assert {text.partition("  ")[0] for text, _, _ in seen} == {"build engine"}
    # Memory that does not suffice is said, and the bound on the workspace.
    (memory,) = said
    assert "100 MiB are free: close other programs" in memory
    assert "2 GiB" in memory


def test_phases_fill_no_more_than_their_parents_step_and_strange_ones_do_no_harm() -> None:
    """Phases in the order that TensorRT might give them: nested, unannounced, without steps."""
    counts: list[int] = []
    module = types.SimpleNamespace(IProgressMonitor=type("IProgressMonitor", (), {}))
    monitor = monitor_of(module, lambda _, done, __: counts.append(done))
    monitor.phase_start("build", None, 4)
    for number in range(4):
        monitor.phase_start("inner", "build", 10)
        for step in range(10):
            assert monitor.step_complete("inner", step)
        assert counts[-1] <= 250 * (number + 1)
        monitor.phase_finish("inner")
        monitor.step_complete("build", number)
        assert counts[-1] == min(250 * (number + 1), 999)
    monitor.phase_finish("build")
    assert monitor.step_complete("unknown", 0)
    monitor.phase_finish("unknown")
    monitor.phase_start("empty", "unknown", 0)
    assert monitor.step_complete("empty", 7)
    assert counts == sorted(counts)


# What ends it.


def test_what_progress_raises_ends_the_build(
    bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files_of(bundle)

    def progress(text: str, done: int, total: int) -> None:
        if done > 300:
            raise KeyboardInterrupt("stop")

    with pytest.raises(KeyboardInterrupt, match="stop"):
        build_engine(bundle, progress=progress)
    assert_untouched(bundle, before)
    # TensorRT's own account of it would stand in the middle of the bar.
    assert capfd.readouterr() == ("", "")


# The callback slows the build down, so that a signal meets it under way on any machine.
SLOW_BUILD = """
import signal, sys, time
from pathlib import Path
from gft_edge.nvidia.build import build_engine

# A shell starts what runs in its background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

def progress(text, done, total):
    if done > 100:
        print("under way", flush=True)
        time.sleep(0.05)

build_engine(Path(sys.argv[1]), progress=progress)
print("built")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_build_leaves_the_bundle_as_it_was(
    number: signal.Signals, bundle: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    before = files_of(bundle)
    process = start("-c", SLOW_BUILD, bundle)
    assert process.stdout is not None
    assert process.stdout.readline() == "under way\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "built" not in out
    assert_untouched(bundle, before)


# What fails, and TensorRT's timings.


@pytest.mark.parametrize(
    ("reason", "advice"),
    [("Requested size was 3221225472, OutOfMemory (no further information)", "swap"),
     ("insufficient workspace", "--workspace"),
     ("it gives no reason", "report")],
)  # fmt: skip
def test_a_build_that_fails_gives_the_reason_and_what_to_do(
    reason: str, advice: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(bundle)
    monkeypatch.setattr(build_room, "watched", lambda *_: None)
    monkeypatch.setattr(LogReader, "first_error", lambda log, otherwise: reason)
    refusal_of(PipelineError, lambda: build_engine(bundle), "tensorrt-rtx", reason, advice)
    assert_untouched(bundle, before)


@pytest.mark.slow
@pytest.mark.usefixtures("posing")
@pytest.mark.filterwarnings("ignore:.*Timing cache operations:DeprecationWarning")
def test_a_timing_cache_of_the_users_is_read_and_written(bundle: Path, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    said: list[str] = []
    engine = build_engine(bundle, QUICK, timing_cache=cache, say=said.append).engine
    assert engine.timing_cache is not None
    assert cache.read_bytes() == (bundle / engine.timing_cache).read_bytes()
    assert build_engine(bundle, QUICK, timing_cache=cache, fresh=True, say=said.append).made
    assert not [line for line in said if "timing anew" in line]


# The device: a Jetson's own Python has numpy and TensorRT.

DEVICE = """
import sys
blocked = (
    "click", "rich", "PIL", "torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript",
    "onnxsim", "openvino", "nncf", "sklearn", "scipy", "safetensors", "matplotlib", "tensorrt",
)
sys.modules.update(dict.fromkeys(blocked))
import runpy
import gft_edge.runtime.backends.trt
runpy.run_module("gft_edge.nvidia", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "status", "file"),
    [
        (("--workspace", "1"), 0, "model.engine"),
        (("--explain",), 0, "explain.engine"),
        (("--workspace", "0"), 2, ""),
    ],
)
def test_numpy_and_tensorrt_alone_build_from_the_command_line(
    options: tuple[str, ...],
    status: int,
    file: str,
    bundle: Path,
    start: Callable[..., subprocess.Popen[Any]],
) -> None:
    process = start("-W", "error", "-c", DEVICE, bundle, *options)
    out, problems = process.communicate(timeout=600)
    assert process.returncode == status, problems
    assert out.strip().endswith(file)
    manifest = read_bundle(bundle).manifest
    if status:
        assert problems.startswith("Error: --workspace is 0")
        assert manifest.engines == ()
    else:
        kept = manifest.kept_outputs if "--explain" in options else ()
        assert [engine.outputs for engine in manifest.engines] == [("logits", *kept)]
