"""gft-edge evaluate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.core import ParameterSource

from gft_edge.bundle.images import CocoCategory, DataSource
from gft_edge.bundle.specs import Progress
from gft_edge.bundle.store import is_bundle
from gft_edge.cli.options import (
    PATH,
    backend_option,
    data_option,
    device_options,
    json_option,
    split_option,
    threads_option,
)
from gft_edge.cli.output import advance, percent, print_json, print_table, progress, say
from gft_edge.cli.sources import given_source, images_of_run
from gft_edge.errors import MissingDependencyError, UsageError
from gft_edge.runtime.classifier import Classifier

OF_RUNS = "is for runs, a bundle runs on its engine: give --backend or --threads"
OF_BUNDLES = "is for bundles, a run is evaluated in PyTorch: give --device or --workers"


@click.command("evaluate")
@click.argument("run_or_bundle", type=PATH)
@data_option
@split_option()
@backend_option
@threads_option
@device_options
@click.option("--fresh", is_flag=True, help="Evaluate a run anew, whatever it has kept.")
@json_option
def command(
    run_or_bundle: Path,
    data: Path | None,
    dataset: str | None,
    coco_category: CocoCategory | None,
    split: str,
    backend: str | None,
    threads: int | None,
    device: str,
    workers: int,
    fresh: bool,
    as_json: bool,
) -> None:
    """Accuracy, precision, recall and F1 of a run or a bundle on a split.

    A run knows its data, and keeps the result for as long as its weights and the images are the
    same; a bundle needs --data, and runs on its engine (--backend, --threads).
    """
    from gft_edge.fidelity.metrics import classification_metrics

    given = (data, dataset, coco_category)
    with progress() as report:
        if is_bundle(run_or_bundle):
            _refuse(
                "device",
                "workers",
                why="is for runs, a bundle runs on its engine: give --backend or --threads",
            )
            source = given_source(*given)
            logits, targets = _bundle_logits(run_or_bundle, source, split, backend, threads, report)
            metrics = classification_metrics(logits, targets)
        else:
            _refuse(
                "backend",
                "threads",
                why="is for bundles, a run is evaluated in PyTorch: give --device",
            )
            metrics = _run_metrics(run_or_bundle, given, split, fresh, report, device, workers)
    if as_json:
        print_json(dataclasses.asdict(metrics))
        return
    print_table(
        f"{run_or_bundle} on {split} ({metrics.images} images)",
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


def _refuse(*names: str, why: str) -> None:
    """Raise UsageError where an option that means nothing here was given."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"--{name} {why}")


def _bundle_logits(
    folder: Path,
    source: DataSource | None,
    split: str,
    backend: str | None,
    threads: int | None,
    report: Any,
) -> tuple[Any, Any]:
    from gft_edge.datasets import read_split
    from gft_edge.fidelity.verify import split_outputs

    if source is None:
        raise UsageError("a bundle holds no images: give --data FOLDER")
    if backend == "fake":
        raise UsageError("the fake backend has no accuracy: choose a real one")
    with Classifier.load(folder, backend, threads) as classifier:
        images = read_split(source, split, classifier.labels)
        for remark in images.remarks:
            say(remark)
        count = advance(report, f"evaluate on {split}", len(images.paths))
        outputs, _ = split_outputs(classifier, images, count)
    return outputs.logits, np.asarray(images.targets, dtype=np.int64)


def _run_metrics(
    run: Path,
    given: tuple[Path | None, str | None, CocoCategory | None],
    split: str,
    fresh: bool,
    report: Progress,
    device: str,
    workers: int,
) -> Any:
    try:
        from gft_edge.studies.evaluation import evaluate_run
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "train") from error
    source = images_of_run(run, *given)
    return evaluate_run(run, source, split, fresh, report, say, device, workers).metrics
