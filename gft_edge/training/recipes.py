"""Training settings as data: the default recipe, the paper's, and what a run records of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from gft_edge.errors import UsageError

Augmentation = Literal["crop", "flip", "none", "paper"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a training, beside the network and the images.

    `augmentation`: `crop`, random resized crop and flip with mild colour jitter; `flip`, the evaluation
    crop and a flip; `none`, the evaluation crop; `paper`, the whole image squashed, flip, autocontrast
    and RandAugment(2, 9). `crop_scale` is the least share of the image that a random crop holds.
    `layer_decay` multiplies the learning rate once for each block further from the head. `warmup` is
    the fraction of all steps with a rising learning rate. `distillation` is the share of the loss that
    a teacher's logits have, where there is one, at `distillation_temperature`; `feature_distillation`
    is the weight of a further loss, between the tokens that teacher and network end with. `ema` is the
    decay of a moving average of the weights, which is then what is evaluated and kept; at step n no more
    than 1 - (1 + n)^(-2/3), 0.984 after 500 steps. These two are off at 0.
    """

    epochs: int = 6
    batch_size: int = 32
    lr: float = 1e-3
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    warmup: float = 0.1
    label_smoothing: float = 0.1
    clip_grad: float = 1.0
    augmentation: Augmentation = "crop"
    crop_scale: float = 0.5
    seed: int = 0
    distillation: float = 0.5
    distillation_temperature: float = 2.0
    feature_distillation: float = 0.0
    ema: float = 0.0


# What each number may be. Ranges as command lines check them let NaN through.
_SOUND: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(
        ("lr", "weight_decay", "warmup", "layer_decay", "label_smoothing", "clip_grad"),
        (math.isfinite, "a number"),
    ),
    "distillation": (lambda x: 0 <= x <= 1, "a share of the loss, 0 to 1"),
    "distillation_temperature": (lambda x: 0 < x < math.inf, "a number above 0, such as 2"),
    "feature_distillation": (lambda x: 0 <= x < math.inf, "a weight of 0 (off) or more, such as 1"),
    "ema": (lambda x: 0 <= x < 1, "a decay of 0 (off) to below 1, such as 0.999"),
}


def check_recipe(recipe: Recipe, has_teacher: bool) -> None:
    """Raise UsageError naming the option that has no such value, or nothing to act on."""
    for name, (is_sound, expected) in _SOUND.items():
        value = getattr(recipe, name)
        if not is_sound(value):
            raise UsageError(f"--{name.replace('_', '-')} is {value:g}: give {expected}")
    if recipe.feature_distillation and not has_teacher:
        raise UsageError(
            f"--feature-distillation {recipe.feature_distillation:g} compares tokens with a teacher's: "
            "give --teacher, or leave it out"
        )
    if has_teacher and not recipe.distillation and not recipe.feature_distillation:
        raise UsageError(
            "--distillation 0 leaves nothing to learn from the teacher: give --feature-distillation "
            "too, or leave --teacher out"
        )


# A few epochs on a small data set: a high rate at the head that falls towards the patch embedding.
# gft_tiny_edge by GALA, 6 epochs on grocery: 88.5 % against 86.8 % with 4e-4, 0.8, 0.15 and 0.35.
# What a teacher adds, and what was left out: README, "What a teacher adds".
DEFAULT = Recipe(feature_distillation=1.0)

# arXiv 2504.09852 and the authors' scripts.
PAPER = Recipe(
    epochs=50,
    batch_size=16,
    lr=1e-5,
    layer_decay=1.0,
    weight_decay=0.05,
    warmup=0.0,
    label_smoothing=0.0,
    clip_grad=1.0,
    augmentation="paper",
)

RECIPES = {"default": DEFAULT, "paper": PAPER}
