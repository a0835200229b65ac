"""Engines are recorded in a bundle, kept while they are fresh, and never at the bundle's expense.

What TensorRT itself does meanwhile is looked at in test_building.py: here it builds each plan once.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from click.testing import Result

from gft_edge.bundle import store
from gft_edge.bundle.locks import LOCK_FILE, locked
from gft_edge.bundle.manifest import EngineSettings
from gft_edge.bundle.onnx_bytes import graph_output
from gft_edge.bundle.store import read_bundle, sha256_of, write_manifest
from gft_edge.errors import BundleError, CudaError, UsageError
from gft_edge.nvidia import build as build_room
from gft_edge.nvidia.build import build_engine
from gft_edge.nvidia.library import builder_library, parse
from tests.support.bundles import assert_untouched, files_of, sign
from tests.support.cli import refusal, refused, run, run_json
from tests.support.refusals import refusal_of

if TYPE_CHECKING:
    from tests.support.fake_cudart import FakeCudart

QUICK = EngineSettings(builder_optimization_level=0)

pytestmark = pytest.mark.usefixtures("no_gpu", "remembered")


# What is built, and what a second build does.


def test_an_engine_is_built_recorded_and_sealed(
    with_engine: Path, trt_bundle: Path, rtx: Any
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
    assert engine.flags == ("STRONGLY_TYPED", "REQUIRE_USER_ALLOCATION")
    assert engine.build_seconds > 0
    assert manifest.seal != read_bundle(trt_bundle).manifest.seal
    # Nothing else has changed, and nothing else is left behind.
    before, after = files_of(trt_bundle), files_of(with_engine)
    assert {name for name in after if before.get(name) != after[name]} == {
        "manifest.json", engine.path,
    }  # fmt: skip


def test_a_fresh_engine_is_not_built_again_unless_fresh_is_asked_for(
    built: Path, tmp_path: Path
) -> None:
    before = files_of(built)
    second = build_engine(built)
    assert (second.made, second.engine) == (False, read_bundle(built).manifest.engines[0])
    assert files_of(built) == before
    moved = built.rename(tmp_path / "a place with spaces")
    assert not build_engine(moved).made
    assert build_engine(moved, fresh=True).made
    assert len(read_bundle(moved).manifest.engines) == 1


def test_other_settings_build_again_and_replace(built: Path) -> None:
    assert build_engine(built, QUICK).made
    (engine,) = read_bundle(built).manifest.engines
    assert engine.settings == dataclasses.replace(QUICK, flavor="tensorrt-rtx")
    assert not build_engine(built, QUICK).made
    # A plain build takes what is there; other settings have to be asked for.
    assert not build_engine(built).made
    assert build_engine(built, EngineSettings()).made


def test_the_settings_are_the_bundles_own_but_for_the_options_given(bundle: Path) -> None:
    manifest = dataclasses.replace(read_bundle(bundle).manifest, engine_settings=QUICK)
    write_manifest(bundle, manifest)
    assert build_engine(bundle).engine.settings.builder_optimization_level == 0
    assert not build_engine(bundle, QUICK).made
    assert run("build", bundle, "--workspace", "1").exit_code == 0
    (engine,) = read_bundle(bundle).manifest.engines
    assert engine.settings == dataclasses.replace(QUICK, flavor="tensorrt-rtx", workspace_gib=1)


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


def test_a_damaged_engine_is_built_again_and_the_bundle_still_reads(built: Path) -> None:
    (engine,) = read_bundle(built).manifest.engines
    file = built / engine.path
    plan = file.read_bytes()
    altered = plan[:500] + bytes([plan[500] ^ 1]) + plan[501:]
    for damaged in (altered, plan[: len(plan) // 2], b"", None):
        file.unlink()
        if damaged is not None:
            file.write_bytes(damaged)
        read_bundle(built)
        mended = build_engine(built)
        assert mended.made
        assert sha256_of(file) == mended.engine.sha256
        assert not build_engine(built).made


def test_another_graph_makes_the_engine_stale(built: Path) -> None:
    bundle = read_bundle(built)
    (engine,) = bundle.manifest.engines
    stale = dataclasses.replace(engine, graph_sha256="0" * 64)
    write_manifest(built, dataclasses.replace(bundle.manifest, engines=(stale,)))
    again = build_engine(built)
    assert (again.made, again.engine.graph_sha256) == (True, bundle.manifest.artifact.sha256)


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
    trt_bundle: Path, rtx: Any
) -> None:
    bundle = read_bundle(trt_bundle)
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
    again = build_engine(built, fresh=True).engine
    assert read_bundle(built).manifest.engines == (other, again)
    assert sha256_of(built / other.path) == other.sha256


# What fails leaves the bundle as it was.


def test_a_full_disk_leaves_the_bundle_readable(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(built)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(run("build", built, "--fresh"), "model.engine", os.strerror(errno.ENOSPC))
    assert_untouched(built, before)
    read_bundle(built)


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
        refusal_of(BundleError, lambda: build_engine(bundle, QUICK), os.strerror(errno.ENOSPC))
    assert read_bundle(bundle).manifest.engines == ()
    assert not [name for name in files_of(bundle) if "partial" in name]
    assert build_engine(bundle, QUICK).made


def test_a_bundle_that_cannot_be_written_is_refused_before_the_build(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Path.open

    def read_only(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if self.is_relative_to(bundle) and "w" in mode:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        return plain(self, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", read_only)
    refused(run("build", bundle), str(bundle), os.strerror(errno.EROFS))


def test_a_disk_without_locks_is_not_taken_for_another_build(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    refused(run("build", bundle), str(bundle), os.strerror(errno.ENOLCK))


def test_a_file_in_place_of_the_engines_folder_is_named(bundle: Path) -> None:
    (bundle / "engines").write_text("in the way")
    before = files_of(bundle)
    refused(run("build", bundle), str(bundle / "engines"), exit_code=1)
    assert_untouched(bundle, before)


def test_a_bundle_that_is_exported_anew_meanwhile_keeps_its_manifest(bundle: Path) -> None:
    """An export takes no lock: it puts a whole folder in place of the old one."""
    manifest = dataclasses.replace(read_bundle(bundle).manifest, tools={"torch": "another"})

    def progress(text: str, done: int, total: int) -> None:
        if done == total:
            write_manifest(bundle, manifest)

    refusal_of(BundleError, lambda: build_engine(bundle, QUICK, progress=progress), str(bundle))
    content = read_bundle(bundle).manifest
    assert (content.tools, content.engines) == ({"torch": "another"}, ())
    assert not (bundle / "engines").exists()


def test_a_graph_that_the_parser_refuses_is_named_by_node(bundle: Path) -> None:
    path = read_bundle(bundle).artifact_path
    graph = onnx.load(path)
    node = next(node for node in graph.graph.node if node.op_type == "TopK")
    node.op_type = "Nonsense"
    onnx.save(graph, path)
    sign(bundle, path.name)
    before = files_of(bundle)
    refused(run("build", bundle), repr(node.name), exit_code=1)
    assert_untouched(bundle, before)


def test_a_second_build_is_refused_while_another_runs(built: Path) -> None:
    before = files_of(built)
    with locked(built):
        # A fresh engine is found all the same.
        assert not build_engine(built).made
        refused(run("build", built, "--fresh"), str(built))
        assert files_of(built) == before
    assert build_engine(built, fresh=True).made


# What cannot be built.


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_bundle_of_another_target_builds_no_engine(target: str, bundle: Path) -> None:
    write_manifest(bundle, dataclasses.replace(read_bundle(bundle).manifest, target=target))
    refused(run("build", bundle), str(bundle), target, "--target tensorrt")
    assert not (bundle / LOCK_FILE).exists()


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--workspace", "0", "0"),
        ("--workspace", "nan", "nan"),
        ("--workspace", "inf", "inf"),
        ("--builder-optimization-level", "6", "6"),
        ("--builder-optimization-level", "-1", "-1"),
        ("--hardware-compatibility-level", "ampere+", "tensorrt-rtx"),
        ("--timing-cache", "{tmp}/timing.cache", "tensorrt-rtx"),
        ("--timing-cache", "{tmp}/none/timing.cache", "none/timing.cache"),
        ("--timing-cache", "{tmp}", "--timing-cache"),
    ],
)
def test_settings_that_cannot_be_built_are_refused_in_one_line(
    option: str, value: str, word: str, trt_bundle: Path, tmp_path: Path
) -> None:
    refused(run("build", trt_bundle, option, value.format(tmp=tmp_path)), option, word)
    assert read_bundle(trt_bundle).manifest.engines == ()


def test_options_that_this_library_has_not_are_refused(trt_bundle: Path) -> None:
    assert "gft-edge[tensorrt]" in refusal("build", trt_bundle, "--flavor", "tensorrt")
    assert "--version-compatible" in refusal("build", trt_bundle, "--version-compatible")
    assert read_bundle(trt_bundle).manifest.engines == ()


def test_numbers_in_a_manifest_that_no_library_takes_are_refused(bundle: Path) -> None:
    """Settings need not come from the command line."""
    wrong = EngineSettings(builder_optimization_level=9)
    manifest = dataclasses.replace(read_bundle(bundle).manifest, engine_settings=wrong)
    write_manifest(bundle, manifest)
    refusal_of(UsageError, lambda: build_engine(bundle), "9")


# The command, and export.


def test_build_prints_one_document_of_json_or_ends_with_the_command_that_follows(
    bundle: Path,
) -> None:
    for made in (True, False):
        content = run_json("build", bundle)
        assert (content["bundle"], content["made"]) == (str(bundle), made)
        (engine,) = json.loads((bundle / "manifest.json").read_text())["engines"]
        assert content["engine"] == engine
    result = run("build", bundle)
    assert result.exit_code == 0
    # No GPU built it: there is nothing to verify here.
    assert result.stdout.splitlines()[-1] == f"next: gft-edge inspect --engine {bundle}"
    assert "not built again" in result.stderr
    assert "model.engine" in result.stdout


def exporting(run_folder: Path, data: Path, out: Path, *options: object) -> Result:
    result = run(
        "export", run_folder, "--target", "tensorrt", "--data", data, "--split", "test",
        "--images", 12, "--out", out, *options,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return result


@pytest.mark.slow
def test_export_builds_the_engine_where_it_can(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    result = exporting(micro_run, micro_data, out, "--builder-optimization-level", "0", "--json")
    content = json.loads(result.stdout)
    manifest = read_bundle(out).manifest
    (engine,) = manifest.engines
    assert content["engine"]["path"] == engine.path
    assert content["engine"]["sha256"] == sha256_of(out / engine.path)
    # The bundle's settings are what was asked for, the engine's what was taken.
    assert (manifest.engine_settings, engine.settings.flavor) == (QUICK, "tensorrt-rtx")
    assert result.stderr.splitlines().count("build engine") == 1


@pytest.mark.slow
def test_export_without_a_library_says_why_and_what_is_next(
    micro_run: Path, micro_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    out = tmp_path / "bundle"
    result = exporting(micro_run, micro_data, out)
    assert result.stdout.splitlines()[-1] == f"next: gft-edge build {out}"
    (line,) = (line for line in result.stderr.splitlines() if line.startswith(str(out)))
    assert "pip install 'gft-edge[tensorrt]'" in line
    assert read_bundle(out).manifest.engines == ()


@pytest.mark.slow
def test_export_for_another_machine_asks_of_this_one_no_more_than_the_graph(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    cache = tmp_path / "timing.cache"
    options = ("--version-compatible", "--timing-cache", cache, "--json")
    result = exporting(micro_run, micro_data, out, *options)
    assert json.loads(result.stdout)["engine"] is None
    assert "--timing-cache" in result.stderr
    assert read_bundle(out).manifest.engine_settings == EngineSettings(version_compatible=True)
    assert not cache.exists()


def test_options_of_an_engine_are_refused_for_a_target_without_one(
    micro_run: Path, micro_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    for option, value in (("--timing-cache", tmp_path / "timing.cache"), ("--flavor", "tensorrt")):
        line = refusal(
            "export", micro_run, "--target", "onnx", "--data", micro_data, "--split", "test",
            "--out", out, option, value,
        )  # fmt: skip
        assert option in line
        assert not out.exists()


# TensorRT itself, in whose place stands TensorRT-RTX.

no_ops = pytest.mark.filterwarnings("ignore:.*Timing cache operations:DeprecationWarning")


@no_ops
@pytest.mark.usefixtures("posing")
def test_an_engine_of_tensorrt_names_the_gpu_it_is_bound_to(built: Path) -> None:
    made = build_engine(built, QUICK).engine
    folder = "engines/tensorrt-10.13.3.9-linux-x86_64-geforce-rtx-4090-128mp-sm89"
    assert (made.path, made.timing_cache) == (f"{folder}/model.engine", f"{folder}/timing.cache")
    assert (made.gpu, made.compute_capabilities) == ("NVIDIA GeForce RTX 4090", ("8.9",))
    assert (made.cuda, made.settings.flavor) == ("12.8", "tensorrt")
    assert (built / folder / "timing.cache").stat().st_size > 0
    # It stands beside that of TensorRT-RTX.
    flavors = [engine.flavor for engine in read_bundle(built).manifest.engines]
    assert flavors == ["tensorrt-rtx", "tensorrt"]
    assert not build_engine(built, EngineSettings("tensorrt-rtx")).made


@no_ops
@pytest.mark.usefixtures("posing")
def test_a_timing_cache_that_cannot_be_written_does_not_cost_the_engine(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, cache = store.write_whole, tmp_path / "timing.cache"

    def full(path: Path, content: bytes) -> None:
        if path == cache:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(path, content)

    monkeypatch.setattr(build_room, "write_whole", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        build_engine(bundle, QUICK, timing_cache=cache)
    assert not build_engine(bundle, QUICK).made


@pytest.mark.usefixtures("posing")
def test_on_a_jetson_there_is_no_hardware_compatibility(
    trt_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gft_edge.nvidia.engines.l4t", lambda: "R36.4.0")
    line = refusal("build", trt_bundle, "--hardware-compatibility-level", "ampere+")
    assert "tensorrt 10.13.3.9" in line
    assert "Jetson" in line


@pytest.mark.usefixtures("posing")
def test_tensorrt_without_a_gpu_gives_way_to_tensorrt_rtx(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> Any:
        raise UsageError("no NVIDIA driver here")

    monkeypatch.setattr(build_room, "open_cuda", absent)
    assert not build_engine(built).made
    line = refusal("build", built, "--flavor", "tensorrt")
    assert line == "tensorrt 10.13.3.9: no NVIDIA driver here"
