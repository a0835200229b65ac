"""Options that several commands share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from gft_edge.bundle.images import CocoCategory
from gft_edge.bundle.manifest import EngineSettings, Flavor, HardwareCompatibility
from gft_edge.errors import UsageError
from gft_edge.nvidia.build import check_settings
from gft_edge.runtime.user_cache import user_cache

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


def json_option(command: F) -> F:
    """--json: machine-readable output."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print JSON alone on stdout; progress goes to stderr.",
    )(command)


def data_option(command: F) -> F:
    """--data, --dataset and --coco-category: which images; cli/sources.py says what they mean."""
    options = (
        click.option("--data", type=PATH,
                     help="Folder of images: train/, val/ and test/ with class folders, or a --dataset."),
        click.option("--dataset", metavar="NAME",
                     help="Data set in --data: imagefolder, coco, fgvc-aircraft or food-101, as downloaded "
                     "[default: the run's own, or imagefolder]."),
        click.option("--coco-category", type=click.Choice(get_args(CocoCategory)),
                     help="Box that gives an image of COCO its category: the largest (default), or the "
                     "first annotation's, as in the paper."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def split_option(default: str | None = "test, else val") -> Callable[[F], F]:
    """--split: which of its splits; `default` is what the help says, the command takes it."""
    return click.option(
        "--split", default=None, show_default=default or False, help="Split of the images to read."
    )


def device_options(command: F) -> F:
    """--device and --workers: where a run is evaluated, and how many processes decode its images."""
    options = (
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
                     help="Processor for a run's network [default: a GPU where PyTorch sees one]."),
        click.option("--workers", type=click.IntRange(0), default=2, show_default=True,
                     help="Number of processes that decode a run's images."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def backend_option(command: F) -> F:
    """--backend: the engine that runs a bundle."""
    return click.option(
        "--backend", help="Engine to run the bundle on [default: the one it was exported for]."
    )(command)


def threads_option(command: F) -> F:
    """--threads: of the engine."""
    return click.option(
        "--threads", type=int, help="Number of threads of the engine [default: all cores]."
    )(command)


def cache_option(command: F) -> F:
    """--cache-dir: where OpenVINO keeps compiled models."""
    return click.option(
        "--cache-dir",
        metavar="DIR|none",
        help="Folder where OpenVINO keeps compiled models, which load sooner the next time "
        "[default: gft-edge/openvino in the user's cache folder].",
    )(command)


def cache_folder(given: str | None, target: str) -> Path | None:
    """What --cache-dir means for an engine; unless given, only OpenVINO has one. Raises UsageError."""
    if given == "none":
        return None
    if given is not None:
        if not given:
            raise UsageError("--cache-dir is empty: give a folder, or none to keep nothing")
        return Path(given)
    if target != "openvino":
        return None
    return user_cache("openvino")


def engine_options(command: F) -> F:
    """How an engine is built, in trtexec's names: --flavor, --workspace and their like."""
    options = (
        click.option("--flavor", type=click.Choice(["auto", *get_args(Flavor)]),
                     help="Library to build with: TensorRT, or TensorRT-RTX for desktop GPUs [default: "
                     "what is there]."),
        click.option("--workspace", type=float, metavar="GIB",
                     help="Scratch memory of the builder in GiB [default: all there is]."),
        click.option("--builder-optimization-level", type=int, metavar="0..5",
                     help="Effort of the builder: 0 is quick, 5 searches longest [default: TensorRT's, 3]."),
        click.option("--timing-cache", type=PATH, metavar="FILE",
                     help="Timing cache to read and write [default: beside the engine]."),
        click.option("--version-compatible", is_flag=True,
                     help="Build an engine that later TensorRT versions load too; it is slower."),
        click.option("--hardware-compatibility-level",
                     type=click.Choice(get_args(HardwareCompatibility)),
                     help="GPUs that can load the engine; not on a Jetson [default: those like this one]."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def engine_settings(
    options: dict[str, Any], base: EngineSettings | None = None
) -> EngineSettings | None:
    """`base` with what was asked for of engine_options, None when nothing was. Raises UsageError."""
    given = {
        "workspace_gib": options["workspace"],
        "builder_optimization_level": options["builder_optimization_level"],
        "version_compatible": options["version_compatible"] or None,
        "hardware_compatibility": options["hardware_compatibility_level"],
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if options["flavor"] is not None:
        changes["flavor"] = None if options["flavor"] == "auto" else options["flavor"]
    settings = dataclasses.replace(base or EngineSettings(), **changes)
    check_settings(settings, options["timing_cache"])
    return settings if changes else None


def measuring_options(command: F) -> F:
    """How long to measure: --duration, --warmup-ms, --min-samples, --percentiles."""
    options = (
        click.option("--duration", type=float, default=10.0, show_default=True,
                     help="Seconds of each bundle at each boundary, at least."),
        click.option("--warmup-ms", type=float, default=200.0, show_default=True,
                     help="At least, and until the median settles."),
        click.option("--min-samples", type=int,
                     help="At least [default: what the percentiles need, 662 for a p99]."),
        click.option("--percentiles", default="50,90,95,99", show_default=True,
                     help="Those that lack samples are withheld."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def percentiles(text: str) -> tuple[float, ...]:
    """The numbers of --percentiles, ascending. Raises UsageError."""
    try:
        return tuple(sorted({float(word) for word in text.split(",")}))
    except ValueError:
        raise UsageError(f"--percentiles {text} is no list of numbers: write 50,90,99") from None
