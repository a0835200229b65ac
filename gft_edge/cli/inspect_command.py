"""gft-edge inspect."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.manifest import Manifest
from gft_edge.bundle.specs import ModelSpec
from gft_edge.bundle.stages import stages_text
from gft_edge.bundle.store import is_bundle, read_bundle, read_manifest, size_bytes
from gft_edge.cli.options import json_option
from gft_edge.cli.output import (
    percent,
    print_fidelity,
    print_json,
    print_quantization,
    print_rescheduled,
    print_table,
    say,
)
from gft_edge.errors import GftEdgeError, MissingDependencyError, UsageError
from gft_edge.nvidia.attention import Attention
from gft_edge.nvidia.cuda import open_cuda
from gft_edge.nvidia.engines import deserialized, engine_for, host_of
from gft_edge.nvidia.layer_report import LayerReport, report_of
from gft_edge.nvidia.layers import engine_layers, network_layers
from gft_edge.nvidia.library import builder_library, installed, parse

# The classes of the paper's FGVC-Aircraft, where a network is inspected without data.
DEFAULT_CLASSES = 100


@click.command("inspect")
@click.argument("what")
@click.option("--classes", type=click.IntRange(2), default=DEFAULT_CLASSES, show_default=True,
              help="Classes of a network given by name.")  # fmt: skip
@click.option("--stages", help="Stages of a network given by name.")
@click.option("--engine", is_flag=True,
              help="Also what TensorRT makes of a bundle for it: precisions, attention.")  # fmt: skip
@json_option
def command(what: str, classes: int, stages: str | None, engine: bool, as_json: bool) -> None:
    """Show what is inside a network (by name), a run, a bundle or an ONNX file.

    A network or a run: parameters, tokens and GFLOPs per block, against the dense backbone.
    """
    path = Path(what)
    if engine and not is_bundle(path):
        raise UsageError(f"--engine reads a bundle exported with --target tensorrt: {what} is none")
    if path.is_file():
        content, show = _onnx(path), _show_onnx
    elif is_bundle(path):
        content, show = _bundle(path), functools.partial(_show_bundle, read_manifest(path))
    else:
        content, show = _network(what, path, classes, stages), _show_network
    report = _engine(path) if engine else None
    if report is not None:
        content["engine"] = to_json(report)
    if as_json:
        print_json(content)
    else:
        show(content)
        if report is not None:
            _show_engine(report)
    for warning in report.warnings if report is not None else ():
        say(f"warning: {warning}")


def _network(name: str, path: Path, classes: int, stages: str | None) -> dict[str, Any]:
    try:
        from gft_edge.model.checkpoint import load_run
        from gft_edge.model.cost import cost_of
        from gft_edge.model.named_networks import build_network, spec_from_name
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "train") from error
    if path.exists():
        spec, model = load_run(path)
    else:
        labels = tuple(f"class {number}" for number in range(classes))
        spec = spec_from_name(name, labels, stages=stages)
        model = build_network(spec)
    cost = cost_of(model)
    return {
        "kind": "network",
        "name": spec.name,
        "family": spec.family,
        "classes": len(spec.labels),
        "score": spec.score,
        "gala": spec.gala,
        "stages": to_json(spec.stages),
        "parameters": cost.parameters,
        "gflops": cost.gflops,
        "dense_gflops": cost.dense_gflops,
        "dense_blocks": None if cost.dense_gflops is None else len(model.backbone.blocks),
        "eq6_gflops": cost.eq6_gflops,
        "blocks": [dataclasses.asdict(row) for row in cost.rows],
    }


def _show_network(content: dict[str, Any]) -> None:
    rows = [
        (row["name"],
         "-" if row["tokens_in"] is None else f"{row['tokens_in']} -> {row['tokens_out']}",
         f"{row['parameters']:,}", f"{row['gflops']:.3f}")
        for row in content["blocks"]
    ]  # fmt: skip
    rows.append(("total", "", f"{content['parameters']:,}", f"{content['gflops']:.3f}"))
    selects, dense_gflops = content["stages"], content["dense_gflops"]
    if dense_gflops is not None:
        dense = f"dense backbone, {content['dense_blocks']} blocks"
        rows.append((dense, "", "", f"{dense_gflops:.3f}"))
    if content["eq6_gflops"] is not None:
        rows.append(("Eq. 6 (extra layers not counted)", "", "", f"{content['eq6_gflops']:.3f}"))
    title = [f"{content['name']}: {content['classes']} classes"]
    if selects:
        title += [f"score {content['score']}", f"gala {content['gala']}"]
    title.append(f"{content['parameters'] / 1e6:.2f} M parameters")
    title.append(
        f"{content['gflops']:.2f} GFLOPs"
        if dense_gflops is None
        else f"{content['gflops'] / dense_gflops:.2f} of the dense GFLOPs"
    )
    print_table(", ".join(title), ("block", "tokens", "parameters", "GFLOPs"), rows)


def _bundle(path: Path) -> dict[str, Any]:
    bundle = read_bundle(path)
    manifest = bundle.manifest
    return {
        "kind": "bundle",
        "size_bytes": size_bytes(bundle),
        **to_json(manifest),
        "reports": to_json(manifest.reports),
    }


def _show_bundle(manifest: Manifest, content: dict[str, Any]) -> None:
    model, given = content["model"], content["input"]
    size = model["preprocessing"]["image_size_px"]
    stages = stages_text(manifest.model.stages) or "none"
    tools = ", ".join(f"{name} {version}" for name, version in content["tools"].items())
    print_table(
        "Bundle",
        ("what", "value"),
        [
            ("target", content["target"]),
            ("precision", f"{content['precision']}, {_computed(content['runtime_precision'])}"),
            ("input", f"{given['dtype']}, batch {given['batch']}, {size}x{size}"),
            ("network", _network_line(manifest.model)),
            ("stages", stages),
            ("classes", len(model["labels"])),
            ("model files", f"{content['size_bytes'] / 2**20:.1f} MiB"),
            ("tools", tools),
            *_engine_rows(manifest),
        ],
    )
    print_fidelity("Fidelity against PyTorch", manifest.reports)
    if manifest.rescheduled is not None:
        print_rescheduled(manifest)
    if manifest.quantization is not None:
        print_quantization(manifest.quantization)
    if manifest.candidates:
        print_table(
            f"Precisions tried on {manifest.candidates[0].machine}",
            ("precision", "accuracy", "agreement", "median ms", "why"),
            [
                (c.precision, percent(c.accuracy), percent(c.top1_agreement),
                 "-" if c.median_ms is None else f"{c.median_ms:.2f}", c.reason)
                for c in manifest.candidates
            ],
        )  # fmt: skip


def _network_line(model: ModelSpec) -> str:
    if model.stages:
        return f"{model.name}, score {model.score}, gala {model.gala}"
    built = model.backbone if model.backbone != model.name else "timm's"
    if model.family == "transfg":
        return f"{model.name} ({built}), chooses parts before its last block"
    return f"{model.name} ({built}), selects no patches"


def _engine_rows(manifest: Manifest) -> list[tuple[str, str]]:
    if manifest.target != "tensorrt":
        return []
    if not manifest.engines:
        return [("engines", "none yet: gft-edge build makes one on the machine that runs it")]
    return [
        ("engine", f"{engine.path}, {engine.build_seconds:.0f} s to build")
        for engine in manifest.engines
    ]


def _engine(path: Path) -> LayerReport:
    """What TensorRT made of a bundle's graph: its engine, where one loads here, else the parsed network."""
    bundle = read_bundle(path)
    manifest = bundle.manifest
    if manifest.target != "tensorrt":
        raise UsageError(
            f"{path} is for {manifest.target}, and --engine shows what TensorRT makes of a graph: "
            "export with --target tensorrt"
        )
    graph = bundle.artifact_path
    # The builder owns the network.
    network, _builder, _ = parse(builder_library(), graph.read_bytes(), graph)
    asked = network_layers(network)
    try:
        cuda = open_cuda()
        host = host_of(cuda)
        engine, library = engine_for(
            path, manifest.engines, manifest.artifact.sha256, ("logits",), installed(), host
        )
    except GftEdgeError as error:
        say(f"the network as TensorRT parses it, for no engine loads here: {error}")
        return report_of(asked, manifest.model, "parsed network")
    loaded = deserialized(path, engine, library, cuda, library.log())
    form = library.module.LayerInformationFormat.JSON
    text = loaded.create_engine_inspector().get_engine_information(form)
    return report_of(engine_layers(text), manifest.model, "engine", asked)


def _show_engine(report: LayerReport) -> None:
    fused = Counter(one.verdict for one in report.attention)
    products = ", ".join(f"{count} in {name}" for name, count in report.products.items())
    print_table(
        f"TensorRT, {report.source}",
        ("what", "value"),
        [
            ("INT8 layers", report.int8_layers),
            ("FP16 layers", report.fp16_layers),
            ("products", products),
            ("attention", ", ".join(f"{count} {verdict}" for verdict, count in fused.items())),
        ],
    )
    print_table(
        "Layers by stage",
        ("stage", "what lies there", "precisions", "TopK", "Gather", "Cast", "reformat"),
        [
            (row.stage, ", ".join(row.groups),
             ", ".join(f"{count} {name}" for name, count in row.precisions.items()),
             row.top_k, row.gather, row.cast, "-" if row.reformat is None else row.reformat)
            for row in report.stages
        ],
    )  # fmt: skip
    print_table(
        "Attention",
        ("where", "one kernel", "why not"),
        [
            (", ".join(one.group for one in alike), verdict, reason or "-")
            for (verdict, reason), alike in _grouped(report.attention).items()
        ],
    )


def _grouped(attention: Sequence[Attention]) -> dict[tuple[str, str | None], list[Attention]]:
    """Attention by verdict and reason."""
    alike: dict[tuple[str, str | None], list[Attention]] = {}
    for one in attention:
        alike.setdefault((one.verdict, one.reason), []).append(one)
    return alike


def _computed(runtime_precision: str) -> str:
    typed = runtime_precision == "typed"
    return "computed as the graph is typed" if typed else f"computed in {runtime_precision}"


def _onnx(path: Path) -> dict[str, Any]:
    try:
        import onnx

        from gft_edge.fidelity.structure import top_k_constant
    except ImportError as error:
        raise MissingDependencyError(error.name or "onnx", "export") from error
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    # onnx and protobuf raise classes of their own for a file that is no model.
    except Exception as error:
        raise UsageError(
            f"{path} is no ONNX model ({str(error).splitlines()[0]}): "
            "give an ONNX file, or the folder of a bundle or run"
        ) from error
    graph = model.graph
    return {
        "kind": "onnx",
        "path": str(path),
        "opset": max(entry.version for entry in model.opset_import if not entry.domain),
        "inputs": {value.name: _type(value) for value in graph.input},
        "outputs": {value.name: _type(value) for value in graph.output},
        "operators": dict(Counter(node.op_type for node in graph.node).most_common()),
        "top_k": [top_k_constant(node, graph) for node in graph.node if node.op_type == "TopK"],
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
    }


def _type(value: Any) -> dict[str, Any]:
    import onnx

    tensor = value.type.tensor_type
    return {
        "dtype": onnx.TensorProto.DataType.Name(tensor.elem_type).lower(),
        "shape": [
            d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim
        ],
    }


def _show_onnx(content: dict[str, Any]) -> None:
    print_table(
        f"{content['path']}: opset {content['opset']}, TopK keeps {content['top_k']}",
        ("input or output", "dtype", "shape"),
        [
            (n, t["dtype"], t["shape"])
            for n, t in {**content["inputs"], **content["outputs"]}.items()
        ],
    )
    print_table("Operators", ("operator", "count"), list(content["operators"].items()))
    print_table(
        "Metadata",
        ("key", "value"),
        [(k, v if len(v) < 100 else v[:97] + "...") for k, v in content["metadata"].items()],
    )
