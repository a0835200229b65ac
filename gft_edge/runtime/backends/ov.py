"""OpenVINO on its devices: a CPU, and the GPU or NPU beside it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.manifest import Artifact
from gft_edge.bundle.store import sha256_of
from gft_edge.errors import BundleError, FailedError
from gft_edge.runtime.backends import (
    BuildRequest,
    Finished,
    InTurn,
    LayerRun,
    OpenRequest,
    Session,
    check_images,
    check_signature,
    closed,
    ordered_outputs,
    samples_in_turn,
    vendor_library,
    warmed_up,
    why_missing,
)
from gft_edge.runtime.openvino_devices import (
    CPU,
    OpenVinoDevice,
    Placement,
    devices_here,
    placement,
)
from gft_edge.runtime.openvino_layers import layer_of, mean_us, told_layers
from gft_edge.runtime.openvino_model import (
    compile_options,
    compiled_model,
    hold_in_f32,
    reason_of,
    save_ir,
)
from gft_edge.runtime.signal_stack import kept_signal_stack

TARGET = "openvino"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8-bf16")

# Said aloud to the engine: where a CPU has AMX or AVX512_BF16 its default is bf16, ranking included.
# What INT8 leaves in high precision is computed in f32, unless int8-bf16 asks for bf16.
_HINTS = {"fp16": "f16", "bf16": "bf16", "int8-bf16": "bf16"}
# The engine's names of what a processor computes in natively.
_CAPABILITIES = {"fp16": "FP16", "bf16": "BF16", "int8-bf16": "BF16"}

# One request may be held up while the others go on: so many batches a request are run ahead of it.
_AHEAD = 4

# What decides the speed of a compiled model.
_FLAGS = ("INFERENCE_PRECISION_HINT", "PERFORMANCE_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS")


def _library() -> Any:
    return vendor_library("openvino", "OpenVINO", "openvino")


def missing() -> str | None:
    """The install line when openvino is not here."""
    return why_missing(_library)


def devices() -> tuple[OpenVinoDevice, ...]:
    """The processors that OpenVINO finds here."""
    with kept_signal_stack():
        return devices_here(_library().Core())


def placed(device: str | None) -> Placement:
    """Where `device` puts a model here, None for the CPU. Raises UsageError as `placement`."""
    with kept_signal_stack():
        return placement(_library().Core(), CPU if device is None else device)


def unsupported(precision: str, device: str | None = None) -> str | None:
    """Say where a device has no instructions for it: the engine would silently compute in another."""
    where = placed(device)
    lacking = _CAPABILITIES.get(precision)
    if lacking is None or any(lacking in each.capabilities for each in where.processors):
        return None
    has = {name for each in where.processors for name in each.capabilities}
    native = [p for p in PRECISIONS if _CAPABILITIES.get(p) is None or _CAPABILITIES[p] in has]
    what = "this CPU" if where.device == CPU else where.device
    return (
        f"{what} has no {lacking.lower()}, so it cannot be verified here: choose from "
        f"{', '.join(native)}"
    )


def runtime_precision(precision: str) -> str:
    """f32 unless a lower one was asked for."""
    return _HINTS.get(precision, "f32")


def version() -> str:
    """The version of openvino."""
    return f"openvino {_library().__version__.split('-')[0]}"


def build(graph: Path, folder: Path, request: BuildRequest) -> Artifact:
    """Write IR: model.xml and model.bin, weights in FP16 when `compress_weights`.

    `graph` is ONNX, or IR already when it is quantized. In fp16 and bf16 only matrix products are
    computed in fewer bits.
    """
    openvino = _library()
    ir = graph.suffix == ".xml"
    model = openvino.Core().read_model(graph) if ir else openvino.convert_model(graph)
    for key, value in request.metadata.items():
        model.set_rt_info(value, ["model_info", key])
    # OpenVINO names what it makes itself by a counter of the process (MVN_34): two conversions
    # would differ in those names alone.
    for number, operation in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Za-z]+(_\d+)+", operation.get_friendly_name()):
            operation.set_friendly_name(f"{operation.get_type_name()}.{number}")
    path = folder / "model.xml"
    save_ir(model, path, request.compress_weights)
    if request.precision in _HINTS:
        hold_in_f32(path)
    return Artifact(
        path.name,
        "openvino-ir",
        request.precision,
        sha256_of(path),
        request.parent_sha256,
        ("model.bin",),
    )


def open_session(path: Path, request: OpenRequest) -> OpenVinoSession:
    """Raises BundleError when OpenVINO refuses the file or its input is not as requested."""
    return OpenVinoSession(path, request)


def layer_times(
    path: Path, request: OpenRequest, images: npt.NDArray[Any], runs: int, in_turn: InTurn
) -> LayerRun:
    """Time layers by its performance counters. Raises as `open_session`, and FailedError without any.

    They cut each time of a layer, and their mean, to whole microseconds: a part of many small layers, as
    a selection, comes out some microseconds a layer too low.
    """
    session = OpenVinoSession(path, request, counted=True)
    # Few, as the counters' rounding grows with their number.
    cold_runs = warmed_up(lambda: session.run(images), warm_up_ms=0)
    cold_us = {told["name"]: mean_us(told) for told in session.layers()}
    samples_ms = samples_in_turn(lambda: session.run(images), runs, in_turn)
    layers = []
    for told in session.layers():
        # A counter is the mean of all inferences: without the cold ones it is this.
        total_us = mean_us(told) * (cold_runs + runs) - cold_us[told["name"]] * cold_runs
        layers.append(layer_of(told, max(total_us, 0) / runs / 1000))
    session.close()
    return LayerRun(tuple(layers), samples_ms)


class _Loaded:
    """A compiled model and what belongs to it, which lives until the last run of it has ended.

    A model from the cache computes from the file's `mapping`. A queue serves one iterator at a time:
    its requests hold that one's outputs.
    """

    def __init__(self, compiled: Any, mapping: Any, names: tuple[str, ...]):
        self.compiled, self.mapping = compiled, mapping
        self.outputs = [compiled.output(name) for name in names]
        self.local = threading.local()
        self.idle_queues: list[Any] = []

    def request(self) -> Any:
        """The calling thread's own inference request."""
        found = getattr(self.local, "request", None)
        if found is None:
            found = self.local.request = self.compiled.create_infer_request()
        return found


class OpenVinoSession(Session):
    """One compiled model with an inference request for each calling thread.

    `counted` makes it count the time of each layer, which slows it down.
    """

    def __init__(self, path: Path, request: OpenRequest, counted: bool = False):
        core = _library().Core()
        with kept_signal_stack():
            self._placed = placement(core, CPU if request.device is None else request.device)
            options = compile_options(self._placed, request, counted)
            try:
                compiled, mapping = compiled_model(core, path, self._placed, options, request)
            except RuntimeError as error:
                remedy = "" if self._placed.device == CPU else f": {self._placed.remedy}"
                on = "" if self._placed.device == CPU else f" for {self._placed.device}"
                raise BundleError(
                    f"OpenVINO cannot load {path}{on}: {reason_of(error)}{remedy}"
                ) from error
        check_signature(
            path,
            request,
            tuple(compiled.inputs[0].shape),
            tuple(compiled.outputs[0].shape),
        )
        self._shape = request.input_shape
        names = ("logits", *request.inner_outputs)
        self._loaded: _Loaded | None = _Loaded(compiled, mapping, names)
        self.half_on = self._placed.half_on

    def run(self, images: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """See Session."""
        check_images(images, self._shape)
        loaded = self._open()
        with self._refusals():
            results = loaded.request().infer({0: images})
        return ordered_outputs([results[output] for output in loaded.outputs])

    def run_many(self, batches: Iterable[npt.NDArray[Any]]) -> Iterator[Finished]:
        """See Session; OpenVINO says how many at once: one for the hint latency."""
        loaded = self._open()
        try:
            queue = loaded.idle_queues.pop()
        except IndexError:
            queue = _library().AsyncInferQueue(loaded.compiled)
        running: dict[int, int] = {}  # number of the request -> number of its batch
        finished: dict[int, Finished] = {}
        wanted = 0

        # Not in a callback of the queue: its thread may then be the last to hold the model, and ends
        # the process as it waits for itself.
        def collect(requests: list[int]) -> None:
            finished.update({running.pop(r): _finished(queue[r], loaded.outputs) for r in requests})

        try:
            for number, images in enumerate(batches):
                check_images(images, self._shape)
                self._open()
                if number - wanted >= _AHEAD * len(queue):
                    with self._refusals():
                        queue.wait_all()
                    collect(list(running))
                idle = queue.get_idle_request_id()
                if idle in running:
                    collect([idle])
                running[idle] = number
                with self._refusals():
                    queue.start_async({0: images})
                while wanted in finished:
                    yield finished.pop(wanted)
                    wanted += 1
            with self._refusals():
                queue.wait_all()
            collect(list(running))
            yield from (finished[number] for number in sorted(finished))
        finally:
            # A refusal is told above.
            with suppress(RuntimeError):
                queue.wait_all()
                loaded.idle_queues.append(queue)

    def flags(self) -> tuple[str, ...]:
        """See Session; threads and streams as OpenVINO chose them, and the processors as well."""
        compiled = self._open().compiled
        inner: dict[str, Any] = {}
        if self._placed.virtual:
            # AUTO and HETERO tell what is theirs, and of each processor apart.
            inner = next(iter(compiled.get_property("DEVICE_PROPERTIES").values()), {})
        told = {name: inner[name] for name in _FLAGS if name in inner}
        for name in _FLAGS:
            with suppress(RuntimeError):
                told.setdefault(name, compiled.get_property(name))
        on = ",".join(compiled.get_property("EXECUTION_DEVICES"))
        return (f"DEVICE={on}", *(f"{name}={_plain(value)}" for name, value in told.items()))

    def layers(self) -> Iterator[dict[str, Any]]:
        """What the device tells of each layer: openvino_layers.told_layers."""
        return told_layers(self._open().compiled, self._placed.device)

    def close(self) -> None:
        """Drop the engine; a run that has begun in another thread ends first."""
        self._loaded = None

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """A device may refuse when it is run what it compiled: raise FailedError in its own words."""
        try:
            yield
        except RuntimeError as error:
            where, remedy = self._placed.device, self._placed.remedy
            raise FailedError(f"OpenVINO fails on {where}: {reason_of(error)}: {remedy}") from error

    def _open(self) -> _Loaded:
        loaded = self._loaded
        if loaded is None:
            raise closed()
        return loaded


def _finished(request: Any, outputs: list[Any]) -> Finished:
    # Copies: the request's own memory is written again by the next batch.
    copies = [np.array(request.get_tensor(output).data) for output in outputs]
    return Finished(ordered_outputs(copies), request.latency)


def _plain(value: Any) -> str:
    """A property as text: OpenVINO's types print as <Type: 'float32'> and PerformanceMode.LATENCY."""
    return re.sub(r"<Type: '(.*)'>", r"\1", str(value)).rpartition(".")[2]
