"""Options that several commands share, and what they mean."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from gft_edge.bundle.images import CocoCategory
from gft_edge.bundle.manifest import EngineSettings, Flavor, HardwareCompatibility
from gft_edge.cli.given_images import GivenImages
from gft_edge.errors import UsageError
from gft_edge.nvidia.build import check_settings
from gft_edge.runtime.user_cache import user_cache

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

PATH = click.Path(path_type=Path)


class FiniteRange(click.FloatRange):
    """A range of numbers without NaN, which click's own ranges hold: no comparison with it is true."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


def together(*options: Decorator) -> Decorator:
    """Join several options into one decorator; --help lists them in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON alone on stdout; progress goes to stderr."
)

_data_options = together(
    click.option("--data", type=PATH,
                 help="Folder of images: train/, val/ and test/ with class folders, or a --dataset."),
    click.option("--dataset", metavar="NAME",
                 help="Data set in --data: imagefolder, coco, fgvc-aircraft or food-101, as downloaded "
                 "[default: the run's own, or imagefolder]."),
    click.option("--coco-category", type=click.Choice(get_args(CocoCategory)),
                 help="Box that gives an image of COCO its category: the largest (default), or the "
                 "first annotation's, as in the paper."),
)  # fmt: skip


def data_option(command: Command) -> Command:
    """--data, --dataset and --coco-category, which the command gets as one `given`: GivenImages."""

    @functools.wraps(command)
    def packed(
        data: Path | None, dataset: str | None, coco_category: CocoCategory | None, **options: Any
    ) -> Any:
        return command(given=GivenImages(data, dataset, coco_category), **options)

    return _data_options(packed)


def split_option(default: str | None = "test, else val") -> Decorator:
    """--split: which of its splits; `default` is what the help says, the command takes it."""
    return click.option(
        "--split", default=None, show_default=default or False, help="Split of the images to read."
    )


_PYTORCH_DEVICES = ("auto", "cpu", "cuda")


def of_pytorch(device: str | None) -> str:
    """What --device means for a network in PyTorch. Raises UsageError for a name of OpenVINO's."""
    if device is not None and device not in _PYTORCH_DEVICES:
        raise UsageError(
            f"--device {device}: PyTorch computes a run, choose from {', '.join(_PYTORCH_DEVICES)}; "
            "OpenVINO's devices are for bundles"
        )
    return device or "auto"


workers_option = click.option(
    "--workers", type=click.IntRange(0), default=2, show_default=True,
    help="Number of processes that decode images for PyTorch.",
)  # fmt: skip

device_options = together(
    click.option("--device", type=click.Choice(_PYTORCH_DEVICES), default="auto", show_default=True,
                 help="Processor for a network in PyTorch; auto takes a GPU where PyTorch sees one."),
    workers_option,
)  # fmt: skip

openvino_device_option = click.option(
    "--device", metavar="NAME",
    help="Device that OpenVINO computes on, as in benchmark_app -d: CPU, GPU, GPU.1, NPU, AUTO or "
    "HETERO:GPU,CPU [default: CPU].",
)  # fmt: skip

backend_option = click.option(
    "--backend", help="Engine to run the bundle on [default: the one it was exported for]."
)

threads_option = click.option(
    "--threads", type=int, help="Number of threads of the engine [default: all cores]."
)

seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True,
    help="Random seed for choosing images.",
)  # fmt: skip

cache_option = click.option(
    "--cache-dir", metavar="DIR|none",
    help="Folder where OpenVINO keeps compiled models, which load sooner the next time "
    "[default: gft-edge/openvino in the user's cache folder].",
)  # fmt: skip


def cache_folder(given: str | None, target: str) -> Path | None:
    """What --cache-dir means for an engine; unless given, only OpenVINO has one. Raises UsageError."""
    if given == "none":
        return None
    if given is not None:
        if not given:
            raise UsageError("--cache-dir is empty: give a folder, or none to keep nothing")
        return Path(given)
    return user_cache("openvino") if target == "openvino" else None


# How an engine is built: options in trtexec's names, parameters in those of EngineSettings.
engine_options = together(
    click.option("--flavor", type=click.Choice(["auto", *get_args(Flavor)]),
                 help="Library to build the engine with: TensorRT, or TensorRT-RTX for desktop GPUs "
                 "[default: the one that is installed]."),
    click.option("--workspace", "workspace_gib", type=float, metavar="GIB",
                 help="Scratch memory of the engine's builder in GiB [default: all there is]."),
    click.option("--builder-optimization-level", type=int, metavar="0..5",
                 help="Effort of the builder: 0 is quick, 5 searches longest [default: TensorRT's, 3]."),
    click.option("--timing-cache", type=PATH, metavar="FILE",
                 help="Timing cache to read and write [default: beside the engine]."),
    click.option("--version-compatible", is_flag=True,
                 help="Build an engine that later TensorRT versions load too; it is slower."),
    click.option("--hardware-compatibility-level", "hardware_compatibility",
                 type=click.Choice(get_args(HardwareCompatibility)),
                 help="GPUs that can load the engine; not on a Jetson [default: those like this one]."),
)  # fmt: skip


def engine_settings(
    options: dict[str, Any], base: EngineSettings | None = None
) -> EngineSettings | None:
    """`base` with what was asked for of engine_options, None when nothing was. Raises UsageError."""
    known = {field.name for field in dataclasses.fields(EngineSettings)}
    changes = {name: options[name] for name in names_given() if name in known}
    if changes.get("flavor") == "auto":
        changes["flavor"] = None
    settings = dataclasses.replace(base or EngineSettings(), **changes)
    check_settings(settings, options["timing_cache"])
    return settings if changes else None


def _percentiles(_context: object, _option: object, text: str) -> tuple[float, ...]:
    """The numbers of --percentiles, ascending. Raises UsageError."""
    try:
        return tuple(sorted({float(word) for word in text.split(",")}))
    except ValueError:
        raise UsageError(f"--percentiles {text} is no list of numbers: write 50,90,99") from None


measuring_options = together(
    click.option("--duration", "duration_s", type=float, default=10.0, show_default=True,
                 help="Minimum seconds to measure each bundle at each boundary."),
    click.option("--warmup-ms", type=float, default=200.0, show_default=True,
                 help="Minimum milliseconds of warm-up; it lasts until the median settles."),
    click.option("--min-samples", type=int,
                 help="Minimum number of calls [default: enough for every percentile, 662 for p99]."),
    click.option("--percentiles", default="50,90,95,99", show_default=True, callback=_percentiles,
                 help="Percentiles to report; those with too few calls are withheld."),
)  # fmt: skip


def names_given() -> list[str]:
    """The names of the parameters that stand on the command line of the running command."""
    context = click.get_current_context()
    return [
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]


def flag(name: str) -> str:
    """The flag of a parameter of the running command: "duration_s" is --duration."""
    parameters = click.get_current_context().command.params
    return next(one.opts[0] for one in parameters if one.name == name)


def refuse_given(*names: str, why: str) -> None:
    """Raise UsageError where one of these options was given, which means nothing here."""
    for name in names_given():
        if name in names:
            raise UsageError(f"{flag(name)} {why}")
