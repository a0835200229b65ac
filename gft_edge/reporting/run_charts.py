"""Charts of a run: its epochs, gradients, confusions, and what its parts are worth."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from gft_edge.fidelity.confusion import ClassResult, Confusion, Pair
from gft_edge.reporting.drawing import (
    GREY,
    ORANGE,
    PALETTE,
    Chart,
    drawn,
    literal,
    new_figure,
    plain_log,
)

# More counts than that are too small to be read inside a matrix.
MOST_COUNTED = 20
# A tick label needs this much room, and a matrix is never wider than MOST_PX.
LABEL_PX = 11
CHARACTER_PX = 5
MOST_PX = 1500
LISTED = 15
LONGEST_LABEL = 40
MOST_LAYER_TICKS = 40

# A run's columns of numbers, one an epoch; "epoch" is ascending and NaN is a gap.
Columns = Mapping[str, Sequence[float]]


@drawn
def curves_chart(runs: Mapping[str, Columns]) -> Chart:
    """Loss on the left, accuracy on the right, over the epochs; a colour a run.

    A run has the columns epoch, train_loss, val_loss, val_top1 and val_top5.
    """
    figure = new_figure(800, 320, layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    several = len(runs) > 1
    for number, (name, columns) in enumerate(runs.items()):
        for axes, column, label, style, factor in (
            (loss, "train_loss", "training", "-", 1),
            (loss, "val_loss", "validation", "--", 1),
            (accuracy, "val_top1", "top-1", "-", 100),
            (accuracy, "val_top5", "top-5", "--", 100),
        ):
            if several and style == "--":
                continue
            axes.plot(
                columns["epoch"], [factor * value for value in columns[column]], style,
                color=PALETTE[number % len(PALETTE)],
                # The only epoch, or one between two gaps, is no line.
                marker="o", markersize=3.5,
                label=_short(name) if several else label,
            )  # fmt: skip
    loss.set_ylabel("training loss" if several else "loss")
    accuracy.set_ylabel("validation accuracy, %")
    last = int(max(columns["epoch"][-1] for columns in runs.values()))
    for axes in (loss, accuracy):
        axes.set(xlabel="epoch", xlim=(0.5, last + 0.5))
        axes.grid()
        axes.set_xticks(range(math.ceil(last / 12), last + 1, math.ceil(last / 12)))
        axes.legend(fontsize=10)
    words = "; ".join(
        f"{name}: {len(columns['epoch'])} epochs, top-1 {columns['val_top1'][-1]:.4f} at the end"
        for name, columns in runs.items()
    )
    return Chart("curves", "Loss and accuracy", words, figure)


@drawn
def gradients_chart(norms: Mapping[int, Mapping[str, float]]) -> Chart:
    """The paper's figure 5: the gradient norm over the layers, a line an epoch."""
    from matplotlib import colormaps

    layers = list(dict.fromkeys(layer for by_layer in norms.values() for layer in by_layer))
    longest = max(len(_short(layer)) for layer in layers)
    width = max(500, min(1000, 180 + 24 * len(layers)))
    figure = new_figure(width, 300 + CHARACTER_PX * longest, layout="constrained")
    axes = figure.subplots()
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(norms)))
    labelled = len(norms) <= 12
    for shade, (epoch, by_layer) in zip(shades, sorted(norms.items()), strict=True):
        # A logarithmic axis has no place for zero.
        values = [by_layer.get(layer, 0) or math.nan for layer in layers]
        axes.plot(
            range(len(layers)), values, color=shade, marker="o", markersize=3.5,
            label=f"epoch {epoch}" if labelled or epoch in (min(norms), max(norms)) else None,
        )  # fmt: skip
    axes.set_yscale("log")
    plain_log(axes.yaxis)
    step = math.ceil(len(layers) / MOST_LAYER_TICKS)
    places = range(0, len(layers), step)
    axes.set_xticks(places, [_short(layers[place]) for place in places], fontsize=9, rotation=90)
    axes.set_ylabel("L2 norm of the gradient, mean of steps")
    axes.grid()
    figure.legend(loc="outside right upper", fontsize=10)
    return Chart("gradients", "Gradient norm a layer", f"{len(layers)} layers", figure)


@drawn
def confusion_chart(title: str, confusion: Confusion) -> Chart:
    """A row a class, shaded by what share of its images each label was given."""
    from matplotlib.colors import PowerNorm

    classes = len(confusion.labels)
    few = classes <= MOST_COUNTED
    side = min(MOST_PX, max(330, classes * (42 if few else LABEL_PX)))
    room = CHARACTER_PX * max(len(_short(label)) for label in confusion.labels)
    figure = new_figure(side + room + 90, side + room, layout="constrained")
    axes = figure.subplots()
    images = confusion.counts.sum(axis=1, keepdims=True)
    shares = np.divide(
        confusion.counts, images, out=np.zeros(confusion.counts.shape), where=images > 0
    )
    # Brighter than linear: one image in twenty has to be seen.
    shade = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    if few:
        for i, j in np.argwhere(confusion.counts):
            colour = "white" if shares[i, j] > 0.35 else "black"
            count = str(confusion.counts[i, j])
            axes.text(j, i, count, ha="center", va="center", color=colour, fontsize=10)
    step = math.ceil(classes * LABEL_PX / side)
    places = range(0, classes, step)
    names = [_short(confusion.labels[place]) for place in places]
    size = 10 if few else 7
    axes.set_xticks(places, names, rotation=90, fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    axes.set(xlabel="label given", ylabel="true label")
    axes.set_title(literal(title))
    bar = figure.colorbar(shade, ax=axes, shrink=0.6, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0 %", "5 %", "20 %", "50 %", "100 %"], fontsize=9)
    bar.set_label("of the true label's images", fontsize=10)
    return Chart("confusion", title, f"{classes} classes", figure)


@drawn
def hardest_chart(title: str, hardest: Sequence[ClassResult], pairs: Sequence[Pair]) -> Chart:
    """Bars: the classes of lowest recall, and the pairs that are confused most."""
    hardest, pairs = hardest[:LISTED], pairs[:LISTED]
    rows = max(len(hardest), len(pairs), 3)
    figure = new_figure(1000, 110 + 24 * rows, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.barh(range(len(hardest)), [100 * one.recall for one in hardest], color=GREY)
    for place, one in enumerate(hardest):
        found = round(one.recall * one.images)
        left.text(100 * one.recall + 1, place, f"{found} of {one.images}", va="center", fontsize=10)
    left.set_yticks(range(len(hardest)), [_short(one.label) for one in hardest], fontsize=10)
    left.set(xlim=(0, 118), xticks=[0, 20, 40, 60, 80, 100], xlabel="recall, %")
    left.set_title("lowest recall")
    right.barh(range(len(pairs)), [pair.count for pair in pairs], color=ORANGE)
    for place, pair in enumerate(pairs):
        said = f" {pair.count} ({pair.share:.0%})"
        right.text(pair.count, place, said, va="center", fontsize=10)
    names = [
        f"{_short(pair.label)} \N{RIGHTWARDS ARROW} {_short(pair.predicted)}" for pair in pairs
    ]
    right.set_yticks(range(len(pairs)), names, fontsize=10)
    right.set_xlim(0, 1.25 * max((pair.count for pair in pairs), default=1))
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set_xlabel("images (share of the true label's)")
    right.set_title("taken for another" if pairs else "none was taken for another")
    for axes in (left, right):
        axes.set_ylim(rows - 0.5, -0.5)
    figure.suptitle(literal(title))
    words = "; ".join(f"{one.label} {one.recall:.0%}" for one in hardest)
    return Chart("hardest", title, words, figure)


# A name, its values at each fraction of the patches, and the area under them.
Curve = tuple[str, Sequence[float], float]


@drawn
def deletion_chart(
    title: str, fractions: Sequence[float], panels: Sequence[tuple[str, str, Sequence[Curve]]]
) -> Chart:
    """Panels side by side: a heading, the name of the x axis, and a curve an order of patches."""
    height = 350 + 18 * max(len(curves) for _, _, curves in panels)
    figure = new_figure(900, height, layout="constrained")
    for axes, (name, axis, curves) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        # The network's own order last, on top.
        for place, (order, values, area) in reversed([*enumerate(curves)]):
            axes.plot(
                [100 * fraction for fraction in fractions], values, lw=2,
                color=PALETTE[place % len(PALETTE)], label=f"{order}: area {area:.3f}",
            )  # fmt: skip
        axes.set(xlim=(0, 100), ylim=(0, 1), xlabel=f"{axis}, %", title=name)
        axes.grid()
        handles, names = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], names[::-1], loc="upper left", bbox_to_anchor=(0, -0.16))
    figure.suptitle(
        f"{literal(title)}\nmean probability of the class predicted for the whole image", size=13
    )
    words = "; ".join(
        f"{name}: " + ", ".join(f"{order} {area:.3f}" for order, _, area in curves)
        for name, _, curves in panels
    )
    return Chart("deletion", title, words, figure)


@drawn
def sensitivity_chart(
    layers: Sequence[tuple[str, Sequence[float], float]], high_precision: Collection[str]
) -> Chart:
    """A bar a layer for the noise that it adds to each stage's scores, and for the cosine it loses.

    `layers` has the name, a number a stage and the cosine lost, in the ranking's order; those in
    `high_precision` are drawn bold.
    """
    stages = len(layers[0][1])
    figure = new_figure(700, 110 + 14 * len(layers), layout="constrained")
    noise, cosine = figure.subplots(1, 2, sharey=True)
    places = range(len(layers))
    height = 0.8 / max(stages, 1)
    for stage in range(stages):
        noise.barh(
            [place + (stage - (stages - 1) / 2) * height for place in places],
            [by_stage[stage] or math.nan for _, by_stage, _ in layers], height,
            color=PALETTE[stage % len(PALETTE)], label=f"stage {stage + 1}",
        )  # fmt: skip
    cosine.barh(places, [max(lost, 0) or math.nan for _, _, lost in layers], 0.8, color=GREY)
    noise.set(xlabel="score noise (variance, relative)", ylim=(len(layers), -1))
    cosine.set(xlabel="logit cosine lost")
    highest = (
        max((max(by_stage, default=0) for _, by_stage, _ in layers)),
        max(c for *_, c in layers),
    )
    for axes, value in zip((noise, cosine), highest, strict=True):
        # A logarithmic axis has no place for zero: no bar, and no such axis of nothing else.
        if value > 0:
            axes.set_xscale("log")
            plain_log(axes.xaxis)
        axes.tick_params(axis="x", which="both", labelsize=8)
    if stages:
        noise.legend(loc="lower right", fontsize=9)
    noise.set_yticks(list(places), [literal(name) for name, _, _ in layers], fontsize=8)
    for label, (name, _, _) in zip(noise.get_yticklabels(), layers, strict=True):
        label.set_fontweight("bold" if name in high_precision else "normal")
    title = "One layer in INT8 at a time, most damage per work first"
    figure.suptitle(title, size=13)
    return Chart("sensitivity", title, f"{len(layers)} layers", figure)


def _short(label: str) -> str:
    """A label that leaves room for the picture."""
    if len(label) > LONGEST_LABEL:
        label = f"{label[: LONGEST_LABEL - 1]}\N{HORIZONTAL ELLIPSIS}"
    return literal(label)
