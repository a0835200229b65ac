"""gft-edge benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gft_edge.cli.bench_there import Device
from gft_edge.cli.given_images import GivenImages
from gft_edge.cli.on_devices import OnDeviceCommand, OnDevices, on_option
from gft_edge.cli.options import (
    PATH,
    data_option,
    json_option,
    measuring_options,
    openvino_device_option,
    refuse_given,
    split_option,
    workers_option,
)
from gft_edge.cli.output import next_line, print_json, progress, quoted, say, show, shown
from gft_edge.errors import UsageError
from gft_edge.fidelity.compare import MAX_DROP
from gft_edge.runtime.backends import backend_for
from gft_edge.runtime.backends.ov import placed
from gft_edge.studies.drawn_images import VERIFICATION_IMAGES

if TYPE_CHECKING:
    from gft_edge.studies.bench import Bench

# What --no-latency leaves nothing to do for.
_OF_LATENCIES = (
    "device", "targets", "precisions", "calibration_data", "images", "duration_s", "warmup_ms", "min_samples",
    "percentiles", "layers",
)  # fmt: skip


def _names(_context: object, option: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    """Names separated by commas, each once. Raises UsageError where there are none."""
    if text is None:
        return None
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if not names:
        raise UsageError(
            f"{option.opts[0]} is empty: give names separated by commas, or leave it out"
        )
    return names


@click.command("benchmark", cls=OnDeviceCommand)
@click.argument("run", type=PATH)
@data_option
@split_option("test, else val; with keep counts val, else test")
@click.option("--targets", metavar="NAME,...", callback=_names,
              help="Targets to export for: onnx, openvino, tensorrt [default: all that are here; with "
              "keep counts one of them].")  # fmt: skip
@click.option("--precisions", metavar="NAME,...", callback=_names,
              help="Precisions to export in: fp32, fp16, bf16, int8, int8-bf16 [default: all; with keep "
              "counts fp32].")  # fmt: skip
@click.option("--keep", multiple=True, metavar="COUNT,...",
              help="Keep counts to compare with the trained ones, one a stage, as in export --keep; "
              "may be repeated.")  # fmt: skip
@click.option("--grid", "points", type=click.IntRange(2), metavar="POINTS",
              help="Instead of --keep: number of keep counts to try at the trained ratios, the first "
              "stage keeping from all patches down to a quarter.")  # fmt: skip
@click.option("--no-latency", is_flag=True,
              help="Export nothing: accuracy and GFLOPs at the keep counts alone.")  # fmt: skip
@click.option("--calibration-data", type=PATH, metavar="DIR",
              help="Folder of real images to calibrate INT8 on [default: the train split].")  # fmt: skip
@click.option("--images", type=int, default=VERIFICATION_IMAGES, show_default=True,
              help="Number of real images that every export is verified on.")  # fmt: skip
@click.option("--limit", type=int,
              help="Number of the split's images to measure accuracy on [default: all].")  # fmt: skip
@measuring_options
@click.option("--layers/--no-layers", default=True, show_default=True,
              help="Time each network's layers too, in a run of their own.")  # fmt: skip
@openvino_device_option
@workers_option
@click.option("--out", type=PATH, metavar="DIR",
              help="Folder to fill, or to go on in [default: RUN-benchmark].")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Start anew in a folder that holds a benchmark.")
@on_option
@json_option
def command(
    run: Path,
    given: GivenImages,
    out: Path | None,
    no_latency: bool,
    device: str | None,
    devices: OnDevices | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare everything that this machine can run of RUN in one table: what it costs, what it keeps.

    Each target and precision is exported, verified, judged on the split against PyTorch, and all are
    measured in turn. With --keep or --grid the trained network is tried at other keep counts too, not
    retrained, beside the trained counts on the same images. What cannot run here or fails is listed
    with its reason. Ctrl-C keeps what is done: the same command goes on. Exit 0 when something was
    measured, 1 when nothing was. With --on a device measures, and the rest is done here.

    gft-edge benchmark runs/grocery --data grocery --out benchmark
    """
    # Imported late: it takes seconds.
    from gft_edge.studies.bench import ThisMachine
    from gft_edge.studies.benchmark import BenchmarkRequest, benchmark
    from gft_edge.studies.benchmark_table import benchmark_table, notes
    from gft_edge.studies.memory import RESULT_FILES

    if options["keep"] and options["points"]:
        raise UsageError("--keep names the keep counts and --grid makes them: give one of the two")
    if no_latency:
        refuse_given(
            *_OF_LATENCIES, "hosts", why="is for latencies: leave it out with --no-latency"
        )
    if device is not None and options["targets"] and "openvino" not in options["targets"]:
        raise UsageError(
            f"--device {device} is for OpenVINO, which is none of --targets: leave it out"
        )
    if device is not None and devices is None:
        placed(device)
    bench: Bench = ThisMachine(device) if devices is None else Device(devices, device)
    out = out or Path(f"{run.resolve().name}-benchmark")
    request = BenchmarkRequest(
        run=run, data=given.of_run(run), out=out, latency=not no_latency, **options
    )
    try:
        with progress() as report:
            result, profile = benchmark(request, report, say, bench)
    except KeyboardInterrupt:
        say(f"interrupted: what is done is kept in {shown(out)}, the same command goes on")
        raise click.exceptions.Exit(1) from None
    if as_json:
        print_json(result)
    else:
        table = benchmark_table(result)
        files = [str(out / name) for name in RESULT_FILES if (out / name).exists()]
        show(*([table] if table.rows else notes(result)), f"written: {', '.join(files)}")
        show(f"gft-edge report {quoted(out)} makes a page of it")
        _print_next(result, out, given)
    if not result.complete:
        say("interrupted: latencies are of the samples so far, the same command measures them anew")
    if not result.complete or (request.latency and profile is None):
        raise click.exceptions.Exit(1)


def _print_next(result: Any, out: Path, given: GivenImages) -> None:
    """Predict with the fastest, or with what saves most of those that lose no more than MAX_DROP."""
    fastest = result.best_at("fastest")
    chosen = next((row for row in result.rows if fastest and row.name == fastest.row), None)
    counted = [
        row for row in result.rows if row.front and row.keep and (row.bundle or row.keep.stages)
    ]
    if counted:
        trained = result.reference_top1 or 0.0
        held = [row for row in counted if row.top1 >= trained - MAX_DROP]
        chosen = min(held or counted, key=lambda row: row.cost)
    if chosen is not None and chosen.bundle is not None:
        next_line(f"gft-edge predict {quoted(out / chosen.bundle)} PHOTO")
    elif chosen is not None:
        next_line(_export(result.run, chosen, given))


def _export(run: str, chosen: Any, given: GivenImages) -> str:
    """The command that exports keep counts which were only evaluated; --keep leaves no stage out."""
    counts = ",".join(str(stage.keep) for stage in chosen.keep.stages)
    options = {
        "target": "onnx" if backend_for("openvino").missing() else "openvino",
        "data": given.data,
        "dataset": given.dataset,
        "coco-category": given.coco_category,
        "keep": counts if chosen.keep.role != "trained" else None,
    }
    words = ["gft-edge", "export", quoted(run)]
    for name, value in options.items():
        if value:
            words += [f"--{name}", quoted(value)]
    return " ".join([*words, "--out", "BUNDLE"])
