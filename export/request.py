"""What an export may be asked for, and which of it goes together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from importlib.util import find_spec

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.manifest import Confidence, EngineSettings, WeightsRange
from gft_edge.bundle.reports import Tolerance
from gft_edge.bundle.specs import InputSpec, Stage
from gft_edge.calibration.int8_openvino import METHODS as OPENVINO_METHODS
from gft_edge.calibration.sampling import METHODS as ONNX_METHODS
from gft_edge.errors import MissingDependencyError, UsageError
from gft_edge.export.onnx_from_torch import check_opset
from gft_edge.fidelity.compare import FEWEST_TO_JUDGE, FIDELITIES, MAX_DROP, NO_BOUND
from gft_edge.nvidia.build import check_settings
from gft_edge.runtime.backends import Backend, backend_for
from gft_edge.runtime.processor import saturates_int8

# The first with Gelu as one node, which FP16 needs whole; INT8 scales can be FP16 from 19 on.
TYPED_OPSET = 20


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate on, and how. `keep_high_precision` names layers that must not be quantized.

    In an export that is not judged these and no others stay out, whatever that costs, and OpenVINO
    smooths by `smooth_quant`. `weights_range` None is half on CPUs and full on GPUs.
    """

    images: ImageSet
    method: str = "minmax"
    keep_high_precision: tuple[str, ...] = ()
    smooth_quant: float | None = None
    weights_range: WeightsRange | None = None


@dataclass(frozen=True)
class ExportRequest:
    """What to build. `compress_weights` stores OpenVINO's weights in FP16; it computes in f32.

    `max_drop` is how much accuracy, a fraction of 1, a precision under fp32 may cost on the images
    that the export is verified on. `fidelity` names the rule that a lower precision is judged by (see
    fidelity.compare.FIDELITIES). `calibration` is for int8. Without `judged` a precision under fp32
    may cost anything: for a network whose weights mean nothing (see baseline), which is not smoothed
    either. `stages` are the
    network's own at other keep counts, None at those it was trained at; with `keeps_all` one may keep
    all that is left. `confidence` has the temperature of the run.
    """

    target: str
    precision: str = "fp32"
    input: InputSpec = field(default_factory=lambda: InputSpec("uint8", 1))
    opset: int = 20
    simplify: bool = True
    compress_weights: bool = False
    max_drop: float = MAX_DROP
    calibration: CalibrationRequest | None = None
    engine_settings: EngineSettings | None = None
    judged: bool = True
    fidelity: str = "photo"
    stages: tuple[Stage, ...] | None = None
    keeps_all: bool = False
    confidence: Confidence = field(default_factory=Confidence)

    @property
    def backend(self) -> Backend:
        """The engine that the bundle is for."""
        return backend_for(self.target)

    @property
    def verified_on(self) -> str:
        """The engine that computes here: a graph for TensorRT is computed by ONNX Runtime."""
        return "onnx" if self.backend.TARGET == "tensorrt" else self.backend.TARGET

    @property
    def artifact_precision(self) -> str:
        """What the manifest calls the precision."""
        return f"{self.precision}-fp16-weights" if self.compress_weights else self.precision

    @property
    def builds_with(self) -> EngineSettings:
        """The settings by which engines of a bundle for TensorRT are built."""
        return self.engine_settings or EngineSettings()

    @property
    def runs_in(self) -> str:
        """What the engine is told to compute in."""
        return self.backend.runtime_precision(self.precision)

    @property
    def bytes_a_weight(self) -> int:
        """What a weight takes in the graph that PyTorch is converted to: OpenVINO lowers it later."""
        halved = self.precision == "fp16" or (self.int8 and self.backend.TARGET == "tensorrt")
        return 2 if halved and self.backend.TARGET != "openvino" else 4

    @property
    def int8(self) -> bool:
        """Whether layers are in INT8, whatever the rest is computed in."""
        return self.precision.startswith("int8")

    @property
    def weights_range(self) -> WeightsRange:
        """How far INT8 weights reach."""
        asked = self.calibration.weights_range if self.calibration else None
        return asked or ("full" if self.backend.TARGET == "tensorrt" else "half")

    @property
    def tolerance(self) -> Tolerance:
        """The bounds that the artifact has to hold."""
        if not self.judged and self.precision != "fp32":
            return NO_BOUND
        bound = FIDELITIES[self.fidelity][self.artifact_precision]
        return (
            bound if bound.max_drop is None else dataclasses.replace(bound, max_drop=self.max_drop)
        )


def check_request(request: ExportRequest) -> None:
    """Raise UsageError for a target, precision or option that does not exist together.

    What concerns the calibration alone is check_calibration's, so that images are drawn in between.
    """
    backend = request.backend
    if request.precision not in backend.PRECISIONS:
        raise UsageError(
            f"--precision {request.precision} is not available for {backend.TARGET}: "
            f"choose from {', '.join(backend.PRECISIONS)}"
        )
    if request.compress_weights and (backend.TARGET, request.precision) != ("openvino", "fp32"):
        raise UsageError(
            "--compress-weights is OpenVINO's in fp32: use it with --target openvino --precision fp32"
        )
    if request.fidelity not in FIDELITIES:
        raise UsageError(
            f"--fidelity {request.fidelity} is no rule: choose from {', '.join(FIDELITIES)}"
        )
    if request.input.batch < 1:
        raise UsageError(f"--batch is {request.input.batch}: give 1 or more")
    if not 0 <= request.max_drop < 1:
        raise UsageError(f"--max-drop is {request.max_drop:g}: give a fraction from 0 up to 1")
    if request.engine_settings is not None:
        if backend.TARGET != "tensorrt":
            raise UsageError(
                f"{backend.TARGET} builds no engine: leave --flavor, --workspace and the other "
                "options of an engine out"
            )
        check_settings(request.engine_settings)
    check_opset(request.opset)
    typed = request.precision != "fp32" and backend.TARGET != "openvino"
    if typed and request.opset < TYPED_OPSET:
        raise UsageError(f"--precision {request.precision} needs --opset {TYPED_OPSET}")
    if request.int8 and backend.TARGET == "openvino" and find_spec("nncf") is None:
        raise MissingDependencyError("NNCF", "export")
    engine = backend_for(request.verified_on)
    if reason := engine.missing() or engine.unsupported(request.precision):
        raise UsageError(reason)


def check_calibration(request: ExportRequest) -> None:
    """Raise UsageError for an INT8 export without calibration, and for a calibration that it cannot have."""
    calibration, target = request.calibration, request.backend.TARGET
    if calibration is None:
        if request.int8:
            raise UsageError(
                f"--precision {request.precision} needs --calibration-data FOLDER of real images"
            )
        return
    if not request.int8:
        raise UsageError("--calibration-data is for --precision int8: leave it out")
    if target == "tensorrt" and calibration.weights_range == "half":
        raise UsageError("--weights-range half is for CPUs: leave it out for tensorrt")
    if target != "tensorrt" and calibration.weights_range == "full" and saturates_int8():
        raise UsageError(
            "--weights-range full is for CPUs with VNNI or AMX and for Arm: this one would saturate, so it "
            "cannot be verified here; export there, or take half"
        )
    methods = OPENVINO_METHODS if target == "openvino" else ONNX_METHODS
    if calibration.method not in methods:
        raise UsageError(
            f"--calibration-method {calibration.method} is not available for "
            f"{target}: choose from {', '.join(methods)}"
        )


def check_enough(request: ExportRequest, images: ImageSet) -> None:
    """Raise UsageError for images that are too few for the verdict that is asked for."""
    if request.tolerance.change is not None and len(images.paths) < FEWEST_TO_JUDGE:
        fewer = ", calibrate on fewer with --subset-size" if request.calibration else ""
        raise UsageError(
            f"--fidelity photo judges {request.precision} by intervals, for which {len(images.paths)} images "
            f"are too few: give --images {FEWEST_TO_JUDGE} or more, of data that has them{fewer}, or take "
            "--fidelity strict or off"
        )
