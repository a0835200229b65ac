"""A libcudart over host memory: C functions that run, record, count what lives and fail when told.

A stream is lazy: its work is done when something waits for it, so that a forgotten wait shows.
A function that destroys destroys even when told to fail, as CUDA does: its code is an earlier error's.
"""

# ruff: noqa: N802 - the methods have the names of C functions
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


class FakeCudart:
    """`live` counts objects by kind, `calls` are (name, inputs), `fail` makes a function fail.

    The C functions stand at the end, by their own names.
    """

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
        self._callbacks = {name: self._callback(name) for name in PROTOTYPES}

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
        assert name in PROTOTYPES
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
        """Over this fake as a CDLL: functions of unknown types, to which an int has 32 bits."""
        make: Any = ctypes.CDLL(None)._FuncPtr
        functions = {
            name: make(ctypes.cast(callback, c_void_p).value)
            for name, callback in self._callbacks.items()
        }
        return Runtime(SimpleNamespace(**functions))

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
        waiting, self._streams[stream] = self._streams[stream], []
        for work in waiting:
            self._clock_ms += 1
            work()

    def refuse_in_capture(self, stream: int) -> bool:
        """Whether a stream is being captured; what may not be done in a capture has then broken it."""
        return stream in self._captures and bool(self._invalidate())

    def device_sees(self, address: int, size: int) -> bool:
        """Whether this is live memory of the device's, which page-locked memory alone is not."""
        return any(
            kind != "pinned" and start <= address and address + size <= start + len(buffer)
            for start, (kind, buffer) in self._memory.items()
        )

    def _callback(self, name: str) -> Any:
        prototype, method = PROTOTYPES[name], getattr(self, name)
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
                code = BAD_HANDLE if any(lost) else method(*arguments)
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
            self.drain(stream)
        self.free_bytes += len(self._memory.pop(address)[1])
        return 0

    def _invalidate(self) -> int:
        self._captures = dict.fromkeys(self._captures)
        return UNSUPPORTED

    def cudaGetErrorName(self, code: int) -> int:
        return self._text(ERRORS.get(code, "unrecognized error code"))

    def cudaGetErrorString(self, code: int) -> int:
        return self._text(f"the fake's words for {code}")

    def _text(self, text: str) -> int:
        self._texts.append(ctypes.create_string_buffer(text.encode()))
        return ctypes.addressof(self._texts[-1])

    def cudaGetLastError(self) -> int:
        code, self.last_error = self.last_error, 0
        return code

    def cudaRuntimeGetVersion(self, out: Any) -> int:
        out[0] = self.runtime_version
        return 0

    def cudaDriverGetVersion(self, out: Any) -> int:
        out[0] = self.driver_version
        return 0

    def cudaGetDeviceCount(self, out: Any) -> int:
        out[0] = 1
        return 0

    def cudaSetDevice(self, device: int) -> int:
        return 0 if device == 0 else INVALID

    def cudaDeviceGetAttribute(self, out: Any, attribute: int, device: int) -> int:
        attributes = {
            CAPABILITY_MAJOR: 8,
            CAPABILITY_MINOR: 7,
            INTEGRATED: self.integrated,
            MULTIPROCESSORS: 8,
        }
        out[0] = attributes[attribute]
        return 0

    def cudaGetDeviceProperties(self, out: Any, device: int) -> int:
        ctypes.memset(out, 0x7F, 1032)  # sizeof(cudaDeviceProp) in CUDA 12
        name = b"Fake Orin\0"
        ctypes.memmove(out, name, len(name))
        return 0

    def cudaMemGetInfo(self, free: Any, total: Any) -> int:
        free[0], total[0] = self.free_bytes, self.total_bytes
        return 0

    def cudaMalloc(self, out: Any, size: int) -> int:
        return self._allocate("device", out, size)

    def cudaFree(self, address: int) -> int:
        return self._release("device", address)

    def cudaHostAlloc(self, out: Any, size: int, flags: int) -> int:
        return self._allocate("mapped" if flags & 2 else "pinned", out, size)

    def cudaFreeHost(self, address: int) -> int:
        kind = self._memory.get(address, ("pinned", None))[0]
        return INVALID if kind == "device" else self._release(kind, address)

    def cudaHostGetDevicePointer(self, out: Any, host: int, flags: int) -> int:
        if flags or self._memory.get(host, ("", None))[0] != "mapped":
            return INVALID
        out[0] = host
        return 0

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> int:
        if not self.device_sees(to if kind == 1 else source, size):
            return INVALID
        self.enqueue(stream, lambda: ctypes.memmove(to, source, size))
        return 0

    def cudaStreamCreateWithFlags(self, out: Any, flags: int) -> int:
        return self._made(out, self._streams, [])

    def cudaStreamSynchronize(self, stream: int) -> int:
        if stream in self._captures:
            return self._invalidate()
        self.drain(stream)
        return 0

    def cudaStreamDestroy(self, stream: int) -> int:
        self.drain(stream)
        del self._streams[stream]
        self._captures.pop(stream, None)
        return 0

    def cudaEventCreate(self, out: Any) -> int:
        return self._made(out, self._events, None)

    def cudaEventRecord(self, event: int, stream: int) -> int:
        self._events[event] = None

        def reached() -> None:
            if event in self._events:
                self._events[event] = self._clock_ms

        self.enqueue(stream, reached)
        return 0

    def cudaEventElapsedTime(self, out: Any, start: int, end: int) -> int:
        began, ended = self._events[start], self._events[end]
        if began is None or ended is None:
            return NOT_READY
        out[0] = ended - began
        return 0

    def cudaEventDestroy(self, event: int) -> int:
        del self._events[event]
        return 0

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> int:
        if stream in self._captures:
            return INVALID
        self._captures[stream] = []
        return 0

    def cudaStreamEndCapture(self, stream: int, out: Any) -> int:
        if stream not in self._captures:
            return INVALID
        captured = self._captures.pop(stream)
        if captured is None:
            out[0] = None
            return INVALIDATED
        return self._made(out, self._graphs, captured)

    def cudaGraphInstantiate(self, out: Any, graph: int, flags: int) -> int:
        return self._made(out, self._executables, list(self._graphs[graph]))

    def cudaGraphDestroy(self, graph: int) -> int:
        del self._graphs[graph]
        return 0

    def cudaGraphLaunch(self, executable: int, stream: int) -> int:
        for work in self._executables[executable]:
            self.enqueue(stream, work)
        return 0

    def cudaGraphExecDestroy(self, executable: int) -> int:
        del self._executables[executable]
        return 0
