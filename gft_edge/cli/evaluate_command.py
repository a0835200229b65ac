"""gft-edge evaluate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.core import ParameterSource

from gft_edge.bundle.images import DataSource
from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.specs import Progress
from gft_edge.bundle.store import is_bundle, write_whole
from gft_edge.cli.options import (
    PATH,
    backend_option,
    data_option,
    device_options,
    json_option,
    split_option,
    threads_option,
)
from gft_edge.cli.output import (
    advance,
    line,
    next_line,
    percent,
    print_json,
    print_table,
    progress,
    say,
    show,
    shown,
    speaks,
)
from gft_edge.cli.sources import given_source, images_of_run
from gft_edge.datasets import read_split, reporting_split
from gft_edge.errors import MissingDependencyError, UsageError
from gft_edge.reporting.table import SUFFIXES, Format, write
from gft_edge.runtime.classifier import Classifier

# What asks for the table of runs, of one run too.
_OF_TABLES = ("form", "out", "average", "bundles", "duration_s")


@click.command("evaluate")
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="RUN...|BUNDLE")
@data_option
@split_option()
@click.option(
    "--format",
    "form",
    type=click.Choice(["markdown", "latex", "csv"]),
    help="Print the table of runs in this format alone.",
)
@click.option(
    "--average",
    type=click.Choice(["weighted", "macro"]),
    default="weighted",
    show_default=True,
    help="Average over the classes that the table of runs shows.",
)
@click.option(
    "--bundles",
    type=PATH,
    multiple=True,
    metavar="DIR",
    help="Measure the latency of the runs' bundles: a bundle, or a folder of them; may be "
    "repeated.",
)
@click.option(
    "--duration",
    "duration_s",
    type=float,
    default=5.0,
    show_default=True,
    help="Minimum seconds to measure each of these bundles.",
)
@backend_option
@threads_option
@device_options
@click.option("--fresh", is_flag=True, help="Evaluate runs anew, whatever they have kept.")
@click.option(
    "--out",
    type=PATH,
    metavar="FILE",
    help="Write the table of runs to FILE, named .md, .tex or .csv.",
)
@json_option
def command(paths: tuple[Path, ...], as_json: bool, **options: Any) -> None:  # fmt: skip
    """Measure the accuracy, precision, recall and F1 of a run or a bundle on a split.

    Several runs of one data set stand side by side as in the paper's tables 1-3: with parameters,
    GFLOPs and, with --bundles, the latency of each run's bundles here, measured in turn. A run knows
    its data, and keeps its result for as long as its weights and the images are the same. A bundle
    needs --data, and runs on its engine.

    gft-edge evaluate runs/dense runs/grocery --format markdown
    """
    options["given"] = tuple(options.pop(name) for name in ("data", "dataset", "coco_category"))
    bundles = [path for path in paths if is_bundle(path)]
    if bundles:
        if len(paths) > 1:
            raise UsageError(f"{bundles[0]} is a bundle: evaluate it alone, a table is of runs")
        _refuse("device", "workers", *_OF_TABLES,
                why="is for runs, a bundle runs on its engine: give --backend or --threads")  # fmt: skip
        _evaluate_bundle(bundles[0], options, as_json)
        return
    _refuse("backend", "threads",
            why="is for bundles, a run is evaluated in PyTorch: give --device")  # fmt: skip
    if len(paths) > 1 or any(map(_is_given, _OF_TABLES)):
        _compare_runs(paths, options, as_json)
    else:
        _evaluate_run(paths[0], options, as_json)


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def _refuse(*names: str, why: str) -> None:
    """Raise UsageError where an option that means nothing here was given."""
    flags = {parameter.name: parameter.opts[0] for parameter in command.params}
    for name in names:
        if _is_given(name):
            raise UsageError(f"{flags[name]} {why}")


def _evaluate_bundle(folder: Path, options: dict[str, Any], as_json: bool) -> None:
    source = given_source(*options["given"])
    if source is None:
        raise UsageError("a bundle holds no images: give --data FOLDER")
    with progress() as report:
        split = options["split"] or reporting_split(source)
        logits, targets = _bundle_logits(folder, source, split, options, report)
    from gft_edge.fidelity.metrics import classification_metrics

    _print(folder, split, classification_metrics(logits, targets), as_json)


def _bundle_logits(
    folder: Path, source: DataSource, split: str, options: dict[str, Any], report: Progress
) -> tuple[Any, Any]:
    from gft_edge.fidelity.verify import split_outputs

    with Classifier.load(folder, options["backend"], options["threads"]) as classifier:
        images = read_split(source, split, classifier.labels)
        for remark in images.remarks:
            say(remark)
        count = advance(report, f"evaluate on {split}", len(images.paths))
        outputs, _ = split_outputs(classifier, images, count)
    return outputs.logits, np.asarray(images.targets, dtype=np.int64)


def _evaluate_run(run: Path, options: dict[str, Any], as_json: bool) -> None:
    try:
        from gft_edge.studies.evaluation import evaluate_run
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "train") from error
    source = images_of_run(run, *options["given"])
    split = options["split"] or reporting_split(source)
    how = {name: options[name] for name in ("fresh", "device", "workers")}
    with progress() as report:
        metrics = evaluate_run(run, source, split, progress=report, say=say, **how).metrics
    _print(run, split, metrics, as_json)


def _print(what: Path, split: str, metrics: Any, as_json: bool) -> None:
    if as_json:
        print_json({"split": split, **dataclasses.asdict(metrics)})
        return
    print_table(
        f"{what} on {split} ({metrics.images} images)",
        ("average", "precision", "recall", "F1", "top-1", "top-5"),
        [
            (
                average,
                *(
                    percent(getattr(metrics, f"{m}_{average}"))
                    for m in ("precision", "recall", "f1")
                ),
                percent(metrics.top1),
                percent(metrics.top5),
            )
            for average in ("macro", "weighted")
        ],
    )


def _compare_runs(runs: tuple[Path, ...], options: dict[str, Any], as_json: bool) -> None:
    try:
        from gft_edge.studies import runs_table_forms as forms
        from gft_edge.studies.runs_table import compare_runs
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "export") from error
    form, out = options.pop("form"), options.pop("out")
    file_form = _file_format(out, form)
    sources = tuple(images_of_run(run, *options["given"]) for run in runs)
    options["split"] = options["split"] or reporting_split(sources[0])
    how = {name: options[name] for name in ("split", "average", "bundles", "duration_s",
                                            "fresh", "device", "workers")}  # fmt: skip
    with progress() as report:
        table = compare_runs(runs, sources, progress=report, say=say, **how)

    def written(form: Format) -> str:
        return write(forms.in_full(table) if form == "csv" else forms.shown(table), form)

    if file_form is not None and out is not None and speaks():
        write_whole(out, written(file_form).encode("utf-8", "replace"))
    if as_json:
        print_json(to_json(table))
    elif form is not None:
        line(written(form).removesuffix("\n"))
    else:
        show(forms.shown(table))
    if out is not None:
        say(f"written: {shown(str(out))}")
    if not as_json and form is None:
        next_line(f"gft-edge report {shown(str(runs[0]))}")


def _file_format(out: Path | None, form: Format | None) -> Format | None:
    """What --out is written as, made sure of before the work. Raises UsageError."""
    if out is None:
        return form
    if out.is_dir() or not out.parent.is_dir():
        raise UsageError(f"{out} cannot be written: give --out a file in a folder that exists")
    found = form or SUFFIXES.get(out.suffix.lower())
    if found is None:
        raise UsageError(f"{out} says no format: name it .md, .tex or .csv, or give --format")
    return found
