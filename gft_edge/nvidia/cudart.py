"""The CUDA runtime's functions, called through ctypes by one table of their parameters."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# C parameters, the same in CUDA 12 and 13. The call writes through an "out" pointer. All but those
# with an arrow return cudaError_t.
FUNCTIONS = {
    "cudaRuntimeGetVersion": "out int",
    "cudaDriverGetVersion": "out int",
    "cudaGetErrorName": "cudaError_t -> char*",
    "cudaGetErrorString": "cudaError_t -> char*",
    "cudaGetLastError": "",
    "cudaGetDeviceCount": "out int",
    "cudaSetDevice": "int",
    "cudaDeviceGetAttribute": "out int, cudaDeviceAttr, int",
    "cudaGetDeviceProperties": "out cudaDeviceProp, int",
    "cudaMemGetInfo": "out size_t, out size_t",
    "cudaMalloc": "out void*, size_t",
    "cudaFree": "void*",
    "cudaHostAlloc": "out void*, size_t, unsigned int",
    "cudaHostGetDevicePointer": "out void*, void*, unsigned int",
    "cudaFreeHost": "void*",
    "cudaMemcpyAsync": "void*, void*, size_t, cudaMemcpyKind, cudaStream_t",
    "cudaStreamCreateWithFlags": "out cudaStream_t, unsigned int",
    "cudaStreamSynchronize": "cudaStream_t",
    "cudaStreamDestroy": "cudaStream_t",
    "cudaEventCreate": "out cudaEvent_t",
    "cudaEventRecord": "cudaEvent_t, cudaStream_t",
    "cudaEventElapsedTime": "out float, cudaEvent_t, cudaEvent_t",
    "cudaEventDestroy": "cudaEvent_t",
    "cudaStreamBeginCapture": "cudaStream_t, cudaStreamCaptureMode",
    "cudaStreamEndCapture": "cudaStream_t, out cudaGraph_t",
    "cudaGraphInstantiate": "out cudaGraphExec_t, cudaGraph_t, unsigned long long",
    "cudaGraphDestroy": "cudaGraph_t",
    "cudaGraphLaunch": "cudaGraphExec_t, cudaStream_t",
    "cudaGraphExecDestroy": "cudaGraphExec_t",
}

ENUMS = ("cudaError_t", "cudaDeviceAttr", "cudaMemcpyKind", "cudaStreamCaptureMode")
ADDRESSES = ("void*", "cudaStream_t", "cudaEvent_t", "cudaGraph_t", "cudaGraphExec_t")

C_TYPES: dict[str, Any] = {
    **dict.fromkeys(ENUMS, ctypes.c_int),
    **dict.fromkeys(ADDRESSES, ctypes.c_void_p),
    "char*": ctypes.c_char_p,
    # It begins with `char name[256]`; the rest, 1 KiB so far, differs from release to release.
    "cudaDeviceProp": ctypes.c_char * 8192,
    "float": ctypes.c_float,
    "int": ctypes.c_int,
    "size_t": ctypes.c_size_t,
    "unsigned int": ctypes.c_uint,
    "unsigned long long": ctypes.c_ulonglong,
}


class Prototype:
    """A row of the table, read. `parameters` are (is an output, C type), in order."""

    def __init__(self, row: str) -> None:
        row, _, self.returns = row.partition(" -> ")
        words = row.split(", ") if row else []
        self.parameters = [(word.startswith("out "), word.removeprefix("out ")) for word in words]
        self.inputs = [kind for is_output, kind in self.parameters if not is_output]
        self.outputs = [kind for is_output, kind in self.parameters if is_output]


PROTOTYPES = {name: Prototype(row) for name, row in FUNCTIONS.items()}


class Runtime:
    """The shared library. Its functions get the table's types: a handle has 64 bits."""

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, prototype in PROTOTYPES.items():
            function = getattr(library, name)
            function.restype = C_TYPES[prototype.returns or "cudaError_t"]
            function.argtypes = [
                ctypes.POINTER(C_TYPES[kind]) if is_output else C_TYPES[kind]
                for is_output, kind in prototype.parameters
            ]

    def call(self, name: str, *inputs: int) -> tuple[int, tuple[Any, ...]]:
        """The error code of a function of the table, then its outputs; none after an error."""
        prototype = PROTOTYPES[name]
        outputs = [C_TYPES[kind]() for kind in prototype.outputs]
        pointers, given = map(ctypes.byref, outputs), iter(inputs)
        arguments = [next(pointers if is_out else given) for is_out, _ in prototype.parameters]
        result = getattr(self._library, name)(*arguments)
        if prototype.returns:
            return 0, (_plain(result),)
        return result, () if result else tuple(_plain(output.value) for output in outputs)


def runtimes() -> Iterator[Runtime]:
    """Give those installed here, the newest first."""
    for name in ("libcudart.so.13", "libcudart.so.12"):
        library = _library(name)
        if library is not None:
            yield Runtime(library)


def _library(name: str) -> Any:
    """The loader's, a wheel's or the toolkit's, or None."""
    wheels = [path for entry in sys.path for path in Path(entry).glob(f"nvidia/*/lib/{name}")]
    for path in (name, *wheels, f"/usr/local/cuda/lib64/{name}"):
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    return None


def _plain(output: Any) -> Any:
    """Text, a float or an int."""
    if isinstance(output, bytes):
        return output.decode()
    # A null pointer is None to ctypes.
    return output if isinstance(output, float) else int(output or 0)
