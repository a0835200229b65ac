"""gft-edge table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.store import write_whole
from gft_edge.cli.options import PATH, data_option, device_options, json_option, split_option
from gft_edge.cli.output import (
    line,
    next_line,
    print_json,
    print_table,
    progress,
    say,
    shown,
    speaks,
)
from gft_edge.cli.sources import images_of_run
from gft_edge.errors import MissingDependencyError, UsageError


@click.command("table")
@click.argument("runs", type=PATH, nargs=-1, required=True, metavar="RUN...")
@click.option("--format", "form", type=click.Choice(["markdown", "latex", "csv"]),
              help="Print that alone [default: a table for the terminal].")  # fmt: skip
@data_option
@split_option()
@click.option("--average", type=click.Choice(["weighted", "macro"]), default="weighted",
              show_default=True, help="Of precision, recall and F1 over the classes.")  # fmt: skip
@click.option("--bundles", type=PATH, multiple=True, metavar="DIR",
              help="Measure the runs' bundles: a bundle, or a folder of them; may be repeated.")  # fmt: skip
@click.option("--duration", "duration_s", type=float, default=5.0, show_default=True,
              help="Seconds of each bundle at each boundary, at least.")  # fmt: skip
@device_options
@click.option("--fresh", is_flag=True, help="Evaluate anew, whatever the runs have kept.")
@click.option("--out", type=PATH, metavar="FILE", help="Write it, as .md, .tex or .csv.")
@json_option
def command(
    runs: tuple[Path, ...], form: Any, out: Path | None, as_json: bool, **options: Any
) -> None:
    """Runs of one data set side by side, as the paper's tables 1-3 have them.

    Accuracy, precision, recall and F1 on the split, parameters, GFLOPs and, with --bundles, the
    latency of each run's bundles here, measured in turn. The best of a column is marked. What a run
    was evaluated to is kept in it, for as long as its weights and the images are the same.
    """
    try:
        from gft_edge.studies import formats
        from gft_edge.studies.table import TableRequest, build_table
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "export") from error
    file_form = _file_format(out, form, formats.SUFFIXES)
    given = (options.pop("data"), options.pop("dataset"), options.pop("coco_category"))
    sources = tuple(images_of_run(run, *given) for run in runs)
    with progress() as report:
        table = build_table(TableRequest(runs, sources, **options), report, say)
    if out is not None and speaks():
        write_whole(out, formats.write(table, file_form).encode("utf-8", "replace"))
    if as_json:
        print_json(to_json(table))
    elif form is not None:
        line(formats.write(table, form).removesuffix("\n"))
    else:
        columns = formats.columns(table)
        cells = zip(*(column.cells for column in columns), strict=True)
        print_table(
            f"{formats.heading(table)}; * best",
            [column.head for column in columns],
            [[f"{cell.text} *" if cell.best else cell.text for cell in row] for row in cells],
        )
        for note in formats.notes(table):
            line(note)
    if out is not None:
        say(f"written: {shown(str(out))}")
    if not as_json and form is None:
        next_line(f"gft-edge plot {shown(str(runs[0]))}")


def _file_format(out: Path | None, form: str | None, suffixes: dict[str, Any]) -> Any:
    """What --out is written as, made sure of before the work. Raises UsageError."""
    if out is None:
        return form
    if out.is_dir() or not out.parent.is_dir():
        raise UsageError(f"{out} cannot be written: give --out a file in a folder that exists")
    found = form or suffixes.get(out.suffix.lower())
    if found is None:
        raise UsageError(f"{out} says no format: name it .md, .tex or .csv, or give --format")
    return found
