"""How a run's loss and accuracy went, epoch by epoch, as its history.csv has it."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from gft_edge.errors import UsageError
from gft_edge.studies.evaluation import check_run
from gft_edge.training.run_folder import HISTORY_FILE

LOSS, ACCURACY = "train_loss", "val_top1"
COLUMNS = (LOSS, ACCURACY, "val_loss", "val_top5")


@dataclass(frozen=True)
class History:
    """`epochs` ascending, and under each column's name a number an epoch, which may be NaN."""

    epochs: tuple[int, ...]
    columns: dict[str, tuple[float, ...]]

    def by_column(self) -> dict[str, tuple[float, ...]]:
        """The epochs among the columns, as charts take them."""
        return {"epoch": self.epochs, **self.columns}

    def gaps(self) -> list[str]:
        """What is not finite, a line a column."""
        lines = []
        for name, values in self.columns.items():
            missing = [
                str(epoch)
                for epoch, value in zip(self.epochs, values, strict=True)
                if not math.isfinite(value)
            ]
            if missing:
                lines.append(f"{name} is NaN or infinite in epoch {', '.join(missing)}")
        return lines


def read_history(run: Path) -> History:
    """The history of a run with at least one finished epoch.

    Raises CheckpointError for what is no such run, UsageError for a history that is missing, empty
    or damaged.
    """
    check_run(run)
    path = run / HISTORY_FILE
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            lines = list(csv.DictReader(file))
    except FileNotFoundError:
        raise UsageError(
            f"{run} has no {HISTORY_FILE}: only a run that gft-edge train trained can be drawn"
        ) from None
    if not lines:
        raise UsageError(f"{path} is empty: the run has no finished epoch to draw")
    rows: dict[int, dict[str, float]] = {}
    for number, line in enumerate(lines, start=2):
        try:
            rows[int(float(line["epoch"]))] = {name: float(line[name]) for name in COLUMNS}
        except (KeyError, TypeError, ValueError):
            raise UsageError(
                f"{path}, line {number}: expected numbers for epoch, {', '.join(COLUMNS)}: the file "
                "is damaged, take it from a copy of the run"
            ) from None
    epochs = tuple(sorted(rows))
    return History(epochs, {n: tuple(rows[epoch][n] for epoch in epochs) for n in COLUMNS})
