"""An ablation's table, for a terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from gft_edge.studies.ablation_result import ONE_SEED, Ablation, ArmResult, Difference
from gft_edge.studies.crossed import Estimate
from gft_edge.studies.formats import markdown_row, markdown_text

# Behind a difference whose seeds do not count.
IMAGES_ALONE = " *"


def heading(ablation: Ablation) -> str:
    """What was trained, and judged on what."""
    start = "from scratch" if ablation.weights is None else "pretrained"
    return (
        f"{ablation.model} ({start}) on {ablation.split}, {ablation.images} images, "
        f"{ablation.classes} classes, seeds {', '.join(map(str, range(ablation.seeds)))}"
    )


def heads(ablation: Ablation) -> list[str]:
    """One a column of `cells`."""
    return [
        "score",
        "stages",
        *ablation.varied,
        "top-1 %",
        "spread",
        "each seed",
        *(f"vs {column}" for column in ablation.columns),
    ]


def cells(ablation: Ablation) -> list[list[str]]:
    """A row an arm, in percent and points; a dash for what an arm has not."""
    return [
        [
            arm.score,
            arm.stages,
            *(str(value) for value in arm.settings.values()),
            f"{100 * arm.mean:.2f}",
            "-" if arm.spread is None else f"{100 * arm.spread:.2f}",
            " / ".join(f"{100 * rate:.2f}" for rate in arm.top1),
            *(_difference_text(arm, column) for column in ablation.columns),
        ]
        for arm in ablation.arms
    ]


def difference_to(arm: ArmResult, column: str) -> Difference | None:
    """None where the arm is the reference itself, or that has no finished cell yet."""
    return next((found for found in arm.differences if found.to == column), None)


def _difference_text(arm: ArmResult, column: str) -> str:
    found = difference_to(arm, column)
    if found is None:
        return "-"
    text, known = f"{100 * found.mean:+.2f}", found.estimate
    if known is None:
        return text
    away = "SE 0"
    if known.standard_errors is not None and known.p_value is not None:
        p_text = "p < 0.001" if known.p_value < 0.001 else f"p = {known.p_value:.3f}"
        away = f"{known.standard_errors:+.1f} SE, {p_text}"
    mark = IMAGES_ALONE if known.rests_on == "images" else ""
    return f"{text} [{100 * known.low:+.2f}, {100 * known.high:+.2f}], {away}{mark}"


def notes(ablation: Ablation) -> Iterator[str]:
    """What the numbers mean, and what they lack."""
    if ablation.finished < ablation.cells:
        yield (
            f"UNFINISHED: {ablation.cells - ablation.finished} of {ablation.cells} cells are not "
            "trained to their end, or failed; differences are over the seeds that both arms have"
        )
    if ablation.intervals:
        yield (
            "in brackets the 95 % interval of the difference, then how many standard errors (SE) it is "
            "from 0: seeds and images both count as drawn at random, paired; each interval stands for "
            "itself, of twenty one misses on average"
        )
        yield (
            "read standard errors with p, which is how often at least as many come about without any "
            "difference (t, degrees of freedom in --json): with few seeds three of them are no rarity"
        )
        shown = [difference_to(arm, column) for arm in ablation.arms for column in ablation.columns]
        known = [found.estimate for found in shown if found is not None]
        if any(estimate is not None and estimate.rests_on == "images" for estimate in known):
            yield (
                f"{IMAGES_ALONE.strip()} rests on the images alone: its seeds differ no more than the "
                "images explain; seeds that differ a little more would count, and widen the interval "
                "at once"
            )
        if ablation.seeds == 2:
            yield "two seeds: where seeds differ much the intervals are too narrow, give --seeds 3"
    elif ablation.seeds < 2:
        yield ONE_SEED
    yield "top-1 is the mean over the seeds, spread their standard deviation, in points of percent"


def to_markdown(ablation: Ablation) -> str:
    """The table with its notes."""
    rows = cells(ablation)
    named = 2 + len(ablation.varied)
    lines = [
        markdown_row([markdown_text(head) for head in heads(ablation)]),
        markdown_row(["---" if place < named else "---:" for place in range(len(heads(ablation)))]),
        *(markdown_row([markdown_text(text) for text in row]) for row in rows),
        "",
        markdown_text(f"{heading(ablation)}."),
    ]
    for note in notes(ablation):
        lines += ["", markdown_text(f"{note}.")]
    return "\n".join(lines) + "\n"


def to_csv(ablation: Ablation) -> str:
    """A line an arm, every number in full as a fraction of 1; what is not known is empty."""
    lines = []
    for arm in ablation.arms:
        line: dict[str, object] = {
            "score": arm.score,
            "stages": arm.stages,
            **arm.settings,
            "split": ablation.split,
            "images": ablation.images,
            "top1": arm.mean,
            "spread": arm.spread,
            **_limits("top1", arm.estimate),
        }
        by_seed = dict(zip(arm.seeds, arm.top1, strict=True))
        line |= {f"top1_seed{seed}": by_seed.get(seed) for seed in range(ablation.seeds)}
        for column in ablation.columns:
            found = difference_to(arm, column)
            name = f"vs_{column}"
            line[name] = None if found is None else found.mean
            known = None if found is None else found.estimate
            line |= {
                **_limits(name, known),
                f"{name}_standard_errors": None if known is None else known.standard_errors,
                f"{name}_p_value": None if known is None else known.p_value,
                f"{name}_rests_on": None if known is None else known.rests_on,
            }
        lines.append(line)
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _limits(name: str, known: Estimate | None) -> dict[str, object]:
    return {
        f"{name}_low": None if known is None else known.low,
        f"{name}_high": None if known is None else known.high,
        f"{name}_standard_error": None if known is None else known.standard_error,
    }
