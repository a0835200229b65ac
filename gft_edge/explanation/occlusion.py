"""How much each part of an image speaks for a class: cover it and see how the probability falls."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gft_edge.bundle.specs import ModelSpec, Preprocessing
from gft_edge.errors import UsageError
from gft_edge.explanation.subject import Pixels, Subject, log_probabilities

AT_ONCE = 32
# Rows and columns where patches do not tile the image: as many as the common ViT has.
CELLS = (14, 14)


@dataclass(frozen=True)
class Occlusion:
    """What covering parts of an image did to two of its classes, and what it took to find out.

    `drops[i]` (rows,columns) is how much log p of `classes[i]` falls, on the mean over the covers
    that hold a cell of `cover_grid`; negative where it rises. `log_p[i]` is of the whole image. A
    cover is a square of `block_patches` by `block_patches` cells, moved by one at a time.
    """

    classes: tuple[int, ...]
    log_p: tuple[float, ...]
    drops: npt.NDArray[np.float64]
    block_patches: int
    inferences: int
    seconds: float


def cover_grid(model: ModelSpec) -> tuple[int, int]:
    """Rows and columns of what is covered: a GFT's own patches, CELLS of any other network.

    A CNN has no patches, and those of TransFG overlap.
    """
    return model.patch_grid if model.family == "gft" else CELLS


def cover_side(model: ModelSpec, asked: int | None = None) -> int:
    """The cover's side in cells: `asked`, unless given 2, or less where 2 would not move.

    0 covers nothing. Raises UsageError for a cover that does not move on the grid.
    """
    rows, columns = cover_grid(model)
    most = min(rows, columns) - 1
    if asked is None:
        return min(2, most)
    if asked > most:
        raise UsageError(
            f"a cover of {asked} {cells_named(model)} does not move on a {rows} x {columns} grid: "
            + (f"give 1 to {most}, or 0 for none" if most else "give 0 for none")
        )
    return asked


def cells_named(model: ModelSpec) -> str:
    """What the cells of `cover_grid` are, in a word."""
    return "patches" if model.family == "gft" else "cells"


def occlude(
    subject: Subject,
    pixels: Pixels,
    block_patches: int,
) -> Occlusion:
    """Cover one image (S,S,3) part by part with the mean colour, and watch its two likeliest classes.

    The score that selects patches knows no class; this asks the network itself. `block_patches` is
    1 or more, as `cover_side` allows.
    """
    rows, columns = cover_grid(subject.model)
    started = time.perf_counter()
    whole = log_probabilities(subject.logits(pixels[None]))[0]
    classes = np.argsort(-whole, kind="stable")[:2]
    colour = mean_colour(subject.model.preprocessing)
    tops, lefts = cell_edges(len(pixels), rows), cell_edges(len(pixels), columns)
    places = [
        (row, column)
        for row in range(rows - block_patches + 1)
        for column in range(columns - block_patches + 1)
    ]
    total = np.zeros((len(classes), rows, columns))
    covers = np.zeros((rows, columns))
    for start in range(0, len(places), AT_ONCE):
        some = places[start : start + AT_ONCE]
        covered = np.repeat(pixels[None], len(some), axis=0)
        for image, (row, column) in zip(covered, some, strict=True):
            top, bottom = tops[row], tops[row + block_patches]
            left, right = lefts[column], lefts[column + block_patches]
            image[top:bottom, left:right] = colour
        drops = whole[classes] - log_probabilities(subject.logits(covered))[:, classes]
        for drop, (row, column) in zip(drops, some, strict=True):
            part = (slice(row, row + block_patches), slice(column, column + block_patches))
            total[:, part[0], part[1]] += drop[:, None, None]
            covers[part] += 1
    return Occlusion(
        tuple(int(index) for index in classes),
        tuple(float(value) for value in whole[classes]),
        total / covers,
        block_patches,
        len(places) + 1,
        time.perf_counter() - started,
    )


def cell_edges(side_px: int, cells: int) -> list[int]:
    """The borders of `cells` equal parts of a side, to the nearest pixel: (cells+1,)."""
    return [int(edge) for edge in np.rint(np.linspace(0, side_px, cells + 1))]


def mean_colour(spec: Preprocessing) -> npt.NDArray[np.uint8]:
    """The mean that the network's input is centred on, as a colour: 0 once normalised."""
    return np.asarray(np.clip(np.rint(255 * np.asarray(spec.mean)), 0, 255), np.uint8)
