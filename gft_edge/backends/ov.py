"""OpenVINO on the CPU."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy.typing as npt

from gft_edge.backends import (
    BuildRequest,
    OpenRequest,
    check_images,
    check_signature,
    ordered_outputs,
)
from gft_edge.bundle import sha256_of
from gft_edge.errors import BundleError, MissingDependencyError
from gft_edge.specs import Artifact

TARGET = "openvino"
# Said aloud to the engine: where a CPU has AMX or AVX512_BF16 its default is bf16, ranking included.
RUNTIME_PRECISION = "f32"


def missing() -> str | None:
    """The install line when openvino is not here."""
    try:
        import openvino  # noqa: F401
    except ImportError:
        return str(MissingDependencyError("OpenVINO", "openvino"))
    return None


def version() -> str:
    """Of openvino."""
    import openvino

    return f"openvino {openvino.__version__.split('-')[0]}"


def build(onnx: Path, folder: Path, request: BuildRequest) -> Artifact:
    """Convert to IR: model.xml and model.bin, weights in FP16 when `compress_weights`."""
    if missing():
        raise MissingDependencyError("OpenVINO", "openvino")
    import openvino

    model = openvino.convert_model(onnx)
    for key, value in request.metadata.items():
        model.set_rt_info(value, ["model_info", key])
    # OpenVINO names what it makes itself by a counter of the process (MVN_34): two conversions
    # would differ in those names alone.
    for number, operation in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Za-z]+(_\d+)+", operation.get_friendly_name()):
            operation.set_friendly_name(f"{operation.get_type_name()}.{number}")
    path = folder / "model.xml"
    openvino.save_model(model, path, compress_to_fp16=request.compress_weights)
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
    if missing():
        raise MissingDependencyError("OpenVINO", "openvino")
    return OpenVinoSession(path, request)


class OpenVinoSession:
    """One compiled model with an inference request for each calling thread."""

    def __init__(self, path: Path, request: OpenRequest):
        import openvino

        core = openvino.Core()
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": request.runtime_precision,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if request.threads is not None:
            options["INFERENCE_NUM_THREADS"] = request.threads
        try:
            model = core.read_model(path)
            if request.kept_outputs:
                model.add_outputs(list(request.kept_outputs))
            self._compiled = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise BundleError(f"OpenVINO cannot load {path}: {lines[-1]}") from error
        check_signature(
            path,
            request,
            tuple(self._compiled.inputs[0].shape),
            tuple(self._compiled.outputs[0].shape),
        )
        self._shape = request.input_shape
        self._outputs = [self._compiled.output(n) for n in ("logits", *request.kept_outputs)]
        self._local = threading.local()

    def run(self, images: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """See Session."""
        check_images(images, self._shape)
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        results = request.infer({0: images})
        return ordered_outputs([results[output] for output in self._outputs])

    def close(self) -> None:
        """Drop the engine."""
        del self._compiled, self._outputs, self._local
