"""The ranking of the layers as a picture."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from gft_edge.calibration.sensitivity import LayerSensitivity
from gft_edge.errors import MissingDependencyError

# A logarithmic axis has no place for zero: no bar.
NOTHING = float("nan")


def sensitivity_chart(
    ranking: Sequence[LayerSensitivity], high_precision: Collection[str], path: Path
) -> None:
    """Write a PNG: a bar a layer, in the ranking's order, for the noise it adds to each stage's scores.

    Layers in `high_precision` are drawn bold. Raises MissingDependencyError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("Matplotlib", "report") from error
    stages = len(ranking[0].score_noise)
    figure = Figure(figsize=(9, 1.5 + 0.19 * len(ranking)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    places = range(len(ranking))
    height = 0.8 / max(stages, 1)
    for stage in range(stages):
        panels[0].barh(
            [place + (stage - (stages - 1) / 2) * height for place in places],
            [row.score_noise[stage] or NOTHING for row in ranking],
            height,
            label=f"stage {stage + 1}",
        )
    panels[0].set_xscale("log")
    panels[0].set_xlabel("score noise (variance, relative)")
    if stages:
        panels[0].legend(loc="lower right", fontsize=7)
    panels[1].barh(
        places, [max(row.cosine_drop, 0) or NOTHING for row in ranking], 0.8, color="grey"
    )
    panels[1].set_xscale("log")
    panels[1].set_xlabel("logit cosine lost")
    panels[0].set_yticks(list(places), [row.layer for row in ranking], fontsize=6)
    for label, row in zip(panels[0].get_yticklabels(), ranking, strict=True):
        label.set_fontweight("bold" if row.layer in high_precision else "normal")
    panels[0].set_ylim(len(ranking), -1)
    figure.suptitle("One layer in INT8 at a time, most damage per work first", fontsize=10)
    figure.savefig(path, dpi=110)
