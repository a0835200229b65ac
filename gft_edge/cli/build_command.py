"""gft-edge build."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.json_form import from_json
from gft_edge.bundle.manifest import Engine
from gft_edge.bundle.specs import Progress
from gft_edge.bundle.store import read_bundle, read_manifest
from gft_edge.cli.answers import Answer, finish, fleet_table, only, print_answers
from gft_edge.cli.errand import Word
from gft_edge.cli.on_devices import OnDeviceCommand, OnDevices, on_option
from gft_edge.cli.options import (
    PATH,
    engine_options,
    engine_settings,
    json_option,
    refuse_given,
)
from gft_edge.cli.output import next_line, print_json, progress, quoted, say, show
from gft_edge.nvidia.adopt import adopt_engine
from gft_edge.nvidia.build import build_engine
from gft_edge.remote.device import Device
from gft_edge.reporting.bundle_tables import engine_table
from gft_edge.reporting.table import Value


@click.command("build", cls=OnDeviceCommand)
@click.argument("bundle", type=PATH)
@click.option("--explain", is_flag=True,
              help="Build the engine that also returns the kept patches, which verify compares.")  # fmt: skip
@click.option("--fresh", is_flag=True,
              help="Build anew, although an engine of this graph and machine is there.")  # fmt: skip
@engine_options
@on_option
@json_option
def command(
    bundle: Path,
    explain: bool,
    fresh: bool,
    devices: OnDevices | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Build the TensorRT engine of a bundle on the machine that runs it.

    It goes into the bundle beside those of other machines, and is built again only when the graph,
    the options or the machine changed. Options replace those of the export; without any, an engine
    that is there is kept, whatever its options were. With --on the engine is built on a device and comes back
    into the bundle here, with its timing cache, so that one bundle serves many devices.

    gft-edge build bundles/grocery-trt
    """
    settings = engine_settings(options, read_manifest(bundle).engine_settings)
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
