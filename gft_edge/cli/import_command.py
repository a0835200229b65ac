"""gft-edge import."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gft_edge.bundle.images import DataSource
from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.specs import unusable_label
from gft_edge.cli.given_images import GivenImages
from gft_edge.cli.options import PATH, data_option, json_option
from gft_edge.cli.output import next_line, print_json, quoted, show
from gft_edge.datasets import read_split, splits_of
from gft_edge.errors import DataError, UsageError
from gft_edge.reporting.table import Table

if TYPE_CHECKING:
    from gft_edge.model.published import Published


@click.command("import")
@click.argument("checkpoint", type=PATH)
@click.option("--classes", type=click.IntRange(1),
              help="Number of classes, which then have no names.")  # fmt: skip
@click.option("--labels", "labels_file", type=PATH, metavar="FILE",
              help="File of the class names, one a line in the classifier's order.")  # fmt: skip
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder of the new run.")
@data_option
@click.option("--heads", type=int,
              help="Number of attention heads [default: one for every 64 channels].")  # fmt: skip
@json_option
def command(
    checkpoint: Path,
    classes: int | None,
    labels_file: Path | None,
    out: Path,
    given: GivenImages,
    heads: int | None,
    as_json: bool,
) -> None:
    """Make a run of a checkpoint that the paper's published scripts wrote.

    The run computes exactly that checkpoint's logits. --data is kept for evaluate and export.

    gft-edge import best_gft.pth --labels labels.txt --out runs/published
    """
    from gft_edge.model.published import (
        BLOCKS,
        INERT_SELECTION,
        left_out,
        published_network,
        read_published,
        write_import,
    )
    from gft_edge.model.weight_files import BACKBONE_FILE

    if (classes is None) == (labels_file is None):
        raise UsageError(
            "give --labels FILE with one class name a line, or --classes N where names do not "
            "matter, and not both"
        )
    source = given.source()
    if source is not None and labels_file is None:
        raise UsageError("--data finds classes by their names: give --labels FILE too")
    if out.exists():
        raise UsageError(f"{out} exists already: choose another --out")
    found = read_published(checkpoint, heads)
    labels = _labels(found, classes, labels_file)
    if source is not None:
        _check_data(source, labels)
    spec, model = published_network(found, labels)
    write_import(out, found, spec, model)
    if source is not None:
        _write_config(out, source)
    parts = left_out(found)
    count = sum(part.count for part in parts)
    content: dict[str, Any] = {
        "run": str(out),
        "network": spec.name,
        "classes": found.classes,
        "blocks": BLOCKS,
        "heads": found.heads,
        "image_size_px": found.image_size_px,
        "selection_reaches_logits": False,
        "remark": INERT_SELECTION,
        "tensors": len(found.state) - count,
        "left_out": to_json(parts),
        "backbone": str(out / BACKBONE_FILE),
        "train_as": found.train_as,
    }
    if as_json:
        print_json(content)
        return
    show(
        f"{out}: {spec.name}, {found.classes} classes, {found.heads} heads, {found.image_size_px} px "
        "squashed",
        INERT_SELECTION,
        Table(f"Left out: {count} of {len(found.state)} tensors", ("tensors", "count", "why"),
              [(part.tensors, part.count, part.reason) for part in parts]),
        f"A real GFT can start from {out / BACKBONE_FILE}: all {found.depth} blocks, the norm and the "
        "classifier. The checkpoint's GALA layers hold their random initialisation, since no "
        "gradient reached them: new ones start from the blocks.",
    )  # fmt: skip
    wanted = "" if source is not None else " --data DIR"
    next_line(
        f"gft-edge export {quoted(out)} --target openvino{wanted} --out BUNDLE, or gft-edge train --model "
        f"{found.train_as or 'MODEL'} --weights {quoted(out)} --data {quoted(given.data or 'DIR')} --out NEW"
    )


def _labels(found: Published, classes: int | None, file: Path | None) -> tuple[str, ...]:
    """Give each class its name. Raises UsageError for more or fewer names than the classifier has rows."""
    if file is None:
        labels = tuple(f"class {number}" for number in range(classes or 0))
        source, mend = f"--classes is {classes}", f"--classes {found.classes}"
    else:
        labels = _read_labels(file)
        source, mend = f"{file} has {len(labels)}", "--labels with one line per class"
    if len(labels) != found.classes:
        rows = tuple(found.state["classifier.weight"].shape)
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
    lines = text.removesuffix("\n").split("\n") if text else []
    labels = tuple(line.strip() for line in lines)
    if "" in labels:
        number = labels.index("") + 1
        raise UsageError(f"{file}, line {number} is empty: write one class name a line")
    for label, count in Counter(labels).most_common(1):
        if count > 1:
            where = ", ".join(str(n) for n, other in enumerate(labels, start=1) if other == label)
            raise UsageError(
                f"{file} names {label!r} in lines {where}: each class has its own name"
            )
    if reason := unusable_label(labels):
        raise UsageError(f"{file}: {reason}: rename it")
    return labels


def _check_data(source: DataSource, labels: tuple[str, ...]) -> None:
    """Raise DataError unless the data's splits know no other class."""
    splits = splits_of(source)
    if not splits and source.dataset == "imagefolder":
        raise DataError(
            f"{source.folder} has no train/, val/ or test/ folder of class folders: leave --data out, and "
            "give photographs without classes to gft-edge export"
        )
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
