"""An export from top to bottom: a trained run goes in, a verified bundle comes out."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from pathlib import Path

import onnx

from gft_edge.bundle.images import ImageSet
from gft_edge.bundle.manifest import (
    Artifact,
    Manifest,
    Quantization,
    Rescheduled,
)
from gft_edge.bundle.reports import Tolerance
from gft_edge.bundle.specs import ModelSpec, Progress, Say, check_labels
from gft_edge.bundle.store import (
    SCHEMA_VERSION,
    Bundle,
    read_bundle,
    replacing,
    sha256_of,
    write_manifest,
)
from gft_edge.calibration.int8_onnx import quantize_onnx
from gft_edge.calibration.int8_openvino import quantize_openvino
from gft_edge.calibration.integer_kernels import with_integer_kernels
from gft_edge.calibration.sampling import activation_peaks
from gft_edge.export.contents import metadata, parser_here, tool_versions, write_contents
from gft_edge.export.fp16 import half
from gft_edge.export.graph import (
    attention_names,
    finish,
    has_simplifier,
    name_scores,
    score_names,
    simplify,
)
from gft_edge.export.int8 import (
    BATCHES_MEASURED,
    MEASURED_IMAGES,
    asked_layers,
    calibration_pixels,
    quantized,
    smoothed_network,
    strength_in_openvino,
)
from gft_edge.export.judge import (
    Judge,
    Made,
    Steps,
    Trail,
    judge_by,
    passed,
    refuse_constant_decisions,
)
from gft_edge.export.onnx_from_torch import folds_normalisation, onnx_from_torch
from gft_edge.export.request import (
    CalibrationRequest,
    ExportRequest,
    check_calibration,
    check_enough,
    check_request,
)
from gft_edge.fidelity.compare import FIDELITIES, PARTLY_INT8, TOLERANCES
from gft_edge.fidelity.structure import check_structure, expected_casts
from gft_edge.model.graph_size import refuse_large_graph
from gft_edge.model.network import Network
from gft_edge.model.plain_weights import with_plain_weights
from gft_edge.model.reference import normalised_batches, torch_outputs
from gft_edge.model.schedule import at_stages
from gft_edge.runtime.backends import BuildRequest
from gft_edge.runtime.openvino_model import hold_in_f32
from gft_edge.runtime.outputs import Outputs
from gft_edge.runtime.preprocess import batch_from_pixels

# A step on the way must change nothing, which few images show; what is shipped is measured on all.
CONVERSION_IMAGES = 128

# Of the work of the layers: a bundle with less of it in INT8 is not called so.
LEAST_IN_INT8 = 0.5


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
    Raises UsageError, GateError when a step misses its bound and PipelineError when one fails; the
    bundle that stood at `out` then still stands.
    """
    check_request(request)
    check_labels(spec.labels)
    refuse_large_graph(model, request.bytes_a_weight)
    check_calibration(request)
    check_enough(request, images)
    trained, trained_spec = model, spec
    if request.stages is not None:
        spec, model = at_stages(spec, model, request.stages)
    steps = Steps(progress, say)
    # Opened first: a disk that cannot be written should not cost minutes of verification.
    with replacing(out) as folder, tempfile.TemporaryDirectory(prefix="gft-edge-") as scratch:
        judge = judge_by(model.eval(), spec, request, images, steps)
        if request.tolerance.max_drop is not None:
            refuse_constant_decisions(judge)
        rescheduled = _rescheduled(judge, trained, trained_spec)
        trail = Trail()
        if weights is not None:
            trail = trail.then(weights.name, "safetensors", "fp32", sha256_of(weights))
        # Behind the reference: what is shipped is held to the network as it was trained.
        network, path = with_plain_weights(model), Path(scratch) / "model.onnx"
        quantization = None
        if request.calibration is None:
            trail = _float_graph(judge, network, path, trail)
        elif request.backend.TARGET == "openvino":
            path, trail, quantization = _int8_openvino(
                judge, network, request.calibration, path, trail
            )
        else:
            trail, quantization = _int8_onnx(judge, network, request.calibration, path, trail)
        artifact, shipped, trail = _built(judge, path, folder, trail)
        if quantization is not None and quantization.int8_macs < LEAST_IN_INT8:
            artifact = dataclasses.replace(artifact, precision=PARTLY_INT8)
            say(
                f"only {quantization.int8_macs:.0%} of the work is in INT8: the bundle is {PARTLY_INT8}"
            )
        with steps("bundle"):
            files = write_contents(judge, artifact, shipped, folder)
            backend = request.backend
            for_tensorrt = backend.TARGET == "tensorrt"
            write_manifest(
                folder,
                Manifest(
                    schema_version=SCHEMA_VERSION,
                    target=backend.TARGET,
                    precision=artifact.precision,
                    runtime_precision=request.runs_in,
                    model=spec,
                    input=request.input,
                    kept_outputs=judge.kept_names,
                    score_outputs=score_names(spec),
                    attention_outputs=attention_names(spec),
                    rescheduled=rescheduled,
                    artifact=artifact,
                    lineage=trail.files,
                    verified_on=images.record,
                    files=files,
                    tools=tool_versions()
                    | ({"tensorrt parser": parser_here()} if for_tensorrt else {}),
                    reports=trail.reports,
                    quantization=quantization,
                    engine_settings=request.builds_with if for_tensorrt else None,
                    fidelity=request.fidelity if request.judged else None,
                    confidence=request.confidence,
                ),
            )
            # Before it takes the place of one that works.
            bundle = read_bundle(folder)
    return dataclasses.replace(bundle, folder=out)


def _rescheduled(judge: Judge, trained: Network, spec: ModelSpec) -> Rescheduled | None:
    """Measure PyTorch at the counts of the training beside the network that is exported."""
    if judge.spec.stages == spec.stages:
        return None
    name = "trained counts in PyTorch"
    with judge.steps(name):
        counter = judge.steps.counter(name, len(judge.pixels))
        before = torch_outputs(trained.eval(), judge.pixels, spec.preprocessing, counter)
    return Rescheduled(spec.stages, judge.accuracy(before), judge.accuracy(judge.reference))


def _float_graph(judge: Judge, network: Network, path: Path, trail: Trail) -> Trail:
    """Write the graph of an export without INT8 to `path`."""
    request = judge.request
    # OpenVINO lowers precision when it runs, not in the graph.
    lowered = request.precision == "fp16" and request.backend.TARGET != "openvino"
    precision = "fp16" if lowered else "fp32"
    bound = request.tolerance if lowered else TOLERANCES["fp32"]
    centred = lowered and request.input.dtype == "uint8"
    graph, trail = _onnx(judge, network, precision, bound, centred, trail)
    return _finished(judge, graph, precision, path, trail)


def _int8_onnx(
    judge: Judge, network: Network, calibration: CalibrationRequest, path: Path, trail: Trail
) -> tuple[Trail, Quantization]:
    """Write an ONNX graph with QDQ layers to `path`; for TensorRT the rest is in FP16."""
    request = judge.request
    on_cpu = request.backend.TARGET == "onnx"
    remainder = "fp32" if on_cpu else "fp16"
    asked_layers(network, calibration.keep_high_precision)  # refused before the work
    pixels = calibration_pixels(judge, network, calibration)
    batches = normalised_batches(pixels, judge.spec.preprocessing)
    few = batches[:BATCHES_MEASURED]
    network, strength = smoothed_network(judge, network, batches, few)
    with judge.steps("calibrate"):
        advance = judge.steps.counter("calibrate", len(pixels))
        peaks = activation_peaks(network, batches, calibration.method, advance)
    centred = request.input.dtype == "uint8" and folds_normalisation(network)
    pixel_layer = network.first_convolution()[0] if centred else None
    rule = FIDELITIES[request.fidelity][remainder]
    bound = dataclasses.replace(rule, max_drop=request.tolerance.max_drop)
    base, trail = _onnx(judge, network, remainder, bound, centred, trail)

    def build(layers: list[str], final: bool, held_to: Tolerance) -> Made:
        graph = quantize_onnx(
            base, peaks, layers, pixel_layer, half_range=request.weights_range == "half"
        )
        if on_cpu:
            graph = with_integer_kernels(graph)
        return judge.measured("int8", graph, held_to)

    made, quantization = quantized(judge, network, few, calibration, strength, build)
    assert isinstance(made.graph, onnx.ModelProto)
    trail = trail.then("int8.onnx", "onnx", "int8", _sha256(made.graph), made.report)
    return _finished(judge, made.graph, "int8", path, trail), quantization


def _int8_openvino(
    judge: Judge, network: Network, calibration: CalibrationRequest, path: Path, trail: Trail
) -> tuple[Path, Trail, Quantization]:
    """Write OpenVINO's IR, quantized by NNCF and the rest as it runs, beside `path`, its FP32 graph."""
    spec, runs_in = judge.spec.preprocessing, judge.request.runs_in
    asked = asked_layers(network, calibration.keep_high_precision)
    pixels = calibration_pixels(judge, network, calibration)
    few = normalised_batches(pixels[:MEASURED_IMAGES], spec)
    graph, trail = _onnx(judge, network, "fp32", TOLERANCES["fp32"], False, trail)
    trail = _finished(judge, graph, "fp32", path, trail)
    low = path.with_name("int8.xml")

    def quantize(layers: list[str], strength: float | None, images: int) -> None:
        given = judge.request.input
        inputs = batch_from_pixels(pixels[:images], spec, given.dtype)
        half = judge.request.weights_range == "half"
        quantize_openvino(
            path, low, inputs, given.batch, layers, strength, calibration.method, half
        )
        if runs_in != "f32":
            hold_in_f32(low)

    def outputs_at(strength: float | None) -> Outputs:
        quantize(asked, strength, MEASURED_IMAGES)
        return judge.outputs("smooth-quant", low, pixels[:MEASURED_IMAGES], "openvino", runs_in)

    strength = strength_in_openvino(
        judge, network, pixels[:MEASURED_IMAGES], calibration, outputs_at
    )

    def build(layers: list[str], final: bool, held_to: Tolerance) -> Made:
        quantize(layers, strength, len(pixels) if final else 2 * MEASURED_IMAGES)
        return judge.measured("int8", low, held_to, "openvino", runs_in)

    made, quantization = quantized(judge, network, few, calibration, strength, build)
    return (
        low,
        trail.then(low.name, "openvino-ir", "int8", sha256_of(low), made.report),
        quantization,
    )


def _onnx(
    judge: Judge,
    network: Network,
    precision: str,
    tolerance: Tolerance,
    centred: bool,
    trail: Trail,
) -> tuple[onnx.ModelProto, Trail]:
    """Make a graph in fp32 or fp16, measured after each step; kept patches are outputs still.

    `centred` is as in onnx_from_torch.
    """
    request = judge.request
    casts = expected_casts(judge.spec, request.input, half=precision == "fp16")
    with judge.steps("onnx_from_torch"):
        typed = half(network) if precision == "fp16" else network
        graph = onnx_from_torch(typed, judge.spec, request.input, request.opset, centred)
        check_structure(graph, judge.spec, casts)
        made = passed(judge.measured("onnx_from_torch", graph, tolerance, images=CONVERSION_IMAGES))
    trail = trail.then("exported.onnx", "onnx", precision, _sha256(graph), made.report)
    if not request.simplify:
        return graph, trail
    if not has_simplifier():
        judge.steps.say(
            "onnxsim is not installed here, going on with the exporter's own optimisation "
            "(pip install 'gft-edge[export]' adds it)"
        )
        return graph, trail
    with judge.steps("simplify"):
        graph = simplify(graph)
        check_structure(graph, judge.spec, casts)
        made = passed(judge.measured("simplify", graph, tolerance, images=CONVERSION_IMAGES))
    return graph, trail.then("simplified.onnx", "onnx", precision, _sha256(graph), made.report)


def _finished(
    judge: Judge, graph: onnx.ModelProto, precision: str, path: Path, trail: Trail
) -> Trail:
    """Write the deployable graph to `path`: `logits` alone as output, metadata inside."""
    with judge.steps("finish"):
        finished = finish(graph, metadata(judge.spec, judge.request.input), judge.kept_names)
        onnx.save(name_scores(finished, judge.spec), path)
    return trail.then(path.name, "onnx", precision, sha256_of(path))


def _built(judge: Judge, graph: Path, folder: Path, trail: Trail) -> tuple[Artifact, Made, Trail]:
    """Compile the last file of the trail into `folder` and measure what is shipped."""
    request, backend = judge.request, judge.request.backend
    name = f"build for {backend.TARGET}"
    if backend.TARGET == "tensorrt" and parser_here() == "absent":
        judge.steps.say(
            "no TensorRT library can parse here: the graph has not been read by its parser "
            "(pip install tensorrt-rtx adds one that needs no GPU)"
        )
    compiled = trail.files[-1]
    with judge.steps(name):
        artifact = backend.build(
            graph,
            folder,
            BuildRequest(
                request.artifact_precision,
                request.compress_weights or request.precision in ("fp16", "bf16"),
                metadata(judge.spec, request.input),
                compiled.sha256,
            ),
        )
        path, engine = folder / artifact.path, request.verified_on
        shipped = passed(judge.measured(name, path, request.tolerance, engine, request.runs_in))
    files = trail.files
    if artifact.sha256 == compiled.sha256:
        # The engine loads the graph as it is: one file, not a file and its child.
        files = files[:-1]
        artifact = dataclasses.replace(artifact, parent_sha256=compiled.parent_sha256)
    return artifact, shipped, Trail(files, (*trail.reports, shipped.report))


def _sha256(graph: onnx.ModelProto) -> str:
    return hashlib.sha256(graph.SerializeToString()).hexdigest()
