"""gft-edge export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gft_edge.backends import backends
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
from gft_edge.errors import MissingDependencyError, UsageError
from gft_edge.specs import InputSpec, to_json


@click.command("export")
@click.argument("run", type=PATH)
@click.option("--target", "--format", required=True, help=f"One of {', '.join(backends())}.")
@click.option("--precision", default="fp32", show_default=True)
@click.option("--half", is_flag=True, hidden=True)
@click.option("--int8", is_flag=True, hidden=True)
@click.option("--batch", type=int, default=1, show_default=True, help="Static batch size.")
@click.option("--input", "dtype", type=click.Choice(["uint8", "float32"]), default="uint8",
              show_default=True, help="uint8 NHWC pixels, or float32 NCHW normalised.")  # fmt: skip
@click.option("--opset", type=int, default=20, show_default=True)
@click.option("--no-simplify", is_flag=True, help="Leave onnxsim out.")
@click.option("--compress-weights", is_flag=True, help="OpenVINO: store weights in FP16.")
@data_option
@split_option(None)
@click.option("--images", type=click.IntRange(1), default=256, show_default=True,
              help="Real images that every stage is verified on.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the drawing of those images.")
@click.option("--out", type=PATH, required=True, help="Bundle folder to write.")
@json_option
def command(run: Path, target: str, out: Path, as_json: bool, **options: Any) -> None:
    """Export a run as a verified bundle: static ONNX, then the target's own format.

    The images come from the run's data, its val split unless --split names another.
    """
    try:
        from gft_edge.export.recipe import ExportRequest, check_request, export
        from gft_edge.model.checkpoint import WEIGHTS_FILE, load_run
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "export") from error
    request = ExportRequest(
        target,
        "fp16" if options["half"] else "int8" if options["int8"] else options["precision"],
        InputSpec(options["dtype"], options["batch"]),
        options["opset"],
        not options["no_simplify"],
        options["compress_weights"],
    )
    check_request(request)
    spec, model = load_run(run)
    images = _images(run, spec, options)
    with progress() as report:
        bundle = export(model, spec, images, request, out, report, say, run / WEIGHTS_FILE)
    manifest = bundle.manifest
    if as_json:
        print_json(
            {
                "bundle": str(out),
                "artifacts": [to_json(manifest.artifact)],
                "lineage": to_json(manifest.lineage),
                "fidelity": {
                    **to_json(manifest.reports[-1]),
                    "verdict": manifest.reports[-1].verdict,
                    "stages": [{**to_json(r), "verdict": r.verdict} for r in manifest.reports],
                },
            }
        )
        return
    print_table(
        f"{out}: every stage against PyTorch on {len(images.paths)} images",
        ("stage", "top-1 agreement", "kept patches", "cosine", "max abs", "verdict"),
        [
            (r.stage, percent(r.top1_agreement), overlaps(r.kept_overlap), f"{r.cosine:.6f}",
             f"{r.max_abs:.1e}", r.verdict)
            for r in manifest.reports
        ],
    )  # fmt: skip
    next_line(f"gft-edge verify {out}")


def _images(run: Path, spec: Any, options: dict[str, Any]) -> Any:
    from gft_edge.calibration.image_set import draw_image_set
    from gft_edge.image_folder import read_split
    from gft_edge.training.loop import read_run_config

    data = options["data"] or Path(read_run_config(run)[1].data)
    if not data.is_dir():
        raise UsageError(f"{data}, the data of this run, is not here: give --data FOLDER")
    split = options["split"] or next((s for s in ("val", "test") if (data / s).is_dir()), "train")
    images = draw_image_set(
        read_split(data, split, spec.labels), options["images"], options["seed"]
    )
    if len(images.paths) < options["images"]:
        say(f"{data / split} has {len(images.paths)} images: verifying on all of them")
    return images
