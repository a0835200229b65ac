"""gft-edge sensitivity."""

from __future__ import annotations

from pathlib import Path

import click

from gft_edge.bundle.images import CocoCategory
from gft_edge.bundle.json_form import to_json
from gft_edge.cli.options import PATH, data_option, json_option, split_option
from gft_edge.cli.output import (
    next_line,
    overlaps,
    percent,
    print_json,
    print_table,
    progress,
    say,
)
from gft_edge.cli.sources import source_of_run
from gft_edge.datasets import read_split
from gft_edge.errors import MissingDependencyError, UsageError
from gft_edge.reporting.drawing import check_installed, save
from gft_edge.reporting.run_charts import sensitivity_chart


@click.command("sensitivity")
@click.argument("run", type=PATH)
@data_option
@split_option("train")
@click.option("--images", type=click.IntRange(1), default=32, show_default=True,
              help="Images that each layer is measured on.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the drawing of the images.")
@click.option("--out", type=PATH, help="Picture (PNG) of the ranking to write.")
@json_option
def command(
    run: Path,
    data: Path | None,
    dataset: str | None,
    coco_category: CocoCategory | None,
    split: str | None,
    images: int,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """What each layer of a run costs in INT8, alone: accuracy, cosine, kept patches.

    Measured in PyTorch on the network as an INT8 export smooths it, most damage per work first. The
    last line is the --keep-high-precision that an export would need.
    """
    try:
        from gft_edge.calibration.suggestion import suggest_high_precision
        from gft_edge.model.checkpoint import load_run
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "export") from error
    if out is not None:
        check_installed()
    if out is not None and out.suffix.lower() != ".png":
        raise UsageError(f"--out {out} is no .png file")
    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: no such folder {out.parent}")
    spec, model = load_run(run)
    source = source_of_run(run, data, dataset, coco_category)
    split = split or "train"
    available = read_split(source, split, spec.labels)
    with progress() as report:
        found = suggest_high_precision(model, spec, available, images, seed, report, say)
    suggested, verdict = found.keep_high_precision, found.with_it
    if out is not None:
        layers = [(row.layer, row.score_noise, row.cosine_drop) for row in found.layers]
        save(sensitivity_chart(layers, suggested).figure, out)
    if as_json:
        print_json(to_json(found))
        return
    print_table(
        f"{run}: each layer alone in INT8, on {found.images} images of {split}",
        ("layer", "work", "accuracy", "cosine lost", "overlap lost", "score noise"),
        [
            (row.layer, f"{row.macs:.1%}", percent(-row.accuracy_drop), f"{row.cosine_drop:.5f}",
             overlaps(row.overlap_loss), " / ".join(f"{n:.1e}" for n in row.score_noise) or "-")
            for row in found.layers
        ],
    )  # fmt: skip
    if out is not None:
        say(f"{out} shows it")
    if verdict is not None:
        say(
            f"with the layers below in high precision: kept patches {overlaps(verdict.kept_overlap)}"
        )
    if verdict is None:
        say("not even one layer in INT8 holds the bounds on these images")
        next_line(f"gft-edge export {run} --target tensorrt --precision fp16 --out BUNDLE")
        return
    keep = f" --keep-high-precision {','.join(suggested)}" if suggested else ""
    next_line(
        f"gft-edge export {run} --target tensorrt --precision int8 --calibration-data {source.folder} "
        f"--out BUNDLE{keep}"
    )
