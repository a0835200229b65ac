"""gft-edge benchmark."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gft_edge.bundle.json_form import to_json
from gft_edge.cli.options import (
    PATH,
    data_option,
    device_options,
    json_option,
    measuring_options,
    percentiles,
    split_option,
)
from gft_edge.cli.output import line, next_line, print_json, progress, say, show, shown
from gft_edge.cli.sources import images_of_run
from gft_edge.errors import MissingDependencyError, UsageError
from gft_edge.fidelity.compare import MAX_DROP
from gft_edge.runtime.backends import backend_for

# What --no-latency leaves nothing to do for.
_OF_LATENCIES = (
    "targets", "precisions", "calibration_data", "images", "duration", "warmup_ms", "min_samples",
    "percentiles", "layers",
)  # fmt: skip


@click.command("benchmark")
@click.argument("run", type=PATH)
@data_option
@split_option("test, else val; with keep counts val, else test")
@click.option("--targets", metavar="NAME,...",
              help="onnx, openvino, tensorrt [default: all; with keep counts one of them].")  # fmt: skip
@click.option("--precisions", metavar="NAME,...",
              help="fp32, fp16, bf16, int8 [default: all; with keep counts fp32].")  # fmt: skip
@click.option("--keep", multiple=True, metavar="COUNT,...",
              help="Keep counts to compare with the trained ones, one a stage, as in export --keep; "
              "may be repeated.")  # fmt: skip
@click.option("--grid", "points", type=click.IntRange(2), metavar="POINTS",
              help="Instead of --keep: this many keep counts at the trained ratios, the first stage "
              "keeping all patches down to a quarter.")  # fmt: skip
@click.option("--no-latency", is_flag=True,
              help="Accuracy and GFLOPs at the keep counts alone: export nothing.")  # fmt: skip
@click.option("--calibration-data", type=PATH,
              help="int8: class folders of real images [default: the train split].")  # fmt: skip
@click.option("--images", type=int, default=256, show_default=True,
              help="Real images that every export is verified on.")  # fmt: skip
@click.option("--limit", type=int, help="Images of the split for accuracy [default: all].")
@measuring_options
@click.option("--layers/--no-layers", default=True, show_default=True,
              help="Time each network's layers too, in a run of its own.")  # fmt: skip
@device_options
@click.option("--out", type=PATH, help="Folder to fill, or to go on in [default: RUN-benchmark].")
@click.option("--fresh", is_flag=True, help="Start anew in a folder that holds a benchmark.")
@json_option
def command(run: Path, data: Path | None, out: Path | None, as_json: bool, **options: Any) -> None:
    """Everything that this machine can run of RUN, in one table: what it costs and what it keeps.

    Each target and precision is exported, verified, judged on the split against PyTorch, and all are
    measured in turn. With --keep or --grid the trained network is tried at other keep counts too, not
    retrained, beside the trained counts on the same images. What cannot run here or fails is listed
    with its reason. Ctrl-C keeps what is done: the same command goes on. Exit 0 when something was
    measured, 1 when nothing was.
    """
    try:
        from gft_edge.studies.benchmark import BenchmarkRequest, benchmark
        from gft_edge.studies.results import RESULT_FILES
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "export") from error
    if options["keep"] and options["points"]:
        raise UsageError("--keep names the keep counts and --grid makes them: give one of the two")
    if options["no_latency"]:
        for name in _OF_LATENCIES:
            if _given(name):
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag} is for latencies: leave it out with --no-latency")
    out = out or Path(f"{run.resolve().name}-benchmark")
    request = BenchmarkRequest(
        run=run,
        data=images_of_run(run, data, options["dataset"], options["coco_category"]),
        out=out,
        targets=_names("--targets", options["targets"]),
        precisions=_names("--precisions", options["precisions"]),
        latency=not options["no_latency"],
        duration_s=options["duration"],
        percentiles=percentiles(options["percentiles"]),
        **{
            name: options[name]
            for name in (
                "split", "keep", "points", "calibration_data", "images", "limit", "fresh",
                "warmup_ms", "min_samples", "layers", "device", "workers",
            )
        },
    )  # fmt: skip
    try:
        with progress() as report:
            result, profile = benchmark(request, report, say)
    except KeyboardInterrupt:
        say(f"interrupted: what is done is kept in {shown(str(out))}, the same command goes on")
        raise click.exceptions.Exit(1) from None
    if as_json:
        print_json(to_json(result))
    else:
        _print(result, [out / name for name in RESULT_FILES if (out / name).exists()])
        line(f"gft-edge report {shlex.quote(shown(str(out)))} makes a page of it")
        _print_next(result, out, {"data": data, **options})
    if not result.complete:
        say("interrupted: latencies are of the samples so far, the same command measures them anew")
    if not result.complete or (request.latency and profile is None):
        raise click.exceptions.Exit(1)


def _given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def _names(flag: str, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if not names:
        raise UsageError(f"{flag} is empty: give names separated by commas, or leave it out")
    return names


def _print(result: Any, files: list[Path]) -> None:
    from gft_edge.studies.benchmark_table import benchmark_table, notes

    table = benchmark_table(result)
    if table.rows:
        show(table)
    else:
        for note in notes(result):
            line(shown(note))
    line(f"written: {', '.join(shown(str(file)) for file in files)}")


def _print_next(result: Any, out: Path, options: dict[str, Any]) -> None:
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
        next_line(f"gft-edge predict {shown(str(out / chosen.bundle))} PHOTO")
    elif chosen is not None:
        next_line(_export(result.run, chosen, options))


def _export(run: str, chosen: Any, options: dict[str, Any]) -> str:
    """The command that exports keep counts which were only evaluated; --keep leaves no stage out."""
    counts = ",".join(str(stage.keep) for stage in chosen.keep.stages)
    given = {
        "target": "onnx" if backend_for("openvino").missing() else "openvino",
        "data": options["data"],
        "dataset": options["dataset"],
        "coco-category": options["coco_category"],
        "keep": counts if chosen.keep.role != "trained" else None,
    }
    words = ["gft-edge", "export", shlex.quote(shown(run))]
    for name, value in given.items():
        if value:
            words += [f"--{name}", shlex.quote(shown(str(value)))]
    return " ".join([*words, "--out", "BUNDLE"])
