"""gft-edge build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.store import read_manifest
from gft_edge.cli.options import PATH, engine_options, engine_settings, json_option
from gft_edge.cli.output import next_line, print_json, progress, quoted, say, show
from gft_edge.nvidia.build import build_engine
from gft_edge.reporting.bundle_tables import engine_table


@click.command("build")
@click.argument("bundle", type=PATH)
@click.option("--explain", is_flag=True,
              help="Build the engine that also returns the kept patches, which verify compares.")  # fmt: skip
@click.option("--fresh", is_flag=True,
              help="Build anew, although an engine of this graph and machine is there.")  # fmt: skip
@engine_options
@json_option
def command(bundle: Path, explain: bool, fresh: bool, as_json: bool, **options: Any) -> None:
    """Build the TensorRT engine of a bundle on the machine that runs it.

    It goes into the bundle beside those of other machines, and is built again only when the graph,
    the options or the machine changed. Options replace those of the export; without any, an engine
    that is there is kept, whatever its options were.

    gft-edge build bundles/grocery-trt
    """
    settings = engine_settings(options, read_manifest(bundle).engine_settings)
    try:
        with progress() as report:
            built = build_engine(
                bundle, settings, explain, options["timing_cache"], fresh, report, say
            )
    except KeyboardInterrupt:
        say(f"interrupted: {bundle} is as it was")
        raise
    if as_json:
        print_json({"bundle": str(bundle), "made": built.made, "engine": built.engine})
        return
    if not built.made:
        say("this engine is of this graph and machine: not built again (--fresh builds it)")
    show(engine_table(bundle, built.engine))
    # What was built ahead of time need not run on this machine.
    next_line(f"gft-edge {'verify' if built.loads_here else 'inspect --engine'} {quoted(bundle)}")
