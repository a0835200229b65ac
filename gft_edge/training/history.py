"""history.csv of a run: how loss and accuracy went, epoch by epoch."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gft_edge.errors import CheckpointError
from gft_edge.training.run_folder import check_run, replace_text

HISTORY_FILE = "history.csv"
FIELDS = (
    "epoch",
    "lr",
    "train_loss",
    "val_top1",
    "val_top5",
    "val_loss",
    "images_per_s",
    "seconds",
)
DRAWN = ("train_loss", "val_top1", "val_loss", "val_top5")

# A finished epoch: a number for each of FIELDS, which may be NaN.
Row = dict[str, float]


def write_rows(run: Path, rows: Sequence[Row]) -> None:
    """Replace a run's history. Raises CheckpointError when it cannot be written."""
    lines = [FIELDS, *([f"{row[name]:.6g}" for name in FIELDS] for row in rows)]
    replace_text(run / HISTORY_FILE, "".join(f"{','.join(line)}\n" for line in lines))


def read_rows(run: Path) -> list[Row]:
    """The finished epochs of a run, in order. Raises CheckpointError naming a line that is wrong."""
    path = run / HISTORY_FILE
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            lines = list(csv.DictReader(file))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}), and the epochs so far stand there: take it from "
            "a copy of the run"
        ) from error
    rows: dict[int, Row] = {}
    for number, line in enumerate(lines, start=2):
        try:
            rows[int(float(line["epoch"]))] = {name: float(line[name]) for name in FIELDS}
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                f"{path}, line {number}: expected numbers for {', '.join(FIELDS)}: the file is damaged, "
                "take it from a copy of the run"
            ) from None
    return [rows[epoch] for epoch in sorted(rows)]


@dataclass(frozen=True)
class History:
    """What a report draws: `epochs` ascending, and under each name of DRAWN a number an epoch."""

    epochs: tuple[int, ...]
    columns: dict[str, tuple[float, ...]]

    def by_column(self) -> dict[str, tuple[float, ...]]:
        """The epochs among the columns, as charts take them."""
        return {"epoch": self.epochs, **self.columns}

    def gaps(self) -> list[str]:
        """What is not finite, a line a column."""
        lines = []
        for name, values in self.columns.items():
            pairs = zip(self.epochs, values, strict=True)
            missing = [str(epoch) for epoch, value in pairs if not math.isfinite(value)]
            if missing:
                lines.append(f"{name} is NaN or infinite in epoch {', '.join(missing)}")
        return lines


def read_history(run: Path) -> History:
    """The history of a run with at least one finished epoch. Raises CheckpointError for any other."""
    check_run(run)
    rows = read_rows(run)
    if not rows:
        raise CheckpointError(
            f"{run / HISTORY_FILE} is empty: the run has no finished epoch to draw"
        )
    epochs = tuple(int(row["epoch"]) for row in rows)
    return History(epochs, {name: tuple(row[name] for row in rows) for name in DRAWN})
