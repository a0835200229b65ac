"""Deletion and insertion curves as a chart and a table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from gft_edge.bundle.json_form import from_json
from gft_edge.errors import SpecError, UsageError
from gft_edge.explanation.deletion import CurveMean, DeletionReport
from gft_edge.reporting.page import Block, Charts, Page, Section
from gft_edge.reporting.run_charts import deletion_chart
from gft_edge.reporting.table import Table


def read_curves(path: Path) -> tuple[str, DeletionReport]:
    """What gft-edge explain --data wrote: whose curves they are, and the curves. Raises UsageError."""
    fields = {field.name for field in dataclasses.fields(DeletionReport)}
    try:
        content = json.loads(path.read_bytes())
        known = {key: value for key, value in content.items() if key in fields}
        return str(content["explained"]), from_json(DeletionReport, known, str(path))
    except (OSError, ValueError, KeyError, AttributeError, RecursionError, SpecError) as error:
        raise UsageError(
            f"{path} holds no curves: give the file that gft-edge explain --data wrote ({error})"
        ) from error


def curves_page(name: str, report: DeletionReport) -> Page:
    """Both measures side by side, and the area under each curve."""
    start = "the blurred image" if report.insert_from == "blur" else "the mean colour"
    panels = [
        ("deletion: lower is better", "patches covered, most important first",
         [(r.order, r.deletion_curve, r.deletion.mean) for r in report.results]),
        (f"insertion into {start}: higher is better", "patches shown, most important first",
         [(r.order, r.insertion_curve, r.insertion.mean) for r in report.results]),
    ]  # fmt: skip
    title = f"{name}, {report.images} images"
    blocks: list[Block] = [
        Charts([deletion_chart(title, report.fractions, panels)]),
        areas_table(name, report),
    ]
    return Page(f"What the ranking of {name} is worth", [Section("Deletion and insertion", blocks)])


def areas_table(name: str, report: DeletionReport) -> Table:
    """The areas under the curves of each order, with the gain of the network's own."""
    columns = ("order", "deletion (lower is better)", "gain of its own",
               "insertion (higher is better)", "gain of its own")  # fmt: skip
    rows = [
        (r.order, _text(r.deletion), _text(r.deletion_gain), _text(r.insertion),
         _text(r.insertion_gain))
        for r in report.results
    ]  # fmt: skip
    title = f"{name}, {report.images} images: area under the probability of the predicted class"
    return Table(title, columns, rows)


def _text(found: CurveMean | None) -> str:
    if found is None:
        return "-"
    if found.interval is None:
        return f"{found.mean:.4f}"
    return f"{found.mean:.4f} [{found.interval[0]:.4f}, {found.interval[1]:.4f}]"
