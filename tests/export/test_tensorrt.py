"""NVIDIA's own parser and builder take the project's graphs, in the precision each was exported in."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

from gft_edge.bundle.specs import InputSpec, ModelSpec
from gft_edge.bundle.store import read_bundle, sha256_of
from gft_edge.calibration.image_set import draw_image_set
from gft_edge.calibration.int8_onnx import quantize_onnx
from gft_edge.calibration.layers import quantizable_layers
from gft_edge.calibration.sampling import activation_peaks
from gft_edge.cli import main
from gft_edge.datasets import read_split
from gft_edge.errors import PipelineError, UsageError
from gft_edge.export import contents as contents_room
from gft_edge.export.fp16 import half
from gft_edge.export.graph import finish, kept_names, simplify
from gft_edge.export.onnx_from_torch import onnx_from_torch
from gft_edge.export.pipeline import export
from gft_edge.export.request import ExportRequest
from gft_edge.fidelity.verify import golden_tolerance, verify
from gft_edge.model.checkpoint import load_run
from gft_edge.model.gft import GFT, build_gft
from gft_edge.model.variants import spec_from_name
from gft_edge.nvidia import library as library_room
from gft_edge.nvidia.build import memory_bytes
from gft_edge.nvidia.library import builder_library, parse
from gft_edge.runtime.backends import BuildRequest, OpenRequest, trt
from gft_edge.runtime.classifier import Classifier
from tests.support.paths import ROOT

VARIANTS = ("gft_tiny", "gft_tiny_edge")
PRECISIONS = ("fp32", "fp16", "int8")
CLASSES = 10

# Those of the micro run.
MICRO_LABELS = ("apple", "brown bread", "café", "dill")

# (variant, precision, batch) -> an ONNX file, or what TensorRT reads in it.
GraphOf = Callable[[str, str, int], Path]
ParsedOf = Callable[[str, str, int], "Parsed"]


@dataclass(frozen=True)
class Parsed:
    """A graph, the network TensorRT made of it, and the PyTorch network it came from."""

    path: Path
    network: Any
    builder: Any
    spec: ModelSpec
    model: GFT

    def layers(self, kind: Any) -> list[Any]:
        """The network's layers of a LayerType, in order."""
        every = (self.network.get_layer(number) for number in range(self.network.num_layers))
        return [layer for layer in every if layer.type == kind]


@pytest.fixture(scope="module")
def library() -> Any:
    """TensorRT for RTX GPUs, which parses and builds without a GPU."""
    reason = "tensorrt_rtx cannot be imported here: its wheels are for x86-64"
    return pytest.importorskip("tensorrt_rtx", reason=reason, exc_type=ImportError)


@functools.cache
def wide_network(variant: str) -> tuple[ModelSpec, GFT]:
    """A variant at its real size; weights are moved, for fresh extra layers project to zero."""
    spec = spec_from_name(variant, tuple(f"class {number}" for number in range(CLASSES)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_gft(spec).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.add_(0.02 * torch.randn(parameter.shape))
    return spec, model


@pytest.fixture(scope="module")
def graph_of(tmp_path_factory: pytest.TempPathFactory) -> GraphOf:
    """Exports a graph for TensorRT, each once."""
    folder = tmp_path_factory.mktemp("graphs")

    @functools.cache
    def simplified(variant: str, precision: str, batch: int) -> onnx.ModelProto:
        spec, model = wide_network(variant)
        network = half(model) if precision == "fp16" else model
        given = InputSpec("uint8", batch)
        return simplify(onnx_from_torch(network, spec, given, 20, centred=precision == "fp16"))

    @functools.cache
    def graph(variant: str, precision: str, batch: int) -> Path:
        made = simplified(variant, "fp32" if precision == "fp32" else "fp16", batch)
        spec, model = wide_network(variant)
        if precision == "int8":
            generator = torch.Generator().manual_seed(0)
            shape = (2, 3, 224, 224)
            batches = [torch.randn(shape, generator=generator) for _ in range(2)]
            peaks = activation_peaks(model, batches)
            made = quantize_onnx(made, peaks, list(peaks), "backbone.patch_embed.proj")
        path = folder / f"{variant}-{precision}-{batch}.onnx"
        metadata = {"model_type": "Classification"}
        onnx.save(finish(made, metadata, kept_names(spec)), path)
        return path

    return graph


def parse_file(path: Path) -> tuple[Any, Any]:
    """The network and its builder."""
    network, builder, _ = parse(builder_library("tensorrt-rtx"), path.read_bytes(), path)
    return network, builder


@pytest.fixture(scope="module")
def parsed_of(library: Any, graph_of: GraphOf) -> ParsedOf:
    """Parses a graph, each once. A graph that TensorRT refuses raises here."""

    @functools.cache
    def parsed(variant: str, precision: str, batch: int) -> Parsed:
        path = graph_of(variant, precision, batch)
        network, builder = parse_file(path)
        return Parsed(path, network, builder, *wide_network(variant))

    return parsed


every_graph = pytest.mark.parametrize(
    ("variant", "precision"),
    [(variant, precision) for variant in VARIANTS for precision in PRECISIONS],
)
every_variant = pytest.mark.parametrize("variant", VARIANTS)


@every_graph
def test_the_network_takes_pixels_and_gives_float_logits(
    variant: str, precision: str, parsed_of: ParsedOf, library: Any
) -> None:
    network = parsed_of(variant, precision, 1).network
    assert (network.num_inputs, network.num_outputs) == (1, 1)
    images, logits = network.get_input(0), network.get_output(0)
    assert (images.name, logits.name) == ("images", "logits")
    assert (images.dtype, tuple(images.shape)) == (library.uint8, (1, 224, 224, 3))
    assert (logits.dtype, tuple(logits.shape)) == (library.float32, (1, CLASSES))


@every_graph
def test_every_stage_ranks_its_patches_in_fp32(
    variant: str, precision: str, parsed_of: ParsedOf, library: Any
) -> None:
    parsed = parsed_of(variant, precision, 1)
    ranking = parsed.layers(library.LayerType.TOPK)
    patches = [196, *(stage.keep for stage in parsed.spec.stages[:-1])]
    assert [tuple(layer.get_input(0).shape) for layer in ranking] == [(1, n) for n in patches]
    assert [layer.get_output(0).shape[1] for layer in ranking] == [
        stage.keep for stage in parsed.spec.stages
    ]
    assert {layer.get_input(0).dtype for layer in ranking} == {library.float32}


@every_graph
def test_the_score_branch_computes_in_fp32_from_end_to_end(
    variant: str, precision: str, parsed_of: ParsedOf, library: Any
) -> None:
    parsed = parsed_of(variant, precision, 1)
    kinds = library.LayerType
    computing = [
        layer
        for kind in (kinds.ELEMENTWISE, kinds.REDUCE, kinds.UNARY)
        for layer in parsed.layers(kind)
        # Indices are integers and masks are booleans in any precision.
        if layer.name.startswith("selections.") and layer.get_output(0).dtype != library.bool
        and layer.get_input(0).dtype not in (library.int32, library.int64)
    ]  # fmt: skip
    assert len(computing) > 3 * len(parsed.spec.stages)
    assert {layer.get_output(0).dtype for layer in computing} == {library.float32}


@every_graph
def test_every_layer_normalization_stays_whole(
    variant: str, precision: str, parsed_of: ParsedOf, library: Any
) -> None:
    parsed = parsed_of(variant, precision, 1)
    expected = sum(isinstance(module, nn.LayerNorm) for module in parsed.model.modules())
    assert expected == {"gft_tiny": 28, "gft_tiny_edge": 25}[variant]
    layers = parsed.layers(library.LayerType.NORMALIZATION)
    assert len(layers) == expected
    dtype = library.float32 if precision == "fp32" else library.float16
    assert {layer.get_output(0).dtype for layer in layers} == {dtype}


@every_graph
def test_every_layer_with_a_weight_computes_in_the_precision_asked_for(
    variant: str, precision: str, parsed_of: ParsedOf, library: Any
) -> None:
    parsed = parsed_of(variant, precision, 1)
    kinds = library.LayerType
    named = {
        layer.name.rpartition("/")[0]: layer
        for layer in (*parsed.layers(kinds.MATRIX_MULTIPLY), *parsed.layers(kinds.CONVOLUTION))
    }
    weighted = [named[name] for name in quantizable_layers(parsed.model)]
    dtype = library.float32 if precision == "fp32" else library.float16
    assert {layer.get_input(0).dtype for layer in weighted} == {dtype}
    assert {layer.get_output(0).dtype for layer in weighted} == {dtype}


@every_graph
def test_int8_quantizes_what_each_layer_reads_and_nothing_else(
    variant: str, precision: str, parsed_of: ParsedOf, library: Any
) -> None:
    parsed = parsed_of(variant, precision, 1)
    layers = len(quantizable_layers(parsed.model)) if precision == "int8" else 0
    quantizing = parsed.layers(library.LayerType.QUANTIZE)
    assert len(quantizing) == layers
    # Weights are stored quantized: each has a DEQUANTIZE alone.
    assert len(parsed.layers(library.LayerType.DEQUANTIZE)) == 2 * layers
    assert {layer.get_output(0).dtype for layer in quantizing} == (
        {library.int8} if layers else set()
    )


@every_graph
def test_casts_stand_at_the_ends_and_around_each_score_alone(
    variant: str, precision: str, graph_of: GraphOf
) -> None:
    counts = Counter(n.op_type for n in onnx.load(graph_of(variant, precision, 1)).graph.node)
    assert counts["Cast"] == {"fp32": 1, "fp16": 8, "int8": 8}[precision]


def engine_bytes(parsed: Parsed) -> int:
    """Of the engine that the ahead-of-time builder makes of a network."""
    plan = parsed.builder.build_serialized_network(
        parsed.network, parsed.builder.create_builder_config()
    )
    assert plan is not None
    return int(plan.nbytes)


@every_variant
def test_engines_build_ahead_of_time_and_fp16_halves_them(
    variant: str, parsed_of: ParsedOf
) -> None:
    sizes = {name: engine_bytes(parsed_of(variant, name, 1)) for name in PRECISIONS}
    assert min(sizes.values()) > 1e6
    assert sizes["fp16"] < 0.7 * sizes["fp32"]
    assert sizes["int8"] < 0.7 * sizes["fp32"]


@pytest.mark.slow
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_largest_network_builds_in_the_memory_that_a_build_announces(
    precision: str, graph_of: GraphOf
) -> None:
    """93 million weights, in a process of their own."""
    script = ROOT / "benchmarks" / "engine_build.py"
    path = graph_of("gft_base", precision, 1)
    done = subprocess.run(
        [sys.executable, str(script), "--build", str(path)],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(script.parent.parent)},
    )  # fmt: skip
    measured = json.loads(done.stdout)
    assert measured["engine"] > 100e6
    assert 0.6 < measured["peak"] / memory_bytes(measured["graph"]) < 1.05


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_batch_is_static_through_the_whole_network(
    precision: str, parsed_of: ParsedOf, library: Any
) -> None:
    parsed = parsed_of("gft_tiny_edge", precision, 8)
    assert tuple(parsed.network.get_input(0).shape) == (8, 224, 224, 3)
    assert tuple(parsed.network.get_output(0).shape) == (8, CLASSES)
    ranking = parsed.layers(library.LayerType.TOPK)
    assert [tuple(layer.get_input(0).shape) for layer in ranking] == [(8, 196), (8, 143), (8, 95)]
    assert engine_bytes(parsed) > 1e6


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_is_printed_over_a_good_graph(
    precision: str, graph_of: GraphOf, library: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    path = graph_of("gft_tiny_edge", precision, 1)
    capfd.readouterr()
    parse_file(path)
    assert capfd.readouterr() == ("", "")


def write_pixel_graph(path: Path, first: str) -> Path:
    """UINT8 (1,4,4,3) -> FLOAT (1,3,4,4), with a Transpose or a Cast as the `first` node."""
    transpose = {"op_type": "Transpose", "name": "patch_embed/Transpose", "perm": [0, 3, 1, 2]}
    cast = {"op_type": "Cast", "name": "patch_embed/Cast", "to": TensorProto.FLOAT}
    order = (transpose, cast) if first == "Transpose" else (cast, transpose)
    nodes = [
        helper.make_node(inputs=[given], outputs=[made], **arguments)
        for arguments, given, made in zip(
            order, ("images", "inner"), ("inner", "logits"), strict=True
        )
    ]
    graph = helper.make_graph(
        nodes,
        "pixels",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 4, 4, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3, 4, 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def test_pixels_that_are_transposed_before_they_are_cast_are_refused_by_node(
    library: Any, tmp_path: Path
) -> None:
    """Why the exported graph casts first."""
    parse_file(write_pixel_graph(tmp_path / "cast.onnx", "Cast"))
    path = write_pixel_graph(tmp_path / "transpose.onnx", "Transpose")
    message = (
        r"^TensorRT's parser refuses node 'patch_embed/Transpose': "
        r".*first input has type UInt8 but must have type"
    )
    with pytest.raises(PipelineError, match=message) as caught:
        parse_file(path)
    assert "\n" not in str(caught.value)


def test_an_operator_that_tensorrt_lacks_is_refused_by_node(
    library: Any, graph_of: GraphOf, tmp_path: Path
) -> None:
    model = onnx.load(graph_of("gft_tiny_edge", "fp32", 1))
    next(node for node in model.graph.node if node.op_type == "TopK").op_type = "Nonsense"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(PipelineError, match=r"refuses node 'selections.0/TopK': .*not found"):
        parse_file(tmp_path / "model.onnx")


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_a_broken_file_is_refused_by_name(
    damage: str, library: Any, graph_of: GraphOf, tmp_path: Path
) -> None:
    whole = graph_of("gft_tiny_edge", "fp32", 1).read_bytes()
    content = {"empty": b"", "text": b"not a model\nat all", "cut": whole[: len(whole) // 2]}
    path = tmp_path / "model.onnx"
    path.write_bytes(content[damage])
    with pytest.raises(PipelineError, match=rf"^TensorRT's parser .*{path}") as caught:
        parse_file(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without either library."""
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)


BUILD = BuildRequest("fp16", False, {}, "0" * 64)


@pytest.mark.usefixtures("no_tensorrt")
def test_without_tensorrt_the_install_line_is_given() -> None:
    expected = "TensorRT is not installed here: pip install 'gft-edge[tensorrt]'"
    assert trt.missing() == expected
    assert trt.version() == "absent"
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert json.loads(result.stdout)["engines"]["tensorrt"] == {
        "version": None,
        "missing": expected,
    }


@pytest.mark.usefixtures("no_tensorrt")
def test_without_tensorrt_on_a_jetson_the_systems_packages_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library_room, "l4t", lambda: "R36.4.3")
    reason = str(trt.missing())
    assert "sudo apt install nvidia-jetpack" in reason
    assert "python3 -m venv --system-site-packages" in reason
    assert "pip install" not in reason


def test_with_tensorrt_doctor_says_what_it_is_for(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert trt.version() == f"tensorrt-rtx {library.__version__}"
    reason = trt.missing()
    if reason is None:
        pytest.skip("a GPU answers here: engines run")
    assert reason.startswith(f"{trt.version()} reads and builds graphs here, and no engine runs: ")
    result = CliRunner().invoke(main, ["doctor"], env={"COLUMNS": "300"})
    assert "and no engine runs" in result.stdout


def test_any_machine_may_write_a_graph_in_any_of_its_precisions() -> None:
    for precision in trt.PRECISIONS:
        assert trt.unsupported(precision) is None
        assert trt.runtime_precision(precision) == "typed"


@pytest.mark.usefixtures("no_tensorrt")
def test_without_tensorrt_a_graph_is_copied_unread(tmp_path: Path) -> None:
    graph = tmp_path / "scratch.onnx"
    graph.write_bytes(b"any bytes")
    folder = tmp_path / "bundle"
    folder.mkdir()
    artifact = trt.build(graph, folder, BUILD)
    assert (folder / "model.onnx").read_bytes() == graph.read_bytes()
    assert (artifact.path, artifact.precision) == ("model.onnx", "fp16")
    assert (artifact.sha256, artifact.parent_sha256) == (sha256_of(graph), "0" * 64)


@pytest.mark.usefixtures("library")
def test_with_tensorrt_only_a_graph_it_reads_is_copied(tmp_path: Path) -> None:
    good = write_pixel_graph(tmp_path / "good.onnx", "Cast")
    bad = write_pixel_graph(tmp_path / "bad.onnx", "Transpose")
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    trt.build(good, tmp_path / "good", BUILD)
    assert (tmp_path / "good" / "model.onnx").read_bytes() == good.read_bytes()
    with pytest.raises(PipelineError, match="refuses node 'patch_embed/Transpose'"):
        trt.build(bad, tmp_path / "bad", BUILD)
    assert not list((tmp_path / "bad").iterdir())


def test_without_a_gpu_the_backend_that_runs_the_graph_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    request = OpenRequest((1, 224, 224, 3), CLASSES, "typed")
    with pytest.raises(UsageError, match=r"ONNX Runtime runs the graph on a CPU: --backend onnx"):
        trt.open_session(tmp_path / "model.onnx", request)


def test_an_installed_tensorrt_that_cannot_parse_here_is_not_said_to_have_parsed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, micro_run: Path, pictures: Path
) -> None:
    """The desktop library imports without a GPU, and has no parser there."""

    def refuses(flavor: str | None = None) -> None:
        raise UsageError("tensorrt 10.16.1 builds only where an NVIDIA GPU answers")

    monkeypatch.setattr(contents_room, "builder_library", refuses)
    spec, model = load_run(micro_run)
    images = draw_image_set(read_split(pictures, "val", spec.labels), count=8, seed=0)
    said: list[str] = []
    request = ExportRequest("trt")
    bundle = export(model, spec, images, request, tmp_path / "bundle", say=said.append)
    assert [text for text in said if "the graph has not been read by its parser" in text]
    assert bundle.manifest.tools["tensorrt parser"] == "absent"


def test_importing_the_backend_imports_no_tensorrt() -> None:
    code = (
        "import sys, gft_edge.runtime.backends.trt\n"
        "sys.exit(', '.join(name for name in sys.modules if name.startswith('tensorrt')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth pictures, on which FP16 holds its bounds with room: on noise patches score alike."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(3)
    for label in MICRO_LABELS:
        (folder / "val" / label).mkdir(parents=True)
        for number in range(12):
            small = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            picture = small.resize((80, 90), Image.Resampling.BICUBIC)
            picture.save(folder / "val" / label / f"{number}.png")
    return folder


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def bundle(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    micro_run: Path,
    pictures: Path,
) -> Path:
    """The micro run exported for TensorRT."""
    spec, model = load_run(micro_run)
    images = draw_image_set(read_split(pictures, "val", spec.labels), count=48, seed=0)
    precision: str = request.param
    folder = tmp_path_factory.mktemp("tensorrt") / precision
    export(model, spec, images, ExportRequest("trt", precision), folder)
    return folder


def test_a_bundle_for_tensorrt_is_verified_by_onnx_runtime(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    assert (manifest.target, manifest.runtime_precision) == ("tensorrt", "typed")
    assert [report.step for report in manifest.reports] == [
        "onnx_from_torch", "simplify", "build for tensorrt",
    ]  # fmt: skip
    assert {report.verdict for report in manifest.reports} == {"pass"}
    report = verify(bundle, backend="onnx")
    assert (report.verdict, report.failures) == ("pass", ())
    assert report.golden is not None
    assert len(report.golden.kept_overlap) == 3


def test_the_golden_check_has_the_bounds_of_verify(bundle: Path) -> None:
    bound = golden_tolerance(read_bundle(bundle).manifest, 8)
    script = (bundle / "golden" / "check.sh").read_text(encoding="utf-8")
    assert f"\nagreement_bound={bound.top1_agreement:g}\n" in script
    assert f"\ncosine_bound={bound.cosine:g}\n" in script


def test_without_a_backend_a_bundle_for_tensorrt_names_the_one_to_give(bundle: Path) -> None:
    result = CliRunner().invoke(main, ["verify", str(bundle)])
    assert result.exit_code == 2
    assert "--backend onnx" in result.stderr


def test_threads_are_refused_where_the_gpu_computes(bundle: Path) -> None:
    with pytest.raises(UsageError, match="threads are a CPU engine's: leave them out for tensorrt"):
        Classifier.load(bundle, threads=1)


def test_the_artifact_of_a_bundle_parses_in_its_precision(bundle: Path, library: Any) -> None:
    network, _ = parse_file(read_bundle(bundle).artifact_path)
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    products = [layer for layer in layers if layer.type == library.LayerType.MATRIX_MULTIPLY]
    dtype = {"fp32": library.float32, "fp16": library.float16}[bundle.name]
    assert {layer.get_output(0).dtype for layer in products} == {dtype}
    ranking = [layer for layer in layers if layer.type == library.LayerType.TOPK]
    assert {layer.get_input(0).dtype for layer in ranking} == {library.float32}
    assert [layer.get_output(0).shape[1] for layer in ranking] == [48, 32, 16]


def test_inspect_shows_a_bundle_for_tensorrt(bundle: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(bundle), "--json"])
    content = json.loads(result.stdout)
    assert (content["target"], content["precision"]) == ("tensorrt", bundle.name)
    shown = CliRunner().invoke(main, ["inspect", str(bundle)])
    assert shown.exit_code == 0
    assert "none yet: gft-edge build makes one on the machine that runs it" in shown.stdout
