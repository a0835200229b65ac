"""Bundles to build engines in, on a machine with TensorRT-RTX alone and no GPU."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gft_edge.nvidia import build as build_room
from gft_edge.nvidia.build import Plan, build_engine
from gft_edge.nvidia.cuda import Gpu
from tests.support.paths import ROOT

_plans: dict[Any, Plan] = {}


def hide_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("CUDA_VISIBLE_DEVICES", "")
    patch.setitem(sys.modules, "tensorrt", None)


def remember(patch: pytest.MonkeyPatch) -> None:
    """Let a library build the plan of a graph once, by the settings of the first who asks."""
    plan_of = build_room._plan

    def remembering(
        bundle: Any, settings: Any, library: Any, outputs: Any, cache: Any, progress: Any, say: Any
    ) -> Plan:
        key = bundle.manifest.artifact.sha256, library.name, tuple(outputs)
        if key not in _plans:
            plan = plan_of(bundle, settings, library, outputs, cache, progress, say)
            _plans[key] = dataclasses.replace(plan, content=bytes(plan.content))
        else:
            progress("build engine", 1000, 1000)
        return _plans[key]

    patch.setattr(build_room, "_plan", remembering)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch, rtx: Any) -> None:
    """TensorRT-RTX alone, and no GPU, wherever the tests run."""
    hide_gpu(monkeypatch)


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds less a build, where what TensorRT does meanwhile is not the question."""
    remember(monkeypatch)


@pytest.fixture(scope="session")
def with_engine(trt_bundle: Path, tmp_path_factory: pytest.TempPathFactory, rtx: Any) -> Path:
    """The micro run's bundle with an engine of TensorRT-RTX."""
    folder = tmp_path_factory.mktemp("with_engine") / "bundle"
    shutil.copytree(trt_bundle, folder)
    with pytest.MonkeyPatch.context() as patch:
        hide_gpu(patch)
        remember(patch)
        assert build_engine(folder).made
    return folder


@pytest.fixture
def bundle(trt_bundle: Path, tmp_path: Path) -> Path:
    """A copy to build in."""
    return Path(shutil.copytree(trt_bundle, tmp_path / "bundle"))


@pytest.fixture
def built(with_engine: Path, tmp_path: Path) -> Path:
    """A copy that has its engine."""
    return Path(shutil.copytree(with_engine, tmp_path / "built"))


@pytest.fixture
def posing(no_gpu: None, rtx: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """TensorRT-RTX in the place of TensorRT 10.13 on a GPU: the same calls and graph."""
    module = types.ModuleType("tensorrt")
    module.__dict__.update(vars(rtx), __version__="10.13.3.9")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    gpu = Gpu("NVIDIA GeForce RTX 4090", "8.9", False, 128)
    cuda = SimpleNamespace(gpu=lambda: gpu, runtime_version="12.8")
    monkeypatch.setattr(build_room, "open_cuda", lambda: cuda)
    return module


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
