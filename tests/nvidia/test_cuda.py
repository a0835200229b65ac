"""The CUDA runtime: over a fake with C functions, over the real libraries and on a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gft_edge.errors import CudaError, GftEdgeError, MissingDependencyError, NoGpuError, UsageError
from gft_edge.nvidia import cuda as cuda_room
from gft_edge.nvidia import cudart
from gft_edge.nvidia.cuda import Cuda, Gpu, host_view, open_cuda
from gft_edge.nvidia.cudart import ADDRESSES, FUNCTIONS, PROTOTYPES, PROVIDERS, Libcudart, runtimes
from tests.support.refusals import refusal_of
from tests.support.trt import DESCRIBING

if TYPE_CHECKING:
    from tests.support.fake_cudart import FakeCudart

both_providers = pytest.mark.parametrize("provider", PROVIDERS)

# A failure of these is no failure of what was asked.
TOLERATED = {"cudaRuntimeGetVersion", "cudaDriverGetVersion", "cudaGraphDestroy"}


def round_trip(cuda: Cuda) -> Gpu:
    """All that a session does: images in, captured, launched twice, timed, out again."""
    sent = np.arange(1000, dtype=np.uint8)
    size = sent.nbytes
    with contextlib.ExitStack() as stack:

        def keep(free: Callable[[int], None], handle: int) -> int:
            stack.callback(free, handle)
            return handle

        stream = keep(cuda.destroy_stream, cuda.stream())
        device = keep(cuda.free_device, cuda.device_buffer(size))
        pinned = keep(cuda.free_pinned, cuda.pinned_buffer(size))
        mapped = keep(cuda.free_pinned, cuda.pinned_buffer(size, mapped=True))
        start = keep(cuda.destroy_event, cuda.event())
        end = keep(cuda.destroy_event, cuda.event())
        seen = cuda.device_address(mapped)
        cuda.begin_capture(stream)
        try:
            cuda.copy_to_device(device, pinned, size, stream)
            cuda.copy_to_host(mapped, device, size, stream)
        finally:
            graph = keep(cuda.destroy_graph, cuda.end_capture(stream))
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


@both_providers
def test_a_session_gets_its_images_back_and_leaves_nothing(
    fake_cudart: FakeCudart, provider: str
) -> None:
    gpu = round_trip(fake_cudart.cuda(provider))
    assert gpu == Gpu("Fake Orin", "8.7", integrated=True, multiprocessors=8)
    assert fake_cudart.live == {}
    assert {name for name, _ in fake_cudart.calls} == set(FUNCTIONS) - DESCRIBING


def test_both_providers_make_the_same_calls(fake_cudart: FakeCudart) -> None:
    called = []
    for provider in PROVIDERS:
        fake_cudart.calls.clear()
        round_trip(fake_cudart.cuda(provider))
        called.append([name for name, _ in fake_cudart.calls])
    assert called[0] == called[1]


@both_providers
@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - DESCRIBING - TOLERATED))
def test_a_failure_of_any_call_is_named_and_leaks_nothing(
    fake_cudart: FakeCudart, provider: str, name: str
) -> None:
    fake_cudart.fail(name, 719)
    with pytest.raises(CudaError) as caught:
        round_trip(fake_cudart.cuda(provider))
    error = caught.value
    assert str(error) == f"{name} failed: cudaErrorLaunchFailure (719): the fake's words for 719"
    assert (error.call, error.name, error.code) == (name, "cudaErrorLaunchFailure", 719)
    assert error.exit_code == 1
    assert fake_cudart.live == {}


@both_providers
@pytest.mark.parametrize("code", [2, 719])
def test_a_failure_at_any_moment_leaks_nothing(
    fake_cudart: FakeCudart, provider: str, code: int
) -> None:
    round_trip(fake_cudart.cuda(provider))
    for index, (name, _) in enumerate(fake_cudart.calls):
        fake = type(fake_cudart)()
        fake.fail_call(index, code)
        refused = contextlib.nullcontext() if name in TOLERATED else pytest.raises(CudaError)
        with refused as caught:
            round_trip(fake.cuda(provider))
        assert caught is None or caught.value.call == name
        assert fake.live == {}, f"{name}, call {index}"
        assert fake.last_error == 0


@both_providers
@pytest.mark.parametrize("name", sorted(TOLERATED))
def test_a_failure_beside_the_work_does_not_stop_it(
    fake_cudart: FakeCudart, provider: str, name: str
) -> None:
    fake_cudart.fail(name, 719)
    round_trip(fake_cudart.cuda(provider))
    assert fake_cudart.live == {}


@both_providers
def test_an_error_is_not_left_behind_for_the_next_library(
    fake_cudart: FakeCudart, provider: str
) -> None:
    cuda = fake_cudart.cuda(provider)
    fake_cudart.fail("cudaMemGetInfo", 700)
    refusal_of(CudaError, lambda: cuda.device_buffer(1 << 40), "cudaMalloc")
    assert fake_cudart.last_error == 0


@both_providers
def test_a_handle_keeps_its_64_bits(fake_cudart: FakeCudart, provider: str) -> None:
    cuda = fake_cudart.cuda(provider)
    stream, event, device = cuda.stream(), cuda.event(), cuda.device_buffer(16)
    assert min(stream, event, device) > 2**32
    cuda.record(event, stream)
    assert fake_cudart.calls[-1] == ("cudaEventRecord", (event, stream))
    cuda.copy_to_host(2**33 + 8, device, 0, stream)
    name, inputs = fake_cudart.calls[-1]
    assert name == "cudaMemcpyAsync"
    assert [getattr(value, "value", value) for value in inputs] == [2**33 + 8, device, 0, 2, stream]
    cuda.begin_capture(stream)
    graph = cuda.end_capture(stream)
    cuda.launch(graph, stream)
    assert graph > 2**32
    assert fake_cudart.calls[-1] == ("cudaGraphLaunch", (graph, stream))


@both_providers
def test_the_flags_are_those_of_the_headers(fake_cudart: FakeCudart, provider: str) -> None:
    cuda = fake_cudart.cuda(provider)
    fake_cudart.calls.clear()
    cuda.pinned_buffer(8)
    cuda.pinned_buffer(8, mapped=True)
    stream = cuda.stream()
    cuda.begin_capture(stream)
    cuda.end_capture(stream)
    cuda.use_device()
    calls = fake_cudart.calls
    # cudaHostAllocPortable is 1 and cudaHostAllocMapped 2.
    assert calls[0] == ("cudaHostAlloc", (8, 1))
    assert calls[1] == ("cudaHostAlloc", (8, 3))
    # cudaStreamNonBlocking, cudaStreamCaptureModeThreadLocal.
    assert calls[2] == ("cudaStreamCreateWithFlags", (1,))
    assert calls[3] == ("cudaStreamBeginCapture", (stream, 1))
    assert calls[-1] == ("cudaSetDevice", (0,))


@both_providers
def test_empty_buffers_and_views_are_allowed(fake_cudart: FakeCudart, provider: str) -> None:
    cuda = fake_cudart.cuda(provider)
    pinned = cuda.pinned_buffer(0)
    assert host_view(pinned, 0).shape == (0,)
    cuda.free_pinned(pinned)
    cuda.free_device(0)
    assert fake_cudart.live == {}


def test_a_host_view_writes_to_the_memory_itself() -> None:
    memory = ctypes.create_string_buffer(4)
    host_view(ctypes.addressof(memory), 4)[:] = (1, 2, 3, 4)
    assert memory.raw == b"\x01\x02\x03\x04"


@both_providers
def test_a_thread_can_choose_the_device_for_itself(fake_cudart: FakeCudart, provider: str) -> None:
    cuda = fake_cudart.cuda(provider)
    fake_cudart.calls.clear()
    thread = threading.Thread(target=cuda.use_device)
    thread.start()
    thread.join()
    assert fake_cudart.calls == [("cudaSetDevice", (0,))]


@both_providers
def test_a_graph_that_cannot_be_instantiated_is_destroyed(
    fake_cudart: FakeCudart, provider: str
) -> None:
    cuda = fake_cudart.cuda(provider)
    stream = cuda.stream()
    cuda.begin_capture(stream)
    fake_cudart.fail("cudaGraphInstantiate", 1)
    refusal_of(CudaError, lambda: cuda.end_capture(stream), "cudaGraphInstantiate", "(1)")
    assert fake_cudart.live == {"stream": 1}


@both_providers
def test_waiting_within_a_capture_spoils_it_and_the_stream_recovers(
    fake_cudart: FakeCudart, provider: str
) -> None:
    cuda = fake_cudart.cuda(provider)
    stream = cuda.stream()
    cuda.begin_capture(stream)
    refusal_of(CudaError, lambda: cuda.synchronize(stream), "cudaErrorStreamCaptureUnsupported")
    refusal_of(CudaError, lambda: cuda.end_capture(stream), "cudaErrorStreamCaptureInvalidated")
    cuda.synchronize(stream)
    assert fake_cudart.live == {"stream": 1}


@both_providers
@pytest.mark.parametrize("method", ["device_buffer", "pinned_buffer"])
def test_out_of_memory_says_what_was_asked_and_what_is_free(
    fake_cudart: FakeCudart, provider: str, method: str
) -> None:
    cuda = fake_cudart.cuda(provider)
    fake_cudart.free_bytes = 100
    refusal_of(
        CudaError, lambda: getattr(cuda, method)(8192), "8192 bytes", "100 of the GPU's 1073741824"
    )
    assert fake_cudart.live == {}


@both_providers
def test_out_of_memory_without_a_size_or_a_count_still_says_what_to_do(
    fake_cudart: FakeCudart, provider: str
) -> None:
    cuda = fake_cudart.cuda(provider)
    fake_cudart.fail("cudaStreamCreateWithFlags", 2)
    fake_cudart.fail("cudaMemGetInfo", 2)
    refusal_of(CudaError, cuda.stream, "(2)", "end what else uses it")


@both_providers
@pytest.mark.parametrize(
    ("code", "driver", "words"),
    [
        (35, 0, ("no NVIDIA driver", "--gpus all", "--runtime nvidia")),
        (34, 13000, ("no NVIDIA driver", "cudaErrorStubLibrary")),
        (35, 12060, ("CUDA 12.6", "CUDA 13.2", "'cuda-python<13'", "cudaErrorInsufficientDriver")),
        (35, 11040, ("CUDA 11.4", "update the driver")),
        (100, 13020, ("nvidia-smi", "CUDA_VISIBLE_DEVICES", "cudaErrorNoDevice")),
    ],
)
def test_a_machine_without_a_gpu_is_told_why(
    fake_cudart: FakeCudart, provider: str, code: int, driver: int, words: tuple[str, ...]
) -> None:
    fake_cudart.driver_version = driver
    fake_cudart.fail("cudaGetDeviceCount", code)
    refusal_of(NoGpuError, lambda: fake_cudart.cuda(provider), *words)
    assert issubclass(NoGpuError, UsageError)
    assert NoGpuError.exit_code == 2


def test_a_runtime_that_fails_throughout_ends_in_an_error(fake_cudart: FakeCudart) -> None:
    for name in set(FUNCTIONS) - DESCRIBING:
        fake_cudart.fail(name, 35)
    refusal_of(NoGpuError, fake_cudart.cuda)


def test_cuda_python_that_cannot_load_the_driver_says_so_too(fake_cudart: FakeCudart) -> None:
    """Version 12.6 raises RuntimeError("Failed to dlopen libcuda.so.1") from most functions."""
    module = fake_cudart.module()

    def without_driver() -> Any:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    module.cudaDriverGetVersion = module.cudaGetDeviceCount = without_driver
    opening = cudart.CudaPython(module)
    refusal_of(NoGpuError, lambda: Cuda(opening), "cudaErrorInsufficientDriver")


def test_versions_are_read_as_people_write_them(fake_cudart: FakeCudart) -> None:
    fake_cudart.runtime_version, fake_cudart.driver_version = 12060, 13020
    cuda = fake_cudart.cuda()
    assert (cuda.runtime_version, cuda.driver_version) == ("12.6", "13.2")
    assert cuda.provider == "ctypes"


def test_a_runtime_too_new_for_the_driver_makes_way_for_one_that_fits(
    monkeypatch: pytest.MonkeyPatch, fake_cudart: FakeCudart
) -> None:
    too_new = type(fake_cudart)()
    too_new.driver_version = 12060
    too_new.fail("cudaGetDeviceCount", 35)
    found = [cudart.CudaPython(too_new.module()), fake_cudart.runtime()]
    monkeypatch.setattr(cuda_room, "runtimes", lambda provider: iter(found))
    assert open_cuda().provider == "ctypes"
    fake_cudart.fail("cudaGetDeviceCount", 100)
    refusal_of(NoGpuError, open_cuda, "CUDA 12.6")


def test_a_gpu_that_fails_to_start_is_not_taken_for_an_absent_one(
    monkeypatch: pytest.MonkeyPatch, fake_cudart: FakeCudart
) -> None:
    fake_cudart.fail("cudaSetDevice", 719)
    monkeypatch.setattr(cuda_room, "runtimes", lambda provider: iter([fake_cudart.runtime()]))
    refusal_of(CudaError, open_cuda, "cudaSetDevice", "cudaErrorLaunchFailure")


@pytest.mark.parametrize(
    ("provider", "name"),
    [(None, "The CUDA runtime"), ("ctypes", "libcudart"), ("cuda-python", "cuda-python")],
)
def test_a_machine_without_the_runtime_is_told_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, provider: str | None, name: str
) -> None:
    def absent(path: str) -> Any:
        raise (ImportError if path.startswith("cuda.") else OSError)(path)

    monkeypatch.setattr(cudart, "importlib", SimpleNamespace(import_module=absent))
    monkeypatch.setattr(ctypes, "CDLL", absent)
    install = "pip install 'gft-edge[tensorrt]'"
    refusal_of(MissingDependencyError, lambda: open_cuda(provider), name, install)


def test_an_unknown_provider_is_refused() -> None:
    refusal_of(UsageError, lambda: open_cuda("pycuda"), "pycuda", *PROVIDERS)


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
    assert list(runtimes("ctypes")) == []
    assert tried == [
        "libcudart.so.13",
        "/usr/local/cuda/lib64/libcudart.so.13",
        "libcudart.so.12",
        str(wheel),
        "/usr/local/cuda/lib64/libcudart.so.12",
    ]


def test_older_cuda_python_is_found_under_its_older_name(monkeypatch: pytest.MonkeyPatch) -> None:
    older = SimpleNamespace()

    def import_module(name: str) -> Any:
        if name == "cuda.bindings.runtime":
            raise ImportError(name)
        return older

    monkeypatch.setattr(cudart, "importlib", SimpleNamespace(import_module=import_module))
    (runtime,) = runtimes("cuda-python")
    assert runtime.provider == "cuda-python"


# The real libraries, with or without a driver.


def real(provider: str) -> Any:
    found = next(runtimes(provider), None)
    if found is None:
        pytest.skip(f"{provider} is not installed here")
    return found


def test_libcudart_has_every_function_of_the_table() -> None:
    assert isinstance(real("ctypes"), Libcudart)  # which types each of them


def test_cuda_python_has_every_function_of_the_table_with_its_inputs() -> None:
    real("cuda-python")
    module = importlib.import_module("cuda.bindings.runtime")
    for name, prototype in PROTOTYPES.items():
        # cudaMemcpyAsync(dst, src, size_t count, kind: cudaMemcpyKind, stream)
        signature = getattr(module, name).__doc__.splitlines()[0]
        inputs = re.fullmatch(rf"{name}\((.*)\)", signature)[1]  # type: ignore[index]
        written = inputs.split(", ") if inputs else []
        assert len(written) == len(prototype.inputs), signature
        for kind, text in zip(prototype.inputs, written, strict=True):
            assert text.isidentifier() if kind in ADDRESSES else kind in text, signature


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


@both_providers
def test_without_a_driver_both_providers_say_so_alike(provider: str) -> None:
    runtime = real(provider)
    code, versions = runtime.call("cudaDriverGetVersion")
    if not code and versions[0]:
        pytest.skip("this machine has an NVIDIA driver")
    refusal_of(NoGpuError, lambda: open_cuda(provider), "cudaErrorInsufficientDriver")


@both_providers
def test_every_function_of_the_real_runtime_takes_what_the_table_says(provider: str) -> None:
    """Without a driver each of them answers with its code before it looks at a handle."""
    runtime = real(provider)
    code, versions = runtime.call("cudaDriverGetVersion")
    if not code and versions[0]:
        pytest.skip("this machine has an NVIDIA driver: a made-up handle would be followed")
    answers = {
        name: runtime.call(name, *(1 for _ in prototype.inputs))[0]
        for name, prototype in PROTOTYPES.items()
        if name not in DESCRIBING | TOLERATED
    }
    assert set(answers.values()) == {35}, answers
    assert runtime.call("cudaGetErrorName", 35) == (0, ("cudaErrorInsufficientDriver",))


# A GPU.


def cuda_of_the_gpu(provider: str) -> Cuda:
    try:
        open_cuda()
    except GftEdgeError as error:
        pytest.skip(str(error))
    real(provider)
    return open_cuda(provider)


@pytest.mark.gpu
@both_providers
def test_a_gpu_gets_images_and_gives_them_back(provider: str) -> None:
    cuda = cuda_of_the_gpu(provider)
    free_before, _ = cuda.memory()
    for _ in range(20):
        gpu = round_trip(cuda)
    assert re.fullmatch(r"\d+\.\d", gpu.compute_capability)
    assert gpu.name
    assert cuda.memory()[0] >= free_before - (64 << 20)


@pytest.mark.gpu
@both_providers
def test_a_gpu_says_how_much_it_cannot_give(provider: str) -> None:
    cuda = cuda_of_the_gpu(provider)
    refusal_of(CudaError, lambda: cuda.device_buffer(1 << 50), f"{1 << 50} bytes", "bytes free")
    round_trip(cuda)
