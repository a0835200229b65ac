"""The few CUDA runtime calls that an engine needs, on device 0.

Addresses, streams, events and graphs are plain integers; sizes are in bytes.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.errors import CudaError, GftEdgeError, MissingDependencyError, NoGpuError
from gft_edge.nvidia.cudart import PROTOTYPES, Runtime, runtimes

# From driver_types.h.
_OUT_OF_MEMORY, _STUB_LIBRARY, _INSUFFICIENT_DRIVER, _NO_DEVICE = 2, 34, 35, 100
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
_HOST_PORTABLE, _HOST_MAPPED = 1, 2
_MULTIPROCESSORS, _INTEGRATED, _CAPABILITY_MAJOR, _CAPABILITY_MINOR = 16, 18, 75, 76
_STREAM_NON_BLOCKING = 1
_CAPTURE_THREAD_LOCAL = 1


@dataclass(frozen=True)
class Gpu:
    """Device 0, as CUDA_VISIBLE_DEVICES counts. An integrated one computes in the host's memory."""

    name: str
    compute_capability: str
    integrated: bool
    multiprocessors: int


class Cuda:
    """Device 0 and what can be had on it. What is taken is given back by whoever took it.

    Every method raises CudaError, in one line, where the runtime refuses.
    """

    def __init__(self, runtime: Runtime) -> None:
        """Raises NoGpuError where no device answers."""
        self._runtime = runtime
        self.runtime_version = _version(self._cuda_version("Runtime"))
        self.driver_version = _version(self._cuda_version("Driver"))
        self.call("cudaGetDeviceCount")
        self.use_device()

    def call(self, name: str, *inputs: int) -> tuple[Any, ...]:
        """The outputs of one function of the table."""
        code, outputs = self._try(name, *inputs)
        if code:
            raise self._error(name, inputs, code)
        return outputs

    def give_back(self, name: str, handle: int) -> None:
        """Destroy by cudaFree, cudaStreamDestroy and the like, after all work in flight.

        Its code is dropped: a call that destroys can only report what went wrong before.
        """
        self._try(name, handle)

    def use_device(self) -> None:
        """Make the device the calling thread's: each thread has its own choice."""
        self.call("cudaSetDevice", 0)

    def gpu(self) -> Gpu:
        """What the device says of itself."""
        wanted = (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _INTEGRATED, _MULTIPROCESSORS)
        major, minor, integrated, multiprocessors = (
            self.call("cudaDeviceGetAttribute", attribute, 0)[0] for attribute in wanted
        )
        (name,) = self.call("cudaGetDeviceProperties", 0)
        return Gpu(name, f"{major}.{minor}", bool(integrated), multiprocessors)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        free, total = self.call("cudaMemGetInfo")
        return free, total

    def device_buffer(self, size: int) -> int:
        """The address of uninitialised device memory, for cudaFree."""
        return self._made("cudaMalloc", size)

    def pinned_buffer(self, size: int, mapped: bool = False) -> int:
        """The address of page-locked host memory, for cudaFreeHost. The device sees it if mapped."""
        return self._made("cudaHostAlloc", size, _HOST_PORTABLE | (_HOST_MAPPED if mapped else 0))

    def device_address(self, host: int) -> int:
        """Where the device sees mapped host memory."""
        return self._made("cudaHostGetDevicePointer", host, 0)

    def stream(self) -> int:
        """A stream that does not wait for the default one, for cudaStreamDestroy."""
        return self._made("cudaStreamCreateWithFlags", _STREAM_NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Wait for all work in the stream. What went wrong in it is raised here."""
        self.call("cudaStreamSynchronize", stream)

    def event(self) -> int:
        """A point in time to be recorded, for cudaEventDestroy."""
        return self._made("cudaEventCreate")

    def record(self, event: int, stream: int) -> None:
        """Put the event into the stream."""
        self.call("cudaEventRecord", event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two recorded events, once their stream is synchronized."""
        (milliseconds,) = self.call("cudaEventElapsedTime", start, end)
        return float(milliseconds)

    def copy_to_device(self, device: int, host: int, size: int, stream: int) -> None:
        """Queue a copy; the host memory is read until the stream is synchronized."""
        self.call("cudaMemcpyAsync", device, host, size, _HOST_TO_DEVICE, stream)

    def copy_to_host(self, host: int, device: int, size: int, stream: int) -> None:
        """Queue a copy; the host memory is written until the stream is synchronized."""
        self.call("cudaMemcpyAsync", host, device, size, _DEVICE_TO_HOST, stream)

    def begin_capture(self, stream: int) -> None:
        """From here the calling thread's work in the stream is noted down and not done."""
        self.call("cudaStreamBeginCapture", stream, _CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """What was noted down, ready for launch and for cudaGraphExecDestroy."""
        graph = self._made("cudaStreamEndCapture", stream)
        try:
            return self._made("cudaGraphInstantiate", graph, 0)
        finally:
            self.give_back("cudaGraphDestroy", graph)

    def launch(self, graph_exec: int, stream: int) -> None:
        """Queue the captured work."""
        self.call("cudaGraphLaunch", graph_exec, stream)

    def _made(self, name: str, *inputs: int) -> int:
        """The one address or handle that a function returns."""
        (handle,) = self.call(name, *inputs)
        return int(handle)

    def _try(self, name: str, *inputs: int) -> tuple[int, tuple[Any, ...]]:
        code, outputs = self._runtime.call(name, *inputs)
        if code:
            # Left behind, it would be blamed on the next library that asks for the last error.
            self._runtime.call("cudaGetLastError")
        return code, outputs

    def _cuda_version(self, of: str) -> int:
        """12060 for 12.6; 0 where there is no driver."""
        code, outputs = self._try(f"cuda{of}GetVersion")
        return 0 if code else int(outputs[0])

    def _error(self, call: str, inputs: tuple[int, ...], code: int) -> GftEdgeError:
        (name,) = self.call("cudaGetErrorName", code)
        if code in (_STUB_LIBRARY, _INSUFFICIENT_DRIVER, _NO_DEVICE):
            return NoGpuError(f"{self._why_no_gpu(code)} ({call}: {name})")
        (detail,) = self.call("cudaGetErrorString", code)
        if code == _OUT_OF_MEMORY:
            asked = dict(zip(PROTOTYPES[call].inputs, inputs, strict=True)).get("size_t")
            refused, room = self._try("cudaMemGetInfo")
            detail += f", {asked} bytes asked for" if asked else ""
            detail += "" if refused else ", {} of the GPU's {} bytes free".format(*room)
            detail += ": end what else uses it, or run a smaller network"
        return CudaError(call, name, code, detail)

    def _why_no_gpu(self, code: int) -> str:
        if code == _NO_DEVICE:
            return (
                "the driver finds no GPU: see that nvidia-smi lists one and that "
                "CUDA_VISIBLE_DEVICES does not hide it"
            )
        driver, runtime = self._cuda_version("Driver"), self._cuda_version("Runtime")
        if code == _STUB_LIBRARY or not driver:
            return (
                "no NVIDIA driver here: install it, or start the container with --gpus all "
                "(on a Jetson --runtime nvidia)"
            )
        # The oldest that has these functions: cudaGraphInstantiate took other parameters before.
        older = ", or install its runtime: pip install nvidia-cuda-runtime-cu12"
        return (
            f"the driver supports CUDA {_version(driver)} and this runtime is CUDA "
            f"{_version(runtime)}: update the driver{older if driver // 1000 == 12 else ''}"
        )


def open_cuda() -> Cuda:
    """Open the first runtime that a GPU answers to.

    A machine can have a runtime too new for its driver in front of one that fits: then the second
    is opened. Raises NoGpuError with what the first one said, MissingDependencyError.
    """
    refusals = []
    for runtime in runtimes():
        try:
            return Cuda(runtime)
        except NoGpuError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]
    raise MissingDependencyError("The CUDA runtime", "tensorrt")


def host_view(address: int, size: int) -> npt.NDArray[np.uint8]:
    """Host memory as an array, without a copy. It must outlive the array."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
