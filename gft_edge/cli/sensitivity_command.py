"""gft-edge sensitivity."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from gft_edge.bundle.images import CocoCategory
from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.reports import FidelityReport
from gft_edge.cli.options import PATH, data_option, json_option, split_option
from gft_edge.cli.output import (
    advance,
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
from gft_edge.errors import GateError, MissingDependencyError, UsageError
from gft_edge.reporting.drawing import check_installed, save
from gft_edge.reporting.run_charts import sensitivity_chart

# Channels are levelled on this many times the images that layers are measured on: on the same few,
# a strong smoothing would look better than it is.
SMOOTHING_SHARE = 4


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
        from gft_edge.calibration.image_set import draw_image_set
        from gft_edge.calibration.layers import quantizable_layers
        from gft_edge.calibration.sensitivity import outputs_in_int8, sensitivity
        from gft_edge.export.int8 import normalised_batches, smoothed
        from gft_edge.export.plain_weights import with_plain_weights
        from gft_edge.export.search import fewest_high_precision
        from gft_edge.export.verify import pixels_of, torch_outputs
        from gft_edge.fidelity.compare import TOLERANCES, compare
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
    model = with_plain_weights(model)
    source = source_of_run(run, data, dataset, coco_category)
    split = split or "train"
    available = read_split(source, split, spec.labels)
    several = draw_image_set(available, SMOOTHING_SHARE * images, seed)
    everything = normalised_batches(pixels_of(several, spec.preprocessing), spec.preprocessing)
    drawn = draw_image_set(available, images, seed)
    pixels = pixels_of(drawn, spec.preprocessing)
    batches = normalised_batches(pixels, spec.preprocessing)
    network, strength = smoothed(model, everything, batches, None, say)
    with progress() as report:
        count = advance(report, "sensitivity", len(quantizable_layers(network)))
        ranking = sensitivity(network, batches, drawn.targets, count)
    reference = torch_outputs(model, pixels, spec.preprocessing)
    # On a few dozen images one decision is percents: the suggestion goes by patches and logits.
    bound = dataclasses.replace(TOLERANCES["int8"], top1_agreement=0.0, max_drop=None)

    def build(high: tuple[str, ...], final: bool) -> FidelityReport:
        outputs = outputs_in_int8(network, batches, high)
        return compare("sensitivity", reference, outputs, bound, drawn.targets)

    try:
        suggested, verdict = fewest_high_precision(ranking, (), build, lambda text: None)
    except GateError:
        suggested, verdict = (), None
    if out is not None:
        layers = [(row.layer, row.score_noise, row.cosine_drop) for row in ranking]
        save(sensitivity_chart(layers, suggested).figure, out)
    if as_json:
        print_json(
            {
                "smooth_quant": strength,
                "images": len(drawn.paths),
                "layers": [to_json(row) for row in ranking],
                "keep_high_precision": list(suggested),
                "with_it": None if verdict is None else to_json(verdict),
            }
        )
        return
    print_table(
        f"{run}: each layer alone in INT8, on {len(drawn.paths)} images of {split}",
        ("layer", "work", "accuracy", "cosine lost", "overlap lost", "score noise"),
        [
            (row.layer, f"{row.macs:.1%}", percent(-row.accuracy_drop), f"{row.cosine_drop:.5f}",
             overlaps(row.overlap_loss), " / ".join(f"{n:.1e}" for n in row.score_noise) or "-")
            for row in ranking
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
