"""A libcudart over host memory: C functions that run, record, count what lives and fail when told.

A stream is lazy: its work is done when something waits for it, so that a forgotten wait shows.
A function that destroys destroys even when told to fail, as CUDA does: its code is an earlier error's.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from ctypes import c_int, c_void_p
from types import SimpleNamespace
from typing import Any

from gft_edge.nvidia.cuda import Cuda
from gft_edge.nvidia.cudart import C_TYPES, PROTOTYPES, Runtime

ERRORS = {
    0: "cudaSuccess",
    1: "cudaErrorInvalidValue",
    2: "cudaErrorMemoryAllocation",
    34: "cudaErrorStubLibrary",
    35: "cudaErrorInsufficientDriver",
    100: "cudaErrorNoDevice",
    400: "cudaErrorInvalidResourceHandle",
    600: "cudaErrorNotReady",
    700: "cudaErrorIllegalAddress",
    719: "cudaErrorLaunchFailure",
    900: "cudaErrorStreamCaptureUnsupported",
    901: "cudaErrorStreamCaptureInvalidated",
}
INVALID, OUT_OF_MEMORY, BAD_HANDLE, NOT_READY, UNSUPPORTED, INVALIDATED = 1, 2, 400, 600, 900, 901
CAPABILITY_MAJOR, CAPABILITY_MINOR, INTEGRATED, MULTIPROCESSORS = 75, 76, 18, 16

Work = Callable[[], object]
METHODS: dict[str, Any] = {}


def exported(name: str) -> Callable[[Any], Any]:
    """Mark a method as the C function of that name; the header's test holds the table of its types."""

    def mark(method: Any) -> Any:
        METHODS[name] = method
        return method

    return mark


class FakeCudart:
    """`live` counts objects by kind, `calls` are (name, inputs), `fail` makes a function fail."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.runtime_version = 13020
        self.driver_version = 13020
        self.free_bytes = self.total_bytes = 1 << 30
        self.integrated = True
        self.last_error = 0
        self._codes: dict[str, int] = {}
        self._code_of_call: dict[int, int] = {}
        self._clock_ms = 0
        # High above 32 bits, where a truncated handle is none.
        self._next_handle = 0x7ABC_0000_0010
        self._memory: dict[int, tuple[str, Any]] = {}
        self._streams: dict[int, list[Work]] = {}
        self._captures: dict[int, list[Work] | None] = {}
        self._events: dict[int, int | None] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._executables: dict[int, list[Work]] = {}
        self._texts: list[Any] = []
        # Kept: a C function dies with its Python object.
        self._callbacks = {name: self._callback(name, method) for name, method in METHODS.items()}

    @property
    def live(self) -> Counter[str]:
        """Kind -> how many were made and not destroyed: {} when nothing leaks."""
        live = Counter(kind for kind, _ in self._memory.values())
        live.update({kind: len(made) for kind, made in self._handles.values() if made})
        return live

    @property
    def _handles(self) -> dict[str, tuple[str, dict[int, Any]]]:
        """C type -> what it is called here, and those that live."""
        return {
            "cudaStream_t": ("stream", self._streams),
            "cudaEvent_t": ("event", self._events),
            "cudaGraph_t": ("graph", self._graphs),
            "cudaGraphExec_t": ("executable", self._executables),
        }

    def fail(self, name: str, code: int) -> None:
        """Make every later call of a function return this code; 0 makes it work again."""
        assert name in METHODS
        assert code in ERRORS
        self._codes[name] = code

    def fail_call(self, index: int, code: int) -> None:
        """Make one call fail, the one that becomes `calls[index]`."""
        assert index >= len(self.calls)
        assert code in ERRORS
        self._code_of_call[index] = code

    def forget_failures(self) -> None:
        """From here every call works."""
        self._codes.clear()
        self._code_of_call.clear()

    def cuda(self) -> Cuda:
        """Opened over this fake."""
        return Cuda(self.runtime())

    def runtime(self) -> Runtime:
        """Over this fake as a shared library."""
        return Runtime(self.library())

    def library(self) -> Any:
        """Like a CDLL: functions of unknown types, so that an int goes in and out with 32 bits."""
        make: Any = ctypes.CDLL(None)._FuncPtr
        return SimpleNamespace(
            **{
                name: make(ctypes.cast(callback, c_void_p).value)
                for name, callback in self._callbacks.items()
            }
        )

    def enqueue(self, stream: int, work: Work) -> None:
        """Put work into a stream, as an engine does: into the graph while the stream is captured."""
        if stream in self._captures:
            captured = self._captures[stream]
            if captured is not None:
                captured.append(work)
        else:
            self._streams[stream].append(work)

    def drain(self, stream: int) -> None:
        """Do what waits in a stream, as an engine does that reports its times at once."""
        self._run(stream)

    def refuse_in_capture(self, stream: int) -> bool:
        """Whether a stream is being captured; what may not be done in a capture has then broken it."""
        return stream in self._captures and bool(self._invalidate())

    def device_sees(self, address: int, size: int) -> bool:
        """Whether this is live memory that a kernel may touch: page-locked is not enough."""
        return any(
            kind != "pinned" and start <= address and address + size <= start + len(buffer)
            for start, (kind, buffer) in self._memory.items()
        )

    def _callback(self, name: str, method: Any) -> Any:
        prototype = PROTOTYPES[name]
        returns_text = bool(prototype.returns)

        def entry(*given: Any) -> int:
            # A callback is given None for a null address.
            arguments = [0 if value is None else value for value in given]
            pairs = zip(arguments, prototype.parameters, strict=True)
            inputs = tuple(value for value, (is_output, _) in pairs if not is_output)
            self.calls.append((name, inputs))
            wanted = self._codes.get(name) or self._code_of_call.get(len(self.calls) - 1, 0)
            if name.startswith("cudaGet") and "Error" in name:
                wanted = 0  # these describe a failure, and have none
            if wanted and name == "cudaStreamEndCapture":
                self._invalidate()
            # What ends something ends it; any other failure does nothing.
            if not wanted or any(word in name for word in ("Destroy", "Free", "EndCapture")):
                known = self._handles
                lost = (
                    kind in known and value not in known[kind][1]
                    for kind, value in zip(prototype.inputs, inputs, strict=True)
                )
                code = BAD_HANDLE if any(lost) else method(self, *arguments)
            code = wanted or code
            if code and not returns_text and name != "cudaGetLastError":
                self.last_error = code
            return code

        types = [
            ctypes.POINTER(C_TYPES[kind]) if is_output else C_TYPES[kind]
            for is_output, kind in prototype.parameters
        ]
        return ctypes.CFUNCTYPE(c_void_p if returns_text else c_int, *types)(entry)

    def _made(self, out: Any, kind: dict[int, Any], value: Any) -> int:
        self._next_handle += 0x10
        out[0] = self._next_handle
        kind[out[0]] = value
        return 0

    def _allocate(self, kind: str, out: Any, size: int) -> int:
        if self._captures:
            return self._invalidate()
        if size > self.free_bytes:
            return OUT_OF_MEMORY
        buffer = ctypes.create_string_buffer(b"\xa5" * size, max(size, 1))
        out[0] = ctypes.addressof(buffer)
        self._memory[out[0]] = (kind, buffer)
        self.free_bytes -= size
        return 0

    def _release(self, kind: str, address: int) -> int:
        if not address:
            return 0
        if self._memory.get(address, ("", None))[0] != kind:
            return INVALID
        for stream in self._streams:
            self._run(stream)
        self.free_bytes += len(self._memory.pop(address)[1])
        return 0

    def _invalidate(self) -> int:
        self._captures = dict.fromkeys(self._captures)
        return UNSUPPORTED

    def _run(self, stream: int) -> None:
        waiting, self._streams[stream] = self._streams[stream], []
        for work in waiting:
            self._clock_ms += 1
            work()

    def _on_device(self, address: int, size: int) -> bool:
        return any(
            start <= address and address + size <= start + len(buffer)
            for start, (_, buffer) in self._memory.items()
        )

    @exported("cudaGetErrorName")
    def _error_name(self, code: int) -> int:
        return self._text(ERRORS.get(code, "unrecognized error code"))

    @exported("cudaGetErrorString")
    def _error_string(self, code: int) -> int:
        return self._text(f"the fake's words for {code}")

    def _text(self, text: str) -> int:
        self._texts.append(ctypes.create_string_buffer(text.encode()))
        return ctypes.addressof(self._texts[-1])

    @exported("cudaGetLastError")
    def _get_last_error(self) -> int:
        code, self.last_error = self.last_error, 0
        return code

    @exported("cudaRuntimeGetVersion")
    def _runtime_get_version(self, out: Any) -> int:
        out[0] = self.runtime_version
        return 0

    @exported("cudaDriverGetVersion")
    def _driver_get_version(self, out: Any) -> int:
        out[0] = self.driver_version
        return 0

    @exported("cudaGetDeviceCount")
    def _device_count(self, out: Any) -> int:
        out[0] = 1
        return 0

    @exported("cudaSetDevice")
    def _set_device(self, device: int) -> int:
        return 0 if device == 0 else INVALID

    @exported("cudaDeviceGetAttribute")
    def _attribute(self, out: Any, attribute: int, device: int) -> int:
        attributes = {
            CAPABILITY_MAJOR: 8,
            CAPABILITY_MINOR: 7,
            INTEGRATED: self.integrated,
            MULTIPROCESSORS: 8,
        }
        out[0] = attributes[attribute]
        return 0

    @exported("cudaGetDeviceProperties")
    def _properties(self, out: Any, device: int) -> int:
        ctypes.memset(out, 0x7F, 1032)  # sizeof(cudaDeviceProp) in CUDA 12
        name = b"Fake Orin\0"
        ctypes.memmove(out, name, len(name))
        return 0

    @exported("cudaMemGetInfo")
    def _memory_info(self, free: Any, total: Any) -> int:
        free[0], total[0] = self.free_bytes, self.total_bytes
        return 0

    @exported("cudaMalloc")
    def _malloc(self, out: Any, size: int) -> int:
        return self._allocate("device", out, size)

    @exported("cudaFree")
    def _free(self, address: int) -> int:
        return self._release("device", address)

    @exported("cudaHostAlloc")
    def _host_alloc(self, out: Any, size: int, flags: int) -> int:
        return self._allocate("mapped" if flags & 2 else "pinned", out, size)

    @exported("cudaFreeHost")
    def _free_host(self, address: int) -> int:
        kind = self._memory.get(address, ("pinned", None))[0]
        return INVALID if kind == "device" else self._release(kind, address)

    @exported("cudaHostGetDevicePointer")
    def _host_pointer(self, out: Any, host: int, flags: int) -> int:
        if flags or self._memory.get(host, ("", None))[0] != "mapped":
            return INVALID
        out[0] = host
        return 0

    @exported("cudaMemcpyAsync")
    def _memcpy(self, to: int, source: int, size: int, kind: int, stream: int) -> int:
        if not self._on_device(to if kind == 1 else source, size):
            return INVALID
        self.enqueue(stream, lambda: ctypes.memmove(to, source, size))
        return 0

    @exported("cudaStreamCreateWithFlags")
    def _stream_create(self, out: Any, flags: int) -> int:
        return self._made(out, self._streams, [])

    @exported("cudaStreamSynchronize")
    def _synchronize(self, stream: int) -> int:
        if stream in self._captures:
            return self._invalidate()
        self._run(stream)
        return 0

    @exported("cudaStreamDestroy")
    def _stream_destroy(self, stream: int) -> int:
        self._run(stream)
        del self._streams[stream]
        self._captures.pop(stream, None)
        return 0

    @exported("cudaEventCreate")
    def _event_create(self, out: Any) -> int:
        return self._made(out, self._events, None)

    @exported("cudaEventRecord")
    def _event_record(self, event: int, stream: int) -> int:
        self._events[event] = None

        def reached() -> None:
            if event in self._events:
                self._events[event] = self._clock_ms

        self.enqueue(stream, reached)
        return 0

    @exported("cudaEventElapsedTime")
    def _elapsed(self, out: Any, start: int, end: int) -> int:
        began, ended = self._events[start], self._events[end]
        if began is None or ended is None:
            return NOT_READY
        out[0] = ended - began
        return 0

    @exported("cudaEventDestroy")
    def _event_destroy(self, event: int) -> int:
        del self._events[event]
        return 0

    @exported("cudaStreamBeginCapture")
    def _begin_capture(self, stream: int, mode: int) -> int:
        if stream in self._captures:
            return INVALID
        self._captures[stream] = []
        return 0

    @exported("cudaStreamEndCapture")
    def _end_capture(self, stream: int, out: Any) -> int:
        if stream not in self._captures:
            return INVALID
        captured = self._captures.pop(stream)
        if captured is None:
            out[0] = None
            return INVALIDATED
        return self._made(out, self._graphs, captured)

    @exported("cudaGraphInstantiate")
    def _instantiate(self, out: Any, graph: int, flags: int) -> int:
        return self._made(out, self._executables, list(self._graphs[graph]))

    @exported("cudaGraphDestroy")
    def _graph_destroy(self, graph: int) -> int:
        del self._graphs[graph]
        return 0

    @exported("cudaGraphLaunch")
    def _launch(self, executable: int, stream: int) -> int:
        for work in self._executables[executable]:
            self.enqueue(stream, work)
        return 0

    @exported("cudaGraphExecDestroy")
    def _executable_destroy(self, executable: int) -> int:
        del self._executables[executable]
        return 0
