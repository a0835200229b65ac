"""gft-edge evaluate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import numpy as np

from gft_edge.bundle import is_bundle
from gft_edge.classifier import Classifier
from gft_edge.cli.options import (
    PATH,
    backend_option,
    data_option,
    json_option,
    split_option,
    threads_option,
)
from gft_edge.cli.output import advance, percent, print_json, print_table, progress
from gft_edge.errors import MissingDependencyError, UsageError


@click.command("evaluate")
@click.argument("run_or_bundle", type=PATH)
@data_option
@split_option()
@backend_option
@threads_option
@json_option
def command(
    run_or_bundle: Path,
    data: Path | None,
    split: str,
    backend: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Accuracy, precision, recall and F1 of a run or a bundle on a split.

    A run knows its data; a bundle needs --data.
    """
    from gft_edge.training.metrics import classification_metrics

    with progress() as report:
        if is_bundle(run_or_bundle):
            logits, targets = _bundle_logits(run_or_bundle, data, split, backend, threads, report)
        else:
            logits, targets = _run_logits(run_or_bundle, data, split, report)
    metrics = classification_metrics(logits, targets)
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


def _bundle_logits(
    folder: Path,
    data: Path | None,
    split: str,
    backend: str | None,
    threads: int | None,
    report: Any,
) -> tuple[Any, Any]:
    from gft_edge.image_folder import read_split
    from gft_edge.verification import split_outputs

    if data is None:
        raise UsageError("a bundle holds no images: give --data FOLDER")
    if backend == "fake":
        raise UsageError("the fake backend has no accuracy: choose a real one")
    with Classifier.load(folder, backend, threads) as classifier:
        images = read_split(data, split, classifier.labels)
        count = advance(report, f"evaluate on {split}", len(images.paths))
        outputs, _ = split_outputs(classifier, images, count)
    return outputs.logits, np.asarray(images.targets, dtype=np.int64)


def _run_logits(run: Path, data: Path | None, split: str, report: Any) -> tuple[Any, Any]:
    try:
        from gft_edge.model.checkpoint import load_run
        from gft_edge.training.loop import logits_and_targets, read_run_config
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "train") from error
    spec, model = load_run(run)
    folder = data or Path(read_run_config(run)[1].data)
    return logits_and_targets(model, spec, folder, split, report)
