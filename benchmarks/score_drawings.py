"""What each score is worth on the demo's drawings: its micro GFT trained from scratch with each of them.

python benchmarks/score_drawings.py --out FOLDER

Nothing is downloaded: FOLDER gets the drawings and a run for each score and seed, and those already
there are used again. `none` is the network that keeps all patches. A sanity check of what photographs
say: the classes differ in parts that are drawn, and no weights come from elsewhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
from pathlib import Path
from typing import cast

from gft_edge.bundle.images import DataSource
from gft_edge.bundle.scores import SCORES
from gft_edge.bundle.specs import ModelSpec, Score
from gft_edge.datasets import read_split
from gft_edge.datasets.drawings import write_drawings
from gft_edge.studies.demo import DEFAULTS, RECIPE, micro_spec
from gft_edge.studies.evaluation import evaluate_run
from gft_edge.training.loop import supports_bf16, train
from gft_edge.training.run_folder import RunConfig

DENSE = "none"
DRAWINGS = {
    "train": DEFAULTS.train_per_class,
    "val": DEFAULTS.val_per_class,
    "test": DEFAULTS.test_per_class,
}


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--scores",
        nargs="+",
        choices=(DENSE, *SCORES),
        default=[DENSE, "gala", "class", "class-laplacian", "random"],
    )
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    data = given.out / "data"
    # The same files whoever writes them, so an interrupted drawing is simply drawn again.
    write_drawings(data, DRAWINGS, DEFAULTS.image_size_px, seed=0)
    whole = micro_spec(read_split(data, "train").labels)
    print(f"kept: {', '.join(str(stage.keep) for stage in whole.stages)} of {whole.patch_count}\n")
    print("| score | top-1 | each seed |\n|---|---|---|")
    for score in given.scores:
        spec = (
            dataclasses.replace(whole, stages=())
            if score == DENSE
            else dataclasses.replace(whole, score=cast(Score, score))
        )
        found = [trained_top1(given.out, spec, score, seed) for seed in range(given.seeds)]
        each = " / ".join(f"{100 * top1:.1f}" for top1 in found)
        print(f"| `{score}` | {100 * statistics.mean(found):.1f} % | {each} |", flush=True)


def trained_top1(out: Path, spec: ModelSpec, score: str, seed: int) -> float:
    """Of the unseen drawings in test/, after the demo's own training."""
    data = DataSource(out / "data")
    run = out / f"{score}_seed{seed}"
    if not run.exists():
        # Renamed when whole: an interrupted run must not be tabled as a finished one.
        partial = run.with_name(f"{run.name}.partial")
        if partial.exists():
            shutil.rmtree(partial)
        recipe = dataclasses.replace(RECIPE, seed=seed)
        config = RunConfig(str(data.folder), recipe, supports_bf16("cpu"), workers=0, device="cpu")
        train(partial, spec, config, None)
        partial.rename(run)
    return evaluate_run(run, data, "test").metrics.top1


if __name__ == "__main__":
    main()
