"""How well each score chooses without any training for it: the kept patches of a dense network.

python benchmarks/score_screening.py RUN --data DATA

RUN is a dense network (gft-edge train --stages none), DATA its images. Each score ranks the patches
of the same weights at late, middle and early blocks, at the paper's ratios; what a row loses against
the dense network is what the score threw away. The first row is the mean of several random orders and
the standard deviation among them; `errors` is the difference to that mean over its standard error, of the
images and of the orders. A trained network may order the scores otherwise: gft-edge ablate.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from gft_edge.classifier import load_pixels
from gft_edge.datasets import Split, read_split
from gft_edge.model.checkpoint import WEIGHTS_FILE, load_backbone, load_run
from gft_edge.model.gft import GFT
from gft_edge.model.networks import build_network
from gft_edge.model.variants import spec_from_name
from gft_edge.preprocess import batch_from_pixels
from gft_edge.scores import SCORES
from gft_edge.specs import ModelSpec
from gft_edge.training.loop import supports_bf16

POSITIONS = {"late": (8, 9, 10), "middle": (3, 6, 9), "early": (2, 4, 7)}
RATIOS = ("75%", "50%", "25%")
BATCH = 32
RANDOM_ORDERS = 5


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    given = parser.parse_args()
    spec, dense = load_run(given.run)
    assert isinstance(dense, GFT)
    assert not spec.stages, "give a dense run"
    split = read_split(given.data, given.split, spec.labels)
    pixels = np.stack([load_pixels(path, spec.preprocessing) for path in split.paths])
    reference = correct(dense, spec, split, pixels)
    print(f"dense: {100 * reference.mean():.2f} % of {len(pixels)} images\n")
    print("| score | " + " | ".join(f"{name} | errors" for name in POSITIONS) + " |")
    print("|---|" + "---|---|" * len(POSITIONS))
    networks = {name: selecting(given.run, spec, name) for name in POSITIONS}
    random = {name: by_random_orders(net, spec, split, pixels) for name, net in networks.items()}
    cells = [
        f"{100 * of.mean():.2f} | {100 * of.mean(axis=1).std(ddof=1):.2f}" for of in random.values()
    ]
    print("| `random`, and among orders | " + " | ".join(cells) + " |", flush=True)
    for score in SCORES:
        if score == "random":
            continue
        cells = []
        for name, network in networks.items():
            network.rank_by(score)
            found = correct(network, spec, split, pixels)
            difference = found - random[name].mean(axis=0)
            orders = random[name].mean(axis=1)
            error = np.sqrt(
                difference.var(ddof=1) / len(difference) + orders.var(ddof=1) / len(orders)
            )
            cells.append(f"{100 * found.mean():.2f} | {difference.mean() / error:+.1f}")
        print(f"| `{score}` | " + " | ".join(cells) + " |", flush=True)


def by_random_orders(
    network: GFT, spec: ModelSpec, split: Split, pixels: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    """As `correct`, a row for each of several orders."""
    rows = []
    for order in range(RANDOM_ORDERS):
        torch.manual_seed(order)
        network.rank_by("random")
        rows.append(correct(network, spec, split, pixels))
    return np.stack(rows)


def selecting(run: Path, spec: ModelSpec, positions: str) -> GFT:
    """The run's weights with stages inside the blocks at `positions`."""
    stages = ",".join(
        f"{block}:{ratio}" for block, ratio in zip(POSITIONS[positions], RATIOS, strict=True)
    )
    chosen = spec_from_name(
        spec.backbone,
        spec.labels,
        image_size_px=spec.preprocessing.image_size_px,
        stages=stages,
        gala="block",
    )
    network = build_network(chosen)
    load_backbone(network, chosen, run / WEIGHTS_FILE)
    assert isinstance(network, GFT)
    return network


def correct(
    network: GFT, spec: ModelSpec, split: Split, pixels: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    """1 for each image that is classified right, else 0."""
    network.eval()
    found: list[int] = []
    # Autocast where hardware has bf16: the scores are float32 in either case.
    bf16 = torch.autocast("cpu", dtype=torch.bfloat16, enabled=supports_bf16("cpu"))
    with torch.inference_mode(), bf16:
        for start in range(0, len(pixels), BATCH):
            images = batch_from_pixels(pixels[start : start + BATCH], spec.preprocessing, "float32")
            found += network(torch.from_numpy(images)).argmax(dim=1).tolist()
    return np.asarray(np.array(found) == np.array(split.targets), float)


if __name__ == "__main__":
    main()
