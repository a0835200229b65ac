"""gft-edge sensitivity."""

from __future__ import annotations

from pathlib import Path

import click

from gft_edge.cli.given_images import GivenImages
from gft_edge.cli.options import PATH, data_option, json_option, seed_option, split_option
from gft_edge.cli.output import next_line, print_json, progress, quoted, say, show, writable_file
from gft_edge.datasets.photographs import photographs_split, read_photographs
from gft_edge.errors import UsageError
from gft_edge.reporting.drawing import check_installed, save
from gft_edge.reporting.run_charts import sensitivity_chart
from gft_edge.reporting.table import Table, per_stage, percent

FEWEST_FOR_A_RANKING = 16


@click.command("sensitivity")
@click.argument("run", type=PATH)
@data_option
@split_option("train")
@click.option("--images", type=click.IntRange(1), default=32, show_default=True,
              help="Number of images that each layer is measured on.")  # fmt: skip
@seed_option
@click.option("--out", type=PATH, metavar="FILE", help="File for a chart of the ranking, .png.")
@json_option
def command(
    run: Path,
    given: GivenImages,
    split: str | None,
    images: int,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Rank the layers of a run by what each alone costs in INT8: accuracy, cosine, kept patches.

    Measured in PyTorch on the network as an INT8 export smooths it, most damage per work first: the
    score noise of all stages and five times the cosine lost, over the layer's share of the work. The images
    may be of any classes; the accuracy is of those that have one of the network's. The last line is the
    export, with the --keep-high-precision that it would need.

    gft-edge sensitivity runs/grocery --out sensitivity.png
    """
    from gft_edge.calibration.suggestion import suggest_high_precision
    from gft_edge.model.checkpoint import load_run

    if out is not None:
        check_installed()
        if out.suffix.lower() != ".png":
            raise UsageError(f"--out {out} is no .png file")
        writable_file(out, "--out")
    spec, model = load_run(run)
    source = given.of_run(run, any_folder=True)
    chosen = photographs_split(source, split, lambda source: "train")
    available = read_photographs(source, chosen, spec.labels)
    for remark in available.remarks:
        say(remark)
    if images < FEWEST_FOR_A_RANKING:
        say(
            f"a ranking by --images {images} holds for them alone: give {FEWEST_FOR_A_RANKING} or more"
        )
    with progress() as report:
        found = suggest_high_precision(model, spec, available, images, seed, report, say)
    if out is not None:
        layers = [(row.layer, row.score_noise, row.cosine_drop) for row in found.layers]
        save(sensitivity_chart(layers, found.keep_high_precision).figure, out)
    if as_json:
        print_json(found)
        return
    rows = [
        (row.layer, f"{row.macs:.1%}", f"{row.damage / row.macs:.2g}",
         percent(None if row.accuracy_drop is None else 0.0 - row.accuracy_drop),
         f"{max(row.cosine_drop, 0):.5f}",
         per_stage(row.overlap_loss), " / ".join(f"{n:.1e}" for n in row.score_noise) or None)
        for row in found.layers
    ]  # fmt: skip
    title = f"{run}: each layer alone in INT8, on {found.images} images of {available.name}"
    heads = (
        "layer",
        "work",
        "damage per work",
        "accuracy",
        "cosine lost",
        "overlap lost",
        "score noise",
    )
    show(Table(title, heads, rows))
    if out is not None:
        say(f"{out} shows it")
    data = "" if given.data is None else f" --data {quoted(given.data)}"
    export = f"gft-edge export {quoted(run)}{data} --target openvino --out BUNDLE --precision"
    if found.with_it is None:
        say("not even one layer in INT8 holds the bounds on these images")
        next_line(f"{export} fp32")
        return
    layers_kept = ",".join(found.keep_high_precision)
    which = "the layers below in high precision" if layers_kept else "all layers in INT8"
    say(f"with {which}: kept patches {per_stage(found.with_it.kept_overlap)}")
    next_line(f"{export} int8" + (f" --keep-high-precision {layers_kept}" if layers_kept else ""))
