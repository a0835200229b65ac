"""A run as one page: loss and accuracy, gradients, the confusion matrix, the hardest classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gft_edge.bundle.json_form import to_json
from gft_edge.fidelity.confusion import Confusion
from gft_edge.reporting.page import Block, Charts, Page, Section
from gft_edge.reporting.run_charts import (
    Columns,
    confusion_chart,
    curves_chart,
    gradients_chart,
    hardest_chart,
)
from gft_edge.reporting.table import Table

LISTED = 10


@dataclass(frozen=True)
class RunResult:
    """What a run was evaluated to: `top1` of 1 on so many images of a split."""

    split: str
    images: int
    top1: float
    confusion: Confusion

    def title(self) -> str:
        """The heading of its charts."""
        return f"{self.split}: {self.top1:.2%} of {self.images} images"

    def record(self) -> dict[str, Any]:
        """The result as JSON, with the hardest classes and the pairs that are confused most."""
        hardest, pairs = self.confusion.hardest(), self.confusion.pairs()
        said = {"split": self.split, "images": self.images, "top1": self.top1}
        return {**said, "hardest": to_json(hardest), "pairs": to_json(pairs)}


def run_page(
    runs: Mapping[str, Columns],
    norms: Mapping[int, Mapping[str, float]] | None = None,
    result: RunResult | None = None,
) -> Page:
    """Runs by name with their epochs; gradients and the confusion are of the only run, if any."""
    sections = [Section("Loss and accuracy", [Charts([curves_chart(runs)]), epochs_table(runs)])]
    if norms:
        sections.append(Section("Gradients", [Charts([gradients_chart(norms)])]))
    if result is not None:
        confusion, title = result.confusion, result.title()
        charts = [
            confusion_chart(title, confusion),
            hardest_chart(title, confusion.hardest(), confusion.pairs()),
        ]
        # Each alone: they are too wide for two in a row.
        blocks: list[Block] = [*(Charts([chart]) for chart in charts), *confusion_tables(result)]
        sections.append(Section("Confusion", blocks))
    return Page(", ".join(runs), sections)


def epochs_table(runs: Mapping[str, Columns]) -> Table:
    """How each run's training ended, and its best epoch."""
    rows = []
    for name, columns in runs.items():
        accuracy = columns["val_top1"]
        best = max(range(len(accuracy)), key=lambda n: (math.isfinite(accuracy[n]), accuracy[n]))
        rows.append(
            (name, int(columns["epoch"][-1]), f"{columns['train_loss'][-1]:.4f}",
             f"{100 * accuracy[-1]:.2f}", f"{100 * accuracy[best]:.2f}", int(columns["epoch"][best]))
        )  # fmt: skip
    heads = ("run", "epochs", "training loss", "top-1 %", "best top-1 %", "in epoch")
    return Table("Epochs", heads, rows)


def confusion_tables(result: RunResult) -> list[Table]:
    """The classes of lowest recall, and the pairs that are confused most."""
    hardest, pairs = result.confusion.hardest(), result.confusion.pairs()
    tables = [
        Table(
            f"Hardest classes on {result.title()}",
            ("class", "recall %", "precision %", "images"),
            [
                (r.label, f"{100 * r.recall:.2f}",
                 None if r.precision is None else f"{100 * r.precision:.2f}", r.images)
                for r in hardest[:LISTED]
            ],
        )
    ]  # fmt: skip
    if pairs:
        rows = [(p.label, p.predicted, p.count, f"{100 * p.share:.2f}") for p in pairs[:LISTED]]
        tables.append(Table("Most confused", ("class", "taken for", "images", "share %"), rows))
    return tables
