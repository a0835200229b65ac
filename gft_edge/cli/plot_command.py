"""gft-edge plot."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.images import CocoCategory
from gft_edge.bundle.json_form import to_json
from gft_edge.cli.options import PATH, data_option, device_options, json_option, split_option
from gft_edge.cli.output import (
    line,
    next_line,
    percent,
    print_json,
    print_table,
    progress,
    say,
    shown,
    speaks,
)
from gft_edge.cli.sources import images_of_run
from gft_edge.datasets import splits_of
from gft_edge.errors import GftEdgeError, MissingDependencyError, UsageError

CURVES, GRADIENTS = "curves.png", "gradients.png"
CONFUSION, HARDEST = "confusion.png", "hardest.png"
LISTED = 10
# What is drawn where none is named: the first that is here.
SPLITS = ("test", "val", "train")

# --data, --dataset and --coco-category.
Given = tuple[Path | None, str | None, CocoCategory | None]


@click.command("plot")
@click.argument("runs", type=PATH, nargs=-1, required=True, metavar="RUN...")
@click.option("--out", type=PATH, help="Folder for the pictures [default: RUN/plots].")
@data_option
@split_option(None)
@device_options
@json_option
@click.pass_context
def command(
    context: click.Context,
    runs: tuple[Path, ...],
    out: Path | None,
    data: Path | None,
    dataset: str | None,
    coco_category: CocoCategory | None,
    split: str | None,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Draw a run: loss and accuracy, gradients a layer, confusion matrix, hardest classes.

    The confusion is of --split, else of the first of test, val and train that is here. Gradient norms
    are there after gft-edge train --log-gradients. Several runs are drawn into one picture of their
    curves.
    """
    try:
        from gft_edge.studies.evaluation import evaluate_run
        from gft_edge.studies.figures import draw_curves
        from gft_edge.studies.history import read_history
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "export") from error
    if len(runs) > 1 and out is None:
        raise UsageError("several runs have no folder in common: give --out DIR")
    if len({run.resolve() for run in runs}) < len(runs):
        raise UsageError("a run is given twice: give it once")
    histories = {shown(str(run)): read_history(run) for run in runs}
    folder = _made(out or runs[0] / "plots")
    if speaks():
        draw_curves(histories, folder / CURVES)
    for name, history in histories.items():
        for gap in history.gaps():
            say(f"{name}: {gap}: left out of the curves")
    if len(runs) > 1:
        content: dict[str, Any] = {"pictures": [str(folder / CURVES)]}
    else:
        with progress() as report:
            evaluate = partial(
                evaluate_run, progress=report, say=say, device=device, workers=workers
            )
            content = _of_one(runs[0], folder, (data, dataset, coco_category), split, evaluate)
    content = {
        "runs": [str(run) for run in runs],
        **content,
        "histories": {name: to_json(history) for name, history in histories.items()},
    }
    if as_json:
        print_json(content)
        return
    _print(content)
    if len(runs) == 1 and content["gradients"] is None:
        say("no gradient norms: gft-edge train --log-gradients keeps them")
    next_line(_next(runs, content, context.params))


def _of_one(
    run: Path, folder: Path, given: Given, split: str | None, evaluate: Callable[..., Any]
) -> dict[str, Any]:
    """Gradients, confusion and hardest classes of a run, drawn and as numbers."""
    from gft_edge.studies.figures import draw_confusion, draw_gradients, draw_hardest
    from gft_edge.training.gradients import GRADIENTS_FILE, read_norms

    name = shown(str(run))
    pictures = [folder / CURVES]
    norms = read_norms(run / GRADIENTS_FILE) if (run / GRADIENTS_FILE).is_file() else {}
    if norms:
        if speaks():
            draw_gradients(name, norms, folder / GRADIENTS)
        pictures.append(folder / GRADIENTS)
    found = _confusion(run, given, split, evaluate)
    content: dict[str, Any] = {"gradients": norms or None, "confusion": None}
    if found is not None:
        evaluation, confusion = found
        metrics = evaluation.metrics
        heading = f"{name} on {evaluation.split.name}: {percent(metrics.top1)} of {metrics.images}"
        if speaks():
            draw_confusion(heading, confusion, folder / CONFUSION)
            draw_hardest(heading, confusion.hardest(), confusion.pairs(), folder / HARDEST)
        pictures += [folder / CONFUSION, folder / HARDEST]
        content["confusion"] = {
            "split": evaluation.split.name,
            "images": metrics.images,
            "top1": metrics.top1,
            "hardest": to_json(confusion.hardest()),
            "pairs": to_json(confusion.pairs()),
        }
    return {"pictures": [str(picture) for picture in pictures], **content}


def _confusion(run: Path, given: Given, split: str | None, evaluate: Callable[..., Any]) -> Any:
    """The evaluation and its confusion; None, with a remark, where images not asked for cannot be had."""
    from gft_edge.studies.confusion import confusion_of

    try:
        source = images_of_run(run, *given)
        here = splits_of(source)
        chosen = split or next((name for name in SPLITS if name in here), SPLITS[0])
        evaluation = evaluate(run, source, chosen)
    except GftEdgeError as error:
        if split is not None or any(given):
            raise
        say(f"no confusion matrix: {error}")
        return None
    labels = evaluation.spec.labels
    return evaluation, confusion_of(evaluation.logits, evaluation.targets, labels)


def _next(runs: tuple[Path, ...], content: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """A command that these runs can have: a table of one whose images are here."""
    run = shlex.quote(shown(str(runs[0])))
    if len(runs) > 1:
        # Whether they are of one data set, as a table wants them, nobody has looked.
        return f"gft-edge plot {run}"
    if content["confusion"] is None:
        return f"gft-edge inspect {run}"
    words = ["gft-edge", "evaluate", run, "--split", shlex.quote(content["confusion"]["split"])]
    for name in ("data", "dataset", "coco_category"):
        if given[name] is not None:
            words += [f"--{name.replace('_', '-')}", shlex.quote(shown(str(given[name])))]
    return " ".join(words)


def _made(out: Path) -> Path:
    """The folder of the pictures, made sure of before the work. Raises UsageError."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: give --out a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{out} cannot be made ({error.strerror}): choose another --out"
        ) from error
    if not os.access(out, os.W_OK):
        raise UsageError(f"{out} cannot be written: choose another --out")
    return out


def _print(content: Mapping[str, Any]) -> None:
    found = content.get("confusion")
    if found is not None:
        print_table(
            f"Hardest classes on {found['split']} ({found['images']} images, "
            f"top-1 {percent(found['top1'])})",
            ("class", "recall", "precision", "images"),
            [
                (r["label"], percent(r["recall"]), percent(r["precision"]), r["images"])
                for r in found["hardest"][:LISTED]
            ],
        )
        if found["pairs"]:
            print_table(
                "Most confused",
                ("class", "taken for", "images", "share"),
                [
                    (p["label"], p["predicted"], p["count"], percent(p["share"]))
                    for p in found["pairs"][:LISTED]
                ],
            )
    line(f"written: {', '.join(shown(picture) for picture in content['pictures'])}")
