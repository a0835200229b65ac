"""A machine with a GPU's doubles, and bundles for TensorRT without engines to alter."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gft_edge.bundle.specs import InputSpec
from gft_edge.export.request import ExportRequest
from gft_edge.nvidia.library import Library
from gft_edge.runtime.backends import trt
from tests.support.bundles import session_of
from tests.support.fake_cudart import FakeCudart
from tests.support.fake_tensorrt import FakeTensorrt
from tests.support.networks import export_run
from tests.support.trt import add_engine, assert_released


@pytest.fixture(scope="session")
def batch_of_three(
    tmp_path_factory: pytest.TempPathFactory, micro_run: Path, micro_data: Path
) -> Path:
    """The micro run exported for TensorRT in FP32, three images at a time, without an engine."""
    request = ExportRequest("tensorrt", input=InputSpec("uint8", 3), simplify=False)
    return export_run(micro_run, micro_data, tmp_path_factory.mktemp("three") / "bundle", request)


@pytest.fixture
def bundle_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], Path]:
    """Copies the bundle of a batch of one or three, without engines."""

    def copy(batch: int) -> Path:
        folder = tmp_path / f"bundle {batch}"
        if not folder.exists():
            name = {1: "trt_bundle", 3: "batch_of_three"}[batch]
            shutil.copytree(request.getfixturevalue(name), folder)
        return folder

    return copy


@pytest.fixture
def bundle(bundle_of: Callable[[int], Path]) -> Path:
    """A bundle of one image at a time, without engines."""
    return bundle_of(1)


@pytest.fixture
def machine(
    monkeypatch: pytest.MonkeyPatch, fake_cudart: FakeCudart, fake_tensorrt: FakeTensorrt
) -> Iterator[FakeTensorrt]:
    """A GPU with its own memory and TensorRT 10.3.0. Everything is released at the end."""
    fake_cudart.integrated = False
    library = Library(fake_tensorrt.module, "tensorrt")
    monkeypatch.setattr(trt, "open_cuda", fake_cudart.cuda)
    monkeypatch.setattr(trt, "installed", lambda: [library])
    yield fake_tensorrt
    assert_released(fake_tensorrt)


@pytest.fixture
def opened(machine: FakeTensorrt, bundle_of: Callable[[int], Path]) -> Iterator[Callable[..., Any]]:
    """Opens sessions on engines of a bundle; they are closed when the test is over."""
    with ExitStack() as stack:

        def open_(batch: int = 1, explain: bool = True, cuda_graph: bool = False) -> Any:
            add_engine(machine, bundle_of(batch), explain)
            session = session_of(bundle_of(batch), explain, cuda_graph=cuda_graph)
            stack.callback(session.close)
            return session

        yield open_
