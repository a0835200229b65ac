"""The CUDA runtime's functions, called in one way through cuda-python or ctypes."""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

PROVIDERS = ("cuda-python", "ctypes")

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

INSUFFICIENT_DRIVER = 35


class Prototype:
    """A row of the table, read. `parameters` are (is an output, C type), in order."""

    def __init__(self, row: str) -> None:
        row, _, self.returns = row.partition(" -> ")
        words = row.split(", ") if row else []
        self.parameters = [(word.startswith("out "), word.removeprefix("out ")) for word in words]
        self.inputs = [kind for is_output, kind in self.parameters if not is_output]
        self.outputs = [kind for is_output, kind in self.parameters if is_output]


PROTOTYPES = {name: Prototype(row) for name, row in FUNCTIONS.items()}


class Runtime(Protocol):
    """A way to the CUDA runtime."""

    provider: str

    def call(self, name: str, *inputs: int) -> tuple[int, tuple[Any, ...]]:
        """The error code of a function of the table, then its outputs; none after an error."""


class CudaPython:
    """The module cuda.bindings.runtime, or cuda.cudart as it was called at first."""

    provider = "cuda-python"

    def __init__(self, module: Any) -> None:
        self._module = module

    def call(self, name: str, *inputs: int) -> tuple[int, tuple[Any, ...]]:
        """Enums are classes here, and handles are objects that int() reads."""
        prototype = PROTOTYPES[name]
        given = [
            getattr(self._module, kind)(value) if kind in ENUMS else value
            for kind, value in zip(prototype.inputs, inputs, strict=True)
        ]
        try:
            code, *outputs = getattr(self._module, name)(*given)
        # cuda-python 12.6 raises this where it finds no libcuda; later ones return the code.
        except RuntimeError:
            return INSUFFICIENT_DRIVER, ()
        if code:
            return int(code), ()
        return 0, tuple(_plain(output) for output in outputs)


class Libcudart:
    """The shared library. Its functions get the table's types: a handle has 64 bits."""

    provider = "ctypes"

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
        """Outputs are written into zeros."""
        prototype = PROTOTYPES[name]
        outputs = [C_TYPES[kind]() for kind in prototype.outputs]
        pointers, given = map(ctypes.byref, outputs), iter(inputs)
        arguments = [next(pointers if is_out else given) for is_out, _ in prototype.parameters]
        result = getattr(self._library, name)(*arguments)
        if prototype.returns:
            return 0, (_plain(result),)
        return result, () if result else tuple(_plain(output.value) for output in outputs)


def runtimes(provider: str | None) -> Iterator[Runtime]:
    """Those installed here, of one provider or of all."""
    if provider != "ctypes":
        for name in ("cuda.bindings.runtime", "cuda.cudart"):
            try:
                module = importlib.import_module(name)
            except ImportError:
                continue
            yield CudaPython(module)
            break
    if provider != "cuda-python":
        for name in ("libcudart.so.13", "libcudart.so.12"):
            library = _library(name)
            if library is not None:
                yield Libcudart(library)


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
    output = getattr(output, "name", output)  # of cuda-python's cudaDeviceProp
    if isinstance(output, bytes):
        return output.decode()
    # A null pointer is None to ctypes.
    return output if isinstance(output, float) else int(output or 0)
