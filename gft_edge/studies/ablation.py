"""Trains the cells of an ablation, each an ordinary run, as far as they are not trained yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from gft_edge.bundle.images import SplitRecord
from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.locks import claimed_folder
from gft_edge.bundle.specs import GalaMode, ModelSpec, Progress, Say, Score
from gft_edge.bundle.store import sha256_of
from gft_edge.datasets import Split, read_split, split_digest, splits_of
from gft_edge.errors import CheckpointError, FailedError, UsageError
from gft_edge.model.checkpoint import WEIGHTS_FILE, load_backbone
from gft_edge.model.networks import build_network
from gft_edge.model.variants import spec_from_name, squashed
from gft_edge.model.weight_files import weight_files
from gft_edge.studies.ablation_plan import (
    DENSE,
    PLAN_FILE,
    SCHEMA_VERSION,
    Arm,
    Fixed,
    Plan,
    Setting,
    cell_name,
    check_same,
    first_change,
    is_taught,
    read_plan,
    recipes_of,
    write_plan,
)
from gft_edge.studies.evaluation import Case, Evaluation, evaluate_case, launched_together
from gft_edge.studies.history import read_history
from gft_edge.studies.same_training import (
    capped_averages,
    merged,
    own_recipe,
    refuse_same,
)
from gft_edge.training.loop import (
    CONFIG_FILE,
    HISTORY_FILE,
    STATE_FILE,
    RunConfig,
    quiet,
    read_run_config,
    resume,
    silent,
    train,
)
from gft_edge.training.recipes import check_recipe
from gft_edge.training.teacher import load_teacher


@dataclass(frozen=True)
class AblationRequest:
    """The grid, and what all of its cells share; `base` has the recipe that they start from.

    `stages` are texts as spec_from_name takes them, none for those of the model itself. `vary` has
    the values of each recipe field that varies. The seeds are those below `seeds`.
    """

    out: Path
    base: RunConfig
    model: str
    scores: tuple[str, ...]
    stages: tuple[str, ...]
    seeds: int
    vary: Mapping[str, Sequence[Setting]] = dataclasses.field(default_factory=dict)
    weights: Path | None = None
    image_size_px: int | None = None
    gala: GalaMode | None = None
    temperature: float = 1.0
    split: str = "test"


@dataclass(frozen=True)
class Cell:
    """One training: an arm with a seed, in its folder."""

    run: Path
    arm: Arm
    seed: int


def cells_of(out: Path, plan: Plan) -> list[Cell]:
    """In the order of training: all arms with one seed before the next, to compare early."""
    return [
        Cell(out / cell_name(arm, seed, plan.fixed.recipe), arm, seed)
        for seed in range(plan.seeds)
        for arm in plan.arms
    ]


def ablate(request: AblationRequest, progress: Progress = quiet, say: Say = silent) -> Plan:
    """Train and evaluate every cell of the grid that is not finished in `request.out`.

    Cells that the grid does not ask for are left alone. A cell that was interrupted is resumed from
    its last whole epoch. Of a finished one the optimiser's state (last.pt) is deleted, which nothing
    but resuming needs; one whose training or evaluation fails (FailedError) is said, and the others are
    trained. Raises UsageError, SpecError, DataError and CheckpointError for a grid, weights or a teacher
    that cannot be trained with, or a folder that holds something else, before any training, and
    FailedError where all cells fail.
    """
    if launched_together():
        raise UsageError(
            "an ablation trains its cells one after another in one process: start gft-edge ablate alone"
        )
    plan, specs, images = _planned(request, say)
    cells = cells_of(request.out, plan)
    with claimed_folder(request.out, PLAN_FILE, "ablation"):
        if (request.out / PLAN_FILE).exists():
            check_same(request.out, read_plan(request.out), plan)
        for cell in cells:
            if (cell.run / CONFIG_FILE).exists():
                check_run_of(cell, plan)
                _check_goes_on(cell)
        write_plan(request.out, plan)
        pending = [c for c in cells if not is_finished(c) or (c.run / STATE_FILE).exists()]
        if len(pending) < len(cells):
            say(f"{len(cells) - len(pending)} of {len(cells)} cells are finished already")
        if pending and request.weights is None:
            say("no --weights: every cell is trained from scratch")
        if request.base.teacher is not None and not all(is_taught(arm.recipe) for arm in specs):
            say(
                "where distillation and feature_distillation are 0, cells are trained without the teacher"
            )
        failed = 0
        for cell in pending:
            place = f"ablation  cell {cells.index(cell) + 1}/{len(cells)} {cell.run.name}"
            try:
                _finish(cell, specs[cell.arm], request, images, _placed(progress, place), say)
            except FailedError as error:
                failed += 1
                say(f"{cell.run.name} failed: {error}")
        if failed == len(cells):
            raise FailedError(
                f"{request.out}: all of its {failed} cells failed, for what is said above"
            )
    return plan


def evaluated_split(plan: Plan) -> Split:
    """The images that the cells of a plan are compared on, their classes those of its train split.

    Raises DataError, and UsageError for other images than the plan's.
    """
    split = read_split(plan.source, "train")
    if plan.split != "train":
        split = read_split(plan.source, plan.split, split.labels)
    if plan.splits[plan.split] != _record(split):
        raise UsageError(
            f"{plan.data}: its {plan.split} split is not what this ablation was begun on (names, labels "
            "or sizes differ): restore it, or say with --data where it lies now"
        )
    return split


def evaluate_cell(
    cell: Cell,
    images: Split,
    device: str = "auto",
    workers: int = 2,
    progress: Progress = quiet,
    say: Say = silent,
) -> Evaluation:
    """A finished cell on the split; what it has kept is taken over where weights and images fit."""
    spec, _ = read_run_config(cell.run)
    case = Case(cell.run, spec, images, sha256_of(cell.run / WEIGHTS_FILE), split_digest(images))
    return evaluate_case(case, False, progress, say, device, workers)


def is_finished(cell: Cell) -> bool:
    """Whether all epochs are trained. Raises UsageError for a history that is damaged."""
    if not (cell.run / CONFIG_FILE).exists() or not (cell.run / WEIGHTS_FILE).is_file():
        return False
    # An epoch's weights are written before its line: a stop between the two in the first one.
    if (cell.run / STATE_FILE).exists() and not _has_epochs(cell.run):
        return False
    return read_history(cell.run).epochs[-1] >= cell.arm.recipe.epochs


def _has_epochs(run: Path) -> bool:
    """Whether the history has a line below its heads."""
    try:
        with (run / HISTORY_FILE).open(encoding="utf-8", errors="replace") as file:
            return len(file.readlines()) > 1
    except FileNotFoundError:
        return False


def check_run_of(cell: Cell, plan: Plan) -> None:
    """Raise UsageError where a cell's folder holds a run of anything else than its name says."""
    spec, config = read_run_config(cell.run)
    fixed, recipe = plan.fixed, dataclasses.replace(cell.arm.recipe, seed=cell.seed)
    splits = config.splits or {}
    there = {
        "model": spec.name,
        "image_size_px": spec.preprocessing.image_size_px,
        "stages": to_json(spec.stages),
        "recipe": to_json(config.recipe),
        "amp": config.amp,
        "teacher_sha256": _teacher_digest(config),
        "splits": {name: to_json(splits.get(name)) for name in splits},
    }
    asked = {
        "model": fixed.model,
        "image_size_px": fixed.image_size_px,
        "stages": to_json(cell.arm.stages),
        "recipe": to_json(recipe),
        "amp": fixed.amp,
        "teacher_sha256": fixed.teacher_sha256 if is_taught(recipe) else None,
        "splits": {name: to_json(plan.splits.get(name)) for name in splits},
    }
    if cell.arm.score != DENSE:
        there |= {"score": spec.score, "gala": spec.gala, "temperature": spec.temperature}
        asked |= {"score": cell.arm.score, "gala": fixed.gala, "temperature": fixed.temperature}
    if (found := first_change(there, asked)) is not None:
        raise UsageError(
            f"{cell.run} is a run of something else, {found}: nothing was changed, move it away or "
            "choose another --out"
        )


def _check_goes_on(cell: Cell) -> None:
    """Raise CheckpointError for a cell that is neither finished nor can be resumed."""
    for needed in (STATE_FILE, HISTORY_FILE):
        if not (cell.run / needed).exists() and not is_finished(cell):
            raise CheckpointError(
                f"{cell.run} is not finished and has no {needed} to go on from: remove it, and the "
                "same command trains it again"
            )


def _planned(request: AblationRequest, say: Say) -> tuple[Plan, dict[Arm, ModelSpec], Split]:
    """The grid with the network of every arm, and the images that are evaluated.

    What of the grid is no training of its own is said. Raises SpecError, UsageError, DataError and
    CheckpointError.
    """
    source, base = request.base.source, request.base
    recipe = dataclasses.replace(base.recipe, seed=0)
    splits = [read_split(source, "train")]
    labels = splits[0].labels
    names = {name for name in ("val", request.split) if name in splits_of(source)}
    names |= {request.split}
    splits += [read_split(source, name, labels) for name in sorted(names - {"train"})]
    specs: dict[Arm, ModelSpec] = {}
    # Beside others an arm may learn nothing from the teacher: it is then trained without.
    recipes = recipes_of(recipe, request.vary)
    taught = any(map(is_taught, recipes))
    for spec in _specs(request, labels):
        score = spec.score if spec.stages else DENSE
        for varied in dict.fromkeys(own_recipe(score, one, recipe) for one in recipes):
            has_teacher = base.teacher is not None and (is_taught(varied) or not taught)
            check_recipe(varied, spec, has_teacher)
            arm = Arm(score, spec.stages, varied)
            if arm in specs:
                raise UsageError(
                    f"--stages {arm.stages_text} is given twice, in counts: once is enough"
                )
            specs[arm] = squashed(spec) if varied.augmentation == "paper" else spec
    refuse_same(specs, len(splits[0].paths))
    _check_starts(request, specs)
    remarks = [
        text
        for score in dict.fromkeys(arm.score for arm in specs)
        for text in merged(score, recipes, recipe)
    ]
    remarks += capped_averages((arm.recipe for arm in specs), len(splits[0].paths))
    for text in dict.fromkeys(remarks):
        say(text)
    selecting = next(
        (spec for arm, spec in specs.items() if arm.stages), next(iter(specs.values()))
    )
    plan = Plan(
        schema_version=SCHEMA_VERSION,
        version=metadata.version("gft-edge"),
        fixed=Fixed(
            model=request.model,
            image_size_px=selecting.preprocessing.image_size_px,
            gala=selecting.gala,
            temperature=request.temperature,
            weights_sha256=_weights_digest(request.weights),
            teacher_sha256=_teacher_digest(base),
            amp=base.amp,
            recipe=recipe,
        ),
        weights=None if request.weights is None else str(request.weights.resolve()),
        data=base.data,
        dataset=base.dataset,
        coco_category=base.coco_category,
        split=request.split,
        splits={split.name: _record(split) for split in splits},
        varied=tuple(request.vary),
        arms=tuple(specs),
        seeds=request.seeds,
    )
    return plan, specs, next(split for split in splits if split.name == request.split)


def _specs(request: AblationRequest, labels: tuple[str, ...]) -> Iterator[ModelSpec]:
    """The dense network once, then every score at all of the stages."""
    if DENSE in request.scores:
        yield spec_from_name(
            request.model,
            labels,
            image_size_px=request.image_size_px,
            stages="none",
            temperature=request.temperature,
        )
    selecting: list[Score] = [score for score in request.scores if score != DENSE]  # type: ignore[misc]
    for stages in request.stages or (None,):
        for score in selecting:
            if stages is not None and stages.strip().lower() == "none":
                raise UsageError("--stages none is the dense network: give --scores none for it")
            # Without the score first: what is wrong with the stages is said of them.
            plain = spec_from_name(
                request.model,
                labels,
                image_size_px=request.image_size_px,
                stages=stages,
                temperature=request.temperature,
            )
            if not plain.stages:
                raise UsageError(
                    f"--scores {score}: {request.model} selects no patches by itself, give --stages, or "
                    "--scores none"
                )
            yield spec_from_name(
                request.model,
                labels,
                image_size_px=request.image_size_px,
                stages=stages,
                score=score,
                gala=request.gala,
                temperature=request.temperature,
            )


def _check_starts(request: AblationRequest, specs: Mapping[Arm, ModelSpec]) -> None:
    """Load the weights, and the teacher for each kind of arm that it has to fit, as cells will.

    Raises CheckpointError and UsageError.
    """
    if request.weights is not None:
        spec = next(iter(specs.values()))
        load_backbone(build_network(spec), spec, request.weights)
    if request.base.teacher is None:
        return
    # All else that a teacher has to fit, the backbone and the classes, is the same for all arms.
    kinds = {
        (spec.preprocessing, bool(recipe.distillation), bool(recipe.feature_distillation)): (
            spec,
            recipe,
        )
        for recipe, spec in ((arm.recipe, spec) for arm, spec in specs.items())
        if is_taught(recipe)
    }
    for spec, recipe in kinds.values():
        load_teacher(request.base.teacher, spec, build_network(spec), recipe)


def _record(split: Split) -> SplitRecord:
    return SplitRecord(len(split.paths), len(split.labels), split_digest(split))


def _teacher_digest(config: RunConfig) -> str | None:
    return None if config.teacher is None else config.teacher.sha256


def _weights_digest(weights: Path | None) -> str | None:
    """sha256 of the file, or of those of a folder's shards together. Raises CheckpointError."""
    if weights is None:
        return None
    digests = [sha256_of(path) for path in weight_files(weights)]
    return digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()


def _finish(
    cell: Cell,
    spec: ModelSpec,
    request: AblationRequest,
    images: Split,
    progress: Progress,
    say: Say,
) -> None:
    recipe = dataclasses.replace(cell.arm.recipe, seed=cell.seed)
    teacher = request.base.teacher if is_taught(recipe) else None
    config = dataclasses.replace(request.base, recipe=recipe, teacher=teacher)
    if not (cell.run / CONFIG_FILE).exists():
        train(cell.run, spec, config, request.weights, progress, say)
    elif not is_finished(cell):
        _, begun = read_run_config(cell.run)
        moved: dict[str, Any] = {
            name: getattr(config, name) for name in ("data", "device", "workers")
        }
        if config.teacher is not None and config.teacher != begun.teacher:
            moved["teacher"] = config.teacher.run
        resume(cell.run, progress, say, **moved)
    evaluate_cell(cell, images, config.device, config.workers, progress, say)
    (cell.run / STATE_FILE).unlink(missing_ok=True)


def _placed(progress: Progress, place: str) -> Progress:
    """Says in front of every step which cell it belongs to; a terminal has one bar for all of them."""
    return lambda text, done, total: progress(f"{place}: {text}", done, total)


def once(say: Say) -> Say:
    """A Say that says nothing twice: cells have much to say in common."""
    said: set[str] = set()

    def new(text: str) -> None:
        if text not in said:
            said.add(text)
            say(text)

    return new
