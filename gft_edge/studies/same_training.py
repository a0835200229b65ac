"""Which recipes come to the same training, so that an ablation does not pay for it twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import cast

from gft_edge.bundle.scores import SCORES, ScoreRule
from gft_edge.bundle.specs import Score
from gft_edge.errors import UsageError
from gft_edge.studies.ablation_plan import DENSE, Arm
from gft_edge.training.loop import is_gated
from gft_edge.training.recipes import Gate, Recipe


def own_recipe(score: str, recipe: Recipe, base: Recipe) -> Recipe:
    """The recipe of an arm: what changes nothing for its score, or beside its other settings, is base's.

    Of settings of `gate` that do the same, it is base's where that is one of them.
    """
    if score == DENSE:
        # Not base's: without stages a recipe with others is refused.
        own = dataclasses.replace(recipe, gate=Recipe.gate, keep_warmup=Recipe.keep_warmup)
    else:
        gate = _own_gate(SCORES[cast(Score, score)], recipe.gate, base.gate)
        own = dataclasses.replace(recipe, gate=gate)
    if not recipe.distillation:
        own = dataclasses.replace(own, distillation_temperature=base.distillation_temperature)
    if recipe.augmentation != "crop":
        own = dataclasses.replace(own, crop_scale=base.crop_scale)
    return own


def merged(score: str, recipes: Iterable[Recipe], base: Recipe) -> Iterator[str]:
    """A line for each of the recipes that an arm of this score replaces by another."""
    for recipe in recipes:
        own = own_recipe(score, recipe, base)
        if own != recipe:
            asked, instead = _differing(recipe, own)
            yield f"{score}: {asked} is the same training as {instead}"


def refuse_same(arms: Iterable[Arm], images: int) -> None:
    """Raise UsageError for two arms that differ in nothing that as many training images let matter."""
    seen: dict[object, Arm] = {}
    for arm in arms:
        key = (arm.score, arm.stages, _in_steps(arm.recipe, images))
        if (other := seen.setdefault(key, arm)) != arm:
            first, second = _differing(other.recipe, arm.recipe)
            batch, steps = _batch_and_steps(arm.recipe, images)
            capped = ""
            if other.recipe.ema != arm.recipe.ema:
                capped = f", in which the decay never rises above {highest_decay(steps):.4g}"
            raise UsageError(
                f"--vary: {first} and {second} are the same training here, {steps} steps of {batch} "
                f"images{capped}: leave one out"
            )


def capped_averages(recipes: Iterable[Recipe], images: int) -> Iterator[str]:
    """A line for each decay of the weights' average that the training is too short for."""
    for recipe in recipes:
        _, steps = _batch_and_steps(recipe, images)
        if recipe.ema > (highest := highest_decay(steps)):
            yield f"ema {recipe.ema:g} never rises above {highest:.4g} in {steps} steps"


def highest_decay(steps: int) -> float:
    """What timm's ModelEmaV3 lets the decay rise to in so many steps, at its warm-up's power of 2/3."""
    return float(1 - steps ** (-2 / 3))


def _own_gate(rule: ScoreRule, gate: Gate, base: Gate) -> Gate:
    gated = is_gated(rule, gate)
    if gated == is_gated(rule, base):
        return base
    if not gated:
        return "none"
    return "kernel" if rule.smoothed else "all"


def _differing(one: Recipe, other: Recipe) -> tuple[str, str]:
    """The settings that differ, as --vary takes them, of each."""
    names = [
        field.name
        for field in dataclasses.fields(Recipe)
        if getattr(one, field.name) != getattr(other, field.name)
    ]
    first, second = (
        ", ".join(f"{name}={getattr(recipe, name)}" for name in names) for recipe in (one, other)
    )
    return first, second


def _batch_and_steps(recipe: Recipe, images: int) -> tuple[int, int]:
    batch = min(recipe.batch_size, images)
    return batch, recipe.epochs * (images // batch)


def _in_steps(recipe: Recipe, images: int) -> Recipe:
    """The recipe with fractions of all steps as their number, and a decay no higher than it becomes."""
    batch, steps = _batch_and_steps(recipe, images)
    return dataclasses.replace(
        recipe,
        batch_size=batch,
        warmup=int(recipe.warmup * steps),
        keep_warmup=int(recipe.keep_warmup * steps),
        ema=min(recipe.ema, highest_decay(steps)),
    )
