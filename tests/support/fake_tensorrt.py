"""A tensorrt module whose engines compute, by ONNX Runtime, in the memory of the fake CUDA runtime.

It has the names that a session uses and no others. A plan is a header and an ONNX model; an engine's
work waits in its stream like any other, and is captured and replayed with it.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import json
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.onnx_bytes import GraphNode, graph_nodes

if TYPE_CHECKING:
    from tests.support.fake_cudart import FakeCudart

HEADER, PORTABLE_HEADER = b"a plan: ", b"a plan with its own runtime: "
SCRATCH_BYTES = 64 << 20
LAYER_MS = 0.01  # what a profiler is told of every layer

DTYPES: dict[str, type[Any]] = {
    "uint8": np.uint8,
    "float": np.float32,
    "float16": np.float16,
    "int64": np.int64,
}
DataType = enum.Enum("DataType", [name.upper() for name in DTYPES])  # type: ignore[misc]


Severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)
LayerInformationFormat = enum.Enum("LayerInformationFormat", "ONELINE JSON")


class ILogger:
    """What a logger inherits from."""

    Severity = Severity

    def log(self, severity: int, message: str) -> None:
        """To be overridden."""
        raise NotImplementedError


class IProfiler:
    """What a profiler inherits from, and constructs: a base that is not is none to TensorRT."""

    def __init__(self) -> None:
        self.constructed = True

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """To be overridden."""
        raise NotImplementedError


class FakeTensorrt:
    """`module` is to be used as tensorrt; calls are noted in the CUDA runtime's `calls`.

    `plans` are those that were deserialized, `host_code_allowed` whether each might bring code;
    `live` counts objects by kind. What is in `refused` is answered as TensorRT does when it cannot:
    with None, False or a TypeError. With a text in `refuse_in_capture` no engine can be captured.
    """

    def __init__(self, cudart: FakeCudart, version: str = "10.3.0") -> None:
        self.cudart = cudart
        self.plans: list[bytes] = []
        self.live: Counter[str] = Counter()
        self.refused: dict[str, str] = {}
        self.host_code_allowed: list[bool] = []
        self.refuse_in_capture: str | None = None
        self.module: Any = ModuleType("tensorrt")
        self.module.__dict__.update(
            __version__=version,
            ILogger=ILogger,
            IProfiler=IProfiler,
            LayerInformationFormat=LayerInformationFormat,
            Runtime=functools.partial(_Runtime, self),
            nptype=_nptype,
        )

    @staticmethod
    def plan_of(model: bytes, portable: bool = False) -> bytes:
        """What a build of this ONNX model gives; a portable plan carries code of its own."""
        return (PORTABLE_HEADER if portable else HEADER) + model

    def refuse(self, name: str, reason: str = "Error Code 3: the fake's reason") -> None:
        """Make every later call of a name fail with this in the log."""
        self.refused[name] = reason

    def refuses(self, name: str, logger: ILogger) -> bool:
        """Note a call, and say whether it is to fail."""
        self.cudart.calls.append((name, ()))
        if name not in self.refused:
            return False
        logger.log(Severity.ERROR, f"{self.refused[name]}\nIn an echo at line 74")
        return True


class _Counted:
    """Counted while it lives. Strict: __slots__ throughout."""

    __slots__ = ("_fake",)

    def __init__(self, fake: FakeTensorrt) -> None:
        self._fake = fake
        fake.live[self._kind()] += 1

    def __del__(self) -> None:
        live = self._fake.live
        live[self._kind()] -= 1
        self._fake.live = +live
        self._fake.cudart.calls.append((f"~{self._kind()}", ()))

    def _kind(self) -> str:
        return type(self).__name__.strip("_").lower()


class _Runtime(_Counted):
    __slots__ = ("_logger", "engine_host_code_allowed")

    def __init__(self, fake: FakeTensorrt, logger: ILogger) -> None:
        assert isinstance(logger, ILogger)
        super().__init__(fake)
        self.engine_host_code_allowed = False
        self._logger = logger
        if fake.refuses("Runtime", logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        assert isinstance(plan, bytes)
        fake, logger = self._fake, self._logger
        fake.plans.append(plan)
        fake.host_code_allowed.append(self.engine_host_code_allowed)
        if fake.refuses("deserialize_cuda_engine", logger):
            return None
        portable = plan.startswith(PORTABLE_HEADER)
        if portable and not self.engine_host_code_allowed:
            logger.log(Severity.ERROR, "Error Code 4: engine host code is not allowed")
            return None
        header = PORTABLE_HEADER if portable else HEADER
        if not plan.startswith(header):
            logger.log(Severity.ERROR, "Error Code 1: magicTag does not match")
            return None
        logger.log(Severity.WARNING, "lazy loading is not enabled")
        return _Engine(fake, self, logger, plan.removeprefix(header))


class _Engine(_Counted):
    __slots__ = ("_logger", "_model", "_runtime", "_session", "_tensors")

    def __init__(self, fake: FakeTensorrt, runtime: _Runtime, logger: ILogger, model: bytes):
        super().__init__(fake)
        self._runtime = runtime  # which an engine keeps alive
        self._logger = logger
        self._session = _onnx_session(model)
        self._model = model
        self._tensors: dict[str, Any] = {
            value.name: value
            for value in (*self._session.get_inputs(), *self._session.get_outputs())
        }

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def device_memory_size_v2(self) -> int:
        return SCRATCH_BYTES

    def get_tensor_name(self, number: int) -> str:
        return [*self._tensors][number]

    def get_tensor_shape(self, name: str) -> Iterator[int]:
        return iter(self._tensors[name].shape)  # no tuple, as TensorRT's Dims is none

    def get_tensor_dtype(self, name: str) -> Any:
        return DataType[_kind(self._tensors[name]).upper()]

    def create_engine_inspector(self) -> _Inspector:
        return _Inspector(self._fake, graph_nodes(self._model))

    def create_execution_context(self) -> _Context | None:
        if self._fake.refuses("create_execution_context", self._logger):
            return None
        if self._fake.cudart.free_bytes < SCRATCH_BYTES:
            self._logger.log(Severity.ERROR, "Error Code 1: Cuda Runtime (out of memory)")
            return None
        return _Context(self._fake, self, self._logger)


class _Inspector(_Counted):
    """Each ONNX node is a layer of its own."""

    __slots__ = ("_nodes",)

    def __init__(self, fake: FakeTensorrt, nodes: tuple[GraphNode, ...]):
        super().__init__(fake)
        self._nodes = nodes

    def get_engine_information(self, form: LayerInformationFormat) -> str:
        assert form is LayerInformationFormat.JSON
        layers = [
            {
                "Name": node.name,
                "LayerType": node.operator,
                "Inputs": [{"Name": name, "Format/Datatype": "Float"} for name in node.reads],
                "Outputs": [{"Name": name, "Format/Datatype": "Float"} for name in node.writes],
                "TacticName": f"fake_{node.operator.lower()}",
                "Metadata": f"[ONNX Layer: {node.name}]",
            }
            for node in self._nodes
        ]
        return json.dumps({"Layers": layers, "Bindings": []})


class _Context(_Counted):
    __slots__ = ("_addresses", "_logger", "_warm", "engine", "profiler")

    def __init__(self, fake: FakeTensorrt, engine: _Engine, logger: ILogger):
        super().__init__(fake)
        self.engine = engine  # which a context keeps alive
        self._logger = logger
        self._addresses: dict[str, int] = {}
        self._warm = False
        self.profiler: IProfiler | None = None
        fake.cudart.free_bytes -= SCRATCH_BYTES

    def __del__(self) -> None:
        self._fake.cudart.free_bytes += SCRATCH_BYTES
        super().__del__()

    def set_tensor_address(self, name: str, address: int) -> bool:
        if self._fake.refuses("set_tensor_address", self._logger):
            return False
        self.engine.get_tensor_dtype(name)  # or KeyError
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        cudart = self._fake.cudart
        if self._fake.refuses("execute_async_v3", self._logger):
            return False
        # The first run allocates, which no capture survives.
        reason = self._fake.refuse_in_capture
        if not self._warm:
            reason = "Error Code 1: Cuda Runtime (stream is capturing)"
        if reason and cudart.refuse_in_capture(stream_handle):
            self._logger.log(Severity.ERROR, reason)
            return False
        self._warm = True
        self._logger.log(Severity.WARNING, "something that is said at every run")
        cudart.enqueue(stream_handle, functools.partial(self._work(), dict(self._addresses)))
        if self.profiler is not None:
            assert self.profiler.constructed
            cudart.drain(stream_handle)
            for node in graph_nodes(self.engine._model):
                self.profiler.report_layer_time(node.name, LAYER_MS)
        return True

    def _work(self) -> Any:
        """What a launch does later, with the addresses of its time; it keeps no context alive."""
        cudart, session = self._fake.cudart, self.engine._session

        def array(value: Any, address: int) -> npt.NDArray[Any]:
            dtype: np.dtype[Any] = np.dtype(DTYPES[_kind(value)])
            size = int(np.prod(value.shape)) * dtype.itemsize
            assert cudart.device_sees(address, size), f"{value.name} lies at {address:#x}"
            memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
            return memory.view(dtype).reshape(value.shape)

        def work(addresses: dict[str, int]) -> None:
            (given,) = session.get_inputs()
            results = session.run(None, {given.name: array(given, addresses[given.name])})
            for value, result in zip(session.get_outputs(), results, strict=True):
                array(value, addresses[value.name])[...] = result

        return work


def _kind(value: Any) -> str:
    """The element type of an ONNX Runtime tensor: tensor(float16) -> float16."""
    return str(value.type).removeprefix("tensor(").removesuffix(")")


def _nptype(kind: Any) -> type[Any]:
    assert isinstance(kind, DataType)
    return DTYPES[kind.name.lower()]


@functools.cache
def _onnx_session(model: bytes) -> Any:
    """One thread, so that the same model gives the same bits. Loaded once a model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
