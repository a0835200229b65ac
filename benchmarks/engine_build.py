"""What building an engine takes: seconds, the peak of host memory, and what the build says it takes.

python benchmarks/engine_build.py [--networks gft_tiny,gft_base] [--precisions fp32,fp16]

Needs no data and no GPU: weights are random, TensorRT-RTX builds ahead of time, and each build is a
process of its own, that memory is counted from its start. BASE_BYTES and GRAPH_COPIES in
gft_edge/nvidia/build.py come from this table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gft_edge.nvidia.build import memory_bytes
from gft_edge.nvidia.library import builder_library, parse

NETWORKS = ("gft_tiny_edge", "gft_tiny", "gft_small", "gft_base")
PRECISIONS = ("fp32", "fp16")
MIB = 2**20


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--write", nargs=3, metavar=("NETWORK", "PRECISION", "FILE"))
    parser.add_argument("--build", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        network, precision, file = arguments.write
        write_graph(network, precision, Path(file))
    elif arguments.build:
        print(json.dumps(build(arguments.build)))
    else:
        print_table(arguments.networks.split(","), arguments.precisions.split(","))


def print_table(networks: list[str], precisions: list[str]) -> None:
    """One row a build; a process writes the graph, another builds it."""
    print(f"{builder_library('tensorrt-rtx').name}, batch 1, 224 px, ahead of time on a CPU")
    print()
    print("| network | precision | graph MiB | engine MiB | s | peak MiB | estimate MiB |")
    print("|---|---|---|---|---|---|---|")
    for network in networks:
        for precision in precisions:
            with tempfile.TemporaryDirectory() as scratch:
                file = str(Path(scratch) / "model.onnx")
                this = [sys.executable, __file__]
                subprocess.run([*this, "--write", network, precision, file], check=True)
                done = subprocess.run([*this, "--build", file], check=True, stdout=subprocess.PIPE)
            row = json.loads(done.stdout)
            print(
                f"| {network} | {precision} | {row['graph'] / MIB:.1f} | "
                f"{row['engine'] / MIB:.1f} | {row['seconds']:.1f} | {row['peak'] / MIB:.0f} | "
                f"{memory_bytes(row['graph']) / MIB:.0f} |",
                flush=True,
            )


def write_graph(network: str, precision: str, file: Path) -> None:
    """The graph that an export for TensorRT writes, of a network with random weights."""
    import onnx
    import torch

    from gft_edge.bundle.specs import InputSpec
    from gft_edge.export.fp16 import half
    from gft_edge.export.graph import finish, kept_names, simplify
    from gft_edge.export.onnx_from_torch import onnx_from_torch
    from gft_edge.model.gft import build_gft
    from gft_edge.model.named_networks import spec_from_name

    spec = spec_from_name(network, tuple(f"class {number}" for number in range(10)))
    torch.manual_seed(0)
    model = build_gft(spec).eval()
    typed = half(model) if precision == "fp16" else model
    given = InputSpec("uint8", 1)
    graph = onnx_from_torch(typed, spec, given, 20, centred=precision == "fp16")
    onnx.save(finish(simplify(graph), {}, kept_names(spec)), file)


def build(file: Path) -> dict[str, float]:
    """Bytes of the graph, the engine and the growth of this process at its peak; seconds."""
    before = peak_bytes()
    started = time.monotonic()
    graph = file.read_bytes()
    network, builder, _ = parse(builder_library("tensorrt-rtx"), graph, file)
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    seconds = time.monotonic() - started
    return {
        "graph": len(graph),
        "engine": plan.nbytes,
        "seconds": seconds,
        "peak": peak_bytes() - before,
    }


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    # Not getrusage: its maximum begins with what the parent held when it started the child.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
