"""gft-edge profile."""

from __future__ import annotations

import dataclasses
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from gft_edge.bundle.specs import Progress
from gft_edge.bundle.store import is_bundle, read_bundle
from gft_edge.cli.options import (
    PATH,
    backend_option,
    json_option,
    measuring_options,
    threads_option,
)
from gft_edge.cli.output import (
    next_line,
    print_json,
    progress,
    quoted,
    say,
    show,
    shown,
    writable_file,
)
from gft_edge.errors import UsageError
from gft_edge.profiling.profile import ProfileRequest, check_request, profile
from gft_edge.profiling.report_file import write_profile
from gft_edge.reporting.profile_tables import profile_blocks


@click.command("profile")
@click.argument("bundles", type=PATH, nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--photos", "images", type=PATH, metavar="DIR",
              help="Folder of photographs to measure on [default: the bundle's golden frames].")  # fmt: skip
@measuring_options
@click.option("--baseline", metavar="BUNDLE|TIMM_MODEL",
              help="Dense network to measure beside the bundles; a timm model is exported like the "
              "first of them.")  # fmt: skip
@click.option("--baseline-out", type=PATH, metavar="DIR",
              help="Folder to keep the exported baseline in.")  # fmt: skip
@click.option("--hint", type=click.Choice(["latency", "throughput"]), default="latency",
              show_default=True,
              help="Way to call: one image after another, or several in flight (OpenVINO).")  # fmt: skip
@threads_option
@click.option("--batch", type=int,
              help="Number of images a call [default: what the bundles were exported for].")  # fmt: skip
@backend_option
@click.option("--cuda-graph", is_flag=True,
              help="Replay the launches from one recording (TensorRT only).")  # fmt: skip
@click.option(
    "--layers", is_flag=True, help="Time each network's layers too, in a run of their own."
)
@click.option("--out", type=PATH, metavar="FILE", help="File for the JSON, with every sample.")
@json_option
def command(bundles: tuple[Path, ...], out: Path | None, as_json: bool, **options: Any) -> None:
    """Measure the latency of bundles on this machine, in turn, with what makes it trustworthy.

    engine is the engine's own synchronous inference, end to end goes from encoded image or decoded
    frame to labels. UNSTABLE numbers say what may have disturbed them. gft-edge report draws the
    file of --out, and compares several. Ctrl-C reports the samples so far.

    gft-edge profile bundles/grocery --photos grocery/test --out profile.json
    """
    # Made sure of before minutes of measuring.
    if out is not None:
        writable_file(out, "--out")
    if options["baseline"] is None and options["baseline_out"] is not None:
        raise UsageError("--baseline-out keeps an exported baseline: give --baseline too")
    baseline, kept = options.pop("baseline"), options.pop("baseline_out")
    with ExitStack() as stack:
        request = ProfileRequest(bundles=bundles, **options)
        report = stack.enter_context(progress())
        if baseline is not None:
            check_request(request)
            dense = _baseline(bundles[0], baseline, kept, report, stack)
            request = dataclasses.replace(request, baseline=dense)
        result = profile(request, report, say)
    # Printed first: a disk that is full by now loses no measurement.
    if as_json:
        print_json(result)
    else:
        show(*profile_blocks(result))
    if out is not None:
        write_profile(result, out)
        click.echo(f"written: {shown(out)}", err=as_json)
    if not as_json and out is None:
        next_line("the same with --out FILE keeps the samples, gft-edge report FILE draws them")
    elif not as_json:
        next_line(f"gft-edge report {quoted(out)}")
    if not result.complete:
        say("interrupted: these are the samples so far")
        raise click.exceptions.Exit(1)


def _baseline(
    like: Path, given: str, kept: Path | None, report: Progress, stack: ExitStack
) -> Path:
    """Open a bundle, or export a timm model like the first bundle, to `kept` where it is given."""
    if is_bundle(Path(given)):
        if kept is not None:
            raise UsageError(f"{given} is a bundle already: leave --baseline-out out")
        return Path(given)
    from gft_edge.export.baseline import dense_bundle

    if kept is None:
        kept = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gft-edge-"))) / given
    dense_bundle(read_bundle(like), given, kept, report, say)
    return kept
