"""gft-edge benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.json_form import to_json
from gft_edge.cli.options import (
    PATH,
    data_option,
    json_option,
    measuring_options,
    percentiles,
    split_option,
)
from gft_edge.cli.output import next_line, print_json, print_table, progress, say, shown
from gft_edge.cli.sources import source_of_run
from gft_edge.datasets import reporting_split
from gft_edge.errors import MissingDependencyError, UsageError


@click.command("benchmark")
@click.argument("run", type=PATH)
@data_option
@split_option()
@click.option("--targets", metavar="NAME,...", help="onnx, openvino, tensorrt [default: all].")
@click.option("--precisions", metavar="NAME,...", help="fp32, fp16, bf16, int8 [default: all].")
@click.option("--calibration-data", type=PATH,
              help="int8: class folders of real images [default: the train split].")  # fmt: skip
@click.option("--images", type=int, default=256, show_default=True,
              help="Real images that every export is verified on.")  # fmt: skip
@click.option("--limit", type=int, help="Images of the split for accuracy [default: all].")
@measuring_options
@click.option("--layers/--no-layers", default=True, show_default=True,
              help="Where the time goes in each, in a run of its own.")  # fmt: skip
@click.option("--out", type=PATH, help="Folder to fill, or to go on in [default: RUN-benchmark].")
@click.option("--force", is_flag=True, help="Start over in a folder that holds a benchmark.")
@json_option
def command(run: Path, data: Path | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Everything that this machine can run of RUN, in one table: what it costs and what it keeps.

    Each target and precision is exported, verified, judged on the split against PyTorch, and all are
    measured in turn. What cannot run here or fails is listed with its reason. Ctrl-C keeps what is
    done: the same command goes on. Exit 0 when something was measured, 1 when nothing was.
    """
    try:
        from gft_edge.studies.benchmark import BenchmarkRequest, benchmark
        from gft_edge.studies.benchmark_files import write_results
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "export") from error
    out = out or Path(f"{run.resolve().name}-benchmark")
    source = source_of_run(run, data, options["dataset"], options["coco_category"])
    request = BenchmarkRequest(
        run=run,
        data=source,
        out=out,
        split=options["split"] or reporting_split(source),
        targets=_names("--targets", options["targets"]),
        precisions=_names("--precisions", options["precisions"]),
        calibration_data=options["calibration_data"],
        images=options["images"],
        limit=options["limit"],
        force=options["force"],
        duration_s=options["duration"],
        warmup_ms=options["warmup_ms"],
        min_samples=options["min_samples"],
        percentiles=percentiles(options["percentiles"]),
        layers=options["layers"],
    )
    try:
        with progress() as report:
            result, profile = benchmark(request, report, say)
    except KeyboardInterrupt:
        say(f"interrupted: what is done is kept in {shown(str(out))}, the same command goes on")
        raise click.exceptions.Exit(1) from None
    files = write_results(result, profile, out)
    if as_json:
        print_json(to_json(result))
    else:
        _print(result, files)
    if not result.complete:
        say("interrupted: latencies are of the samples so far, the same command measures them anew")
    if not result.complete or profile is None:
        raise click.exceptions.Exit(1)


def _names(flag: str, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if not names:
        raise UsageError(f"{flag} is empty: give names separated by commas, or leave it out")
    return names


def _print(result: Any, files: list[Path]) -> None:
    """The same as the Markdown file has, a star where that has bold."""
    from gft_edge.studies.benchmark_table import (
        COLUMNS,
        cells,
        conditions,
        heading,
        shortfalls,
        warnings,
        winners,
    )

    rows = [[f"{cell.text} *" if cell.best else cell.text for cell in row] for row in cells(result)]
    mark = "" if result.stable is not False else ", UNSTABLE"
    if rows:
        # Narrow heads: the table is wide as it is.
        heads = ["\n".join(column.rsplit(" ", 1)) for column in COLUMNS]
        print_table(f"{heading(result)}; latencies in ms, * best{mark}", heads, rows)
    for line in (*warnings(result), *conditions(result), *winners(result), *shortfalls(result)):
        click.echo(shown(line))
    click.echo(f"written: {', '.join(shown(str(file)) for file in files)}")
    fastest = next((best for best in result.best if best.goal == "fastest"), None)
    if fastest is not None:
        bundle = next(row.bundle for row in result.rows if row.name == fastest.row)
        next_line(f"gft-edge predict {shown(str(files[0].parent / bundle))} PHOTO")
