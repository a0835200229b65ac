"""The stages of an export in order: a trained run in, a verified bundle out."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from gft_edge.bundle.images import ImageRecord, ImageSet
from gft_edge.bundle.manifest import (
    Artifact,
    EngineSettings,
    Manifest,
    Quantization,
    Rescheduled,
)
from gft_edge.bundle.reports import Tolerance
from gft_edge.bundle.specs import InputSpec, ModelSpec, Progress, Say, Stage
from gft_edge.bundle.store import (
    LABELS_FILE,
    SCHEMA_VERSION,
    Bundle,
    read_bundle,
    replacing,
    sha256_of,
    write_labels,
    write_manifest,
)
from gft_edge.calibration.int8_openvino import METHODS as OPENVINO_METHODS
from gft_edge.calibration.sampling import METHODS as ONNX_METHODS
from gft_edge.errors import MissingDependencyError, UsageError
from gft_edge.export.explaining import attention_names, score_names
from gft_edge.export.golden import write_check, write_golden
from gft_edge.export.graphs import finished_graph, verified_graph
from gft_edge.export.int8 import CalibrationRequest, int8_onnx, int8_openvino
from gft_edge.export.onnx_from_torch import check_opset
from gft_edge.export.verify import torch_outputs
from gft_edge.export.workbench import Workbench, tool_versions
from gft_edge.fidelity.compare import MAX_DROP, NO_BOUND, TOLERANCES
from gft_edge.model.networks import Network
from gft_edge.model.schedule import at_stages
from gft_edge.nvidia.build import check_settings
from gft_edge.nvidia.library import builder_library
from gft_edge.runtime.backends import BuildRequest, backend_for, backends

# The first with Gelu as one node, which FP16 needs whole; INT8 scales can be FP16 from 19 on.
TYPED_OPSET = 20

# A graph for TensorRT is computed here by ONNX Runtime.
_VERIFIED_ON = {"tensorrt": "onnx"}


@dataclass(frozen=True)
class ExportRequest:
    """What to build. `compress_weights` stores OpenVINO's weights in FP16; it computes in f32.

    `max_drop` is how much accuracy, a fraction of 1, a precision under fp32 may cost on the images
    that the export is verified on. `calibration` is for int8. Without `judged` a precision under fp32
    may cost anything: for a network whose weights mean nothing. `stages` are the network's own at
    other keep counts, None at those it was trained at; with `keeps_all` one may keep all that is left.
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
    stages: tuple[Stage, ...] | None = None
    keeps_all: bool = False

    @property
    def artifact_precision(self) -> str:
        """What the manifest calls it."""
        return f"{self.precision}-fp16-weights" if self.compress_weights else self.precision

    @property
    def tolerance(self) -> Tolerance:
        """What the artifact has to hold."""
        if not self.judged and self.precision != "fp32":
            return NO_BOUND
        bound = TOLERANCES[self.artifact_precision]
        return (
            bound if bound.max_drop is None else dataclasses.replace(bound, max_drop=self.max_drop)
        )


def check_request(request: ExportRequest) -> None:
    """Raise UsageError for a target, precision or option that does not exist together."""
    backend = backend_for(request.target)
    if backend.TARGET not in backends():
        raise UsageError(f"target {request.target!r} is not deployable")
    if request.precision not in backend.PRECISIONS:
        raise UsageError(
            f"--precision {request.precision} is not available for {backend.TARGET}: "
            f"choose from {', '.join(backend.PRECISIONS)}"
        )
    if request.compress_weights and (backend.TARGET, request.precision) != ("openvino", "fp32"):
        raise UsageError(
            "--compress-weights is OpenVINO's in fp32: use it with --target openvino --precision fp32"
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
    if request.precision == "int8":
        if request.calibration is None:
            raise UsageError("--precision int8 needs --calibration-data FOLDER of real images")
        if backend.TARGET == "openvino" and find_spec("nncf") is None:
            raise MissingDependencyError("NNCF", "export")
        methods = OPENVINO_METHODS if backend.TARGET == "openvino" else ONNX_METHODS
        if request.calibration.method not in methods:
            raise UsageError(
                f"--calibration-method {request.calibration.method} is not available for "
                f"{backend.TARGET}: choose from {', '.join(methods)}"
            )
    elif request.calibration is not None:
        raise UsageError("--calibration-data is for --precision int8: leave it out")
    engine = backend_for(_VERIFIED_ON.get(backend.TARGET, backend.TARGET))
    if reason := engine.missing() or engine.unsupported(request.precision):
        raise UsageError(reason)


def export(
    model: Network,
    spec: ModelSpec,
    images: ImageSet,
    request: ExportRequest,
    out: Path,
    progress: Progress = lambda text, done, total: None,
    say: Say = lambda text: None,
    weights: Path | None = None,
) -> Bundle:
    """Export, verify every step against PyTorch on `images`, and replace the bundle at `out`.

    `weights` is the file that `model` was read from: the first entry of the bundle's lineage.
    Raises UsageError, GateError when a stage misses its bound and PipelineError when one fails; the
    bundle that stood at `out` then still stands.
    """
    check_request(request)
    trained, trained_spec = model, spec
    if request.stages is not None:
        spec, model = at_stages(spec, model, request.stages)
    # Opened first: a disk that cannot be written should not cost minutes of verification.
    with replacing(out) as folder, tempfile.TemporaryDirectory(prefix="gft-edge-") as scratch:
        work = Workbench(
            model,
            spec,
            images,
            request.input,
            request.tolerance,
            Path(scratch),
            progress,
            say,
            request.keeps_all,
        )
        rescheduled = _rescheduled(work, trained, trained_spec)
        if weights is not None:
            work.record(weights, "safetensors", "fp32")
        graph, quantization = _graph(work, request)
        artifact = _compiled(work, request, graph, folder)
        with work.stage("bundle"):
            _write_rest(work, request, artifact, quantization, rescheduled, folder)
    return read_bundle(out)


def _rescheduled(work: Workbench, trained: Network, spec: ModelSpec) -> Rescheduled | None:
    """PyTorch's accuracy at the counts of the training beside that of the network that is exported."""
    if work.spec.stages == spec.stages:
        return None
    name = "trained counts in PyTorch"
    with work.stage(name):
        counter = work.counter(name, len(work.pixels))
        before = torch_outputs(trained.eval(), work.pixels, spec.preprocessing, counter)
    targets = np.asarray(work.images.targets)
    return Rescheduled(
        spec.stages,
        float((before.logits.argmax(axis=1) == targets).mean()),
        float((work.reference.logits.argmax(axis=1) == targets).mean()),
    )


def _graph(work: Workbench, request: ExportRequest) -> tuple[Path, Quantization | None]:
    """The graph that the engine compiles, in the precision asked for."""
    target, opset, simplified = backend_for(request.target).TARGET, request.opset, request.simplify
    if request.calibration is not None and target == "openvino":
        return int8_openvino(work, request.calibration, opset, simplified)
    if request.calibration is not None:
        remainder = "fp16" if target == "tensorrt" else "fp32"
        return int8_onnx(work, request.calibration, remainder, opset, simplified)
    # OpenVINO lowers precision when it runs, not in the graph.
    lowered = request.precision == "fp16" and target != "openvino"
    precision = "fp16" if lowered else "fp32"
    bound = request.tolerance if lowered else TOLERANCES["fp32"]
    centred = lowered and request.input.dtype == "uint8"
    graph = verified_graph(work, work.model, precision, opset, simplified, bound, centred)
    return finished_graph(work, graph, precision), None


def _compiled(work: Workbench, request: ExportRequest, graph: Path, folder: Path) -> Artifact:
    backend = backend_for(request.target)
    name = f"build for {backend.TARGET}"
    if backend.TARGET == "tensorrt" and _parser() == "absent":
        work.say(
            "no TensorRT library can parse here: the graph has not been read by its parser "
            "(pip install tensorrt-rtx adds one that needs no GPU)"
        )
    with work.stage(name):
        artifact = backend.build(
            graph,
            folder,
            BuildRequest(
                request.artifact_precision,
                request.compress_weights or request.precision in ("fp16", "bf16"),
                work.metadata(),
                work.lineage[-1].sha256,
            ),
        )
        work.verify(
            name,
            _VERIFIED_ON.get(backend.TARGET, backend.TARGET),
            backend.runtime_precision(request.precision),
            folder / artifact.path,
            request.tolerance,
        )
    last = work.lineage[-1]
    if artifact.sha256 == last.sha256:
        # The engine loads the graph as it is: one file, not a file and its child.
        work.lineage.pop()
        return dataclasses.replace(artifact, parent_sha256=last.parent_sha256)
    return artifact


def _parser() -> str:
    """The TensorRT that reads graphs on this machine: one that is installed need not be able to."""
    try:
        return builder_library().name
    except UsageError:
        return "absent"


def _write_rest(
    work: Workbench,
    request: ExportRequest,
    artifact: Artifact,
    quantization: Quantization | None,
    rescheduled: Rescheduled | None,
    folder: Path,
) -> None:
    backend = backend_for(request.target)
    write_labels(folder, work.spec.labels)
    golden = write_golden(folder, work.pixels, work.kept, work.shipped)
    names = (artifact.path, *artifact.companions, LABELS_FILE, *golden)
    if backend.TARGET == "tensorrt":
        names += write_check(work, artifact, request.engine_settings or EngineSettings(), folder)
    images = work.images
    parsed = {"tensorrt parser": _parser()} if backend.TARGET == "tensorrt" else {}
    write_manifest(
        folder,
        Manifest(
            schema_version=SCHEMA_VERSION,
            target=backend.TARGET,
            precision=request.artifact_precision,
            runtime_precision=backend.runtime_precision(request.precision),
            model=work.spec,
            input=request.input,
            kept_outputs=work.kept,
            score_outputs=score_names(work.spec),
            attention_outputs=attention_names(work.spec),
            rescheduled=rescheduled,
            artifact=artifact,
            lineage=tuple(work.lineage),
            verified_on=ImageRecord(len(images.paths), images.seed, images.digest),
            files={name: sha256_of(folder / name) for name in names},
            tools=tool_versions() | parsed,
            reports=tuple(work.reports),
            quantization=quantization,
            engine_settings=(request.engine_settings or EngineSettings())
            if backend.TARGET == "tensorrt"
            else None,
        ),
    )
