"""Images a second of training, of the same steps on one batch, and of those with fused attention.

    python benchmarks/training_throughput.py --data grocery --weights deit_tiny.safetensors

The first ratio says how much of the time the input pipeline leaves the network waiting, the second what
attention as products gains over PyTorch's fused kernel (bf16 on a CPU). All are measured in turn, a few
steps each, in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from timm.optim import create_optimizer_v2

from gft_edge.datasets import read_split
from gft_edge.model.checkpoint import load_backbone
from gft_edge.model.gft import build_gft
from gft_edge.model.named_networks import spec_from_name
from gft_edge.training.data import training_loader
from gft_edge.training.loop import supports_bf16
from gft_edge.training.objective import Objective
from gft_edge.training.product_attention import ProductAttention
from gft_edge.training.recipes import DEFAULT

TURN_STEPS = 8


def main() -> None:
    """Print images a second of both, and their ratio turn by turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--model", default="gft_tiny")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=8)
    given = parser.parse_args()

    split = read_split(given.data, "train")
    spec = spec_from_name(given.model, split.labels)
    network = build_gft(spec)
    if given.weights is not None:
        load_backbone(network, spec, given.weights)
    amp = supports_bf16("cpu")
    objective = Objective(network, DEFAULT, amp).train()
    optimizer = create_optimizer_v2(network, opt="adamw", lr=1e-5)

    def step(images: torch.Tensor, targets: torch.Tensor) -> None:
        loss = objective(images, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def batches() -> object:
        epoch = 0
        while True:
            yield from training_loader(
                split, spec.preprocessing, DEFAULT, DEFAULT.batch_size, epoch, given.workers
            )
            epoch += 1

    stream = iter(batches())  # type: ignore[call-overload]
    held = next(stream)
    step(*held)
    rates: dict[str, list[float]] = {"from files": [], "one batch": [], "fused attention": []}
    for _ in range(given.turns):
        for name, rate in rates.items():
            attention = nullcontext if name == "fused attention" else ProductAttention
            with mock.patch("gft_edge.training.objective.ProductAttention", attention):
                started = time.perf_counter()
                for _ in range(TURN_STEPS):
                    step(*(next(stream) if name == "from files" else held))
                seconds = time.perf_counter() - started
            rate.append(TURN_STEPS * DEFAULT.batch_size / seconds)
    print(f"{given.model}, batch {DEFAULT.batch_size}, {'bf16' if amp else 'fp32'}, "
          f"{torch.get_num_threads()} threads, {given.workers} workers")  # fmt: skip
    for name, rate in rates.items():
        print(f"{name:>15}: {statistics.median(rate):6.1f} images/s "
              f"({min(rate):.1f} to {max(rate):.1f})")  # fmt: skip
    for name, other in (("from files", "one batch"), ("one batch", "fused attention")):
        ratios = [a / b for a, b in zip(rates[name], rates[other], strict=True)]
        print(f"{name} / {other}: {statistics.median(ratios):.2f} "
              f"({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
