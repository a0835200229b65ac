"""The CUDA runtime: over a fake with C functions, over the real library and on a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gft_edge.errors import CudaError, GftEdgeError, MissingDependencyError, NoGpuError, UsageError
from gft_edge.nvidia import cuda as cuda_room
from gft_edge.nvidia import cudart
from gft_edge.nvidia.cuda import Cuda, Gpu, host_view, open_cuda
from gft_edge.nvidia.cudart import FUNCTIONS, PROTOTYPES, Runtime, runtimes
from tests.support.refusals import refusal_of
from tests.support.trt import DESCRIBING

if TYPE_CHECKING:
    from tests.support.fake_cudart import FakeCudart

# A failure of these is no failure of what was asked.
TOLERATED = {"cudaRuntimeGetVersion", "cudaDriverGetVersion", "cudaGraphDestroy"}


def round_trip(cuda: Cuda) -> Gpu:
    """All that a session does: images in, captured, launched twice, timed, out again."""
    sent = np.arange(1000, dtype=np.uint8)
    size = sent.nbytes
    with contextlib.ExitStack() as stack:

        def keep(free: str, handle: int) -> int:
            stack.callback(cuda.call, free, handle)
            return handle

        stream = keep("cudaStreamDestroy", cuda.stream())
        device = keep("cudaFree", cuda.device_buffer(size))
        pinned = keep("cudaFreeHost", cuda.pinned_buffer(size))
        mapped = keep("cudaFreeHost", cuda.pinned_buffer(size, mapped=True))
        start = keep("cudaEventDestroy", cuda.event())
        end = keep("cudaEventDestroy", cuda.event())
        seen = cuda.device_address(mapped)
        cuda.begin_capture(stream)
        try:
            cuda.copy_to_device(device, pinned, size, stream)
            cuda.copy_to_host(mapped, device, size, stream)
        finally:
            graph = keep("cudaGraphExecDestroy", cuda.end_capture(stream))
        for times in (1, 2):
            received = np.zeros_like(sent)
            host_view(pinned, size)[:] = sent * times
            cuda.record(start, stream)
            cuda.launch(graph, stream)
            cuda.copy_to_host(received.ctypes.data, seen, size, stream)
            cuda.record(end, stream)
            cuda.synchronize(stream)
            np.testing.assert_array_equal(received, sent * times)
            assert cuda.elapsed_ms(start, end) > 0
        free, total = cuda.memory()
        gpu = cuda.gpu()
        assert 0 < free <= total
    return gpu


def test_a_session_gets_its_images_back_and_leaves_nothing(fake_cudart: FakeCudart) -> None:
    """The fake's handles have more than 32 bits, and one that is cut is none."""
    gpu = round_trip(fake_cudart.cuda())
    assert gpu == Gpu("Fake Orin", "8.7", integrated=True, multiprocessors=8)
    assert fake_cudart.live == {}
    assert {name for name, _ in fake_cudart.calls} == set(FUNCTIONS) - DESCRIBING


def test_the_flags_are_those_of_the_headers(fake_cudart: FakeCudart) -> None:
    cuda = fake_cudart.cuda()
    fake_cudart.calls.clear()
    cuda.pinned_buffer(8)
    cuda.pinned_buffer(8, mapped=True)
    stream = cuda.stream()
    cuda.begin_capture(stream)
    assert fake_cudart.calls == [
        # cudaHostAllocPortable is 1 and cudaHostAllocMapped 2.
        ("cudaHostAlloc", (8, 1)),
        ("cudaHostAlloc", (8, 3)),
        # cudaStreamNonBlocking, cudaStreamCaptureModeThreadLocal.
        ("cudaStreamCreateWithFlags", (1,)),
        ("cudaStreamBeginCapture", (stream, 1)),
    ]


def test_out_of_memory_says_what_was_asked_and_what_is_free(fake_cudart: FakeCudart) -> None:
    cuda = fake_cudart.cuda()
    fake_cudart.free_bytes = 100
    for method in (cuda.device_buffer, cuda.pinned_buffer):
        words = ("8192 bytes", "100 of the GPU's 1073741824")
        refusal_of(CudaError, partial(method, 8192), *words)
    # Where there is no size and nothing can be counted, what to do.
    fake_cudart.fail("cudaStreamCreateWithFlags", 2)
    fake_cudart.fail("cudaMemGetInfo", 2)
    refusal_of(CudaError, cuda.stream, "(2)", "end what else uses it")
    assert fake_cudart.live == {}


@pytest.mark.parametrize(
    ("code", "driver", "words"),
    [
        (35, 0, ("no NVIDIA driver", "--gpus all", "--runtime nvidia")),
        (34, 13000, ("no NVIDIA driver", "cudaErrorStubLibrary")),
        (35, 12060, ("CUDA 12.6", "CUDA 13.2", "-cu12", "cudaErrorInsufficientDriver")),
        (35, 11040, ("CUDA 11.4", "update the driver")),
        (100, 13020, ("nvidia-smi", "CUDA_VISIBLE_DEVICES", "cudaErrorNoDevice")),
    ],
)
def test_a_machine_without_a_gpu_is_told_why(
    fake_cudart: FakeCudart, code: int, driver: int, words: tuple[str, ...]
) -> None:
    fake_cudart.driver_version = driver
    fake_cudart.fail("cudaGetDeviceCount", code)
    refusal_of(NoGpuError, fake_cudart.cuda, *words)
    assert issubclass(NoGpuError, UsageError)


def test_a_runtime_that_fails_throughout_ends_in_an_error(fake_cudart: FakeCudart) -> None:
    for name in set(FUNCTIONS) - DESCRIBING:
        fake_cudart.fail(name, 35)
    refusal_of(NoGpuError, fake_cudart.cuda)


def test_a_runtime_too_new_for_the_driver_makes_way_for_one_that_fits(
    monkeypatch: pytest.MonkeyPatch, fake_cudart: FakeCudart
) -> None:
    too_new = type(fake_cudart)()
    too_new.driver_version = 12060
    too_new.fail("cudaGetDeviceCount", 35)
    fake_cudart.runtime_version = 12080
    found = [too_new.runtime(), fake_cudart.runtime()]
    monkeypatch.setattr(cuda_room, "runtimes", lambda: iter(found))
    cuda = open_cuda()
    assert (cuda.runtime_version, cuda.driver_version) == ("12.8", "13.2")
    fake_cudart.fail("cudaGetDeviceCount", 100)
    refusal_of(NoGpuError, open_cuda, "CUDA 12.6")
    # A GPU that fails to start is not taken for an absent one.
    fake_cudart.forget_failures()
    fake_cudart.fail("cudaSetDevice", 719)
    refusal_of(CudaError, open_cuda, "cudaSetDevice", "cudaErrorLaunchFailure")


def test_libcudart_13_is_looked_for_before_12_and_wheels_before_the_toolkit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheel = tmp_path / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.12"
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    tried = []

    def absent(path: str) -> Any:
        tried.append(path)
        raise OSError(path)

    monkeypatch.setattr(cudart, "sys", SimpleNamespace(path=[str(tmp_path)]))
    monkeypatch.setattr(ctypes, "CDLL", absent)
    refusal_of(MissingDependencyError, open_cuda, "pip install 'gft-edge[tensorrt]'")
    assert tried == [
        "libcudart.so.13",
        "/usr/local/cuda/lib64/libcudart.so.13",
        "libcudart.so.12",
        str(wheel),
        "/usr/local/cuda/lib64/libcudart.so.12",
    ]


# The real library, with or without a driver.


@pytest.fixture
def real() -> Runtime:
    """libcudart, which has every function of the table: each of them is typed."""
    found = next(runtimes(), None)
    if found is None:
        pytest.skip("libcudart is not installed here")
    return found


def test_the_table_is_what_the_header_declares() -> None:
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else None
    headers = [h for f in folders or [] for h in Path(f).glob("*/include/cuda_runtime_api.h")]
    if not headers:
        pytest.skip("CUDA's headers are not installed here")
    text = headers[0].read_text(encoding="utf-8")
    for name, row in FUNCTIONS.items():
        declared = re.search(rf"^ *extern .*CUDARTAPI {name}\((.*)\);", text, re.MULTILINE)
        assert declared, name
        assert as_row(declared[1]) == row.partition(" -> ")[0], name


def as_row(parameters: str) -> str:
    """C parameters in the table's words: `void **devPtr, size_t size` is `out void*, size_t`."""
    words = []
    for parameter in [] if parameters == "void" else parameters.split(", "):
        plain = re.sub(r" __dv\(.*?\)|\b(const|enum|struct) ", "", parameter)
        kind, stars = re.fullmatch(r"(.*) (\**)\w+", plain).groups()  # type: ignore[union-attr]
        is_address = kind == "void"
        is_output = len(stars) > is_address
        words.append(("out " if is_output else "") + kind + ("*" if is_address else ""))
    return ", ".join(words)


def test_every_function_of_the_real_runtime_takes_what_the_table_says(real: Runtime) -> None:
    """Without a driver each of them answers with its code before it looks at a handle."""
    code, versions = real.call("cudaDriverGetVersion")
    if not code and versions[0]:
        pytest.skip("this machine has an NVIDIA driver: a made-up handle would be followed")
    answers = {
        name: real.call(name, *(1 for _ in prototype.inputs))[0]
        for name, prototype in PROTOTYPES.items()
        if name not in DESCRIBING | TOLERATED
    }
    assert set(answers.values()) == {35}, answers
    assert real.call("cudaGetErrorName", 35) == (0, ("cudaErrorInsufficientDriver",))
    refusal_of(NoGpuError, open_cuda, "cudaErrorInsufficientDriver")


@pytest.mark.gpu
def test_a_gpu_gets_images_and_gives_them_back_and_says_how_much_it_cannot_give() -> None:
    try:
        cuda = open_cuda()
    except GftEdgeError as error:
        pytest.skip(str(error))
    free_before, _ = cuda.memory()
    for _ in range(20):
        gpu = round_trip(cuda)
    assert re.fullmatch(r"\d+\.\d", gpu.compute_capability)
    assert gpu.name
    assert cuda.memory()[0] >= free_before - (64 << 20)
    refusal_of(CudaError, lambda: cuda.device_buffer(1 << 50), f"{1 << 50} bytes", "bytes free")
    round_trip(cuda)
