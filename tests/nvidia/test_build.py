"""Engines are built into a bundle, kept while they are fresh, and never at the bundle's expense."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from click.testing import CliRunner, Result

from gft_edge.bundle import store as bundle_room
from gft_edge.bundle.locks import LOCK_FILE, locked
from gft_edge.bundle.manifest import EngineSettings
from gft_edge.bundle.onnx_bytes import graph_output
from gft_edge.bundle.store import read_bundle, sha256_of, write_manifest
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.cli import main
from gft_edge.datasets import read_split
from gft_edge.errors import BundleError, CudaError, LockedError, PipelineError, UsageError
from gft_edge.export.recipe import ExportRequest, export
from gft_edge.model.checkpoint import load_run
from gft_edge.nvidia import build as build_room
from gft_edge.nvidia.build import build_engine, check_settings
from gft_edge.nvidia.cuda import Gpu
from gft_edge.nvidia.library import builder_library, parse
from gft_edge.nvidia.log import LogReader
from gft_edge.nvidia.watch import monitor_of
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from tests.support.fake_cudart import FakeCudart

QUICK = EngineSettings(builder_optimization_level=0)


@pytest.fixture(scope="module")
def rtx() -> Any:
    """TensorRT for RTX GPUs, which builds without a GPU."""
    reason = "tensorrt_rtx cannot be imported here: its wheels are for x86-64"
    return pytest.importorskip("tensorrt_rtx", reason=reason, exc_type=ImportError)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, rtx: Any) -> None:
    """TensorRT-RTX alone, and no GPU, wherever the tests run."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setitem(sys.modules, "tensorrt", None)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, micro_run: Path, micro_data: Path) -> Path:
    """The micro run exported for TensorRT, without an engine."""
    spec, model = load_run(micro_run)
    images = draw_image_set(read_split(micro_data, "test", spec.labels), count=12, seed=0)
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    export(model, spec, images, ExportRequest("tensorrt"), folder)
    return folder


@pytest.fixture(scope="module")
def with_engine(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle with its engine."""
    folder = tmp_path_factory.mktemp("with_engine") / "bundle"
    shutil.copytree(exported, folder)
    assert build_engine(folder).made
    return folder


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy to build in."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.fixture
def built(with_engine: Path, tmp_path: Path) -> Path:
    """A copy that has its engine."""
    return Path(shutil.copytree(with_engine, tmp_path / "built"))


def files_of(folder: Path) -> dict[str, str]:
    """Every file of a bundle but its lock, by sha256."""
    return {
        str(path.relative_to(folder)): sha256_of(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != LOCK_FILE
    }


def is_free(folder: Path) -> bool:
    """Whether nobody holds the bundle's lock."""
    try:
        with locked(folder):
            return True
    except LockedError:
        return False


def run(*arguments: object) -> Result:
    """gft-edge with those arguments; an exception that is not the user's to mend is the test's."""
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)


def refused(result: Result, code: int = 2) -> str:
    """The one line that a command gave, having failed as it should."""
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert "Traceback" not in result.output
    assert lines[-1].startswith("Error: ")
    return lines[-1].removeprefix("Error: ")


# What is built, and what a second build does.


def test_an_engine_is_built_recorded_and_sealed(
    with_engine: Path, exported: Path, rtx: Any
) -> None:
    manifest = read_bundle(with_engine).manifest
    (engine,) = manifest.engines
    fingerprint = f"tensorrt-rtx-{rtx.__version__}-sm80-sm86-sm89-sm120+"
    assert engine.path == f"engines/{fingerprint}/model.engine"
    plan = with_engine / engine.path
    assert engine.sha256 == sha256_of(plan)
    assert b"trt" in plan.read_bytes()[:8]
    assert engine.graph_sha256 == manifest.artifact.sha256
    assert (engine.outputs, engine.flavor) == (("logits",), "tensorrt-rtx")
    assert (engine.gpu, engine.cuda, engine.timing_cache) == (None, None, None)
    assert engine.settings == EngineSettings("tensorrt-rtx")
    assert 0 < engine.build_seconds < 600
    assert manifest.seal != read_bundle(exported).manifest.seal
    # Nothing else has changed, and nothing else is left behind.
    before, after = files_of(exported), files_of(with_engine)
    assert {name for name in after if before.get(name) != after[name]} == {
        "manifest.json", engine.path,
    }  # fmt: skip


def test_a_fresh_engine_is_not_built_again(built: Path) -> None:
    before = files_of(built)
    second = build_engine(built)
    assert (second.made, second.engine) == (False, read_bundle(built).manifest.engines[0])
    assert files_of(built) == before


def test_force_builds_it_again(built: Path) -> None:
    assert build_engine(built, force=True).made
    assert len(read_bundle(built).manifest.engines) == 1


def test_other_settings_build_again_and_replace(built: Path) -> None:
    assert build_engine(built, QUICK).made
    (engine,) = read_bundle(built).manifest.engines
    assert engine.settings == dataclasses.replace(QUICK, flavor="tensorrt-rtx")
    assert not build_engine(built, QUICK).made
    # A plain build takes what is there; other settings have to be asked for.
    assert not build_engine(built).made
    assert build_engine(built, EngineSettings()).made


def test_the_settings_are_the_bundles_own_unless_others_are_given(bundle: Path) -> None:
    manifest = dataclasses.replace(read_bundle(bundle).manifest, engine_settings=QUICK)
    write_manifest(bundle, manifest)
    assert build_engine(bundle).engine.settings.builder_optimization_level == 0
    assert not build_engine(bundle, QUICK).made


def test_an_option_of_a_build_changes_nothing_else_of_the_bundles_settings(bundle: Path) -> None:
    write_manifest(bundle, dataclasses.replace(read_bundle(bundle).manifest, engine_settings=QUICK))
    result = run("build", bundle, "--workspace", "1")
    assert result.exit_code == 0, result.stderr
    (engine,) = read_bundle(bundle).manifest.engines
    assert engine.settings == dataclasses.replace(QUICK, flavor="tensorrt-rtx", workspace_gib=1)


def test_the_builders_flags_are_recorded(built: Path) -> None:
    (engine,) = read_bundle(built).manifest.engines
    assert engine.flags == ("STRONGLY_TYPED", "REQUIRE_USER_ALLOCATION")


def test_an_engine_whose_folder_was_deleted_is_forgotten_by_the_next_build(built: Path) -> None:
    shutil.rmtree(built / "engines")
    built_again = build_engine(built, explain=True)
    assert read_bundle(built).manifest.engines == (built_again.engine,)


def test_a_build_ahead_of_time_asks_nothing_of_cuda(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses() -> None:
        raise CudaError("cudaGetDeviceCount", "cudaErrorSystemNotReady", 802, "not yet initialized")

    monkeypatch.setattr(build_room, "open_cuda", refuses)
    built = build_engine(bundle)
    assert (built.made, built.loads_here) == (True, False)


def test_an_engine_that_does_not_load_on_the_gpu_at_hand_is_not_verified_next(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, fake_cudart: FakeCudart
) -> None:
    """TensorRT-RTX on a Jetson's 8.7, which it has no engines for."""
    monkeypatch.setattr(build_room, "open_cuda", fake_cudart.cuda)
    result = run("build", bundle)
    assert result.exit_code == 0, result.stderr
    assert "GPUs of compute capability 8.0, 8.6, 8.9, 12.0+" in result.stdout
    assert result.stdout.splitlines()[-1] == f"next: gft-edge inspect --engine {bundle}"


def test_numpy_and_tensorrt_alone_build_from_the_command_line(bundle: Path) -> None:
    block = (
        "import sys; sys.modules.update(dict.fromkeys(('click', 'rich', 'PIL', 'onnx', 'torch')))"
    )
    code = f"{block}\nimport runpy; runpy.run_module('gft_edge.nvidia', run_name='__main__')"
    for arguments, status, out in (
        (["--workspace", "1"], 0, "model.engine"),
        (["--explain"], 0, "explain.engine"),
        (["--workspace", "0"], 2, ""),
    ):
        command = [sys.executable, "-c", code, str(bundle), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert done.stdout.strip().endswith(out)
    assert done.stderr == "Error: --workspace is 0: give GiB above 0, for example 2\n"
    assert len(read_bundle(bundle).manifest.engines) == 2


@pytest.mark.parametrize("damage", ["altered", "truncated", "empty", "missing"])
def test_a_damaged_engine_is_built_again_and_the_bundle_still_reads(
    damage: str, built: Path
) -> None:
    (engine,) = read_bundle(built).manifest.engines
    plan = (built / engine.path).read_bytes()
    broken = {
        "altered": plan[:500] + bytes([plan[500] ^ 1]) + plan[501:],
        "truncated": plan[: len(plan) // 2],
        "empty": b"",
    }
    if damage == "missing":
        (built / engine.path).unlink()
    else:
        (built / engine.path).write_bytes(broken[damage])
    read_bundle(built)
    mended = build_engine(built)
    assert mended.made
    assert sha256_of(built / engine.path) == mended.engine.sha256
    assert not build_engine(built).made


def test_another_graph_makes_the_engine_stale(built: Path) -> None:
    bundle = read_bundle(built)
    graph = onnx.load(bundle.artifact_path)
    graph.doc_string = "the same network, exported another time"
    onnx.save(graph, bundle.artifact_path)
    sha256 = sha256_of(bundle.artifact_path)
    artifact = dataclasses.replace(bundle.manifest.artifact, sha256=sha256)
    files = {**bundle.manifest.files, artifact.path: sha256}
    write_manifest(built, dataclasses.replace(bundle.manifest, artifact=artifact, files=files))
    again = build_engine(built)
    assert (again.made, again.engine.graph_sha256) == (True, sha256)


def test_explain_makes_a_second_engine_that_returns_the_kept_patches(built: Path) -> None:
    first = read_bundle(built).manifest.engines[0]
    second = build_engine(built, explain=True).engine
    manifest = read_bundle(built).manifest
    assert manifest.engines == (first, second)
    assert second.outputs == ("logits", *manifest.kept_outputs)
    assert second.path == first.path.replace("model.engine", "explain.engine")
    assert second.sha256 != first.sha256
    assert not build_engine(built).made
    assert not build_engine(built, explain=True).made


def test_the_graph_of_explain_has_the_logits_and_the_patches_of_each_stage(
    exported: Path, rtx: Any
) -> None:
    bundle = read_bundle(exported)
    kept = bundle.manifest.kept_outputs
    graph = bundle.artifact_path.read_bytes() + b"".join(map(graph_output, kept))
    network, _, _ = parse(builder_library("tensorrt-rtx"), graph, bundle.artifact_path)
    outputs = [network.get_output(number) for number in range(network.num_outputs)]
    assert [output.name for output in outputs] == ["logits", *kept]
    assert [tuple(output.shape) for output in outputs] == [(1, 4), (1, 48), (1, 32), (1, 16)]
    assert {output.dtype for output in outputs[1:]} == {rtx.int64}


def test_engines_of_another_machine_stay(built: Path) -> None:
    bundle = read_bundle(built)
    (here,) = bundle.manifest.engines
    other = dataclasses.replace(
        here, path="engines/tensorrt-10.3.0-linux-aarch64-orin-8mp-sm87/model.engine",
        flavor="tensorrt", version="10.3.0", platform="linux-aarch64", gpu="Orin",
    )  # fmt: skip
    (built / other.path).parent.mkdir(parents=True)
    shutil.copyfile(built / here.path, built / other.path)
    write_manifest(built, dataclasses.replace(bundle.manifest, engines=(other, here)))
    again = build_engine(built, force=True).engine
    assert read_bundle(built).manifest.engines == (other, again)
    assert sha256_of(built / other.path) == other.sha256


def test_an_engine_can_be_added_to_a_copy_elsewhere(built: Path, tmp_path: Path) -> None:
    moved = built.rename(tmp_path / "a place with spaces")
    assert not build_engine(moved).made


# What the user sees meanwhile.


def test_progress_never_falls_and_reaches_the_total_once(bundle: Path) -> None:
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
    (memory,) = (line for line in said if "memory" in line)
    assert memory.startswith("the build takes about ")
    assert " MiB are free" in memory


class Monitored:
    """Counts that a monitor reports for phases in the order that TensorRT might give them."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        module = types.SimpleNamespace(IProgressMonitor=type("IProgressMonitor", (), {}))
        self.monitor = monitor_of(module, lambda _, done, __: self.counts.append(done))


def test_a_phase_fills_no_more_than_its_parents_step() -> None:
    seen = Monitored()
    monitor = seen.monitor
    monitor.phase_start("build", None, 4)
    for number in range(4):
        monitor.phase_start("inner", "build", 10)
        for step in range(10):
            assert monitor.step_complete("inner", step)
        assert seen.counts[-1] <= 250 * (number + 1)
        monitor.phase_finish("inner")
        monitor.step_complete("build", number)
        assert seen.counts[-1] == min(250 * (number + 1), 999)
    monitor.phase_finish("build")
    assert seen.counts == sorted(seen.counts)


def test_several_phases_within_one_step_do_not_turn_progress_back() -> None:
    """TensorRT-RTX: `Optimizing graph`, then `Computing profile costs`, in a phase of one step."""
    seen = Monitored()
    monitor = seen.monitor
    monitor.phase_start("build", None, 2)
    for name in ("optimize", "cost", "more"):
        monitor.phase_start(name, "build", 3)
        for step in range(3):
            monitor.step_complete(name, step)
        monitor.phase_finish(name)
    assert seen.counts == sorted(set(seen.counts))
    assert seen.counts[-1] < 500
    monitor.step_complete("build", 0)
    assert seen.counts[-1] == 500


def test_phases_that_nobody_announced_or_that_have_no_steps_do_no_harm() -> None:
    seen = Monitored()
    monitor = seen.monitor
    assert monitor.step_complete("unknown", 0)
    monitor.phase_finish("unknown")
    monitor.phase_start("empty", "unknown", 0)
    assert monitor.step_complete("empty", 0)
    assert monitor.step_complete("empty", 7)
    assert seen.counts == [999, 999]


def test_memory_that_does_not_suffice_is_said(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_room, "_available_bytes", lambda: 100 * 2**20)
    said: list[str] = []
    build_engine(bundle, dataclasses.replace(QUICK, workspace_gib=2), say=said.append)
    assert said[0].endswith(
        " MiB of memory, 100 MiB are free: close other programs, or add swap; "
        "on a GPU also a workspace of up to 2 GiB"
    )


# What fails leaves the bundle as it was.


@pytest.mark.parametrize("kind", [KeyboardInterrupt, BrokenPipeError, ValueError])
def test_what_progress_raises_ends_the_build(
    kind: type[BaseException], bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files_of(bundle)

    def progress(text: str, done: int, total: int) -> None:
        if done > 300:
            raise kind("stop")

    with pytest.raises(kind, match="stop"):
        build_engine(bundle, progress=progress)
    assert files_of(bundle) == before
    assert not (bundle / "engines").exists()
    assert is_free(bundle)
    # TensorRT's own account of it would stand in the middle of the bar.
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_leaves_the_bundle_readable(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(built)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    result = run("build", built, "--force")
    assert "model.engine: No space left on device" in refused(result, 2)
    monkeypatch.undo()
    assert files_of(built) == before
    read_bundle(built)
    assert is_free(built)


def test_a_disk_that_fills_between_engine_and_manifest_costs_one_more_build(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.replace

    def full(source: str, target: Path) -> None:
        if target.name == "manifest.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(BundleError, match="No space left"):
            build_engine(bundle, QUICK)
    assert read_bundle(bundle).manifest.engines == ()
    assert not [name for name in files_of(bundle) if "partial" in name]
    assert build_engine(bundle, QUICK).made


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_bundle_that_cannot_be_written_is_refused_before_the_build(
    code: int, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Path.open

    def read_only(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if self.is_relative_to(bundle) and "w" in mode:
            raise OSError(code, os.strerror(code), str(self))
        return plain(self, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", read_only)
    assert refused(run("build", bundle)) == (
        f"{bundle} cannot be written ({os.strerror(code)}): copy it to a folder that can"
    )


def test_a_disk_without_locks_is_not_taken_for_another_build(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert refused(run("build", bundle)) == (
        f"{bundle} cannot be locked ({os.strerror(errno.ENOLCK)}): put it on a local disk"
    )


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root"
)
def test_a_folder_without_write_permission_is_refused(bundle: Path) -> None:
    bundle.chmod(0o555)
    try:
        assert "cannot be written (Permission denied)" in refused(run("build", bundle))
    finally:
        bundle.chmod(0o755)


def test_a_file_in_place_of_the_engines_folder_is_named(bundle: Path) -> None:
    (bundle / "engines").write_text("in the way")
    before = files_of(bundle)
    assert str(bundle / "engines") in refused(run("build", bundle), 1)
    assert files_of(bundle) == before


def test_a_bundle_that_is_exported_anew_meanwhile_keeps_its_manifest(bundle: Path) -> None:
    """An export takes no lock: it puts a whole folder in place of the old one."""
    manifest = dataclasses.replace(read_bundle(bundle).manifest, tools={"torch": "another"})

    def progress(text: str, done: int, total: int) -> None:
        if done == total:
            write_manifest(bundle, manifest)

    with pytest.raises(BundleError, match="was replaced while its engine was built: build it aga"):
        build_engine(bundle, QUICK, progress=progress)
    content = read_bundle(bundle).manifest
    assert (content.tools, content.engines) == ({"torch": "another"}, ())
    assert not (bundle / "engines").exists()


@pytest.mark.parametrize("op", ["Nonsense", "Transpose"])
def test_a_graph_that_the_parser_refuses_is_named_by_node(op: str, bundle: Path) -> None:
    content = read_bundle(bundle)
    graph = onnx.load(content.artifact_path)
    node = next(node for node in graph.graph.node if node.op_type == "TopK")
    node.op_type = op
    onnx.save(graph, content.artifact_path)
    sha256 = sha256_of(content.artifact_path)
    artifact = dataclasses.replace(content.manifest.artifact, sha256=sha256)
    files = {**content.manifest.files, artifact.path: sha256}
    write_manifest(bundle, dataclasses.replace(content.manifest, artifact=artifact, files=files))
    before = files_of(bundle)
    line = refused(run("build", bundle), 1)
    assert line.startswith(f"TensorRT's parser refuses node {node.name!r}: ")
    assert files_of(bundle) == before
    assert is_free(bundle)


# Two processes.

HOLD = "import sys, time\nfrom pathlib import Path\nfrom gft_edge.bundle.locks import locked\n"
HOLD += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Python processes of one line of output at least, and ends those that are left."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_build_is_refused_and_a_killed_one_leaves_no_lock(
    bundle: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = start("-c", HOLD, bundle)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    before = files_of(bundle)
    assert refused(run("build", bundle)) == (
        f"{bundle} is being written by another gft-edge: wait until it is done"
    )
    assert files_of(bundle) == before
    holder.kill()
    holder.wait()
    assert build_engine(bundle, QUICK).made


def test_a_fresh_engine_is_found_while_another_build_runs(
    built: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = start("-c", HOLD, built)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert not build_engine(built).made


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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_build_leaves_the_bundle_as_it_was(
    number: signal.Signals, bundle: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    before = files_of(bundle)
    process = start("-c", SLOW_BUILD, bundle)
    assert process.stdout is not None
    assert process.stdout.readline() == "under way\n"
    asked = time.monotonic()
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert time.monotonic() - asked < 10
    assert process.returncode != 0
    assert "built" not in out
    assert files_of(bundle) == before
    assert not (bundle / "engines").exists()
    assert is_free(bundle)


# What cannot be built.


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_bundle_of_another_target_builds_no_engine(target: str, bundle: Path) -> None:
    write_manifest(bundle, dataclasses.replace(read_bundle(bundle).manifest, target=target))
    assert refused(run("build", bundle)) == (
        f"{bundle} is a bundle for {target}, which loads as it is: engines are built from bundles "
        "of --target tensorrt"
    )
    assert not (bundle / LOCK_FILE).exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--workspace", "0"), "--workspace is 0: give GiB above 0, for example 2"),
        (("--workspace", "-1"), "--workspace is -1: give GiB above 0, for example 2"),
        (("--workspace", "nan"), "--workspace is nan: give GiB above 0, for example 2"),
        (("--workspace", "inf"), "--workspace is inf: give GiB above 0, for example 2"),
        (("--builder-optimization-level", "6"),
         "--builder-optimization-level is 6: give 0 (quick) to 5 (thorough)"),
        (("--builder-optimization-level", "-1"),
         "--builder-optimization-level is -1: give 0 (quick) to 5 (thorough)"),
        (("--flavor", "tensorrt"),
         "TensorRT is not installed here: pip install 'gft-edge[tensorrt]'"),
        (("--version-compatible",),
         "{rtx}: has no version-compatible engines: leave --version-compatible out"),
        (("--hardware-compatibility-level", "ampere+"),
         "{rtx}: has no --hardware-compatibility-level ampere+: leave it out"),
        (("--timing-cache", "{tmp}/timing.cache"),
         "{rtx}: keeps no timing cache: leave --timing-cache out"),
        (("--timing-cache", "{tmp}/none/timing.cache"),
         "--timing-cache is {tmp}/none/timing.cache: give a file in a folder that is there"),
        (("--timing-cache", "{tmp}"), "--timing-cache is {tmp}: give a file in a folder that is"
         " there"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_built_are_refused_in_one_line(
    options: tuple[str, ...], reason: str, exported: Path, rtx: Any, tmp_path: Path
) -> None:
    names = {"rtx": f"tensorrt-rtx {rtx.__version__}", "tmp": tmp_path}
    given = [option.format(**names) for option in options]
    assert refused(run("build", exported, *given)) == reason.format(**names)
    assert read_bundle(exported).manifest.engines == ()


@pytest.mark.parametrize(
    "arguments",
    [(), ("--flavor", "cuda"), ("--builder-optimization-level", "fast"), ("--workspace", "much"),
     ("--hardware-compatibility-level", "all"), ("--int8",)],
)  # fmt: skip
def test_options_that_do_not_exist_are_refused(arguments: tuple[str, ...], exported: Path) -> None:
    given = (exported, *arguments) if arguments else ()
    refused(run("build", *given))


def test_what_is_no_bundle_is_refused(tmp_path: Path, micro_run: Path) -> None:
    assert refused(run("build", tmp_path / "nowhere")) == f"{tmp_path / 'nowhere'}: no such bundle"
    assert refused(run("build", micro_run)) == f"{micro_run} is no bundle: it has no manifest.json"


@pytest.mark.parametrize(
    "settings",
    [EngineSettings(workspace_gib=-1.0), EngineSettings(builder_optimization_level=9)],
)
def test_numbers_in_a_manifest_that_no_library_takes_are_refused(
    settings: EngineSettings, bundle: Path
) -> None:
    """Settings need not come from the command line."""
    write_manifest(
        bundle, dataclasses.replace(read_bundle(bundle).manifest, engine_settings=settings)
    )
    with pytest.raises(UsageError, match="give "):
        build_engine(bundle)
    with pytest.raises(UsageError, match="give "):
        build_engine(bundle, settings)


@pytest.mark.parametrize("gib", [0.001, 1, 1024])
def test_a_workspace_of_any_size_is_taken(gib: float) -> None:
    check_settings(EngineSettings(workspace_gib=gib))


def test_an_altered_manifest_builds_nothing(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"driver"', '"Driver"').replace("café", "cafe"))
    refused(run("build", bundle))
    assert not (bundle / "engines").exists()


# The command.


def test_build_prints_one_document_of_json(bundle: Path) -> None:
    for made in (True, False):
        result = run("build", bundle, "--json")
        content = json.loads(result.stdout)
        assert (result.exit_code, content["bundle"], content["made"]) == (0, str(bundle), made)
        (engine,) = json.loads((bundle / "manifest.json").read_text())["engines"]
        assert content["engine"] == engine


def test_build_ends_with_the_command_that_follows(built: Path) -> None:
    result = run("build", built)
    assert result.exit_code == 0
    # No GPU built it: there is nothing to verify here.
    assert result.stdout.splitlines()[-1] == f"next: gft-edge inspect --engine {built}"
    assert "not built again" in result.stderr
    assert "model.engine" in result.stdout


def test_build_says_what_it_takes_and_when_it_is_done(bundle: Path) -> None:
    result = run("build", bundle, "--builder-optimization-level", "0")
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("the build takes about ")]
    assert lines.count("build engine") == 1


# Export.


def exporting(run_folder: Path, data: Path, out: Path, *options: str) -> Result:
    return run(
        "export", run_folder, "--target", "tensorrt", "--data", data, "--split", "test",
        "--images", 12, "--out", out, *options,
    )  # fmt: skip


def test_export_builds_the_engine_where_it_can(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    result = exporting(micro_run, micro_data, out, "--builder-optimization-level", "0", "--json")
    assert result.exit_code == 0
    content = json.loads(result.stdout)
    manifest = read_bundle(out).manifest
    (engine,) = manifest.engines
    assert content["engine"]["path"] == engine.path
    assert content["engine"]["sha256"] == sha256_of(out / engine.path)
    # The bundle's settings are what was asked for, the engine's what was taken.
    assert (manifest.engine_settings, engine.settings.flavor) == (QUICK, "tensorrt-rtx")
    assert result.stderr.splitlines().count("build engine") == 1


def test_export_without_a_library_says_why_and_what_is_next(
    micro_run: Path, micro_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    out = tmp_path / "bundle"
    result = exporting(micro_run, micro_data, out)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == f"next: gft-edge build {out}"
    assert (
        f"{out} is ready for the device; no engine is built here: "
        "TensorRT is not installed here: pip install 'gft-edge[tensorrt]'"
    ) in result.stderr.splitlines()
    assert read_bundle(out).manifest.engines == ()


def test_export_for_another_machine_asks_of_this_one_no_more_than_the_graph(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    cache = tmp_path / "timing.cache"
    options = ("--version-compatible", "--timing-cache", str(cache), "--json")
    result = exporting(micro_run, micro_data, out, *options)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["engine"] is None
    assert "keeps no timing cache: leave --timing-cache out" in result.stderr
    assert read_bundle(out).manifest.engine_settings == EngineSettings(version_compatible=True)
    assert not cache.exists()


def test_options_of_an_engine_are_refused_for_a_target_without_one(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    for option in (("--timing-cache", str(tmp_path / "timing.cache")), ("--flavor", "tensorrt")):
        result = run(
            "export", micro_run, "--target", "onnx", "--data", micro_data, "--split", "test",
            "--out", tmp_path / "bundle", *option,
        )  # fmt: skip
        assert refused(result).startswith("onnx builds no engine: leave ")
        assert not (tmp_path / "bundle").exists()


# TensorRT itself, in whose place stands TensorRT-RTX: same calls, same graph.


@pytest.fixture
def posing(rtx: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with TensorRT 10.13 and a GPU, but for what they compute."""
    module = types.ModuleType("tensorrt")
    module.__dict__.update(vars(rtx), __version__="10.13.3.9")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    gpu = Gpu("NVIDIA GeForce RTX 4090", "8.9", False, 128)
    cuda = SimpleNamespace(gpu=lambda: gpu, runtime_version="12.8")
    monkeypatch.setattr(build_room, "open_cuda", lambda: cuda)
    return module


no_ops = pytest.mark.filterwarnings("ignore:.*Timing cache operations:DeprecationWarning")


@no_ops
@pytest.mark.usefixtures("posing")
def test_an_engine_of_tensorrt_names_the_gpu_it_is_bound_to(bundle: Path) -> None:
    built = build_engine(bundle, QUICK).engine
    folder = "engines/tensorrt-10.13.3.9-linux-x86_64-geforce-rtx-4090-128mp-sm89"
    assert (built.path, built.timing_cache) == (f"{folder}/model.engine", f"{folder}/timing.cache")
    assert (built.gpu, built.compute_capabilities) == ("NVIDIA GeForce RTX 4090", ("8.9",))
    assert (built.cuda, built.settings.flavor) == ("12.8", "tensorrt")
    assert (bundle / folder / "timing.cache").stat().st_size > 0
    assert [engine.path for engine in read_bundle(bundle).manifest.engines] == [built.path]


@no_ops
@pytest.mark.usefixtures("posing")
def test_engines_of_both_libraries_stand_side_by_side(built: Path) -> None:
    assert build_engine(built, QUICK).engine.flavor == "tensorrt"
    flavors = [engine.flavor for engine in read_bundle(built).manifest.engines]
    assert flavors == ["tensorrt-rtx", "tensorrt"]
    assert not build_engine(built, EngineSettings("tensorrt-rtx")).made


@no_ops
@pytest.mark.usefixtures("posing")
def test_a_timing_cache_of_the_users_is_read_and_written(bundle: Path, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    said: list[str] = []
    engine = build_engine(bundle, QUICK, timing_cache=cache, say=said.append).engine
    assert engine.timing_cache is not None
    assert cache.read_bytes() == (bundle / engine.timing_cache).read_bytes()
    assert build_engine(bundle, QUICK, timing_cache=cache, force=True, say=said.append).made
    assert not [line for line in said if "timing anew" in line]


@no_ops
@pytest.mark.usefixtures("posing")
def test_a_timing_cache_that_cannot_be_written_does_not_cost_the_engine(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, cache = bundle_room.write_whole, tmp_path / "timing.cache"

    def full(path: Path, content: bytes) -> None:
        if path == cache:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(path, content)

    monkeypatch.setattr(build_room, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        build_engine(bundle, QUICK, timing_cache=cache)
    assert not build_engine(bundle, QUICK).made


@pytest.mark.usefixtures("posing")
def test_on_a_jetson_there_is_no_hardware_compatibility(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gft_edge.nvidia.engines.l4t", lambda: "R36.4.0")
    line = refused(run("build", exported, "--hardware-compatibility-level", "ampere+"))
    assert line.startswith("tensorrt 10.13.3.9: builds for the Jetson at hand alone: leave ")


def test_tensorrt_without_a_gpu_gives_way_to_tensorrt_rtx(
    built: Path, posing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> Any:
        raise UsageError("no NVIDIA driver here")

    monkeypatch.setattr(build_room, "open_cuda", absent)
    assert not build_engine(built).made
    line = refused(run("build", built, "--flavor", "tensorrt"))
    assert line == "tensorrt 10.13.3.9: no NVIDIA driver here"


@pytest.mark.parametrize(
    ("reason", "advice"),
    [("Requested size was 3221225472, OutOfMemory (no further information)",
      "(close other programs, add swap, or give another --workspace)"),
     ("insufficient workspace", "(the scratch memory is too small, or give another --workspace)"),
     ("it gives no reason", "(report the line)")],
)  # fmt: skip
def test_a_build_that_fails_gives_the_reason_and_what_to_do(
    reason: str, advice: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, rtx: Any
) -> None:
    monkeypatch.setattr(build_room, "watched", lambda *_: None)
    monkeypatch.setattr(LogReader, "first_error", lambda log, otherwise: reason)
    with pytest.raises(PipelineError) as caught:
        build_engine(bundle)
    assert str(caught.value) == f"tensorrt-rtx {rtx.__version__} built no engine: {reason} {advice}"
    assert not (bundle / "engines").exists()


# The device: a Jetson's own Python has numpy and TensorRT.

DEVICE = """
import sys
blocked = (
    "click", "rich", "PIL", "torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript",
    "onnxsim", "openvino", "nncf", "sklearn", "scipy", "safetensors", "matplotlib", "tensorrt",
)
sys.modules.update(dict.fromkeys(blocked))
from pathlib import Path
import gft_edge.runtime.backends.trt
from gft_edge.nvidia.build import build_engine
from gft_edge.bundle.manifest import EngineSettings
built = build_engine(Path(sys.argv[1]), EngineSettings(builder_optimization_level=0), explain=True)
print(built.made, *built.engine.outputs)
"""


def test_an_engine_is_built_with_numpy_and_tensorrt_alone(
    bundle: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start("-W", "error", "-c", DEVICE, bundle)
    out, problems = process.communicate(timeout=120)
    assert process.returncode == 0, problems
    kept = read_bundle(bundle).manifest.kept_outputs
    assert out.split() == ["True", "logits", *kept]
