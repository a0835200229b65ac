"""gft-edge sweep."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gft_edge.bundle.images import CocoCategory
from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.store import is_bundle, write_whole
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
)
from gft_edge.cli.sources import images_of_run
from gft_edge.errors import MissingDependencyError, UsageError
from gft_edge.fidelity.compare import MAX_DROP
from gft_edge.runtime.backends import backend_for

CSV_FILE, PICTURE_FILE = "sweep.csv", "sweep.png"


@click.command("sweep")
@click.argument("run", type=PATH)
@data_option
@split_option(None)
@click.option("--keep", multiple=True, metavar="COUNT,...",
              help="A point, one keep count a stage, as of export --keep; may be repeated.")  # fmt: skip
@click.option("--grid", "points", type=click.IntRange(2), default=6, show_default=True,
              help="Instead: points at the trained ratios, the first stage keeping all patches "
              "down to a quarter.")  # fmt: skip
@click.option("--target", help="Engine to time [default: openvino if it is here, else onnx].")
@click.option("--precision", default="fp32", show_default=True, help="Of what is timed.")
@click.option("--calibration-data", type=PATH,
              help="int8: class folders of real images [default: the train split].")  # fmt: skip
@click.option("--images", type=click.IntRange(1), default=256, show_default=True,
              help="Real images that every export is verified on.")  # fmt: skip
@click.option("--no-latency", is_flag=True, help="Accuracy and GFLOPs alone: export nothing.")
@click.option("--duration", "duration_s", type=float, default=5.0, show_default=True,
              help="Seconds of each bundle at each boundary, at least.")  # fmt: skip
@device_options
@click.option("--fresh", is_flag=True, help="Compute all points anew, whatever the folder keeps.")
@click.option("--out", type=PATH, help="Folder to fill, or to go on in [default: RUN/sweep].")
@json_option
def command(
    run: Path, keep: tuple[str, ...], out: Path | None, as_json: bool, **options: Any
) -> None:
    """One trained network at many keep counts, not retrained: what each costs and what it saves.

    Accuracy is PyTorch's on the val split, on test where there is no val, unless --split names
    another; its difference to the trained counts is of the same images. Latency is of an exported
    bundle a point, all measured in turn. Writes a table, sweep.csv and sweep.png. Ctrl-C keeps what
    is done: the same command goes on.
    """
    try:
        from gft_edge.studies.figures import draw_sweep
        from gft_edge.studies.sweep import SweepRequest, sweep
        from gft_edge.studies.sweep_results import conditions, to_csv
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "export") from error
    if is_bundle(run):
        raise UsageError(f"{run} is a bundle: give the run that it was exported from")
    if keep and _given("points"):
        raise UsageError("--keep names the points and --grid makes them: give one of the two")
    if options.pop("no_latency"):
        for name in ("target", "precision", "calibration_data", "images", "duration_s"):
            if _given(name):
                flag = name.removesuffix("_s").replace("_", "-")
                raise UsageError(f"--{flag} is for latencies: leave it out with --no-latency")
        options["target"] = None
    else:
        options["target"] = options["target"] or _target()
    given = (options.pop("data"), options.pop("dataset"), options.pop("coco_category"))
    source = images_of_run(run, *given)
    out = out or run / "sweep"
    try:
        with progress() as report:
            found = sweep(SweepRequest(run, source, out, keep=keep, **options), report, say)
    except KeyboardInterrupt:
        say(f"interrupted: what is done is kept in {shown(str(out))}, the same command goes on")
        raise click.exceptions.Exit(1) from None
    files = [out / CSV_FILE, out / PICTURE_FILE]
    write_whole(files[0], to_csv(found).encode("utf-8", "replace"))
    draw_sweep(found, files[1])
    if as_json:
        print_json({**to_json(found), "files": [str(file) for file in files]})
        return
    _print(found)
    for note in conditions(found):
        line(note)
    line(f"written: {', '.join(shown(str(file)) for file in files)}")
    calibration = options["calibration_data"] or source.folder
    next_line(_next(run, found, calibration, *given))


def _given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def _target() -> str:
    return "onnx" if backend_for("openvino").missing() else "openvino"


def _next(
    run: Path,
    found: Any,
    calibration: Path,
    data: Path | None,
    dataset: str | None,
    coco_category: CocoCategory | None,
) -> str:
    """The export of what saves most of those on the front that lose no more than MAX_DROP."""
    int8 = found.precision == "int8"
    options = {
        "target": found.target or _target(),
        "precision": None if found.precision == "fp32" else found.precision,
        "calibration-data": shown(str(calibration)) if int8 else None,
        "data": None if data is None else shown(str(data)),
        "dataset": dataset,
        "coco-category": coco_category,
    }
    held = [point for point in found.exportable() if point.difference >= -MAX_DROP]
    cheapest = min(held, key=found.cost, default=None)
    if cheapest is not None and cheapest.role != "trained":
        options["keep"] = ",".join(map(str, cheapest.keep))
    words = ["gft-edge", "export", shlex.quote(shown(str(run)))]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", shlex.quote(value)]
    return " ".join([*words, "--out", "BUNDLE"])


def _print(found: Any) -> None:
    timed = found.measured is not None
    heads = ["keep", "top-1", "difference", "gained / lost", "GFLOPs"]
    rows = []
    for point in found.points:
        row = [
            f"{point.name} (trained)" if point.role == "trained" else point.name,
            percent(point.top1),
            "-" if point.role == "trained"
            else f"{100 * point.difference:+.2f} +- {100 * point.standard_error:.2f}",
            "-" if point.role == "trained" else f"{point.gained} / {point.lost}",
            f"{point.gflops:.3f}",
        ]  # fmt: skip
        if timed:
            latency = point.latency
            row += [f"{latency.p50_ms:.2f}", f"{latency.ratio:.2f}"] if latency else ["-", "-"]
        rows.append([*row, "*" if point.front else ""])
    if timed:
        heads += [f"{found.target} {found.precision} ms", "ratio"]
    print_table(
        f"{found.network} on {found.split} ({found.images} images), not retrained; * nothing here "
        "is as accurate and as fast",
        [*heads, ""],
        rows,
    )
