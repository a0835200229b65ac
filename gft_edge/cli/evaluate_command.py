"""gft-edge evaluate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import numpy as np

from gft_edge.bundle.specs import counter
from gft_edge.bundle.store import is_bundle, read_bundle, write_whole
from gft_edge.cli.options import (
    PATH,
    backend_option,
    data_option,
    json_option,
    names_given,
    of_pytorch,
    refuse_given,
    split_option,
    threads_option,
    workers_option,
)
from gft_edge.cli.output import (
    next_line,
    print_json,
    progress,
    quoted,
    say,
    show,
    shown,
    speaks,
    writable_file,
)
from gft_edge.datasets import read_split, reporting_split, splits_of
from gft_edge.errors import UsageError
from gft_edge.fidelity.confidence import Acceptance, CalibrationError, calibration_error
from gft_edge.reporting.confidence_tables import acceptance_table, calibration_sentence
from gft_edge.reporting.table import SUFFIXES, Format, Table, percent, write
from gft_edge.runtime.classifier import Classifier

# What asks for the table of runs, of one run too.
_OF_TABLES = ("form", "out", "average", "bundles", "duration_s")


@click.command("evaluate")
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="RUN...|BUNDLE")
@data_option
@split_option()
@click.option("--format", "form", type=click.Choice(["markdown", "latex", "csv"]),
              help="Print the table of runs in this format alone.")  # fmt: skip
@click.option("--average", type=click.Choice(["weighted", "macro"]), default="weighted",
              show_default=True, help="Average over the classes that the table of runs shows.")  # fmt: skip
@click.option("--bundles", type=PATH, multiple=True, metavar="DIR",
              help="Bundle of one of the runs, or a folder of them, to measure the latency of; may be "
              "repeated.")  # fmt: skip
@click.option("--duration", "duration_s", type=float, default=5.0, show_default=True,
              help="Minimum seconds to measure each of these bundles.")  # fmt: skip
@backend_option
@threads_option
@click.option(
    "--device",
    metavar="NAME",
    help="Processor: of a run cpu, cuda or auto, a GPU where PyTorch sees one (default); of a "
    "bundle on OpenVINO what benchmark_app -d takes: CPU (default), GPU, NPU, AUTO, "
    "HETERO:GPU,CPU.",
)
@workers_option
@click.option("--fit-temperature", is_flag=True,
              help="First fit the temperature of a run on val, and keep it in the run.")  # fmt: skip
@click.option("--unknown", type=PATH, metavar="DIR",
              help="Photographs of none of a bundle's classes, to see which least probability tells them "
              "apart.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Evaluate runs anew, whatever they have kept.")
@click.option("--out", type=PATH, metavar="FILE",
              help="File for the table of runs, named .md, .tex or .csv.")  # fmt: skip
@json_option
def command(paths: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Measure the accuracy, precision, recall and F1 of a run or a bundle on a split.

    Several runs of one data set stand side by side as in the paper's tables 1-3: with parameters,
    GFLOPs and, with --bundles, the latency of each run's bundles here, measured in turn. A run knows
    its data, and keeps its result for as long as its weights and the images are the same. A bundle
    needs --data, and runs on its engine.

    gft-edge evaluate runs/dense runs/grocery --format markdown
    """
    bundles = [path for path in paths if is_bundle(path)]
    if bundles:
        if len(paths) > 1:
            raise UsageError(f"{bundles[0]} is a bundle: evaluate it alone, a table is of runs")
        refuse_given("workers", "fit_temperature", "fresh", *_OF_TABLES,
                     why="is for runs, a bundle runs on its engine: give --backend or --threads")  # fmt: skip
        _evaluate_bundle(bundles[0], options, as_json)
        return
    refuse_given(
        "unknown", why="is for bundles, whose answers are the device's: export the run first"
    )
    refuse_given("backend", "threads",
                 why="is for bundles, a run is evaluated in PyTorch: give --device")  # fmt: skip
    options["device"] = of_pytorch(options["device"])
    if len(paths) > 1:
        refuse_given("fit_temperature", why="is for one run: give it alone")
    if len(paths) > 1 or {*_OF_TABLES} & {*names_given()}:
        _compare_runs(paths, options, as_json)
    else:
        _evaluate_run(paths[0], options, as_json)


def _evaluate_bundle(folder: Path, options: dict[str, Any], as_json: bool) -> None:
    from gft_edge.fidelity.metrics import classification_metrics
    from gft_edge.fidelity.verify import split_outputs, verify_once
    from gft_edge.studies.acceptance import (
        judge_acceptance,
        unknown_confidence,
        unknown_photographs,
    )

    source = options["given"].source()
    if source is None:
        raise UsageError("a bundle holds no images: give --data FOLDER")
    with progress() as report:
        split = options["split"] or reporting_split(source)
        bundle, backend, device = read_bundle(folder), options["backend"], options["device"]
        verify_once(bundle, backend, device)
        with Classifier.load(bundle, backend, options["threads"], device=device) as classifier:
            images = read_split(source, split, classifier.labels)
            for remark in images.remarks:
                say(remark)
            count = counter(report, f"evaluate on {split}", len(images.paths))
            unknown = None
            if options["unknown"] is not None:
                others = unknown_photographs(options["unknown"], classifier.labels, say)
                unknown = unknown_confidence(classifier, others, report)
            outputs, _ = split_outputs(classifier, images, count)
            targets = np.asarray(images.targets, dtype=np.int64)
            metrics, accepted = classification_metrics(outputs.logits, targets), None
            if unknown is not None:
                accepted = judge_acceptance(classifier, outputs.logits, targets, unknown)
    temperature = bundle.manifest.confidence.temperature
    error = calibration_error(outputs.logits, targets, temperature)
    _print(folder, split, metrics, error, accepted, as_json)


def _evaluate_run(run: Path, options: dict[str, Any], as_json: bool) -> None:
    from gft_edge.model.temperature import temperature_of
    from gft_edge.studies.evaluation import evaluate_run
    from gft_edge.training.temperature import fit_run_temperature

    source = options["given"].of_run(run)
    split = options["split"] or reporting_split(source)
    how = {name: options[name] for name in ("fresh", "device", "workers")}
    with progress() as report:
        if not options["fit_temperature"]:
            temperature = temperature_of(run, say)
        else:
            if "val" not in splits_of(source):
                raise UsageError(f"{source.folder} has no val split to fit a temperature on")
            val = evaluate_run(run, source, "val", progress=report, say=say, **how)
            fitted = fit_run_temperature(run, val.logits, val.targets, "val")
            temperature = fitted.temperature
            say(
                f"temperature {fitted.temperature:.3g}, fitted on {fitted.images:,} images of val: expected "
                f"calibration error {percent(fitted.ece_uncalibrated)} before, {percent(fitted.ece)} after"
            )
        found = evaluate_run(run, source, split, progress=report, say=say, **how)
    error = calibration_error(found.logits, found.targets, temperature)
    _print(run, split, found.metrics, error, None, as_json)


def _print(
    what: Path,
    split: str,
    metrics: Any,
    error: CalibrationError,
    accepted: Acceptance | None,
    as_json: bool,
) -> None:
    if as_json:
        unknown = {} if accepted is None else {"unknown": accepted}
        content = {"split": split, **dataclasses.asdict(metrics), **dataclasses.asdict(error)}
        print_json({**content, **unknown})
        return
    scores = ("precision", "recall", "f1")
    rows = [
        (average, *(percent(getattr(metrics, f"{score}_{average}")) for score in scores),
         percent(metrics.top1), percent(metrics.top5))
        for average in ("macro", "weighted")
    ]  # fmt: skip
    heads = ("average", "precision", "recall", "F1", "top-1", "top-5")
    title = f"{what} on {split} ({metrics.images} images)"
    show(Table(title, heads, rows, (calibration_sentence(error),)))
    if accepted is not None:
        shown_images = (
            f"{accepted.known_images:,} images of {split}, {accepted.unknown_images:,} others"
        )
        show(acceptance_table(f"None of these: {shown_images}", accepted))


def _compare_runs(runs: tuple[Path, ...], options: dict[str, Any], as_json: bool) -> None:
    from gft_edge.studies import runs_table_forms as forms
    from gft_edge.studies.runs_table import compare_runs

    form, out = options["form"], options["out"]
    file_form = _file_format(out, form)
    sources = tuple(options["given"].of_run(run) for run in runs)
    options["split"] = options["split"] or reporting_split(sources[0])
    wanted = ("split", "average", "bundles", "duration_s", "fresh", "device", "workers")
    how = {name: options[name] for name in wanted}
    with progress() as report:
        table = compare_runs(runs, sources, progress=report, say=say, **how)

    def written(form: Format) -> str:
        return write(forms.in_full(table) if form == "csv" else forms.shown(table), form)

    if file_form is not None and out is not None and speaks():
        write_whole(out, written(file_form).encode("utf-8", "replace"))
    if as_json:
        print_json(table)
    elif form is None:
        show(forms.shown(table))
    elif speaks():
        click.echo(written(form), nl=False)
    if out is not None:
        say(f"written: {shown(out)}")
    if not as_json and form is None:
        next_line(f"gft-edge report {quoted(runs[0])}")


def _file_format(out: Path | None, form: Format | None) -> Format | None:
    """What --out is written as, made sure of before the work. Raises UsageError."""
    if out is None:
        return form
    writable_file(out, "--out")
    found = form or SUFFIXES.get(out.suffix.lower())
    if found is None:
        raise UsageError(f"{out} says no format: name it .md, .tex or .csv, or give --format")
    return found
