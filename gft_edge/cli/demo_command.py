"""gft-edge demo."""

from __future__ import annotations

from pathlib import Path

import click

from gft_edge.cli.options import PATH, json_option
from gft_edge.cli.output import next_line, print_json, progress, quoted, say, show
from gft_edge.reporting.table import Table, per_stage, percent


@click.command("demo")
@click.option("--out", type=PATH, default=Path("demo"), show_default=True,
              help="Folder for the drawings, the run, the bundles and the pictures.")  # fmt: skip
@json_option
def command(out: Path, as_json: bool) -> None:
    """Go the whole way without any download: draw, train, export, verify, predict, compare.

    gft-edge demo --out demo
    """
    from gft_edge.studies.demo import run_demo

    with progress() as report:
        result = run_demo(out, report, say)
    if as_json:
        print_json(result)
        return
    rows = [
        (row.target, f"{row.size_mib:.2f}", percent(row.top1), percent(row.top1_agreement),
         per_stage(row.kept_overlap), f"{row.median_ms:.2f}")
        for row in result.rows
    ]  # fmt: skip
    heads = ("target", "size MiB", "top-1", "agreement", "kept patches", "median ms")
    show(Table(f"{result.test_images} unseen drawings, {result.machine}", heads, rows))
    path, predictions = result.prediction
    show(f"{path}: {predictions[0].label} ({100 * predictions[0].probability:.1f} %)")
    show(*(f"picture: {picture}" for picture in result.pictures))
    next_line(
        f"gft-edge predict {quoted(out / result.rows[-1].target)} {quoted(out / 'data' / 'test')}"
    )
