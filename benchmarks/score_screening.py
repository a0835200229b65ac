"""How well each score chooses without any training for it: the kept patches of dense networks.

python benchmarks/score_screening.py RUN RUN RUN --data DATA

Each RUN is a dense network of another seed (gft-edge train --stages none), DATA their images. Each score
ranks the patches of the same weights at late, middle and early blocks, at the paper's ratios; what a row
loses against the dense network is what the score threw away. The first row is the mean of several random
orders of every network and the standard deviation among all of them; `errors` is the difference to that
mean over its standard error, of networks and images (crossed.py), and p how often as many come about by
chance. A trained network may order the scores otherwise: benchmarks/ablation.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from crossed import crossed_estimate
from gft_edge.bundle.scores import SCORES
from gft_edge.bundle.specs import ModelSpec, Score
from gft_edge.datasets import Split, read_split
from gft_edge.model.checkpoint import WEIGHTS_FILE, load_backbone, load_run
from gft_edge.model.gft import GFT
from gft_edge.model.named_networks import build_network, spec_from_name
from gft_edge.model.network import Network
from gft_edge.runtime.classifier import load_pixels
from gft_edge.runtime.preprocess import batch_from_pixels
from gft_edge.training.loop import supports_bf16

POSITIONS = {"late": (8, 9, 10), "middle": (3, 6, 9), "early": (2, 4, 7)}
RATIOS = ("75%", "50%", "25%")
COMPARED = [score for score in SCORES if score != "random"]
BATCH = 32
RANDOM_ORDERS = 5


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--scores", nargs="+", choices=COMPARED, default=COMPARED)
    given = parser.parse_args()
    if len(given.runs) < 2:
        parser.error("give two dense runs or more, of other seeds: one has no error")
    opened = [load_run(run) for run in given.runs]
    spec = opened[0][0]
    for run, (its, _) in zip(given.runs, opened, strict=True):
        if its.stages or its != spec:
            parser.error(f"{run} is no dense run, or another network than {given.runs[0]}")
    split = read_split(given.data, given.split, spec.labels)
    pixels = np.stack([load_pixels(path, spec.preprocessing) for path in split.paths])
    references = [correct(network, spec, split, pixels).mean() for _, network in opened]
    each = " / ".join(f"{100 * reference:.2f}" for reference in references)
    print(f"dense: {each} % of {len(pixels)} images\n")
    print("| score | " + " | ".join(f"{name} | errors (p)" for name in POSITIONS) + " |")
    print("|---|" + "---|---|" * len(POSITIONS))
    networks = {name: [selecting(run, spec, name) for run in given.runs] for name in POSITIONS}
    random = {name: by_random_orders(of, spec, split, pixels) for name, of in networks.items()}
    cells = [
        f"{100 * of.mean():.2f} | {100 * of.mean(axis=2).std(ddof=1):.2f}" for of in random.values()
    ]
    print("| `random`, and among orders | " + " | ".join(cells) + " |", flush=True)
    for score in given.scores:
        cells = []
        for name, of in networks.items():
            found = []
            for network in of:
                network.rank_by(cast(Score, score))
                found.append(correct(network, spec, split, pixels))
            by_chance = random[name].mean(axis=1)
            ahead = crossed_estimate(np.stack(found) - by_chance)
            errors = (
                "the same"
                if ahead.standard_errors is None
                else f"{ahead.standard_errors:+.1f} ({ahead.p_value:.3f})"
            )
            cells.append(f"{100 * np.mean(found):.2f} | {errors}")
        print(f"| `{score}` | " + " | ".join(cells) + " |", flush=True)


def by_random_orders(
    networks: list[GFT], spec: ModelSpec, split: Split, pixels: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float64]:
    """As `correct`, (networks, orders, images): every network has orders of its own."""
    rows = []
    for number, network in enumerate(networks):
        for order in range(RANDOM_ORDERS):
            torch.manual_seed(number * RANDOM_ORDERS + order)
            network.rank_by("random")
            rows.append(correct(network, spec, split, pixels))
    return np.stack(rows).reshape(len(networks), RANDOM_ORDERS, len(pixels))


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
    network: Network, spec: ModelSpec, split: Split, pixels: npt.NDArray[np.uint8]
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
