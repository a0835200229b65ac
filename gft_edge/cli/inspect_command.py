"""gft-edge inspect."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.store import Bundle, is_bundle, read_bundle, size_bytes
from gft_edge.cli.options import PATH, json_option
from gft_edge.cli.output import print_json, say, show
from gft_edge.errors import UsageError
from gft_edge.nvidia.inspection import inspect_graph
from gft_edge.nvidia.layer_report import LayerReport
from gft_edge.reporting.bundle_tables import bundle_tables, tensorrt_tables
from gft_edge.reporting.table import Table

# The classes of the paper's FGVC-Aircraft, where a network is inspected without data.
DEFAULT_CLASSES = 100


@click.command("inspect")
@click.argument("what", type=PATH)
@click.option("--classes", type=click.IntRange(2), default=DEFAULT_CLASSES, show_default=True,
              help="Number of classes of a network given by name.")  # fmt: skip
@click.option("--stages", help="Stages of a network given by name, as in train --stages.")
@click.option("--engine", is_flag=True,
              help="Show also what TensorRT makes of a bundle for it: precisions, attention.")  # fmt: skip
@json_option
def command(what: Path, classes: int, stages: str | None, engine: bool, as_json: bool) -> None:
    """Show what is inside a network (by name), a run, a bundle or an ONNX file.

    A network or a run: parameters, tokens and GFLOPs per block, against the dense backbone.

    gft-edge inspect gft_base
    """
    if engine and not is_bundle(what):
        raise UsageError(f"--engine reads a bundle exported with --target tensorrt: {what} is none")
    warnings: tuple[str, ...] = ()
    if what.is_file():
        content = _onnx(what)
        tables = _onnx_tables(content)
    elif is_bundle(what):
        bundle = read_bundle(what)
        content, tables = _bundle(bundle), bundle_tables(bundle)
        if engine:
            report = _engine(bundle)
            content["engine"], warnings = report, report.warnings
            tables += tensorrt_tables(report)
    else:
        content = _network(what, classes, stages)
        tables = [_network_table(content)]
    if as_json:
        print_json(content)
    else:
        show(*tables)
    for warning in warnings:
        say(f"warning: {warning}")


def _bundle(bundle: Bundle) -> dict[str, Any]:
    reports = bundle.manifest.reports
    size = size_bytes(bundle)
    return {"kind": "bundle", "size_bytes": size, **to_json(bundle.manifest), "reports": reports}


def _engine(bundle: Bundle) -> LayerReport:
    target = bundle.manifest.target
    if target != "tensorrt":
        raise UsageError(
            f"{bundle.folder} is for {target}, and --engine shows what TensorRT makes of a graph: "
            "export with --target tensorrt"
        )
    return inspect_graph(bundle, say)


def _network(what: Path, classes: int, stages: str | None) -> dict[str, Any]:
    from gft_edge.model.checkpoint import load_run
    from gft_edge.model.cost import cost_of
    from gft_edge.model.named_networks import build_network, spec_from_name

    if what.exists():
        spec, model = load_run(what)
    else:
        labels = tuple(f"class {number}" for number in range(classes))
        spec = spec_from_name(str(what), labels, stages=stages)
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


def _network_table(content: dict[str, Any]) -> Table:
    gflops, dense_gflops = content["gflops"], content["dense_gflops"]
    rows = [
        (row["name"],
         "-" if row["tokens_in"] is None else f"{row['tokens_in']} -> {row['tokens_out']}",
         f"{row['parameters']:,}", f"{row['gflops']:.3f}")
        for row in content["blocks"]
    ]  # fmt: skip
    rows.append(("total", "", f"{content['parameters']:,}", f"{gflops:.3f}"))
    title = [f"{content['name']}: {content['classes']} classes"]
    if content["stages"]:
        title += [f"score {content['score']}", f"gala {content['gala']}"]
    title.append(f"{content['parameters'] / 1e6:.2f} M parameters")
    if dense_gflops is None:
        title.append(f"{gflops:.2f} GFLOPs")
    else:
        title.append(f"{gflops / dense_gflops:.2f} of the dense GFLOPs")
        dense = f"dense backbone, {content['dense_blocks']} blocks"
        rows.append((dense, "", "", f"{dense_gflops:.3f}"))
    if content["eq6_gflops"] is not None:
        rows.append(("Eq. 6 (extra layers not counted)", "", "", f"{content['eq6_gflops']:.3f}"))
    return Table(", ".join(title), ("block", "tokens", "parameters", "GFLOPs"), rows)


def _onnx(path: Path) -> dict[str, Any]:
    import onnx

    from gft_edge.fidelity.structure import top_k_constant

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
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
    return {"dtype": onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), "shape": shape}


def _onnx_tables(content: dict[str, Any]) -> list[Table]:
    title = f"{content['path']}: opset {content['opset']}, TopK keeps {content['top_k']}"
    ends = {**content["inputs"], **content["outputs"]}
    typed = [(name, one["dtype"], str(one["shape"])) for name, one in ends.items()]
    metadata = [(k, v if len(v) < 100 else v[:97] + "...") for k, v in content["metadata"].items()]
    return [
        Table(title, ("input or output", "dtype", "shape"), typed),
        Table("Operators", ("operator", "count"), list(content["operators"].items())),
        Table("Metadata", ("key", "value"), metadata),
    ]
