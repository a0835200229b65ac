"""gft-edge demo."""

from __future__ import annotations

from pathlib import Path

import click

from gft_edge.bundle.json_form import to_json
from gft_edge.cli.options import PATH, json_option
from gft_edge.cli.output import (
    next_line,
    overlaps,
    percent,
    print_json,
    print_table,
    progress,
    say,
)
from gft_edge.errors import MissingDependencyError


@click.command("demo")
@click.option("--out", type=PATH, default=Path("demo"), show_default=True)
@json_option
def command(out: Path, as_json: bool) -> None:
    """The whole way without any download: draw, train, export, verify, predict, compare."""
    try:
        from gft_edge.studies.demo import run_demo
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "all") from error
    with progress() as report:
        result = run_demo(out, report, say)
    if as_json:
        print_json(to_json(result))
        return
    print_table(
        f"{result.test_images} unseen drawings, {result.machine}",
        ("target", "size MiB", "top-1", "agreement", "kept patches", "median ms"),
        [
            (row.target, f"{row.size_mib:.2f}", percent(row.top1), percent(row.top1_agreement),
             overlaps(row.kept_overlap), f"{row.median_ms:.2f}")
            for row in result.rows
        ],
    )  # fmt: skip
    path, predictions = result.prediction
    best = predictions[0]
    click.echo(f"{path}: {best.label} ({100 * best.probability:.1f} %)")
    for picture in result.pictures:
        click.echo(f"picture: {picture}")
    next_line(f"gft-edge predict {out / result.rows[-1].target} {out / 'data' / 'test'}")
