"""How the arms of an ablation differ, paired over the same seeds and the same images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.specs import Progress, Say
from gft_edge.errors import FailedError, UsageError
from gft_edge.studies.ablation import (
    cells_of,
    check_run_of,
    evaluate_cell,
    evaluated_split,
    is_finished,
)
from gft_edge.studies.ablation_plan import DENSE, Arm, Plan, Setting, cell_name
from gft_edge.studies.crossed import Estimate, crossed_estimate
from gft_edge.studies.same_training import own_recipe
from gft_edge.training.loop import quiet, silent
from gft_edge.training.recipes import Recipe

ONE_SEED = (
    "one seed gives no interval: it cannot be told from it how much two trainings of the same kind "
    "differ, and a test over the images alone would overstate what is known"
)


@dataclass(frozen=True)
class Difference:
    """Of top-1 to another arm, over `seeds` that both have. `to` is the table's word for that arm.

    `estimate` is None where there are no intervals.
    """

    to: str
    run: str
    seeds: tuple[int, ...]
    mean: float
    estimate: Estimate | None


@dataclass(frozen=True)
class ArmResult:
    """The top-1 of an arm with each of its finished seeds; fractions of 1.

    `spread` is the standard deviation over the seeds, None of fewer than two. `estimate` is of the mean
    over seeds and images together: two arms see the same ones, so their `differences` are known better.
    """

    score: str
    stages: str
    settings: Mapping[str, Setting]
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    top1: tuple[float, ...]
    mean: float
    spread: float | None
    estimate: Estimate | None
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Ablation:
    """All arms with at least one finished cell, in the order of the plan.

    `columns` are the words of the differences that the table shows. `intervals` says whether they were
    asked for. `finished` of `cells` are trained and evaluated.
    """

    out: str
    model: str
    data: str
    split: str
    images: int
    classes: int
    weights: str | None
    seeds: int
    cells: int
    finished: int
    intervals: bool
    varied: tuple[str, ...]
    columns: tuple[str, ...]
    arms: tuple[ArmResult, ...]


def shows_intervals(seeds: int, asked: bool | None) -> bool:
    """Unless asked for, with two seeds or more. Raises UsageError for --intervals with one."""
    if asked and seeds < 2:
        raise UsageError(f"--intervals: {ONE_SEED}; give --seeds 3, or leave --intervals out")
    return seeds > 1 if asked is None else asked


def check_against(against: str | None, scores: tuple[str, ...]) -> None:
    """Raise UsageError for a reference that is not in the grid."""
    if against is not None and against not in scores:
        raise UsageError(
            f"--against {against} is not among the scores of this ablation: choose from "
            f"{', '.join(scores)}"
        )


def compare(
    out: Path,
    plan: Plan,
    against: str | None = None,
    intervals: bool | None = None,
    device: str = "auto",
    workers: int = 2,
    progress: Progress = quiet,
    say: Say = silent,
) -> Ablation:
    """The cells of `out` that are finished, compared on the plan's split; nothing is trained.

    The evaluation of each is taken over from its folder where it was kept; one that fails is said and
    left out. `against` is the score that
    others are compared with: random where there is none and it is in the grid, else the first. Raises
    UsageError for cells of anything else than the plan says, and where none is finished.
    """
    shown = shows_intervals(plan.seeds, intervals)
    check_against(against, tuple(dict.fromkeys(arm.score for arm in plan.arms)))
    images = evaluated_split(plan)
    targets = np.asarray(images.targets)
    cells = cells_of(out, plan)
    correct: dict[Arm, dict[int, npt.NDArray[np.int8]]] = {arm: {} for arm in plan.arms}
    for cell in cells:
        if not is_finished(cell):
            continue
        check_run_of(cell, plan)
        try:
            logits = evaluate_cell(cell, images, device, workers, progress).logits
        except FailedError as error:
            say(f"{cell.run.name} failed: {error}")
            continue
        correct[cell.arm][cell.seed] = (logits.argmax(axis=1) == targets).astype(np.int8)
    finished = sum(map(len, correct.values()))
    if not finished:
        raise UsageError(f"{out} has no finished cell yet: the command that began it goes on")
    columns = counterparts(plan, against)
    names = {cell.arm: cell.run.name.rpartition("_seed")[0] for cell in cells}
    return Ablation(
        out=str(out),
        model=plan.fixed.model,
        data=plan.data,
        split=plan.split,
        images=len(targets),
        classes=len(images.labels),
        weights=plan.weights,
        seeds=plan.seeds,
        cells=len(cells),
        finished=finished,
        intervals=shown,
        varied=plan.varied,
        columns=tuple(columns),
        arms=tuple(
            ArmResult(
                score=arm.score,
                stages=arm.stages_text,
                settings=arm.settings(plan.varied),
                runs=tuple(cell_name(arm, seed, plan.fixed.recipe) for seed in by_seed),
                seeds=tuple(by_seed),
                top1=(rates := tuple(float(row.mean()) for row in by_seed.values())),
                mean=float(np.mean(rates)),
                spread=float(np.std(rates, ddof=1)) if len(rates) > 1 else None,
                estimate=_rate(_estimate(np.stack([*by_seed.values()]), shown)),
                differences=tuple(
                    _difference(column, names[other], by_seed, correct[other], shown)
                    for column, others in columns.items()
                    if (other := others.get(arm)) is not None and by_seed.keys() & correct[other]
                ),
            )
            for arm, by_seed in correct.items()
            if by_seed
        ),
    )


def counterparts(plan: Plan, against: str | None) -> dict[str, dict[Arm, Arm]]:
    """For each column of differences, the arm that each arm is compared with, all else equal.

    The score that others are compared with; the first value of every setting that varies; the dense
    network. Where nothing but the stages differs, the first of them.
    """
    arms = set(plan.arms)
    scores = tuple(dict.fromkeys(arm.score for arm in plan.arms if arm.score != DENSE))
    recipes = tuple(
        dict.fromkeys(arm.recipe for arm in plan.arms if arm.score != DENSE or not scores)
    )
    columns: dict[str, dict[Arm, Arm]] = {}

    def own(score: str, recipe: Recipe) -> Recipe:
        return own_recipe(score, recipe, plan.fixed.recipe)

    if against != DENSE and (len(scores) > 1 or against is not None):
        chosen = against or ("random" if "random" in scores else scores[0])
        columns[chosen] = {arm: Arm(chosen, arm.stages, own(chosen, arm.recipe)) for arm in arms}
    if len(recipes) > 1:
        first = ", ".join(f"{name}={getattr(recipes[0], name)}" for name in plan.varied)
        columns[first] = {
            arm: Arm(arm.score, arm.stages, own(arm.score, recipes[0])) for arm in arms
        }
    if any(arm.score == DENSE for arm in arms):
        columns["dense"] = {arm: Arm(DENSE, (), own(DENSE, arm.recipe)) for arm in arms}
    if not columns:
        start = plan.arms[0]
        columns[start.stages_text] = {arm: Arm(arm.score, start.stages, arm.recipe) for arm in arms}
    found = {
        column: {arm: other for arm, other in pairs.items() if other in arms and other != arm}
        for column, pairs in columns.items()
    }
    return {column: pairs for column, pairs in found.items() if pairs}


def _difference(
    column: str,
    run: str,
    ours: Mapping[int, npt.NDArray[np.int8]],
    theirs: Mapping[int, npt.NDArray[np.int8]],
    shown: bool,
) -> Difference:
    seeds = tuple(seed for seed in ours if seed in theirs)
    values = np.stack([ours[seed] - theirs[seed] for seed in seeds])
    return Difference(column, run, seeds, float(values.mean()), _estimate(values, shown))


def _rate(found: Estimate | None) -> Estimate | None:
    """Of a rate: the part of the interval that lies in 0..1."""
    if found is None:
        return None
    return dataclasses.replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def _estimate(values: npt.NDArray[np.int8], shown: bool) -> Estimate | None:
    """None where it is not asked for, and of one seed, as in an ablation that is not finished yet."""
    return crossed_estimate(values) if shown and len(values) > 1 else None
