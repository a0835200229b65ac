"""Dense networks and those that keep fewer patches, timed in PyTorch on a GPU: inference, training, kernels.

python benchmarks/first_gpu_torch.py [--seconds 100] [--only latency,kernels,training]

Random weights. A line of JSON for each measurement as soon as it is there, most worth first: eager and as
CUDA graphs, in FP16, bf16 and FP32 (without TF32), a network and its dense one in turn. It stops in
time, so that what it has printed counts. On a CPU (--device cpu) it shows that it runs, no more.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gft_edge.bundle.specs import ModelSpec
from gft_edge.model.named_networks import build_network, spec_from_name
from gft_edge.model.network import Network
from gft_edge.training.objective import Objective
from gft_edge.training.recipes import Recipe

PAIRS = {
    "tiny": ("deit_tiny_patch16_224", "gft_tiny_edge"),
    "base": ("deit_base_patch16_224", "gft_base_edge"),
}
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
BATCHES = (1, 64)
TURNS = 5
TURN_S = 0.1
TOP_KERNELS = 8
LABELS = tuple(f"class {number}" for number in range(100))

Call = Callable[[], object]
Row = dict[str, object]


@dataclass(frozen=True)
class Machine:
    """Where it is measured, and until when (of time.monotonic)."""

    device: torch.device
    end: float

    @property
    def where(self) -> str:
        """What a row that is not of a GPU says."""
        return "" if self.device.type == "cuda" else " on a CPU"

    def wait(self) -> None:
        """Wait until the GPU has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """Print a line a measurement until all are done or the time is up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--sizes", default=",".join(PAIRS))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--precisions", default=",".join(TYPES))
    parser.add_argument("--only", default="latency,kernels,training")
    given = parser.parse_args()
    machine = Machine(torch.device(given.device), time.monotonic() + given.seconds)
    if machine.device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(f"Error: PyTorch {torch.__version__} sees no NVIDIA GPU")
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    batches, precisions = [int(text) for text in given.batches.split(",")], given.precisions
    for work in given.only.split(","):
        for size in given.sizes.split(","):
            try:
                for rows in WORKS[work](machine, size, batches, precisions.split(",")):
                    for row in rows:
                        print(json.dumps({"row": work, **row}), flush=True)
                    if time.monotonic() > machine.end:
                        print(f"the time is up in {work} of {size}", file=sys.stderr)
                        return
            # What follows may do all the same.
            except RuntimeError as error:
                failed(f"{work} of {size}", error)


def latency(
    machine: Machine, size: str, batches: list[int], precisions: list[str]
) -> Iterator[list[Row]]:
    """Both networks of a size in turn, call by call until the logits are there."""
    networks = {name: network_of(name, machine) for name in PAIRS[size]}
    for batch in batches:
        for precision in precisions:
            images = torch.randn(batch, 3, 224, 224, device=machine.device, dtype=TYPES[precision])
            lowered = {name: lower(model, TYPES[precision]) for name, model in networks.items()}
            calls = {name: call_of(model, images) for name, model in lowered.items()}
            yield in_turn(machine, calls, precision, "eager", batch)
            if machine.device.type == "cuda":
                yield replayed_in_turn(machine, calls, precision, batch)


def replayed_in_turn(
    machine: Machine, calls: dict[str, Callable[[], Tensor]], precision: str, batch: int
) -> list[Row]:
    """As in_turn, each network's launches as one graph; the rows say how far its logits are off."""
    try:
        graphs = {name: graph_of(call) for name, call in calls.items()}
    except RuntimeError as error:
        failed(f"CUDA graph, {precision}, batch {batch}", error)
        return []
    replays = {name: graph.replay for name, (graph, _) in graphs.items()}
    rows = in_turn(machine, replays, precision, "CUDA graph", batch)
    for row, (name, (_, output)) in zip(rows, graphs.items(), strict=False):
        # What a replay writes against what a plain call gives: 0, but for a close choice.
        row["logits_differ_by"] = float((output - calls[name]()).abs().max())
    return rows


def training(
    machine: Machine, size: str, batches: list[int], precisions: list[str]
) -> Iterator[list[Row]]:
    """A step of training on one batch, FP32 weights: bf16 as `gft-edge train` does, FP32, FP16 unscaled."""
    batch = max(batches)
    images = torch.randn(batch, 3, 224, 224, device=machine.device)
    targets = torch.randint(len(LABELS), (batch,), device=machine.device)
    for precision in sorted(precisions):  # bf16 first
        calls: dict[str, Call] = {}
        for name in PAIRS[size]:
            objective = Objective(network_of(name, machine), Recipe(), amp=precision == "bf16")
            calls[name] = step_of(objective.train(), images, targets, precision == "fp16")
        yield in_turn(machine, calls, precision, "training step", batch)


def kernels(
    machine: Machine, size: str, batches: list[int], precisions: list[str]
) -> Iterator[list[Row]]:
    """What a network's eager inference runs: the kernels that take longest, of one image in FP16."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = machine.device.type == "cuda"
    precision = precisions[0]
    for name in PAIRS[size]:
        model = lower(network_of(name, machine), TYPES[precision])
        images = torch.randn(1, 3, 224, 224, device=machine.device, dtype=TYPES[precision])
        call = call_of(model, images)
        call()
        with profile(
            activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
        ) as seen:
            call()
            machine.wait()
        found = [
            (event.key, (event.self_device_time_total if on_gpu else event.self_cpu_time_total), event.count)
            for event in seen.key_averages()
        ]  # fmt: skip
        total = sum(time_us for _, time_us, _ in found) or 1
        found.sort(key=lambda one: -one[1])
        yield [
            {"network": name, "precision": precision, "how": f"PyTorch eager{machine.where}",
             "kernel": kernel, "ms": time_us / 1000, "share": time_us / total, "calls": count}
            for kernel, time_us, count in found[:TOP_KERNELS]
        ]  # fmt: skip


WORKS = {"latency": latency, "kernels": kernels, "training": training}


def in_turn(
    machine: Machine, calls: Mapping[str, Call], precision: str, how: str, batch: int
) -> list[Row]:
    """The medians, and the first network's time by each one's, turn by turn; no row where one fails."""
    try:
        return measured_in_turn(machine, calls, precision, how, batch)
    # Out of memory too: a smaller measurement may follow.
    except RuntimeError as error:
        failed(f"{how}, {precision}, batch {batch}", error)
        return []


def measured_in_turn(
    machine: Machine, calls: Mapping[str, Call], precision: str, how: str, batch: int
) -> list[Row]:
    """As in_turn, or the error."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    medians: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3 if machine.device.type == "cuda" else 1):
            call()
    for _ in range(TURNS):
        for name, call in calls.items():
            turn: list[float] = []
            started = time.perf_counter()
            while len(turn) < 3 or time.perf_counter() - started < TURN_S:
                machine.wait()
                before = time.perf_counter()
                call()
                machine.wait()
                turn.append(1000 * (time.perf_counter() - before))
                if time.monotonic() > machine.end:
                    break
            times[name] += turn
            medians[name].append(statistics.median(turn))
    first = next(iter(calls))
    return [
        {
            "network": name,
            "precision": precision,
            "how": f"PyTorch {how}{machine.where}",
            "batch": batch,
            "median_ms": statistics.median(times[name]),
            "calls": len(times[name]),
            "dense_by_this": statistics.median(
                a / b for a, b in zip(medians[first], medians[name], strict=True)
            ),
        }
        for name in calls
    ]


def failed(what: str, error: Exception) -> None:
    """Say on one line what failed."""
    print(f"failed: {what}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)


def network_of(name: str, machine: Machine) -> Network:
    """A network of random weights on the device."""
    spec: ModelSpec = spec_from_name(name, LABELS)
    with machine.device:
        model: Network = build_network(spec)
    return model.to(machine.device).eval()


def lower(model: Network, dtype: torch.dtype) -> Network:
    """A copy in that type; patches are ranked in FP32, as they are in an export."""
    network = copy.deepcopy(model).to(dtype)
    if hasattr(model, "selections"):
        network.selections = copy.deepcopy(model.selections)
    return network


def call_of(model: Network, images: Tensor) -> Callable[[], Tensor]:
    """Inference on images that lie on the device."""

    def call() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(images)
        return logits

    return call


def graph_of(call: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """The launches of a call as one graph, and the logits that it writes."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    return graph, output


def step_of(objective: Objective, images: Tensor, targets: Tensor, fp16: bool) -> Call:
    """Loss, gradients and AdamW on one batch."""
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-5)

    def step() -> None:
        with torch.autocast(images.device.type, dtype=torch.float16, enabled=fp16):
            loss = objective.network.training_loss(
                images, targets, lambda logits, of: torch.nn.functional.cross_entropy(logits.float(), of)
            ) if fp16 else objective(images, targets)  # fmt: skip
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
