"""gft-edge import."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gft_edge.bundle.images import DataSource
from gft_edge.cli.options import PATH, data_option, json_option
from gft_edge.cli.output import next_line, print_json, print_table
from gft_edge.cli.sources import given_source
from gft_edge.datasets import read_split, splits_of
from gft_edge.errors import DataError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    from gft_edge.model.published import Published


@click.command("import")
@click.argument("checkpoint", type=PATH)
@click.option(
    "--classes", type=click.IntRange(1), help="Number of classes, which then have no names."
)
@click.option(
    "--labels", type=PATH, help="File of the class names, one a line in the classifier's order."
)
@click.option("--out", type=PATH, required=True, help="Folder of the new run.")
@data_option
@click.option(
    "--heads", type=int, help="Number of attention heads [default: one for every 64 channels]."
)
@json_option
def command(checkpoint: Path, out: Path, data: Path | None, as_json: bool, **options: Any) -> None:
    """Make a run of a checkpoint that the paper's published scripts wrote.

    The run computes exactly that checkpoint's logits. --data is kept for evaluate and export.
    """
    try:
        from gft_edge.model.published import (
            BLOCKS,
            INERT_SELECTION,
            left_out,
            published_network,
            read_published,
            write_import,
        )
        from gft_edge.model.weight_files import BACKBONE_FILE
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "train") from error
    if (options["classes"] is None) == (options["labels"] is None):
        raise UsageError(
            "give --labels FILE with one class name a line, or --classes N where names do not "
            "matter, and not both"
        )
    source = given_source(data, options["dataset"], options["coco_category"])
    if source is not None and options["labels"] is None:
        raise UsageError("--data finds classes by their names: give --labels FILE too")
    if out.exists():
        raise UsageError(f"{out} exists already: choose another --out")
    found = read_published(checkpoint, options["heads"])
    labels = _labels(found, options["classes"], options["labels"])
    if source is not None:
        _check_data(source, labels)
    spec, model = published_network(found, labels)
    write_import(out, found, spec, model)
    if source is not None:
        _write_config(out, source)
    parts = [dataclasses.asdict(part) for part in left_out(found)]
    content = {
        "run": str(out),
        "network": spec.name,
        "classes": found.classes,
        "blocks": BLOCKS,
        "heads": found.heads,
        "image_size_px": found.image_size_px,
        "selection_reaches_logits": False,
        "remark": INERT_SELECTION,
        "tensors": len(found.state) - sum(part["count"] for part in parts),
        "left_out": parts,
        "backbone": str(out / BACKBONE_FILE),
        "train_as": found.train_as,
    }
    if as_json:
        print_json(content)
    else:
        _show(content, found.depth, data)


def _show(content: dict[str, Any], depth: int, data: Path | None) -> None:
    run, parts = content["run"], content["left_out"]
    click.echo(
        f"{run}: {content['network']}, {content['classes']} classes, {content['heads']} heads, "
        f"{content['image_size_px']} px squashed"
    )
    click.echo(content["remark"])
    count = sum(part["count"] for part in parts)
    print_table(
        f"Left out: {count} of {count + content['tensors']} tensors",
        ("tensors", "count", "why"),
        [(part["tensors"], part["count"], part["reason"]) for part in parts],
    )
    click.echo(
        f"A real GFT can start from {content['backbone']}: all {depth} blocks, the norm and the "
        "classifier. The checkpoint's GALA layers hold their random initialisation, since no "
        "gradient reached them: new ones start from the blocks."
    )
    wanted = "" if data is not None else " --data DIR"
    next_line(
        f"gft-edge export {run} --target openvino{wanted} --out BUNDLE, or gft-edge train --model "
        f"{content['train_as'] or 'MODEL'} --weights {run} --data {data or 'DIR'} --out NEW"
    )


def _labels(found: Published, classes: int | None, file: Path | None) -> tuple[str, ...]:
    """One name a class. Raises UsageError where they are not as many as the classifier's rows."""
    labels = (
        tuple(f"class {number}" for number in range(classes or 0))
        if file is None
        else _read_labels(file)
    )
    if len(labels) != found.classes:
        source = f"--classes is {classes}" if file is None else f"{file} has {len(labels)}"
        rows = tuple(found.state["classifier.weight"].shape)
        mend = f"--classes {found.classes}" if file is None else "--labels with one line per class"
        raise UsageError(
            f"{found.path} has {found.classes} classes (classifier.weight is {rows}), {source}: "
            f"pass {mend}"
        )
    return labels


def _read_labels(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        raise UsageError(f"{file}: no such file of labels")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is no text in UTF-8: write one class name a line") from error
    labels = tuple(line.strip() for line in text.split("\n"))
    labels = labels[:-1] if labels[-1] == "" else labels
    for number, label in enumerate(labels, start=1):
        if not label:
            raise UsageError(f"{file}, line {number} is empty: write one class name a line")
    label, count = Counter(labels).most_common(1)[0] if labels else ("", 1)
    if count > 1:
        lines = ", ".join(str(n) for n, other in enumerate(labels, start=1) if other == label)
        raise UsageError(f"{file} names {label!r} in lines {lines}: each class has its own name")
    return labels


def _check_data(source: DataSource, labels: tuple[str, ...]) -> None:
    """Raise DataError unless the data's splits know no other class."""
    splits = splits_of(source)
    if not splits and source.dataset == "imagefolder":
        raise DataError(f"{source.folder} has no train/, val/ or test/ folder of class folders")
    for split in splits or ("train",):
        read_split(source, split, labels)


def _write_config(out: Path, source: DataSource) -> None:
    from gft_edge.training.recipes import PAPER
    from gft_edge.training.run_folder import RunConfig, write_run_config

    config = RunConfig(
        str(source.folder.resolve()),
        PAPER,
        amp=False,
        workers=0,
        device="cpu",
        dataset=source.dataset,
        coco_category=source.coco_category,
    )
    write_run_config(out, config)
