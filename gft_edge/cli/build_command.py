"""gft-edge build."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.json_form import from_json
from gft_edge.bundle.manifest import Engine, EngineSettings
from gft_edge.bundle.specs import Progress
from gft_edge.bundle.store import read_bundle, read_manifest
from gft_edge.cli.answers import Answer, finish, fleet_table, only, print_answers
from gft_edge.cli.errand import Word
from gft_edge.cli.on_devices import OnDeviceCommand, OnDevices, on_option
from gft_edge.cli.options import (
    PATH,
    cache_folder,
    cache_option,
    engine_options,
    engine_settings,
    json_option,
    names_given,
    openvino_device_option,
    refuse_given,
)
from gft_edge.cli.output import next_line, print_json, progress, quoted, say, show
from gft_edge.errors import FailedError, UsageError
from gft_edge.fidelity.verify import verify
from gft_edge.nvidia.adopt import adopt_engine
from gft_edge.nvidia.build import build_engine
from gft_edge.remote.device import Device
from gft_edge.reporting.bundle_tables import engine_table
from gft_edge.reporting.table import Table, Value
from gft_edge.runtime.backends.ov import placed
from gft_edge.runtime.classifier import Classifier
from gft_edge.runtime.openvino_devices import UNKEPT

_OF_ENGINES = ("timing_cache", *(field.name for field in dataclasses.fields(EngineSettings)))


@click.command("build", cls=OnDeviceCommand)
@click.argument("bundle", type=PATH)
@click.option("--explain", is_flag=True,
              help="Build the engine that also returns the kept patches, which verify compares.")  # fmt: skip
@click.option("--fresh", is_flag=True,
              help="Build anew, although an engine of this graph and machine is there.")  # fmt: skip
@engine_options
@openvino_device_option
@cache_option
@on_option
@json_option
def command(
    bundle: Path,
    explain: bool,
    fresh: bool,
    device: str | None,
    cache_dir: str | None,
    devices: OnDevices | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Build the TensorRT engine of a bundle on the machine that runs it.

    It goes into the bundle beside those of other machines, and is built again only when the graph,
    the options or the machine changed. Options replace those of the export; without any, an engine
    that is there is kept, whatever its options were. With --on the engine is built on a device and comes back
    into the bundle here, with its timing cache, so that one bundle serves many devices.

    A bundle for OpenVINO loads as it is: with --device it is compiled for that device ahead of time, into
    the cache folder that predict reads, and verified there.

    gft-edge build bundles/grocery-trt
    """
    manifest = read_manifest(bundle)
    if device is not None:
        if manifest.target == "tensorrt":
            raise UsageError(f"{bundle} is for tensorrt, --device is OpenVINO's: leave it out")
        refuse_given(
            "explain", "fresh", *_OF_ENGINES, why="is of TensorRT's engines: leave it out with --device"
        )  # fmt: skip
        if devices is not None:
            _compile_on(devices, bundle, as_json)
        else:
            _compile(bundle, device, cache_folder(cache_dir, "openvino"), as_json)
        return
    if manifest.target == "openvino":
        raise UsageError(
            f"{bundle} is a bundle for openvino, which loads as it is: engines are built from bundles of "
            "--target tensorrt, and --device GPU compiles this one ahead of time"
        )
    refuse_given("cache_dir", why="is OpenVINO's: give --device too")
    settings = engine_settings(options, manifest.engine_settings)
    if devices is not None:
        refuse_given(
            "timing_cache",
            why="is a file of the machine that builds, and with --on the timings come back with the "
            "engine: leave it out",
        )
        _on(devices, bundle, as_json)
        return
    try:
        with progress() as report:
            built = build_engine(
                bundle, settings, explain, options["timing_cache"], fresh, report, say
            )
    except KeyboardInterrupt:
        say(f"interrupted: {bundle} is as it was")
        raise
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "made": built.made,
                "engine": built.engine,
                "loads_here": built.loads_here,
            }
        )
        return
    if not built.made:
        say("this engine is of this graph and machine: not built again (--fresh builds it)")
    show(engine_table(bundle, built.engine))
    # What was built ahead of time need not run on this machine.
    next_line(f"gft-edge {'verify' if built.loads_here else 'inspect --engine'} {quoted(bundle)}")


def _compile(bundle: Path, device: str, folder: Path | None, as_json: bool) -> None:
    """Compile a bundle with OpenVINO into `folder`, and verify it on the device."""
    if device.partition(":")[0] in UNKEPT:
        raise UsageError(f"what {device} compiles cannot be kept: name the device itself, as GPU")
    if folder is None:
        raise UsageError("--cache-dir none keeps nothing: give a folder, or leave it out")
    opened, where = read_bundle(bundle), placed(device)
    with progress() as report:
        report(f"verify on {device}", 0, 2)
        found = verify(bundle, "openvino", device=device)
        report(f"compile for {device}", 1, 2)
        began, started = time.time(), time.perf_counter()
        Classifier.load(opened, "openvino", device=device, cache_dir=folder).close()
        seconds = time.perf_counter() - started
        report(f"compile for {device}", 2, 2)
    if not any(each.stat().st_mtime >= began - 2 for each in folder.glob("*.blob")):
        raise FailedError(f"OpenVINO's compiled model is not in {folder}: give another --cache-dir")
    content = {
        "bundle": str(bundle),
        "device": device,
        "processors": [each.full_name for each in where.processors],
        "cache_dir": str(folder),
        "load_s": round(seconds, 3),
        "verdict": found.verdict,
        "failures": found.failures,
    }
    if as_json:
        print_json(content)
    else:
        show(_compiled_table(str(bundle), content))
    if found.verdict == "fail":
        raise click.exceptions.Exit(1)
    if not as_json:
        words = [f"--device {quoted(device)}"]
        words += ["--backend openvino"] if opened.manifest.target == "onnx" else []
        words += [f"--cache-dir {quoted(folder)}"] if "cache_dir" in names_given() else []
        next_line(f"gft-edge predict {quoted(bundle)} PHOTO {' '.join(words)}")


def _compile_on(devices: OnDevices, bundle: Path, as_json: bool) -> None:
    answers = devices.do(devices.words(sent=("bundle",)), [bundle], "openvino")
    if len(answers) == 1:
        only(answers)
    if as_json:
        print_answers(answers)
    else:
        for answer in answers:
            if answer.document is not None:
                show(_compiled_table(f"{bundle} on {answer.host}", answer.document))
            else:
                say(f"{answer.host}: {answer.error}")
    finish(answers)


def _compiled_table(title: str, content: Mapping[str, Any]) -> Table:
    rows = [
        ("device", content["device"]),
        ("processors", "; ".join(content["processors"])),
        ("kept in", content["cache_dir"]),
        ("loaded in", f"{content['load_s']:.2f} s"),
        ("verdict there", content["verdict"]),
        *(("missed", failure) for failure in content["failures"]),
    ]
    return Table(title, ("what", "value"), rows)


def _on(devices: OnDevices, bundle: Path, as_json: bool) -> None:
    read_bundle(bundle)
    answers = built_on(devices, devices.words(sent=("bundle",)), bundle)
    if len(answers) == 1:
        only(answers)
    if as_json:
        print_answers(answers)
    elif len(answers) == 1:
        show(engine_table(bundle, _engine(answers[0])))
        host = quoted(answers[0].host)
        next_line(f"gft-edge verify {quoted(bundle)} --on {host}")
    else:
        columns = ("engine", "built by", "seconds", "done")
        show(fleet_table(f"Engines of {bundle}", columns, answers, _row))
    finish(answers)


def built_on(
    devices: OnDevices, words: Sequence[Word], bundle: Path, report: Progress | None = None
) -> list[Answer]:
    """Have devices do `words`, a `build` of the bundle, and take their engines into the bundle here."""
    with tempfile.TemporaryDirectory(prefix="gft-edge-") as name:
        fetched: dict[str, dict[str, Path]] = {}

        def fetch(device: Device, root: str, answer: Answer) -> None:
            if answer.document is None:
                return
            made = {place.partition("/")[2].partition("/")[2]: sha256
                    for place, sha256 in device.made(root).items()}  # fmt: skip
            engine = _engine(answer)
            files = [engine.path, *([engine.timing_cache] if engine.timing_cache else [])]
            # What was sent with the bundle is here already.
            mine = {path: Path(name, answer.host, made[path]) for path in files if path in made}
            for path, place in mine.items():
                device.fetch(made[path], place)
            fetched[answer.host] = mine

        answers = devices.do(words, [bundle], fetch=fetch, report=report)
        # Not before: the bundle may still be on its way to a slower host.
        for answer in answers:
            if answer.host in fetched:
                adopt_engine(bundle, _engine(answer), fetched[answer.host])
    return answers


def _engine(answer: Answer) -> Engine:
    return from_json(Engine, answer.document["engine"], "the engine")


def _row(answer: Answer) -> list[tuple[Value, ...]]:
    engine = _engine(answer)
    made = "built" if answer.document["made"] else "was there"
    return [(engine.path, f"{engine.flavor} {engine.version}", engine.build_seconds, made)]
