"""Which score, stages or training setting is best: a grid of runs, compared over the same seeds and images.

python benchmarks/ablation.py --data DATA --model gft_tiny_edge --weights WEIGHTS --out FOLDER \
    --scores none,class-laplacian,random [--stages 3:63,6:31,9:15] [--vary layer_decay=0.65,0.75]

DATA is a folder with train/ val/ test/ of class folders, `none` the dense network. --vary takes any field
of the training recipe, and with one value sets it for all runs; with --teacher RUN, runs whose distillation
and feature_distillation are both 0 are trained without it. --stages and --vary may be repeated. FOLDER gets
a run for each cell and seed, which are used again, and the table as ablation.md. The interval of a
difference counts seeds and images both as drawn at random (crossed.py): of one seed there is none.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shutil
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from crossed import crossed_estimate
from gft_edge.bundle.images import DataSource
from gft_edge.bundle.json_form import from_json
from gft_edge.bundle.scores import SCORES
from gft_edge.bundle.specs import ModelSpec, Score
from gft_edge.datasets import read_split
from gft_edge.errors import GftEdgeError, UsageError
from gft_edge.model.named_networks import spec_from_name, squashed
from gft_edge.studies.evaluation import evaluate_run
from gft_edge.training.loop import supports_bf16, train
from gft_edge.training.recipes import DEFAULT, Recipe
from gft_edge.training.run_folder import STATE_FILE, RunConfig, read_run_config
from gft_edge.training.teacher import Teacher, taught_recipe, teacher_of

DENSE = "none"
TABLE_FILE = "ablation.md"


# By identity: a spec holds a mapping, which has no hash.
@dataclass(frozen=True, eq=False)
class Arm:
    """What is compared: a network and a recipe, seeds aside. `settings` are the values that vary."""

    score: str
    spec: ModelSpec
    recipe: Recipe
    settings: Mapping[str, Any]

    @property
    def stages(self) -> str:
        """The stages as --stages takes them, in counts; `none` of the dense network."""
        return ",".join(f"{stage.position}:{stage.keep}" for stage in self.spec.stages) or DENSE

    @property
    def name(self) -> str:
        """What the folders of its runs begin with: class_3-147_6-98_9-49_ema=0.99."""
        stages = [f"{stage.position}-{stage.keep}" for stage in self.spec.stages]
        settings = [f"{name}={value}" for name, value in self.settings.items()]
        return "_".join([self.score, *stages, *settings])


def main() -> None:
    """Train what is missing, and write and print the table."""
    given = arguments()
    try:
        teacher = None if given.teacher is None else teacher_of(given.teacher)
        arms = arms_of(given, teacher)
        correct: dict[Arm, list[npt.NDArray[np.int8]]] = {arm: [] for arm in arms}
        # All arms with one seed before the next: an unfinished grid can be compared too.
        for seed, arm in itertools.product(range(given.seeds), arms):
            correct[arm].append(correct_of(given, arm, seed, teacher))
            top1 = correct[arm][-1].mean()
            print(f"{arm.name} seed {seed}: {100 * top1:.2f} %", file=sys.stderr, flush=True)
        found = table({arm: np.stack(rows) for arm, rows in correct.items()}, given.split)
    except GftEdgeError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    (given.out / TABLE_FILE).write_text(found, encoding="utf-8")
    print(found, end="")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="gft_tiny_edge")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--teacher", type=Path, metavar="RUN")
    parser.add_argument("--scores", required=True, help="with commas between; none is dense")
    parser.add_argument("--stages", action="append", help="as of gft-edge train")
    parser.add_argument("--vary", action="append", default=[], metavar="NAME=V1,V2,...")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", default="test")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


def arms_of(given: argparse.Namespace, teacher: Teacher | None) -> list[Arm]:
    """Every score at all stages with every combination of settings; the dense network without stages."""
    labels = read_split(given.data, "train").labels
    size = given.image_size
    dense = spec_from_name(given.model, labels, image_size_px=size, stages="none")
    base = dataclasses.replace(DEFAULT, feature_distillation=0.0)
    if teacher is not None:
        base = taught_recipe(DEFAULT, teacher, dense, lambda text: print(text, file=sys.stderr))
    specs: dict[str, list[ModelSpec]] = {}
    for score in given.scores.split(","):
        if score not in (DENSE, *SCORES):
            raise UsageError(f"--scores {score}: choose from {', '.join((DENSE, *SCORES))}")
        ranked = cast(Score, score)
        specs[score] = [dense] if score == DENSE else [
            spec_from_name(given.model, labels, image_size_px=size, stages=stages, score=ranked)
            for stages in given.stages or [None]
        ]  # fmt: skip
    varied = dict(values_of(text) for text in given.vary)
    arms = []
    for values in itertools.product(*varied.values()):
        chosen = dict(zip(varied, values, strict=True))
        recipe = dataclasses.replace(base, **chosen)
        settings = {name: value for name, value in chosen.items() if len(varied[name]) > 1}
        for score, spec in ((score, spec) for score, of in specs.items() for spec in of):
            prepared = squashed(spec) if recipe.augmentation == "paper" else spec
            arms.append(Arm(score, prepared, recipe, settings))
    return arms


def values_of(text: str) -> tuple[str, list[Any]]:
    """The field and the values of a --vary, each in the field's type. Raises UsageError and SpecError."""
    name, _, listed = text.partition("=")
    hints = typing.get_type_hints(Recipe)
    if name not in hints or name == "seed":
        raise UsageError(f"--vary {text}: give NAME=VALUE,... with one of {', '.join(hints)}")
    values = []
    for word in listed.split(","):
        try:
            value = json.loads(word)
        except ValueError:
            value = word
        values.append(from_json(hints[name], value, f"--vary {name}"))
    return name, values


def correct_of(
    given: argparse.Namespace, arm: Arm, seed: int, teacher: Teacher | None
) -> npt.NDArray[np.int8]:
    """1 for each image of the split that the arm's run with this seed classifies right, else 0."""
    run = given.out / f"{arm.name}_seed{seed}"
    recipe = dataclasses.replace(arm.recipe, seed=seed)
    taught = recipe.distillation or recipe.feature_distillation
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = RunConfig(
        str(given.data.resolve()), recipe, supports_bf16(device), given.workers, device,
        teacher=teacher if taught else None,
    )  # fmt: skip
    if not run.exists():
        # Renamed when whole: an interrupted run must not be compared as a finished one.
        partial = run.with_name(f"{run.name}.partial")
        if partial.exists():
            shutil.rmtree(partial)
        train(partial, arm.spec, config, given.weights)
        # The optimiser's state, which nothing but resuming needs.
        (partial / STATE_FILE).unlink()
        partial.rename(run)
    spec, made_with = read_run_config(run)
    asked = (arm.spec, recipe, config.data, config.teacher)
    if (spec, made_with.recipe, made_with.data, made_with.teacher) != asked:
        raise UsageError(
            f"{run} is of another network, recipe, teacher or data: choose another --out"
        )
    found = evaluate_run(run, DataSource(given.data), given.split, workers=given.workers)
    return np.asarray(found.logits.argmax(axis=1) == found.targets, np.int8)


def table(correct: Mapping[Arm, npt.NDArray[np.int8]], split: str) -> str:
    """The Markdown table, correct (seeds, images) of each arm."""
    arms = list(correct)
    varied = list(arms[0].settings)
    columns = references(arms)
    heads = ["score", "stages", *varied, "top-1 %", "spread", "each seed"]
    lines = [row([*heads, *(f"vs {column}" for column in columns)])]
    lines.append(row(["---"] * (len(heads) + len(columns))))
    for arm, values in correct.items():
        rates = 100 * values.mean(axis=1)
        cells = [f"`{arm.score}`", arm.stages, *(str(arm.settings[name]) for name in varied)]
        cells += [f"{rates.mean():.2f}", f"{rates.std(ddof=1):.2f}" if len(rates) > 1 else "-"]
        cells.append(" / ".join(f"{rate:.2f}" for rate in rates))
        for pairs in columns.values():
            other = pairs.get(arm)
            cells.append("-" if other is None else difference(values - correct[other]))
        lines.append(row(cells))
    seeds, images = correct[arms[0]].shape
    lines += [
        "",
        f"{images} images of {split}, {seeds} seeds; in brackets the 95 % interval of the",
    ]
    lines += ["difference in points, then how many standard errors it is from 0."]
    return "\n".join(lines) + "\n"


def references(arms: Sequence[Arm]) -> dict[str, dict[Arm, Arm]]:
    """For each column of differences, the arm that each arm is compared with, all else equal.

    These are `random`, or without it the first score; the first of the settings; and the dense network.
    Where nothing but the stages differs, it is the first of them.
    """
    scores = list(dict.fromkeys(arm.score for arm in arms if arm.score != DENSE))
    changes: dict[str, dict[str, Any]] = {}
    if len(scores) > 1:
        chosen = "random" if "random" in scores else scores[0]
        changes[chosen] = {"score": chosen}
    if first := arms[0].settings:
        changes[", ".join(f"{name}={value}" for name, value in first.items())] = {"settings": first}
    if scores and any(arm.score == DENSE for arm in arms):
        changes["dense"] = {"score": DENSE, "stages": DENSE}
    if not changes:
        changes[arms[0].stages] = {"stages": arms[0].stages}
    found: dict[str, dict[Arm, Arm]] = {}
    for column, change in changes.items():
        for arm in arms:
            parts = {"score": arm.score, "stages": arm.stages, "settings": arm.settings, **change}
            for other in arms:
                if other is not arm and all(getattr(other, n) == v for n, v in parts.items()):
                    found.setdefault(column, {})[arm] = other
    return found


def difference(values: npt.NDArray[np.int8]) -> str:
    """The mean of values (seeds, images) in points of percent, with what is known of its error."""
    text = f"{100 * values.mean():+.2f}"
    if len(values) < 2:
        return text
    known = crossed_estimate(values)
    if known.standard_errors is None or known.p_value is None:
        return f"{text}, nothing varied"
    p_text = "p < 0.001" if known.p_value < 0.001 else f"p = {known.p_value:.3f}"
    limits = f"[{100 * known.low:+.2f}, {100 * known.high:+.2f}]"
    return f"{text} {limits}, {known.standard_errors:+.1f} SE, {p_text}"


def row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
