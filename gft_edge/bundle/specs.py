"""What a network is: its architecture, its stages, its preprocessing and its input, as frozen data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from gft_edge.errors import SpecError

GalaMode = Literal["layer", "block"]
Score = Literal["gala", "raw", "class", "class-laplacian", "received", "random"]
Family = Literal["gft", "timm", "transfg"]
CropMode = Literal["center", "squash"]
InputDtype = Literal["uint8", "float32"]


@dataclass(frozen=True)
class Stage:
    """One patch selection: after `position` whole blocks, `keep` patches remain."""

    position: int
    keep: int


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input: the training evaluation transform, as numbers.

    `center` resizes the shorter side to floor(image_size_px / crop_pct), `squash` both sides; both
    then crop the middle to image_size_px. `mean` and `std` are RGB, for pixels in 0..1.
    """

    image_size_px: int
    crop_pct: float
    crop_mode: CropMode
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class ModelSpec:
    """A network: the timm backbone, where it selects patches and by which score, and its classes.

    `gala` says where the scores come from: `layer`, an extra attention layer before block `position`;
    `block`, that block's own attention. `patch_grid` is (rows, columns), (0, 0) for a network without
    patches. What a `score` is stands in gft_edge/scores.py. `family` says what is built around the
    backbone: `gft`, without stages the plain ViT itself; `timm`, nothing, any other classifier of
    timm's; `transfg`, TransFG. Only a `gft` has stages, and `gala`, `score` and `temperature` mean
    something with stages alone.
    """

    name: str
    backbone: str
    backbone_args: Mapping[str, int]
    stages: tuple[Stage, ...]
    gala: GalaMode
    score: Score
    temperature: float
    patch_grid: tuple[int, int]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    family: Family = "gft"

    @property
    def patch_count(self) -> int:
        """Patches before any selection."""
        return self.patch_grid[0] * self.patch_grid[1]


@dataclass(frozen=True)
class InputSpec:
    """What the graph takes: `images`, NHWC RGB 0..255 for uint8, normalised NCHW for float32."""

    dtype: InputDtype
    batch: int

    def shape(self, image_size_px: int) -> tuple[int, int, int, int]:
        """The static shape of the `images` input."""
        if self.dtype == "uint8":
            return (self.batch, image_size_px, image_size_px, 3)
        return (self.batch, 3, image_size_px, image_size_px)


@dataclass(frozen=True)
class Prediction:
    """One class and its probability, the softmax of the logits divided by the bundle's temperature.

    `label` is None where the likeliest class of the image is under the least probability that an answer
    needs: the image is then none of these, and `index` says of which class it has the most.
    """

    label: str | None
    index: int
    probability: float


# (what runs, steps done, steps in all); the total is 0 where nothing is counted.
Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]


def counter(progress: Progress, text: str, total: int) -> Callable[[int], None]:
    """A callback that is told how many more are done, and reports how many of `total` are."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(text, done, total)

    return advance


def check_preprocessing(spec: Preprocessing) -> None:
    """Raise SpecError naming the field that no image could be prepared with."""
    numbers = {
        "image_size_px": spec.image_size_px >= 1,
        "crop_pct": 0 < spec.crop_pct <= 1,
        "mean": len(spec.mean) == 3 and all(map(math.isfinite, spec.mean)),
        "std": len(spec.std) == 3 and all(math.isfinite(s) and s > 0 for s in spec.std),
    }
    for name, sound in numbers.items():
        if not sound:
            raise SpecError(
                f"preprocessing: {name} is {getattr(spec, name)}, which no image survives"
            )


def unusable_label(labels: Iterable[str]) -> str | None:
    """Say what keeps the first such class name from standing on a line of labels.txt, or None."""
    for label in labels:
        # Every line end that a reader of labels.txt may know, U+2028 and VT among them.
        if len(f"{label}.".splitlines()) > 1:
            return f"the class {label!r} has a line break in its name"
        # What Python makes of bytes in a folder's name that are no UTF-8.
        if any("\ud800" <= letter <= "\udfff" for letter in label):
            return f"the name of the class {label!r} is not UTF-8"
    return None


def check_labels(labels: Iterable[str]) -> None:
    """Raise SpecError naming a class that no bundle can hold."""
    reason = unusable_label(labels)
    if reason:
        raise SpecError(f"{reason}: rename it where the classes come from")
