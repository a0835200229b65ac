"""Histories, gradients and confusions drawn as PNG files."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gft_edge.errors import MissingDependencyError, UsageError
from gft_edge.studies.confusion import ClassResult, Confusion, Pair
from gft_edge.studies.history import ACCURACY, LOSS, History

DPI = 120
# More counts than that are too small to be read inside a matrix.
MOST_COUNTED = 20
# A tick label needs this much room, and a matrix is never wider than MOST_INCHES.
LABEL_INCHES = 0.15
CHARACTER_INCHES = 0.065
MOST_INCHES = 22.0
LISTED = 15
LONGEST_LABEL = 40
MOST_LAYER_TICKS = 40


def draw_curves(histories: Mapping[str, History], path: Path) -> None:
    """Loss on the left, accuracy on the right, over the epochs; a colour a run."""
    figure = _figure(11, 4.4)
    loss, accuracy = figure.subplots(1, 2)
    several = len(histories) > 1
    for number, (name, history) in enumerate(histories.items()):
        colour = f"C{number}" if several else None
        for axes, column, label, style, factor in (
            (loss, LOSS, "training", "-", 1),
            (loss, "val_loss", "validation", "--", 1),
            (accuracy, ACCURACY, "top-1", "-", 100),
            (accuracy, "val_top5", "top-5", "--", 100),
        ):
            if column not in history.columns or (several and style == "--"):
                continue
            axes.plot(
                history.epochs,
                [_finite(factor * value) for value in history.columns[column]],
                style,
                color=colour,
                # The only epoch, or one between two gaps, is no line.
                marker="o",
                markersize=3.5,
                label=_literal(name) if several else label,
            )
    loss.set_ylabel("training loss" if several else "loss")
    accuracy.set_ylabel("validation accuracy, %")
    last = max(history.epochs[-1] for history in histories.values())
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.set_xlim(0.5, last + 0.5)
        axes.set_xticks(range(math.ceil(last / 12), last + 1, math.ceil(last / 12)))
        axes.legend(fontsize=8)
    if not several:
        figure.suptitle(_literal(next(iter(histories))), fontsize=11)
    _save(figure, path)


def draw_gradients(name: str, norms: Mapping[int, Mapping[str, float]], path: Path) -> None:
    """The paper's figure 5: the gradient norm over the layers, a line an epoch."""
    from matplotlib import colormaps

    layers = list(dict.fromkeys(layer for by_layer in norms.values() for layer in by_layer))
    longest = max(len(_short(layer)) for layer in layers)
    width = max(7.0, min(14.0, 2.5 + 0.34 * len(layers)))
    figure = _figure(width, 4.2 + CHARACTER_INCHES * longest)
    axes = figure.subplots()
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(norms)))
    labelled = len(norms) <= 12
    for shade, (epoch, by_layer) in zip(shades, sorted(norms.items()), strict=True):
        values = [_finite(by_layer.get(layer, math.nan)) for layer in layers]
        # A logarithmic axis has no place for zero.
        values = [value if value > 0 else math.nan for value in values]
        axes.plot(
            range(len(layers)), values, color=shade, marker="o", markersize=3.5,
            label=f"epoch {epoch}" if labelled or epoch in (min(norms), max(norms)) else None,
        )  # fmt: skip
    axes.set_yscale("log")
    step = math.ceil(len(layers) / MOST_LAYER_TICKS)
    places = range(0, len(layers), step)
    axes.set_xticks(places, [_short(layers[place]) for place in places], fontsize=8, rotation=90)
    axes.set_ylabel("L2 norm of the gradient, mean of steps")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    axes.set_title(_literal(f"{name}: gradient norm a layer"), fontsize=11)
    _save(figure, path)


def draw_confusion(title: str, confusion: Confusion, path: Path) -> None:
    """A row a class, shaded by what share of its images each label was given."""
    from matplotlib.colors import PowerNorm

    classes = len(confusion.labels)
    inches = min(
        MOST_INCHES, max(4.5, classes * (0.6 if classes <= MOST_COUNTED else LABEL_INCHES))
    )
    room = CHARACTER_INCHES * max(len(_short(label)) for label in confusion.labels)
    figure = _figure(inches + room + 1.2, inches + room)
    axes = figure.subplots()
    images = confusion.counts.sum(axis=1, keepdims=True)
    shares = np.divide(
        confusion.counts, images, out=np.zeros(confusion.counts.shape), where=images > 0
    )
    # Brighter than linear: one image in twenty has to be seen.
    shade = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    if classes <= MOST_COUNTED:
        for i, j in np.argwhere(confusion.counts):
            colour = "white" if shares[i, j] > 0.35 else "black"
            axes.text(
                j,
                i,
                str(confusion.counts[i, j]),
                ha="center",
                va="center",
                color=colour,
                fontsize=9,
            )
    step = math.ceil(classes * LABEL_INCHES / inches)
    places = range(0, classes, step)
    names = [_short(confusion.labels[place]) for place in places]
    size = 9 if classes <= MOST_COUNTED else 7
    axes.set_xticks(places, names, rotation=90, fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    axes.set_xlabel("label given")
    axes.set_ylabel("true label")
    axes.set_title(_literal(title), fontsize=11)
    bar = figure.colorbar(shade, ax=axes, shrink=0.6, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0 %", "5 %", "20 %", "50 %", "100 %"], fontsize=8)
    bar.set_label("of the true label's images", fontsize=9)
    _save(figure, path)


def draw_hardest(
    title: str, hardest: Sequence[ClassResult], pairs: Sequence[Pair], path: Path
) -> None:
    """Bars: the classes of lowest recall, and the pairs that are confused most."""
    hardest, pairs = hardest[:LISTED], pairs[:LISTED]
    rows = max(len(hardest), len(pairs), 3)
    figure = _figure(13, 1.4 + 0.3 * rows)
    left, right = figure.subplots(1, 2)
    left.barh(range(len(hardest)), [100 * one.recall for one in hardest], color="#7a8aa0")
    for place, one in enumerate(hardest):
        found = round(one.recall * one.images)
        left.text(100 * one.recall + 1, place, f"{found} of {one.images}", va="center", fontsize=8)
    left.set_yticks(range(len(hardest)), [_short(one.label) for one in hardest], fontsize=8)
    left.set_xlim(0, 118)
    left.set_xticks([0, 20, 40, 60, 80, 100])
    left.set_xlabel("recall, %")
    left.set_title("lowest recall", fontsize=10)
    right.barh(range(len(pairs)), [pair.count for pair in pairs], color="#d9822b")
    for place, pair in enumerate(pairs):
        right.text(pair.count, place, f" {pair.count} ({pair.share:.0%})", va="center", fontsize=8)
    names = [
        f"{_short(pair.label)} \N{RIGHTWARDS ARROW} {_short(pair.predicted)}" for pair in pairs
    ]
    right.set_yticks(range(len(pairs)), names, fontsize=8)
    right.set_xlim(0, 1.25 * max((pair.count for pair in pairs), default=1))
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set_xlabel("images (share of the true label's)")
    right.set_title("taken for another" if pairs else "none was taken for another", fontsize=10)
    for axes in (left, right):
        axes.set_ylim(rows - 0.5, -0.5)
    figure.suptitle(_literal(title), fontsize=11)
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    """A figure that no window belongs to. Raises MissingDependencyError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("Matplotlib", "report") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    try:
        with warnings.catch_warnings():
            # A class named in a script that the font lacks is drawn as boxes.
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
            figure.savefig(path, dpi=DPI, format="png")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}): choose another --out"
        ) from error


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan


def _short(label: str) -> str:
    """A label that leaves room for the picture."""
    shown = (
        label
        if len(label) <= LONGEST_LABEL
        else f"{label[: LONGEST_LABEL - 1]}\N{HORIZONTAL ELLIPSIS}"
    )
    return _literal(shown)


def _literal(text: str) -> str:
    """On one line, and a dollar sign begins no formula."""
    return "".join(sign if sign.isprintable() else " " for sign in text).replace("$", r"\$")
