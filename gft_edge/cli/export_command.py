"""gft-edge export."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from gft_edge.bundle.images import DataSource, ImageSet
from gft_edge.bundle.json_form import to_json
from gft_edge.bundle.manifest import Confidence, WeightsRange
from gft_edge.bundle.specs import InputSpec, ModelSpec, Progress, Say
from gft_edge.bundle.store import Bundle, is_bundle
from gft_edge.calibration.image_set import CALIBRATION_IMAGES, Decisions, draw_judges
from gft_edge.cli.bench_there import Device
from gft_edge.cli.given_images import GivenImages
from gft_edge.cli.least_probability import known_photographs, threshold_asked, with_threshold
from gft_edge.cli.on_devices import OnDeviceCommand, OnDevices, on_option
from gft_edge.cli.options import (
    PATH,
    data_option,
    engine_options,
    engine_settings,
    json_option,
    names_given,
    openvino_device_option,
    refuse_given,
    seed_option,
    split_option,
)
from gft_edge.cli.output import next_line, print_json, progress, quoted, say, show
from gft_edge.datasets import splits_of
from gft_edge.errors import PipelineError, UsageError
from gft_edge.fidelity.compare import MAX_DROP
from gft_edge.nvidia.build import Built, build_engine, builder_here
from gft_edge.reporting.bundle_tables import engine_table, fidelity_tables
from gft_edge.runtime.backends import backend_for, backends
from gft_edge.studies.drawn_images import (
    VERIFICATION_IMAGES,
    calibration_images,
    verification_splits,
)

if TYPE_CHECKING:
    from gft_edge.export.request import CalibrationRequest
    from gft_edge.model.network import Network

_OF_LOWER = ("fidelity", "max_drop", "require_resolved")
_OF_INT8 = ("calibration_data", "subset_size", "calibration_method", "keep_high_precision",
            "weights_range")  # fmt: skip


@click.command("export", cls=OnDeviceCommand)
@click.argument("run", type=PATH)
@click.option("--target", "--format", required=True,
              help=f"Engine to export for: {', '.join(backends())}.")  # fmt: skip
@click.option("--precision",
              help="Precision of the bundle: fp32 (default), fp16, bf16, int8, int8-bf16, or auto, the "
              "fastest here that holds its bounds.")  # fmt: skip
@click.option("--half", is_flag=True, hidden=True)
@click.option("--int8", is_flag=True, hidden=True)
@click.option("--batch", type=int, default=1, show_default=True, help="Number of images a call.")
@click.option("--input", "dtype", type=click.Choice(["uint8", "float32"]), default="uint8",
              show_default=True,
              help="Input of the graph: uint8 NHWC pixels, or float32 NCHW normalised.")  # fmt: skip
@click.option("--opset", type=int, default=20, show_default=True, help="Opset of the ONNX graph.")
@click.option("--no-simplify", is_flag=True, help="Leave the graph as converted, without onnxsim.")
@click.option("--compress-weights", is_flag=True, help="Store weights in FP16 (OpenVINO only).")
@data_option
@split_option(None)
@click.option("--keep", metavar="COUNT,...",
              help="Numbers of patches to keep instead of the trained ones, one a stage: 120,80,40 or "
              "60%,40%,20% or auto:16,auto:16,auto:16.")  # fmt: skip
@click.option("--images", type=click.IntRange(1), default=VERIFICATION_IMAGES, show_default=True,
              help="Number of real images that every step is verified on: all of val, then images of "
              "train that INT8 is not calibrated on, without their accuracy; of a folder without splits "
              "any.")  # fmt: skip
@click.option("--max-drop", type=float, default=MAX_DROP, show_default=True,
              help="Accuracy, of 1, that a precision under fp32 may cost on the images of val that have "
              "a class of the network's.")  # fmt: skip
@click.option("--fidelity", default="photo", show_default=True,
              help="Rule for a precision under fp32: photo, no more than a change of the photograph that "
              "nobody sees changes; strict, fixed bounds; off, none.")  # fmt: skip
@click.option("--min-probability", metavar="P|auto",
              help="Least probability, of 1, for a label: what the bundle is less sure of is none of these "
              "[default: 0]; auto keeps 95 % of val or, with --unknown, tells it apart best.")  # fmt: skip
@click.option("--unknown", type=PATH, metavar="DIR",
              help="Photographs of none of the classes, for --min-probability auto.")  # fmt: skip
@click.option("--require-resolved", is_flag=True,
              help="Exit 1 where the images are too few to tell that the accuracy holds.")  # fmt: skip
@click.option("--calibration-data", type=PATH, metavar="DIR",
              help="Folder of real images of any classes to calibrate INT8 on, or one whose train/ "
              "holds them [default: the run's train split].")  # fmt: skip
@click.option("--subset-size", type=int,
              help=f"Number of images to calibrate INT8 on [default: {CALIBRATION_IMAGES}, of a small train "
              "split half].")  # fmt: skip
@click.option("--calibration-method",
              help="How INT8 takes its ranges: minmax (default), percentile, entropy or mse.")  # fmt: skip
@click.option("--weights-range", type=click.Choice(get_args(WeightsRange)),
              help="Range of INT8 weights: half (default on CPUs), or full, which keeps more patches and "
              "needs VNNI, AMX or Arm (default on GPUs).")  # fmt: skip
@click.option("--keep-high-precision", "--nodes-to-exclude", metavar="LAYER,...",
              help="Layers to leave out of INT8; gft-edge sensitivity suggests them.")  # fmt: skip
@seed_option
@engine_options
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Folder of the new bundle.")
@openvino_device_option
@on_option
@json_option
def command(
    run: Path,
    target: str,
    given: GivenImages,
    out: Path,
    device: str | None,
    devices: OnDevices | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Export a run as a verified bundle: static ONNX, then the target's own format.

    The images come from the run's data, its val and train splits unless --split names one. --data takes any
    folder of photographs: where none has a class of the network's, the accuracy is not known. A precision
    under fp32 may change no more than noise or JPEG compression of the same photographs would; in int8
    layers go back to high precision until that holds.
    For TensorRT the bundle holds the graph, and an engine where this machine can build one. With --precision
    auto --on HOST the precisions are judged and timed on a device too, which decides.

    gft-edge export runs/grocery --target openvino --out bundles/grocery
    """
    precision, keep, timing_cache = _precision(options), options["keep"], options["timing_cache"]
    if precision != "auto":
        refuse_given(
            "hosts", "device",
            why=f"is for --precision auto, which is decided there: export {precision} without it",
        )  # fmt: skip
    from gft_edge.export.pipeline import export
    from gft_edge.export.request import ExportRequest, check_calibration, check_request
    from gft_edge.model.checkpoint import WEIGHTS_FILE, load_run
    from gft_edge.model.remembered import Remembered
    from gft_edge.model.schedule import stages_from_keep
    from gft_edge.model.temperature import temperature_of
    from gft_edge.studies.auto import AUTO, export_fastest
    from gft_edge.studies.bench import Bench, ThisMachine

    if device is not None and backend_for(target).TARGET != "openvino":
        raise UsageError(f"--device {device} is for --target openvino: leave it out for {target}")
    bench: Bench = ThisMachine(device) if devices is None else Device(devices, device)
    if is_bundle(run):
        raise UsageError(f"{run} is a bundle, exported already: give the run it was made from")
    if timing_cache is not None and backend_for(target).TARGET != "tensorrt":
        raise UsageError(f"{target} builds no engine: leave --timing-cache out")
    if timing_cache is not None and precision == AUTO:
        raise UsageError("--timing-cache is for one precision: leave it out with --precision auto")
    if precision == "fp32":
        refuse_given(*_OF_LOWER, why="is for a precision under fp32: leave it out")
    elif options["fidelity"] == "off":
        refuse_given(
            "max_drop",
            "require_resolved",
            why="is a bound, and --fidelity off has none: leave it out",
        )
        if precision == AUTO:
            raise UsageError(
                "--precision auto keeps what holds its bounds: leave --fidelity off out"
            )
    spec, model = load_run(run)
    source = given.of_run(run, any_folder=True)
    threshold = threshold_asked(options["min_probability"])
    known = known_photographs(source, spec.labels, options["unknown"], threshold)
    request = ExportRequest(
        target,
        precision,
        InputSpec(options["dtype"], options["batch"]),
        options["opset"],
        not options["no_simplify"],
        options["compress_weights"],
        options["max_drop"],
        engine_settings=engine_settings(options),
        fidelity=options["fidelity"],
        stages=None if keep is None else stages_from_keep(keep, spec, model),
        # With counts one by one no stage can be left out.
        keeps_all=keep is not None,
        confidence=Confidence(temperature_of(run, say), threshold or 0.0),
    )
    check_request(dataclasses.replace(request, precision="fp32") if precision == AUTO else request)
    # A folder may be calibrated and verified on: what it leaves out is said once.
    remark = functools.cache(say)
    calibration = _calibration(source, model, spec, precision, options, remark)
    request = dataclasses.replace(request, calibration=calibration)
    if calibration is not None:
        asked = dataclasses.replace(request, precision="int8") if precision == AUTO else request
        check_calibration(asked)
    decisions = Remembered(model, spec).decisions
    images = _images(source, spec, options, calibration, decisions, remark)
    with progress() as report:
        exporting = (model, spec, images, request, out, report, say, run / WEIGHTS_FILE)
        bundle = export_fastest(*exporting, bench) if precision == AUTO else export(*exporting)
        built = _build(bundle, out, timing_cache, report) if devices is None else None
        if known is not None:
            bundle = with_threshold(out, known, report)
    manifest = bundle.manifest
    unresolved = options["require_resolved"] and not manifest.reports[-1].resolved
    if as_json:
        print_json(
            {
                "bundle": str(out),
                "artifacts": [manifest.artifact],
                "lineage": manifest.lineage,
                "fidelity": {**to_json(manifest.reports[-1]), "steps": manifest.reports},
                "quantization": manifest.quantization,
                "confidence": manifest.confidence,
                "candidates": manifest.candidates,
                "engine": built.engine if built else None,
                "rescheduled": manifest.rescheduled,
            }
        )
        _require(not unresolved, out)
        return
    title = f"{out}: every step against PyTorch"
    show(*fidelity_tables(title, manifest))
    if built is not None:
        show(engine_table(out, built.engine))
    # On the device: an engine built ahead of time is for others, or for none.
    unbuilt = manifest.target == "tensorrt" and not (built and built.loads_here)
    on = f" --on {quoted(devices.hosts[0])}" if devices else ""
    next_line(f"gft-edge {'build' if unbuilt and not on else 'verify'} {quoted(out)}{on}")
    _require(not unresolved, out)


def _require(resolved: bool, out: Path) -> None:
    if not resolved:
        say(f"Error: {out} is written, but its accuracy is not resolved: give more --images")
        raise click.exceptions.Exit(1)


def _build(bundle: Bundle, out: Path, timing_cache: Path | None, report: Progress) -> Built | None:
    """Build the engine where this machine can; say why not elsewhere."""
    settings = bundle.manifest.engine_settings
    if settings is None:
        return None
    try:
        builder_here(settings, timing_cache)
    except UsageError as error:
        say(f"{out} is ready for the device; no engine is built here: {error}")
        return None
    try:
        return build_engine(out, timing_cache=timing_cache, progress=report, say=say)
    except PipelineError as error:
        raise PipelineError(
            f"{error}. {out} is whole, verified, and without an engine: gft-edge build {quoted(out)}"
        ) from error


def _calibration(
    source: DataSource,
    model: Network,
    spec: ModelSpec,
    precision: str,
    options: dict[str, Any],
    remark: Say,
) -> CalibrationRequest | None:
    """Draw what INT8 is calibrated on: of the train split unless told otherwise."""
    from gft_edge.export.int8 import asked_layers
    from gft_edge.export.request import CalibrationRequest
    from gft_edge.studies.auto import AUTO

    folder = options["calibration_data"]
    if not precision.startswith("int8") and precision != AUTO:
        refuse_given(*_OF_INT8, why="is for --precision int8: leave it out")
        return None
    words = (options["keep_high_precision"] or "").split(",")
    keep = tuple(name.strip() for name in words if name.strip())
    asked_layers(model, keep)
    if folder is None and precision == AUTO and "train" not in splits_of(source):
        say(f"{source.folder} has no train/ to calibrate on: int8 is left out")
        return None
    if folder is None and "train" in splits_of(source):
        say(f"calibrating on the train split of {source.folder}")
    count = options["subset_size"]
    images = calibration_images(folder, source, spec.labels, remark, count, options["seed"])
    method, weights = options["calibration_method"] or "minmax", options["weights_range"]
    return CalibrationRequest(images, method, keep, weights_range=weights)


def _images(
    source: DataSource,
    spec: ModelSpec,
    options: dict[str, Any],
    calibration: CalibrationRequest | None,
    decisions: Decisions,
    remark: Say,
) -> ImageSet:
    """Draw what the export is verified on, and say what its accuracy is of.

    Raises UsageError for a bound on an accuracy that no image tells.
    """
    calibrated_on = None if calibration is None else calibration.images
    count = options["images"]
    splits = verification_splits(source, spec.labels, calibrated_on, options["split"])
    for text in splits[0].remarks:
        remark(text)
    # Before the network is asked for its decisions.
    _refuse_bounds_of_accuracy(splits[0].labelled)
    images = draw_judges(splits, count, options["seed"], decisions)
    found, labelled = len(images.paths), sum(target is not None for target in images.targets)
    _refuse_bounds_of_accuracy(labelled)
    if not labelled:
        say(
            f"verifying on {found} images, none of a class of the network's: agreement and kept patches are "
            "measured, the accuracy is not known and has no bound"
        )
    elif labelled < found:
        why = (
            "from train/"
            if splits[0].labelled == len(splits[0].paths)
            else "from train/ or of no such class"
        )
        say(
            f"verifying on {found} images, {found - labelled} of them {why}: the accuracy is that of the "
            f"other {labelled}"
        )
    if found < count and "images" in names_given():
        say(f"--images asks for {count}, and there are {found}: verifying on all of them")
    return images


def _refuse_bounds_of_accuracy(labelled: int) -> None:
    if not labelled:
        refuse_given(
            "max_drop",
            "require_resolved",
            why="bounds the accuracy, and no image to verify on has a class of the network's: leave it "
            "out, or give --data with class folders of its classes",
        )


def _precision(options: dict[str, Any]) -> str:
    short = [name for name, option in (("fp16", "half"), ("int8", "int8")) if options[option]]
    asked = {*short, *filter(None, [options["precision"]])}
    if len(asked) > 1:
        raise UsageError(f"more than one precision is asked for: {', '.join(sorted(asked))}")
    return asked.pop() if asked else "fp32"
