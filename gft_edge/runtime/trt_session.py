"""A TensorRT engine as a session: its buffers, its CUDA graph, its layers' times."""

from __future__ import annotations

import itertools
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.manifest import Engine
from gft_edge.errors import BundleError, FailedError, GftEdgeError, UsageError
from gft_edge.nvidia.cuda import Cuda, host_view
from gft_edge.nvidia.engines import deserialized, no_memory
from gft_edge.nvidia.library import Library
from gft_edge.runtime.backends import (
    CallTimes,
    OpenRequest,
    Session,
    check_images,
    check_signature,
    closed,
    ordered_outputs,
)


class TrtSession(Session):
    """One engine with its buffers and stream; `run` may be called from several threads.

    Where CPU and GPU share memory (Jetson) the buffers are mapped and nothing is copied. With
    `cuda_graph` the launches are recorded once and replayed.
    """

    def __init__(
        self, folder: Path, engine: Engine, library: Library, cuda: Cuda, request: OpenRequest
    ):
        self._cuda = cuda
        self._shape = request.input_shape
        self._wanted = ["logits", *request.kept_outputs]
        self._graph_wanted = request.cuda_graph
        self._flags = engine.flags
        self._graph: int | None = None
        self._arrays: dict[str, npt.NDArray[Any]] = {}  # over pinned memory
        self._hosts: dict[str, int] = {}
        self._addresses: dict[str, int] = {}
        self._shared = cuda.gpu().integrated
        self._context: Any = None
        self._stream = 0
        self._profiler: Any = None
        self._lock = threading.Lock()
        self._library = library
        self._log = library.log()
        self._held = ExitStack()
        try:
            self._load(folder, engine, library, request)
        except BaseException:
            self._held.close()
            raise

    def run(self, images: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """See Session."""
        with self._lock:
            self._accept(images)
            self._enqueue([])
            return self._outputs()

    def run_split(self, images: npt.NDArray[Any]) -> tuple[list[npt.NDArray[Any]], CallTimes]:
        """See Session. A run that records a CUDA graph, the first, counts that as computing."""
        with self._lock, ExitStack() as events:
            self._accept(images)
            self._cuda.use_device()
            marks = []
            for _ in range(4):
                marks.append(self._cuda.event())
                events.callback(self._cuda.give_back, "cudaEventDestroy", marks[-1])
            self._enqueue(marks)
            times = (self._cuda.elapsed_ms(*part) for part in itertools.pairwise(marks))
            return self._outputs(), CallTimes(*times)

    def flags(self) -> tuple[str, ...]:
        """See Session: the builder's flags, and how launches are made."""
        return (*self._flags, f"cuda_graph={self._graph_wanted}", f"mapped_memory={self._shared}")

    def time_layers(self) -> dict[str, float]:
        """Let each run from here on add its layers' milliseconds to what is returned, by layer name."""
        times_ms: dict[str, float] = {}
        with self._lock:
            self._check_open()
            # TensorRT keeps the bare pointer. With a profiler a launch returns when it has reported.
            self._profiler = _profiler(self._library.module.IProfiler, times_ms)
            self._context.profiler = self._profiler
        return times_ms

    def layer_information(self) -> str:
        """What the engine's inspector tells of its layers, as JSON."""
        with self._lock:
            self._check_open()
            inspector = self._context.engine.create_engine_inspector()
            form = self._library.module.LayerInformationFormat.JSON
            return str(inspector.get_engine_information(form))

    def close(self) -> None:
        """Release everything. Closing twice is harmless."""
        with self._lock:
            if self._context is not None:
                with suppress(GftEdgeError):
                    self._cuda.use_device()
            self._held.close()

    def __del__(self) -> None:
        # Dropped without close: what it holds on the GPU would stay until the process ends.
        with suppress(Exception):
            self.close()

    def _load(self, folder: Path, record: Engine, library: Library, request: OpenRequest) -> None:
        cuda, path = self._cuda, folder / record.path
        engine = deserialized(folder, record, library, cuda, self._log)
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        if set(names) != {"images", *self._wanted}:
            raise BundleError(f"{path} has the tensors {', '.join(names)}: build it again")
        shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        check_signature(path, request, shapes["images"], shapes["logits"])
        # What uses something is taken after it, to be given back before it.
        self._stream = self._hold("cudaStreamDestroy", cuda.stream())
        for name, shape in shapes.items():
            dtype = np.dtype(library.module.nptype(engine.get_tensor_dtype(name)))
            self._take_buffers(name, shape, dtype)
        self._context = engine.create_execution_context()
        if self._context is None:
            raise no_memory(path, engine.device_memory_size_v2, cuda, self._log)
        self._held.callback(self._drop_context)
        for name, address in self._addresses.items():
            self._log.clear()
            if not self._context.set_tensor_address(name, address):
                reason = self._log.first_error("it gives no reason")
                raise FailedError(f"TensorRT does not take the address of {name}: {reason}")
        self._held.callback(self._drop_graph)

    def _take_buffers(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        cuda, size = self._cuda, int(np.prod(shape)) * dtype.itemsize
        host = self._hold("cudaFreeHost", cuda.pinned_buffer(size, mapped=self._shared))
        if self._shared:
            address = cuda.device_address(host)
        else:
            address = self._hold("cudaFree", cuda.device_buffer(size))
        self._hosts[name], self._addresses[name] = host, address
        self._arrays[name] = host_view(host, size).view(dtype).reshape(shape)

    def _hold(self, free: str, handle: int) -> int:
        self._held.callback(self._cuda.give_back, free, handle)
        return handle

    def _accept(self, images: npt.NDArray[Any]) -> None:
        self._check_open()
        check_images(images, self._shape)
        given = self._arrays["images"]
        if images.dtype != given.dtype:
            raise UsageError(f"images are {images.dtype}, the engine takes {given.dtype}")
        np.copyto(given, images)

    def _check_open(self) -> None:
        if self._context is None:
            raise closed()

    def _enqueue(self, marks: list[int]) -> None:
        """Copy in, compute, copy out, wait. `marks` are four events around the three parts."""
        cuda, stream = self._cuda, self._stream
        cuda.use_device()

        def mark(number: int) -> None:
            if marks:
                cuda.record(marks[number], stream)

        try:
            mark(0)
            if not self._shared:
                given = self._arrays["images"]
                cuda.copy_to_device(
                    self._addresses["images"], self._hosts["images"], given.nbytes, stream
                )
            mark(1)
            self._compute()
            mark(2)
            if not self._shared:
                for name in self._wanted:
                    size = self._arrays[name].nbytes
                    cuda.copy_to_host(self._hosts[name], self._addresses[name], size, stream)
            mark(3)
        except BaseException:
            # What is queued already reads and writes buffers that the next run fills anew.
            with suppress(GftEdgeError):
                cuda.synchronize(stream)
            raise
        cuda.synchronize(stream)

    def _compute(self) -> None:
        if not self._graph_wanted:
            self._execute()
            return
        if self._graph is None:
            self._capture()
        else:
            self._cuda.launch(self._graph, self._stream)

    def _capture(self) -> None:
        """Run once plainly, which also settles what TensorRT allocates late, then record."""
        self._execute()
        self._cuda.synchronize(self._stream)
        self._cuda.begin_capture(self._stream)
        try:
            self._execute()
        except BaseException:
            with suppress(FailedError):
                self._cuda.give_back("cudaGraphExecDestroy", self._cuda.end_capture(self._stream))
            raise
        self._graph = self._cuda.end_capture(self._stream)

    def _execute(self) -> None:
        # Each failure with its own reason: what an earlier run has said is not it.
        self._log.clear()
        if not self._context.execute_async_v3(self._stream):
            raise FailedError(
                f"TensorRT did not run: {self._log.first_error('it gives no reason')}"
            )

    def _outputs(self) -> list[npt.NDArray[Any]]:
        # Copies: the buffers are written again by the next run.
        return ordered_outputs([self._arrays[name].copy() for name in self._wanted])

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self._cuda.give_back("cudaGraphExecDestroy", graph)

    def _drop_context(self) -> None:
        self._context = None


def _profiler(base: Any, times_ms: dict[str, float]) -> Any:
    class Profiler(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times_ms[layer_name] = times_ms.get(layer_name, 0.0) + ms

    return Profiler()
