"""What an ablation trains: its arms and cells, and what its folder remembers of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gft_edge.bundle.images import CocoCategory, DataSource, SplitRecord
from gft_edge.bundle.json_form import from_json, to_json
from gft_edge.bundle.specs import GalaMode, Score, Stage
from gft_edge.bundle.store import write_whole
from gft_edge.errors import SpecError, UsageError
from gft_edge.training.recipes import Recipe

PLAN_FILE = "ablation.json"
SCHEMA_VERSION = 1
# The score of a network that selects nothing.
DENSE = "none"

Setting = float | int | bool | str | None


@dataclass(frozen=True)
class Arm:
    """What is compared, seeds aside: a score, or `none` for the dense network, stages and a recipe.

    The recipe's seed means nothing here: a cell has its own.
    """

    score: str
    stages: tuple[Stage, ...]
    recipe: Recipe

    @property
    def stages_text(self) -> str:
        """As --stages takes it, in counts; `none` without."""
        return ",".join(f"{s.position}:{s.keep}" for s in self.stages) or "none"

    def settings(self, varied: Sequence[str]) -> dict[str, Setting]:
        """The values of these recipe fields."""
        return {name: getattr(self.recipe, name) for name in varied}


@dataclass(frozen=True)
class Fixed:
    """What all cells of an ablation share; one of another kind does not go into the same folder."""

    model: str
    image_size_px: int
    gala: GalaMode
    temperature: float
    weights_sha256: str | None
    teacher_sha256: str | None
    amp: bool
    recipe: Recipe


@dataclass(frozen=True)
class Plan:
    """ablation.json: what the last gft-edge ablate of a folder asked for.

    `source` is where the images lay, `splits` what they were by name, `split` those that are
    evaluated. `arms` stand in the order of the table, all of them trained with the seeds below `seeds`;
    `varied` are the fields of the recipe that differ between them.
    """

    schema_version: int
    version: str
    fixed: Fixed
    weights: str | None
    data: str
    dataset: str
    coco_category: CocoCategory | None
    split: str
    splits: Mapping[str, SplitRecord]
    varied: tuple[str, ...]
    arms: tuple[Arm, ...]
    seeds: int

    @property
    def source(self) -> DataSource:
        """The folder and the data set in it."""
        return DataSource(Path(self.data), self.dataset, self.coco_category)


def scores_of(text: str) -> tuple[str, ...]:
    """The scores of --scores. Raises UsageError for one that there is not, or that is given twice."""
    known = (DENSE, *typing.get_args(Score))
    scores = tuple(word.strip() for word in text.split(",") if word.strip())
    if not scores:
        raise UsageError(f"--scores is empty: give some of {', '.join(known)}")
    for score in scores:
        if score not in known:
            raise UsageError(f"--scores {score}: no such score, choose from {', '.join(known)}")
        if scores.count(score) > 1:
            raise UsageError(f"--scores names {score} twice: once is enough")
    return scores


def recipes_of(base: Recipe, vary: Mapping[str, Sequence[Any]]) -> list[Recipe]:
    """The recipe with every combination of the values, the last field changing first."""
    return [
        dataclasses.replace(base, **dict(zip(vary, values, strict=True)))
        for values in itertools.product(*vary.values())
    ]


def is_taught(recipe: Recipe) -> bool:
    """Whether an arm of an ablation that has a teacher learns from it; without, it is trained without."""
    return bool(recipe.distillation or recipe.feature_distillation)


def recipe_value(name: str, value: Any) -> Any:
    """`value` in the type of the recipe's field `name`.

    Raises UsageError for a field that the recipe has not, SpecError for a value of another type.
    """
    hints = typing.get_type_hints(Recipe)
    known = [name for name in hints if name != "seed"]
    if name == "seed":
        raise UsageError("--vary seed: the seeds are those of --seeds")
    if name not in known:
        raise UsageError(f"--vary {name}: the recipe has {', '.join(known)}")
    if value == "none" and type(None) in typing.get_args(hints[name]):
        return None
    found = from_json(hints[name], value, f"--vary {name}")
    if isinstance(found, float) and not math.isfinite(found):
        raise UsageError(f"--vary {name} is {found}: give a finite number")
    return found


def cell_name(arm: Arm, seed: int, base: Recipe) -> str:
    """Of a cell's folder: class_3-147_6-98_9-49_ema=0.99_seed0.

    A setting at the base recipe's value is left out: the cell is the same whether or not it varies.
    """
    stages = [f"{stage.position}-{stage.keep}" for stage in arm.stages]
    changed = [
        f"{field.name}={value}"
        for field in dataclasses.fields(Recipe)
        if field.name != "seed"
        and (value := getattr(arm.recipe, field.name)) != getattr(base, field.name)
    ]
    return "_".join([arm.score, *stages, *changed, f"seed{seed}"])


def read_plan(out: Path) -> Plan:
    """The plan of a folder that an ablation was begun in. Raises UsageError."""
    path = out / PLAN_FILE
    if not path.is_file():
        raise UsageError(f"{out} is no ablation, it has no {PLAN_FILE}: begin one with --scores")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise SpecError(f"schema version {version}, this gft-edge reads {SCHEMA_VERSION}")
        return from_json(Plan, data, PLAN_FILE)
    except (OSError, ValueError, RecursionError, SpecError) as error:
        raise UsageError(f"{path} cannot be used ({error}): restore it") from error


def write_plan(out: Path, plan: Plan) -> None:
    """Replace ablation.json in one step. Raises BundleError when it cannot be written."""
    write_whole(out / PLAN_FILE, (json.dumps(to_json(plan), indent=2) + "\n").encode())


def check_same(out: Path, there: Plan, asked: Plan) -> None:
    """Raise UsageError where the cells of `out` are of other settings or images than is asked."""
    instead = "nothing was changed, choose another --out"
    for name, was in there.splits.items():
        now = asked.splits.get(name, was)
        if was != now:
            raise UsageError(
                f"{out} was begun on other images, its {name} split had {was.images} and the one "
                f"here has {now.images} (names, labels or contents differ): {instead}"
            )
    was, now = to_json(there.fixed), to_json(asked.fixed)
    if not all(any(arm.stages for arm in plan.arms) for plan in (there, asked)):
        # Dense networks have neither; of the others check_run_of compares each run.
        for name in ("gala", "temperature"):
            was[name] = now[name]
    if (found := first_change(was, now)) is not None:
        raise UsageError(f"{out} was begun with other settings, {found}: {instead}")


def first_change(was: Any, now: Any, name: str = "") -> str | None:
    """Where two JSON objects differ first, in words; None where they do not."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*was, *now)):
            found = first_change(was.get(key), now.get(key), f"{name}.{key}" if name else key)
            if found is not None:
                return found
        return None
    return None if was == now else f"{name} {json.dumps(was)} there and {json.dumps(now)} here"
